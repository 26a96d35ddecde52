"""ReLU and its kin: zero below a threshold, exactly.

Those of Price et al. 2024 take their settings directly (tau, m), or as targets that the theory
resolves: the expected share of zeros (sparsity) and V'(q) on the edge of chaos (slope) under
pre-activations N(0, q), q = 1 unless given (Sec. 3). Either way tau and m are there afterwards, and
a config that was written out with both must be consistent.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import ClassVar

import jax.numpy as jnp

from sparsity.ops.sparsifiers.base import Sparsifier, require
from sparsity.theory import edge_of_chaos
from sparsity.theory.gaussian import Piece, threshold_pieces

_INF = math.inf


@dataclasses.dataclass(frozen=True)
class Relu(Sparsifier):
    """h = max(z, 0)."""

    def __call__(self, z, xp=jnp):
        return xp.where(z <= 0, xp.zeros_like(z), z)

    def pieces(self):
        return (Piece(0.0, _INF, 1.0, 0.0),)


@dataclasses.dataclass(frozen=True)
class ShiftedRelu(Sparsifier):
    """ReLU_tau: h = max(z - tau, 0), tau >= 0 (Price et al. 2024, Sec. 2).

    Attributes:
      tau: the threshold; or
      sparsity: the share of zeros under N(0, q), in [0.5, 1), that it is to give.
      q: variance of the pre-activations for `sparsity`; 1 if not given.
    """

    tau: float | None = None
    sparsity: float | None = None
    q: float | None = None

    def __post_init__(self):
        _resolve(self, ("sparsity",), lambda: (edge_of_chaos.threshold(self.sparsity, self.q),))

    def __call__(self, z, xp=jnp):
        return xp.where(z <= self.tau, xp.zeros_like(z), z - self.tau)

    def pieces(self):
        return threshold_pieces(self.tau)


@dataclasses.dataclass(frozen=True)
class SoftThreshold(Sparsifier):
    """ST_tau: h = sign(z) max(|z| - tau, 0), tau >= 0 (Price et al. 2024, Sec. 2).

    Attributes:
      tau: the threshold; or
      sparsity: the share of zeros under N(0, q), in [0, 1), that it is to give.
      q: variance of the pre-activations for `sparsity`; 1 if not given.
    """

    tau: float | None = None
    sparsity: float | None = None
    q: float | None = None

    def __post_init__(self):
        _resolve(self, ("sparsity",), lambda: (edge_of_chaos.threshold(self.sparsity, self.q, two_sided=True),))

    def __call__(self, z, xp=jnp):
        return xp.where(xp.abs(z) <= self.tau, xp.zeros_like(z), z - xp.sign(z) * self.tau)

    def pieces(self):
        return threshold_pieces(self.tau, two_sided=True)


@dataclasses.dataclass(frozen=True)
class _Clipped(Sparsifier):
    """What the clipped activations share: zero up to a threshold tau, constant beyond a clip m.

    Attributes:
      tau, m: threshold and clip; or
      sparsity: the share of zeros under N(0, q), in [0.5, 1) or, two-sided, [0, 1), that tau is to give, and
      slope: V'(q) on the edge of chaos, in (0, 1), that m is to give.
      q: variance of the pre-activations for these; 1 if not given.
    """

    tau: float | None = None
    m: float | None = None
    sparsity: float | None = None
    slope: float | None = None
    q: float | None = None

    two_sided: ClassVar[bool]

    def __post_init__(self):
        _resolve(self, ("sparsity", "slope"), lambda: _solve(self))

    def pieces(self):
        return threshold_pieces(self.tau, self.m, two_sided=self.two_sided)


@dataclasses.dataclass(frozen=True)
class ClippedRelu(_Clipped):
    """CReLU_{tau,m}: h = min(max(z - tau, 0), m), tau >= 0, m > 0 (Price et al. 2024, Sec. 3).

    Given by (tau, m) or by (sparsity, slope, q), see `_Clipped`.
    """

    two_sided: ClassVar[bool] = False

    def __call__(self, z, xp=jnp):
        clipped = xp.where(z >= self.tau + self.m, xp.full_like(z, self.m), z - self.tau)
        return xp.where(z <= self.tau, xp.zeros_like(z), clipped)


@dataclasses.dataclass(frozen=True)
class ClippedSoftThreshold(_Clipped):
    """CST_{tau,m}: h = sign(z) min(max(|z| - tau, 0), m) (Price et al. 2024, Sec. 3).

    Given by (tau, m) or by (sparsity, slope, q), see `_Clipped`.
    """

    two_sided: ClassVar[bool] = True

    def __call__(self, z, xp=jnp):
        size = xp.abs(z)
        clipped = xp.where(size >= self.tau + self.m, xp.sign(z) * self.m, z - xp.sign(z) * self.tau)
        return xp.where(size <= self.tau, xp.zeros_like(z), clipped)


@dataclasses.dataclass(frozen=True)
class SmoothClippedRelu(Sparsifier):
    """A once differentiable CReLU: each kink becomes a parabola over [kink - width, kink + width].

    With [u] = min(max(u, 0), 2 width): h = [z - tau + width]^2 / (4 width)
    + min(max(z - tau - width, 0), m) - [z - tau - m + width]^2 / (4 width), which is CReLU_{tau,m}
    averaged over a box of half-width `width` (the open question of Price et al. 2024, Sec. 5).

    A parabola, not a softplus, so that zeros stay exact: h = 0 for z <= tau - width, and the density
    is P(z > tau - width). Counting |h| <= eps as zero too, with eps <= width, adds the units up to
    z = tau - width + 2 sqrt(width eps); see `Activation.share_above`.

    Attributes:
      width: half-width of the parabolas, in units of z; in (0, m / 2].
      tau, m: threshold and clip (the middles of the parabolas); or
      sparsity, slope, q: as in `ClippedRelu`; the zeros counted are the exact ones.
    """

    width: float
    tau: float | None = None
    m: float | None = None
    sparsity: float | None = None
    slope: float | None = None
    q: float | None = None

    two_sided: ClassVar[bool] = False

    def __post_init__(self):
        require(self.width > 0, f"width: must be positive, got {self.width}")
        _resolve(self, ("sparsity", "slope"), lambda: _solve_smooth(self))
        # A resolved m may sit on this bound but for rounding.
        require(self.width <= self.m / 2 * (1 + 1e-9), f"width: must be at most m / 2 = {self.m / 2}, got {self.width}")
        require(
            not self.two_sided or self.width <= self.tau * (1 + 1e-9),
            f"width: must be at most tau = {self.tau}, got {self.width}",
        )

    def __call__(self, z, xp=jnp):
        w = self.width
        bend = lambda kink: xp.clip(z - (kink - w), 0, 2 * w) ** 2 / (4 * w)
        return bend(self.tau) + xp.clip(z - (self.tau + w), 0, self.m) - bend(self.tau + self.m)

    def breaks(self):
        kinks = [kink + side for kink in (self.tau, self.tau + self.m) for side in (-self.width, self.width)]
        return tuple(sorted([*kinks, *(-k for k in kinks)] if self.two_sided else kinks))


@dataclasses.dataclass(frozen=True)
class SmoothClippedSoftThreshold(SmoothClippedRelu):
    """A once differentiable CST: h = sign(z) g(|z|), g the `SmoothClippedRelu` of the same settings.

    The density is P(|z| > tau - width). The settings are those of `SmoothClippedRelu`, with width <= tau.
    """

    two_sided: ClassVar[bool] = True

    def __call__(self, z, xp=jnp):
        return xp.sign(z) * super().__call__(xp.abs(z), xp)


@dataclasses.dataclass(frozen=True)
class JumpRelu(Sparsifier):
    """h = z where z > theta, else 0 (Rajamanoharan et al. 2024, Eq. 3, with one theta for all units).

    theta is a setting, not learnt: its own gradient would be that of the jump, which is zero almost everywhere. The
    jump has no edge of chaos: perturbations that cross it grow whatever the weights are.

    Attributes:
      theta: the threshold, at least 0.
    """

    theta: float

    def __post_init__(self):
        require(self.theta >= 0, f"theta: must be at least 0, got {self.theta}")

    def __call__(self, z, xp=jnp):
        return xp.where(z <= self.theta, xp.zeros_like(z), z)

    def pieces(self):
        return (Piece(self.theta, _INF, 1.0, 0.0),)


@dataclasses.dataclass(frozen=True)
class ReluSquared(Sparsifier):
    """h = max(z, 0)^2 (So et al. 2021, Primer, Sec. 3)."""

    def __call__(self, z, xp=jnp):
        return xp.where(z <= 0, xp.zeros_like(z), z) ** 2

    def breaks(self):
        return (0.0,)


@dataclasses.dataclass(frozen=True)
class ReflectedRelu(Sparsifier):
    """h = max(-z, 0): noise must push its pre-activations up (Bricken et al. 2023, Fig. 20)."""

    def __call__(self, z, xp=jnp):
        return xp.where(z >= 0, xp.zeros_like(z), -z)

    def pieces(self):
        return (Piece(-_INF, 0.0, -1.0, 0.0),)


def _resolve(entry: Sparsifier, targets: tuple[str, ...], solve: Callable[[], tuple[float, ...]]) -> None:
    """Settles tau (and m) of `entry`: given as they are, or solved from `targets` at q."""
    direct = ("tau", "m")[: len(targets)]
    ways = f"give {' and '.join(direct)}, or {' and '.join(targets)}"
    given = {name: getattr(entry, name) for name in (*direct, *targets)}
    wanted = [given[name] is not None for name in targets]
    require(
        all(wanted) or not any(wanted), f"{targets[wanted.index(False)] if False in wanted else ''}: missing; {ways}"
    )
    if all(wanted):
        if entry.q is None:
            object.__setattr__(entry, "q", 1.0)
        # Ten digits: the same config has the same hash on machines that differ in a last bit.
        for name, value in zip(direct, (float(f"{v:.10g}") for v in solve()), strict=True):
            require(
                given[name] is None or math.isclose(given[name], value, rel_tol=1e-8),
                f"{name}: {given[name]} is not the {value} that {', '.join(targets)} and q ask for; {ways}",
            )
            if given[name] is None:
                object.__setattr__(entry, name, value)
    for name in direct:
        require(getattr(entry, name) is not None, f"{name}: missing; {ways}")
    require(all(wanted) or entry.q is None, f"q: belongs to {' and '.join(targets)}; {direct[0]} is given directly")
    require(entry.tau >= 0, f"tau: must be at least 0, got {entry.tau}")
    require("m" not in direct or entry.m > 0, f"m: the clip must be positive, got {getattr(entry, 'm', None)}")


def _solve(entry: _Clipped) -> tuple[float, float]:
    found = edge_of_chaos.solve(entry.sparsity, entry.slope, entry.q, two_sided=entry.two_sided)
    return found.tau, found.m


def _solve_smooth(entry: SmoothClippedRelu) -> tuple[float, float]:
    tau, m = _smooth_clip(type(entry), entry.width, entry.sparsity, entry.slope, entry.q)
    edge_of_chaos.at(type(entry)(entry.width, tau, m).activation(), entry.q)  # warns of further fixed points
    return tau, m


@functools.lru_cache(maxsize=256)
def _smooth_clip(cls: type, width: float, sparsity: float, slope: float, q: float) -> tuple[float, float]:
    tau = edge_of_chaos.threshold(sparsity, q, two_sided=cls.two_sided) + width
    return tau, edge_of_chaos.clip(lambda m: cls(width, tau, m).activation(), slope, q, least=2 * width)
