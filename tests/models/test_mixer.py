import dataclasses

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsity import recipes
from sparsity.config import ConfigError, build
from sparsity.evals.sparsity import by_layer
from sparsity.layers.mlp import MLPConfig
from sparsity.layers.sparsify import STATS, Context
from sparsity.models.mixer import MixerConfig
from sparsity.ops.sparsifiers import Relu, TopK

SHAPE, CLASSES = (4, 6, 3), 5
IMAGES = jnp.asarray(np.random.default_rng(0).normal(size=(3, *SHAPE)), jnp.float32)


def mixer(**changes):
    settings = {"mlp": MLPConfig(24, Relu()), "token_mlp": MLPConfig(10, Relu()), "d_model": 8, "layers": 2, "patch": 2}
    return MixerConfig(**settings | changes)


def randomised(config):
    """Random parameters of every leaf, those included that start at zero or one."""
    shapes = flax.core.meta.unbox(jax.eval_shape(config.build(CLASSES).init, jax.random.key(0), IMAGES, Context()))
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda p: jnp.asarray(rng.normal(0, 0.5, p.shape), p.dtype), shapes)


def forward(config, variables, **ctx):
    apply, context = config.build(CLASSES).apply, Context(**ctx)
    return jax.jit(lambda v, x: apply(v, x, context, mutable=[STATS]))(variables, IMAGES)


def linear(p, x):
    return x @ np.asarray(p["kernel"], np.float64) + np.asarray(p["bias"], np.float64)


def norm(p, x):
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
    return scaled * np.asarray(p["scale"]) + np.asarray(p["bias"])


def mlp(p, x):
    return linear(p["wo"], np.maximum(linear(p["wi"], x), 0))


def reference(config, variables):
    """The whole forward pass in numpy float64, token MLPs column by column."""
    p, images = variables["params"], np.asarray(IMAGES, np.float64)
    cut = lambda i, j: images[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].reshape(len(images), -1)
    x = linear(p["embed"], np.stack([cut(i, j) for i in range(2) for j in range(3)], axis=1))
    for i in range(config.layers):
        block = p[f"block_{i}"]
        y = norm(block["norm_token"], x)
        x = x + np.stack([mlp(block["token"], y[:, :, d]) for d in range(config.d_model)], axis=2)
        x = x + mlp(block["channel"], norm(block["norm_channel"], x))
    return linear(p["head"], norm(p["norm"], x).mean(1))


def test_the_logits_are_the_formula():
    config = mixer()
    variables = randomised(config)
    np.testing.assert_allclose(forward(config, variables)[0], reference(config, variables), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("size", "millions"), [("S/32", 19), ("S/16", 18), ("B/32", 60), ("B/16", 59), ("L/16", 207)])
def test_sizes_have_the_parameters_of_the_paper(size, millions):
    """Tolstikhin et al. 2021, Table 1, for 224 pixels and no head."""
    config = build(MixerConfig, {k: v for k, v in recipes.mixer_model(size).items() if k != "name"})
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    params = jax.eval_shape(config.build(1000).init, jax.random.key(0), image, Context())["params"]
    head = params.pop("head")
    assert len(jax.tree.leaves(head)) == 2
    count = sum(p.size for p in jax.tree.leaves(params))
    assert count / 1e6 == pytest.approx(millions, abs=0.6)


def test_an_unknown_size_is_refused():
    with pytest.raises(ValueError, match='unknown size of Mixer "B/8"; valid: S/32, '):
        recipes.mixer_model("B/8")


def test_token_and_channel_mlps_are_recorded_apart():
    config = mixer()
    stats = by_layer(forward(config, randomised(config), record=True)[1][STATS])
    assert set(stats) == set(config.mlps()) == {f"block_{i}/{kind}" for i in (0, 1) for kind in ("token", "channel")}
    # A token MLP has as many "tokens" as there are channels.
    assert (float(stats["block_0/token"].tokens), stats["block_0/token"].fired_F.shape) == (3 * 8, (10,))
    assert (float(stats["block_1/channel"].tokens), stats["block_1/channel"].fired_F.shape) == (3 * 6, (24,))


def test_a_fresh_model_knows_nothing():
    fresh = flax.core.meta.unbox(jax.jit(mixer().build(CLASSES).init)(jax.random.key(0), IMAGES, Context()))
    np.testing.assert_array_equal(forward(mixer(), fresh)[0], np.zeros((3, CLASSES)))


def test_dense_flops_are_those_that_xla_counts():
    config = mixer(d_model=128, patch=4, mlp=MLPConfig(512, Relu()), token_mlp=MLPConfig(256, Relu()))
    shape, batch = (32, 32, 3), 8
    model = config.build(CLASSES)
    images = jax.ShapeDtypeStruct((batch, *shape), jnp.float32)
    variables = flax.core.meta.unbox(jax.eval_shape(model.init, jax.random.key(0), images, Context()))
    lowered = jax.jit(lambda v, x: model.apply(v, x, Context())).lower(variables, images)
    counted = lowered.cost_analysis()["flops"] / (batch * config.tokens(shape))
    # Ours are matrix products only; XLA adds biases, norms, ReLU and residuals.
    assert 1 < counted / config.flops(shape, CLASSES) < 1.03


def test_flops_by_hand():
    config = mixer(layers=1)
    # Of one of 6 tokens: 12 values into 8 and a sixth of the head; 8 channels of 6 x 10 and 10 x 6; 8 x 24 and 24 x 8.
    token, channel = 2 * 8 * 6 * 10 / 6, 2 * 8 * 24
    assert config.flops(SHAPE, CLASSES) == pytest.approx(2 * (12 * 8 + 8 * 5 / 6) + 2 * token + 2 * channel)
    assert config.skippable_flops(SHAPE, CLASSES) == {"block_0/token": token, "block_0/channel": channel}
    density = {"block_0/token": 0.5, "block_0/channel": 0.25}
    saved = config.flops(SHAPE, CLASSES) - config.flops(SHAPE, CLASSES, density)
    assert saved == pytest.approx(0.5 * token + 0.75 * channel)


def test_a_reduced_mixer_is_small_and_of_the_same_kind():
    big = mixer(mlp=MLPConfig(3072, TopK(k=96)), token_mlp=MLPConfig(384, Relu()), d_model=768, layers=12)
    small = big.reduced(1)
    expected = {"mlp": MLPConfig(32, TopK(k=1)), "token_mlp": MLPConfig(32, Relu()), "d_model": 16, "layers": 2}
    assert small == dataclasses.replace(big, **expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": 0}, "config.layers: must be at least 1, got 0"),
        (
            {"token_mlp": {"d_ff": 0, "sparsifier": {"name": "relu"}}},
            "config.token_mlp.d_ff: must be at least 1, got 0",
        ),
        ({"heads": 2}, "config.heads: unknown key"),
    ],
)
def test_impossible_settings_are_refused_by_name(changes, message):
    mlp = {"d_ff": 8, "sparsifier": {"name": "relu"}}
    section = {"d_model": 8, "layers": 1, "patch": 2, "mlp": mlp, "token_mlp": mlp}
    with pytest.raises(ConfigError) as caught:
        build(MixerConfig, section | changes)
    assert str(caught.value).startswith(message)


def test_images_that_the_patches_do_not_tile_are_refused():
    mixer().check_input(SHAPE)
    with pytest.raises(ValueError, match=r"^patch: 2 does not divide the image's 5x6 pixels$"):
        mixer().check_input((5, 6, 3))
