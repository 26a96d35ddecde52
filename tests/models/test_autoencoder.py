import dataclasses

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from sparsity.config import ConfigError, build
from sparsity.evals.sparsity import by_layer
from sparsity.layers.mlp import MLPConfig
from sparsity.layers.noise import NOISE
from sparsity.layers.sparsify import STATS, Context
from sparsity.models.autoencoder import AutoencoderConfig
from sparsity.ops.noise import Gaussian
from sparsity.ops.sparsifiers import Gelu, Relu, TopK

SHAPE, D, F = (2, 3, 2), 12, 7
IMAGES = jnp.asarray(np.random.default_rng(0).normal(size=(5, *SHAPE)), jnp.float32)
RELU = Relu()


def autoencoder(sparsifier=RELU, d_ff=F, **mlp):
    return AutoencoderConfig(MLPConfig(d_ff, sparsifier, **mlp))


def randomised(config):
    """Random parameters of every leaf, biases included."""
    shapes = flax.core.meta.unbox(jax.eval_shape(config.build(None).init, jax.random.key(0), IMAGES, Context()))
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda p: jnp.asarray(rng.normal(0, 0.5, p.shape), p.dtype), shapes)


def forward(config, variables, key=0, **ctx):
    rngs = {NOISE: jax.random.key(key)}
    return config.build(None).apply(variables, IMAGES, Context(**ctx), mutable=[STATS], rngs=rngs)


def hidden(config, variables):
    """Pre-activations [B, F] in numpy float64."""
    w, b = (np.asarray(p, np.float64) for p in config.encoder(variables["params"]))
    return np.asarray(IMAGES, np.float64).reshape(5, -1) @ w + b


@pytest.mark.parametrize("bias", [{}, {"shared_bias": True}, {"use_bias": False}], ids=str)
@pytest.mark.parametrize(
    ("sparsifier", "phi"),
    [(Relu(), lambda z: np.maximum(z, 0)), (Gelu(), lambda z: z * (1 + erf(z / np.sqrt(2))) / 2)],
    ids=["relu", "gelu"],
)
def test_the_output_is_the_formula_in_the_shape_of_the_images(sparsifier, phi, bias):
    """y = phi(x W_e + b_e) W_d + b_d, with the encoder that the model names."""
    config = autoencoder(sparsifier, **bias)
    variables = randomised(config)
    decoder = {k: np.asarray(p, np.float64) for k, p in variables["params"]["hidden"]["wo"].items()}
    expected = phi(hidden(config, variables)) @ decoder["kernel"] + decoder.get("bias", 0.0)
    # Two float32 products of 12 and 7 terms of size up to 10.
    got, _ = forward(config, variables)
    np.testing.assert_allclose(got, expected.reshape(5, *SHAPE), rtol=5e-6, atol=1e-5)


def test_the_parameters_are_those_of_the_two_matrices():
    shapes = jax.tree.map(jnp.shape, randomised(autoencoder()))["params"]
    assert shapes == {"hidden": {"wi": {"kernel": (D, F), "bias": (F,)}, "wo": {"kernel": (F, D), "bias": (D,)}}}


def test_the_hidden_layer_is_recorded_under_its_name():
    config = autoencoder()
    variables = randomised(config)
    stats = by_layer(forward(config, variables, record=True)[1][STATS])
    assert tuple(stats) == config.layers() == ("hidden",)
    z = hidden(config, variables)
    assert (float(stats["hidden"].examples), float(stats["hidden"].tokens)) == (5, 5 * config.tokens(SHAPE))
    np.testing.assert_array_equal(stats["hidden"].fired_F, (z > 0).sum(0))


def test_noise_in_front_of_the_hidden_layer_is_noise_on_the_image():
    config = autoencoder(noise=Gaussian(0.5))
    variables = randomised(config)
    clean, _ = forward(autoencoder(), variables)
    np.testing.assert_array_equal(forward(config, variables, train=True)[0], clean)
    one, other = (np.asarray(forward(config, variables, key, noisy=True)[0]) for key in (0, 1))
    assert (one != clean).all()
    assert (one != other).all()


def test_flops_by_hand():
    config = autoencoder()
    # Two matrices of 12 x 7, a multiply-add is 2; a quarter of the units need a quarter of the second.
    assert config.flops(SHAPE, None) == 2 * (2 * 12 * 7)
    assert config.flops(SHAPE, None, {"hidden": 0.25}) == 2 * 12 * 7 * 1.25
    assert config.skippable_flops(SHAPE, None) == {"hidden": 2 * 12 * 7}


def test_dense_flops_are_those_that_xla_counts():
    config, shape, batch = autoencoder(d_ff=512), (16, 16, 1), 8
    model = config.build(None)
    images = jax.ShapeDtypeStruct((batch, *shape), jnp.float32)
    variables = flax.core.meta.unbox(jax.eval_shape(model.init, jax.random.key(0), images, Context()))
    lowered = jax.jit(lambda v, x: model.apply(v, x, Context())).lower(variables, images)
    # Ours are matrix products only. XLA adds biases and ReLU: some 2,000 operations beside 500,000.
    assert 1 < lowered.cost_analysis()["flops"] / batch / config.flops(shape, None) < 1.01


def test_any_image_is_read():
    autoencoder().check_input((1, 1, 1))
    autoencoder().check_input((32, 32, 3))


def test_a_reduced_autoencoder_is_narrow_and_the_same_else():
    big = autoencoder(TopK(k=300, anneal=7), 10_000, noise=Gaussian(0.8), shared_bias=True, init="torch", scale=2.0)
    assert big.reduced(1) == AutoencoderConfig(dataclasses.replace(big.mlp, d_ff=32, sparsifier=TopK(k=1, anneal=7)))
    assert big.reduced(3).mlp.d_ff == 33
    assert autoencoder().reduced(1) == autoencoder()


def test_a_gate_is_refused():
    with pytest.raises(ConfigError, match=r"^config\.mlp\.gated: an autoencoder's hidden layer has no gate$"):
        build(AutoencoderConfig, {"mlp": {"d_ff": 8, "sparsifier": {"name": "relu"}, "gated": True}})
