"""The mode that reads the first matrix whole and of the second the rows of the units that Top-k keeps."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from sparsity.layers.inference.base import (
    Diagnosis,
    Inference,
    active_rows,
    elementwise_gate,
    kept_rows,
    linear,
    poisoned,
    rows_read,
)
from sparsity.ops import top_k
from sparsity.ops.sparsifiers import Gelu, TopK

if TYPE_CHECKING:
    from sparsity.layers.mlp import MLPConfig

SEARCHED = ("exact", "approx")  # methods that aim at the k largest, no more and no fewer
SPARE = 2  # times k: room for a method that keeps about k


@dataclasses.dataclass(frozen=True)
class GatherOut(Inference):
    """All of W_i, k rows of W_o (Li et al. 2022, Fig. 7): at most twice as fast as `Dense`.

    Attributes:
      method: how the k units are found, see `ops.top_k`; None: as in training. Methods statistical and group compute
        the whole h; with more than twice as many units as they should keep, the product is dense.
    """

    method: top_k.Method | None = None

    def reason(self, mlp):
        return not_top_k(mlp) or elementwise_gate(mlp) or self._too_wide(mlp)

    def read_by_row(self, mlp):
        return ("wi_gate", "wo") if self._as_asked(mlp).method in SEARCHED else ()

    def __call__(self, weights, x_TxD, mlp, dtype):
        z_TxF = linear(weights["wi"], x_TxD, dtype)
        sparsifier = self._as_asked(mlp)
        if sparsifier.method in SEARCHED:
            h_TxK, index_TxK = largest(ranked(z_TxF, sparsifier), sparsifier, sparsifier.method == "approx")
            return poisoned(kept_rows(weights, x_TxD, h_TxK, index_TxK, mlp, dtype), z_TxF)
        capacity = min(mlp.d_ff, SPARE * sparsifier.k * len(x_TxD))
        return active_rows(weights, x_TxD, sparsifier(z_TxF), capacity, mlp, dtype)

    def activated(self, weights, x_TxD, mlp, dtype):
        return self._as_asked(mlp)(linear(weights["wi"], x_TxD, dtype))

    def bytes_read(self, mlp, d_model, itemsize, active):
        return itemsize * d_model * mlp.d_ff + rows_read(mlp, d_model, itemsize, mlp.sparsifier.k)

    def diagnose(self, weights, x_TxD, mlp, dtype):
        z_TxF = linear(weights["wi"], x_TxD, dtype)
        trained, asked = mlp.sparsifier, self._as_asked(mlp)
        kept_TxF = asked(z_TxF) != 0
        count_T = jnp.full(len(x_TxD), asked.k) if asked.method in SEARCHED else jnp.sum(kept_TxF, -1)
        full_T = jnp.full_like(count_T, mlp.d_ff)
        read_T = jnp.where(count_T > SPARE * asked.k, full_T, count_T)
        exact = trained.method in SEARCHED
        wanted_TxF = exact_set(ranked(z_TxF, trained), trained) if exact else trained(z_TxF) != 0
        same = asked.method == ("exact" if trained.method == "approx" else trained.method)
        return Diagnosis(full_T, read_T, recall(wanted_TxF, kept_TxF), full_T, jnp.full(len(x_TxD), same))

    def _too_wide(self, mlp: MLPConfig) -> str | None:
        try:
            self._as_asked(mlp).check_width(mlp.d_ff)
        except ValueError as error:
            return str(error)

    def _as_asked(self, mlp: MLPConfig) -> TopK:
        return mlp.sparsifier if self.method is None else dataclasses.replace(mlp.sparsifier, method=self.method)


def not_top_k(mlp: MLPConfig) -> str | None:
    """Why the k largest units are not what the MLP needs; None: they are."""
    if not isinstance(mlp.sparsifier, TopK):
        return "it keeps no number of units; Threshold reads those that are not zero, or train it with top_k"
    if mlp.sparsifier.anneal:
        return "its k is still annealed"
    return None


def ranked(z: jax.Array, sparsifier: TopK) -> jax.Array:
    """What Top-k compares, of pre-activations of whole tokens or of some units: z for ReLU, which keeps its order."""
    return z if sparsifier.act == "relu" else Gelu()(z)


def largest(r_TxF: jax.Array, sparsifier: TopK, approx: bool = False) -> tuple[jax.Array, jax.Array]:
    """The activations of the k largest of each row, and their columns, both [T, k]; ties go to the lower column."""
    value_TxK, index_TxK = top(r_TxF, sparsifier.k, sparsifier.recall_target if approx else None)
    return jnp.maximum(value_TxK, 0) if sparsifier.act == "relu" else value_TxK, index_TxK


def top(r_TxF: jax.Array, k: int, recall_target: float | None = None) -> tuple[jax.Array, jax.Array]:
    """The k largest of each row and their columns [T, k], from the largest down; approximate given a recall.

    On CPUs this is a partial sort, many times faster than to sort all of F, which XLA falls back to with bfloat16, or
    where only one of the results is used, or a slice. The barriers hide from it that it could.
    """
    wide = jax.lax.optimization_barrier(r_TxF.astype(jnp.promote_types(r_TxF.dtype, jnp.float32)))
    if recall_target is None:
        found = jax.lax.top_k(wide, k)
    else:
        top_k.warn_exact(r_TxF.shape[-1], k, recall_target, jax.default_backend())
        found = jax.lax.approx_max_k(wide, k, recall_target=recall_target)
    value_TxK, index_TxK = jax.lax.optimization_barrier(found)
    return value_TxK.astype(r_TxF.dtype), index_TxK


def exact_set(r_TxF: jax.Array, sparsifier: TopK) -> jax.Array:
    """True at the units that exact Top-k keeps and whose activations are not zero [T, F]."""
    return top_k.top_k_mask(r_TxF, sparsifier.k) & ((r_TxF > 0) if sparsifier.act == "relu" else (r_TxF != 0))


def recall(exact_TxF: jax.Array, found_TxF: jax.Array) -> jax.Array:
    """Share of the True in `exact` that are True in `found` [T]; 1 where there are none."""
    wanted_T = jnp.sum(exact_TxF, -1)
    return jnp.where(wanted_T > 0, jnp.sum(exact_TxF & found_TxF, -1) / jnp.maximum(wanted_T, 1), 1.0)
