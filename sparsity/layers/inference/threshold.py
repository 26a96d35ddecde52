"""The mode that reads the rows of the units that are not zero."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from sparsity.layers.inference.base import Diagnosis, Inference, active_rows, elementwise_gate, linear
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
      capacity: units that may be active, in any of the tokens read at a time; with more, both products are dense, and
        exact. Choose the number at which that is as fast.
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
        return active_rows(weights, x_TxD, self._activations(weights, x_TxD, mlp, dtype), self.capacity, mlp, dtype)

    def diagnose(self, weights, x_TxD, mlp, dtype):
        count_T = kept_count(self._activations(weights, x_TxD, mlp, dtype))
        full_T, one_T = jnp.full_like(count_T, mlp.d_ff), jnp.ones(len(x_TxD))
        return Diagnosis(full_T, jnp.where(count_T > self.capacity, full_T, count_T), one_T, full_T, one_T > 0)

    def _activations(self, weights, x_TxD, mlp, dtype):
        h_TxF = mlp.sparsifier(linear(weights["wi"], x_TxD, dtype))
        if "least" not in weights:
            return h_TxF
        # Written so that NaN is kept.
        return jnp.where(jnp.abs(h_TxF).astype(jnp.float32) < weights["least"], 0, h_TxF)
