"""`Inference`: what every mode is, and what modes share."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import flax
import jax
import jax.numpy as jnp

from sparsity.ops.sparse_matmul import Tiled, active_units, gathered_matmul, matrix, rows_dot, weighted_rows, whole

if TYPE_CHECKING:
    from sparsity.layers.mlp import MLPConfig

Layer = Mapping[str, Any]  # rows [F, D], an array or `Tiled`, and bias if there is one
Weights = Mapping[str, Any]  # a `Layer` each of wi, wi_gate, wo; what a mode adds stands beside them


@flax.struct.dataclass
class Diagnosis:
    """What a mode does with each of T tokens; all [T].

    Attributes:
      candidates: units whose pre-activation is computed exactly.
      read: rows of W_o that are needed; where `capacity` of them are gathered at once, as `Threshold` does of gated
        MLPs and off CPUs, so many are read.
      recall: share of the units that the sparsifier keeps, and that are not zero, which are used; 1 if there are none.
      needed: the least number of candidates with which recall is 1.
      certified: it is proven that recall is 1.
    """

    candidates: jax.Array
    read: jax.Array
    recall: jax.Array
    needed: jax.Array
    certified: jax.Array


@dataclasses.dataclass(frozen=True)
class Inference:
    """Base of all modes.

    Attributes of a mode beside its settings:
      lays_out: it reads weights that `lay_out` made, not those of training.
    """

    lays_out: ClassVar[bool] = True

    def reason(self, mlp: MLPConfig) -> str | None:
        """Why an MLP of these settings cannot be computed like this; None: it can."""
        return None

    def check(self, mlp: MLPConfig) -> None:
        """Raises ValueError, naming mode and sparsifier, if an MLP of these settings cannot be computed like this."""
        reason = self.reason(mlp)
        if reason is not None:
            raise ValueError(f"inference: {type(self).__name__} of {type(mlp.sparsifier).__name__}: {reason}")

    def lay_out(self, params: Weights, mlp: MLPConfig, dtype: str, least_F: Any = None) -> dict[str, Any]:
        """An MLP's parameters in training's layout as the mode reads them.

        Args:
          least_F: of each unit, the smallest |phi(z)| that counts, see `Threshold`; no other mode has any.

        Raises:
          ValueError: `least_F` is missing, or is there in vain.
        """
        if least_F is not None:
            raise ValueError(f"inference: thresholds are given, which {type(self).__name__} has no use for")
        return rows_of(params, dtype, self.read_by_row(mlp))

    def read_by_row(self, mlp: MLPConfig) -> tuple[str, ...]:
        """The matrices of which a token's own rows are read: they lie so that a TPU can."""
        return ()

    def __call__(self, weights: Weights, x_TxD: jax.Array, mlp: MLPConfig, dtype: str) -> jax.Array:
        """The MLP's output [T, D] of a few tokens [T, D]."""
        raise NotImplementedError

    def activated(self, weights: Weights, x_TxD: jax.Array, mlp: MLPConfig, dtype: str) -> jax.Array:
        """phi(z) of all units [T, F], as the mode would have it if it missed none."""
        return mlp.sparsifier(linear(weights["wi"], x_TxD, dtype))

    def together(self, weights: Weights, x_TxD: jax.Array, mlp: MLPConfig, dtype: str) -> jax.Array:
        """The output [T, D] of more tokens than `ops.sparse_matmul.TOKENS`, as of a prompt.

        They need most rows between them: nothing is searched or gathered, and they share a product with each matrix.
        """
        h_TxF = self.activated(weights, x_TxD, mlp, dtype)
        return output(all_rows(weights, x_TxD, h_TxF, mlp, dtype), weights, dtype)

    def bytes_read(self, mlp: MLPConfig, d_model: int, itemsize: int, active: float) -> float:
        """Bytes of weights that one token's output takes at least, biases left out.

        Args:
          itemsize: bytes of a weight.
          active: units that are not zero, of sparsifiers that keep no number of units.
        """
        return itemsize * d_model * mlp.d_ff * (3 if mlp.gated else 2)

    def diagnose(self, weights: Weights, x_TxD: jax.Array, mlp: MLPConfig, dtype: str) -> Diagnosis:
        """What `__call__` does with these tokens, one at a time; found by whole products, which takes longer."""
        everything = jnp.full(len(x_TxD), mlp.d_ff)
        one = jnp.ones(len(x_TxD))
        return Diagnosis(everything, everything, one, everything, one > 0)


@dataclasses.dataclass(frozen=True)
class Alone(Inference):
    """`mode`, of every token by itself however many are read at once: what each would get if it were decoded.

    It saves nothing. It measures an approximation on whole texts, whose tokens are read together.
    """

    mode: Inference

    def check(self, mlp):
        self.mode.check(mlp)

    def lay_out(self, params, mlp, dtype, least_F=None):
        return self.mode.lay_out(params, mlp, dtype, least_F)

    def __call__(self, weights, x_TxD, mlp, dtype):
        return self.mode(weights, x_TxD, mlp, dtype)

    together = __call__

    def bytes_read(self, mlp, d_model, itemsize, active):
        return self.mode.bytes_read(mlp, d_model, itemsize, active)

    def diagnose(self, weights, x_TxD, mlp, dtype):
        return self.mode.diagnose(weights, x_TxD, mlp, dtype)


def rows_read(mlp: MLPConfig, d_model: int, itemsize: int, units: float) -> float:
    """Bytes of the rows of W_o, and of the gate's matrix, of some units."""
    return itemsize * d_model * units * (2 if mlp.gated else 1)


def elementwise_gate(mlp: MLPConfig) -> str | None:
    """Why rows of the gate's matrix cannot be read alone; None: they can."""
    if mlp.gate is not None and not mlp.gate.elementwise:
        return f"its gate {type(mlp.gate).__name__} acts on a whole token, so all of the gate's matrix is needed"
    return None


def held(x: Any, dtype: str) -> jax.Array:
    """`x` rounded to the compute dtype. On a CPU it is float32 at least: XLA would convert all of W, token by token."""
    x = jnp.asarray(x).astype(dtype)
    return x.astype(jnp.promote_types(dtype, jnp.float32)) if jax.default_backend() == "cpu" else x


def rows_of(params: Weights, dtype: str, by_row: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """All matrices of an MLP with one row a unit, [F, D], and its biases; on a TPU those `by_row` are `Tiled`."""
    out = {}
    for name in ("wi", "wi_gate", "wo"):
        if name in params:
            kernel = params[name]["kernel"]
            rows_FxD = held(kernel if name == "wo" else jnp.asarray(kernel).T, dtype)
            tiled = name in by_row and jax.default_backend() == "tpu"
            out[name] = {"rows": Tiled.of(rows_FxD) if tiled else rows_FxD}
            if "bias" in params[name]:
                out[name]["bias"] = jnp.asarray(params[name]["bias"]).astype(dtype)
    if "shared_bias" in params:
        out["wi"]["bias"] = jnp.full(params["wo"]["kernel"].shape[0], params["shared_bias"], dtype)
    return out


def linear(layer: Layer, x_TxD: jax.Array, dtype: str) -> jax.Array:
    """Pre-activations [T, F], rounded as training's are."""
    return _biased(rounded(whole(x_TxD, matrix(layer["rows"])), dtype), layer.get("bias"))


def linear_at(layer: Layer, x_TxD: jax.Array, index_TxK: jax.Array, dtype: str) -> jax.Array:
    """Pre-activations [T, K] of some units of each token, their rows alone being read."""
    bias_TxK = jnp.take(layer["bias"], index_TxK, mode="clip") if "bias" in layer else None
    return _biased(rounded(rows_dot(x_TxD, layer["rows"], index_TxK), dtype), bias_TxK)


def kept_rows(
    weights: Weights, x_TxD: jax.Array, h_TxK: jax.Array, index_TxK: jax.Array, mlp: MLPConfig, dtype: str
) -> jax.Array:
    """The output [T, D] of the activations of K units of each token, [of the gate's rows,] and of W_o's rows."""
    if mlp.gated:
        h_TxK = h_TxK * _opened(mlp, linear_at(weights["wi_gate"], x_TxD, index_TxK, dtype))
    return output(weighted_rows(h_TxK, index_TxK, weights["wo"]["rows"]), weights, dtype)


def active_rows(
    weights: Weights, x_TxD: jax.Array, h_TxF: jax.Array, capacity: int, mlp: MLPConfig, dtype: str
) -> jax.Array:
    """The output [T, D] of activations [T, F], read from the rows of the units that any token needs.

    With more than `capacity` of these it is that of whole products.
    """
    rows_FxD = matrix(weights["wo"]["rows"])
    if not mlp.gated:
        return output(gathered_matmul(h_TxF, rows_FxD, capacity), weights, dtype)

    def gathered(weights, x_TxD, h_TxF):
        index_C = active_units(h_TxF, capacity)
        take = lambda x, axis=0: jnp.take(x, index_C, axis=axis, mode="clip")
        gate = jax.tree.map(take, weights["wi_gate"])
        h_TxC = take(jnp.pad(h_TxF, ((0, 0), (0, 1))), 1) * _opened(mlp, linear(gate, x_TxD, dtype))
        return h_TxC.astype(rows_FxD.dtype) @ take(rows_FxD)

    dense = lambda weights, x_TxD, h_TxF: all_rows(weights, x_TxD, h_TxF, mlp, dtype)
    fits = jnp.sum(jnp.any(h_TxF != 0, axis=0)) <= capacity
    return output(jax.lax.cond(fits, gathered, dense, weights, x_TxD, h_TxF), weights, dtype)


def all_rows(weights: Weights, x_TxD: jax.Array, h_TxF: jax.Array, mlp: MLPConfig, dtype: str) -> jax.Array:
    """Sums over all units [T, D] of phi(z) [T, F], [times the gate,] times W_o."""
    rows_FxD = matrix(weights["wo"]["rows"])
    return gated(weights, x_TxD, h_TxF, mlp, dtype).astype(rows_FxD.dtype) @ rows_FxD


def gated(weights: Weights, x_TxD: jax.Array, h_TxF: jax.Array, mlp: MLPConfig, dtype: str) -> jax.Array:
    """phi(z) [T, F] of all units times the gate, if there is one; its matrix is read whole."""
    return h_TxF * _opened(mlp, linear(weights["wi_gate"], x_TxD, dtype)) if mlp.gated else h_TxF


def output(y_TxD: jax.Array, weights: Weights, dtype: str) -> jax.Array:
    """Sums over units as what the MLP writes: rounded, its bias added."""
    return _biased(y_TxD.astype(dtype), weights["wo"].get("bias"))


def poisoned(y_TxD: jax.Array, z_TxF: jax.Array) -> jax.Array:
    """`y`, NaN where a token has a pre-activation that is: NaN is never sparse, wherever it is ranked."""
    return jnp.where(jnp.isnan(z_TxF).any(-1, keepdims=True), jnp.nan, y_TxD)


def rounded(z: jax.Array, dtype: Any) -> jax.Array:
    """`z` in the compute dtype, rounded whatever is done with it: of a cast there and back XLA may do neither."""
    if z.dtype == dtype:
        return z
    info = jnp.finfo(dtype)
    return jax.lax.reduce_precision(z, info.nexp, info.nmant).astype(dtype)


def _biased(z: jax.Array, bias: jax.Array | None) -> jax.Array:
    if bias is None:
        return z
    wide = jnp.promote_types(z.dtype, jnp.float32)
    return rounded(z.astype(wide) + bias.astype(wide), z.dtype)


def _opened(mlp: MLPConfig, u: jax.Array) -> jax.Array:
    return u if mlp.gate is None else mlp.gate(u)
