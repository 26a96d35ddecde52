"""`Sparsifier`: what every entry of the table is."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import ClassVar

import jax.numpy as jnp
import numpy as np

from sparsity.theory.gaussian import Activation, Moments, Piece, piecewise_linear, quadrature


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

    def at(self, step) -> Callable:
        """Phi at training step `step` (may be traced), z -> h; the same at all steps unless an entry says otherwise."""
        return self

    def pieces(self) -> tuple[Piece, ...] | None:
        """Phi as straight pieces, from which closed-form moments follow; None if it has none."""
        return None

    def breaks(self) -> tuple[float, ...]:
        """Where phi or one of its derivatives jumps, so that quadrature can run in between."""
        return ()

    def activation(self) -> Activation:
        """Phi as the theory takes it, in float64.

        Raises:
          ValueError: the entry is not elementwise.
        """
        if not self.elementwise:
            raise ValueError(f"{type(self).__name__} acts on a whole token: there is no theory of one unit alone")
        return _activation(self)

    def moments(self, q: float) -> Moments | None:
        """Float64 moments under z ~ N(0, q): in closed form, else by quadrature; None if not elementwise."""
        if not self.elementwise:
            return None
        pieces = self.pieces()
        if pieces is not None:
            return piecewise_linear(pieces, q)
        activation = self.activation()
        return quadrature(activation.phi, q, activation.breaks)

    def check_width(self, d_ff: int) -> None:
        """Raises ValueError if the entry cannot serve a hidden layer of `d_ff` units."""

    def resized(self, d_ff: int, to: int) -> Sparsifier:
        """The entry that is to a layer of `to` units what this one is to one of `d_ff`."""
        return self


@functools.lru_cache(maxsize=256)  # one object per entry, so that the theory's own caches know it again
def _activation(entry: Sparsifier) -> Activation:
    pieces = entry.pieces()
    if pieces is not None:
        return Activation.of_pieces(pieces)
    return Activation(lambda z: entry(np.asarray(z, np.float64), np), None, entry.breaks())


def require(condition: bool, message: str) -> None:
    """Raises ValueError with `message` unless `condition` holds."""
    if not condition:
        raise ValueError(message)
