import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsity.layers.mlp import MLPConfig, SparseMLP
from sparsity.layers.sparsify import STATS, Context
from sparsity.layers.tail import LEAST, TAIL, without_tail
from sparsity.ops.sparsifiers import GeluTanh, Relu

# Two tokens of three units; rows of W_o of norms 5, 1 and 2: contributions of norms 5, 3, .2 and .5, 0, 4.
H = np.array([[[1.0, -3.0, 0.1], [0.1, 0.0, 2.0]]], np.float32)
W = np.array([[3.0, 4.0], [1.0, 0.0], [0.0, 2.0]], np.float32)
OUT = lambda h: h @ W
LEAST_OF = lambda eps: jnp.float32(eps / np.linalg.norm(W, axis=1))


def by_hand(eps):
    kept = np.abs(H) * np.linalg.norm(W, axis=1) >= eps
    y, cut = H @ W, np.where(kept, H, 0) @ W
    errors = np.linalg.norm(y - cut, axis=-1) / np.linalg.norm(y, axis=-1)
    return kept, y, cut, errors


@pytest.mark.parametrize(("eps", "share"), [(0.1, (3 + 2) / 6), (0.3, (2 + 2) / 6), (1.0, (2 + 1) / 6), (6.0, 0)])
def test_a_case_counted_by_hand(eps, share):
    _, y, cut, errors = by_hand(eps)
    measured, stats = without_tail(H, LEAST_OF(eps), OUT, Context(tail="measured"))
    np.testing.assert_allclose(measured, y, rtol=1e-6)
    np.testing.assert_allclose(without_tail(H, LEAST_OF(eps), OUT, Context(tail="cut"))[0], cut, rtol=1e-6)
    assert float(stats.examples) == 1
    assert float(stats.kept_sum) == pytest.approx(share, rel=1e-6)
    assert float(stats.kept_sumsq) == pytest.approx(share**2, rel=1e-6)
    assert float(stats.error_sum) == pytest.approx(errors.mean(), rel=1e-5, abs=1e-7)
    power = np.mean((np.array([[5, 3, 0.2], [0.5, 0, 4]]) / eps) ** 2)
    assert float(stats.power_sum) == pytest.approx(power, rel=1e-5)


def test_padding_counts_neither_as_a_token_nor_as_an_example():
    h = np.concatenate([np.repeat(H, 2, 1), np.full((1, 4, 3), np.nan, np.float32), np.repeat(H, 2, 1)])
    h[0, 2:] = np.nan
    real = np.array([[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]])
    ctx = Context(weight_B=jnp.array([1, 0, 1]), weight_BxL=jnp.asarray(real), tail="measured")
    alone = without_tail(h[:1, :2], LEAST_OF(1.0), OUT, Context(tail="measured"))[1]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), without_tail(h, LEAST_OF(1.0), OUT, ctx)[1], alone
    )


def test_nan_is_never_in_the_tail():
    h = H.copy()
    h[0, 0, 0] = np.nan
    y, stats = without_tail(h, LEAST_OF(100.0), OUT, Context(tail="cut"))
    assert np.isnan(y[0, 0]).all()
    assert not np.isnan(y[0, 1]).any()
    assert np.isnan([stats.kept_sum, stats.kept_sumsq, stats.error_sum]).all()


def test_an_infinite_threshold_cuts_a_unit_that_adds_nothing():
    w = W * np.array([[1], [1], [0]], np.float32)
    least = LEAST_OF(0.01).at[2].set(jnp.inf)
    y, stats = without_tail(H, least, lambda h: h @ w, Context(tail="cut"))
    np.testing.assert_allclose(y, H @ w, rtol=1e-6)
    assert float(stats.error_sum) == 0
    assert np.isfinite(stats.power_sum)


@pytest.fixture(scope="module")
def mlps():
    x = jax.random.normal(jax.random.key(0), (2, 5, 4))

    def make(sparsifier, **settings):
        mlp = SparseMLP(MLPConfig(d_ff=16, sparsifier=sparsifier, **settings))
        return mlp, flax.core.meta.unbox(mlp.init(jax.random.key(1), x, Context())), x

    return make


def test_without_thresholds_an_mlp_is_as_it_was_and_asks_for_none(mlps):
    mlp, variables, x = mlps(GeluTanh(), gated=True)
    _, sown = mlp.apply(variables, x, Context(record=True), mutable=[STATS])
    assert TAIL not in sown[STATS]
    with pytest.raises(ValueError, match="no thresholds"):
        mlp.apply(variables, x, Context(tail="cut"))


def test_an_mlp_cut_is_the_mlp_of_the_masked_h_bias_and_gate_included(mlps):
    mlp, variables, x = mlps(GeluTanh(), gated=True)
    p = jax.tree.map(lambda leaf: leaf + 0.1, variables["params"])
    layer = lambda name: x @ p[name]["kernel"] + p[name]["bias"]
    h = jax.nn.gelu(layer("wi"), approximate=True) * layer("wi_gate")
    least = jnp.linspace(0.01, 0.5, 16)
    expected = jnp.where(jnp.abs(h) < least, 0, h) @ p["wo"]["kernel"] + p["wo"]["bias"]
    run = lambda tail: mlp.apply({"params": p, TAIL: {LEAST: least}}, x, Context(tail=tail), mutable=[STATS])
    y, sown = run("cut")
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
    assert float(sown[STATS][TAIL].kept_sum) == pytest.approx(float(jnp.mean(jnp.abs(h) >= least)) * 2, rel=1e-6)
    np.testing.assert_allclose(run("measured")[0], mlp.apply({"params": p}, x, Context()), rtol=1e-6)


def test_a_threshold_that_only_zeros_are_below_keeps_what_is_recorded_as_nonzero(mlps):
    mlp, variables, x = mlps(Relu())
    _, recorded = mlp.apply(variables, x, Context(record=True), mutable=[STATS])
    least = {TAIL: {LEAST: jnp.full(16, 1e-30)}}
    _, cut = mlp.apply(variables | least, x, Context(tail="cut"), mutable=[STATS])
    assert float(cut[STATS][TAIL].kept_sum) == float(recorded[STATS]["sparsify"]["stats"].fraction_sum)
    assert float(cut[STATS][TAIL].error_sum) == 0


def test_a_small_error_in_half_precision_is_not_all_rounding():
    """The tail is a ten-thousandth of h, and less than a step of bfloat16 of what is written."""
    rng = np.random.default_rng(0)
    w = jnp.asarray(rng.normal(size=(64, 16)), jnp.bfloat16)
    large = rng.normal(size=(4, 8, 32))
    h = jnp.asarray(np.concatenate([large, 1e-4 * rng.normal(size=(4, 8, 32))], -1), jnp.bfloat16)
    least = jnp.where(jnp.arange(64) < 32, 0.0, 1.0)
    y, stats = without_tail(h, least, lambda h: h @ w, Context(tail="cut"))
    exact = np.asarray(h, np.float64) @ np.asarray(w, np.float64)
    lost = np.asarray(h, np.float64)[..., 32:] @ np.asarray(w, np.float64)[32:]
    expected = (np.linalg.norm(lost, axis=-1) / np.linalg.norm(exact, axis=-1)).mean(1).sum()
    assert y.dtype == jnp.bfloat16
    # bfloat16 has 8 bits.
    assert float(stats.error_sum) == pytest.approx(expected, rel=0.02)


def test_other_ways_to_treat_the_tail_are_refused():
    with pytest.raises(KeyError):
        without_tail(H, LEAST_OF(1.0), OUT, Context(tail="cutt"))
