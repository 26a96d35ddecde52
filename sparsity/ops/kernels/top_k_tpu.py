"""Exact Top-k in one pass over the row: a Pallas kernel for TPU.

A block of rows is read into VMEM once. There its threshold is found by counting on ordered bits,
ties are settled by counting columns, and the kept values and the packed mask are written: HBM is
read once and written once, whatever the distribution. Compiled ahead of time and run in interpret
mode, never yet timed on a TPU: `ops.top_k` does not call it.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from sparsity.ops.top_k_threshold import ordered_bits

ROWS = 32  # per block: the least that tiles bytes, 1.5 MB of float32 at 12288 units
TILE = 1024  # the packed mask needs eight slices of whole registers


def _count(where: jax.Array) -> jax.Array:
    # float32 is exact up to 2^24 and reduces on every TPU generation.
    return jnp.sum(where.astype(jnp.float32), axis=1, keepdims=True).astype(jnp.int32)


def _select(bits: jax.Array, k: int) -> jax.Array:
    """True at the k largest of each row of int32 `bits` [R, F], ties to the lower column."""

    def step(i, kth):
        # From the sign down: set a bit of the answer if k entries still reach it.
        trial = jnp.where(i == 0, jnp.zeros_like(kth), kth | (jnp.int32(1) << (31 - i)))
        return jnp.where(_count(bits >= trial) >= k, trial, kth)

    kth = jax.lax.fori_loop(0, 32, step, jnp.full((bits.shape[0], 1), jnp.iinfo(jnp.int32).min))
    wanted = k - _count(bits > kth)
    column = jax.lax.broadcasted_iota(jnp.int32, bits.shape, 1)
    tied = bits == kth
    span = (bits.shape[1] - 1).bit_length()

    def narrow(i, last):
        # The largest `last` with fewer than `wanted` ties before it is the last tie to keep.
        trial = last | (jnp.int32(1) << (span - 1 - i))
        return jnp.where(_count(tied & (column < trial)) < wanted, trial, last)

    last = jax.lax.fori_loop(0, span, narrow, jnp.zeros_like(kth))
    return (bits > kth) | (tied & (column <= last))


def _kernel(k: int, relu: bool, h_ref, out_ref, bits_ref):
    h = h_ref[...].astype(jnp.float32)  # keeps the order of bfloat16, ties included
    mask = _select(ordered_bits(h), k)
    mask = ((mask & (h > 0)) if relu else mask) | (h != h)
    out_ref[...] = jnp.where(mask, h, 0.0).astype(out_ref.dtype)
    size = h.shape[1] // 8
    ones = mask.astype(jnp.int32)
    packed = functools.reduce(jnp.bitwise_or, [ones[:, i * size : (i + 1) * size] << i for i in range(8)])
    bits_ref[...] = packed.astype(jnp.uint8)


def keep_top_k_tpu(h: jax.Array, k: int, *, relu: bool = False, interpret: bool = False) -> tuple[jax.Array, jax.Array]:
    """`ops.top_k.keep_top_k(h, k, relu=relu)` of float32 or bfloat16 rows, and its mask in bits.

    Args:
      h: [R, F], R a multiple of 32 and F of 1024.
      k: entries kept, 1 <= k <= F.
      relu: as in `keep_top_k`.
      interpret: run without a TPU.

    Returns:
      The kept values [R, F] and bytes [R, F/8]: bit i of byte j is entry i F/8 + j.

    Raises:
      ValueError: other shapes, dtypes or k.
    """
    rows, units = h.shape
    if rows % ROWS or units % TILE:
        raise ValueError(f"shape {h.shape}: rows must be a multiple of {ROWS} and units of {TILE}")
    if h.dtype not in (jnp.float32, jnp.bfloat16):
        raise ValueError(f"dtype {h.dtype}: must be float32 or bfloat16")
    if not 1 <= k <= units:
        raise ValueError(f"k: must be in 1..{units}, got {k}")
    block = lambda width: pl.BlockSpec((ROWS, width), lambda i: (i, 0))
    return pl.pallas_call(
        functools.partial(_kernel, k, relu),
        grid=(rows // ROWS,),
        in_specs=[block(units)],
        out_specs=[block(units), block(units // 8)],
        out_shape=[jax.ShapeDtypeStruct(h.shape, h.dtype), jax.ShapeDtypeStruct((rows, units // 8), jnp.uint8)],
        interpret=interpret,
        name="top_k_tpu",
    )(h)
