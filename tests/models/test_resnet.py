import dataclasses

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.signal import correlate

from sparsity import recipes
from sparsity.config import ConfigError, build
from sparsity.evals.sparsity import by_layer
from sparsity.layers.sparsify import STATS, Context
from sparsity.models.resnet import ResNetConfig
from sparsity.ops.sparsifiers import ClippedRelu, Relu, TopK

CLASSES = 5
IMAGES = jnp.asarray(np.random.default_rng(0).normal(size=(2, 12, 8, 3)), jnp.float32)


def resnet(**changes):
    return ResNetConfig(**{"sparsifier": Relu(), "blocks": (1, 2), "width": 4, "stem": "small"} | changes)


def randomised(config, images=IMAGES):
    """Random parameters and running statistics of every leaf; variances are positive."""
    shapes = flax.core.meta.unbox(jax.eval_shape(config.build(CLASSES).init, jax.random.key(0), images, Context()))
    rng = np.random.default_rng(1)

    def one(path, leaf):
        draw = rng.normal(0, 0.3, leaf.shape)
        return jnp.asarray(np.abs(draw) + 0.5 if "var" in jax.tree_util.keystr(path) else draw, leaf.dtype)

    return jax.tree_util.tree_map_with_path(one, shapes)


def forward(config, variables, images=IMAGES, **ctx):
    apply, context = config.build(CLASSES).apply, Context(**ctx)
    return jax.jit(lambda v, x: apply(v, x, context, mutable=[STATS]))(variables, images)


def conv(p, x, stride):
    """Cross-correlation with zeros around, channel by channel, in float64."""
    kernel = np.asarray(p["kernel"], np.float64)
    k = len(kernel)
    x = np.pad(x, ((0, 0), (k // 2, k // 2), (k // 2, k // 2), (0, 0)))
    out = [[correlate(image, kernel[..., f], "valid")[..., 0] for f in range(kernel.shape[-1])] for image in x]
    return np.moveaxis(np.array(out), 1, -1)[:, ::stride, ::stride]


def norm(p, s, x):
    p, s = ({k: np.asarray(v, np.float64) for k, v in part.items()} for part in (p, s))
    return (x - s["mean"]) / np.sqrt(s["var"] + 1e-5) * p["scale"] + p["bias"]


def reference(config, variables):
    """The whole forward pass in numpy float64 with the running statistics, after He et al.'s description."""
    p, s = variables["params"], variables["batch_stats"]
    relu = lambda z: np.maximum(z, 0)
    large = config.stem == "imagenet"
    h = relu(norm(p["norm"], s["norm"], conv(p["conv"], np.asarray(IMAGES, np.float64), 2 if large else 1)))
    if large:
        padded = np.pad(h, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
        rows, columns = -(-h.shape[1] // 2), -(-h.shape[2] // 2)
        pool = lambda i, j: padded[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3].max((1, 2))
        h = np.stack([np.stack([pool(i, j) for j in range(columns)], 1) for i in range(rows)], 1)
    for i, (_, stride) in enumerate(config.stages()):
        block, stats = p[f"block_{i}"], s[f"block_{i}"]
        strides = [stride, 1] if config.block == "basic" else [1, stride, 1]
        z = h
        for j, by in enumerate(strides):
            z = norm(block[f"norm_{j}"], stats[f"norm_{j}"], conv(block[f"conv_{j}"], relu(z) if j else z, by))
        if "shortcut" in block:
            h = norm(block["norm_shortcut"], stats["norm_shortcut"], conv(block["shortcut"], h, stride))
        h = relu(z + h)
    return h.mean((1, 2)) @ np.asarray(p["head"]["kernel"], np.float64) + np.asarray(p["head"]["bias"])


@pytest.mark.parametrize("stem", ["small", "imagenet"])
@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_the_logits_are_the_formula(block, stem):
    config = resnet(block=block, stem=stem)
    variables = randomised(config)
    expected = reference(config, variables)
    np.testing.assert_allclose(forward(config, variables)[0], expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize(("depth", "count"), [(18, 11_689_512), (50, 25_557_032)])
def test_sizes_have_the_parameters_of_the_published_ones(depth, count):
    """torchvision's resnet18 and resnet50."""
    config = build(ResNetConfig, {k: v for k, v in recipes.resnet_model(depth).items() if k != "name"})
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    params = jax.eval_shape(config.build(1000).init, jax.random.key(0), image, Context())["params"]
    assert sum(p.size for p in jax.tree.leaves(params)) == count


@pytest.mark.parametrize(("depth", "billions"), [(18, 1.814), (50, 4.089)])
def test_flops_are_the_published_ones(depth, billions):
    """torchvision prints 1.81 and 4.09 GFLOPS, of multiply-adds, at 224 pixels."""
    config = build(ResNetConfig, {k: v for k, v in recipes.resnet_model(depth).items() if k != "name"})
    assert config.flops((224, 224, 3), 1000) / 2e9 == pytest.approx(billions, abs=0.001)


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_every_relu_is_recorded_by_its_name(block):
    config = resnet(block=block)
    stats = by_layer(forward(config, randomised(config), record=True)[1][STATS])
    assert set(stats) == set(config.layers()) == set(config.skippable_flops((12, 8, 3), CLASSES))
    # Stem and first stage have 12 x 8 positions, the second stage 6 x 4.
    assert float(stats["stem"].tokens) == float(stats["block_0/inner_0"].tokens) == 2 * 96
    assert float(stats["block_2/output"].tokens) == 2 * 24
    outputs = 8 if block == "basic" else 32
    assert stats["block_2/output"].fired_F.shape == (outputs,)
    assert stats["block_2/inner_0"].fired_F.shape == (8,)


def test_training_moves_the_running_statistics_and_reads_the_batchs():
    config = resnet()
    variables = randomised(config)
    apply = config.build(CLASSES).apply
    logits, new = jax.jit(lambda v: apply(v, IMAGES, Context(train=True), mutable=["batch_stats"]))(variables)
    assert not np.allclose(logits, forward(config, variables)[0])
    old = variables["batch_stats"]["norm"]["mean"]
    assert (new["batch_stats"]["norm"]["mean"] != old).all()


def test_dense_flops_are_those_that_xla_counts():
    config = resnet(block="bottleneck", width=32, blocks=(1, 1))
    model, images = config.build(CLASSES), jax.ShapeDtypeStruct((4, 16, 16, 3), jnp.float32)
    variables = flax.core.meta.unbox(jax.eval_shape(model.init, jax.random.key(0), images, Context()))
    counted = jax.jit(lambda v, x: model.apply(v, x, Context())).lower(variables, images).cost_analysis()["flops"] / 4
    # XLA leaves the products with the zeros around the image out, and adds norms, ReLUs and sums.
    assert 0.85 < counted / config.flops((16, 16, 3), CLASSES) < 1.1


def test_zeros_save_what_reads_them():
    config, shape = resnet(), (12, 8, 3)
    saved = config.skippable_flops(shape, CLASSES)
    # Block 1 reads block 0's by its first convolution, 3x3 from 4 to 8 channels with stride 2, and by its shortcut.
    assert saved["block_0/output"] == 2 * 24 * (9 * 4 * 8 + 4 * 8)
    assert saved["block_0/inner_0"] == 2 * 96 * 9 * 4 * 4
    assert saved["block_2/output"] == 0  # its mean is taken
    assert resnet(stem="imagenet").skippable_flops(shape, CLASSES)["stem"] == 0  # it is pooled
    density = dict.fromkeys(config.layers(), 1.0) | {"block_0/output": 0.25}
    dense = config.flops(shape, CLASSES)
    assert dense - config.flops(shape, CLASSES, density) == pytest.approx(0.75 * saved["block_0/output"])


def test_a_reduced_resnet_is_small_and_of_the_same_kind():
    big = ResNetConfig(Relu(), "bottleneck", (3, 4, 6, 3))
    assert big.reduced(1) == dataclasses.replace(big, blocks=(1, 1), width=8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 0}, "config.width: must be at least 1, got 0"),
        ({"blocks": ()}, "config.blocks: at least one of each stage"),
        ({"blocks": (2, 0)}, "config.blocks: at least one of each stage"),
        ({"block": "bottlenek"}, 'config.block: unknown choice "bottlenek"; did you mean "bottleneck"?'),
        ({"sparsifier": {"name": "top_k", "k": 2}}, "config.sparsifier: TopK does not act on each unit alone"),
    ],
)
def test_impossible_settings_are_refused_by_name(changes, message):
    with pytest.raises(ConfigError) as caught:
        build(ResNetConfig, {"sparsifier": {"name": "relu"}} | changes)
    assert str(caught.value).startswith(message)


def test_a_depth_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="unknown ResNet 34; valid: 18, 50"):
        recipes.resnet_model(34)


def test_other_sparsifiers_take_the_relus_place():
    config = resnet(sparsifier=ClippedRelu(tau=0.0, m=0.1))
    variables = randomised(config)
    stats = by_layer(forward(config, variables, record=True)[1][STATS])
    assert all(float(np.max(s.size_F)) <= 0.1 * float(s.tokens) + 1e-4 for s in stats.values())
    assert TopK(k=1).elementwise is False
