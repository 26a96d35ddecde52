import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsity.ops.top_k import keep_top_k, ordered_bits, top_k_mask

SPECIAL = np.array([0.0, -0.0, 1.0, -1.0, 1e-45, -1e-45, np.inf, -np.inf, 3.0, 3.0], np.float32)


def _lax_mask(x, k):
    mask = np.zeros(x.shape, bool)
    np.put_along_axis(mask, np.asarray(jax.lax.top_k(x, k)[1]), True, -1)
    return mask


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(list(SPECIAL)), min_size=7, max_size=7), st.integers(0, 7))
def test_the_kept_set_is_that_of_lax_top_k(row, k):
    x = jnp.array([row], jnp.float32)
    np.testing.assert_array_equal(top_k_mask(x, k), _lax_mask(x, k))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("k", [1, 10, 63, 64])
def test_exactly_k_are_kept_in_every_dtype_with_many_ties(dtype, k):
    x = jnp.asarray(np.round(np.random.default_rng(0).normal(size=(5, 3, 64)), 1), dtype)
    mask = top_k_mask(x, k)
    np.testing.assert_array_equal(mask.sum(-1), k)
    np.testing.assert_array_equal(mask, _lax_mask(x.astype(jnp.float32), k))


def test_fewer_than_k_positive_leaves_fewer_nonzero():
    h = jax.nn.relu(jnp.array([[-1.0, 2.0, -3.0, 0.5], [1.0, 2.0, 3.0, 4.0]]))
    np.testing.assert_array_equal((keep_top_k(h, 3) != 0).sum(-1), [2, 3])


def test_nan_stays_nan():
    out = keep_top_k(jnp.array([[jnp.nan, 1.0, 2.0, 3.0]]), 2)
    assert np.isnan(out[0, 0])


def test_the_gradient_is_that_of_a_constant_mask():
    h = jnp.array([3.0, 1.0, 2.0, 0.0])
    np.testing.assert_array_equal(jax.grad(lambda h: (keep_top_k(h, 2) ** 2).sum())(h), [6, 0, 4, 0])


def test_ordered_bits_order_floats():
    x = jnp.array([-jnp.inf, -1.0, -0.0, 0.0, 1e-45, 1.0, jnp.inf, jnp.nan])
    assert (np.diff(np.asarray(ordered_bits(x), np.float64)) > 0).all()
