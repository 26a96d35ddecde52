"""Top-k selection along the last axis, exact, without a sort.

The k-th largest number of a row is found by counting: floats, read as integers in the right
way, keep their order, so a binary search over the bits of the answer needs one count per bit.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def ordered_bits(x: jax.Array) -> jax.Array:
    """The unsigned integers whose order is `lax.top_k`'s order of the floats `x`.

    That order is total on bits: -NaN < -inf < ... < -0 < +0 < ... < inf < +NaN.
    """
    width = x.dtype.itemsize * 8
    unsigned = jnp.dtype(f"uint{width}")
    bits = jax.lax.bitcast_convert_type(x, unsigned)
    sign = jnp.asarray(1 << (width - 1), unsigned)
    return jnp.where(bits >= sign, ~bits, bits | sign)


def kth_bits(bits: jax.Array, k: int) -> jax.Array:
    """The k-th largest of each row of unsigned integers [..., F], as [..., 1].

    Sets the answer's bits from the top: a bit stays if at least k entries reach the trial.
    """
    width = bits.dtype.itemsize * 8

    def body(i, answer):
        trial = answer | jnp.asarray(1, bits.dtype) << jnp.asarray(width - 1 - i, bits.dtype)
        enough = jnp.sum(bits >= trial, axis=-1, keepdims=True, dtype=jnp.int32) >= k
        return jnp.where(enough, trial, answer)

    return jax.lax.fori_loop(0, width, body, jnp.zeros((*bits.shape[:-1], 1), bits.dtype))


def top_k_mask(x: jax.Array, k: int) -> jax.Array:
    """True at the k largest entries of each row of `x` [..., F], ties to the lower index.

    The set is that of `jax.lax.top_k(x, k)[1]`, exactly k entries a row.
    """
    bits = ordered_bits(jax.lax.stop_gradient(x))
    kth = kth_bits(bits, k)
    above = bits > kth
    tied = bits == kth
    wanted = k - jnp.sum(above, axis=-1, keepdims=True, dtype=jnp.int32)
    return above | (tied & (jnp.cumsum(tied, axis=-1, dtype=jnp.int32) <= wanted))


def keep_top_k(h: jax.Array, k: int) -> jax.Array:
    """`h` [..., F] with all but the k largest entries of each row set to zero.

    The gradient is that of a constant mask: kept entries pass it, others get none. NaN is
    kept wherever it stands, so that it reaches the loss.
    """
    keep = top_k_mask(h, k) | jnp.isnan(h)
    return jnp.where(keep, h, jnp.zeros_like(h))
