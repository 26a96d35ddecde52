import dataclasses

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit

from sparsity import recipes
from sparsity.config import ConfigError, build, differences, to_dict
from sparsity.evals.sparsity import by_layer
from sparsity.layers.mlp import MLPConfig
from sparsity.layers.sparsify import STATS, Context
from sparsity.models.llama import LlamaConfig
from sparsity.ops.sparsifiers import Relu, Silu, TopK
from sparsity.run import run_config

V, L = 11, 6
TOKENS = np.random.default_rng(0).integers(0, V, (3, L)).astype(np.int32)


def gated(d_ff=24, sparsifier=None, **changes):
    return MLPConfig(d_ff, sparsifier or Silu(), gated=True, use_bias=False, init="gpt2", **changes)


def llama(**changes):
    return LlamaConfig(**{"mlp": gated(), "d_model": 8, "layers": 2, "heads": 4, "kv_heads": 2} | changes)


def randomised(config):
    """Random parameters of every leaf, those included that start at one."""
    shapes = flax.core.meta.unbox(jax.eval_shape(config.build(V).init, jax.random.key(0), TOKENS, Context()))
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda p: jnp.asarray(rng.normal(0, 0.5, p.shape), p.dtype), shapes)


def forward(config, variables, tokens=TOKENS, **ctx):
    apply, context = config.build(V).apply, Context(**ctx)
    return jax.jit(lambda v, x: apply(v, x, context, mutable=[STATS]))(variables, tokens)


def norm(p, x):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * np.asarray(p["scale"])


def attention(p, x, heads, theta):
    """Every token's heads turned as complex numbers, one token after the other."""
    batch, length, d_model = x.shape
    size = d_model // heads
    speeds = theta ** (-2 * np.arange(size // 2) / size)

    def read(name, turn):
        y = (x @ np.asarray(p[name]["kernel"], np.float64)).reshape(batch, length, -1, size)
        if turn:
            z = y[..., : size // 2] + 1j * y[..., size // 2 :]
            z = z * np.exp(1j * np.arange(length)[:, None, None] * speeds)
            y = np.concatenate([z.real, z.imag], -1)
        return np.repeat(y, heads // y.shape[2], axis=2)

    q, k, v = read("query", True), read("key", True), read("value", False)
    out = np.empty_like(q)
    for t in range(length):
        scores = np.exp(np.einsum("bhd,bshd->bsh", q[:, t], k[:, : t + 1]) / np.sqrt(size))
        out[:, t] = np.einsum("bsh,bshd->bhd", scores / scores.sum(1, keepdims=True), v[:, : t + 1])
    return out.reshape(batch, length, -1) @ np.asarray(p["out"]["kernel"], np.float64)


def reference(config, variables):
    """The whole forward pass in numpy float64, after Touvron et al.'s description."""
    p = variables["params"]
    kernel = lambda layer: np.asarray(layer["kernel"], np.float64)
    x = np.asarray(p["embedding"], np.float64)[TOKENS]
    for i in range(config.layers):
        block = p[f"block_{i}"]
        x = x + attention(block["attention"], norm(block["norm_attention"], x), config.heads, config.theta)
        y, mlp = norm(block["norm_mlp"], x), block["mlp"]
        z = y @ kernel(mlp["wi"])
        x = x + (z * expit(z) * (y @ kernel(mlp["wi_gate"]))) @ kernel(mlp["wo"])
    return norm(p["norm"], x) @ (np.asarray(p["embedding"]).T if config.tied else kernel(p["head"]))


@pytest.mark.parametrize("changes", [{}, {"tied": True, "kv_heads": None, "theta": 50.0}], ids=str)
def test_the_logits_are_the_formula(changes):
    config = llama(**changes)
    variables = randomised(config)
    np.testing.assert_allclose(forward(config, variables)[0], reference(config, variables), rtol=1e-4, atol=1e-4)


PUBLISHED = {
    "tinyllama-1.1b": (32_000, 1_100_048_384),
    "2-7b": (32_000, 6_738_415_616),
    "2-13b": (32_000, 13_015_864_320),
    "3-8b": (128_256, 8_030_261_248),
}


@pytest.mark.parametrize("size", recipes.LLAMA_SIZES)
def test_sizes_have_the_parameters_of_the_published_ones(size):
    vocabulary, count = PUBLISHED[size]
    config = build(LlamaConfig, {k: v for k, v in recipes.llama_model(size).items() if k != "name"})
    tokens = jax.ShapeDtypeStruct((1, 8), jnp.int32)
    params = jax.eval_shape(config.build(vocabulary).init, jax.random.key(0), tokens, Context())
    assert sum(p.size for p in jax.tree.leaves(params)) == count


def test_no_token_sees_a_later_one():
    config = llama()
    variables = randomised(config)
    changed = TOKENS.copy()
    changed[:, -1] = (changed[:, -1] + 1) % V
    first, other = (forward(config, variables, tokens)[0] for tokens in (TOKENS, changed))
    np.testing.assert_array_equal(first[:, :-1], other[:, :-1])
    assert (np.abs(first - other)[:, -1] > 1e-6).any(-1).all()


def test_a_token_beyond_the_vocabulary_makes_its_examples_logits_nan():
    config = llama()
    tokens = TOKENS.copy()
    tokens[1, 2] = V
    logits = forward(config, randomised(config), tokens)[0]
    np.testing.assert_array_equal(np.isnan(logits).all((1, 2)), [False, True, False])


def test_relu_on_both_branches_is_sparser_than_on_one_and_is_counted_as_the_product():
    one, both = llama(mlp=gated(sparsifier=Relu())), llama(mlp=gated(sparsifier=Relu(), gate=Relu()))
    variables = randomised(one)
    shares = {}
    for name, config in {"one": one, "both": both}.items():
        stats = by_layer(forward(config, variables, record=True)[1][STATS])
        assert list(stats) == list(config.mlps()) == ["block_0", "block_1"]
        shares[name] = float(stats["block_0"].fraction_sum / stats["block_0"].examples)
    assert 0.3 < shares["one"] < 0.7
    assert 0.1 < shares["both"] < 0.4


def test_dense_flops_are_those_that_xla_counts():
    config, classes, batch, length = llama(d_model=128, mlp=gated(512)), 256, 8, 32
    model, tokens = config.build(classes), jax.ShapeDtypeStruct((batch, length), jnp.int32)
    variables = flax.core.meta.unbox(jax.eval_shape(model.init, jax.random.key(0), tokens, Context()))
    lowered = jax.jit(lambda v, x: model.apply(v, x, Context())).lower(variables, tokens)
    counted = lowered.cost_analysis()["flops"] / (batch * length)
    # Ours are matrix products only; XLA adds norms, rotations, activations, softmax and residuals.
    assert 1 < counted / config.flops((length,), classes) < 1.03


def test_flops_by_hand():
    config = llama()
    block = 2 * (8 * (8 + 4 + 4 + 8) + 2 * L * 8 + 3 * 8 * 24)
    assert config.flops((L,), V) == pytest.approx(2 * 8 * V + 2 * block)
    saved = config.flops((L,), V) - config.flops((L,), V, {"block_0": 0.25, "block_1": 1.0})
    assert saved == pytest.approx(0.75 * 2 * 8 * 24)


@pytest.mark.parametrize(("kv_heads", "expected"), [(4, 1), (32, 2), (None, 2)])
def test_a_reduced_llama_is_small_and_of_the_same_kind(kv_heads, expected):
    big = llama(mlp=gated(11_008, TopK(k=344)), d_model=4096, layers=32, heads=32, kv_heads=kv_heads)
    small = {"mlp": gated(32, TopK(k=1)), "d_model": 16, "layers": 2, "heads": 2, "kv_heads": expected, "head_dim": 8}
    assert big.reduced(1) == dataclasses.replace(big, **small)
    assert big.reduced(4).heads % 4 == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 3}, "config.heads: 3 does not divide d_model 8; give head_dim"),
        ({"kv_heads": 3}, "config.kv_heads: 3 does not divide the 4 heads"),
        ({"head_dim": 3}, "config.head_dim: rotations need an even number, got 3"),
        ({"layers": 0}, "config.layers: must be positive, got 0"),
        ({"epsilon": -1e-5}, "config.epsilon: must be positive, got -1e-05"),
        ({"mlp": {"d_ff": 8, "sparsifier": {"name": "relu"}}}, "config.mlp: a Llama's is gated and has no biases"),
        ({"kv_head": 4}, 'config.kv_head: unknown key; did you mean "kv_heads"?'),
    ],
)
def test_impossible_settings_are_refused_by_name(changes, message):
    mlp = {"d_ff": 8, "sparsifier": {"name": "silu"}, "gated": True, "use_bias": False}
    with pytest.raises(ConfigError) as caught:
        build(LlamaConfig, {"d_model": 8, "layers": 1, "heads": 4, "mlp": mlp} | changes)
    assert str(caught.value).startswith(message)


def test_a_size_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match=r'unknown size of Llama "70b"; valid: tinyllama-1\.1b, 2-7b'):
        recipes.llama_model("70b")
    assert recipes.llama_model("3-8b", "relu", "relu").mlp.gate.name == "relu"


def test_a_llama_goes_on_with_other_mlps_from_where_it_ended():
    plain = recipes.llama_text(30)
    config = run_config(recipes.fine_tuned(plain, "drelu", 10, 1e-3))
    assert (config.name, config.start) == ("llama_text_then_drelu", run_config(plain))
    changed = differences(to_dict(run_config(plain)), to_dict(config))
    mine = {"name", "steps", "every.checkpoint", "every.eval", "optimizer.learning_rate"}
    assert {k for k in changed if not k.startswith(("start.", "model.mlp."))} == mine
    assert (config.model.mlp.sparsifier, config.model.mlp.gate) == (Relu(), Relu())
    with pytest.raises(ValueError, match=r'unknown activation "gelu" of a Llama\'s MLPs; valid: silu, relu, shifted'):
        recipes.with_mlps(plain, "gelu")
