import dataclasses
import time

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsity.config import ConfigError, build, to_dict
from sparsity.evals.sparsity import by_layer, merge, nonzero_fraction
from sparsity.layers.sparsify import STATS, Context
from sparsity.models.deep_cnn import DeepCNNConfig
from sparsity.ops.sparsifiers import ClippedRelu
from sparsity.spmd import MeshConfig, make_mesh, param_specs, shardings
from sparsity.theory.maps import MeanField
from sparsity.train.losses import LOSSES

SHAPE, CLASSES = (5, 6, 2), 4
IMAGES = jnp.asarray(np.random.default_rng(0).normal(size=(3, *SHAPE)), jnp.float32)
SPARSE = ClippedRelu(sparsity=0.7, slope=0.6)
both = pytest.mark.parametrize("dims", [1, 2])


def deep(**changes):
    return DeepCNNConfig(**{"channels": 8, "depth": 4, "sparsifier": SPARSE} | changes)


def fresh(config, images=IMAGES):
    model = config.build(CLASSES)
    return flax.core.meta.unbox(jax.jit(model.init)(jax.random.key(0), images, Context()))


def forward(config, variables, images=IMAGES, **ctx):
    apply = config.build(CLASSES).apply
    return jax.jit(lambda v, x: apply(v, x, Context(**ctx), mutable=[STATS]))(variables, images)


def convolve(x, p):
    """y[p] = sum_o x[p + o - k // 2] W[o] + b around the torus, by shifts of float64 arrays."""
    window, axes = p["kernel"].shape[:-2], tuple(range(1, x.ndim - 1))
    shifted = lambda o: np.roll(x, [k // 2 - i for k, i in zip(window, o, strict=True)], axes)
    return sum(shifted(o) @ p["kernel"][o] for o in np.ndindex(window)) + p["bias"]


def reference(config, variables):
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), variables["params"])
    x = np.asarray(IMAGES, np.float64)
    x = x if config.dims == 2 else x.reshape(len(x), -1, SHAPE[2])
    h = config.sparsifier(convolve(x, p["input"]), np)
    all_h = [h]
    for i in range(config.depth - 1):
        h = config.sparsifier(convolve(h, jax.tree.map(lambda w, i=i: w[i], p["layers"]["conv"])), np)
        all_h.append(h)
    pooled = h.mean(tuple(range(1, h.ndim - 1)))
    return config.logit_scale * (pooled @ p["head"]["kernel"] + p["head"]["bias"]), all_h


@both
@pytest.mark.parametrize("product", ["rolls", "convolution"])
@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_the_logits_are_those_of_the_unrolled_network(dims, product, kernel):
    config = deep(dims=dims, product=product, kernel=kernel)
    variables = fresh(config)
    np.testing.assert_allclose(forward(config, variables)[0], reference(config, variables)[0], rtol=1e-4, atol=1e-5)


@both
def test_rolls_and_convolutions_train_alike(dims):
    gradients = []
    for product in ("rolls", "convolution"):
        config = deep(dims=dims, product=product)
        model = config.build(CLASSES)
        loss = lambda p, m=model: LOSSES["classification"](
            m.apply({"params": p}, IMAGES, Context()), {"label": jnp.arange(3)}
        ).loss.sum()
        gradients.append(jax.jit(jax.grad(loss))(fresh(config)["params"]))
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))
    assert (np.abs(gradients[0]["layers"]["conv"]["kernel"]).max((-1, -2, -3)) > 0).all()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), *gradients)


@both
def test_the_number_of_parameters_is_the_formula(dims):
    c, window = 8, 3**dims
    expected = (window * 2 * c + c) + 3 * (window * c * c + c) + (c * CLASSES + CLASSES)
    assert sum(p.size for p in jax.tree.leaves(fresh(deep(dims=dims)))) == expected


@both
def test_parameters_name_their_axes_and_are_sharded_over_channels(dims):
    boxed = jax.eval_shape(deep(dims=dims).build(CLASSES).init, jax.random.key(0), IMAGES, Context())["params"]
    specs = jax.tree.map(tuple, param_specs(boxed), is_leaf=lambda s: hasattr(s, "index"))
    free = (None,) * (dims + 1)
    assert specs == {
        "input": {"kernel": (*free, "model"), "bias": ("model",)},
        "layers": {"conv": {"kernel": (None, *free, "model"), "bias": (None, "model")}},
        "head": {"kernel": (None, None), "bias": (None,)},
    }
    assert boxed["layers"]["conv"]["kernel"].names == ("layers", *("window",) * dims, "embed", "mlp")


@both
def test_a_mesh_changes_nothing_but_the_rounding(dims):
    config = deep(dims=dims)
    model, variables = config.build(CLASSES), fresh(config)
    images = np.tile(np.asarray(IMAGES[:1]), (4, 1, 1, 1)) * np.arange(1, 5, dtype=np.float32)[:, None, None, None]
    plain = jax.jit(lambda v, x: model.apply(v, x, Context()))(variables, images)
    mesh = make_mesh(MeshConfig(2, 4))
    boxed = jax.eval_shape(model.init, jax.random.key(0), IMAGES, Context())["params"]
    placed = jax.device_put(variables, {"params": shardings(mesh, param_specs(boxed))})
    with jax.set_mesh(mesh):
        lowered = jax.jit(lambda v, x: model.apply(v, x, Context())).lower(placed, images)
        assert "sharding_constraint" in lowered.as_text()
        split = lowered.compile()(placed, images)
    np.testing.assert_allclose(split, plain, rtol=1e-4, atol=1e-5)


@both
def test_every_layer_is_recorded_under_its_name_with_pixels_as_tokens(dims):
    config = deep(dims=dims, depth=12)
    variables = fresh(config)
    stats = merge([by_layer(forward(config, variables, record=True)[1][STATS])])
    assert tuple(stats) == config.layers()
    for one, h in zip(stats.values(), reference(config, variables)[1], strict=True):
        assert nonzero_fraction(one)[0] == pytest.approx((h != 0).mean(), abs=2e-3)  # float32 near a threshold
        assert (one.examples, one.tokens) == (3, 3 * config.tokens(SHAPE))


@both
def test_q_stays_at_its_fixed_point_through_the_layers(dims):
    """With circular padding every position obeys the map of a dense layer of fan-in channels times window."""
    config = deep(dims=dims, depth=20, channels=64)
    images = np.random.default_rng(1).normal(size=(2, 8, 8, 1)).astype(np.float32)
    variables = fresh(config, images)
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), variables["params"])
    x = images.astype(np.float64) if dims == 2 else images.reshape(2, 64, 1).astype(np.float64)
    z, found = convolve(x, p["input"]), []
    for i in range(19):
        z = convolve(config.sparsifier(z, np), jax.tree.map(lambda w, i=i: w[i], p["layers"]["conv"]))
        found.append((z**2).mean())
    edge = config.edge
    spread = MeanField(SPARSE.activation(), edge.sigma_w2, edge.sigma_b2).spread(1.0, 64, 20)
    # Positions share their weights and inputs come close to each other: the scatter is at most that of one position.
    assert abs(np.mean(found[5:]) - 1) < 2 * spread.measured**0.5


def test_flops_by_hand():
    config = deep(depth=3)
    pixels, c = 30, 8
    assert config.tokens(SHAPE) == pixels
    assert config.flops(SHAPE, CLASSES) == 2 * (9 * 2 * c + 2 * 9 * c * c) + 2 * c * CLASSES / pixels
    assert deep(depth=3, dims=1).flops(SHAPE, CLASSES) == 2 * (3 * 2 * c + 2 * 3 * c * c) + 2 * c * CLASSES / pixels
    assert config.skippable_flops(SHAPE, CLASSES) == {"first": 1152.0, "layers_0": 1152.0, "layers_1": 0.0}
    density = {"first": 0.5, "layers_0": 0.25, "layers_1": 0.1}
    saved = config.flops(SHAPE, CLASSES) - config.flops(SHAPE, CLASSES, density)
    assert saved == pytest.approx(1152 * 1.25)


def test_depth_50_compiles_within_20_seconds():
    config = deep(depth=50, channels=16)
    model, variables = config.build(CLASSES), fresh(deep(depth=50, channels=16))
    start = time.monotonic()
    loss = lambda p: model.apply({"params": p}, IMAGES, Context()).sum()
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(jax.jit(jax.grad(loss))(variables["params"])))
    assert time.monotonic() - start < 20  # 2 s on two cores


def test_a_config_survives_being_written_out():
    assert build(DeepCNNConfig, to_dict(deep(dims=1))) == deep(dims=1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channels": 0}, "config.channels: must be at least 1, got 0"),
        ({"depth": 0}, "config.depth: must be at least 1, got 0"),
        ({"kernel": 2}, "config.kernel: must be odd and positive, got 2"),
        ({"kernel": -1}, "config.kernel: must be odd and positive, got -1"),
        ({"dims": 3}, 'config.dims: unknown choice "3"'),
        ({"product": "roll"}, 'config.product: unknown choice "roll"; did you mean "rolls"?'),
        ({"q": -1.0}, "config.q: must be positive, got -1.0"),
        ({"sparsifier": {"name": "top_k", "k": 4}}, "config.sparsifier: TopK acts on a whole token"),
    ],
)
def test_impossible_settings_are_refused_by_name(changes, message):
    section = {"channels": 8, "depth": 2, "sparsifier": {"name": "relu"}}
    with pytest.raises(ConfigError) as caught:
        build(DeepCNNConfig, section | changes)
    assert str(caught.value).startswith(message)


def test_a_window_wider_than_the_image_is_refused():
    deep(kernel=5).check_input(SHAPE)
    with pytest.raises(ValueError, match=r"^kernel: 7 is wider than the 5 x 6 positions$"):
        deep(kernel=7).check_input(SHAPE)
    deep(kernel=7, dims=1).check_input(SHAPE)
    with pytest.raises(ValueError, match=r"^kernel: 31 is wider than the 30 positions$"):
        deep(kernel=31, dims=1).check_input(SHAPE)


def test_a_reduced_network_is_small_and_of_the_same_kind():
    big = deep(channels=300, depth=50, kernel=5, dims=1, input_gain=0.8, product="convolution")
    assert big.reduced(1) == dataclasses.replace(big, channels=8, depth=3)
    assert big.reduced(3).channels == 9
    assert deep(depth=1).reduced(1) == deep(depth=1)
