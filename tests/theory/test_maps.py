import math

import numpy as np
import pytest
from scipy.special import erf, ndtr, ndtri

from sparsity.theory import edge_of_chaos
from sparsity.theory.edge_of_chaos import thresholded
from sparsity.theory.gaussian import Activation
from sparsity.theory.maps import FixedPoint, MeanField

TAU, M = 0.6, 1.1
RELU = thresholded(0.0)
CRELU = thresholded(TAU, M)
ACTIVATIONS = {
    "relu": RELU,
    "shifted_relu": thresholded(TAU),
    "soft_threshold": thresholded(TAU, two_sided=True),
    "clipped_relu": CRELU,
    "clipped_soft_threshold": thresholded(TAU, M, two_sided=True),
    "gelu": Activation(lambda z: z * (1 + erf(z / math.sqrt(2))) / 2),
    "tanh": Activation(np.tanh),
}
KINKED = ["shifted_relu", "soft_threshold", "clipped_relu", "clipped_soft_threshold"]
activations = pytest.mark.parametrize("name", ACTIVATIONS)


def field(name, sigma_w2=2.3, sigma_b2=0.4):
    return MeanField(ACTIVATIONS[name], sigma_w2, sigma_b2)


def on_the_edge(activation, q=1.0):
    found = edge_of_chaos.at(activation, q)
    return MeanField(activation, found.sigma_w2, found.sigma_b2)


def pdf(x):
    return math.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def closed_forms(name, q):
    """(E phi^2, V' / sigma_w^2, V'' / sigma_w^2, chi_1 / sigma_w^2), Price et al. 2024 as corrected, by hand."""
    a, b = TAU / math.sqrt(q), (TAU + M) / math.sqrt(q)
    if "clipped" in name:
        p, root = ndtr(b) - ndtr(a), math.sqrt(q)
        second = (
            q * (a * pdf(a) - b * pdf(b) + p) - 2 * TAU * root * (pdf(a) - pdf(b)) + TAU**2 * p + M**2 * (1 - ndtr(b))
        )
        slope = p - M / root * pdf(b)
        curvature = (a * pdf(a) - b * pdf(b)) / (2 * q) + M * pdf(b) * (1 - b * b) / (2 * q**1.5)
        out = second, slope, curvature, p
    else:
        tail = 1 - ndtr(a)
        out = (q + TAU**2) * tail - TAU * math.sqrt(q) * pdf(a), tail, a * pdf(a) / (2 * q), tail
    return np.array(out) * (2 if "soft" in name else 1)


@pytest.mark.parametrize("q", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("name", KINKED)
def test_the_maps_of_the_four_activations_are_their_closed_forms(name, q):
    f = field(name)
    second, slope, curvature, chi = 2.3 * closed_forms(name, q)
    np.testing.assert_allclose(f.variance(q), second + 0.4, rtol=1e-12)
    np.testing.assert_allclose(f.variance_slope(q), slope, rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(f.variance_curvature(q), curvature, rtol=1e-10, atol=1e-13)
    np.testing.assert_allclose(f.chi_1(q), chi, rtol=1e-12)


@pytest.mark.parametrize("q", [0.3, 1.0, 4.0])
@activations
def test_first_and_second_derivatives_are_central_differences(name, q):
    f, step = field(name), 1e-4 * q
    slope = (f.variance(q + step) - f.variance(q - step)) / (2 * step)
    curvature = (f.variance_slope(q + step) - f.variance_slope(q - step)) / (2 * step)
    # Truncation step^2 V''' / 6, and rounding 1e-15 / step.
    np.testing.assert_allclose(f.variance_slope(q), slope, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(f.variance_curvature(q), curvature, rtol=1e-6, atol=1e-7)


@activations
def test_the_maps_are_elementwise_in_q(name):
    f, q = field(name), np.array([0.5, 2.0])
    for one in (f.variance, f.variance_slope, f.variance_curvature, f.chi_1):
        np.testing.assert_allclose(one(q), [one(0.5), one(2.0)], rtol=1e-14)


@activations
def test_the_variance_map_is_that_of_a_sample(name):
    f, q, n = field(name), 1.6, 1_000_000
    h2 = f.activation.phi(np.random.default_rng(0).normal(0, q**0.5, n)) ** 2
    error = f.sigma_w2 * h2.std() / n**0.5
    assert abs(f.sigma_w2 * h2.mean() + f.sigma_b2 - f.variance(q)) < 5 * error


@pytest.mark.parametrize("rho", [-0.9, -0.2, 0.0, 0.5, 0.95, 0.999])
@activations
def test_the_correlation_map_is_that_of_a_sample(name, rho):
    f, q, n = field(name), 1.6, 400_000
    rng = np.random.default_rng(1)
    x = rng.normal(size=n)
    y = rho * x + math.sqrt(1 - rho**2) * rng.normal(size=n)
    x, y = math.sqrt(q) * x, math.sqrt(q) * y
    for got, product, bias in (
        (f.correlation(rho, q) * f.variance(q), f.activation.phi(x) * f.activation.phi(y), f.sigma_b2),
        (f.correlation_slope(rho, q) * f.variance(q) / q, f.activation.slope(x) * f.activation.slope(y), 0.0),
    ):
        sample = f.sigma_w2 * product
        assert abs(sample.mean() + bias - got) < 5 * sample.std() / n**0.5


@pytest.mark.parametrize("rho", [-0.8, 0.0, 0.3, 0.97])
def test_the_correlation_map_of_relu_is_the_arc_cosine_kernel(rho):
    """Cho & Saul 2009: R = (sqrt(1 - rho^2) + rho (pi - arccos rho)) / pi for He initialisation, R' = 1 - acos/pi."""
    f = MeanField(RELU, 2.0, 0.0)
    angle = math.acos(rho)
    assert f.correlation(rho, 0.7) == pytest.approx((math.sin(angle) + rho * (math.pi - angle)) / math.pi, abs=1e-11)
    assert f.correlation_slope(rho, 0.7) == pytest.approx(1 - angle / math.pi, abs=1e-11)


@activations
def test_on_the_edge_of_chaos_equal_inputs_stay_equal_and_the_slope_there_is_chi_1(name):
    if name == "gelu":
        with pytest.warns(edge_of_chaos.BifurcationWarning):
            f = on_the_edge(ACTIVATIONS[name])
    else:
        f = on_the_edge(ACTIVATIONS[name])
    assert f.correlation(1.0, 1.0) == pytest.approx(1.0, abs=1e-12)
    assert f.correlation_slope(1.0, 1.0) == pytest.approx(1.0, abs=1e-8)
    # Kinks make R'' infinite at 1: R(1 - e) = 1 - e + O(e^1.5).
    assert (1 - f.correlation(1 - 1e-6, 1.0)) / 1e-6 == pytest.approx(f.chi_1(1.0), abs=5e-3)


def test_a_correlation_beyond_one_is_refused():
    with pytest.raises(ValueError, match=r"^rho: a correlation must be in \[-1, 1\], got 1.1$"):
        field("relu").correlation(1.1, 1.0)


def test_he_initialisation_of_relu_keeps_every_variance():
    assert MeanField(RELU, 2.0, 0.0).fixed_points(3.0) == (FixedPoint(3.0, 1.0, "neutral"),)


def test_relu_off_the_edge_has_one_fixed_point_or_none():
    # V = sw2 q / 2 + sb2: fixed at sb2 / (1 - sw2 / 2) if sw2 < 2.
    (only,) = MeanField(RELU, 1.0, 0.3).fixed_points()
    assert (only.q, only.slope, only.stability) == (pytest.approx(0.6), pytest.approx(0.5), "stable")
    assert MeanField(RELU, 3.0, 0.3).fixed_points() == ()


def test_tanh_without_biases_loses_the_stability_of_zero_at_unit_weight_variance():
    """Poole et al. 2016: below sigma_w = 1 only q = 0, above a second, stable fixed point."""
    (zero,) = MeanField(ACTIVATIONS["tanh"], 0.9, 0.0).fixed_points()
    assert (zero.q, zero.stability, zero.slope) == (0.0, "stable", pytest.approx(0.9, rel=1e-6))
    zero, other = MeanField(ACTIVATIONS["tanh"], 1.5, 0.0).fixed_points()
    assert (zero.stability, other.stability) == ("unstable", "stable")
    assert other.q > 0


@activations
def test_iterating_the_map_converges_to_a_stable_fixed_point(name):
    f = field(name, sigma_w2=1.2)
    points = [p.q for p in f.fixed_points() if p.stability == "stable"]
    q = 0.2
    for _ in range(400):
        q = float(f.variance(q))
    assert min(abs(q - p) for p in points) < 1e-9


@pytest.mark.parametrize("name", ["shifted_relu", "soft_threshold"])
def test_an_unclipped_threshold_on_the_edge_touches_the_diagonal(name):
    f = on_the_edge(ACTIVATIONS[name])
    (only,) = f.fixed_points()
    assert (only.stability, only.slope) == ("tangent", 1.0)
    assert only.q == pytest.approx(1.0, abs=1e-6)
    assert f.variance(0.9) > 0.9
    assert f.variance(1.1) > 1.1


def orthogonal(rng, n):
    q, r = np.linalg.qr(rng.normal(size=(n, n)))
    return q * np.sign(np.diag(r))


@pytest.mark.parametrize("haar", [False, True])
@pytest.mark.parametrize("name", ["relu", "shifted_relu", "clipped_relu", "clipped_soft_threshold", "tanh"])
def test_jacobian_moments_are_those_of_random_products(name, haar):
    """prod_l D_l W_l at width 400 and depth 4, D_l the slopes at the 400 quantiles of N(0, q*), shuffled."""
    f, n, depth = on_the_edge(ACTIVATIONS[name]), 400, 4
    expected = f.jacobian_spectrum(1.0, depth, orthogonal=haar)
    rng, traces = np.random.default_rng(2), []
    slopes = f.activation.slope(ndtri((np.arange(n) + 0.5) / n))
    for _ in range(4):
        j = np.eye(n)
        for _ in range(depth):
            w = orthogonal(rng, n) if haar else rng.normal(size=(n, n)) / math.sqrt(n)
            j = math.sqrt(f.sigma_w2) * rng.permutation(slopes)[:, None] * (w @ j)
        gram = j @ j.T
        traces.append((np.trace(gram) / n, (gram**2).sum() / n))
    first, second = np.mean(traces, axis=0)
    # A trace of 400 x 400 Gaussian products scatters by about sqrt(depth sigma_w^2 / 2) / 400 x 2: 1 to 3%.
    assert first == pytest.approx(expected.mean, rel=0.05)
    assert second - first**2 == pytest.approx(expected.variance, rel=0.1)


def test_jacobian_moments_on_the_edge_are_those_of_the_paper():
    """Price et al. 2024, App. F: L / (1 - s) and L s / (1 - s) unclipped; L sigma_w^2 and L (sigma_w^2 - 1) clipped."""
    s, depth = 0.7, 10
    plain = on_the_edge(thresholded(edge_of_chaos.threshold(s)))
    assert plain.jacobian_spectrum(1.0, depth).variance == pytest.approx(depth / (1 - s))
    assert plain.jacobian_spectrum(1.0, depth, orthogonal=True).variance == pytest.approx(depth * s / (1 - s))
    clipped = on_the_edge(CRELU)
    assert clipped.jacobian_spectrum(1.0, depth).variance == pytest.approx(depth * clipped.sigma_w2)
    assert clipped.jacobian_spectrum(1.0, depth, True).variance == pytest.approx(depth * (clipped.sigma_w2 - 1))
    assert MeanField(RELU, 4.0, 0.0).jacobian_spectrum(1.0, 3).mean == pytest.approx(8.0)


def simulate(f, q, width, depth, networks, rng):
    """Mean squares of layer `depth`; given a layer, the next one's units are independent Gaussians."""
    z = rng.normal(0, math.sqrt(q), (networks, width))
    for _ in range(depth - 1):
        v = f.sigma_w2 * (f.activation.phi(z) ** 2).mean(1, keepdims=True) + f.sigma_b2
        z = np.sqrt(v) * rng.normal(size=(networks, width))
    return (z**2).mean(1)


@pytest.mark.parametrize(("sparsity", "slope", "q"), [(0.8, 0.7, 1.0), (0.6, 0.5, 3.0), (0.85, 0.7, 1.0)])
def test_the_spread_of_q_at_finite_width_is_that_of_simulated_networks(sparsity, slope, q):
    found = edge_of_chaos.solve(sparsity, slope, q)
    f, width, depth, networks = on_the_edge(thresholded(found.tau, found.m), q), 1000, 12, 1500
    expected = f.spread(q, width, depth)
    sample = simulate(f, q, width, depth, networks, np.random.default_rng(3))
    # 1500 networks: a standard error of the variance of 3.7%, and terms of order 1/N beyond the first.
    assert sample.var() == pytest.approx(expected.measured, rel=0.15)
    assert abs(sample.mean() - q - expected.drift) < 4 * sample.std() / networks**0.5 + 10 * q / width**1.5


def test_the_spread_of_q_is_that_of_networks_with_weights():
    found = edge_of_chaos.solve(0.7, 0.7)
    f, width, depth, networks = on_the_edge(thresholded(found.tau, found.m)), 200, 8, 300
    rng, sample = np.random.default_rng(4), []
    for _ in range(networks):
        z = rng.normal(size=width)
        for _ in range(depth - 1):
            w = rng.normal(0, math.sqrt(f.sigma_w2 / width), (width, width))
            z = w @ f.activation.phi(z) + rng.normal(0, math.sqrt(f.sigma_b2), width)
        sample.append((z**2).mean())
    # A standard error of 8% of the variance, and corrections of relative order V''/N and kin.
    assert np.var(sample) == pytest.approx(f.spread(1.0, width, depth).measured, rel=0.3)


def test_without_a_clip_the_spread_grows_with_depth_and_drifts_upwards():
    found = edge_of_chaos.solve(0.7)
    f = on_the_edge(thresholded(found.tau))
    spreads = [f.spread(1.0, 300, depth) for depth in (1, 51, 101)]
    assert spreads[0].variance == spreads[0].drift == 0
    assert spreads[0].measured == pytest.approx(2 / 300)
    assert spreads[2].variance == pytest.approx(2 * spreads[1].variance)
    assert spreads[2].drift / spreads[1].drift == pytest.approx(4, rel=0.05)  # like depth^2


@pytest.mark.parametrize(("sigma_w2", "sigma_b2"), [(0.0, 0.0), (-1.0, 0.1), (1.0, -0.1), (math.nan, 0.0)])
def test_impossible_variances_are_refused(sigma_w2, sigma_b2):
    with pytest.raises(ValueError, match=r"^sigma_w2 must be positive and sigma_b2 at least 0"):
        MeanField(RELU, sigma_w2, sigma_b2)
    with pytest.raises(ValueError, match=r"^q: a variance must be positive"):
        field("relu").variance(-1.0)


def test_a_spread_around_what_is_no_fixed_point_is_refused():
    with pytest.raises(ValueError, match=r"^q: V\(2\) = .*, not a fixed point$"):
        on_the_edge(CRELU).spread(2.0, 300, 10)
    with pytest.raises(ValueError, match=r"^width, depth: must be at least 1"):
        on_the_edge(CRELU).spread(1.0, 0, 10)
