import dataclasses
import functools

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsity import spmd
from sparsity.config import ConfigError, build
from sparsity.evals.sparsity import by_layer
from sparsity.layers.mlp import MLPConfig
from sparsity.layers.noise import NOISE
from sparsity.layers.sparsify import ACTIVATIONS, STATS, Context
from sparsity.models.gpt2 import GPT2Config
from sparsity.ops.noise import Gaussian
from sparsity.ops.sparsifiers import Gelu, Relu, TopK
from sparsity.run import run_config
from sparsity.train.losses import language
from sparsity.train.state import TrainState
from sparsity.train.step import Objective, gradients

B, L, V = 600, 6, 11  # many examples, for what noise does on average
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, V - 1, (B, L)), jnp.int32)  # without the last token


def gpt2(**changes):
    settings = {"mlp": MLPConfig(24, Relu()), "d_model": 8, "layers": 2, "heads": 2, "positions": 7}
    return GPT2Config(**settings | changes)


def with_noise(sigma, **changes):
    return gpt2(mlp=MLPConfig(24, Relu(), noise=Gaussian(sigma)), **changes)


def shapes(config, tokens=TOKENS, vocabulary=V):
    init = config.build(vocabulary).init
    return flax.core.meta.unbox(jax.eval_shape(init, jax.random.key(0), tokens, Context()))


def randomised(config):
    """Random parameters of every leaf, those included that start at zero or one."""
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda p: jnp.asarray(rng.normal(0, 0.5, p.shape), p.dtype), shapes(config))


@functools.cache
def compiled(config, **ctx):
    apply, context = config.build(V).apply, Context(hand_out=True, **ctx)

    def forward(variables, tokens, seed):
        rngs = {"dropout": jax.random.key(seed), NOISE: jax.random.key(seed)}
        return apply(variables, tokens, context, mutable=[STATS, ACTIVATIONS], rngs=rngs)

    return jax.jit(forward)


def forward(config, variables, tokens=TOKENS, seed=0, **ctx):
    """Logits, and what was sown, of the compiled forward pass."""
    return compiled(config, **ctx)(variables, tokens, seed)


def test_gpt2_small_has_the_124_439_808_parameters_of_the_published_one():
    config = gpt2(mlp=MLPConfig(3072, Gelu()), d_model=768, layers=12, heads=12, positions=1024)
    params = shapes(config, jax.ShapeDtypeStruct((1, 1024), jnp.int32), 50257)
    assert sum(p.size for p in jax.tree.leaves(params)) == 124_439_808


def linear(p, x):
    return x @ np.asarray(p["kernel"], np.float64) + np.asarray(p["bias"], np.float64)


def norm(p, x):
    centred = x - x.mean(-1, keepdims=True)
    normalised = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    return normalised * np.asarray(p["scale"]) + np.asarray(p["bias"])


def attention(p, x, heads):
    """Token by token: t reads 0..t and nothing else."""
    q, k, v = (linear(p[name], x).reshape(B, L, heads, -1) for name in ("query", "key", "value"))
    out = np.empty_like(q)
    for t in range(L):
        scores = np.einsum("bhd,bshd->bsh", q[:, t], k[:, : t + 1]) / np.sqrt(q.shape[-1])
        weights = np.exp(scores - scores.max(1, keepdims=True))
        out[:, t] = np.einsum("bsh,bshd->bhd", weights / weights.sum(1, keepdims=True), v[:, : t + 1])
    return linear(p["out"], out.reshape(x.shape))


def reference(config, variables):
    """The whole forward pass in numpy float64."""
    p = variables["params"]
    embedding = np.asarray(p["embedding"], np.float64)
    x = embedding[np.asarray(TOKENS)] + np.asarray(p["position"], np.float64)[:L]
    for i in range(config.layers):
        block = p[f"block_{i}"]
        x = x + attention(block["attention"], norm(block["norm_attention"], x), config.heads)
        z = linear(block["mlp"]["wi"], norm(block["norm_mlp"], x))
        x = x + linear(block["mlp"]["wo"], np.maximum(z, 0))
    return norm(p["norm"], x) @ embedding.T


def test_the_logits_are_the_formula():
    config = gpt2()
    variables = randomised(config)
    logits, _ = forward(config, variables)
    assert (logits.shape, logits.dtype) == ((B, L, V), jnp.float32)
    # Twenty float32 products deep, with values of size 10.
    np.testing.assert_allclose(logits, reference(config, variables), rtol=1e-4, atol=1e-4)


def test_bfloat16_has_float32_parameters_and_float32_logits_near_the_formula():
    config = gpt2(dtype="bfloat16")
    variables = randomised(config)
    assert {p.dtype for p in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    logits, _ = forward(config, variables)
    assert logits.dtype == jnp.float32
    expected = reference(config, variables)
    # eps 2^-8 through two blocks: a few percent of the logits' size.
    assert np.linalg.norm(logits - expected) < 0.05 * np.linalg.norm(expected)


def test_no_logit_depends_on_a_later_token():
    config = gpt2()
    variables = randomised(config)

    def logits(position):  # what is added to the embedding of each place, so its gradient is the embedding's too
        params = variables["params"] | {"position": position}
        return config.build(V).apply({"params": params}, TOKENS[:1], Context())[0].sum(-1)

    slope_LxPxD = np.asarray(jax.jit(jax.jacrev(logits))(variables["params"]["position"]))[:, :L]
    np.testing.assert_array_equal((slope_LxPxD != 0).any(-1), np.tril(np.ones((L, L), bool)))


def test_the_last_token_changes_the_last_logits_alone():
    config = gpt2()
    variables = randomised(config)
    other = TOKENS.at[:, -1].set((TOKENS[:, -1] + 1) % V)
    one, two = (np.asarray(forward(config, variables, tokens)[0]) for tokens in (TOKENS, other))
    np.testing.assert_array_equal(one[:, :-1], two[:, :-1])
    assert (one[:, -1] != two[:, -1]).any(-1).all()


def test_the_logits_are_read_with_the_embedding_that_reads_the_tokens():
    config = gpt2()
    variables = randomised(config)
    plain, _ = forward(config, variables)
    variables["params"]["embedding"] = variables["params"]["embedding"].at[V - 1].multiply(3.0)  # no example has it
    expected = np.asarray(plain).copy()
    expected[..., V - 1] *= 3
    np.testing.assert_allclose(forward(config, variables)[0], expected, rtol=1e-5, atol=1e-5)


def test_a_token_beyond_the_vocabulary_is_not_read_as_another():
    logits, _ = forward(gpt2(), randomised(gpt2()), TOKENS.at[1, 2].set(V))
    np.testing.assert_array_equal(np.isnan(logits).all((1, 2)), np.arange(B) == 1)


def test_it_starts_as_gpt_2_does():
    config = gpt2(mlp=MLPConfig(128, Relu(), init="gpt2"), d_model=64, positions=64)
    params = flax.core.meta.unbox(jax.jit(config.build(64).init)(jax.random.key(0), TOKENS[:1], Context()))["params"]
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name.endswith(("bias", "scale")):
            np.testing.assert_array_equal(leaf, float(name.endswith("scale")), err_msg=name)
            continue
        residual = name.endswith(("attention/out/kernel", "mlp/wo/kernel"))
        # 4,096 numbers or more: five standard errors of a deviation, 5 / sqrt(2 n).
        np.testing.assert_allclose(jnp.std(leaf), 0.01 if residual else 0.02, rtol=0.055, err_msg=name)
        assert abs(jnp.mean(leaf)) < 5 * 0.02 / leaf.size**0.5, name


def pre_activations(sown):
    """z of the first block, [B, L, F]."""
    return np.asarray(sown[ACTIVATIONS]["block_0"]["mlp"]["sparsify"]["stats"].z, np.float64)


def test_noise_after_the_norm_adds_its_variance_through_the_first_matrix():
    config = with_noise(0.7)
    variables = randomised(config)
    z, clean = (pre_activations(forward(config, variables, noisy=on)[1]) for on in (True, False))
    noise = (z - clean).reshape(B * L, 24)
    kernel = np.asarray(variables["params"]["block_0"]["mlp"]["wi"]["kernel"], np.float64)
    covariance = 0.7**2 * kernel.T @ kernel  # Bricken et al. 2023, Eq. 20
    size = np.sqrt(np.outer(np.diag(covariance), np.diag(covariance)))
    # 3,600 tokens: five standard errors of a variance, 5 sqrt(2 / 3600).
    np.testing.assert_allclose(noise.T @ noise / (B * L) / size, covariance / size, atol=0.12)


def test_noise_before_the_norm_is_normalised_with_what_it_is_added_to():
    config = with_noise(0.7, noise_before_norm=True)
    variables = randomised(config)
    # Nothing but noise reaches the norm: its size does not matter then, and all directions are equally likely.
    p = variables["params"]["block_0"]
    p["attention"] = jax.tree.map(jnp.zeros_like, p["attention"])
    variables["params"] |= {name: jnp.zeros_like(variables["params"][name]) for name in ("embedding", "position")}
    z = pre_activations(forward(config, variables, noisy=True)[1])
    kernel = np.asarray(p["norm_mlp"]["scale"][:, None] * p["mlp"]["wi"]["kernel"], np.float64)
    # sqrt(8) times a random direction among the 7 that have mean 0.
    variance = 8 / 7 * ((kernel - kernel.mean(0)) ** 2).sum(0)
    mean = linear(p["mlp"]["wi"], np.asarray(p["norm_mlp"]["bias"], np.float64))
    np.testing.assert_allclose(z.mean((0, 1)), mean, atol=5 * np.sqrt(variance.max() / (B * L)))
    np.testing.assert_allclose(z.var((0, 1)), variance, rtol=0.12)


@pytest.mark.parametrize("before", [False, True])
def test_noise_is_off_in_evaluation_and_never_enters_the_residual_stream_itself(before):
    config = with_noise(0.7, noise_before_norm=before)
    variables = randomised(config)
    plain, _ = forward(gpt2(), variables)
    np.testing.assert_array_equal(forward(config, variables)[0], plain)
    noisy = [forward(config, variables, seed=seed, noisy=True)[0] for seed in (0, 0, 1)]
    np.testing.assert_array_equal(noisy[0], noisy[1])
    assert not np.allclose(noisy[0], plain)
    assert not np.allclose(noisy[0], noisy[2])
    for name in config.mlps():  # MLPs that write nothing hide their noise
        variables["params"][name]["mlp"]["wo"] = jax.tree.map(jnp.zeros_like, variables["params"][name]["mlp"]["wo"])
    np.testing.assert_allclose(
        forward(config, variables, noisy=True)[0], forward(gpt2(), variables)[0], rtol=1e-5, atol=1e-5
    )


def test_dropout_acts_in_training_only():
    config = gpt2(dropout=0.5)
    variables = randomised(config)
    plain, _ = forward(gpt2(), variables)
    np.testing.assert_array_equal(forward(config, variables)[0], plain)
    assert not np.allclose(forward(config, variables, train=True)[0], plain)


def test_the_records_are_named_as_the_mlps_in_order():
    config = gpt2()
    _, sown = forward(config, randomised(config), record=True)
    stats = by_layer(sown[STATS])
    assert list(stats) == list(config.mlps()) == ["block_0", "block_1"]
    for one in stats.values():
        assert (float(one.examples), float(one.tokens)) == (B, B * L)
        assert one.fired_F.shape == (24,)


def test_loss_and_gradients_on_8_devices_are_those_of_one():
    config = with_noise(0.3, d_model=16, heads=4, layers=1, dropout=0.1)
    module, rng = config.build(12), np.random.default_rng(2)
    tokens = rng.integers(0, 12, (4, L + 1)).astype(np.int32)
    batch = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:]}
    boxed = jax.eval_shape(module.init, jax.random.key(0), batch["tokens"], Context())["params"]
    params = jax.tree.map(lambda p: rng.normal(0, 0.3, p.shape).astype(np.float32), flax.core.meta.unbox(boxed))
    specs = spmd.param_specs(boxed)
    assert specs["embedding"] == jax.P("model", None)
    compute = jax.jit(gradients(Objective(module, config, language, seed=0), record=False))

    def on(data, model):
        mesh = spmd.make_mesh(spmd.MeshConfig(data, model))
        with jax.set_mesh(mesh):
            placed = jax.device_put(params, spmd.shardings(mesh, specs))
            (sums, _), grads, _, _ = compute(TrainState(np.int32(3), placed, None, {}), spmd.place_batch(mesh, batch))
        assert len({p.sharding.spec for p in jax.tree.leaves(placed)}) > 3
        return float(sums.loss / sums.count), jax.device_get(grads)

    (loss_1, grads_1), (loss_8, grads_8) = on(1, 1), on(2, 4)
    assert loss_8 == pytest.approx(loss_1, rel=1e-6)
    total = np.sqrt(sum(float((g**2).sum()) for g in jax.tree.leaves(grads_1)))
    for (path, g1), g8 in zip(jax.tree_util.tree_leaves_with_path(grads_1), jax.tree.leaves(grads_8), strict=True):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        # A bias of the keys has no gradient but for rounding: against the whole.
        scale = total if name.endswith("key/bias") else np.linalg.norm(g1)
        assert np.linalg.norm(g1 - g8) <= 1e-5 * scale, name


def test_dense_flops_are_those_that_xla_counts():
    config = gpt2(mlp=MLPConfig(512, Relu()), d_model=128, positions=16)
    model, tokens = config.build(96), jax.ShapeDtypeStruct((8, 16), jnp.int32)
    lowered = jax.jit(lambda v, x: model.apply(v, x, Context())).lower(shapes(config, tokens, 96), tokens)
    counted = lowered.cost_analysis()["flops"] / (8 * 16)
    # Ours are matrix products only: 3% for biases, norms, ReLU, masks, softmax and residuals.
    assert 1 < counted / config.flops((16,), 96) < 1.03


def test_flops_by_hand():
    config = gpt2()
    # Four 8x8 projections, scores and mixing over 6 tokens, two 8x24 matrices; the head reads 8 numbers into 11.
    block = 2 * (4 * 64 + 2 * 6 * 8 + 2 * 8 * 24)
    dense = 2 * block + 2 * 8 * 11
    assert config.flops((6,), 11) == dense
    assert config.tokens((6,)) == 6
    saved = (0.75 + 0.5) * 2 * 8 * 24
    assert config.flops((6,), 11, {"block_0": 0.25, "block_1": 0.5}) == pytest.approx(dense - saved, rel=1e-13)
    assert config.skippable_flops((6,), 11) == {"block_0": 2 * 8 * 24, "block_1": 2 * 8 * 24}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 3}, "config.heads: 3 does not divide d_model 8"),
        ({"positions": 0}, "config.positions: must be at least 1, got 0"),
        ({"layers": 0}, "config.layers: must be at least 1, got 0"),
        ({"dropout": 1.0}, "config.dropout: must be in [0, 1), got 1.0"),
        ({"dtype": "float16"}, 'config.dtype: unknown choice "float16"; did you mean "bfloat16"?'),
        ({"noise_before_norm": True}, "config.noise_before_norm: there is no noise (mlp.noise) to add there"),
    ],
)
def test_impossible_settings_are_refused_by_name(changes, message):
    mlp = {"d_ff": 8, "sparsifier": {"name": "relu"}}
    section = {"d_model": 8, "layers": 1, "heads": 2, "positions": 4, "mlp": mlp}
    with pytest.raises(ConfigError) as caught:
        build(GPT2Config, section | changes)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"name": "text", "length": 17}}, "model.positions: 16 are too few for sequences of 17 tokens"),
        ({"data": {"name": "digits"}}, "data: Digits has no tokens for the model to read, only image"),
        (
            {"noise": {"name": "gaussian", "sigma": 1.0}},
            "noise: the model reads tokens, which takes none; see the MLP's own noise",
        ),
        (
            {"evals": {"names": ("accuracy",)}},
            "evals.names: accuracy scores classification, and the model's task is language",
        ),
    ],
)
def test_a_run_that_does_not_fit_a_language_model_is_refused(tiny_config, changes, message):
    config = tiny_config.to_dict()
    mlp = {"d_ff": 8, "sparsifier": {"name": "relu"}}
    config["model"] = {"name": "gpt2", "d_model": 8, "layers": 1, "heads": 2, "positions": 16, "mlp": mlp}
    config |= {"data": {"name": "text", "length": 16}, "evals": {"names": ("language",)}}
    assert run_config(config).input_shape == (16,)
    with pytest.raises(ConfigError) as caught:
        run_config(config | changes)
    assert str(caught.value) == f"config.{message}"


@pytest.mark.parametrize("parts", [1, 4])
def test_a_reduced_gpt2_is_small_and_of_the_same_kind(parts):
    mlp = MLPConfig(3072, TopK(k=96), init="gpt2", noise=Gaussian(0.8))
    big = gpt2(mlp=mlp, d_model=768, layers=12, heads=12, positions=1024, noise_before_norm=True, dropout=0.1)
    heads = 2 if parts == 1 else 4
    expected = {"mlp": mlp.reduced(parts), "d_model": 8 * heads, "layers": 2, "heads": heads}
    assert big.reduced(parts) == dataclasses.replace(big, **expected)
