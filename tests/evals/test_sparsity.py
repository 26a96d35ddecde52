import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import sem

from sparsity.evals.sparsity import by_layer, merge, nonzero_fraction, sparsity
from sparsity.layers.sparsify import DEFINITION, SparsityStats, sparsity_stats


def random_z(seed, examples=30):
    """Pre-activations whose share of positives differs from example to example."""
    rng = np.random.default_rng(seed)
    return rng.normal(rng.normal(0, 1, (examples, 1, 1)), 1.0, (examples, 4, 6)).astype(np.float32)


def fractions(z):
    return (z > 0).mean((1, 2))


def batches(z, size):
    """The statistics of `z` as a run would record them, batch by batch."""
    record = jax.jit(lambda part: sparsity_stats(part, jnp.maximum(part, 0)))
    return [{"a": record(jnp.asarray(z[i : i + size]))} for i in range(0, len(z), size)]


def sums(examples, total, squares):
    one, zero = np.zeros(1), np.zeros(66)
    return SparsityStats(examples, 0.0, total, squares, np.zeros(2), 0.0, 0.0, one, one, np.zeros((3, 1)), zero)


@pytest.mark.parametrize("size", [30, 7, 1])
def test_mean_and_error_over_examples_are_numpys_however_the_examples_are_batched(size):
    z = random_z(0)
    mean, se, n = nonzero_fraction(merge(batches(z, size))["a"])
    assert n == 30
    # Each batch's sums are float32: eps 6e-8 of sums up to 30, and a variance of 0.1.
    assert mean == pytest.approx(fractions(z).mean(), rel=1e-6)
    assert se == pytest.approx(sem(fractions(z)), rel=1e-5)


def test_a_case_by_hand():
    # Fractions 0.25 and 0.75: mean 0.5, variance 0.125, se sqrt(0.125 / 2) = 0.25.
    assert nonzero_fraction(sums(2.0, 1.0, 0.0625 + 0.5625)) == (0.5, 0.25, 2)


def test_equal_fractions_have_no_error_even_if_rounding_makes_their_variance_negative():
    assert nonzero_fraction(sums(3.0, 0.3, 0.03 - 1e-9)) == (pytest.approx(0.1), 0.0, 3)


def test_one_example_has_no_standard_error():
    assert nonzero_fraction(sums(1.0, 0.25, 0.0625)) == (0.25, None, 1)


def test_no_example_has_no_fraction():
    mean, se, n = nonzero_fraction(sums(0.0, 0.0, 0.0))
    assert np.isnan(mean)
    assert (se, n) == (None, 0)


def test_nan_stays_nan_in_the_mean_and_in_its_error():
    z = random_z(1)
    z[3, 1, 2] = np.nan
    mean, se, n = nonzero_fraction(merge(batches(z, 8))["a"])
    assert np.isnan([mean, se]).all()
    assert n == 30


def test_merge_adds_in_float64_beyond_what_float32_can_count():
    one = sums(np.float32(1), np.float32(0.5), np.float32(0.25)).replace(tokens=np.float32(2**24))
    total = merge([{"a": one}, {"a": one.replace(tokens=np.float32(1))}])["a"]
    assert float(total.tokens) == 2**24 + 1  # float32 would say 2^24
    assert {np.asarray(x).dtype for x in jax.tree.leaves(total)} == {np.dtype("float64")}


def test_merge_keeps_layers_apart_and_takes_no_parts():
    a, b = sums(1.0, 0.5, 0.25), sums(2.0, 1.0, 0.5)
    merged = merge([{"x": a, "y": b}, {"x": b}])
    assert list(merged) == ["x", "y"]
    assert (float(merged["x"].examples), float(merged["y"].examples)) == (3, 2)
    assert merge([]) == {}


def test_merge_leaves_its_parts_as_they_are():
    part = sums(np.array(1.0), np.array(0.5), np.array(0.25))
    merge([{"a": part}, {"a": part}, {"a": part}])
    assert float(part.examples) == 1


def test_a_layer_is_named_by_the_path_above_its_mlp():
    stats = sums(1.0, 0.5, 0.25)
    tree = {
        "block_0": {"mlp": {"sparsify": {"stats": stats}}},
        "decoder": {"block_1": {"mlp": {"sparsify": {"stats": stats}}}},
    }
    assert by_layer(tree) == {"block_0": stats, "decoder/block_1": stats}
    assert by_layer({}) == {}


def test_layers_stand_in_the_order_of_their_numbers():
    stats = sums(1.0, 0.5, 0.25)
    names = [f"block_{i}" for i in range(12)]
    tree = {name: {"mlp": {"sparsify": {"stats": stats}}} for name in reversed(names)}
    assert list(by_layer({"encoder": tree, "decoder": tree})) == [
        f"{n}/{b}" for n in ("decoder", "encoder") for b in names
    ]
    assert list(by_layer({"first": {"stats": stats}, **tree})) == [*names, "first"]


def test_layers_stacked_by_a_scan_are_numbered_in_its_order():
    z = np.stack([random_z(i) for i in range(11)])
    stacked = jax.vmap(lambda part: sparsity_stats(part, jnp.maximum(part, 0)))(jnp.asarray(z))
    single = sparsity_stats(jnp.asarray(z[3]), jnp.maximum(z[3], 0))
    found = by_layer({"first": {"stats": single}, "layers": {"sparsify": {"stats": stacked}}})
    assert list(found) == ["first", *(f"layers_{i}" for i in range(11))]
    for i in range(11):
        assert nonzero_fraction(found[f"layers_{i}"])[0] == pytest.approx(fractions(z[i]).mean(), rel=1e-6)
    # Vectorised, a sum may run in another order: one rounding.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=5e-7), found["layers_3"], found["first"])
    assert list(merge([found, found])) == list(found)


def test_the_evaluator_measures_each_layer_and_their_mean(make_subject, make_stats):
    z = {"block_0": random_z(2), "block_1": random_z(3) - 1}
    stats = {layer: make_stats(x) for layer, x in z.items()}
    result = sparsity(make_subject(stats=stats))
    overall, *layers = result.measures
    assert [m.name for m in layers] == ["nonzero.block_0", "nonzero.block_1"]
    for measure, x in zip(layers, z.values(), strict=True):
        assert measure.value == pytest.approx(fractions(x).mean(), rel=1e-6)
        assert measure.se == pytest.approx(sem(fractions(x)), rel=1e-5)
        assert (measure.n, measure.definition) == (30, DEFINITION)
    assert overall.name == "nonzero.mean"
    assert overall.value == pytest.approx(np.mean([m.value for m in layers]), rel=1e-15)
    assert overall.n == 30
    for layer in z:
        np.testing.assert_array_equal(result.arrays["histogram"][layer], stats[layer].histogram)


def test_the_error_of_the_mean_over_layers_bounds_that_of_the_examples_own_means(make_subject, make_stats):
    z = {"block_0": random_z(2), "block_1": random_z(3)}
    both = sparsity(make_subject(stats={layer: make_stats(x) for layer, x in z.items()})).measures[0]
    true = sem(np.mean([fractions(x) for x in z.values()], axis=0))
    assert both.se > true
    same = sparsity(make_subject(stats=dict.fromkeys(z, make_stats(z["block_0"])))).measures[0]
    # Layers that are wholly dependent reach the bound.
    assert same.se == pytest.approx(sem(fractions(z["block_0"])), rel=1e-5)


def test_a_nan_layer_makes_the_mean_nan_and_leaves_the_other_layer(make_subject, make_stats):
    broken = random_z(2)
    broken[0, 0, 0] = np.nan
    result = sparsity(make_subject(stats={"a": make_stats(broken), "b": make_stats(random_z(3))}))
    assert [bool(np.isnan(m.value)) for m in result.measures] == [True, True, False]


def test_one_example_gives_measures_without_errors(make_subject, make_stats):
    result = sparsity(make_subject(stats={"a": make_stats(random_z(2, examples=1))}))
    assert [m.se for m in result.measures] == [None, None]
    assert all(str(m).endswith(" %") for m in result.measures)


def test_a_model_without_records_has_no_measures(make_subject):
    assert sparsity(make_subject()).measures == ()
