import dataclasses
import functools
import io

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from sparsity.config import ConfigError, build, to_dict
from sparsity.evals.sparsity import by_layer, merge, nonzero_fraction
from sparsity.layers.noise import NOISE
from sparsity.layers.sparsify import ACTIVATIONS, STATS, Context
from sparsity.models.alexnet import AlexNetConfig, Layer
from sparsity.ops.noise import Gaussian
from sparsity.ops.sparsifiers import Gelu, Relu, SoftThreshold
from sparsity.run import Workdir, run, run_config, smoke
from sparsity.spmd import MeshConfig, make_mesh, param_specs, shardings
from sparsity.train.losses import LOSSES
from sparsity.writer import Progress

SHAPE, CLASSES = (9, 11, 2), 3
IMAGES = jnp.asarray(np.random.default_rng(0).normal(size=(4, *SHAPE)), jnp.float32)
LABELS = {"label": jnp.arange(4) % CLASSES}


def alexnet(**changes):
    settings = {"sparsifier": Relu(), "channels": (4, 8, 12, 8, 4), "widths": (16, 8), "stride": 1}
    return AlexNetConfig(**settings | changes)


def boxed(config, images=IMAGES):
    return jax.eval_shape(config.build(CLASSES).init, jax.random.key(0), images, Context())["params"]


def randomised(config, images=IMAGES):
    """Random parameters of every leaf, those included that start at zero, kernels as He et al. would have them."""
    rng = np.random.default_rng(1)
    deviation = lambda p: (2 / np.prod(p.shape[:-1])) ** 0.5 if p.ndim > 1 else 0.2
    draw = lambda p: jnp.asarray(rng.normal(0, deviation(p), p.shape), p.dtype)
    return {"params": jax.tree.map(draw, flax.core.meta.unbox(boxed(config, images)))}


def forward(config, variables, images=IMAGES, rngs=None, **ctx):
    """Logits, and what was recorded or handed out."""
    apply = config.build(CLASSES).apply
    call = lambda v, x: apply(v, x, Context(**ctx), rngs=rngs, mutable=[STATS, ACTIVATIONS])
    return jax.jit(call)(variables, images)


def convolve(x, p, stride):
    """Cross-correlation with zeros around, by loops over positions, in float64."""
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    rows, columns = range(0, x.shape[1], stride), range(0, x.shape[2], stride)
    at = lambda i, j: np.tensordot(padded[:, i : i + 3, j : j + 3], p["kernel"], 3)
    return np.stack([np.stack([at(i, j) for j in columns], 1) for i in rows], 1) + p["bias"]


def pool(x, reduce):
    rows, columns = x.shape[1] // 2, x.shape[2] // 2
    x = x[:, : 2 * rows, : 2 * columns].reshape(len(x), rows, 2, columns, 2, -1)
    return reduce(x, axis=(2, 4))


def reference(config, variables, images=IMAGES):
    """Logits and every layer's h, in numpy float64."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), variables["params"])
    reduce = {"max": np.max, "average": np.mean}[config.pooling]
    h, all_h = np.asarray(images, np.float64), []
    for i in range(5):
        all_h.append(config.sparsifier(convolve(h, p[f"conv_{i}"]["conv"], config.stride if i == 0 else 1), np))
        h = pool(all_h[-1], reduce) if i in (0, 1, 4) else all_h[-1]
    h = h.reshape(len(h), -1)
    for i in range(2):
        dense = p[f"dense_{i}"]["dense"]
        h = config.sparsifier(h @ dense["kernel"] + dense["bias"], np)
        all_h.append(h)
    return h @ p["head"]["kernel"] + p["head"]["bias"], all_h


@pytest.mark.parametrize(
    "changes",
    [{}, {"pooling": "average"}, {"stride": 2, "sparsifier": Gelu()}, {"sparsifier": SoftThreshold(tau=0.1)}],
    ids=["max", "average", "stride", "soft_threshold"],
)
def test_the_logits_are_the_formula(changes):
    config = alexnet(**changes)
    images = jnp.tile(IMAGES, (1, 2, 2, 1)) if config.stride == 2 else IMAGES
    variables = randomised(config, images)
    expected, _ = reference(config, variables, images)
    # Eight float32 products deep.
    np.testing.assert_allclose(forward(config, variables, images)[0], expected, rtol=1e-4, atol=1e-4)


def test_the_default_is_the_variant_of_23_272_266_parameters_on_cifar10():
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    params = jax.eval_shape(AlexNetConfig(Relu()).build(10).init, jax.random.key(0), image, Context())
    assert sum(p.size for p in jax.tree.leaves(params)) == 23_272_266


def test_the_number_of_parameters_is_the_formula():
    # 9x11 is pooled to 4x5, 2x2 and 1x1: the dense layers read 1 x 1 x 4 numbers.
    convolutions = sum(9 * a * b + b for a, b in ((2, 4), (4, 8), (8, 12), (12, 8), (8, 4)))
    expected = convolutions + (4 * 16 + 16) + (16 * 8 + 8) + (8 * CLASSES + CLASSES)
    assert sum(p.size for p in jax.tree.leaves(boxed(alexnet()))) == expected


@pytest.mark.parametrize("pooling", ["max", "average"])
def test_poolings_by_hand(pooling):
    """With windows that only copy, conv_1 reads what is left of conv_0's h."""
    config = alexnet(channels=(1,) * 5, pooling=pooling)
    image = np.zeros((1, 8, 8, 1), np.float32)
    image[0, :3, :4, 0] = [[1, 2, 8, -4], [-3, -4, 0, 4], [5, 6, 7, 8]]
    variables = jax.tree.map(jnp.zeros_like, randomised(config, image))
    for i in range(5):
        copy = variables["params"][f"conv_{i}"]["conv"]
        copy["kernel"] = copy["kernel"].at[1, 1].set(1.0)
    _, handed_out = forward(config, variables, image, hand_out=True)
    z = handed_out[ACTIVATIONS]["conv_1"]["sparsify"]["stats"].z
    # Of h, that is after ReLU: negative numbers count as 0 in the mean.
    expected = {"max": [[2, 8], [6, 8]], "average": [[0.75, 3], [2.75, 3.75]]}[pooling]
    np.testing.assert_array_equal(z[0, :2, :2, 0], expected)


def test_every_layer_is_recorded_under_its_name_with_channels_as_units():
    config = alexnet(sparsifier=SoftThreshold(tau=0.2))
    variables = randomised(config)
    stats = merge([by_layer(forward(config, variables, record=True)[1][STATS])])
    assert tuple(stats) == config.layers() == (*(f"conv_{i}" for i in range(5)), "dense_0", "dense_1")
    positions = dict(zip(config.layers(), (99, 20, 4, 4, 4, 1, 1), strict=True))
    units = dict(zip(config.layers(), (*config.channels, *config.widths), strict=True))
    for (name, one), h in zip(stats.items(), reference(config, variables)[1], strict=True):
        assert (one.examples, one.tokens) == (4, 4 * positions[name])
        assert one.fired_F.shape == (units[name],)
        np.testing.assert_array_equal(one.fired_F, (h != 0).reshape(-1, h.shape[-1]).sum(0))
        assert nonzero_fraction(one)[0] == pytest.approx((h != 0).mean(), rel=1e-6)
    assert config.tokens(SHAPE) == 1


def test_noise_stands_before_the_dense_layers_in_noisy_contexts_only():
    config = alexnet(channels=(4, 8, 12, 8, 512), noise=Gaussian(sigma=0.3))
    variables, apply = randomised(config), config.build(CLASSES).apply
    only_noise = lambda module, _: module.name == "noise"

    @functools.partial(jax.jit, static_argnames="noisy")
    def seen(seed, noisy):
        """What the first dense layer reads, the logits and the records."""
        rngs = {NOISE: jax.random.key(seed)} if noisy else None  # without noise no stream is needed
        ctx = Context(record=True, noisy=noisy)
        logits, out = apply(variables, IMAGES, ctx, rngs=rngs, mutable=True, capture_intermediates=only_noise)
        return out["intermediates"]["noise"]["__call__"][0], logits, by_layer(out[STATS])

    (clean, logits, stats), (noisy, noisy_logits, noisy_stats) = seen(1, noisy=False), seen(1, noisy=True)
    np.testing.assert_allclose(logits, forward(dataclasses.replace(config, noise=None), variables)[0], rtol=1e-5)
    assert clean.shape == (4, 512)
    difference = np.asarray(noisy - clean, np.float64)
    # 2,048 numbers: 4 standard errors of the mean and of the deviation.
    assert abs(difference.mean()) < 4 * 0.3 / 2048**0.5
    assert difference.std() == pytest.approx(0.3, rel=4 / (2 * 2048) ** 0.5)
    assert not np.allclose(noisy_logits, logits)
    for i in range(5):  # in front of it nothing has changed
        np.testing.assert_allclose(noisy_stats[f"conv_{i}"].size_F, stats[f"conv_{i}"].size_F, rtol=1e-5)
    assert not np.allclose(noisy, seen(2, noisy=True)[0])


def test_dropout_acts_in_training_only():
    config = alexnet(dropout=0.5)
    variables = randomised(config)
    plain, _ = forward(alexnet(), variables)
    np.testing.assert_array_equal(forward(config, variables)[0], plain)
    trained, _ = forward(config, variables, rngs={"dropout": jax.random.key(0)}, train=True)
    assert not np.allclose(trained, plain)


@pytest.mark.parametrize("init", ["torch", "xavier", "he"])
@pytest.mark.parametrize("shape", [(1, 4, 4, 48), (1, 400)], ids=["convolution", "matrix"])
def test_weights_start_from_the_named_distribution(init, shape):
    layer = Layer(alexnet(init=init), features=64)
    variables = layer.init(jax.random.key(0), jnp.zeros(shape), Context())
    (p,) = jax.tree.map(lambda x: np.asarray(x, np.float64), flax.core.meta.unbox(variables)["params"]).values()
    window = 9 if len(shape) == 4 else 1
    fan_in, fan_out = window * shape[-1], window * 64
    variance = {"torch": 1 / (3 * fan_in), "xavier": 2 / (fan_in + fan_out), "he": 2 / fan_in}[init]
    # 25,600 numbers or more: 4 standard errors of a normal's variance; a uniform's is nearer.
    assert p["kernel"].var() == pytest.approx(variance, rel=4 * (2 / p["kernel"].size) ** 0.5)
    assert (abs(p["kernel"]).max() > (3 * variance) ** 0.5) == (init == "he")
    if init == "torch":
        assert 0.8 * fan_in**-0.5 < abs(p["bias"]).max() <= fan_in**-0.5
    else:
        assert (p["bias"] == 0).all()


def test_the_head_starts_as_the_layers_do():
    init = alexnet().build(CLASSES).init
    head = jax.jit(lambda: flax.core.meta.unbox(init(jax.random.key(0), IMAGES, Context()))["params"]["head"])()
    assert 0.8 * 8**-0.5 < abs(head["kernel"]).max() <= 8**-0.5
    assert 0 < abs(head["bias"]).max() <= 8**-0.5


def loss(variables):
    logits = alexnet().build(CLASSES).apply(variables, IMAGES, Context())
    return LOSSES["classification"](logits, LABELS).loss.sum()


@pytest.fixture(scope="module")
def gradient():
    """Parameters, and the loss and its gradient there, on one device."""
    variables = randomised(alexnet())
    return variables, jax.jit(jax.value_and_grad(loss))(variables)


def test_gradients_reach_every_parameter(gradient):
    for path, g in jax.tree_util.tree_leaves_with_path(gradient[1][1]):
        assert np.isfinite(g).all()
        assert (g != 0).any(), path


def test_parameters_are_sharded_over_channels_and_units():
    specs = jax.tree.map(tuple, param_specs(boxed(alexnet())), is_leaf=lambda s: hasattr(s, "index"))
    convolution = {"conv": {"kernel": (None, None, None, "model"), "bias": ("model",)}}
    matrix = {"dense": {"kernel": (None, "model"), "bias": ("model",)}}
    head = {"kernel": (None, None), "bias": (None,)}
    assert specs == {f"conv_{i}": convolution for i in range(5)} | {
        "dense_0": matrix,
        "dense_1": matrix,
        "head": head,
    }


def test_a_mesh_changes_nothing_but_the_rounding(gradient):
    variables, expected = gradient
    mesh = make_mesh(MeshConfig(2, 4))
    placed = jax.device_put(variables, {"params": shardings(mesh, param_specs(boxed(alexnet())))})
    with jax.set_mesh(mesh):
        lowered = jax.jit(jax.value_and_grad(loss)).lower(placed)
        assert "sharding_constraint" in lowered.as_text()
        found = lowered.compile()(placed)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, expected)


def test_flops_by_hand():
    config, shape = alexnet(stride=2), (17, 32, 2)
    # 9x16, pooled to 4x8, pooled to 2x4, pooled to 1x2: the dense layers read 2 x 4 numbers.
    convolutions = [2 * n * 9 * a * b for n, a, b in ((144, 2, 4), (32, 4, 8), (8, 8, 12), (8, 12, 8), (8, 8, 4))]
    matrices = [2 * a * b for a, b in ((2 * 4, 16), (16, 8), (8, CLASSES))]
    assert config.flops(shape, CLASSES) == sum(convolutions) + sum(matrices)
    saved = {"conv_2": convolutions[3], "conv_3": convolutions[4], "dense_0": matrices[1], "dense_1": matrices[2]}
    assert config.skippable_flops(shape, CLASSES) == dict.fromkeys(("conv_0", "conv_1", "conv_4"), 0.0) | saved
    density = dict.fromkeys(config.layers(), 0.25) | {"conv_3": 0.5}
    sparse = sum(convolutions) + sum(matrices) - 0.75 * sum(saved.values()) + 0.25 * convolutions[4]
    assert config.flops(shape, CLASSES, density) == pytest.approx(sparse, rel=1e-14)


def test_the_shapes_that_flops_count_are_those_of_the_network():
    config, shape = alexnet(stride=2), (17, 32, 2)
    image = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    assert boxed(config, image)["dense_0"]["dense"]["kernel"].value.shape == (8, 16)


@pytest.mark.parametrize(("stride", "least"), [(1, 8), (2, 15), (3, 22)])
def test_images_that_are_pooled_away_are_refused(stride, least):
    config = alexnet(stride=stride)
    config.check_input((least, least, 3))
    image = jax.ShapeDtypeStruct((1, least, least, 3), jnp.float32)
    assert boxed(config, image)["dense_0"]["dense"]["kernel"].value.shape == (4, 16)  # one position is left
    message = rf"^stride: {stride} takes images of {least}x{least} and more, not 40x{least - 1}$"
    with pytest.raises(ValueError, match=message):
        config.check_input((40, least - 1, 3))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channels": (8, 8, 8, 8)}, "config.channels: must be 5 numbers, at least 1 each, got (8, 8, 8, 8)"),
        ({"channels": (8, 8, 0, 8, 8)}, "config.channels: must be 5 numbers, at least 1 each, got (8, 8, 0, 8, 8)"),
        ({"widths": (8, -1)}, "config.widths: must be 2 numbers, at least 1 each, got (8, -1)"),
        ({"widths": ()}, "config.widths: must be 2 numbers, at least 1 each, got ()"),
        ({"stride": 0}, "config.stride: must be at least 1, got 0"),
        ({"dropout": 1.0}, "config.dropout: must be in [0, 1), got 1.0"),
        ({"pooling": "mean"}, 'config.pooling: unknown choice "mean"; valid: average, max'),
        ({"init": "hee"}, 'config.init: unknown choice "hee"; did you mean "he"?'),
        ({"sparsifier": {"name": "top_k", "k": 2}}, "config.sparsifier: TopK does not act on each unit alone"),
        ({"noise": {"name": "gaussian", "sigma": -1.0}}, "config.noise.sigma: must be at least 0, got -1.0"),
    ],
)
def test_impossible_settings_are_refused_by_name(changes, message):
    with pytest.raises(ConfigError) as caught:
        build(AlexNetConfig, {"sparsifier": {"name": "relu"}} | changes)
    assert str(caught.value) == message


def test_a_config_survives_being_written_out():
    config = alexnet(noise=Gaussian(sigma=0.5), pooling="average", dropout=0.5)
    assert build(AlexNetConfig, to_dict(config)) == config


def test_a_reduced_network_is_small_and_of_the_same_kind():
    big = AlexNetConfig(SoftThreshold(tau=0.3), noise=Gaussian(sigma=1.0), dropout=0.5, pooling="average")
    assert big.reduced(1) == dataclasses.replace(big, channels=(8,) * 5, widths=(16, 16))
    assert big.reduced(3) == dataclasses.replace(big, channels=(9,) * 5, widths=(18, 18))
    assert alexnet(channels=(1, 2, 3, 4, 5)).reduced(1).channels == (1, 2, 3, 4, 5)


def test_a_smoke_run_trains_and_evaluates_it(tiny_config, tmp_path):
    noise = {"name": "gaussian", "sigma": 0.5}
    settings = {"name": "alexnet", "sparsifier": {"name": "relu"}, "stride": 1, "dropout": 0.5, "noise": noise}
    tiny_config.model, tiny_config.noise = ConfigDict(settings), ConfigDict(noise)
    tiny_config.evals.names = ("accuracy", "sparsity", "neurons", "cost")
    outcome = run(smoke(run_config(tiny_config)), tmp_path, Progress(io.StringIO()))
    assert (outcome.status, outcome.step) == ("finished", 2)
    found = {m.name for m in outcome.measures}
    assert {f"nonzero.{name}" for name in Workdir(tmp_path).saved_config().model.layers()} <= found


def test_images_too_small_for_a_run_are_refused_before_anything_is_built(tiny_config):
    tiny_config.model = ConfigDict({"name": "alexnet", "sparsifier": {"name": "relu"}})
    with pytest.raises(ConfigError, match=r"^config\.model\.stride: 2 takes images of 15x15 and more, not 8x8$"):
        run_config(tiny_config)
