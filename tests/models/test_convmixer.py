import dataclasses
import io

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from scipy.signal import correlate2d
from scipy.special import erf

from sparsity.checkpoint import Checkpoints
from sparsity.config import ConfigError, build, to_dict
from sparsity.evals.sparsity import by_layer, merge
from sparsity.layers.sparsify import STATS, Context
from sparsity.models.convmixer import ConvMixerConfig
from sparsity.ops.sparsifiers import Gelu, Relu, TopK
from sparsity.run import Engine, Workdir, run, run_config, smoke
from sparsity.spmd import MeshConfig, make_mesh, param_specs, shardings
from sparsity.train.losses import LOSSES
from sparsity.writer import Progress

SHAPE, CLASSES = (6, 8, 2), 3
IMAGES = jnp.asarray(np.random.default_rng(0).normal(size=(4, *SHAPE)), jnp.float32)
LABELS = {"label": jnp.arange(4) % CLASSES}
BATCH_STATS = "batch_stats"


def mixer(**changes):
    return ConvMixerConfig(**{"hidden": 8, "depth": 2, "sparsifier": Gelu(), "kernel": 5, "patch": 2} | changes)


def boxed(config, shape=SHAPE, classes=CLASSES):
    image = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    return jax.eval_shape(config.build(classes).init, jax.random.key(0), image, Context())


def count(config, shape=SHAPE, classes=CLASSES):
    return sum(p.size for p in jax.tree.leaves(boxed(config, shape, classes)["params"]))


def randomised(config):
    """Random values of every leaf, those included that start at zero or one; variances are positive."""
    rng = np.random.default_rng(1)

    def draw(path, leaf):
        size = rng.normal(0, 0.5, leaf.shape)
        return jnp.asarray(0.5 + abs(size) if path[-1].key == "var" else size, leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, flax.core.meta.unbox(boxed(config)))


def forward(config, variables, method=None, **ctx):
    """What comes out, and the collections that it changes."""
    apply = config.build(CLASSES).apply
    call = lambda v, x: apply(v, x, Context(**ctx), method=method, mutable=[STATS, BATCH_STATS])
    return jax.jit(call)(variables, IMAGES)


def normalise(h, p, running, train):
    mean, variance = (h.mean((0, 1, 2)), h.var((0, 1, 2))) if train else (running["mean"], running["var"])
    return (h - mean) / np.sqrt(variance + 1e-5) * p["scale"] + p["bias"], (mean, variance)


def depthwise(x, p):
    one = lambda image, f: correlate2d(image[..., f], p["kernel"][:, :, 0, f], mode="same")
    return np.stack([np.stack([one(image, f) for f in range(x.shape[-1])], -1) for image in x]) + p["bias"]


def reference(config, variables, train=False):
    """Logits, pooled features, and the mean and variance of every layer's h over the batch, in numpy float64."""
    variables = jax.tree.map(lambda x: np.asarray(x, np.float64), variables)
    p, running, moments = variables["params"], variables[BATCH_STATS], {}
    phi = lambda z: z * (1 + erf(z / np.sqrt(2))) / 2

    def after(name, z):
        y, moments[name] = normalise(phi(z), p[name]["norm"], running[name]["norm"], train)
        return y

    linear = lambda x, p: x @ p["kernel"] + p["bias"]
    side, images = config.patch, np.asarray(IMAGES, np.float64)
    rows, columns = SHAPE[0] // side, SHAPE[1] // side
    cut = lambda i, j: images[:, i * side : (i + 1) * side, j * side : (j + 1) * side].reshape(len(images), -1)
    x = np.stack([np.stack([cut(i, j) for j in range(columns)], 1) for i in range(rows)], 1)
    x = after("embed", linear(x, p["embed"]["dense"]))
    for i in range(config.depth):
        x = x + after(f"depthwise_{i}", depthwise(x, p[f"depthwise_{i}"]["conv"]))
        x = after(f"pointwise_{i}", linear(x, p[f"pointwise_{i}"]["dense"]))
    pooled = x.mean((1, 2))
    return linear(pooled, p["head"]), pooled, moments


@pytest.mark.parametrize(("kernel", "patch"), [(5, 2), (3, 1), (1, 2)])
def test_logits_and_pooled_features_are_the_formula(kernel, patch):
    config = mixer(kernel=kernel, patch=patch)
    variables = randomised(config)
    logits, pooled, _ = reference(config, variables)
    # Seven float32 products deep, with values of size 10.
    np.testing.assert_allclose(forward(config, variables)[0], logits, rtol=1e-4, atol=1e-4)
    if kernel == 5:
        found, _ = forward(config, variables, method="pooled")
        assert found.shape == (4, 8)
        np.testing.assert_allclose(found, pooled, rtol=1e-4, atol=1e-4)


def test_training_normalises_by_the_batch_and_moves_the_running_statistics():
    config = mixer()
    variables = randomised(config)
    logits, updates = forward(config, variables, train=True)
    expected, _, moments = reference(config, variables, train=True)
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-3)
    for name, (mean, variance) in moments.items():
        before, after = variables[BATCH_STATS][name]["norm"], updates[BATCH_STATS][name]["norm"]
        np.testing.assert_allclose(after["mean"], 0.9 * before["mean"] + 0.1 * mean, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(after["var"], 0.9 * before["var"] + 0.1 * variance, rtol=1e-3, atol=1e-4)
    _, unmoved = forward(config, variables)
    jax.tree.map(np.testing.assert_array_equal, unmoved[BATCH_STATS], variables[BATCH_STATS])


@pytest.mark.parametrize(
    ("config", "millions"),
    [(mixer(hidden=1536, depth=20, kernel=9, patch=7), 51.6), (mixer(hidden=768, depth=32, kernel=7, patch=7), 21.1)],
    ids=["1536/20", "768/32"],
)
def test_the_numbers_of_parameters_of_the_paper(config, millions):
    """Trockman & Kolter 2022, Table 1."""
    assert round(count(config, (224, 224, 3), 1000) / 1e6, 1) == millions


def test_the_network_of_the_latents_has_the_size_of_the_released_weights():
    """Bricken et al. release 3.4 MB: float32 parameters and running statistics, trained on ImageNet32."""
    config = mixer(hidden=256, depth=8)
    values = sum(x.size for x in jax.tree.leaves(boxed(config, (32, 32, 3), 1000)))
    assert round(4 * values / 1e6, 1) == 3.4


def test_the_number_of_parameters_is_the_formula():
    f, norm = 8, 2 * 8
    block = (25 * f + f + norm) + (f * f + f + norm)
    assert count(mixer()) == (2 * 2 * 2 * f + f + norm) + 2 * block + (f * CLASSES + CLASSES)


def test_every_layer_is_recorded_under_its_name_with_channels_as_units():
    config = mixer(sparsifier=TopK(k=2), kernel=3)
    stats = merge([by_layer(forward(config, randomised(config), record=True)[1][STATS])])
    names = ("embed", "depthwise_0", "pointwise_0", "depthwise_1", "pointwise_1")
    assert config.layers() == names
    assert set(stats) == set(names)
    for one in stats.values():
        assert (one.examples, one.tokens) == (4, 4 * config.tokens(SHAPE))
        assert one.fired_F.shape == (8,)
        assert 0 < one.fired_F.sum() <= 2 * one.tokens  # Top-k over the channels of each patch


def loss_in_training(config):
    """(params, running statistics) -> ((loss, moved statistics), gradient)."""
    apply = config.build(CLASSES).apply

    def compute(params, running):
        variables = {"params": params, BATCH_STATS: running}
        logits, moved = apply(variables, IMAGES, Context(train=True), mutable=[BATCH_STATS])
        return LOSSES["classification"](logits, LABELS).loss.sum(), moved

    return jax.value_and_grad(compute, has_aux=True)


def test_parameters_are_sharded_over_channels():
    specs = jax.tree.map(tuple, param_specs(boxed(mixer())["params"]), is_leaf=lambda s: hasattr(s, "index"))
    norm = {"scale": ("model",), "bias": ("model",)}
    pointwise = {"dense": {"kernel": (None, "model"), "bias": ("model",)}, "norm": norm}
    convolution = {"conv": {"kernel": (None, None, None, "model"), "bias": ("model",)}, "norm": norm}
    assert specs == {
        "embed": pointwise,
        **{f"depthwise_{i}": convolution for i in range(2)},
        **{f"pointwise_{i}": pointwise for i in range(2)},
        "head": {"kernel": (None, None), "bias": (None,)},
    }


def test_gradients_reach_every_parameter_and_a_mesh_changes_nothing_but_the_rounding():
    """In training, so that the batch's mean and variance are taken over all devices."""
    config = mixer(depth=1, kernel=3)
    params, running = (randomised(config)[name] for name in ("params", BATCH_STATS))
    plain = jax.jit(loss_in_training(config))(params, running)
    for path, g in jax.tree_util.tree_leaves_with_path(plain[1]):
        assert np.isfinite(g).all()
        assert (g != 0).all(), path
    mesh = make_mesh(MeshConfig(2, 4))
    placed = jax.device_put(params, shardings(mesh, param_specs(boxed(config)["params"])))
    with jax.set_mesh(mesh):
        lowered = jax.jit(loss_in_training(config)).lower(placed, running)
        assert "sharding_constraint" in lowered.as_text()
        split = lowered.compile()(placed, running)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), split, plain)


def test_weights_start_from_torchs_distribution():
    variables = jax.jit(mixer().build(CLASSES).init)(jax.random.key(0), IMAGES, Context())
    p = flax.core.meta.unbox(variables["params"])
    fan_in = {"embed": 8, "depthwise_0": 25, "pointwise_0": 8, "depthwise_1": 25, "pointwise_1": 8}
    layers = [(p[name].get("conv") or p[name]["dense"], n) for name, n in fan_in.items()]
    for layer, n in [*layers, (p["head"], 8)]:
        assert 0.8 * n**-0.5 < abs(layer["kernel"]).max() <= n**-0.5
        assert 0 < abs(layer["bias"]).max() <= n**-0.5
    for name in fan_in:
        assert (p[name]["norm"]["scale"] == 1).all()
        assert (p[name]["norm"]["bias"] == 0).all()


def test_flops_by_hand():
    config = mixer()
    assert config.tokens(SHAPE) == 12
    expected = 2 * (2 * 2 * 2 * 8 + 2 * (25 * 8 + 8 * 8) + 8 * CLASSES / 12)
    assert config.flops(SHAPE, CLASSES) == pytest.approx(expected, rel=1e-15)
    density = dict.fromkeys(config.layers(), 0.1)
    assert config.flops(SHAPE, CLASSES, density) == config.flops(SHAPE, CLASSES)
    assert config.skippable_flops(SHAPE, CLASSES) == dict.fromkeys(config.layers(), 0.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden": 0}, "config.hidden: must be at least 1, got 0"),
        ({"depth": 0}, "config.depth: must be at least 1, got 0"),
        ({"patch": -1}, "config.patch: must be at least 1, got -1"),
        ({"kernel": 4}, "config.kernel: must be odd and positive, got 4"),
        ({"kernel": -1}, "config.kernel: must be odd and positive, got -1"),
        ({"sparsifier": {"name": "top_k", "k": 9}}, "config.sparsifier.k: 9 is more than the d_ff 8 units there are"),
    ],
)
def test_impossible_settings_are_refused_by_name(changes, message):
    with pytest.raises(ConfigError) as caught:
        build(ConvMixerConfig, {"hidden": 8, "depth": 2, "sparsifier": {"name": "gelu"}} | changes)
    assert str(caught.value) == message


@pytest.mark.parametrize("shape", [(5, 6, 3), (4, 7, 3)])
def test_images_that_the_patches_do_not_tile_are_refused(shape):
    mixer().check_input(SHAPE)
    with pytest.raises(ValueError, match=rf"^patch: 2 does not divide the image's {shape[0]}x{shape[1]} pixels$"):
        mixer().check_input(shape)


def test_a_config_survives_being_written_out():
    assert build(ConvMixerConfig, to_dict(mixer(sparsifier=TopK(k=2)))) == mixer(sparsifier=TopK(k=2))


def test_a_reduced_network_is_small_and_of_the_same_kind():
    big = mixer(hidden=256, depth=8, sparsifier=TopK(k=64), kernel=7)
    assert big.reduced(1) == dataclasses.replace(big, hidden=16, depth=2, sparsifier=TopK(k=4))
    assert big.reduced(3).hidden == 18
    assert mixer(hidden=4, depth=1, sparsifier=Relu()).reduced(1) == mixer(hidden=4, depth=1, sparsifier=Relu())


def test_a_smoke_run_trains_evaluates_and_keeps_its_running_statistics(tiny_config, tmp_path):
    settings = {"name": "convmixer", "hidden": 256, "depth": 8, "kernel": 3, "sparsifier": {"name": "gelu"}}
    tiny_config.model = ConfigDict(settings)
    tiny_config.evals.names = ("accuracy", "sparsity", "cost")
    outcome = run(smoke(run_config(tiny_config)), tmp_path, Progress(io.StringIO()))
    assert (outcome.status, outcome.step) == ("finished", 2)
    files = Workdir(tmp_path)
    assert {f"nonzero.{name}" for name in files.saved_config().model.layers()} <= {m.name for m in outcome.measures}
    with Checkpoints(files.checkpoints) as checkpoints:
        state = jax.device_get(Engine(files.saved_config()).restore(checkpoints))
    for layer in state.model_state[BATCH_STATS].values():
        assert (layer["norm"]["mean"] != 0).all()
        assert (layer["norm"]["var"] != 1).all()
