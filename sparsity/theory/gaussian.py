"""Moments of activation functions under a centred Gaussian, in float64.

Let z ~ N(0, q) and x = z / sqrt(q). All that the theory of wide networks asks of an activation
phi are numbers E[phi(z)^p He_n(x)], with He_n the Hermite polynomials (He_2 = x^2 - 1,
He_4 = x^4 - 6 x^2 + 3), because for any f, smooth or not,

    d/dq E f(z) = E[f(z) He_2(x)] / (2 q),    d^2/dq^2 E f(z) = E[f(z) He_4(x)] / (4 q^2),

and numbers E[phi'(z)^p]. For a phi made of straight pieces both are closed forms of the truncated
moments of a Gaussian; for any other, quadrature integrates between the kinks. No jax here:
numpy and scipy, float64.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
from numpy.polynomial.hermite_e import herme2poly
from scipy.optimize import brentq
from scipy.special import ndtr, ndtri

# Gaussian mass beyond this many standard deviations, 4e-33, is left out of every quadrature.
REACH = 12.0


@dataclasses.dataclass(frozen=True)
class Piece:
    """phi(z) = slope * z + offset for lo < z < hi; phi is 0 outside all pieces."""

    lo: float
    hi: float
    slope: float
    offset: float


def threshold_pieces(tau: float, m: float = math.inf, *, two_sided: bool = False) -> tuple[Piece, ...]:
    """The pieces of min(max(z - tau, 0), m), or with `two_sided` of sign(z) min(max(|z| - tau, 0), m).

    With m infinite: shifted ReLU and soft threshold; else clipped ReLU and clipped soft threshold
    (Price et al. 2024, Secs. 2 and 3).
    """
    knee = tau + m
    right = [Piece(tau, knee, 1.0, -tau)] + ([] if math.isinf(m) else [Piece(knee, math.inf, 0.0, m)])
    left = [Piece(-p.hi, -p.lo, p.slope, -p.offset) for p in reversed(right)] if two_sided else []
    return (*left, *right)


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

    Raises:
      ValueError: q is not positive.
    """
    density, slope = pieces_slope_power(pieces, q, 0), pieces_slope_power(pieces, q, 2)
    return Moments(*map(float, (density, pieces_power(pieces, q, 1), pieces_power(pieces, q, 2), slope)))


def pieces_power(pieces: Sequence[Piece], q, power: int, hermite: int = 0):
    """E[phi(z)^power He_hermite(x)] of a piecewise linear phi, in closed form; elementwise in `q`.

    (slope sqrt(q) x + offset)^power He_hermite(x) is a polynomial in x on each piece, and
    E[x^k; a < x < b] = (k-1) E[x^(k-2); a < x < b] + a^(k-1) pdf(a) - b^(k-1) pdf(b).

    Raises:
      ValueError: q is not positive.
    """
    root = np.sqrt(_positive(q))
    he = herme2poly([0] * hermite + [1])
    total = np.zeros_like(root)
    for piece in pieces:
        moments = _truncated_moments(piece.lo / root, piece.hi / root, power + hermite)
        for j in range(power + 1):
            c = math.comb(power, j) * piece.offset ** (power - j) * (piece.slope * root) ** j
            total = total + c * sum(h * moments[j + k] for k, h in enumerate(he))
    return total


def pieces_slope_power(pieces: Sequence[Piece], q, power: int):
    """E[phi'(z)^power; pieces] in closed form, elementwise in `q`; power 0 is the pieces' probability.

    Raises:
      ValueError: q is not positive.
    """
    root = np.sqrt(_positive(q))
    return sum((p.slope**power * _truncated_moments(p.lo / root, p.hi / root, 0)[0] for p in pieces), 0.0 * root)


def _truncated_moments(a, b, order: int) -> list:
    """E[x^k; a < x < b] for k = 0..order, x ~ N(0, 1); elementwise in `a` and `b`."""
    # The upper tail is taken from the left, where ndtr keeps its relative precision.
    out = [np.where(a > 0, ndtr(-a) - ndtr(-b), ndtr(b) - ndtr(a))]
    for k in range(1, order + 1):
        edges = _power_pdf(a, k - 1) - _power_pdf(b, k - 1)
        out.append(edges + (k - 1) * out[k - 2] if k > 1 else edges)
    return out


def _power_pdf(x, k: int):
    """x^k pdf(x), 0 at infinity."""
    # Beyond 40 deviations pdf is 0 in float64, and x^k could be infinite.
    near = np.clip(x, -40.0, 40.0)
    return near**k * np.exp(-0.5 * near * near) / np.sqrt(2 * np.pi)


def _positive(q):
    q = np.asarray(q, np.float64)
    if not np.all(q > 0):
        raise ValueError(f"q: a variance must be positive, got {q}")
    return q


legendre = functools.cache(np.polynomial.legendre.leggauss)  # 200 nodes take 4 ms to find


def nodes(edges: Sequence[float], order: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Legendre nodes x and weights w between `edges` with sum w f(x) = E f(x), x ~ N(0, 1).

    Edges beyond `REACH` are dropped; 0 and the ends of the range are always edges.
    """
    inner = [e for e in edges if abs(e) < REACH]
    points, weights = legendre(order)
    ends = np.unique([-REACH, 0.0, REACH, *inner])
    x = np.concatenate([(hi - lo) / 2 * points + (hi + lo) / 2 for lo, hi in pairwise(ends)])
    w = np.concatenate([(hi - lo) / 2 * weights for lo, hi in pairwise(ends)])
    return x, w * np.exp(-0.5 * x * x) / np.sqrt(2 * np.pi)


def quadrature(
    phi: Callable[[np.ndarray], np.ndarray], q: float, breaks: Sequence[float] = (), order: int = 200
) -> Moments:
    """Moments of any phi by Gauss-Legendre quadrature between `breaks` (its kinks), in float64.

    The tails beyond 12 standard deviations (mass 4e-33) are left out. The slope is a central
    difference at the nodes, none of which lies on a break.

    Raises:
      ValueError: q is not positive.
    """
    root = float(np.sqrt(_positive(q)))
    x, w = nodes([b / root for b in breaks], order)
    z, value = root * x, phi(root * x)
    return Moments(*(float(w @ f) for f in (value != 0, value, value**2, _difference(phi, z, root) ** 2)))


def _difference(phi: Callable[[np.ndarray], np.ndarray], z: np.ndarray, scale: float) -> np.ndarray:
    step = 1e-6 * scale
    return (phi(z + step) - phi(z - step)) / (2 * step)


@dataclasses.dataclass(frozen=True)
class Activation:
    """An elementwise activation as the theory takes it.

    Attributes:
      phi: the function, numpy float64 array to array.
      pieces: phi as straight pieces, for closed forms; None if it has none.
      breaks: where phi or a derivative jumps: quadrature runs between them.

    Raises:
      ValueError: phi does not return float64: its slopes are differences over 1e-6, which float32 does not resolve.

    >>> relu = Activation.of_pieces(threshold_pieces(0.0))
    >>> float(relu.power(4.0, 2))  # E relu(z)^2 = q / 2
    2.0
    """

    phi: Callable[[np.ndarray], np.ndarray]
    pieces: tuple[Piece, ...] | None = None
    breaks: tuple[float, ...] = ()

    def __post_init__(self):
        made = np.asarray(self.phi(np.zeros(1))).dtype
        if made != np.float64:
            raise ValueError(f"phi: must return float64, got {made}; write it with numpy or scipy, not jax.numpy")

    @classmethod
    def of_pieces(cls, pieces: Sequence[Piece]) -> Activation:
        """The piecewise linear activation; 0 outside all pieces. At an edge the first piece that has it counts."""
        pieces = tuple(pieces)

        def phi(z):
            inside = [(p.lo <= z) & (z <= p.hi) for p in pieces]
            return np.select(inside, [p.slope * z + p.offset for p in pieces], 0.0)

        return cls(phi, pieces, tuple(sorted({e for p in pieces for e in (p.lo, p.hi) if math.isfinite(e)})))

    @property
    def jumps(self) -> tuple[float, ...]:
        """The breaks at which phi itself jumps, not a derivative alone."""
        sides = [self.phi(np.asarray([b - 1e-9, b + 1e-9])) for b in self.breaks]
        # A continuous phi moves by its slope times 2e-9 there.
        return tuple(b for b, (left, right) in zip(self.breaks, sides, strict=True) if abs(right - left) > 1e-6)

    def power(self, q, power: int, hermite: int = 0):
        """E[phi(z)^power He_hermite(z / sqrt(q))], z ~ N(0, q); elementwise in `q`."""
        if self.pieces is not None:
            return pieces_power(self.pieces, q, power, hermite)
        he = herme2poly([0] * hermite + [1])
        return self._integrate(q, lambda z, x: self.phi(z) ** power * np.polynomial.polynomial.polyval(x, he))

    def slope_power(self, q, power: int):
        """E[phi'(z)^power], z ~ N(0, q), power > 0; elementwise in `q`. Jumps of phi do not enter."""
        if self.pieces is not None:
            return pieces_slope_power(self.pieces, q, power)
        return self._integrate(q, lambda z, x: self.slope(z) ** power)

    def slope(self, z: np.ndarray) -> np.ndarray:
        """phi'(z), off the breaks: exact for pieces, else a central difference (to about 1e-9)."""
        if self.pieces is not None:
            return np.select([(p.lo < z) & (z < p.hi) for p in self.pieces], [p.slope for p in self.pieces], 0.0)
        return _difference(self.phi, z, 1.0)

    def _integrate(self, q, f):
        def one(variance):
            root = math.sqrt(variance)
            x, w = nodes([b / root for b in self.breaks])
            return w @ f(root * x, x)

        return np.vectorize(one, otypes=[np.float64])(_positive(q))

    def share_above(self, q: float, level: float) -> float:
        """P(|phi(z)| > level), z ~ N(0, q): the density that is left if values up to `level` count as zero.

        The crossings of |phi| = level are bracketed on 4,000 points over 12 deviations.
        """
        root = float(np.sqrt(_positive(q)))
        inner = [b / root + e for b in self.breaks for e in (-1e-9, 1e-9)]
        x = np.unique(np.concatenate([np.linspace(-REACH, REACH, 4001), [e for e in inner if abs(e) < REACH]]))
        excess = lambda at: float(np.abs(self.phi(np.asarray([root * at])))[0] - level)
        above = np.abs(self.phi(root * x)) > level
        total = 0.0
        for lo, hi, left, right in zip(x[:-1], x[1:], above[:-1], above[1:], strict=True):
            if left and right:
                total += ndtr(hi) - ndtr(lo)
            elif left != right:
                at = lo if excess(lo) == 0 else hi if excess(hi) == 0 else brentq(excess, lo, hi, xtol=1e-14)
                total += ndtr(at) - ndtr(lo) if left else ndtr(hi) - ndtr(at)
        return float(total)


def top_fraction(share: float, q: float) -> Moments:
    """Moments of Top-k over F units in the limit of many units at k / F = `share`, for share <= 1/2.

    The k-th largest of F Gaussian values is then sqrt(q) t, t = Phi^-1(1 - share), and what is kept
    is h = z where z > sqrt(q) t: density and slope are `share`, E h = sqrt(q) pdf(t),
    E h^2 = q (share + t pdf(t)). So V(q) is linear in q although V' = sigma_w^2 (share + t pdf(t))
    exceeds chi_1 = sigma_w^2 share: h jumps at its threshold, and the jump has no derivative.

    Raises:
      ValueError: share outside (0, 1/2] (beyond it, units that ReLU had zeroed would be kept).
    """
    if not 0 < share <= 0.5:
        raise ValueError(f"share: must be in (0, 0.5], got {share}")
    t = float(ndtri(1 - share))
    return piecewise_linear((Piece(t * math.sqrt(_positive(q)), math.inf, 1.0, 0.0),), q)
