import dataclasses

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from sparsity import recipes
from sparsity.config import ConfigError, build
from sparsity.evals.sparsity import by_layer
from sparsity.layers.mlp import MLPConfig
from sparsity.layers.sparsify import STATS, Context
from sparsity.models import MODELS
from sparsity.models.vit import ViTConfig, patches, sincos
from sparsity.ops.sparsifiers import Gelu, Relu, TopK

SHAPE, CLASSES = (4, 6, 3), 5
IMAGES = jnp.asarray(np.random.default_rng(0).normal(size=(3, *SHAPE)), jnp.float32)


def vit(**changes):
    settings = {"mlp": MLPConfig(24, Relu()), "d_model": 8, "layers": 3, "heads": 2, "patch": 2}
    return ViTConfig(**settings | changes)


def shapes(config):
    return flax.core.meta.unbox(jax.eval_shape(config.build(CLASSES).init, jax.random.key(0), IMAGES, Context()))


def randomised(config):
    """Random parameters of every leaf, those included that start at zero or one."""
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda p: jnp.asarray(rng.normal(0, 0.5, p.shape), p.dtype), shapes(config))


def test_patches_of_a_4_by_4_image_row_by_row():
    image = jnp.arange(16).reshape(1, 4, 4, 1)
    expected = [[[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]]
    np.testing.assert_array_equal(patches(image, 2), expected)


def test_patches_keep_channels_together_and_images_apart():
    images = np.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3)
    got = patches(jnp.asarray(images), 2)
    assert got.shape == (2, 6, 12)
    # Image 1, second row of patches, third column: pixels (2, 4), (2, 5), (3, 4), (3, 5).
    np.testing.assert_array_equal(got[1, 5], images[1, 2:4, 4:6].ravel())


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("pool", ["cls", "gap"])
def test_the_number_of_parameters_is_the_formula(pool, gated, use_bias):
    config = vit(pool=pool, mlp=MLPConfig(24, Relu(), gated=gated, use_bias=use_bias))
    d, f, patches_, inputs = 8, 24, 6, 2 * 2 * 3
    length = patches_ + (pool == "cls")
    mlp = (2 + gated) * d * f + use_bias * ((1 + gated) * f + d)
    block = 2 * 2 * d + 4 * (d * d + d) + mlp
    expected = (inputs * d + d) + (pool == "cls") * d + length * d + 3 * block + 2 * d + (d * CLASSES + CLASSES)
    assert sum(p.size for p in jax.tree.leaves(shapes(config))) == expected


def test_vit_b_16_has_the_86_567_656_parameters_of_the_paper():
    """Dosovitskiy et al. 2021, Table 1: 86M; the published checkpoint with a head of 1,000 classes has 86,567,656."""
    config = vit(mlp=MLPConfig(3072, Gelu()), d_model=768, layers=12, heads=12, patch=16)
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    params = jax.eval_shape(config.build(1000).init, jax.random.key(0), image, Context())
    assert sum(p.size for p in jax.tree.leaves(params)) == 86_567_656


# With a class token and a head of 1,000 classes at 224 pixels, as timm counts its models.
COUNTS = {"Ti/16": 5_717_416, "S/16": 22_050_664, "B/32": 88_224_232, "L/16": 304_326_632, "H/14": 632_045_800}


@pytest.mark.parametrize("name", [*COUNTS, "g/14"])
def test_sizes_have_the_parameters_of_the_published_ones(name):
    config = build(ViTConfig, {k: v for k, v in recipes.vit_model(name, "gelu").items() if k != "name"})
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    params = jax.eval_shape(config.build(1000).init, jax.random.key(0), image, Context())
    count = sum(p.size for p in jax.tree.leaves(params))
    if name in COUNTS:
        assert count == COUNTS[name]
    else:  # Zhai et al. 2022, Table 2: 1,011 million
        assert count / 1e6 == pytest.approx(1011, rel=0.005)


@pytest.mark.parametrize("name", ["B", "B16", "X/16", "B/x"])
def test_a_vit_that_does_not_exist_is_refused(name):
    with pytest.raises(ValueError, match="valid: SIZE/PATCH of the sizes Ti, S, B, L, H, g"):
        recipes.vit_model(name)


def test_fixed_positions_by_hand():
    """Column, then row, each at D / 4 = 2 frequencies, 1 and 1 / 10,000."""
    got = sincos(2, 3, 8)
    assert got.shape == (6, 8)
    x, y = 2, 1  # the last of the second row
    angles = [x, x / 1e4, y, y / 1e4]
    expected = [*np.sin(angles[:2]), *np.cos(angles[:2]), *np.sin(angles[2:]), *np.cos(angles[2:])]
    np.testing.assert_allclose(got[5], expected, rtol=1e-12)


def forward(config, variables, **ctx):
    """Logits, and what was recorded, of the compiled forward pass."""
    context = Context(**ctx)
    apply = config.build(CLASSES).apply
    rngs = {"dropout": jax.random.key(0)}
    return jax.jit(lambda v, x: apply(v, x, context, mutable=[STATS], rngs=rngs))(variables, IMAGES)


def linear(p, x):
    return x @ np.asarray(p["kernel"], np.float64) + np.asarray(p["bias"], np.float64)


def norm(p, x, epsilon):
    centred = x - x.mean(-1, keepdims=True)
    normal = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon)
    return normal * np.asarray(p["scale"]) + np.asarray(p["bias"])


def attention(p, x, heads):
    split = lambda y: y.reshape(*y.shape[:2], heads, -1).swapaxes(1, 2)
    q, k, v = (split(linear(p[name], x)) for name in ("query", "key", "value"))
    scores = np.exp(q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1]))
    out = scores / scores.sum(-1, keepdims=True) @ v
    return linear(p["out"], out.swapaxes(1, 2).reshape(x.shape))


def reference(config, variables, phi):
    """The whole forward pass in numpy float64."""
    p, side, epsilon = variables["params"], config.patch, config.norm_epsilon
    images = np.asarray(IMAGES, np.float64)
    rows, columns = SHAPE[0] // side, SHAPE[1] // side
    cut = lambda i, j: images[:, i * side : (i + 1) * side, j * side : (j + 1) * side].reshape(len(images), -1)
    x = linear(p["embed"], np.stack([cut(i, j) for i in range(rows) for j in range(columns)], axis=1))
    if config.positions == "sincos":
        x = x + sincos(rows, columns, config.d_model)
    if config.pool == "cls":
        x = np.concatenate([np.broadcast_to(p["cls"], (len(x), 1, config.d_model)), x], axis=1)
    if config.positions == "learned":
        x = x + np.asarray(p["position"])
    for i in range(config.layers):
        block = p[f"block_{i}"]
        x = x + attention(block["attention"], norm(block["norm_attention"], x, epsilon), config.heads)
        x = x + linear(block["mlp"]["wo"], phi(linear(block["mlp"]["wi"], norm(block["norm_mlp"], x, epsilon))))
    x = norm(p["norm"], x, epsilon)
    x = x[:, 0] if config.pool == "cls" else x.mean(1)
    return linear(p["head"], x if config.representation is None else np.tanh(linear(p["representation"], x)))


def top_4(z):
    h = np.maximum(z, 0)
    return np.where(h >= np.sort(h, -1)[..., -4:-3], h, 0)


@pytest.mark.parametrize("pool", ["cls", "gap"])
@pytest.mark.parametrize(
    ("sparsifier", "phi"),
    [
        (Relu(), lambda z: np.maximum(z, 0)),
        (Gelu(), lambda z: z * (1 + erf(z / np.sqrt(2))) / 2),
        (TopK(4), top_4),
    ],
    ids=["relu", "gelu", "top_k"],
)
def test_the_logits_are_the_formula(pool, sparsifier, phi):
    config = vit(pool=pool, mlp=MLPConfig(24, sparsifier))
    variables = randomised(config)
    logits, _ = forward(config, variables)
    # Some thirty float32 products deep, with values of size 10.
    np.testing.assert_allclose(logits, reference(config, variables, phi), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("pool", ["cls", "gap"])
def test_fixed_positions_a_tanh_layer_and_another_epsilon_are_the_formula(pool):
    config = vit(pool=pool, positions="sincos", representation=7, norm_epsilon=0.3)
    variables = randomised(config)
    assert "position" not in variables["params"]
    logits, _ = forward(config, variables)
    np.testing.assert_allclose(logits, reference(config, variables, lambda z: np.maximum(z, 0)), rtol=1e-4, atol=1e-4)


def test_the_heads_biases_start_where_they_are_told():
    config = vit(head_bias=-10.0, layers=1)
    fresh = flax.core.meta.unbox(jax.jit(config.build(CLASSES).init)(jax.random.key(0), IMAGES, Context()))
    np.testing.assert_array_equal(forward(config, fresh)[0], np.full((3, CLASSES), -10))


def test_a_fresh_model_knows_nothing():
    fresh = flax.core.meta.unbox(jax.jit(vit().build(CLASSES).init)(jax.random.key(0), IMAGES, Context()))
    logits, _ = forward(vit(), fresh)
    np.testing.assert_array_equal(logits, np.zeros((3, CLASSES)))


def test_bfloat16_has_float32_parameters_and_float32_logits_near_the_formula():
    config = vit(dtype="bfloat16")
    variables = randomised(config)
    assert {p.dtype for p in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    logits, _ = forward(config, variables)
    assert logits.dtype == jnp.float32
    expected = reference(config, variables, lambda z: np.maximum(z, 0))
    # eps 2^-8 through three blocks: a few percent of the logits' size.
    assert np.linalg.norm(logits - expected) < 0.05 * np.linalg.norm(expected)


def test_dropout_acts_in_training_only():
    config = vit(dropout=0.5)
    variables = randomised(config)
    plain, _ = forward(vit(), variables)
    np.testing.assert_array_equal(forward(config, variables)[0], plain)
    trained, _ = forward(config, variables, train=True)
    assert not np.allclose(trained, plain)


@pytest.mark.parametrize("pool", ["cls", "gap"])
def test_the_records_are_named_as_the_mlps_in_order(pool):
    config = vit(pool=pool)
    _, sown = forward(config, randomised(config), record=True)
    stats = by_layer(sown[STATS])
    assert list(stats) == list(config.mlps()) == ["block_0", "block_1", "block_2"]
    assert set(config.mlps().values()) == {config.mlp}
    for one in stats.values():
        assert float(one.examples) == 3
        assert float(one.tokens) == 3 * config.tokens(SHAPE)
        assert one.fired_F.shape == (24,)


def test_more_than_ten_layers_are_recorded_in_order_too():
    config = vit(layers=12)
    _, sown = forward(config, randomised(config), record=True)
    assert by_layer(sown[STATS]).keys() == config.mlps().keys()
    assert list(config.mlps()) == [f"block_{i}" for i in range(12)]


@pytest.mark.parametrize(("pool", "tokens"), [("cls", 7), ("gap", 6)])
def test_the_sequence_is_as_long_as_the_position_embedding(pool, tokens):
    config = vit(pool=pool)
    assert config.tokens(SHAPE) == tokens
    assert shapes(config)["params"]["position"].shape == (tokens, 8)


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("pool", ["cls", "gap"])
def test_dense_flops_are_those_that_xla_counts(pool, gated):
    config = vit(pool=pool, d_model=128, heads=2, layers=2, patch=4, mlp=MLPConfig(512, Relu(), gated=gated))
    shape, batch = (16, 16, 3), 8
    model = config.build(CLASSES)
    images = jax.ShapeDtypeStruct((batch, *shape), jnp.float32)
    variables = flax.core.meta.unbox(jax.eval_shape(model.init, jax.random.key(0), images, Context()))
    lowered = jax.jit(lambda v, x: model.apply(v, x, Context())).lower(variables, images)
    counted = lowered.cost_analysis()["flops"] / (batch * config.tokens(shape))
    # Ours are matrix products only. XLA adds biases, norms, ReLU, softmax and residuals: about
    # 5,000 operations a token and block beside 2 x 200,000, so at most 3% more and never less.
    assert 1 < counted / config.flops(shape, CLASSES) < 1.03


def test_flops_by_hand():
    config = vit(layers=2)
    # 7 tokens: 6 patches of 12 values into 8, and the head, 8 into 5, once.
    around = 2 * (6 * 12 * 8 + 8 * 5) / 7
    # Four 8x8 projections, scores and mixing over 7 tokens, two 8x24 matrices.
    block = 2 * (4 * 64 + 2 * 7 * 8 + 2 * 8 * 24)
    assert config.flops(SHAPE, CLASSES) == pytest.approx(around + 2 * block, rel=1e-15)


def test_skipped_zeros_save_their_share_of_each_second_matrix():
    config = vit(layers=2)
    dense, second = config.flops(SHAPE, CLASSES), 2 * 8 * 24
    assert config.flops(SHAPE, CLASSES, {"block_0": 1.0, "block_1": 1.0}) == dense
    sparse = config.flops(SHAPE, CLASSES, {"block_0": 0.25, "block_1": 0.5})
    assert dense - sparse == pytest.approx((0.75 + 0.5) * second, rel=1e-13)


def test_flops_with_a_nan_density_are_refused():
    with pytest.raises(ValueError, match=r"^density: must be in \[0, 1\]"):
        vit(layers=1).flops(SHAPE, CLASSES, {"block_0": float("nan")})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 3}, "config.heads: 3 does not divide d_model 8"),
        ({"layers": 0}, "config.layers: must be at least 1, got 0"),
        ({"patch": 0}, "config.patch: must be at least 1, got 0"),
        ({"d_model": -8}, "config.d_model: must be at least 1, got -8"),
        ({"heads": 0}, "config.heads: must be at least 1, got 0"),
        ({"dropout": 1.0}, "config.dropout: must be in [0, 1), got 1.0"),
        ({"pool": "gip"}, 'config.pool: unknown choice "gip"; did you mean "gap"?'),
        ({"positions": "sincos", "d_model": 6}, "config.positions: sincos needs a d_model that 4 divides, got 6"),
        ({"norm_epsilon": 0.0}, "config.norm_epsilon: must be positive, got 0.0"),
        ({"representation": 0}, "config.representation: must be at least 1, or None, got 0"),
        ({"dtype": "float16"}, 'config.dtype: unknown choice "float16"; did you mean "bfloat16"?'),
    ],
)
def test_impossible_settings_are_refused_by_name(changes, message):
    section = {"d_model": 8, "layers": 1, "heads": 2, "patch": 2, "mlp": {"d_ff": 8, "sparsifier": {"name": "relu"}}}
    with pytest.raises(ConfigError) as caught:
        build(ViTConfig, section | changes)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("shape", [(5, 6, 3), (4, 7, 3)])
def test_images_that_the_patches_do_not_tile_are_refused(shape):
    vit().check_input(SHAPE)
    with pytest.raises(ValueError, match=rf"^patch: 2 does not divide the image's {shape[0]}x{shape[1]} pixels$"):
        vit().check_input(shape)


@pytest.mark.parametrize("name", MODELS)
def test_every_model_of_the_table_is_a_frozen_dataclass_with_the_documented_parts(name):
    cls = MODELS[name]
    assert dataclasses.is_dataclass(cls)
    assert cls.__dataclass_params__.frozen
    for part in ("task", "inputs", "build", "check_input", "skippable_flops", "flops"):
        assert hasattr(cls, part)


@pytest.mark.parametrize("parts", [1, 4])
def test_a_reduced_vit_is_small_and_of_the_same_kind(parts):
    big = vit(
        mlp=MLPConfig(3072, TopK(k=96)), d_model=768, layers=12, heads=12, pool="cls", dropout=0.1, dtype="bfloat16"
    )
    heads = 2 if parts == 1 else 4
    expected = {"mlp": MLPConfig(32, TopK(k=1)), "d_model": 8 * heads, "layers": 2, "heads": heads}
    assert big.reduced(parts) == dataclasses.replace(big, **expected)


def test_a_small_vit_is_not_made_larger():
    small = vit(layers=1, heads=1, d_model=4)
    assert small.reduced(1) == small
