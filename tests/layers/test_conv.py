import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.signal import correlate2d

from sparsity.layers.conv import (
    CircularConv,
    DepthwiseConv,
    circular_convolution,
    depthwise_convolution,
    rolled_product,
    shifted_sum,
)

CASES = [((7,), 3), ((5,), 5), ((6,), 1), ((4, 5), 3), ((5, 6), 5), ((3, 3), 3)]
cases = pytest.mark.parametrize(("space", "k"), CASES)


def operands(space, k, channels=3, features=4, batch=2):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(batch, *space, channels)).astype(np.float32)
    return jnp.asarray(x), jnp.asarray(rng.normal(size=(*(k,) * len(space), channels, features)), jnp.float32)


def reference(x, kernel):
    """The definition, by loops: y[p] = sum_o x[p + o - k // 2] kernel[o], positions modulo the size."""
    x, kernel = np.asarray(x, np.float64), np.asarray(kernel, np.float64)
    space, window = x.shape[1:-1], kernel.shape[:-2]
    y = np.zeros((*x.shape[:-1], kernel.shape[-1]))
    for p in np.ndindex(space):
        for o in np.ndindex(window):
            at = tuple((i + j - k // 2) % n for i, j, k, n in zip(p, o, window, space, strict=True))
            y[:, *p] += x[:, *at] @ kernel[o]
    return y


@cases
@pytest.mark.parametrize("method", [rolled_product, circular_convolution])
def test_both_ways_are_the_definition(method, space, k):
    x, kernel = operands(space, k)
    # Up to 75 float32 products of unit size.
    np.testing.assert_allclose(jax.jit(method)(x, kernel), reference(x, kernel), rtol=1e-5, atol=1e-5)


@cases
def test_both_ways_have_the_same_gradients(space, k):
    x, kernel = operands(space, k)
    target = jnp.asarray(np.random.default_rng(1).normal(size=(*x.shape[:-1], 4)), jnp.float32)
    grads = [
        jax.jit(jax.grad(lambda x, w, f=f: (f(x, w) * target).sum(), (0, 1)))
        for f in (rolled_product, circular_convolution)
    ]
    for a, b in zip(grads[0](x, kernel), grads[1](x, kernel), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_a_shifted_input_gives_a_shifted_output():
    x, kernel = operands((6, 5), 3)
    shifted = rolled_product(jnp.roll(x, (2, 1), (1, 2)), kernel)
    np.testing.assert_allclose(shifted, jnp.roll(rolled_product(x, kernel), (2, 1), (1, 2)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("product", ["auto", "rolls", "convolution"])
def test_the_module_adds_a_bias_and_names_its_axes(product):
    x, kernel = operands((4, 5), 3)
    conv = CircularConv(4, (3, 3), nn.initializers.normal(1.0), nn.initializers.ones, product)
    params = conv.init(jax.random.key(0), x)["params"]
    assert params["kernel"].names == ("window", "window", "embed", "mlp")
    assert params["bias"].names == ("mlp",)
    params = flax.core.meta.unbox(params)
    np.testing.assert_array_equal(params["bias"], np.ones(4))
    y = conv.apply({"params": {"kernel": kernel, "bias": params["bias"]}}, x)
    np.testing.assert_allclose(y, reference(x, kernel) + 1, rtol=1e-5, atol=1e-5)


def test_on_a_cpu_no_convolution_is_compiled_unless_asked_for():
    x, _ = operands((4, 5), 3)
    for product, expected in (("auto", jax.default_backend() != "cpu"), ("rolls", False), ("convolution", True)):
        conv = CircularConv(4, (3, 3), nn.initializers.normal(1.0), product=product)
        lowered = jax.jit(lambda x, conv=conv: conv.init_with_output(jax.random.key(0), x)[0]).lower(x).as_text()
        assert ("convolution" in lowered) == expected


def depthwise_operands(side):
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, 4, 3, 5)), rng.normal(size=(side, side, 1, 5))
    return jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.float32)


def depthwise_reference(x, kernel):
    """The definition, channel by channel; scipy's correlation has zeros around the image."""
    one = lambda image, f: correlate2d(image[..., f], kernel[:, :, 0, f], mode="same")
    x, kernel = np.asarray(x, np.float64), np.asarray(kernel, np.float64)
    return np.stack([np.stack([one(image, f) for f in range(x.shape[-1])], -1) for image in x])


@pytest.mark.parametrize("side", [1, 3, 5])
def test_both_ways_of_the_depthwise_convolution_are_the_definition_with_the_same_gradients(side):
    x, kernel = depthwise_operands(side)
    target = jnp.asarray(np.random.default_rng(1).normal(size=x.shape), jnp.float32)
    found = []
    for method in (shifted_sum, depthwise_convolution):
        np.testing.assert_allclose(jax.jit(method)(x, kernel), depthwise_reference(x, kernel), rtol=1e-5, atol=1e-5)
        gradient = jax.jit(jax.grad(lambda x, w, f=method: (f(x, w) * target).sum(), (0, 1)))
        found.append(gradient(x, kernel))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), *found)


def test_the_depthwise_module_adds_a_bias_names_its_axes_and_shifts_on_a_cpu():
    x, kernel = depthwise_operands(3)
    conv = DepthwiseConv(3, nn.initializers.normal(1.0), nn.initializers.ones)
    params = conv.init(jax.random.key(0), x)["params"]
    assert params["kernel"].names == ("window", "window", None, "mlp")
    assert params["bias"].names == ("mlp",)
    params = {"kernel": kernel, "bias": flax.core.meta.unbox(params)["bias"]}
    lowered = jax.jit(conv.apply).lower({"params": params}, x)
    assert ("convolution" in lowered.as_text()) == (jax.default_backend() != "cpu")
    np.testing.assert_allclose(
        lowered.compile()({"params": params}, x), depthwise_reference(x, kernel) + 1, rtol=1e-5, atol=1e-5
    )
