"""Whole models in every mode against their training path, and what is refused."""

import dataclasses

import flax
import jax
import numpy as np
import pytest

from sparsity.decode.generate import make_generate
from sparsity.decode.weights import prepared
from sparsity.evals.quantiles import least
from sparsity.evals.thresholds import layers_of
from sparsity.layers.inference import Dense, DenseMask, GatherOut, LowRank, QuantizedSearch, Threshold
from sparsity.layers.mlp import MLPConfig
from sparsity.layers.sparsify import ACTIVATIONS, STATS, Context
from sparsity.models.gpt2 import GPT2Config
from sparsity.models.llama import LlamaConfig
from sparsity.models.t5 import T5Config
from sparsity.models.vit import ViTConfig
from sparsity.ops.sparsifiers import Relu, Silu, TopK

V, LENGTH = 40, 6
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(2, V, (2, LENGTH)).astype(np.int32)
ONES = np.ones_like(TOKENS)
TOP_K = TopK(k=4, anneal=7)  # what is decoded is trained: k is 4


def t5(sparsifier, **settings):
    mlp = MLPConfig(d_ff=32, sparsifier=sparsifier, use_bias=False, init="t5", **settings)
    return T5Config(mlp=mlp, d_model=16, layers=1, decoder_layers=2, heads=2, head_dim=8, tied=False)


def gpt2(sparsifier):
    return GPT2Config(MLPConfig(32, sparsifier), d_model=16, layers=2, heads=2, positions=LENGTH)


def llama(sparsifier, **settings):
    mlp = MLPConfig(32, sparsifier, gated=True, use_bias=False, **settings)
    return LlamaConfig(mlp=mlp, d_model=16, layers=2, heads=2)


def inputs_of(config):
    return (TOKENS, TOKENS, ONES, ONES) if isinstance(config, T5Config) else (TOKENS,)


def parameters(config):
    init = jax.jit(lambda: config.build(V).init(jax.random.key(1), *inputs_of(config), Context())["params"])
    # Larger than at the start, where MLPs hardly matter.
    return jax.tree.map(lambda p: 3 * p, flax.core.meta.unbox(init()))


def test_a_t5_says_the_same():
    config = t5(TOP_K)
    params = parameters(config)
    trained = dataclasses.replace(config, mlp=dataclasses.replace(config.mlp, sparsifier=TopK(k=4)))
    expected = make_generate(trained.build(V), 12, end=None)(params, TOKENS, ONES)
    assert len(np.unique(expected)) > 3, "a network that repeats itself shows nothing"
    single, weights = prepared(config, params, GatherOut())
    assert (single.scan, single.mlp.sparsifier, single.mlp.inference) == (False, TopK(k=4), GatherOut())
    got = make_generate(single.build(V), 12, end=None)(weights, TOKENS, ONES)
    np.testing.assert_array_equal(got, expected)
    assert weights["encoder"]["layers_0"]["mlp"]["wi"]["kernel"].shape == (16, 32)  # as training has it
    assert weights["decoder"]["layers_1"]["mlp"]["wi"]["rows"].shape == (32, 16)


def test_the_mask_is_the_training_path():
    config = gpt2(TOP_K)
    params = parameters(config)
    masked, weights = prepared(config, params, DenseMask())
    assert weights is params
    assert masked.mlp == dataclasses.replace(config.mlp, sparsifier=TopK(k=4), inference=DenseMask())
    with pytest.raises(ValueError, match="thresholds are given, which DenseMask has no use for"):
        prepared(config, params, DenseMask(), {})


@pytest.mark.parametrize(
    ("config", "mode"),
    [
        (gpt2(TOP_K), LowRank(rank=16, candidates=24)),
        (gpt2(Relu()), Threshold(capacity=20)),
        (llama(TOP_K), QuantizedSearch(candidates=12)),
        (llama(Relu(), gate=Relu()), Threshold(capacity=20)),
    ],
    ids=["gpt2", "gpt2 relu", "llama", "llama dReLU"],
)
def test_decoders_have_the_logits_of_the_training_path(config, mode):
    params = parameters(config)
    single, weights = prepared(config, params, mode)
    train = dataclasses.replace(config, mlp=dataclasses.replace(single.mlp, inference=None))
    few = TOKENS[:1]  # more would share whole products
    run = jax.jit(
        lambda params, weights: (
            train.build(V).apply({"params": params}, few, Context()),
            single.build(V).apply({"params": weights}, few, Context(record=True), mutable=[STATS]),
        )
    )
    expected, (logits, new) = run(params, weights)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
    assert (new[STATS]["block_1"]["mlp"]["inference"].recall == 1).all()


def test_calibrated_thresholds_cut_the_share_that_is_asked_for():
    config = llama(Silu())
    params = parameters(config)
    handed = config.build(V).apply({"params": params}, TOKENS, Context(hand_out=True), mutable=[ACTIVATIONS])[1]
    blocks = handed[ACTIVATIONS].items()
    halves = {name: np.median(np.abs(Silu()(x["mlp"]["sparsify"]["stats"].z))) for name, x in blocks}
    single, weights = prepared(config, params, Threshold(capacity=32), least(params, halves))
    _, new = single.build(V).apply({"params": weights}, TOKENS, Context(record=True), mutable=[STATS])
    # The first block reads what it read when thresholds were found.
    said = new[STATS]["block_0"]["mlp"]["inference"]
    assert (said.read.mean(), said.recall.mean()) == (16, pytest.approx(0.5))
    assert not said.certified.any()
    with pytest.raises(ValueError, match="Threshold of Silu: it has no zeros, and no thresholds are given"):
        prepared(config, params, Threshold(capacity=32))
    with pytest.raises(ValueError, match="these thresholds are of a product with a gate"):
        prepared(llama(Silu(), gate=Silu()), params, Threshold(capacity=32), least(params, halves))


def test_thresholds_of_some_layers_or_of_none_are_refused_by_name():
    config = llama(Relu())  # whose zeros would do without
    mlp = {"wi": {}, "wo": {"kernel": np.zeros((32, 16))}}
    params = {f"block_{i}": {"mlp": mlp} for i in range(2)}
    first, second = least(params, dict.fromkeys(layers_of(params), 1.0)).values()
    for given, message in (
        ({"block_0": first}, "no thresholds are given of block_1/mlp"),
        ({"block_0": first, "blok_1": second}, 'of "blok_1/mlp", which is no MLP; did you mean "block_1/mlp"'),
        ({"block_0": first, "block_1": {"mlp": {"leest": 1.0}}}, 'called "least" or "least_activation", not "leest"'),
    ):
        with pytest.raises(ValueError, match=f"^inference: .*{message}"):
            prepared(config, params, Threshold(capacity=32), given)


def test_thresholds_of_stacked_layers_are_dealt_out():
    config = t5(Silu())
    params = parameters(config)
    dealt = {name: i for i, name in enumerate(layers_of(params))}
    given = least(params, dealt)
    _, weights = prepared(config, params, Threshold(capacity=32), given)
    for i in range(2):
        got = weights["decoder"][f"layers_{i}"]["mlp"]["least"]
        np.testing.assert_array_equal(got, np.full(32, dealt[f"decoder_{i}"], np.float32))
    with pytest.raises(ValueError, match="no thresholds are given of decoder/layers_0/mlp"):
        prepared(config, params, Threshold(capacity=32), {"encoder": given["encoder"]})


def test_a_model_that_does_not_decode_is_refused():
    vit = ViTConfig(MLPConfig(8, Relu()), d_model=4, layers=1, heads=1, patch=2)
    with pytest.raises(ValueError, match="inference: ViTConfig is not a model that decodes"):
        prepared(vit, {}, Dense())
