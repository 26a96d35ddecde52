"""Moments of activation functions under a centred Gaussian, in float64.

Let z ~ N(0, q). For an activation phi made of straight pieces everything that the theory of
wide networks needs is a closed form of the truncated moments of a Gaussian; for any other
phi, `quadrature` integrates. No jax here: numpy and scipy, float64.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
from scipy.special import ndtr


@dataclasses.dataclass(frozen=True)
class Piece:
    """phi(z) = slope * z + offset for lo < z < hi; phi is 0 outside all pieces."""

    lo: float
    hi: float
    slope: float
    offset: float


@dataclasses.dataclass(frozen=True)
class Moments:
    """Gaussian moments of phi at variance q.

    Attributes:
      density: P(phi(z) != 0), the expected nonzero fraction, in [0, 1].
      mean: E phi(z).
      second: E phi(z)^2; the variance map is V(q) = sigma_w^2 * second + sigma_b^2.
      slope: E phi'(z)^2; chi_1 = sigma_w^2 * slope (Price et al. 2024, Sec. 2).
    """

    density: float
    mean: float
    second: float
    slope: float


def piecewise_linear(pieces: Sequence[Piece], q: float) -> Moments:
    """Closed-form moments of a piecewise linear phi under z ~ N(0, q), q > 0.

    With a = lo/sqrt(q), b = hi/sqrt(q), pdf and cdf of the standard normal:
    P = cdf(b) - cdf(a); E[z; piece] = sqrt(q) (pdf(a) - pdf(b));
    E[z^2; piece] = q (P + a pdf(a) - b pdf(b)).
    """
    if not q > 0:
        raise ValueError(f"q: a variance must be positive, got {q}")
    density = mean = second = slope = 0.0
    for piece in pieces:
        p0, p1, p2 = _truncated_moments(piece.lo, piece.hi, q)
        density += p0
        mean += piece.slope * p1 + piece.offset * p0
        second += piece.slope**2 * p2 + 2 * piece.slope * piece.offset * p1 + piece.offset**2 * p0
        slope += piece.slope**2 * p0
    return Moments(density, mean, second, slope)


def _truncated_moments(lo: float, hi: float, q: float) -> tuple[float, float, float]:
    """(P(lo<z<hi), E[z; lo<z<hi], E[z^2; lo<z<hi]) for z ~ N(0, q)."""
    a, b = lo / np.sqrt(q), hi / np.sqrt(q)
    pdf_a, pdf_b = _pdf(a), _pdf(b)
    # The upper tail is taken from the left, where ndtr keeps its relative precision.
    p0 = ndtr(-a) - ndtr(-b) if a > 0 else ndtr(b) - ndtr(a)
    a_pdf = 0.0 if np.isinf(a) else a * pdf_a
    b_pdf = 0.0 if np.isinf(b) else b * pdf_b
    return float(p0), float(np.sqrt(q) * (pdf_a - pdf_b)), float(q * (p0 + a_pdf - b_pdf))


def _pdf(x: float) -> float:
    return float(np.exp(-0.5 * x * x) / np.sqrt(2 * np.pi))


def quadrature(
    phi: Callable[[np.ndarray], np.ndarray], q: float, breaks: Sequence[float] = (), order: int = 200
) -> Moments:
    """Moments of any phi by Gauss-Legendre quadrature between `breaks` (its kinks), in float64.

    The tails beyond 12 standard deviations (mass 4e-33) are left out. The slope is a central
    difference at the nodes, none of which lies on a break.
    """
    root = np.sqrt(q)
    edges = np.unique([-12.0, 0.0, 12.0, *(b / root for b in breaks if abs(b / root) < 12)])
    nodes, weights = np.polynomial.legendre.leggauss(order)
    x = np.concatenate([(hi - lo) / 2 * nodes + (hi + lo) / 2 for lo, hi in pairwise(edges)])
    w = np.concatenate([(hi - lo) / 2 * weights for lo, hi in pairwise(edges)])
    w = w * np.exp(-0.5 * x * x) / np.sqrt(2 * np.pi)
    z, step = root * x, 1e-6 * root
    value = phi(z)
    slope = (phi(z + step) - phi(z - step)) / (2 * step)
    return Moments(*(float(w @ f) for f in (value != 0, value, value**2, slope**2)))
