"""Modes that read both matrices whole."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax.numpy as jnp

from sparsity.layers.inference.base import Inference, gated, held, output
from sparsity.ops.sparse_matmul import whole


@dataclasses.dataclass(frozen=True)
class Dense(Inference):
    """All of both matrices: what sparse modes are to be compared with.

    Both lie as [out, in], which XLA reads fastest on a CPU for one token; W_o as training has it takes three times as
    long.
    """

    def lay_out(self, params, mlp, dtype, least_F=None):
        out = super().lay_out(params, mlp, dtype, least_F)
        bias = {name: x for name, x in out["wo"].items() if name == "bias"}
        return out | {"wo": {"columns": held(jnp.asarray(params["wo"]["kernel"]).T, dtype)} | bias}

    def __call__(self, weights, x_TxD, mlp, dtype):
        h_TxF = gated(weights, x_TxD, self.activated(weights, x_TxD, mlp, dtype), mlp, dtype)
        return output(whole(h_TxF, weights["wo"]["columns"]), weights, dtype)

    def together(self, weights, x_TxD, mlp, dtype):
        return self(weights, x_TxD, mlp, dtype)


@dataclasses.dataclass(frozen=True)
class DenseMask(Inference):
    """The training path: zeros are multiplied like any number. No faster; for what a sparsifier does to a task."""

    lays_out: ClassVar[bool] = False
