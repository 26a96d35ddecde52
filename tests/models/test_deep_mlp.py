import dataclasses
import math
import time

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sparsity.config import ConfigError, build, to_dict
from sparsity.evals.sparsity import by_layer, merge, nonzero_fraction
from sparsity.layers.sparsify import STATS, Context
from sparsity.models.deep_mlp import DeepMLPConfig
from sparsity.ops.sparsifiers import ClippedRelu, ClippedSoftThreshold, Relu
from sparsity.spmd import MeshConfig, make_mesh
from sparsity.theory.edge_of_chaos import BifurcationWarning
from sparsity.train.losses import LOSSES
from sparsity.train.state import init_state
from sparsity.train.step import Objective, gradients, make_train_step

SHAPE, CLASSES = (3, 4, 2), 5
IMAGES = jnp.asarray(np.random.default_rng(0).normal(size=(6, *SHAPE)), jnp.float32)
SPARSE = ClippedRelu(sparsity=0.8, slope=0.7)


def deep(**changes):
    return DeepMLPConfig(**{"width": 16, "depth": 4, "sparsifier": SPARSE} | changes)


def fresh(config, seed=0):
    model = config.build(CLASSES)
    return flax.core.meta.unbox(jax.jit(model.init)(jax.random.key(seed), IMAGES, Context()))


def forward(config, variables, **ctx):
    apply = config.build(CLASSES).apply
    return jax.jit(lambda v, x: apply(v, x, Context(**ctx), mutable=[STATS]))(variables, IMAGES)


def reference(config, variables):
    """Logits, and h of every layer, unrolled in numpy float64."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), variables["params"])
    h = config.sparsifier(np.asarray(IMAGES, np.float64).reshape(6, -1) @ p["input"]["kernel"] + p["input"]["bias"], np)
    all_h = [h]
    for i in range(config.depth - 1):
        h = config.sparsifier(h @ p["layers"]["dense"]["kernel"][i] + p["layers"]["dense"]["bias"][i], np)
        all_h.append(h)
    return config.logit_scale * (h @ p["head"]["kernel"] + p["head"]["bias"]), all_h


@pytest.mark.parametrize("changes", [{}, {"depth": 2}, {"logit_scale": 0.3}, {"sparsifier": Relu()}], ids=str)
def test_the_logits_are_those_of_the_unrolled_network(changes):
    config = deep(**changes)
    variables = fresh(config)
    np.testing.assert_allclose(forward(config, variables)[0], reference(config, variables)[0], rtol=1e-4, atol=1e-5)


def test_one_hidden_layer_has_nothing_to_scan():
    config = deep(depth=1)
    variables = fresh(config)
    assert variables["params"].keys() == {"input", "head"}
    assert config.layers() == ("first",)
    p = variables["params"]
    h = config.sparsifier(IMAGES.reshape(6, -1) @ p["input"]["kernel"])
    np.testing.assert_allclose(forward(config, variables)[0], h @ p["head"]["kernel"] + p["head"]["bias"], rtol=1e-5)


def test_the_number_of_parameters_is_the_formula():
    n, inputs = 16, math.prod(SHAPE)
    expected = (inputs * n + n) + 3 * (n * n + n) + (n * CLASSES + CLASSES)
    assert sum(p.size for p in jax.tree.leaves(fresh(deep()))) == expected


def test_layers_start_with_weights_of_their_own_on_the_edge_of_chaos():
    config = deep(width=200, depth=6)
    p, edge = fresh(config)["params"], config.edge
    kernels = np.asarray(p["layers"]["dense"]["kernel"], np.float64)
    assert kernels.shape == (5, 200, 200)
    # 200,000 and 1,000 draws: relative errors of the variance of 0.3% and 4.5%; four times that.
    assert kernels.var() == pytest.approx(edge.sigma_w2 / 200, rel=0.013)
    assert np.var(p["layers"]["dense"]["bias"]) == pytest.approx(edge.sigma_b2, rel=0.18)
    assert np.var(p["input"]["kernel"]) == pytest.approx(1 / 24, rel=0.09)
    np.testing.assert_array_equal(p["input"]["bias"], 0)
    assert len({float(k[0, 0]) for k in kernels}) == 5


def test_the_first_layer_preserves_or_scales_the_variance_of_the_input():
    for gain in (1.0, 4.0):
        config = deep(width=4000, depth=1, input_gain=gain)
        z = IMAGES.reshape(6, -1) @ fresh(config)["params"]["input"]["kernel"]
        ratio = np.mean(np.asarray(z) ** 2, -1) / np.mean(np.asarray(IMAGES) ** 2, (1, 2, 3))
        # 4,000 units: a relative error of 2.2%, four times that.
        np.testing.assert_allclose(ratio, gain, rtol=0.09)


def test_a_larger_q_is_a_pure_rescale_if_everything_scales():
    """Same weights, biases and inputs times sqrt(q): activations times sqrt(q), and logits undone by logit_scale."""
    one, root = deep(), 2.0
    four = deep(sparsifier=ClippedRelu(sparsity=0.8, slope=0.7, q=4.0), q=4.0, logit_scale=1 / root)
    assert four.edge.sigma_w2 == pytest.approx(one.edge.sigma_w2, rel=1e-8)
    assert four.edge.sigma_b2 == pytest.approx(4 * one.edge.sigma_b2, rel=1e-8)
    variables = fresh(one)
    scale = lambda path, p: root * p if path[-1].key == "bias" else p
    scaled = jax.tree_util.tree_map_with_path(scale, variables)
    images = forward(one, variables)[0]
    apply = jax.jit(lambda v, x: four.build(CLASSES).apply(v, x, Context()))
    np.testing.assert_allclose(apply(scaled, root * IMAGES), images, rtol=1e-4, atol=1e-5)


def test_every_layer_is_recorded_under_its_name_in_order():
    config = deep(depth=13)
    variables = fresh(config)
    stats = merge([by_layer(forward(config, variables, record=True)[1][STATS])])
    assert tuple(stats) == config.layers() == ("first", *(f"layers_{i}" for i in range(12)))
    for one, h in zip(stats.values(), reference(config, variables)[1], strict=True):
        assert nonzero_fraction(one)[0] == pytest.approx((h != 0).mean(), rel=1e-6)
        np.testing.assert_array_equal(one.fired_F, (h != 0).sum(0))
        assert (one.examples, one.tokens) == (6, 6)
    assert STATS not in forward(config, variables)[1]


@pytest.mark.parametrize("depth", [3, 50])
def test_gradients_are_finite_and_reach_every_layer(depth):
    config = deep(width=64, depth=depth)
    model, variables = config.build(CLASSES), fresh(deep(width=64, depth=depth))
    loss = lambda p: LOSSES[config.task](
        model.apply({"params": p}, IMAGES, Context()), {"label": jnp.arange(6) % 5}
    ).loss.sum()
    grads = jax.jit(jax.grad(loss))(variables["params"])
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    norms = np.linalg.norm(grads["layers"]["dense"]["kernel"], axis=(1, 2))
    assert (norms > 0).all()


def trained(config, mesh, steps=2, accumulate=1):
    tx, images = optax.sgd(1e-2), np.tile(np.asarray(IMAGES[:4]), (2, 1, 1, 1))
    model = config.build(CLASSES)
    state, placed = init_state(model, tx, mesh, 0, (images[:1],))
    compute = gradients(Objective(model, config, LOSSES[config.task], seed=0), True, accumulate)
    step = make_train_step(compute, tx, lambda t: 1e-2, mesh, placed)
    with jax.set_mesh(mesh):
        for _ in range(steps):
            state, metrics, stats = step(state, {"image": images, "label": np.arange(8) % CLASSES})
    return state, metrics, stats, placed


def test_parameters_are_sharded_over_units_and_training_gives_the_same_numbers():
    config = deep()
    one, *_ = trained(config, make_mesh(MeshConfig(1, 1), jax.devices()[:1]))
    other, _, _, placed = trained(config, make_mesh(MeshConfig(2, 4)))
    specs = jax.tree.map(lambda s: tuple(s.spec), placed.params)
    assert specs == {
        "input": {"kernel": (None, "model"), "bias": ("model",)},
        "layers": {"dense": {"kernel": (None, None, "model"), "bias": (None, "model")}},
        "head": {"kernel": (None, None), "bias": (None,)},
    }
    kernel = other.params["layers"]["dense"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (3, 16, 4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), one.params, other.params)


def test_accumulated_microbatches_record_every_layer_of_the_scan():
    mesh = make_mesh(MeshConfig(1, 1), jax.devices()[:1])
    whole, split = (merge([by_layer(trained(deep(), mesh, 1, n)[2].sparsity)]) for n in (1, 2))
    assert whole.keys() == split.keys()
    for a, b in zip(whole.values(), split.values(), strict=True):
        assert (a.examples, float(a.fraction_sum)) == (b.examples, pytest.approx(float(b.fraction_sum), rel=1e-6))


def test_the_first_step_at_depth_100_and_width_300_compiles_within_20_seconds():
    start = time.monotonic()
    state, metrics, _, _ = trained(deep(width=300, depth=100), make_mesh(MeshConfig(1, 1), jax.devices()[:1]), steps=1)
    assert bool(jax.block_until_ready(metrics.finite))
    assert time.monotonic() - start < 20  # 4 s on two cores
    assert sum(p.size for p in jax.tree.leaves(state.params["layers"])) == 99 * (300 * 300 + 300)


def test_flops_by_hand():
    config = deep(depth=3)
    assert config.flops(SHAPE, CLASSES) == 2 * (24 * 16 + 2 * 16 * 16 + 16 * 5)
    assert config.skippable_flops(SHAPE, CLASSES) == {"first": 512.0, "layers_0": 512.0, "layers_1": 160.0}
    density = {"first": 0.5, "layers_0": 0.25, "layers_1": 0.0}
    assert config.flops(SHAPE, CLASSES, density) == 2 * 24 * 16 + 256 + 128
    assert config.tokens(SHAPE) == 1
    with pytest.raises(ValueError, match=r"^density: must be in \[0, 1\], got nan$"):
        config.flops(SHAPE, CLASSES, density | {"first": float("nan")})


def test_any_elementwise_sparsifier_of_the_table_serves():
    for section in ({"name": "tanh"}, {"name": "smooth_clipped_relu", "sparsity": 0.7, "slope": 0.6, "width": 0.1}):
        config = build(DeepMLPConfig, {"width": 8, "depth": 3, "sparsifier": section})
        assert np.isfinite(forward(config, fresh(config))[0]).all()


def test_a_config_survives_being_written_out():
    assert build(DeepMLPConfig, to_dict(deep())) == deep()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 0}, "config.width: must be at least 1, got 0"),
        ({"depth": 0}, "config.depth: must be at least 1, got 0"),
        ({"q": 0.0}, "config.q: must be positive, got 0.0"),
        ({"input_gain": -1.0}, "config.input_gain: must be positive, got -1.0"),
        ({"logit_scale": 0.0}, "config.logit_scale: must be positive, got 0.0"),
        ({"q": 2.0}, "config.q: the network's 2.0 is not the 1.0 that its sparsifier was made for"),
        ({"sparsifier": {"name": "top_k", "k": 4}}, "config.sparsifier: TopK acts on a whole token"),
        ({"sparsifier": {"name": "sigmoid"}}, "config.q: chi_1(1) = 1 and V(1) = 1 need a negative bias variance"),
    ],
)
def test_impossible_settings_are_refused_by_name(changes, message):
    section = {"width": 8, "depth": 2, "sparsifier": {"name": "clipped_relu", "sparsity": 0.8, "slope": 0.7}}
    with pytest.raises(ConfigError) as caught:
        build(DeepMLPConfig, section | changes)
    assert str(caught.value).startswith(message)


def test_a_network_above_the_bifurcation_warns_and_is_built():
    with pytest.warns(BifurcationWarning):
        config = deep(sparsifier=ClippedSoftThreshold(sparsity=0.8, slope=0.9))
    assert len(config.edge.fixed_points) == 3  # asked again, it does not warn again
    assert np.isfinite(forward(config, fresh(config))[0]).all()


def test_a_reduced_network_is_small_and_of_the_same_kind():
    big = deep(width=300, depth=100, q=4.0, sparsifier=Relu(), input_gain=0.8, logit_scale=0.5)
    assert big.reduced(1) == dataclasses.replace(big, width=16, depth=3)
    assert big.reduced(3).width == 18
    assert deep(depth=1).reduced(1) == deep(depth=1)
