import dataclasses

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsity.config import ConfigError, build
from sparsity.decode.weights import unstacked
from sparsity.layers.inference import LowRank
from sparsity.layers.mlp import MLPConfig, SparseMLP
from sparsity.layers.predictor import PREDICTED
from sparsity.layers.sparsify import Context
from sparsity.models.gpt2 import GPT2Config
from sparsity.models.t5 import T5Config
from sparsity.ops.sparsifiers import Relu, TopK
from sparsity.train.losses import language
from sparsity.train.state import TrainState
from sparsity.train.step import Objective, gradients

D, F, K, RANK = 5, 12, 3, 2
X = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, D)), jnp.float32)
CONFIG = MLPConfig(F, TopK(k=K), predictor=RANK)
TRAIN = Context(train=True)


def parameters(module, *inputs):
    """Random parameters of every leaf, biases included."""
    shapes = flax.core.meta.unbox(jax.eval_shape(module.init, jax.random.key(0), *inputs))
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda p: jnp.asarray(rng.normal(0, 0.5, p.shape), p.dtype), shapes["params"])


PARAMS = parameters(SparseMLP(CONFIG), X, Context())


def sown(params, x=X, ctx=TRAIN):
    return SparseMLP(CONFIG).apply({"params": params}, x, ctx, mutable=[PREDICTED])[1].get(PREDICTED, {})


def test_the_loss_is_the_formula_in_float64():
    weight_BxL = np.array([[1, 1, 0, 1], [0, 0, 0, 0]])
    x = np.asarray(X, np.float64)
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), PARAMS)
    x[0, 1] = -1e3 * np.sign(p["wi"]["kernel"].sum(1))  # where, with this bias, fewer than k units are positive
    z = x @ p["wi"]["kernel"] + p["wi"]["bias"]
    kept = (z >= np.sort(z)[..., -K:][..., :1]) & (z > 0)
    s = x @ p["predictor"]["read"] @ p["predictor"]["write"] + p["wi"]["bias"]
    nats = np.log(np.exp(s - s.max(-1, keepdims=True)).sum(-1, keepdims=True)) + s.max(-1, keepdims=True) - s
    of = [nats[0, t][kept[0, t]].mean() - np.log(kept[0, t].sum()) if kept[0, t].any() else 0 for t in (0, 1, 3)]
    ctx = TRAIN.replace(weight_BxL=jnp.asarray(weight_BxL))
    found = sown(PARAMS, jnp.asarray(x, jnp.float32), ctx)["predictor"]["loss"]
    np.testing.assert_allclose(found, [np.mean(of), 0], rtol=1e-5)


def test_it_is_least_where_the_scores_of_kept_units_are_large_and_equal():
    wide = MLPConfig(F, TopK(k=K), predictor=D, use_bias=False)
    params = parameters(SparseMLP(wide), X, Context())
    x = X[:, :1]
    h = jax.nn.relu(x[:, 0] @ params["wi"]["kernel"])
    kept = h >= jnp.sort(h)[:, -K:][:, :1]
    params["predictor"]["read"] = jnp.eye(D)
    # Two tokens and D > 2: some Q gives any scores of both.
    params["predictor"]["write"] = 100 * jnp.linalg.pinv(x[:, 0]) @ kept
    loss = SparseMLP(wide).apply({"params": params}, x, TRAIN, mutable=[PREDICTED])[1][PREDICTED]["predictor"]["loss"]
    np.testing.assert_allclose(loss, 0, atol=1e-4)


def test_the_network_does_not_know_of_it():
    plain = dataclasses.replace(CONFIG, predictor=0)
    without = {name: p for name, p in PARAMS.items() if name != "predictor"}
    y, _ = SparseMLP(CONFIG).apply({"params": PARAMS}, X, TRAIN, mutable=[PREDICTED])
    np.testing.assert_array_equal(y, SparseMLP(plain).apply({"params": without}, X, TRAIN))
    grads = jax.grad(lambda p: sown(p)["predictor"]["loss"].sum())(PARAMS)
    own = grads.pop("predictor")
    assert all(np.any(g) for g in jax.tree.leaves(own))
    assert not any(np.any(g) for g in jax.tree.leaves(grads))
    np.testing.assert_array_equal(jax.grad(lambda x: sown(PARAMS, x)["predictor"]["loss"].sum())(X), 0)


def test_it_is_computed_in_training_alone():
    assert not sown(PARAMS, ctx=Context())
    fresh = SparseMLP(CONFIG).init(jax.random.key(0), X, TRAIN)
    assert fresh.keys() == {"params"}
    shapes = jax.tree.map(jnp.shape, flax.core.meta.unbox(fresh["params"]["predictor"]))
    assert shapes == {"read": (D, RANK), "write": (RANK, F)}


def test_a_low_rank_search_finds_its_candidates_with_it():
    mode = LowRank(rank=RANK, candidates=6)
    weights = mode.lay_out(PARAMS, CONFIG, "float32")
    score = X[0] @ PARAMS["predictor"]["read"] @ PARAMS["predictor"]["write"] + PARAMS["wi"]["bias"]
    np.testing.assert_allclose(mode.score(weights, X[0], "float32"), score, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="LowRank has rank 3, the predictor 2"):
        LowRank(rank=3, candidates=6).lay_out(PARAMS, CONFIG, "float32")


def test_training_adds_the_losses_of_all_layers_to_every_token():
    config = GPT2Config(MLPConfig(F, TopK(k=K), predictor=RANK), d_model=4, layers=2, heads=2, positions=8)
    module, tokens = config.build(7), jnp.asarray(np.random.default_rng(2).integers(0, 7, (2, 6)), jnp.int32)
    params = parameters(module, tokens, Context())
    objective = Objective(module, config, language, seed=0)
    batch, zero = {"tokens": tokens, "targets": tokens}, jnp.int32(0)
    total, ((sums, penalty), *_) = objective(params, {}, batch, zero, zero, record=False)
    new = module.apply({"params": params}, tokens, TRAIN, mutable=[PREDICTED])[1][PREDICTED]
    expected = sum(leaf.sum() for leaf in jax.tree.leaves(new)) * 6  # items of an example
    assert len(jax.tree.leaves(new)) == 2
    np.testing.assert_allclose(penalty, expected, rtol=1e-6)
    np.testing.assert_allclose(total, sums.loss + expected, rtol=1e-6)


def test_of_scanned_layers_none_is_lost_whatever_is_computed_again():
    """Of a T5, whose encoder has no predictors: there is no use for them."""
    mlp = MLPConfig(F, TopK(k=K), use_bias=False, predictor=RANK)
    scanned = T5Config(mlp=mlp, d_model=4, layers=1, decoder_layers=3, heads=2, head_dim=2, remat="full", dropout=0.0)
    tokens, ones = jnp.asarray(np.random.default_rng(2).integers(2, 9, (4, 6)), jnp.int32), jnp.ones((4, 6), jnp.int32)
    params = parameters(scanned.build(9), tokens, tokens, ones, ones, Context())
    assert "predictor" not in params["encoder"]["layers"]["mlp"]
    batch = {"inputs": tokens, "decoder_inputs": tokens, "targets": tokens}
    batch |= {"input_segments": ones, "target_segments": ones}
    single, unrolled = unstacked(scanned, params)

    def of(config, params, accumulate):
        objective = Objective(config.build(9), config, language, seed=0)
        compute = jax.jit(gradients(objective, record=False, accumulate=accumulate))
        return compute(TrainState(jnp.int32(0), params, None, {}), batch)[:2]

    expected, per_layer = of(single, unrolled, 1)
    (sums, penalty), grads = of(scanned, params, 2)
    np.testing.assert_allclose(penalty, expected[1], rtol=1e-5)
    np.testing.assert_allclose(sums.loss, expected[0].loss, rtol=1e-5)
    for name in ("read", "write"):
        stacked = grads["decoder"]["layers"]["mlp"]["predictor"][name]
        for i in range(3):
            one = per_layer["decoder"][f"layers_{i}"]["mlp"]["predictor"][name]
            np.testing.assert_allclose(stacked[i], one, rtol=1e-4, atol=1e-7)
            assert np.any(one)


@pytest.mark.parametrize("section", [{"predictor": -1}, {"predictor": 2, "sparsifier": {"name": "relu"}}])
def test_ranks_that_cannot_be_are_refused(section):
    with pytest.raises(ConfigError, match=r"^config\.predictor: a rank of at least 0, and 0 but for top_k, is needed"):
        build(MLPConfig, {"d_ff": F, "sparsifier": {"name": "top_k", "k": K}} | section)
    assert MLPConfig(64, TopK(k=8), predictor=16).reduced(1).predictor == 4
    with pytest.raises(ValueError, match="predictor: with a gate units are not zero by Top-k alone"):
        MLPConfig(F, TopK(k=K), gated=True, gate=Relu(), predictor=2)
