"""Activations without a zero set: what networks have that are not sparse."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import erf as scipy_erf
from scipy.special import expit

from sparsity.ops.sparsifiers.base import Sparsifier
from sparsity.theory.gaussian import Piece

_INF = math.inf


@dataclasses.dataclass(frozen=True)
class Gelu(Sparsifier):
    """h = z Phi(z), exact (erf), the dense reference of today's Transformers."""

    zeros: ClassVar[bool] = False

    def __call__(self, z, xp=jnp):
        erf = jax.lax.erf if xp is jnp else scipy_erf
        return z * (1 + erf(z / np.sqrt(2).astype(z.dtype))) / 2


@dataclasses.dataclass(frozen=True)
class GeluTanh(Sparsifier):
    """h = z (1 + tanh(sqrt(2 / pi) (z + .044715 z^3))) / 2: the approximation of GELU that T5 v1.1 and GPT-2 use."""

    zeros: ClassVar[bool] = False

    def __call__(self, z, xp=jnp):
        # (1 + tanh u) / 2 is the sigmoid of 2 u, which does not cancel to 0 where u is very negative.
        sigmoid = jax.nn.sigmoid if xp is jnp else expit
        return z * sigmoid(np.sqrt(8 / np.pi).astype(z.dtype) * (z + 0.044715 * z**3))


@dataclasses.dataclass(frozen=True)
class Silu(Sparsifier):
    """h = z / (1 + exp(-z)), "swish": the gate of Llama's MLPs."""

    zeros: ClassVar[bool] = False

    def __call__(self, z, xp=jnp):
        return z * (jax.nn.sigmoid(z) if xp is jnp else expit(z))


@dataclasses.dataclass(frozen=True)
class Elu(Sparsifier):
    """h = z for z > 0, else exp(z) - 1."""

    zeros: ClassVar[bool] = False

    def __call__(self, z, xp=jnp):
        # The inner where keeps exp finite on the branch that is not taken.
        return xp.where(z > 0, z, xp.expm1(xp.where(z > 0, xp.zeros_like(z), z)))

    def breaks(self):
        return (0.0,)


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
