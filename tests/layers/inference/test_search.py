"""What searches find: certificates against the exact set, with near ties, and recall against a count by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsity.layers.inference import LowRank, QuantizedSearch
from sparsity.layers.inference.search import best
from sparsity.layers.mlp import MLPConfig
from sparsity.ops.sparsifiers import TopK

D, F, T, K = 16, 96, 64, 5
RNG = np.random.default_rng(0)


def top_sets(h, k):
    """Row by row the k largest, ties to the lower index."""
    return [set(np.argsort(-row, kind="stable")[:k].tolist()) for row in h]


def weights_of(mode, w, bias, config, dtype="float32"):
    params = {"wi": {"kernel": w.T, "bias": bias}, "wo": {"kernel": jnp.eye(F)}}
    return mode.lay_out(params, config, dtype)


def near_ties(step):
    """Integers, whose sums float32 has exactly, such that units in pairs differ by `step` in one term or not at all."""
    w = RNG.integers(-100, 101, (F, D))
    w[1::2] = w[::2]
    w[1::2, 0] += step * RNG.integers(-1, 2, F // 2)
    return w.astype(np.float32), RNG.integers(-50, 51, F // 2).repeat(2).astype(np.float32)


@pytest.mark.parametrize(("bits", "dtype"), [(8, "float32"), (4, "float32"), (8, "bfloat16")])
def test_what_is_certified_is_the_exact_top_k(bits, dtype):
    config = MLPConfig(F, TopK(k=K))
    mode = QuantizedSearch(bits=bits, candidates={8: 8, 4: 10}[bits], fallback=False)
    find = jax.jit(lambda weights, x: (mode.find(weights, x, config, dtype), mode.diagnose(weights, x, config, dtype)))
    rounded, shares = lambda z: np.asarray(jnp.asarray(z, dtype), np.float64), []
    for step, spread in ((0, 40), (1, 40), (1, 1), (3, 40)):
        w, bias = near_ties(step)
        x = RNG.integers(-spread, spread + 1, (T, D)).astype(np.float32)
        x[0] = 0  # all is bias
        if step == 0:
            bias[:] = 7  # and all ties: of this token nothing is proven
        z = np.maximum(rounded(rounded(x.astype(np.float64) @ w.astype(np.float64).T) + bias), 0)
        found, said = find(weights_of(mode, w, bias, config, dtype), jnp.asarray(x, dtype))
        certified = np.asarray(said.certified)
        shares.append(certified.mean())
        for t in np.flatnonzero(certified):
            kept = {int(i) for i, h in zip(found.index_TxK[t], found.h_TxK[t], strict=True) if h > 0}
            assert kept == {i for i in top_sets(z, K)[t] if z[t, i] > 0}
        assert (np.asarray(said.recall)[certified] == 1).all()
    assert 0.2 < np.mean(shares) < 1, "a proof that is never given proves nothing, nor does one of what is easy"


def test_gelu_is_certified_where_the_kth_is_positive_only():
    config = MLPConfig(F, TopK(k=K, act="gelu"))
    mode = QuantizedSearch(candidates=40, fallback=False)
    w = RNG.normal(size=(F, D)).astype(np.float32)
    x = RNG.normal(size=(T, D)).astype(np.float32)
    say = jax.jit(lambda weights: mode.diagnose(weights, x, config, "float32"))
    said = say(weights_of(mode, w, np.zeros(F, np.float32), config))
    assert np.asarray(said.certified).mean() > 0.5
    assert (np.asarray(said.recall)[np.asarray(said.certified)] == 1).all()
    # All far below 0: GELU's order is turned around, and the largest z are not the largest h.
    assert not np.asarray(say(weights_of(mode, w, np.full(F, -30, np.float32), config)).certified).any()


def test_without_a_certificate_w_is_read_whole_and_nothing_is_missed():
    config = MLPConfig(F, TopK(k=K))
    w, bias = RNG.normal(size=(F, D)).astype(np.float32), np.zeros(F, np.float32)
    x = RNG.normal(size=(4, D)).astype(np.float32)
    z = np.maximum(x.astype(np.float64) @ w.astype(np.float64).T, 0)
    expected = np.stack([np.where(np.isin(np.arange(F), list(s)), z[t], 0) for t, s in enumerate(top_sets(z, K))])
    for fallback, exact in ((True, True), (False, False)):
        mode = QuantizedSearch(bits=4, candidates=K, fallback=fallback)  # as many as are kept: never proven
        weights = weights_of(mode, w, bias, config)
        said = mode.diagnose(weights, x, config, "float32")
        assert not said.certified.any()
        assert (np.asarray(said.candidates) == (F if fallback else K)).all()
        y = np.asarray(mode(weights, jnp.asarray(x), config, "float32"))  # W_o is the identity
        assert np.allclose(y, expected, rtol=1e-5, atol=1e-5) == exact
        assert (np.asarray(said.recall).min() == 1) == exact


def test_recall_and_the_candidates_needed_are_counts():
    """Scores by hand: rank 1 keeps the first coordinate's order."""
    config = MLPConfig(4, TopK(k=2), use_bias=False)
    # z = 3 x_0 + small x_1 terms; exact order of units 2 > 1 > 0 > 3, predicted by x_0 alone 0 > 1 > 2 > 3.
    w = np.array([[3.0, 0.0], [2.0, 2.0], [1.0, 4.0], [-3.0, 0.0]], np.float32)
    params = {
        "wi": {"kernel": jnp.asarray(w.T)},
        "wo": {"kernel": jnp.eye(4)},
        "predictor": {"read": np.array([[1.0], [0.0]]), "write": w[:, :1].T},
    }
    x = jnp.ones((1, 2))
    for candidates, recall, y in ((2, 0.5, [3, 4, 0, 0]), (3, 1.0, [0, 4, 5, 0])):
        mode = LowRank(rank=1, candidates=candidates)
        weights = mode.lay_out(params, config, "float32")
        said = mode.diagnose(weights, x, config, "float32")
        assert said.recall.tolist() == [recall]
        assert said.needed.tolist() == [3]
        assert mode(weights, x, config, "float32").tolist() == [y]
    with pytest.raises(ValueError, match="LowRank has rank 2, the predictor 1"):
        LowRank(rank=2, candidates=2).lay_out(params, config, "float32")


def test_the_best_of_many_scores_are_those_of_one_long_search():
    rng = np.random.default_rng(2)
    score = rng.normal(size=(4, 1024)).astype(np.float32)
    score[1, 64:72] += 9  # more than are sought, all in one block
    score[2, 500] = np.nan  # ranks first, as in `top`
    score[3] = -np.inf
    score[3, [3, 900]] = -1
    for candidates in (4, 5, 1024):  # 4 is found by blocks, of others there are too many
        value, column = best(jnp.asarray(score), candidates)
        wanted = jax.lax.top_k(score, candidates)[0]
        np.testing.assert_array_equal(value, wanted)
        np.testing.assert_array_equal(np.take_along_axis(score, np.asarray(column), 1), wanted)
        assert all(len(set(row)) == candidates for row in column.tolist())


def test_the_svd_is_the_closest_matrix_of_its_rank():
    rng = np.random.default_rng(1)
    w = rng.normal(size=(D, F)).astype(np.float32)
    weights = LowRank(rank=3, candidates=9).lay_out(
        {"wi": {"kernel": w}, "wo": {"kernel": w.T}}, MLPConfig(F, TopK(k=2), use_bias=False), "float32"
    )
    got = np.asarray(weights["predictor"]["write"].T @ weights["predictor"]["read"]).T
    u, s, v = np.linalg.svd(w.astype(np.float64), full_matrices=False)
    np.testing.assert_allclose(got, (u[:, :3] * s[:3]) @ v[:3], atol=1e-5)
