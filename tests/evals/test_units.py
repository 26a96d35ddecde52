import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.stats import sem

from sparsity.evals.result import Predictions
from sparsity.evals.sparsity import merge
from sparsity.evals.units import units
from sparsity.layers.sparsify import sparsity_stats

stats_of = jax.jit(sparsity_stats)


def of_relu(z, weight=None, slope=True):
    """The statistics of ReLU on pre-activations [B, L, F], merged as an evaluation merges them."""
    z = jnp.asarray(z, jnp.float32)
    weight = None if weight is None else jnp.asarray(weight)
    slope = (z > 0).astype(jnp.float32) if slope else None
    return merge([{"layer": stats_of(z, jnp.maximum(z, 0), weight, slope)}])["layer"]


def of_activations(h):
    """Of given activations [B, L, F], whatever the pre-activations."""
    h = jnp.asarray(h, jnp.float32)
    return merge([{"layer": stats_of(h, h, None, jnp.ones_like(h))}])["layer"]


@pytest.fixture
def measure(make_subject):
    """Statistics by layer -> measures by name, less the prefix."""

    def run(config=None, **layers):
        asked = []

        def predict(arrays, noisy):
            asked.append(noisy)
            return Predictions(None, arrays, None, layers)

        found = units(make_subject(predict=predict, **config or {})).measures
        assert asked == [True]  # training's noise is on, once
        return {m.name.removeprefix("units."): m for m in found}

    return run


def test_the_three_definitions_of_a_dead_unit_differ(measure):
    """2,000 tokens; units that fire: never; once, faintly; once, strongly; on 3 tokens, faintly; always."""
    h = np.zeros((20, 100, 5))
    h[0, 0, 1], h[0, 0, 2] = 1e-6, 1.0
    h[:3, 1, 3] = 1e-6
    h[..., 4] = 1.0
    found = measure(a=of_activations(h))
    dead = {name: found[f"{name}.a"] for name in ("never", "silent", "rare")}
    assert {name: m.value for name, m in dead.items()} == {
        "never": 1 / 5,  # the first
        "silent": 3 / 5,  # less than 1e-5 in all: the first, the second and the fourth
        "rare": 3 / 5,  # on less than 1e-3 of tokens, 2 of them: the first three
    }
    for one in dead.values():
        assert one.n == 5
        assert one.se == pytest.approx((one.value * (1 - one.value) / 5) ** 0.5)
        assert "2000 tokens of one epoch of the training split, noise on" in one.definition


def test_the_bounds_of_the_definitions_are_settings(measure):
    h = np.zeros((20, 100, 5))
    h[0, 0, 1], h[0, 0, 2] = 1e-6, 1.0
    h[:3, 1, 3] = 1e-6
    h[..., 4] = 1.0
    found = measure({"dead_size": 1e-7, "dead_rate": 0.002}, a=of_activations(h))
    assert (found["silent.a"].value, found["rare.a"].value) == (1 / 5, 4 / 5)
    assert "below 1e-07" in found["silent.a"].definition
    assert "less than 0.002 of" in found["rare.a"].definition


def test_negative_activations_count_by_their_size(measure):
    h = np.full((2, 3, 2), -1.0)
    found = measure(a=of_activations(h))
    assert [found[f"{name}.a"].value for name in ("never", "silent", "rare")] == [0, 0, 0]
    assert found["above_0.01.a"].value == 1


def test_density_with_and_without_the_dead_by_hand(measure):
    """Two examples of one token; of four units, one is dead: nonzero 3 and 1 of 4."""
    z = [[[1.0, 2.0, 3.0, -1.0]], [[1.0, -2.0, -1.0, -1.0]]]
    found = measure(a=of_relu(z))
    assert found["never.a"].value == 0.25
    assert (found["density.a"].value, found["density.a"].n) == (0.5, 2)
    assert found["density.a"].se == pytest.approx(0.25)  # of 3/4 and 1/4
    assert found["live.a"].value == pytest.approx(0.5 / 0.75)
    assert found["live.a"].se == pytest.approx(0.25 / 0.75)
    assert found["spread.a"].value == pytest.approx(0.25 / 0.5)  # deviation 1/4 of mean 1/2
    assert found["flat.a"].value == 0.5


def test_the_spread_is_that_of_numpy_over_examples(measure):
    rng = np.random.default_rng(0)
    z = rng.normal(rng.normal(0, 1, (50, 1, 1)), 1.0, (50, 4, 6))
    share = (z > 0).mean((1, 2))
    found = measure(a=of_relu(z))
    assert found["spread.a"].value == pytest.approx(share.std() / share.mean(), rel=1e-5)
    assert (found["density.a"].value, found["density.a"].se) == pytest.approx((share.mean(), sem(share)), rel=1e-5)
    same = np.tile(z[:1], (5, 1, 1))
    # Equal examples: what is left is the rounding of the two sums, of a share squared.
    assert measure(a=of_relu(same))["spread.a"].value < 1e-3


def test_shares_above_thresholds_are_those_of_numpy(measure):
    h = 10.0 ** np.random.default_rng(0).uniform(-6, 0, (7, 3, 5))
    h[::2] *= -1
    found = measure(a=of_activations(h))
    for threshold in ("0.0001", "0.01"):
        one = found[f"above_{threshold}.a"]
        assert one.value == pytest.approx((np.abs(h) > float(threshold)).mean(), rel=1e-6)
        assert (one.se, one.n) == (None, 7)


@pytest.mark.parametrize(
    ("h", "entropy"),
    [
        ([[1.0, 1.0, 1.0, 1.0]], 1.0),
        ([[1.0, 0.0, 0.0, 0.0]], 0.0),
        ([[0.0, 0.0, 0.0, 0.0]], 0.0),
        ([[1.0, -1.0, 0.0, 0.0]], 0.5),  # log 2 / log 4
        ([[5.0, 0.0], [0.0, 5.0]], 1.0),  # equal in sum
        ([[2.0]], 0.0),
    ],
)
def test_the_entropy_of_activity_by_hand(measure, h, entropy):
    found = measure(a=of_activations(np.asarray(h)[:, None]))
    assert found["entropy.a"].value == pytest.approx(entropy, abs=1e-12)
    assert found["entropy.a"].n == len(h[0])


def test_the_entropy_is_that_of_scipy(measure):
    h = np.random.default_rng(0).gamma(0.3, size=(9, 2, 30))
    expected = stats.entropy(h.sum((0, 1))) / np.log(30)
    assert measure(a=of_activations(h))["entropy.a"].value == pytest.approx(expected, rel=1e-6)


def test_the_moments_of_pre_activations_are_those_of_scipy(measure):
    rng = np.random.default_rng(0)
    z = rng.gamma(rng.uniform(0.5, 3, 8), size=(40, 5, 8)) * rng.choice([-1, 1], 8) + rng.normal(size=8)
    z = z.astype(np.float32).astype(np.float64)
    found = measure(a=of_relu(z))
    rows = z.reshape(-1, 8)
    expected = {
        "z_mean": rows.mean(0),
        "z_std": rows.std(0),
        "z_skewness": stats.skew(rows),
    }
    assert abs(expected["z_skewness"]).min() > 0.5
    for name, values in expected.items():
        one = found[f"{name}.a"]
        # Sums of 200 numbers in float32; third powers cancel to some digits.
        assert one.value == pytest.approx(values.mean(), rel=1e-4, abs=1e-5), name
        assert one.se == pytest.approx(sem(values), rel=1e-3), name
        assert (one.n, one.unit) == (8, "")


def test_a_unit_that_does_not_vary_has_no_skewness_and_spoils_no_mean(measure):
    rng = np.random.default_rng(0)
    z = rng.gamma(2.0, size=(40, 5, 3))
    z[..., 0] = 1.1  # exactly constant, not so in sums of float32
    z[..., 1] = 0.0
    found = measure(a=of_relu(z))
    assert found["z_skewness.a"].value == pytest.approx(stats.skew(z[..., 2].ravel()), rel=1e-3)
    assert (found["z_skewness.a"].n, found["z_skewness.a"].se) == (1, None)
    assert (found["z_mean.a"].n, found["z_std.a"].n) == (3, 3)
    still = measure(a=of_relu(z[..., :2]))["z_skewness.a"]
    assert np.isnan(still.value)
    assert (still.n, still.se) == (0, None)


def test_nothing_active_has_density_0_and_no_spread(measure):
    found = measure(a=of_relu(np.full((3, 2, 4), -1.0)))
    assert [found[f"{name}.a"].value for name in ("never", "silent", "rare")] == [1, 1, 1]
    assert [found[f"{name}.a"].value for name in ("density", "live", "entropy")] == [0, 0, 0]
    assert np.isnan(found["spread.a"].value)
    assert found["flat.a"].value == 1


def test_a_layer_with_nan_is_neither_dead_nor_sparse_and_leaves_the_others(measure):
    z = np.random.default_rng(0).normal(size=(4, 3, 5))
    broken = z.copy()
    broken[1, 2, 3] = np.nan
    found = measure(a=of_relu(broken), b=of_relu(z))
    for name, one in found.items():
        assert np.isnan(one.value) == name.endswith(".a"), name


def test_nan_in_padding_changes_nothing(measure):
    z = np.random.default_rng(0).normal(size=(4, 3, 5))
    padded = np.concatenate([z, np.full((2, 3, 5), np.nan)])
    expected = measure(a=of_relu(z))
    for name, one in measure(a=of_relu(padded, weight=[1, 1, 1, 1, 0, 0])).items():
        # Sums of another length may run in another order.
        assert one.value == pytest.approx(expected[name].value, rel=1e-4, abs=1e-6), name
        assert one.n == expected[name].n


def test_a_sparsifier_without_a_derivative_has_no_flat_places(measure):
    found = measure(a=of_relu(np.random.default_rng(0).normal(size=(4, 3, 5)), slope=False))
    assert np.isnan(found["flat.a"].value)
    assert np.isfinite(found["density.a"].value)


def test_every_layer_has_every_measure_and_a_model_without_records_has_none(measure):
    one = of_relu(np.random.default_rng(0).normal(size=(4, 3, 5)))
    found = measure(a=one, b=one)
    assert {name.removesuffix(".a") for name in found if name.endswith(".a")} == {
        name.removesuffix(".b") for name in found if name.endswith(".b")
    }
    assert all(m.definition and m.n >= 1 for m in found.values())
    assert measure() == {}
