import dataclasses
import math

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import erfc

from sparsity.theory.gaussian import Moments, Piece, piecewise_linear, quadrature

INF = math.inf

RELU = (Piece(0.0, INF, 1.0, 0.0),)
SOFT = (Piece(-INF, -0.7, 1.0, 0.7), Piece(0.7, INF, 1.0, -0.7))
CLIPPED = (Piece(-INF, -1.5, 0.0, -1.0), Piece(-1.5, -0.5, 1.0, 0.5), Piece(0.5, 1.5, 1.0, -0.5), Piece(1.5, INF, 0, 1))
CROOKED = (Piece(-2.0, -0.3, -0.4, 1.1), Piece(0.2, 0.9, 3.0, -0.1), Piece(0.9, 4.0, 0.0, -2.0))
TABLE = {"relu": RELU, "soft": SOFT, "clipped": CLIPPED, "crooked": CROOKED}


def upper_tail(x):
    """P(N(0, 1) > x), to full relative precision in the far tail."""
    return erfc(x / math.sqrt(2)) / 2


def integrated(pieces, q):
    """The four moments by scipy's adaptive quadrature, piece by piece."""

    def pdf(z):
        return math.exp(-z * z / (2 * q)) / math.sqrt(2 * math.pi * q)

    def expectation(f):
        total = 0.0
        for p in pieces:
            lo, hi = (max(min(x, 40 * math.sqrt(q)), -40 * math.sqrt(q)) for x in (p.lo, p.hi))
            middle = min(max(0.0, lo), hi)
            for a, b in ((lo, middle), (middle, hi)):
                total += quad(lambda z, p=p: f(p, z) * pdf(z), a, b, epsabs=1e-14, epsrel=1e-13, limit=400)[0]
        return total

    phi = lambda p, z: p.slope * z + p.offset
    return Moments(
        expectation(lambda p, z: 1.0),
        expectation(phi),
        expectation(lambda p, z: phi(p, z) ** 2),
        expectation(lambda p, z: p.slope**2),
    )


def assert_moments(got, expected, **tolerance):
    for field in dataclasses.fields(Moments):
        np.testing.assert_allclose(
            getattr(got, field.name), getattr(expected, field.name), err_msg=field.name, **tolerance
        )


@pytest.mark.parametrize("q", [0.04, 1.0, 9.0])
def test_the_moments_of_relu_are_the_textbook_ones(q):
    expected = Moments(density=0.5, mean=math.sqrt(q / (2 * math.pi)), second=q / 2, slope=0.5)
    assert_moments(piecewise_linear(RELU, q), expected, rtol=1e-15)


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0, 2.0])
def test_the_moments_of_the_soft_threshold_are_those_of_price_et_al(tau):
    """Price et al. 2024: slope 2 (1 - Phi(tau)), second 2 ((1 + tau^2)(1 - Phi(tau)) - tau pdf(tau)), q = 1."""
    pieces = (Piece(-INF, -tau, 1.0, tau), Piece(tau, INF, 1.0, -tau))
    pdf, tail = math.exp(-tau * tau / 2) / math.sqrt(2 * math.pi), upper_tail(tau)
    expected = Moments(2 * tail, 0.0, 2 * ((1 + tau * tau) * tail - tau * pdf), 2 * tail)
    # At tau = 2 the second moment (0.0115) is a difference of terms near 0.2: a few eps * 20.
    assert_moments(piecewise_linear(pieces, 1.0), expected, rtol=1e-13, atol=1e-16)


@pytest.mark.parametrize("q", [0.25, 1.0, 3.0])
@pytest.mark.parametrize("name", TABLE)
def test_the_closed_form_is_the_integral(name, q):
    # quad is asked for 1e-13 on each of up to eight stretches.
    assert_moments(piecewise_linear(TABLE[name], q), integrated(TABLE[name], q), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_density_keeps_its_relative_precision_in_either_tail(sign):
    piece = Piece(8.0, INF, 1.0, -8.0) if sign > 0 else Piece(-INF, -8.0, 1.0, 8.0)
    moments = piecewise_linear([piece], 1.0)
    assert moments.density == pytest.approx(upper_tail(8.0), rel=1e-13, abs=0)  # 6e-16, far below eps of 1
    # The mean and the second moment cancel: tau^2 terms against results tau^2 times smaller each.
    mean = quad(lambda u: u * math.exp(-((u + 8) ** 2) / 2) / math.sqrt(2 * math.pi), 0, 9, epsabs=0, epsrel=1e-12)[0]
    second = quad(lambda u: u * u * math.exp(-((u + 8) ** 2) / 2) / math.sqrt(2 * math.pi), 0, 9, epsabs=0)[0]
    assert moments.mean == pytest.approx(sign * mean, rel=1e-10, abs=0)
    assert moments.second == pytest.approx(second, rel=1e-9, abs=0)


def test_moments_scale_with_the_variance():
    """phi_s(z) = s phi(z/s) at variance s^2 q has s times the mean and s^2 times the second moment."""
    s, q = 3.0, 0.8
    scaled = [Piece(s * p.lo, s * p.hi, p.slope, s * p.offset) for p in CROOKED]
    one, other = piecewise_linear(CROOKED, q), piecewise_linear(scaled, s * s * q)
    expected = Moments(one.density, s * one.mean, s * s * one.second, one.slope)
    assert_moments(other, expected, rtol=1e-13)


def test_no_pieces_is_the_zero_function():
    assert piecewise_linear((), 1.0) == Moments(0.0, 0.0, 0.0, 0.0)


@pytest.mark.parametrize("q", [0.0, -1.0, float("nan")])
def test_a_variance_that_is_not_positive_is_refused(q):
    with pytest.raises(ValueError, match=r"^q: a variance must be positive"):
        piecewise_linear(RELU, q)


def as_function(pieces):
    return lambda z: sum(np.where((p.lo < z) & (z < p.hi), p.slope * z + p.offset, 0.0) for p in pieces)


@pytest.mark.parametrize("q", [0.25, 1.0, 3.0])
@pytest.mark.parametrize("name", TABLE)
def test_quadrature_with_the_kinks_as_breaks_equals_the_closed_form(name, q):
    breaks = [edge for p in TABLE[name] for edge in (p.lo, p.hi) if math.isfinite(edge)]
    # The slope is a central difference with step 1e-6: rounding 1e-16 / 1e-6 a node.
    assert_moments(
        quadrature(as_function(TABLE[name]), q, breaks), piecewise_linear(TABLE[name], q), rtol=1e-8, atol=1e-9
    )


@pytest.mark.parametrize("q", [0.25, 1.0, 3.0])
def test_quadrature_of_smooth_functions_has_their_known_moments(q):
    got = quadrature(np.sin, q)
    # E sin = 0; E sin^2 = (1 - e^{-2q}) / 2; E cos^2 = (1 + e^{-2q}) / 2.
    assert_moments(
        got, Moments(1.0, 0.0, (1 - math.exp(-2 * q)) / 2, (1 + math.exp(-2 * q)) / 2), rtol=1e-9, atol=1e-12
    )
    got = quadrature(lambda z: z**2, q)
    # E z^2 = q; E z^4 = 3 q^2; E (2z)^2 = 4 q.
    assert_moments(got, Moments(1.0, q, 3 * q * q, 4 * q), rtol=1e-8)


def test_quadrature_leaves_out_breaks_beyond_its_range():
    phi = as_function(RELU)
    assert quadrature(phi, 1.0, breaks=(50.0, -50.0)) == quadrature(phi, 1.0)
