"""A small copy of a matrix, to find which of its rows' products with x are the largest, with a proof.

Row i is kept as w_i ~ s_i q_i, q_i small integers. By Cauchy and Schwarz no product is further from its approximation
than |x . w_i - x . s_i q_i| <= ||x|| ||w_i - s_i q_i||, whose last factor is known beforehand. So the sum of both is an
upper bound of x . w_i: rows whose bound is below the k-th largest product of others are not among the k largest.

The bound is sure, not tight: at width D it is about sqrt(D) times the typical error. For Gaussian weights of width 1024
it is .24 of the products' standard deviation with 8 bits, so that some 250 of 16,384 candidates prove the largest 128.
With 4 bits it is some 4 of them, and proves nothing there, though the candidates are the right ones.
"""

from __future__ import annotations

from typing import Any, Literal

import flax
import jax
import jax.numpy as jnp
import numpy as np

from sparsity.ops.sparse_matmul import whole

Bits = Literal[8, 4]
CLIP = {8: None, 4: 2.6}  # the largest kept |w| over the row's root mean square; None: the row's own largest
BLOCK = 4096  # rows at a time, whose float64 copies are held


@flax.struct.dataclass
class Quantised:
    """The copy of a matrix [F, D].

    Attributes:
      q: int8: [F, D] with 8 bits; with 4, [F, ceil(D / 2)]: low half bytes are those of the first columns, high ones
        those of the others.
      scale_F: s_i.
      error_F: the bound of every product's error, roundings of both products included, over ||x||.
      bits: 8 or 4 (static).
    """

    q: Any
    scale_F: Any
    error_F: Any
    bits: int = flax.struct.field(pytree_node=False)


def quantise(w_FxD: Any, bits: Bits) -> Quantised:
    """The copy of a matrix, each row with a scale of its own. Bounds are computed in float64 and rounded up."""
    parts = [_quantise(np.asarray(w_FxD[i : i + BLOCK], np.float64), bits) for i in range(0, len(w_FxD), BLOCK)]
    q, scale_F, residual_F, norm_F, copy_F = (np.concatenate(p) for p in zip(*parts, strict=True))
    # Summed in float32 in any order, a product of D terms is off by no more than D 2^-24 times both norms (Higham 2002,
    # Sec. 3.1); there are two products, ||x||'s own sum and some roundings. Every row's is at least the largest's,
    # so that the product that it is compared with is covered too.
    gamma = 2 * (w_FxD.shape[1] + 8) * 2.0**-24
    largest = np.max(norm_F, initial=0.0, where=np.isfinite(norm_F))
    error_F = (residual_F + gamma * (norm_F + largest + copy_F)) * (1 + gamma)
    up_F = np.nextafter(error_F.astype(np.float32), np.float32(np.inf))
    return Quantised(jnp.asarray(q), jnp.asarray(scale_F, jnp.float32), jnp.asarray(up_F), bits)


def _quantise(w_FxD: np.ndarray, bits: int) -> tuple[np.ndarray, ...]:
    """Integers, scales, ||w - s q||, ||w|| and ||s q|| of some rows."""
    most = 2 ** (bits - 1) - 1
    largest_F = np.abs(w_FxD).max(1)
    if CLIP[bits] is not None:
        largest_F = np.minimum(largest_F, CLIP[bits] * np.sqrt((w_FxD**2).mean(1)))
    scale_F = (largest_F / most).astype(np.float32).astype(np.float64)
    sane_F = np.isfinite(scale_F) & (scale_F > 0)
    scale_F = np.where(sane_F, scale_F, 0)  # the copy of any other row is 0, its error all of it
    steps_FxD = np.where(sane_F[:, None], w_FxD, 0) / np.where(sane_F, scale_F, 1)[:, None]
    q_FxD = np.clip(np.rint(steps_FxD), -most, most)
    copy_FxD = scale_F[:, None] * q_FxD
    norms = tuple(np.linalg.norm(x, axis=1) for x in (w_FxD - copy_FxD, w_FxD, copy_FxD))
    q_FxD = q_FxD.astype(np.int8)
    return (_packed(q_FxD) if bits == 4 else q_FxD, scale_F, *norms)


def _packed(q_FxD: np.ndarray) -> np.ndarray:
    half = -(-q_FxD.shape[1] // 2)
    low, high = q_FxD[:, :half], np.pad(q_FxD[:, half:], ((0, 0), (0, q_FxD.shape[1] % 2)))
    return (low & 15) | (high << 4)


def products(x_TxD: jax.Array, copy: Quantised) -> tuple[jax.Array, jax.Array]:
    """Products x . s_i q_i, and an upper bound of x . w_i, both float32 [T, F].

    A bound is infinite where the row or the token has NaN or infinities, or the product overflows. Sums are float32.
    """
    x_TxD = x_TxD.astype(jnp.float32)
    if copy.bits == 8:
        product_TxF = whole(x_TxD, copy.q.astype(jnp.float32))
    else:
        half = copy.q.shape[1]
        low, high = jnp.right_shift(jnp.left_shift(copy.q, 4), 4), jnp.right_shift(copy.q, 4)
        second = jnp.pad(x_TxD[:, half:], ((0, 0), (0, 2 * half - x_TxD.shape[1])))
        product_TxF = whole(x_TxD[:, :half], low.astype(jnp.float32)) + whole(second, high.astype(jnp.float32))
    product_TxF = product_TxF * copy.scale_F
    # Squares of small numbers would vanish.
    size_Tx1 = jnp.max(jnp.abs(x_TxD), axis=1, keepdims=True)
    unit_TxD = x_TxD / jnp.where(size_Tx1 > 0, size_Tx1, 1)
    norm_Tx1 = size_Tx1 * jnp.linalg.norm(unit_TxD, axis=1, keepdims=True)
    vanished = 4 * x_TxD.shape[1] * jnp.finfo(jnp.float32).tiny  # of the products' own terms
    bound_TxF = product_TxF + (norm_Tx1 * copy.error_F + vanished)
    return product_TxF, jnp.where(jnp.isfinite(bound_TxF), bound_TxF, jnp.inf)
