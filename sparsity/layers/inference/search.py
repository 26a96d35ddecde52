"""Modes that do not read the first matrix whole: something small finds candidates, whose rows are then read."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sparsity.layers.inference.base import (
    Diagnosis,
    Inference,
    Weights,
    elementwise_gate,
    held,
    kept_rows,
    linear,
    linear_at,
    rows_read,
)
from sparsity.layers.inference.gather import SEARCHED, exact_set, largest, not_top_k, ranked, recall, top
from sparsity.ops import quantised
from sparsity.ops.sparse_matmul import matrix, narrow, whole
from sparsity.ops.sparsifiers import Gelu

if TYPE_CHECKING:
    from sparsity.layers.mlp import MLPConfig

BLOCK, BLOCKS = 32, 8  # units that are searched as one, where there are so many times as many blocks as candidates
PREDICTOR = "predictor"  # beside wi and wo: {read [D, r], write [r, F]}, x read write ~ x W_i


class Found(NamedTuple):
    """What a search found of T tokens.

    Attributes:
      h_TxK: activations.
      index_TxK: their units.
      kth_T: the least pre-activation of these.
      score_T: the least score of a candidate.
      broken_T: a candidate's pre-activation is NaN.
    """

    h_TxK: jax.Array
    index_TxK: jax.Array
    kth_T: jax.Array
    score_T: jax.Array
    broken_T: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Search(Inference):
    """What both searches share.

    Attributes:
      candidates: units whose pre-activations are computed exactly; those with the largest scores.
    """

    candidates: int

    def reason(self, mlp):
        if (reason := not_top_k(mlp) or elementwise_gate(mlp)) is not None:
            return reason
        if mlp.sparsifier.method not in SEARCHED:
            return f"method {mlp.sparsifier.method} keeps other units than the k largest; use GatherOut"
        if not mlp.sparsifier.k <= self.candidates <= mlp.d_ff:
            return f"candidates must be in {mlp.sparsifier.k}..{mlp.d_ff}, k and the units there are: {self.candidates}"
        return None

    def score(self, weights: Weights, x_TxD: jax.Array, dtype: str) -> jax.Array:
        """What candidates are the largest of [T, F]."""
        raise NotImplementedError

    def read_by_row(self, mlp):
        return ("wi", "wi_gate", "wo")

    def bytes_read(self, mlp, d_model, itemsize, active):
        rows = itemsize * d_model * self.candidates + rows_read(mlp, d_model, itemsize, mlp.sparsifier.k)
        return self.bytes_searched(mlp, d_model, itemsize) + rows

    def bytes_searched(self, mlp: MLPConfig, d_model: int, itemsize: int) -> float:
        """Bytes of what scores are made of."""
        raise NotImplementedError

    def find(self, weights: Weights, x_TxD: jax.Array, mlp: MLPConfig, dtype: str) -> Found:
        """The k largest of each token's candidates."""
        score_TxC, index_TxC = best(self.score(weights, x_TxD, dtype), self.candidates)
        index_TxC = jnp.sort(index_TxC)  # so that ties go to the lower unit
        z_TxC = linear_at(weights["wi"], x_TxD, index_TxC, dtype)
        h_TxK, place_TxK = largest(ranked(z_TxC, mlp.sparsifier), mlp.sparsifier)
        at = lambda x_TxC: jnp.take_along_axis(x_TxC, place_TxK, axis=1)
        return Found(h_TxK, at(index_TxC), jnp.min(at(z_TxC), -1), jnp.min(score_TxC, -1), jnp.isnan(z_TxC).any(-1))

    def diagnose(self, weights, x_TxD, mlp, dtype):
        exact_TxF = exact_set(ranked(linear(weights["wi"], x_TxD, dtype), mlp.sparsifier), mlp.sparsifier)
        score_TxF = self.score(weights, x_TxD, dtype)
        index_TxC = best(score_TxF, self.candidates)[1]
        found_TxF = jnp.zeros(score_TxF.shape, bool).at[jnp.arange(len(x_TxD))[:, None], index_TxC].set(True)
        least_Tx1 = jnp.min(jnp.where(exact_TxF, score_TxF, jnp.inf), -1, keepdims=True)
        same = jnp.full(len(x_TxD), self.candidates)
        return Diagnosis(
            candidates=same,
            read=jnp.full_like(same, mlp.sparsifier.k),
            recall=recall(exact_TxF, found_TxF),
            needed=jnp.sum(score_TxF >= least_Tx1, -1),
            certified=same == mlp.d_ff,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LowRank(_Search):
    """Candidates by x P Q + b_i, P [D, r] and Q [r, F] for W_i; of both matrices only some rows are read.

    P and Q are the `predictor` beside the MLP's parameters, {read, write}, if there is one: trained with them, or made
    later. Else they are W_i's best approximation of rank r, by its singular vectors. What is not among the candidates
    is missed: see `diagnose`.

    Attributes:
      rank: r.
    """

    rank: int

    def reason(self, mlp):
        return super().reason(mlp) or (None if self.rank >= 1 else f"rank must be at least 1: {self.rank}")

    def lay_out(self, params, mlp, dtype, least_F=None):
        out = super().lay_out(params, mlp, dtype, least_F)
        if PREDICTOR in params:
            read, write = (np.asarray(params[PREDICTOR][name]) for name in ("read", "write"))
            if read.shape[1] != self.rank:
                raise ValueError(f"inference: LowRank has rank {self.rank}, the predictor {read.shape[1]}")
        else:
            read, write = by_svd(params["wi"]["kernel"], self.rank)
        return out | {PREDICTOR: {"read": held(read.T, dtype), "write": held(write, dtype)}}

    def bytes_searched(self, mlp, d_model, itemsize):
        return itemsize * self.rank * (d_model + mlp.d_ff)

    def score(self, weights, x_TxD, dtype):
        low_TxR = whole(x_TxD, weights[PREDICTOR]["read"])
        score_TxF = narrow(low_TxR, weights[PREDICTOR]["write"])
        return score_TxF + weights["wi"]["bias"] if "bias" in weights["wi"] else score_TxF

    def __call__(self, weights, x_TxD, mlp, dtype):
        return _written(self.find(weights, x_TxD, mlp, dtype), weights, x_TxD, mlp, dtype)


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuantizedSearch(_Search):
    """Candidates by upper bounds of z from a copy of W_i in few bits (`ops.quantised`); of W_i and W_o only some rows.

    The k largest candidates are the k largest of all units, proven, if the k-th is larger than the least bound of the
    candidates: of all others the bound is no larger. Of ReLU, units below 0 need not be found. The bounds hold whatever
    the order of float32 sums, and the dtype that z is rounded to.

    Attributes:
      bits: of the copy. With 4 it takes an eighth of W_i's bytes in float32, but bounds are loose: little is proven.
      fallback: where a token is not proven, W_i is read whole and the output is exact; off: the candidates' is taken.
    """

    bits: quantised.Bits = 8
    fallback: bool = True

    def lay_out(self, params, mlp, dtype, least_F=None):
        out = super().lay_out(params, mlp, dtype, least_F)
        return out | {"copy": quantised.quantise(np.asarray(matrix(out["wi"]["rows"])), self.bits)}

    def bytes_searched(self, mlp, d_model, itemsize):
        """Those of the copy, of each row's scale and of its error."""
        return mlp.d_ff * (d_model * self.bits / 8 + 2 * 4)

    def score(self, weights, x_TxD, dtype):
        bound_TxF = _bounding(quantised.products(x_TxD, weights["copy"])[1], dtype)
        return _bounding(bound_TxF + weights["wi"]["bias"], dtype) if "bias" in weights["wi"] else bound_TxF

    def __call__(self, weights, x_TxD, mlp, dtype):
        found = self.find(weights, x_TxD, mlp, dtype)
        if self.fallback:
            certain = self.proven(found, mlp).all()
            found = jax.lax.cond(certain, lambda found, *_: found, self._whole(mlp, dtype), found, weights["wi"], x_TxD)
        return _written(found, weights, x_TxD, mlp, dtype)

    def proven(self, found: Found, mlp: MLPConfig) -> jax.Array:
        """Whether no unit beyond the candidates is among the k largest activations of a token [T]."""
        if self.candidates == mlp.d_ff:
            return ~found.broken_T
        if mlp.sparsifier.act == "relu":
            return jnp.maximum(found.kth_T, 0) > found.score_T
        # GELU is at most 0 below 0 and rises above it; computed, it rises but for a few roundings.
        others_T = Gelu()(jnp.maximum(found.score_T, 0))
        margin = 1 - 8 * jnp.finfo(found.h_TxK.dtype).eps
        return (found.kth_T > 0) & (jnp.min(found.h_TxK, -1) * margin > others_T)

    def diagnose(self, weights, x_TxD, mlp, dtype):
        searched = super().diagnose(weights, x_TxD, mlp, dtype)
        certified_T = self.proven(self.find(weights, x_TxD, mlp, dtype), mlp)
        if not self.fallback:
            return searched.replace(certified=certified_T)
        return searched.replace(
            candidates=jnp.where(certified_T, searched.candidates, mlp.d_ff),
            recall=jnp.where(certified_T, searched.recall, 1),
            certified=certified_T,
        )

    def _whole(self, mlp: MLPConfig, dtype: str):
        """What finds the k largest in the whole product."""

        def find(found, wi, x_TxD):
            z_TxF = linear(wi, x_TxD, dtype)
            h_TxK, index_TxK = largest(ranked(z_TxF, mlp.sparsifier), mlp.sparsifier)
            return found._replace(h_TxK=h_TxK, index_TxK=index_TxK, broken_T=jnp.isnan(z_TxF).any(-1))

        return find


def best(score_TxF: jax.Array, candidates: int) -> tuple[jax.Array, jax.Array]:
    """The largest scores and their columns [T, C]; of equal ones, any.

    Of many, they lie in the C blocks whose own largest are the largest: two short searches for a long one.
    """
    tokens, units = score_TxF.shape
    blocks = units // BLOCK
    if units % BLOCK or blocks < BLOCKS * candidates:
        return top(score_TxF, candidates)
    score_TxNxB = score_TxF.reshape(tokens, blocks, BLOCK)
    largest_TxN = jnp.where(jnp.isnan(score_TxNxB), jnp.inf, score_TxNxB).max(-1)  # NaN ranks first, whatever its sign
    _, block_TxC = top(largest_TxN, candidates)
    within = jnp.take_along_axis(score_TxNxB, block_TxC[..., None], axis=1).reshape(tokens, -1)
    score_TxC, place_TxC = top(within, candidates)
    return score_TxC, jnp.take_along_axis(block_TxC, place_TxC // BLOCK, axis=1) * BLOCK + place_TxC % BLOCK


def _bounding(bound: jax.Array, dtype: str) -> jax.Array:
    """What is no less than the bound, float32, nor than it rounded to `dtype`: compilers round z, or leave it out."""
    info = jnp.finfo(dtype)
    return jnp.maximum(bound, jax.lax.reduce_precision(bound, info.nexp, info.nmant))


def _written(found: Found, weights: Weights, x_TxD: jax.Array, mlp: MLPConfig, dtype: str) -> jax.Array:
    y_TxD = kept_rows(weights, x_TxD, found.h_TxK, found.index_TxK, mlp, dtype)
    return jnp.where(found.broken_T[:, None], jnp.nan, y_TxD)


def by_svd(kernel_DxF: jax.Array, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """P [D, r] and Q [r, F] with which P Q is closest to a matrix [D, F], by the eigenvectors of W W^T in float64."""
    w_DxF = np.asarray(kernel_DxF, np.float64)
    if not 1 <= rank <= min(w_DxF.shape):
        raise ValueError(f"inference: LowRank's rank must be in 1..{min(w_DxF.shape)}, W_i's sizes: {rank}")
    _, vectors = np.linalg.eigh(w_DxF @ w_DxF.T)
    read_DxR = vectors[:, -rank:]
    return read_DxR, read_DxR.T @ w_DxF
