import dataclasses

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsity.config import ConfigError, build
from sparsity.evals.sparsity import by_layer
from sparsity.layers.noise import NOISE
from sparsity.layers.sparsify import ACTIVATIONS, STATS, Context
from sparsity.models.mlp import MLPClassifierConfig
from sparsity.ops.noise import Gaussian, LinearToZero
from sparsity.ops.sparsifiers import Relu, TopK

SHAPE, D, CLASSES = (2, 3, 1), 6, 3
IMAGES = jnp.asarray(np.random.default_rng(0).normal(size=(5, *SHAPE)), jnp.float32)
RELU = Relu()


def classifier(*widths, sparsifier=RELU, **settings):
    return MLPClassifierConfig(widths or (8, 4), sparsifier, **settings)


def fresh(config, images=IMAGES):
    return flax.core.meta.unbox(jax.jit(config.build(CLASSES).init)(jax.random.key(0), images, Context()))


def randomised(config):
    """Random parameters of every leaf, biases included."""
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda p: jnp.asarray(rng.normal(0, 0.5, p.shape), p.dtype), fresh(config))


def forward(config, variables, images=IMAGES, key=0, **ctx):
    ctx, rngs, apply = Context(**ctx), {NOISE: jax.random.key(key)}, config.build(CLASSES).apply
    return jax.jit(lambda v, x: apply(v, x, ctx, mutable=[STATS, ACTIVATIONS], rngs=rngs))(variables, images)


def pre_activations(config, variables, images=IMAGES, key=0, **ctx):
    """Of every layer, by its name."""
    handed = forward(config, variables, images, key, hand_out=True, **ctx)[1][ACTIVATIONS]
    return {name: np.asarray(layer["stats"].z, np.float64) for name, layer in handed.items()}


def reference(variables, phi):
    """Logits, and z of every hidden layer, in numpy float64."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), variables["params"])
    h, z = np.asarray(IMAGES, np.float64).reshape(5, -1), []
    for i in range(len(p) - 1):
        z.append(h @ p[f"dense_{i}"]["kernel"] + p[f"dense_{i}"]["bias"])
        h = phi(z[-1])
    return h @ p["head"]["kernel"] + p["head"]["bias"], z


def top_2(z):
    h = np.maximum(z, 0)
    return np.where(h >= np.sort(h, -1)[..., -2:-1], h, 0)


@pytest.mark.parametrize("widths", [(8,), (8, 4)])
@pytest.mark.parametrize(
    ("sparsifier", "phi"), [(Relu(), lambda z: np.maximum(z, 0)), (TopK(2), top_2)], ids=["relu", "top_k"]
)
def test_the_logits_are_the_formula(sparsifier, phi, widths):
    config = classifier(*widths, sparsifier=sparsifier)
    variables = randomised(config)
    # Three float32 products of up to 8 terms of size up to 10.
    np.testing.assert_allclose(forward(config, variables)[0], reference(variables, phi)[0], rtol=1e-5, atol=1e-5)


def test_the_parameters_are_one_matrix_and_its_biases_for_each_layer_and_the_head():
    config = classifier()
    variables = randomised(config)
    shapes = jax.tree.map(jnp.shape, variables["params"])
    assert shapes == {
        "dense_0": {"kernel": (D, 8), "bias": (8,)},
        "dense_1": {"kernel": (8, 4), "bias": (4,)},
        "head": {"kernel": (4, CLASSES), "bias": (CLASSES,)},
    }
    kernel, bias = config.encoder(variables["params"])
    z = np.asarray(IMAGES).reshape(5, -1) @ kernel + bias
    np.testing.assert_allclose(pre_activations(config, variables)["layer_0"], z, rtol=1e-5, atol=1e-6)


def test_every_layer_is_recorded_under_its_name_in_order():
    config = classifier(*(4,) * 11)
    variables = randomised(config)
    stats = by_layer(forward(config, variables, record=True)[1][STATS])
    assert tuple(stats) == config.layers() == tuple(f"layer_{i}" for i in range(11))
    for one, z in zip(stats.values(), reference(variables, lambda z: np.maximum(z, 0))[1], strict=True):
        np.testing.assert_array_equal(one.fired_F, (z > 0).sum(0))
        assert (float(one.examples), float(one.tokens)) == (5, 5 * config.tokens(SHAPE))


@pytest.mark.parametrize("noisy_layers", [(0,), (1,), (0, 1)])
def test_noise_stands_in_front_of_the_layers_that_are_named_and_of_no_others(noisy_layers):
    config = classifier(noise=Gaussian(0.5), noisy_layers=noisy_layers)
    variables = randomised(config)
    clean, noisy = pre_activations(config, variables), pre_activations(config, variables, noisy=True)
    # What comes after a noisy layer is another number too.
    assert (clean["layer_0"] != noisy["layer_0"]).all() == (0 in noisy_layers)
    assert (clean["layer_0"] == noisy["layer_0"]).all() == (0 not in noisy_layers)
    assert (clean["layer_1"] != noisy["layer_1"]).all()
    plain = classifier()
    np.testing.assert_array_equal(forward(config, variables, train=True)[0], forward(plain, variables)[0])
    np.testing.assert_array_equal(forward(plain, variables, noisy=True)[0], forward(plain, variables)[0])


def test_noise_in_front_of_a_hidden_layer_has_the_covariance_of_its_weights():
    """sigma^2 W_1^T W_1 about the pre-activation of the clean h (Bricken et al. 2023, App. J.2)."""
    n = 20_000
    config = classifier(noise=Gaussian(0.7), noisy_layers=(1,))
    variables = randomised(config)
    z = pre_activations(config, variables, jnp.tile(IMAGES[:1], (n, 1, 1, 1)), noisy=True)["layer_1"]
    z = z - reference(variables, lambda z: np.maximum(z, 0))[1][1][0]
    w = np.asarray(variables["params"]["dense_1"]["kernel"], np.float64)
    products = z[:, :, None] * z[:, None, :]
    # Five standard errors of the sample's mean products, and of its means.
    assert (np.abs(products.mean(0) - 0.49 * w.T @ w) < 5 * products.std(0) / n**0.5).all()
    assert (np.abs(z.mean(0)) < 5 * z.std(0) / n**0.5).all()


def test_two_noisy_layers_have_noises_of_their_own():
    """With the same W = 1 in both layers and inputs far above 0, z_0 and z_1 - h_0 show both noises alone."""
    n = 20_000
    config = classifier(D, D, noise=Gaussian(0.5), noisy_layers=(0, 1))
    one = {"kernel": jnp.eye(D), "bias": jnp.zeros(D)}
    variables = {"params": fresh(config)["params"] | {"dense_0": one, "dense_1": one}}
    z = pre_activations(config, variables, jnp.full((n, *SHAPE), 10.0), noisy=True)
    first, second = z["layer_0"] - 10, z["layer_1"] - z["layer_0"]
    # Correlations of independent samples are N(0, 1 / sqrt(n)) each: five times that.
    assert np.abs((first * second).mean(0) / first.std(0) / second.std(0)).max() < 5 / n**0.5
    np.testing.assert_allclose([first.std(), second.std()], 0.5, rtol=5 / (2 * n * D) ** 0.5)


def test_the_schedule_of_the_noise_goes_by_the_step():
    config = classifier(noise=Gaussian(0.5, schedule=LinearToZero(2, 2)), noisy_layers=(0,))
    variables = randomised(config)
    z = lambda **ctx: pre_activations(config, variables, **ctx)["layer_0"]
    np.testing.assert_array_equal(z(noisy=True, step=4), z())
    # Half of the noise at step 3, to the rounding of numbers of size 3.
    np.testing.assert_allclose(z(noisy=True, step=3) - z(), (z(noisy=True, step=1) - z()) / 2, atol=2e-6)


def test_torchs_initialisation_is_that_of_every_layer_and_xaviers_has_no_biases():
    images = jnp.zeros((1, 10, 10, 1))
    params = fresh(classifier(400, 300), images)["params"]
    for name, fan_in in (("dense_0", 100), ("dense_1", 400), ("head", 300)):
        for leaf in params[name].values():
            u = np.asarray(leaf, np.float64) * fan_in**0.5
            assert np.abs(u).max() <= 1 + 1e-6
            # Variance 1/3 of the uniform distribution, its error sqrt((1/5 - 1/9) / n): five times that.
            assert abs((u**2).mean() - 1 / 3) < 5 * (4 / 45 / u.size) ** 0.5
    params = fresh(classifier(400, 300, init="xavier"), images)["params"]
    for name, fans in (("dense_0", 500), ("dense_1", 700), ("head", 303)):
        assert not params[name]["bias"].any()
        u = np.asarray(params[name]["kernel"], np.float64) / (6 / fans) ** 0.5  # Glorot and Bengio 2010, Eq. 16
        assert np.abs(u).max() <= 1 + 1e-6
        assert abs((u**2).mean() - 1 / 3) < 5 * (4 / 45 / u.size) ** 0.5


def test_flops_by_hand():
    config = classifier()
    # 6 x 8, 8 x 4 and 4 x 3 weights, a multiply-add is 2.
    assert config.flops(SHAPE, CLASSES) == 2 * (48 + 32 + 12)
    assert config.skippable_flops(SHAPE, CLASSES) == {"layer_0": 64, "layer_1": 24}
    assert config.flops(SHAPE, CLASSES, {"layer_0": 0.5, "layer_1": 0.25}) == 2 * (48 + 16 + 3)
    with pytest.raises(ValueError, match=r"^density: must be in \[0, 1\]"):
        config.flops(SHAPE, CLASSES, {"layer_0": 0.5, "layer_1": float("nan")})


def test_a_reduced_classifier_is_narrow_and_the_same_else():
    big = classifier(1000, 400, sparsifier=TopK(k=125), noise=Gaussian(0.1), noisy_layers=(1,), init="xavier")
    assert big.reduced(1) == dataclasses.replace(big, widths=(16, 16), sparsifier=TopK(k=2))
    assert big.reduced(3).widths == (18, 18)
    assert classifier(8, 4).reduced(1) == classifier(8, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"widths": ()}, "config.widths: must be at least 1 each, at least one, got ()"),
        ({"widths": (8, 0)}, "config.widths: must be at least 1 each, at least one, got (8, 0)"),
        ({"noise": None}, "config.noisy_layers: noise and the layers that have it in front of them come together"),
        ({"noisy_layers": ()}, "config.noisy_layers: noise and the layers that have it in front of them come together"),
        ({"noisy_layers": (2,)}, "config.noisy_layers: there are layers 0 to 1, got 2"),
        ({"noisy_layers": (-1,)}, "config.noisy_layers: there are layers 0 to 1, got -1"),
        ({"sparsifier": {"name": "top_k", "k": 5}}, "config.sparsifier.k: 5 is more than the d_ff 4 units there are"),
        ({"init": "kaiming"}, 'config.init: unknown choice "kaiming"; valid: torch, xavier'),
        ({"noise": {"name": "laplac"}}, 'config.noise.name: unknown name "laplac"; did you mean "laplace"?'),
    ],
)
def test_impossible_settings_are_refused_by_name(changes, message):
    section = {"widths": (8, 4), "sparsifier": {"name": "relu"}, "noisy_layers": (1,)}
    section["noise"] = {"name": "gaussian", "sigma": 0.1}
    with pytest.raises(ConfigError) as caught:
        build(MLPClassifierConfig, section | changes)
    assert str(caught.value) == message
