"""Sparsifiers: functions from pre-activations z to activations h, many of them zero.

The one table, `SPARSIFIERS`, makes an entry usable by name in every model and config. To add
one, write a frozen dataclass with `__call__` and put it in the table: the tests walk it.

Every elementwise entry is written once over `xp` (jax.numpy or numpy) so that the theory can
integrate it in float64, and lets NaN through: NaN is never counted as sparse. At a kink the
derivative is that of the zero (or clipped) side, as in the papers' implementations.

The thresholded entries take their settings directly (tau, m), or as targets that the theory
resolves: the expected share of zeros (sparsity) and V'(q) on the edge of chaos (slope) under
pre-activations N(0, q), q = 1 unless given (Price et al. 2024, Sec. 3). Either way tau and m are
there afterwards, and a config that was written out with both must be consistent.

>>> ClippedRelu(sparsity=0.85, slope=0.7)
ClippedRelu(tau=1.036433389, m=1.17036734, sparsity=0.85, slope=0.7, q=1.0)
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import erf as scipy_erf
from scipy.special import expit

from sparsity.config import later
from sparsity.ops import top_k
from sparsity.theory import edge_of_chaos
from sparsity.theory.gaussian import Activation, Moments, Piece, piecewise_linear, quadrature, threshold_pieces

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
        _require(self.width > 0, f"width: must be positive, got {self.width}")
        _resolve(self, ("sparsity", "slope"), lambda: _solve_smooth(self))
        # A resolved m may sit on this bound but for rounding.
        _require(
            self.width <= self.m / 2 * (1 + 1e-9), f"width: must be at most m / 2 = {self.m / 2}, got {self.width}"
        )
        _require(
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
class TopK(Sparsifier):
    """Top-k: keeps the k largest activations of each token, h = Top_k(act(z)) (Li et al. 2022, Eq. 9).

    With method exact and ReLU, k units stay nonzero when at least k are positive, fewer when fewer
    are. GELU has no zero set but underflow: k units stay, negative values among them where fewer
    are positive. Ties go to the lower index, as in `jax.lax.top_k`. NaN stays NaN.

    Attributes:
      k: units kept per token, 1 <= k <= d_ff; a divisor of d_ff for method group.
      act: the activation that Top-k ranks, "relu" or "gelu".
      method: how the units are found, see `ops.top_k`; statistical keeps about k.
      steps: counts that correct the threshold of statistical.
      recall_target: share of the true top k that approx finds on a TPU, in (0, 1].
      anneal: steps over which the kept units fall from all to k, in a straight line, rounded down
        (Bricken et al. 2023, App. D); 0 for k from the start. Methods exact and statistical only.
    """

    k: int
    act: Literal["relu", "gelu"] = "relu"
    method: top_k.Method = "exact"
    steps: int = top_k.STEPS
    recall_target: float = 0.95
    anneal: int = later(0)

    elementwise: ClassVar[bool] = False

    def __post_init__(self):
        _require(self.k >= 1, f"k: must be at least 1, got {self.k}")
        _require(self.steps >= 0, f"steps: must be at least 0, got {self.steps}")
        _require(0 < self.recall_target <= 1, f"recall_target: must be in (0, 1], got {self.recall_target}")
        _require(self.anneal >= 0, f"anneal: must be at least 0, got {self.anneal}")
        fixed = self.method in ("approx", "group")
        _require(not (self.anneal and fixed), f"anneal: method {self.method} needs its k when compiling")

    def __call__(self, z, xp=jnp):
        return self._keep(z, self.k, xp)

    def at(self, step):
        return (lambda z: self._keep(z, self.kept(step, z.shape[-1]))) if self.anneal else self

    def kept(self, step, units: int) -> jax.Array:
        """Units kept of `units` at `step`: floor(units - (units - k) step / anneal), not below k; traced."""
        if not self.anneal:
            return jnp.int32(self.k)
        step, all_dropped = jnp.clip(jnp.asarray(step, jnp.int32), 0, self.anneal), units - self.k
        # ceil(all_dropped step / anneal), exactly: the product may wrap around, its distance to the multiple of
        # `anneal` that float32 finds nearby does not.
        near = jnp.floor(jnp.float32(all_dropped) * step.astype(jnp.float32) / self.anneal).astype(jnp.int32)
        left = all_dropped * step - near * self.anneal
        return units - (near - (-left) // self.anneal)

    def _keep(self, z, k, xp=jnp):
        if xp is not jnp:
            raise ValueError("top_k ranks a whole token: it has no numpy form")
        # ReLU is monotone: ranking z gives the same values and saves a pass. GELU falls below -0.75.
        relu = self.act == "relu"
        h = z if relu else SPARSIFIERS[self.act]()(z)
        settings = {"relu": relu, "steps": self.steps, "recall_target": self.recall_target}
        return top_k.keep_top_k(h, k, self.method, **settings)

    def check_width(self, d_ff):
        _require(self.k <= d_ff, f"k: {self.k} is more than the d_ff {d_ff} units there are")
        divides = self.method != "group" or d_ff % self.k == 0
        _require(divides, f"k: method group keeps one of each of k equal blocks; {self.k} does not divide {d_ff}")

    def resized(self, d_ff, to):
        k = max(1, round(self.k * to / d_ff))
        if self.method == "group":
            k = max(i for i in range(1, k + 1) if to % i == 0)
        return dataclasses.replace(self, k=k)


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


@dataclasses.dataclass(frozen=True)
class ReflectedRelu(Sparsifier):
    """h = max(-z, 0): noise must push its pre-activations up (Bricken et al. 2023, Fig. 20)."""

    def __call__(self, z, xp=jnp):
        return xp.where(z >= 0, xp.zeros_like(z), -z)

    def pieces(self):
        return (Piece(-_INF, 0.0, -1.0, 0.0),)


@functools.lru_cache(maxsize=256)  # one object per entry, so that the theory's own caches know it again
def _activation(entry: Sparsifier) -> Activation:
    pieces = entry.pieces()
    if pieces is not None:
        return Activation.of_pieces(pieces)
    return Activation(lambda z: entry(np.asarray(z, np.float64), np), None, entry.breaks())


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _resolve(entry: Sparsifier, targets: tuple[str, ...], solve: Callable[[], tuple[float, ...]]) -> None:
    """Settles tau (and m) of `entry`: given as they are, or solved from `targets` at q."""
    direct = ("tau", "m")[: len(targets)]
    ways = f"give {' and '.join(direct)}, or {' and '.join(targets)}"
    given = {name: getattr(entry, name) for name in (*direct, *targets)}
    wanted = [given[name] is not None for name in targets]
    _require(
        all(wanted) or not any(wanted), f"{targets[wanted.index(False)] if False in wanted else ''}: missing; {ways}"
    )
    if all(wanted):
        if entry.q is None:
            object.__setattr__(entry, "q", 1.0)
        # Ten digits: the same config has the same hash on machines that differ in a last bit.
        for name, value in zip(direct, (float(f"{v:.10g}") for v in solve()), strict=True):
            _require(
                given[name] is None or math.isclose(given[name], value, rel_tol=1e-8),
                f"{name}: {given[name]} is not the {value} that {', '.join(targets)} and q ask for; {ways}",
            )
            if given[name] is None:
                object.__setattr__(entry, name, value)
    for name in direct:
        _require(getattr(entry, name) is not None, f"{name}: missing; {ways}")
    _require(all(wanted) or entry.q is None, f"q: belongs to {' and '.join(targets)}; {direct[0]} is given directly")
    _require(entry.tau >= 0, f"tau: must be at least 0, got {entry.tau}")
    _require("m" not in direct or entry.m > 0, f"m: the clip must be positive, got {getattr(entry, 'm', None)}")


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


SPARSIFIERS: dict[str, type[Sparsifier]] = {
    "relu": Relu,
    "shifted_relu": ShiftedRelu,
    "soft_threshold": SoftThreshold,
    "clipped_relu": ClippedRelu,
    "clipped_soft_threshold": ClippedSoftThreshold,
    "smooth_clipped_relu": SmoothClippedRelu,
    "smooth_clipped_soft_threshold": SmoothClippedSoftThreshold,
    "top_k": TopK,
    "gelu": Gelu,
    "gelu_tanh": GeluTanh,
    "elu": Elu,
    "sigmoid": Sigmoid,
    "tanh": Tanh,
    "sat": Sat,
    "reflected_relu": ReflectedRelu,
}
