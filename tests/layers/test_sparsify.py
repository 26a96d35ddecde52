import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from sparsity.layers.sparsify import (
    ACTIVATIONS,
    HISTOGRAM_EDGES,
    STATS,
    THRESHOLDS,
    Activated,
    Context,
    Sparsify,
    SparsityStats,
    sparsity_stats,
)
from sparsity.ops.sparsifiers import ClippedRelu, Gelu, Relu, Sat, Sigmoid, SoftThreshold, Tanh, TopK

# Two examples of three tokens of four units, and what ReLU makes of them:
# nonzero per token 2, 1, 0 of the first and 4, 3, 0 of the second.
Z = np.array(
    [
        [[1.0, -1.0, 0.3, -0.3], [0.0, -2.0, 3.0, -0.0], [-1.0, -1.0, -9.0, -1.0]],
        [[0.1, 0.1, 9.0, 0.1], [8.0, 0.2, -8.0, 0.2], [-5.0, -1.0, 0.0, -1.0]],
    ],
    np.float32,
)
RELU = np.maximum(Z, 0)


stats_of = jax.jit(sparsity_stats)


def random_batch(seed, batch=6):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(rng.normal(0, 1, (batch, 1, 1)), 2.0, (batch, 5, 7)), jnp.float32)


def record(sparsifier, z, weight_B=None, train=False):
    def apply(z, weight_B):
        return Sparsify(sparsifier).apply({}, z, Context(weight_B, train=train, record=True), mutable=[STATS])

    h, variables = jax.jit(apply)(z, weight_B)
    return h, variables[STATS]["stats"]


def relu_stats(z):
    """The statistics of ReLU, its slope among them."""
    return stats_of(z, jnp.maximum(z, 0), slope=(z > 0).astype(jnp.float32))


def assert_same(got, expected, **tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), got, expected)


def test_the_statistics_of_a_case_counted_by_hand():
    stats = stats_of(jnp.asarray(Z), jnp.asarray(RELU))
    assert float(stats.examples) == 2
    assert float(stats.tokens) == 6
    # 3 of 12 and 7 of 12 units.
    np.testing.assert_allclose(stats.fraction_sum, 3 / 12 + 7 / 12, rtol=1e-6)
    np.testing.assert_allclose(stats.fraction_sumsq, (3 / 12) ** 2 + (7 / 12) ** 2, rtol=1e-6)
    np.testing.assert_array_equal(stats.fired_F, [3, 2, 3, 2])
    np.testing.assert_allclose(stats.variance_sum, (Z.astype(float) ** 2).mean((1, 2)).sum(), rtol=1e-6)


def test_weights_count_examples_and_leave_padding_out():
    # Operation by operation: compiled whole, sums of one example may be rounded otherwise than of two.
    weighted = sparsity_stats(jnp.asarray(Z), jnp.asarray(RELU), jnp.asarray([1.0, 0.0]))
    alone = sparsity_stats(jnp.asarray(Z[:1]), jnp.asarray(RELU[:1]))
    assert_same(weighted, alone, rtol=0)


def test_integer_and_boolean_weights_are_taken():
    expected = stats_of(jnp.asarray(Z), jnp.asarray(RELU), jnp.asarray([0.0, 1.0]))
    assert_same(stats_of(jnp.asarray(Z), jnp.asarray(RELU), jnp.asarray([0, 1])), expected, rtol=0)
    assert_same(stats_of(jnp.asarray(Z), jnp.asarray(RELU), jnp.asarray([False, True])), expected, rtol=0)


def test_statistics_merge_by_addition():
    parts = [random_batch(seed, 3) for seed in range(2)]
    whole = jnp.concatenate(parts)
    merged = jax.tree.map(lambda *xs: sum(xs), *(stats_of(z, jnp.maximum(z, 0)) for z in parts))
    # Float32 sums of six fractions in another order; the counts are exact.
    assert_same(merged, stats_of(whole, jnp.maximum(whole, 0)), rtol=1e-6)


def test_the_sums_are_those_of_numpy_over_examples():
    z = random_batch(0, 9)
    stats = stats_of(z, jnp.maximum(z, 0))
    fraction = (np.asarray(z, np.float64) > 0).mean((1, 2))
    np.testing.assert_allclose(stats.fraction_sum, fraction.sum(), rtol=1e-6)
    np.testing.assert_allclose(stats.fraction_sumsq, (fraction**2).sum(), rtol=1e-6)
    np.testing.assert_array_equal(stats.fired_F, (np.asarray(z) > 0).sum((0, 1)))


def test_nan_in_padding_changes_nothing():
    padded = np.concatenate([Z, np.full_like(Z[:1], np.nan)])
    weight = jnp.asarray([1.0, 1.0, 0.0])
    _, stats = record(Relu(), jnp.asarray(padded), weight)
    assert_same(stats, relu_stats(jnp.asarray(Z)), rtol=0)


@pytest.mark.parametrize("sparsifier", [Relu(), SoftThreshold(0.5), TopK(2), Gelu()])
def test_one_nan_in_a_counted_example_makes_the_fraction_nan(sparsifier):
    z = Z.copy()
    z[1, 2, 3] = np.nan
    _, stats = record(sparsifier, jnp.asarray(z))
    assert np.isnan(stats.fraction_sum)
    assert np.isnan(stats.fraction_sumsq)
    assert float(stats.examples) == 2


def test_nan_has_no_bin_in_the_histogram():
    z = Z.copy()
    z[1, 2, 3] = np.nan  # was -1
    _, stats = record(Relu(), jnp.asarray(z))
    expected = np.asarray(stats_of(jnp.asarray(Z), jnp.asarray(RELU)).histogram).copy()
    expected[1 + 28] -= 1
    np.testing.assert_array_equal(stats.histogram, expected)


def test_the_histogram_has_64_bins_of_a_quarter_and_both_tails():
    np.testing.assert_array_equal(HISTOGRAM_EDGES, np.arange(-32, 33) / 4)
    values = {-np.inf: 0, -8.001: 0, -8.0: 1, -7.75: 2, -0.001: 32, 0.0: 33, 0.249: 33, 0.25: 34, 7.999: 64, 8.0: 65}
    values |= {1e30: 65, np.inf: 65}
    for value, bin_ in values.items():
        z = jnp.full((1, 1, 1), value, jnp.float32)
        np.testing.assert_array_equal(np.flatnonzero(stats_of(z, z).histogram), [bin_], err_msg=str(value))


def test_the_histogram_counts_as_numpy_does():
    z = random_batch(1, 8) * 3
    stats = stats_of(z, z, jnp.asarray([1.0] * 6 + [0.0] * 2))
    counted = np.asarray(z[:6]).ravel()
    inner = np.histogram(counted[counted < 8], HISTOGRAM_EDGES)[0]
    expected = [(counted < -8).sum(), *inner, (counted >= 8).sum()]
    assert expected[0] > 0
    assert expected[-1] > 0
    np.testing.assert_array_equal(stats.histogram, expected)


def test_negative_activations_count_as_nonzero():
    z = jnp.asarray([[[-2.0, -0.5, 0.2, 1.0]]])
    h, stats = record(SoftThreshold(0.5), z)
    np.testing.assert_array_equal(h, [[[-1.5, 0, 0, 0.5]]])
    assert float(stats.fraction_sum) == 0.5
    np.testing.assert_array_equal(stats.fired_F, [1, 0, 0, 1])


def test_top_k_is_recorded_after_the_selection():
    z = random_batch(2) + 3.0
    _, stats = record(TopK(2), z)
    np.testing.assert_array_equal(jnp.sum(stats.fired_F), 2 * 6 * 5)
    np.testing.assert_allclose(stats.fraction_sum, 6 * 2 / 7, rtol=1e-6)


@pytest.mark.parametrize("shape", [(4, 7), (4, 3, 7), (4, 2, 3, 7)])
def test_all_axes_between_the_first_and_the_last_are_tokens(shape):
    z = jnp.asarray(np.random.default_rng(3).normal(size=shape), jnp.float32)
    h = jnp.maximum(z, 0)
    tokens = np.prod(shape[1:-1], dtype=int)
    stats = stats_of(z, h)
    assert float(stats.tokens) == 4 * tokens
    assert_same(stats, stats_of(z.reshape(4, tokens, 7), h.reshape(4, tokens, 7)), rtol=0)


def test_recording_off_makes_no_variables_and_identical_outputs():
    z = random_batch(4)
    off, variables = Sparsify(Relu()).apply({}, z, Context(), mutable=True)
    assert variables == {}
    on, _ = record(Relu(), z)
    np.testing.assert_array_equal(on, off)
    np.testing.assert_array_equal(on, np.maximum(np.asarray(z), 0))


def test_the_module_has_no_parameters_and_records_under_stats():
    z = random_batch(5)
    assert Sparsify(Relu()).init(jax.random.key(0), z, Context()) == {}
    _, stats = record(Relu(), z)
    assert isinstance(stats, SparsityStats)
    assert_same(stats, relu_stats(z), rtol=1e-6)


def test_a_second_call_on_old_statistics_replaces_them():
    z = random_batch(6)
    _, old = Sparsify(Relu()).apply({}, z, Context(record=True), mutable=[STATS])
    _, new = Sparsify(Relu()).apply(old, z, Context(record=True), mutable=[STATS])
    assert_same(new, old, rtol=0)


def test_bfloat16_activations_are_counted_in_float32():
    z = jnp.ones((3, 100, 30), jnp.bfloat16)  # 300 tokens: bfloat16 cannot count past 256
    stats = stats_of(z, z)
    np.testing.assert_array_equal(stats.fired_F, np.full(30, 300))
    assert {x.dtype for x in jax.tree.leaves(stats)} == {jnp.dtype("float32")}
    assert float(stats.histogram.sum()) == 9000


def test_recording_costs_the_gradient_nothing():
    z = random_batch(7)

    def loss(z, on):
        out = Sparsify(Relu()).apply({}, z, Context(record=on), mutable=[STATS])
        return (out[0] ** 2).sum()

    np.testing.assert_array_equal(jax.grad(loss)(z, True), jax.grad(loss)(z, False))


def test_a_nan_that_the_activation_made_is_reported_too():
    """gelu(-inf) is -inf * 0 = NaN: the pre-activation is not NaN, the activation is."""
    z = jnp.array([[[-jnp.inf, 1.0]]])
    assert np.isnan(stats_of(z, Gelu()(z)).fraction_sum)


def test_sums_of_sizes_powers_and_thresholds_by_hand():
    """One token of each of two examples; h = relu(z)."""
    z = jnp.asarray([[[1.0, -2.0, 0.005]], [[0.5, 3.0, 0.00005]]])
    stats = stats_of(z, jnp.maximum(z, 0))
    np.testing.assert_allclose(stats.size_F, [1.5, 3, 0.00505], rtol=1e-6)
    np.testing.assert_allclose(stats.power_3xF[0], [1.5, 1, 0.00505], rtol=1e-6)
    np.testing.assert_allclose(stats.power_3xF[1], [1.25, 13, 2.50025e-5], rtol=1e-6)
    np.testing.assert_allclose(stats.power_3xF[2], [1.125, 19, 1.25e-7], rtol=1e-5)
    assert THRESHOLDS == (1e-4, 1e-2)
    np.testing.assert_allclose(stats.above_T, [2 / 3 + 2 / 3, 1 / 3 + 2 / 3], rtol=1e-6)


def test_sums_are_those_of_numpy_in_float64_with_padding_left_out():
    z = random_batch(8)
    weight = np.array([1.0, 1, 0, 1, 1, 0])
    h = np.tanh(np.asarray(z, np.float64))
    stats = stats_of(z, jnp.tanh(z), jnp.asarray(weight))
    kept, size = np.asarray(z, np.float64)[weight > 0], np.abs(h)[weight > 0]
    # Sums of 20 float32 numbers of size up to 500.
    np.testing.assert_allclose(stats.size_F, size.sum((0, 1)), rtol=1e-5)
    np.testing.assert_allclose(stats.power_3xF, [(kept**p).sum((0, 1)) for p in (1, 2, 3)], rtol=1e-5, atol=1e-3)
    above = [(size > t).mean((1, 2)).sum() for t in THRESHOLDS]
    np.testing.assert_allclose(stats.above_T, above, rtol=1e-6)


def test_negative_activations_are_above_a_threshold_by_their_size():
    _, stats = record(SoftThreshold(0.5), jnp.asarray([[[-2.0, -0.505, 0.2, 1.0]]]))
    np.testing.assert_allclose(stats.above_T, [3 / 4, 2 / 4])
    np.testing.assert_allclose(stats.size_F, [1.5, 0.005, 0, 0.5], rtol=1e-4)


def test_the_flat_share_of_relu_is_all_that_is_zero_the_kink_included():
    _, stats = record(Relu(), jnp.asarray(Z))
    np.testing.assert_allclose(stats.flat_sum, stats.examples - stats.fraction_sum, rtol=1e-6)
    np.testing.assert_allclose(stats.flat_sum, 9 / 12 + 5 / 12, rtol=1e-6)


@pytest.mark.parametrize(
    ("sparsifier", "slope"),
    [
        (ClippedRelu(0.5, 1.0), lambda z: (z > 0.5) & (z < 1.5)),
        (Sat(), lambda z: np.abs(z) < 0.5),
        (Tanh(), lambda z: 1 / np.cosh(z) ** 2),
        (Sigmoid(), lambda z: 1 / (4 * np.cosh(z / 2) ** 2)),
        (Gelu(), lambda z: (gelu(z + 1e-5) - gelu(z - 1e-5)) / 2e-5),
    ],
    ids=lambda x: type(x).__name__,
)
def test_the_flat_share_is_where_the_derivative_is_below_a_hundredth(sparsifier, slope):
    z = random_batch(9) * 2
    _, stats = record(sparsifier, z, jnp.asarray([1.0] * 5 + [0.0]))
    flat = np.abs(slope(np.asarray(z, np.float64)[:5])) < 0.01
    assert 0 < flat.sum() < flat.size
    np.testing.assert_allclose(stats.flat_sum, flat.mean((1, 2)).sum(), rtol=1e-6)


def gelu(z):
    return z * norm.cdf(z)


def test_top_k_has_no_derivative_of_single_units_and_no_flat_share():
    _, stats = record(TopK(2), random_batch(2))
    assert np.isnan(stats.flat_sum)
    assert np.isfinite(stats.fraction_sum)
    assert np.isfinite(stats.above_T).all()


def test_nan_is_neither_flat_nor_below_a_threshold():
    z = Z.copy()
    z[1, 2, 3] = np.nan
    _, stats = record(Relu(), jnp.asarray(z))
    assert np.isnan(stats.flat_sum)
    assert np.isnan(stats.above_T).all()
    np.testing.assert_array_equal(np.isnan(stats.size_F), [False, False, False, True])
    np.testing.assert_array_equal(np.isnan(stats.power_3xF), [[False, False, False, True]] * 3)


@pytest.mark.parametrize("sparsifier", [Relu(), Gelu()])
def test_nan_in_padding_reaches_no_statistic(sparsifier):
    padded = np.concatenate([Z, np.full_like(Z[:1], np.nan)])
    _, stats = record(sparsifier, jnp.asarray(padded), jnp.asarray([1.0, 1.0, 0.0]))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(stats))


def test_what_is_handed_out_is_z_and_h_of_every_token_and_only_if_asked_for():
    z = random_batch(10)
    h, variables = Sparsify(Relu()).apply({}, z, Context(hand_out=True), mutable=True)
    assert variables.keys() == {ACTIVATIONS}
    activated = variables[ACTIVATIONS]["stats"]
    assert isinstance(activated, Activated)
    np.testing.assert_array_equal(activated.z, z)
    np.testing.assert_array_equal(activated.h, h)
    _, both = Sparsify(Relu()).apply({}, z, Context(hand_out=True, record=True), mutable=True)
    assert both.keys() == {ACTIVATIONS, STATS}
    _, other = Sparsify(Relu()).apply({}, z, Context(train=True, noisy=True, step=3), mutable=True)
    assert other == {}


def test_an_annealed_sparsifier_goes_by_the_step_of_the_context():
    z = random_batch(11) + 20  # all positive
    sparsify = Sparsify(TopK(k=2, anneal=10))

    @jax.jit
    def at(step):
        return sparsify.apply({}, z, Context(step=step, record=True), mutable=[STATS])[1][STATS]["stats"]

    # 7 units down to 2: 7, 7 - 2.5 and 2, rounded down.
    for step, kept in ((0, 7), (5, 4), (10, 2), (99, 2)):
        np.testing.assert_allclose(at(step).fraction_sum, 6 * kept / 7, rtol=1e-6)


def test_tokens_of_padding_change_nothing():
    z = random_batch(0)
    weight_BxL = np.ones((6, 8), np.float32)
    weight_BxL[:, 5:] = 0
    padded = jnp.concatenate([z, jnp.full((6, 3, 7), jnp.nan)], axis=1)
    got = stats_of(padded, jnp.maximum(padded, 0), slope=(padded > 0) * 1.0, weight_BxL=jnp.asarray(weight_BxL))
    assert_same(got, relu_stats(z), rtol=1e-6)


def test_an_example_without_real_tokens_is_none():
    z = random_batch(1)
    weight_BxL = jnp.ones((6, 5)).at[2].set(0)
    got = stats_of(z, jnp.maximum(z, 0), slope=(z > 0) * 1.0, weight_BxL=weight_BxL)
    assert_same(got, relu_stats(jnp.delete(z, 2, axis=0)), rtol=1e-6)
