"""Sparsifiers: functions from pre-activations z to activations h, many of them zero.

The one table, `SPARSIFIERS`, makes an entry usable by name in every model and config. To add
one, write a frozen dataclass with `__call__` and put it in the table: the tests walk it.

Every elementwise entry is written once over `xp` (jax.numpy or numpy) so that the theory can
integrate it in float64, and lets NaN through: NaN is never counted as sparse. At a kink the
derivative is that of the zero (or clipped) side, as in the papers' implementations.
"""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import erf as scipy_erf
from scipy.special import expit

from sparsity.ops import top_k
from sparsity.theory.gaussian import Moments, Piece, piecewise_linear

_INF = math.inf


@dataclasses.dataclass(frozen=True)
class Sparsifier:
    """Base of all sparsifiers: h = phi(z), elementwise unless `elementwise` is False.

    Attributes of an entry beside its settings:
      elementwise: phi acts on each number alone (then `xp=numpy` works too).
      zeros: phi has an exact zero set, so its density says something; False for gelu and kin.
    """

    elementwise: ClassVar[bool] = True
    zeros: ClassVar[bool] = True

    def __call__(self, z, xp=jnp):
        """phi(z), same shape and dtype as `z` [..., F]."""
        raise NotImplementedError

    def pieces(self) -> tuple[Piece, ...] | None:
        """Phi as straight pieces, from which closed-form moments follow; None if it has none."""
        return None

    def moments(self, q: float) -> Moments | None:
        """Closed-form float64 moments under z ~ N(0, q), or None where none is known."""
        pieces = self.pieces()
        return None if pieces is None else piecewise_linear(pieces, q)

    def check_width(self, d_ff: int) -> None:
        """Raises ValueError if the entry cannot serve a hidden layer of `d_ff` units."""


@dataclasses.dataclass(frozen=True)
class Relu(Sparsifier):
    """h = max(z, 0)."""

    def __call__(self, z, xp=jnp):
        return xp.where(z <= 0, xp.zeros_like(z), z)

    def pieces(self):
        return (Piece(0.0, _INF, 1.0, 0.0),)


@dataclasses.dataclass(frozen=True)
class ShiftedRelu(Sparsifier):
    """ReLU_tau: h = max(z - tau, 0), tau >= 0 (Price et al. 2024, Sec. 2)."""

    tau: float

    def __post_init__(self):
        _require(self.tau >= 0, f"tau: must be at least 0, got {self.tau}")

    def __call__(self, z, xp=jnp):
        return xp.where(z <= self.tau, xp.zeros_like(z), z - self.tau)

    def pieces(self):
        return (Piece(self.tau, _INF, 1.0, -self.tau),)


@dataclasses.dataclass(frozen=True)
class SoftThreshold(Sparsifier):
    """ST_tau: h = sign(z) max(|z| - tau, 0), tau >= 0 (Price et al. 2024, Sec. 2)."""

    tau: float

    def __post_init__(self):
        _require(self.tau >= 0, f"tau: must be at least 0, got {self.tau}")

    def __call__(self, z, xp=jnp):
        return xp.where(xp.abs(z) <= self.tau, xp.zeros_like(z), z - xp.sign(z) * self.tau)

    def pieces(self):
        return (Piece(-_INF, -self.tau, 1.0, self.tau), Piece(self.tau, _INF, 1.0, -self.tau))


@dataclasses.dataclass(frozen=True)
class ClippedRelu(Sparsifier):
    """CReLU_{tau,m}: h = min(max(z - tau, 0), m), tau >= 0, m > 0 (Price et al. 2024, Sec. 3)."""

    tau: float
    m: float

    def __post_init__(self):
        _require(self.tau >= 0, f"tau: must be at least 0, got {self.tau}")
        _require(self.m > 0, f"m: the clip must be positive, got {self.m}")

    def __call__(self, z, xp=jnp):
        clipped = xp.where(z >= self.tau + self.m, xp.full_like(z, self.m), z - self.tau)
        return xp.where(z <= self.tau, xp.zeros_like(z), clipped)

    def pieces(self):
        return (Piece(self.tau, self.tau + self.m, 1.0, -self.tau), Piece(self.tau + self.m, _INF, 0.0, self.m))


@dataclasses.dataclass(frozen=True)
class ClippedSoftThreshold(Sparsifier):
    """CST_{tau,m}: h = sign(z) min(max(|z| - tau, 0), m) (Price et al. 2024, Sec. 3)."""

    tau: float
    m: float

    def __post_init__(self):
        _require(self.tau >= 0, f"tau: must be at least 0, got {self.tau}")
        _require(self.m > 0, f"m: the clip must be positive, got {self.m}")

    def __call__(self, z, xp=jnp):
        size = xp.abs(z)
        clipped = xp.where(size >= self.tau + self.m, xp.sign(z) * self.m, z - xp.sign(z) * self.tau)
        return xp.where(size <= self.tau, xp.zeros_like(z), clipped)

    def pieces(self):
        knee = self.tau + self.m
        return (
            Piece(-_INF, -knee, 0.0, -self.m),
            Piece(-knee, -self.tau, 1.0, self.tau),
            Piece(self.tau, knee, 1.0, -self.tau),
            Piece(knee, _INF, 0.0, self.m),
        )


@dataclasses.dataclass(frozen=True)
class TopK(Sparsifier):
    """Top-k: keeps the k largest activations of each token, h = Top_k(act(z)) (Li et al. 2022, Eq. 9).

    With method exact, k units stay nonzero when at least k are positive, fewer when fewer are.
    Ties go to the lower index, as in `jax.lax.top_k`. NaN stays NaN.

    Attributes:
      k: units kept per token, 1 <= k <= d_ff; a divisor of d_ff for method group.
      act: the activation that Top-k ranks, "relu" or "gelu".
      method: how the units are found, see `ops.top_k`; statistical keeps about k.
      steps: counts that correct the threshold of statistical.
      recall_target: share of the true top k that approx finds on a TPU, in (0, 1].
    """

    k: int
    act: Literal["relu", "gelu"] = "relu"
    method: top_k.Method = "exact"
    steps: int = top_k.STEPS
    recall_target: float = 0.95

    elementwise: ClassVar[bool] = False

    def __post_init__(self):
        _require(self.k >= 1, f"k: must be at least 1, got {self.k}")
        _require(self.steps >= 0, f"steps: must be at least 0, got {self.steps}")
        _require(0 < self.recall_target <= 1, f"recall_target: must be in (0, 1], got {self.recall_target}")

    def __call__(self, z, xp=jnp):
        if xp is not jnp:
            raise ValueError("top_k ranks a whole token: it has no numpy form")
        # ReLU is monotone: ranking z gives the same values and saves a pass. GELU falls below -0.75.
        relu = self.act == "relu"
        h = z if relu else SPARSIFIERS[self.act]()(z)
        settings = {"relu": relu, "steps": self.steps, "recall_target": self.recall_target}
        return top_k.keep_top_k(h, self.k, self.method, **settings)

    def check_width(self, d_ff):
        _require(self.k <= d_ff, f"k: {self.k} is more than the d_ff {d_ff} units there are")
        divides = self.method != "group" or d_ff % self.k == 0
        _require(divides, f"k: method group keeps one of each of k equal blocks; {self.k} does not divide {d_ff}")


@dataclasses.dataclass(frozen=True)
class Gelu(Sparsifier):
    """h = z Phi(z), exact (erf), the dense reference of today's Transformers."""

    zeros: ClassVar[bool] = False

    def __call__(self, z, xp=jnp):
        erf = jax.lax.erf if xp is jnp else scipy_erf
        return z * (1 + erf(z / np.sqrt(2).astype(z.dtype))) / 2


@dataclasses.dataclass(frozen=True)
class Elu(Sparsifier):
    """h = z for z > 0, else exp(z) - 1."""

    zeros: ClassVar[bool] = False

    def __call__(self, z, xp=jnp):
        # The inner where keeps exp finite on the branch that is not taken.
        return xp.where(z > 0, z, xp.expm1(xp.where(z > 0, xp.zeros_like(z), z)))


@dataclasses.dataclass(frozen=True)
class Sigmoid(Sparsifier):
    """h = 1 / (1 + exp(-z))."""

    zeros: ClassVar[bool] = False

    def __call__(self, z, xp=jnp):
        return jax.nn.sigmoid(z) if xp is jnp else expit(z)


@dataclasses.dataclass(frozen=True)
class Tanh(Sparsifier):
    """h = tanh(z)."""

    zeros: ClassVar[bool] = False

    def __call__(self, z, xp=jnp):
        return xp.tanh(z)


@dataclasses.dataclass(frozen=True)
class Sat(Sparsifier):
    """h = max(min(z, 1/2), -1/2) (Bricken et al. 2023, Fig. 20)."""

    zeros: ClassVar[bool] = False

    def __call__(self, z, xp=jnp):
        # Not clip: at the bounds its derivative is one half.
        return xp.where(xp.abs(z) < 0.5, z, xp.sign(z) * xp.asarray(0.5, z.dtype))

    def pieces(self):
        return (Piece(-_INF, -0.5, 0.0, -0.5), Piece(-0.5, 0.5, 1.0, 0.0), Piece(0.5, _INF, 0.0, 0.5))


@dataclasses.dataclass(frozen=True)
class ReflectedRelu(Sparsifier):
    """h = max(-z, 0): noise must push its pre-activations up (Bricken et al. 2023, Fig. 20)."""

    def __call__(self, z, xp=jnp):
        return xp.where(z >= 0, xp.zeros_like(z), -z)

    def pieces(self):
        return (Piece(-_INF, 0.0, -1.0, 0.0),)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


SPARSIFIERS: dict[str, type[Sparsifier]] = {
    "relu": Relu,
    "shifted_relu": ShiftedRelu,
    "soft_threshold": SoftThreshold,
    "clipped_relu": ClippedRelu,
    "clipped_soft_threshold": ClippedSoftThreshold,
    "top_k": TopK,
    "gelu": Gelu,
    "elu": Elu,
    "sigmoid": Sigmoid,
    "tanh": Tanh,
    "sat": Sat,
    "reflected_relu": ReflectedRelu,
}
