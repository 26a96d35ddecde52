"""The copy in few bits: its bounds hold, on numbers made to break them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsity.ops.quantised import products, quantise

F, D = 50, 33  # odd, so that the last half byte is padding
RNG = np.random.default_rng(0)
found = jax.jit(products)


def matrices():
    """Gaussian; outlier rows and columns; the worst x, along the residual; tiny and huge; zeros."""
    w = RNG.normal(size=(F, D))
    x = RNG.normal(size=(4, D))
    yield w, x
    outliers = w.copy()
    outliers[:, 3] *= 50
    outliers[7] *= 1e4
    yield outliers, x * np.where(np.arange(D) == 3, 100, 1)
    for bits in (8, 4):
        copy = quantise(w.astype(np.float32), bits)
        yield w, np.concatenate([_residual(w, copy, bits)[:3], [np.zeros(D)]])
    yield w * 1e-20, x * 1e-18
    yield w * 1e12, x * 1e12
    yield np.where(np.arange(F)[:, None] % 2, w, 0), x


def _unpacked(copy, bits):
    q = np.asarray(copy.q)
    if bits == 4:
        q = np.concatenate([(q << 4) >> 4, q >> 4], axis=1)[:, :D]
    return np.asarray(copy.scale_F, np.float64)[:, None] * q


def _residual(w, copy, bits):
    return w - _unpacked(copy, bits)


@pytest.mark.parametrize("bits", [8, 4])
def test_no_product_is_above_its_bound(bits):
    for w, x in matrices():
        w, x = w.astype(np.float32), x.astype(np.float32)
        copy = quantise(w, bits)
        product, bound = (np.asarray(a, np.float64) for a in found(x, copy))
        exact = x.astype(np.float64) @ w.astype(np.float64).T
        assert (exact <= bound).all()
        # As float32 sums it, too, in whatever order.
        assert (np.cumsum(x[:, None] * w, -1, dtype=np.float32)[..., -1] <= bound).all()
        approximation = x.astype(np.float64) @ _unpacked(copy, bits).T
        scale = np.linalg.norm(x, axis=1, keepdims=True) * np.linalg.norm(w, axis=1)
        np.testing.assert_array_less(np.abs(product - approximation), 1e-5 * scale + 1e-36)
        # The bound is ||x|| ||w - copy||, but for roundings.
        tight = np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True) * np.linalg.norm(
            w.astype(np.float64) - _unpacked(copy, bits), axis=1
        )
        slack = 4e-5 * np.linalg.norm(x, axis=1, keepdims=True) * np.linalg.norm(w, axis=1).max()
        assert (bound - product <= tight * 1.001 + slack + 1e-34).all()


@pytest.mark.parametrize(("bits", "size"), [(8, D), (4, (D + 1) // 2)])
def test_the_copy_is_as_small_as_it_says(bits, size):
    copy = quantise(RNG.normal(size=(F, D)), bits)
    assert copy.q.shape == (F, size)
    assert copy.q.dtype == jnp.int8
    assert np.abs(_unpacked(copy, bits) / np.asarray(copy.scale_F)[:, None]).max() <= 2 ** (bits - 1) - 1


def test_rows_and_tokens_that_are_not_finite_have_no_bound():
    w, x = RNG.normal(size=(F, D)).astype(np.float32), RNG.normal(size=(3, D)).astype(np.float32)
    w[4, 2], w[9, 0], x[1, 5], x[2, 1] = np.nan, np.inf, np.nan, np.inf
    bound = np.asarray(found(x, quantise(w, 8))[1])
    assert (bound[:, [4, 9]] == np.inf).all()
    assert (bound[1:] == np.inf).all()
    assert np.isfinite(np.delete(bound[0], [4, 9])).all()


def test_products_that_overflow_have_no_bound():
    w, x = (RNG.normal(size=s).astype(np.float32) * np.float32(z) for s, z in (((F, D), 1e36), ((4, D), 1e3)))
    bound = np.asarray(found(x, quantise(w, 8))[1])
    assert (x.astype(np.float64) @ w.astype(np.float64).T <= bound).all()
