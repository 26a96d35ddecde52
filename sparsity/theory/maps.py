"""Mean-field theory of wide random networks: variance and correlation maps, Jacobians, finite width.

A layer is z_{l+1} = W phi(z_l) + b with W ~ N(0, sigma_w^2 / fan_in) and b ~ N(0, sigma_b^2), all
independent. In a wide network each pre-activation is Gaussian with a variance q_l that obeys
q_{l+1} = V(q_l) (Poole et al. 2016; Price et al. 2024, Sec. 2). Convolutions with circular padding
obey the same map, fan_in being channels times window.
"""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from typing import Literal

import numpy as np
from scipy.optimize import brentq

from sparsity.theory.gaussian import REACH, Activation, legendre, nodes

# |V(q) - q| below this share of q is a root: closed forms are good to some 1e-14.
_TOUCHES = 1e-11


@dataclasses.dataclass(frozen=True)
class FixedPoint:
    """A variance with V(q) = q.

    Attributes:
      q: the variance; for a neutral map (V(q) = q in the whole range) the `scale` asked about.
      slope: V'(q).
      stability: "stable" |V'| < 1; "unstable" |V'| > 1; "tangent" V' = 1 with V - id of one sign
        around q (a double root: stable from one side); "neutral" V = id.
    """

    q: float
    slope: float
    stability: Literal["stable", "unstable", "tangent", "neutral"]

    def __str__(self) -> str:
        return f"q = {self.q:.4g} ({self.stability}, V' = {self.slope:.3g})"


@dataclasses.dataclass(frozen=True)
class JacobianSpectrum:
    """Moments of the squared singular values of the input-output Jacobian: their mean and variance."""

    mean: float
    variance: float


@dataclasses.dataclass(frozen=True)
class Spread:
    """How far the variance of a network of finite width strays from q, over random networks.

    Attributes:
      variance: Var v_L of the true variance of a pre-activation given the layer below.
      measured: Var of (1/N) sum_i z_i^2 at layer L, the sampling of its N units included.
      drift: E v_L - q, to the order 1/N.
    """

    variance: float
    measured: float
    drift: float


@dataclasses.dataclass(frozen=True)
class MeanField:
    """The maps of one activation at one (sigma_w^2, sigma_b^2).

    Raises:
      ValueError: sigma_w2 is not positive or sigma_b2 is negative; in every method, q is not positive.

    >>> from sparsity.theory.gaussian import threshold_pieces
    >>> he = MeanField(Activation.of_pieces(threshold_pieces(0.0)), sigma_w2=2.0, sigma_b2=0.0)
    >>> float(he.variance(4.0)), float(he.chi_1(4.0))  # He initialisation keeps every variance
    (4.0, 1.0)
    """

    activation: Activation
    sigma_w2: float
    sigma_b2: float

    def __post_init__(self):
        if not (self.sigma_w2 > 0 and self.sigma_b2 >= 0):
            raise ValueError(f"sigma_w2 must be positive and sigma_b2 at least 0, got {self.sigma_w2}, {self.sigma_b2}")

    def variance(self, q):
        """V(q) = sigma_w^2 E phi(sqrt(q) x)^2 + sigma_b^2; elementwise in `q`."""
        return self.sigma_w2 * self.activation.power(q, 2) + self.sigma_b2

    def variance_slope(self, q):
        """V'(q) = sigma_w^2 E[phi^2 He_2(x)] / (2q); equals chi_1 where phi is homogeneous off its kinks."""
        return self.sigma_w2 * self.activation.power(q, 2, hermite=2) / (2 * np.asarray(q))

    def variance_curvature(self, q):
        """V''(q) = sigma_w^2 E[phi^2 He_4(x)] / (4 q^2)."""
        return self.sigma_w2 * self.activation.power(q, 2, hermite=4) / (4 * np.asarray(q) ** 2)

    def chi_1(self, q):
        """sigma_w^2 E phi'^2: the growth per layer of a small difference, and of gradients; elementwise in `q`."""
        return self.sigma_w2 * self.activation.slope_power(q, 2)

    def correlation(self, rho: float, q: float) -> float:
        """R(rho): the correlation after a layer of two inputs of variance `q` and correlation `rho`.

        R(rho) = (sigma_w^2 E[phi(z_1) phi(z_2)] + sigma_b^2) / V(q) (Price et al. 2024, Sec. 2; their
        denominator is q*, where V(q*) = q*). By nested quadrature between the kinks.

        Raises:
          ValueError: rho outside [-1, 1].
        """
        return float(
            (self.sigma_w2 * _pair(self.activation.phi, self.activation, rho, q) + self.sigma_b2) / self.variance(q)
        )

    def correlation_slope(self, rho: float, q: float) -> float:
        """R'(rho) = sigma_w^2 q E[phi'(z_1) phi'(z_2)] / V(q) (Price's theorem); R'(1) = chi_1 at q*."""
        return float(self.sigma_w2 * q * _pair(self.activation.slope, self.activation, rho, q) / self.variance(q))

    def fixed_points(self, scale: float = 1.0) -> tuple[FixedPoint, ...]:
        """All q in [1e-4, 1e6] `scale` with V(q) = q, ascending, and q = 0 if V(0) = 0.

        V - id is monotone between the roots of V' - 1, which are bracketed on a logarithmic grid
        (two of them within 2.3% of each other would be missed); on each such stretch it has at most
        one root. A root of V' - 1 that is itself a root of V - id is a tangent fixed point.
        """
        grid = scale * np.geomspace(1e-4, 1e6, 1000)
        excess = lambda q: float(self.variance(q) - q)
        if np.all(np.abs(self.variance(grid) - grid) < _TOUCHES * grid):
            return (FixedPoint(scale, 1.0, "neutral"),)
        turns = _roots(lambda q: float(self.variance_slope(q) - 1), grid, self.variance_slope(grid) - 1)
        touching = [q for q in turns if abs(excess(q)) < _TOUCHES * q]
        found = [FixedPoint(q, 1.0, "tangent") for q in touching]
        stretches = [grid[0], *turns, grid[-1]]
        for lo, hi in pairwise(stretches):
            if lo in touching or hi in touching or excess(lo) * excess(hi) > 0:
                continue
            q = lo if excess(lo) == 0 else brentq(excess, lo, hi, xtol=1e-15 * scale, rtol=1e-14)
            slope = float(self.variance_slope(q))
            found.append(FixedPoint(q, slope, "stable" if abs(slope) < 1 else "unstable"))
        if self.sigma_b2 == 0 and self.activation.phi(np.zeros(1))[0] == 0:
            slope = float(self.chi_1(1e-12 * scale))  # phi is linear at 0, so V' = chi_1 there
            found.append(FixedPoint(0.0, slope, "stable" if slope < 1 else "unstable"))
        return tuple(sorted(found, key=lambda f: f.q))

    def jacobian_spectrum(self, q: float, depth: int, orthogonal: bool = False) -> JacobianSpectrum:
        """Mean and variance of the squared singular values of prod_l D_l W_l over `depth` layers at `q`.

        With mu_k = E phi'^(2k): mean (sigma_w^2 mu_1)^L, variance mean^2 L (mu_2 / mu_1^2 - 1 - s_1),
        s_1 = -1 for Gaussian and 0 for orthogonal weights (Pennington et al. 2018; Price et al.
        2024, App. F, where the sign of s_1 is lost). On the edge of chaos with slopes 0 and 1 only:
        L sigma_w^2 and L (sigma_w^2 - 1).
        """
        mu_1, mu_2 = (float(self.activation.slope_power(q, p)) for p in (2, 4))
        mean = (self.sigma_w2 * mu_1) ** depth
        return JacobianSpectrum(mean, mean**2 * depth * (mu_2 / mu_1**2 - 1 + (0 if orthogonal else 1)))

    def spread(self, q: float, width: int, depth: int) -> Spread:
        """How the variance at layer `depth` scatters over networks of `width` N that start at the fixed point `q`.

        Given layer l, the units of layer l+1 are independent N(0, v_{l+1}) with
        v_{l+1} = sigma_b^2 + (sigma_w^2 / N) sum_i phi(z_i)^2, z_i ~ N(0, v_l): a Markov chain with
        mean V(v_l) and variance S(v_l) / N, S = sigma_w^4 (E phi^4 - (E phi^2)^2). Linearised at q,
        with v_1 = q exactly (an input of given norm, a first layer that preserves it),

            Var v_{l+1} = V'^2 Var v_l + S / N,        d_{l+1} = V' d_l + V'' Var v_l / 2,

        d the drift of the mean; both start at 0. The mean square of N units of layer L adds
        2 (q^2 + Var v_L + 2 q d_L) / N. Valid while the scatter is small against q and V'' does not
        carry it away: with V' = 1 and V'' > 0 the drift grows like depth^2, Price et al.'s instability.
        (Own derivation, checked by simulation.)

        Raises:
          ValueError: width or depth below 1, or q is no fixed point.
        """
        if width < 1 or depth < 1:
            raise ValueError(f"width, depth: must be at least 1, got {width} and {depth}")
        if abs(self.variance(q) - q) > 1e-6 * q:
            raise ValueError(f"q: V({q:g}) = {float(self.variance(q)):g}, not a fixed point")
        second, fourth = (float(self.activation.power(q, p)) for p in (2, 4))
        noise = self.sigma_w2**2 * (fourth - second**2) / width
        slope, curvature = float(self.variance_slope(q)), float(self.variance_curvature(q))
        variance = drift = 0.0
        for _ in range(depth - 1):
            variance, drift = slope**2 * variance + noise, slope * drift + curvature * variance / 2
        return Spread(variance, variance + 2 * (q**2 + variance + 2 * q * drift) / width, drift)


def _roots(f, grid: np.ndarray, values: np.ndarray) -> list[float]:
    """Roots of `f` bracketed by sign changes of its `values` on `grid`."""
    signs = np.sign(values)
    out = [float(q) for q in grid[signs == 0]]
    for i in np.flatnonzero(signs[:-1] * signs[1:] < 0):
        out.append(float(brentq(f, grid[i], grid[i + 1], xtol=1e-15 * grid[i], rtol=1e-14)))
    return sorted(out)


def _pair(f, activation: Activation, rho: float, q: float) -> float:
    """E[f(z_1) f(z_2)] for centred Gaussians of variance q and correlation rho; f breaks where phi does.

    The inner integral runs over the part of z_2 that is independent of z_1, its kinks moving with
    z_1; the outer one is divided where a kink of z_2 passes through the bulk of that part.
    """
    if not -1 <= rho <= 1:
        raise ValueError(f"rho: a correlation must be in [-1, 1], got {rho}")
    root = np.sqrt(q)
    breaks = np.asarray(activation.breaks) / root
    rest = np.sqrt(1 - rho**2)
    if rest == 0:
        x, w = nodes([*breaks, *-breaks])
        return float(w @ (f(root * x) * f(np.sign(rho) * root * x)))
    passing = [(b + k * rest) / rho for b in breaks for k in (-6, -2, 0, 2, 6)] if rho else []
    x, w = nodes([*breaks, *passing], 60)
    kinks = np.clip((breaks[None, :] - rho * x[:, None]) / rest, -REACH, REACH)
    fixed = np.broadcast_to([-REACH, -3.0, 0.0, 3.0, REACH], (len(x), 5))
    edges = np.sort(np.concatenate([kinks, fixed], axis=1), axis=1)
    points, weights = legendre(24)
    half, middle = np.diff(edges) / 2, (edges[:, 1:] + edges[:, :-1]) / 2
    u = middle[..., None] + half[..., None] * points
    inner = f(root * (rho * x[:, None, None] + rest * u)) * np.exp(-0.5 * u * u) / np.sqrt(2 * np.pi)
    return float(w @ (f(root * x) * np.einsum("nkp,nk,p->n", inner, half, weights)))
