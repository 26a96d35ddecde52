import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsity.axes import AxisError
from sparsity.layers.dense import PART, dense, named

X = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 4)), jnp.float32)


def test_the_output_is_the_affine_map():
    rng = np.random.default_rng(1)
    kernel, bias = rng.normal(size=(4, 6)).astype(np.float32), rng.normal(size=6).astype(np.float32)
    y = dense(6, ("embed", "mlp")).apply({"params": {"kernel": kernel, "bias": bias}}, X)
    expected = np.asarray(X, np.float64) @ kernel.astype(np.float64) + bias
    np.testing.assert_allclose(y, expected, rtol=1e-6, atol=2e-6)  # four float32 products


def test_the_kernel_carries_both_axis_names_and_the_bias_the_second():
    params = dense(6, ("embed", "mlp")).init(jax.random.key(0), X)["params"]
    assert {name: p.names for name, p in params.items()} == {"kernel": ("embed", "mlp"), "bias": ("mlp",)}


def test_without_a_bias_there_is_only_a_kernel():
    assert dense(6, ("embed", "mlp"), use_bias=False).init(jax.random.key(0), X)["params"].keys() == {"kernel"}


def test_kernels_start_xavier_uniform_and_biases_at_zero():
    x = jnp.zeros((1, 300))
    params = flax.core.meta.unbox(dense(500, ("embed", "mlp")).init(jax.random.key(0), x)["params"])
    # Glorot & Bengio 2010: uniform on +-sqrt(6 / (in + out)); 150,000 draws come within 1e-3 of its ends.
    limit = np.sqrt(6 / 800)
    kernel = np.asarray(params["kernel"], np.float64)
    assert 0.999 * limit < np.abs(kernel).max() <= limit * (1 + 1e-6)
    # Deviation limit / sqrt(3), known to a relative 0.45 / sqrt(n); four times that.
    assert kernel.std() == pytest.approx(limit / np.sqrt(3), rel=4 * 0.45 / np.sqrt(kernel.size))
    np.testing.assert_array_equal(params["bias"], 0)


def test_another_initialiser_is_used_when_given():
    params = dense(6, ("embed", "mlp"), kernel_init=nn.initializers.ones).init(jax.random.key(0), X)["params"]
    np.testing.assert_array_equal(flax.core.meta.unbox(params)["kernel"], np.ones((4, 6)))


def test_biases_start_as_their_initialiser_says():
    params = dense(6, ("embed", "mlp"), bias_init=nn.initializers.ones).init(jax.random.key(0), X)["params"]
    np.testing.assert_array_equal(flax.core.meta.unbox(params)["bias"], np.ones(6))


def test_computing_in_bfloat16_keeps_float32_parameters():
    layer = dense(6, ("embed", "mlp"), dtype="bfloat16")
    y, variables = layer.init_with_output(jax.random.key(0), X)
    assert y.dtype == jnp.bfloat16
    assert {p.dtype for p in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


def test_a_misspelt_axis_is_refused_before_anything_is_initialised():
    with pytest.raises(AxisError, match='unknown axis "embd"; did you mean "embed"'):
        named(nn.initializers.zeros, "embd")
    with pytest.raises(AxisError, match='unknown axis "mpl"'):
        dense(6, ("embed", "mpl"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_one_token_of_many_inputs_is_summed_in_parts_and_has_the_same_output(dtype):
    rng = np.random.default_rng(2)
    kernel, bias = rng.normal(size=(2 * PART, 24)).astype(np.float32), rng.normal(size=24).astype(np.float32)
    layer = dense(24, ("mlp", "embed"), dtype=dtype)
    apply = jax.jit(lambda x: layer.apply({"params": {"kernel": kernel, "bias": bias}}, x))
    tokens = rng.normal(size=(1, 3, 2 * PART)).astype(np.float32)
    one, all_three = apply(tokens[:, :1]), apply(tokens)
    assert one.dtype == all_three.dtype == jnp.dtype(dtype)
    exact = tokens[:, :1].astype(np.float64) @ kernel.astype(np.float64) + bias
    # Sums of 512 products of deviation 1, of inputs of 24 or 8 bits.
    np.testing.assert_allclose(one, exact, atol=1e-4 if dtype == "float32" else 0.5)
    np.testing.assert_allclose(one, all_three[:, :1], atol=1e-4 if dtype == "float32" else 0.25)
    text = lambda x: apply.lower(x).as_text()
    assert f"tensor<2x{PART}x24x" in text(tokens[:, :1])
    assert f"tensor<2x{PART}x24x" not in text(tokens)
