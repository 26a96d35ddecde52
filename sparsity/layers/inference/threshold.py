"""The mode that reads the rows of the units that are not zero."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from sparsity.layers.inference.base import Diagnosis, Inference, Weights, active_rows, elementwise_gate, rows_read
from sparsity.layers.inference.gather import recall
from sparsity.ops.top_k import kept_count


@dataclasses.dataclass(frozen=True)
class Threshold(Inference):
    """All of W_i, of W_o the rows of units that are not zero: h_i = phi(z_i), 0 where |phi(z_i)| < least_i if given.

    Without `least` the zeros are phi's own, and nothing is lost: below 0 of ReLU, up to tau of Price et al.'s, on both
    sides where they have two. Activations without zeros need thresholds found beforehand (CATS, Lee et al. 2024; TEAL,
    Liu et al. 2024), those of the evaluators `quantiles` or `thresholds`: the output is then that of `Context.tail`
    "cut". Of a gated MLP the rows of the gate's matrix are saved too, so that thresholds are of phi(z), as in CATS,
    before the product.

    Attributes:
      capacity: units that may be active, in any of the few tokens read at a time; with more, both products are dense,
        and exact. Choose the number at which that is as fast.
    """

    capacity: int

    def __post_init__(self):
        if self.capacity < 1:
            raise ValueError(f"capacity: must be at least 1, got {self.capacity}")

    def reason(self, mlp):
        if not mlp.sparsifier.elementwise:
            return "its threshold is another one for every token; use GatherOut"
        if self.capacity > mlp.d_ff:
            return f"capacity {self.capacity} is more than the d_ff {mlp.d_ff} units there are"
        return elementwise_gate(mlp)

    def lay_out(self, params, mlp, dtype, least_F=None):
        if least_F is None and not mlp.sparsifier.zeros:
            name = type(mlp.sparsifier).__name__
            raise ValueError(f"inference: Threshold of {name}: it has no zeros, and no thresholds are given")
        out = super().lay_out(params, mlp, dtype)
        return out if least_F is None else out | {"least": jnp.asarray(least_F, jnp.float32)}

    def __call__(self, weights, x_TxD, mlp, dtype):
        return active_rows(weights, x_TxD, self.activated(weights, x_TxD, mlp, dtype), self.capacity, mlp, dtype)

    def activated(self, weights, x_TxD, mlp, dtype):
        return _cut(super().activated(weights, x_TxD, mlp, dtype), weights)

    def bytes_read(self, mlp, d_model, itemsize, active):
        if active > self.capacity:
            return super().bytes_read(mlp, d_model, itemsize, active)
        return itemsize * d_model * mlp.d_ff + rows_read(mlp, d_model, itemsize, active)

    def diagnose(self, weights, x_TxD, mlp, dtype):
        whole_TxF = super().activated(weights, x_TxD, mlp, dtype)
        h_TxF = _cut(whole_TxF, weights)
        count_T, recall_T = kept_count(h_TxF), recall(whole_TxF != 0, h_TxF != 0)
        full_T = jnp.full_like(count_T, mlp.d_ff)
        read_T = jnp.where(count_T > self.capacity, full_T, count_T)
        return Diagnosis(full_T, read_T, recall_T, full_T, recall_T == 1)


def _cut(h_TxF: jax.Array, weights: Weights) -> jax.Array:
    """phi(z) without what is below the thresholds, if there are any."""
    if "least" not in weights:
        return h_TxF
    # Written so that NaN is kept.
    return jnp.where(jnp.abs(h_TxF).astype(jnp.float32) < weights["least"], 0, h_TxF)
