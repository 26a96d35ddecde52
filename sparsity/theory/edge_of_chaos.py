"""The edge of chaos for sparsifying activations (Price et al. 2024, Secs. 2 and 3).

A target sparsity s fixes the threshold tau; chi_1(q*) = 1 fixes sigma_w^2; V(q*) = q* fixes
sigma_b^2; a target V'(q*) below 1 fixes the clip m. Everything scales: tau and m with sqrt(q*),
sigma_b^2 with q*, sigma_w^2 not at all, and V(q; q*) = q* V(q / q*; 1).
"""

from __future__ import annotations

import dataclasses
import functools
import math
import warnings
from collections.abc import Callable

from scipy.optimize import brentq
from scipy.special import ndtri

from sparsity.theory.gaussian import Activation, threshold_pieces
from sparsity.theory.maps import FixedPoint, MeanField

# Clips searched, in units of sqrt(q). Below, V' is lost in rounding; above, nothing is clipped.
_CLIPS = (1e-4, 40.0)


class BifurcationWarning(UserWarning):
    """The variance map has further fixed points, and a deep network may settle on one of them."""


@dataclasses.dataclass(frozen=True)
class EdgeOfChaos:
    """An initialisation on the edge of chaos: V(q) = q and chi_1(q) = 1.

    Attributes:
      sigma_w2: weight variance times fan-in.
      sigma_b2: bias variance.
      q: the fixed point q* asked for.
      v1, v2: V'(q*) and V''(q*).
      fixed_points: all fixed points of V, q* among them, with their stability.
      tau, m: threshold and clip, where `solve` chose them; m is infinite without a clip.
    """

    sigma_w2: float
    sigma_b2: float
    q: float
    v1: float
    v2: float
    fixed_points: tuple[FixedPoint, ...]
    tau: float | None = None
    m: float | None = None


def threshold(sparsity: float, q: float = 1.0, *, two_sided: bool = False) -> float:
    """The tau >= 0 below which a share `sparsity` of N(0, q) lies.

    tau = sqrt(q) Phi^-1(s); two-sided, |z| <= tau: tau = sqrt(q) Phi^-1((1 + s) / 2).

    Raises:
      ValueError: q is not positive, or s outside [0.5, 1) (two-sided: [0, 1)), where no tau >= 0 serves.

    >>> round(threshold(0.85), 2), round(threshold(0.85, two_sided=True), 2)
    (1.04, 1.44)
    """
    _check_q(q)
    least = 0.0 if two_sided else 0.5
    if not least <= sparsity < 1:
        kind = "a two-sided" if two_sided else "a one-sided"
        raise ValueError(f"sparsity: {kind} threshold tau >= 0 reaches [{least:g}, 1), got {sparsity}")
    return math.sqrt(q) * float(ndtri((1 + sparsity) / 2 if two_sided else sparsity))


def clip(family: Callable[[float], Activation], slope: float, q: float = 1.0, least: float = 0.0) -> float:
    """The m at which the activation `family(m)`, put on the edge of chaos at `q`, has V'(q) = `slope`.

    V'(q) = E[phi^2 He_2(z / sqrt(q))] / (2 q E phi'^2), which grows with m. `least` bounds m from below.

    Raises:
      ValueError: slope outside (0, 1), or out of reach of m in [least, 40 sqrt(q)]; the range is named.
    """
    _check_q(q)
    if not 0 < slope < 1:
        raise ValueError(f"slope: V'(q*) of a clipped activation is in (0, 1), got {slope}")

    def v1(m):
        activation = family(m)
        return float(activation.power(q, 2, hermite=2) / (2 * q * activation.slope_power(q, 2)))

    lo, hi = max(least, _CLIPS[0] * math.sqrt(q)), _CLIPS[1] * math.sqrt(q)
    reach = v1(lo), v1(hi)
    if not reach[0] < slope < reach[1]:
        raise ValueError(
            f"slope: V'(q*) in ({reach[0]:.4g}, {reach[1]:.10g}) is within reach of m in [{lo:.3g}, {hi:.3g}], "
            f"got {slope}"
        )
    return float(brentq(lambda m: v1(m) - slope, lo, hi, xtol=1e-14 * math.sqrt(q), rtol=1e-14))


def at(activation: Activation, q: float = 1.0) -> EdgeOfChaos:
    """The edge of chaos of any activation at `q`: sigma_w^2 = 1 / E phi'^2, sigma_b^2 = q - sigma_w^2 E phi^2.

    Warns:
      BifurcationWarning: V has fixed points beside q (and 0); all are named.

    Raises:
      ValueError: q is not positive; phi jumps, so that chi_1, the slope of the correlation map at 1, is infinite; phi
        is flat at q; or sigma_b^2 would be negative.
    """
    found = _at(activation, float(q))
    if sum(f.q > 0 for f in found.fixed_points) > 1:
        listed = ", ".join(map(str, found.fixed_points))
        warnings.warn(f"V'({q:g}) = {found.v1:.3g}: V has several fixed points: {listed}", BifurcationWarning, 2)
    return found


@functools.lru_cache(maxsize=256)  # configs are built many times; a warning is not cached
def _at(activation: Activation, q: float) -> EdgeOfChaos:
    _check_q(q)
    if activation.jumps:
        raise ValueError(f"q: the activation jumps at {activation.jumps[0]:g}: no weight variance gives chi_1 = 1")
    slope = float(activation.slope_power(q, 2))
    if not slope > 0:
        raise ValueError(f"q: the activation is flat under N(0, {q:g}), so no weight variance gives chi_1 = 1")
    sigma_w2 = 1 / slope
    sigma_b2 = q - sigma_w2 * float(activation.power(q, 2))
    if sigma_b2 < -1e-9 * q:
        raise ValueError(f"q: chi_1({q:g}) = 1 and V({q:g}) = {q:g} need a negative bias variance, {sigma_b2:.4g}")
    # Homogeneous activations need none; rounding leaves some 1e-16.
    sigma_b2 = 0.0 if sigma_b2 < 1e-12 * q else sigma_b2
    field = MeanField(activation, sigma_w2, sigma_b2)
    slope, curvature = float(field.variance_slope(q)), float(field.variance_curvature(q))
    return EdgeOfChaos(sigma_w2, sigma_b2, q, slope, curvature, field.fixed_points(q))


def solve(sparsity: float, slope: float | None = None, q: float = 1.0, *, two_sided: bool = False) -> EdgeOfChaos:
    """Threshold, clip and weights from a target sparsity and a target V'(q) (Price et al. 2024, Sec. 3).

    Args:
      sparsity: expected share of zeros at q; [0.5, 1) one-sided, [0, 1) two-sided.
      slope: target V'(q) in (0, 1); None for no clip, where V'(q) = 1.
      q: the fixed point q*.
      two_sided: soft threshold rather than shifted ReLU.

    Warns:
      BifurcationWarning: `slope` is above `bifurcation(...)`; all fixed points are named.

    Raises:
      ValueError: a target out of range; the message names the range.

    >>> found = solve(0.85, 0.7)
    >>> round(found.tau, 2), round(found.m, 2), round(found.sigma_w2, 3), round(found.sigma_b2, 3)
    (1.04, 1.17, 7.335, 0.595)
    """
    tau = threshold(sparsity, q, two_sided=two_sided)
    m = math.inf if slope is None else _clip(tau, slope, q, two_sided)
    return dataclasses.replace(at(thresholded(tau, m, two_sided=two_sided), q), tau=tau, m=m)


@functools.lru_cache(maxsize=256)
def _clip(tau: float, slope: float, q: float, two_sided: bool) -> float:
    return clip(lambda m: thresholded(tau, m, two_sided=two_sided), slope, q)


@functools.lru_cache(maxsize=256)
def thresholded(tau: float, m: float = math.inf, *, two_sided: bool = False) -> Activation:
    """Shifted ReLU or, two-sided, soft threshold, clipped at m: the four activations of Price et al. 2024.

    Raises:
      ValueError: tau < 0 or m <= 0.
    """
    if not tau >= 0:
        raise ValueError(f"tau: must be at least 0, got {tau}")
    if not m > 0:
        raise ValueError(f"m: the clip must be positive, got {m}")
    return Activation.of_pieces(threshold_pieces(tau, m, two_sided=two_sided))


@functools.lru_cache(maxsize=64)
def bifurcation(sparsity: float, *, two_sided: bool = False) -> float:
    """The smallest V'(q*) at which the clipped activation's V has a second fixed point; 1 if none below 1.

    Independent of q*. By bisection on the number of fixed points, to 1e-6 (Price et al. 2024, Fig. 4).

    Raises:
      ValueError: sparsity out of range.

    >>> round(bifurcation(0.85), 3), round(bifurcation(0.85, two_sided=True), 3)
    (0.921, 0.84)
    """
    tau = threshold(sparsity, two_sided=two_sided)

    def several(slope):
        m = clip(lambda m: thresholded(tau, m, two_sided=two_sided), slope)
        return len(_at(thresholded(tau, m, two_sided=two_sided), 1.0).fixed_points) > 1

    lo, hi = 0.05, 1 - 1e-6
    if not several(hi):
        return 1.0
    while hi - lo > 1e-6:
        middle = (lo + hi) / 2
        lo, hi = (lo, middle) if several(middle) else (middle, hi)
    return hi


def _check_q(q: float) -> None:
    if not (q > 0 and math.isfinite(q)):
        raise ValueError(f"q: a variance must be positive, got {q}")
    if not 1e-60 < q < 1e60:  # its powers would not be finite
        raise ValueError(f"q: must be in (1e-60, 1e60), got {q}")
