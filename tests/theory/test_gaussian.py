import dataclasses
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import erfc

from sparsity.theory.gaussian import (
    Activation,
    Moments,
    Piece,
    piecewise_linear,
    quadrature,
    threshold_pieces,
    top_fraction,
)

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


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.parametrize("hermite", [0, 1, 2, 4])
@pytest.mark.parametrize("power", [1, 2, 4])
def test_powers_times_hermite_polynomials_are_the_integrals_by_quadrature(name, power, hermite):
    pieces = Activation.of_pieces(TABLE[name])
    smooth = Activation(pieces.phi, None, pieces.breaks)
    q = np.array([0.25, 1.0, 3.0])
    # Quadrature of polynomials times a Gaussian between the kinks is good to 1e-13 of the terms, up to 1e3.
    np.testing.assert_allclose(pieces.power(q, power, hermite), smooth.power(q, power, hermite), rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("name", TABLE)
def test_powers_of_the_slope_are_the_integrals_by_quadrature(name):
    pieces = Activation.of_pieces(TABLE[name])
    smooth = Activation(pieces.phi, None, pieces.breaks)
    for power in (2, 4):
        # The slope is a central difference: 1e-16 |z| / 1e-6.
        np.testing.assert_allclose(pieces.slope_power(1.3, power), smooth.slope_power(1.3, power), rtol=1e-8)


def test_powers_of_smooth_functions_are_their_known_moments():
    sine, q = Activation(np.sin), np.array([0.5, 2.0])
    # E sin^2 = (1 - e^{-2q}) / 2, so d/dq = e^{-2q} = E[sin^2 He_2] / (2q), d^2/dq^2 = -2 e^{-2q}.
    np.testing.assert_allclose(sine.power(q, 2), (1 - np.exp(-2 * q)) / 2, rtol=1e-13)
    np.testing.assert_allclose(sine.power(q, 2, 2) / (2 * q), np.exp(-2 * q), rtol=1e-12)
    np.testing.assert_allclose(sine.power(q, 2, 4) / (4 * q**2), -2 * np.exp(-2 * q), rtol=1e-11)


def test_an_activation_of_pieces_is_their_function_with_their_edges_as_breaks():
    activation, z = Activation.of_pieces(CROOKED), np.linspace(-5, 5, 101) + 0.003
    np.testing.assert_allclose(activation.phi(z), as_function(CROOKED)(z))
    assert activation.breaks == (-2.0, -0.3, 0.2, 0.9, 4.0)
    assert set(activation.slope(z)) == {-0.4, 3.0, 0.0}


def test_threshold_pieces_are_the_four_activations():
    tau, m, z = 0.5, 1.25, np.linspace(-4, 4, 81) + 0.01
    one = np.maximum(z - tau, 0)
    two = np.sign(z) * np.maximum(np.abs(z) - tau, 0)
    for pieces, expected in (
        (threshold_pieces(tau), one),
        (threshold_pieces(tau, m), np.minimum(one, m)),
        (threshold_pieces(tau, two_sided=True), two),
        (threshold_pieces(tau, m, two_sided=True), np.clip(two, -m, m)),
    ):
        np.testing.assert_allclose(as_function(pieces)(z), expected, atol=1e-15)


@pytest.mark.parametrize("q", [0.0, -1.0, float("nan")])
def test_an_activation_refuses_a_variance_that_is_not_positive(q):
    for activation in (Activation.of_pieces(RELU), Activation(np.tanh)):
        with pytest.raises(ValueError, match=r"^q: a variance must be positive"):
            activation.power(q, 2)


def test_the_share_above_a_level_of_a_monotone_function_is_a_tail():
    q, level = 1.7, 0.3
    tail = upper_tail((0.7 + level) / math.sqrt(q))
    soft = Activation.of_pieces(SOFT)
    assert soft.share_above(q, level) == pytest.approx(2 * tail, rel=1e-12)
    assert soft.share_above(q, 0.0) == pytest.approx(piecewise_linear(SOFT, q).density, rel=1e-8)
    jump = Activation.of_pieces((Piece(0.4, INF, 0.0, 1.0),))
    assert jump.share_above(q, level) == pytest.approx(upper_tail(0.4 / math.sqrt(q)), rel=1e-8)
    assert Activation(np.tanh).share_above(q, 0.5) == pytest.approx(2 * upper_tail(np.arctanh(0.5) / math.sqrt(q)))


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5])
def test_the_moments_of_top_k_over_many_units_are_those_of_a_sample(share):
    q, units, rows = 1.4, 4096, 100
    z = np.random.default_rng(0).normal(0, q**0.5, (rows, units))
    k = round(share * units)
    h = np.where((z >= np.sort(z, -1)[:, -k][:, None]) & (z > 0), z, 0)
    got = top_fraction(share, q)
    assert got.density == got.slope == pytest.approx(share, rel=1e-12)
    for power, expected in ((1, got.mean), (2, got.second)):
        sample = (h**power).mean(-1)
        # Five standard errors, and the bias of the sample's quantile, of order 1 / units.
        assert abs(sample.mean() - expected) < 5 * sample.std() / rows**0.5 + 5 / units


def test_top_k_beyond_the_positive_half_is_refused():
    with pytest.raises(ValueError, match=r"^share: must be in \(0, 0.5\], got 0.6$"):
        top_fraction(0.6, 1.0)


def test_the_theory_imports_no_jax():
    code = "import sys, sparsity.theory.edge_of_chaos; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 0


def test_a_clipped_activation_has_no_hole_where_its_pieces_meet():
    """Found by eye: at z = tau + m exactly, between two open pieces, it fell to zero."""
    phi = Activation.of_pieces(threshold_pieces(1.0, 1.0, two_sided=True)).phi
    np.testing.assert_array_equal(phi(np.array([-2.0, -1.0, 1.0, 2.0])), [-1, 0, 0, 1])
