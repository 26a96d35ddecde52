import math

import numpy as np
import pytest
from scipy.special import erfc

from sparsity.theory.noise_loss import (
    NoiseLoss,
    cross_moment,
    flip_probability,
    jacobian_penalty,
    mean_shift,
    noise_loss,
    on_probability,
    second_moment,
)

# (z, s): on and off, near the threshold and far from it, and on it.
UNITS = [(-0.7, 0.5), (0.7, 0.5), (-2.0, 1.5), (2.0, 1.5), (-0.7, 2.0), (0.1, 3.0), (0.0, 0.8)]
RHOS = [-1, -1 + 1e-12, -1 + 1e-6, -0.99, -0.7, -0.1, -1e-9, 0, 1e-9, 0.1, 0.7, 0.99, 1 - 1e-6, 1 - 1e-12, 1]


def relu(z):
    return np.maximum(z, 0.0)


def pdf(x):
    return np.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def upper_tail(x):
    return erfc(x / math.sqrt(2)) / 2


def expectation(f, breaks=()):
    """E f(u), u ~ N(0, 1), by Gauss-Legendre quadrature between the breaks and every standard deviation."""
    edges = np.unique(np.clip([*range(-12, 13), *breaks], -12, 12))
    points, weights = np.polynomial.legendre.leggauss(40)
    half, middle = np.diff(edges)[:, None] / 2, (edges[1:] + edges[:-1])[:, None] / 2
    u = middle + half * points
    return float((half * weights * pdf(u) * f(u)).sum())


def integrated_pair(z_j, s_j, z_k, s_k, rho):
    """E[eta_j eta_k] without any of the module's formulas: E[eta_k | u_j] is the mean of a rectified Gaussian."""
    eta_j = lambda u: relu(z_j + s_j * u) - relu(z_j)
    rest = s_k * math.sqrt((1 - rho) * (1 + rho))

    def eta_k(u):
        mean = z_k + s_k * rho * u
        return (rest * pdf(mean / rest) + mean * upper_tail(-mean / rest) if rest else relu(mean)) - relu(z_k)

    # Where the kink of eta_k passes, within a width of rest / (s_k rho).
    passing = [(-z_k + d * rest) / (s_k * rho) for d in (-9, -6, -4, -2, -1, 0, 1, 2, 4, 6, 9)] if rho else []
    return expectation(lambda u: eta_j(u) * eta_k(u), [-z_j / s_j, *passing])


def standard_errors(sample, expected):
    """How many standard errors the mean of `sample` (first axis) is from `expected`, at worst.

    The error is at least 1/n, that of one event of size 1: some pairs of units never act together in a sample.
    """
    error = np.maximum(sample.std(0) / math.sqrt(len(sample)), 1 / len(sample))
    return np.max(np.abs(sample.mean(0) - expected) / error)


@pytest.mark.parametrize(("z", "s"), UNITS)
def test_one_units_moments_are_those_of_a_sample(z, s):
    """Each within four standard errors: one in 16,000 would miss by chance, and the seed is fixed."""
    noisy = z + s * np.random.default_rng(0).normal(size=300_000)
    eta = relu(noisy) - relu(z)
    assert standard_errors(eta, mean_shift(z, s)) < 4
    assert standard_errors(eta**2, second_moment(z, s)) < 4
    assert standard_errors((noisy > 0) != (z > 0), flip_probability(z, s)) < 4
    assert standard_errors(noisy > 0, on_probability(z, s)) < 4


@pytest.mark.parametrize("s", [0.3, 2.0])
@pytest.mark.parametrize("t", [0.0, 0.5, 3.0, 8.0, -0.5, -3.0, -8.0])
def test_one_units_moments_are_the_integrals(t, s):
    z = t * s
    eta = lambda u: relu(z + s * u) - relu(z)
    # At |t| = 8 terms t^4 / 2 times larger than the second moment cancel, and Phi is good to 1e-14. Of an on unit
    # the quadrature's mean is a difference of terms of size s.
    for power, found in ((1, mean_shift(z, s)), (2, second_moment(z, s))):
        expected = expectation(lambda u, p=power: eta(u) ** p, [-t])
        assert found == pytest.approx(expected, rel=1e-10, abs=1e-15 * s if t > 0 else 0)


def test_moments_are_elementwise_and_broadcast():
    z, s = np.array([[-1.0, 0.5, 2.0], [0.0, 1.0, -3.0]]), np.array([0.5, 1.0, 2.0])
    for f in (mean_shift, second_moment, flip_probability, on_probability):
        one_by_one = [[f(z[i, j], s[j]) for j in range(3)] for i in range(2)]
        np.testing.assert_array_equal(f(z, s), one_by_one)
    rho = np.array([-0.3, 0.0, 0.9])
    one_by_one = [[cross_moment(z[i, j], s[j], 0.7, 1.1, rho[j]) for j in range(3)] for i in range(2)]
    np.testing.assert_allclose(cross_moment(z, s, 0.7, 1.1, rho), one_by_one, rtol=1e-14)


@pytest.mark.parametrize("z", [-1.0, 0.0, 1.0])
def test_without_noise_nothing_happens(z):
    assert mean_shift(z, 0.0) == second_moment(z, 0.0) == flip_probability(z, 0.0) == 0
    assert on_probability(z, 0.0) == (z > 0)
    assert cross_moment(z, 0.0, 0.5, 1.0, 0.6) == cross_moment(z, 0.0, z, 0.0, 1.0) == 0


@pytest.mark.parametrize(("z", "s"), [(1.0, 1e-3), (1.0, 1e-320), (1e6, 2.0), (1e300, 2.0), (math.inf, 1.0)])
def test_far_from_its_threshold_an_on_unit_passes_the_noise_and_an_off_unit_nothing(z, s):
    assert mean_shift(z, s) == mean_shift(-z, s) == 0
    assert second_moment(z, s) == pytest.approx(s**2, rel=1e-15, abs=0)
    assert second_moment(-z, s) == 0
    assert on_probability(z, s) == 1
    assert on_probability(-z, s) == flip_probability(z, s) == flip_probability(-z, s) == 0
    assert cross_moment(z, s, z, s, -0.8) == pytest.approx(-0.8 * s**2, rel=1e-15, abs=0)
    assert cross_moment(-z, s, z, s, 0.8) == cross_moment(-z, s, -z, s, 0.8) == 0


def test_a_unit_costs_more_on_than_off():
    """The paper's conclusion from Eqs. 22 to 25, by s^2 (1 - 2 Phi(-|z|/s)); equal on the threshold."""
    z = np.linspace(0.01, 5, 50)
    np.testing.assert_allclose(
        second_moment(z, 1.3) - second_moment(-z, 1.3), 1.3**2 * (1 - 2 * upper_tail(z / 1.3)), rtol=1e-13
    )


def test_what_the_paper_prints_for_one_unit_is_wrong():
    """Eqs. 23 and 25 and the flip probability, evaluated as printed, against samples of a million."""
    s, z = 0.5, 0.7
    u = np.random.default_rng(1).normal(size=1_000_000)
    eta_off, eta_on = relu(-z + s * u), relu(z + s * u) - z
    beyond = s**2 * expectation(lambda u: (u > z / s) * u**2, [z / s])  # the integral of p(eps) eps^2 from |z|
    printed_flip = upper_tail(z / s**2)
    printed_on = z**2 * printed_flip + s**2 * expectation(lambda u: (u > -z / s) * u**2, [-z / s])
    assert (round(beyond, 4), round(printed_flip, 4), round(printed_on, 3)) == (0.0726, 0.0026, 0.179)
    for sample, printed in ((eta_off**2, beyond), (eta_on**2, printed_on), (eta_on == -z, printed_flip)):
        assert standard_errors(sample, printed) > 50


@pytest.mark.parametrize("rho", [-1.0, -0.9, -0.3, 0.0, 0.5, 0.95, 1.0])
def test_cross_moments_are_those_of_a_sample(rho):
    """49 pairs, each within 4.5 standard errors: about one in 3,000 of such tests would fail by chance."""
    u, v = np.random.default_rng(2).normal(size=(2, 50_000, 1))
    z, s = np.array(UNITS).T
    eta_j = relu(z + s * u) - relu(z)
    eta_k = relu(z + s * (rho * u + math.sqrt(1 - rho**2) * v)) - relu(z)
    product = eta_j[:, :, None] * eta_k[:, None, :]
    assert standard_errors(product, cross_moment(z[:, None], s[:, None], z, s, rho)) < 4.5


@pytest.mark.parametrize("rho", RHOS)
def test_cross_moments_are_the_integrals(rho):
    units = [*UNITS, (3.0, 1.0), (-3.0, 1.0), (-0.7 + 1e-7, 0.5), (1e-12, 1.0), (12.0, 1.0)]
    for z_j, s_j in units:
        for z_k, s_k in units:
            expected = integrated_pair(z_j, s_j, z_k, s_k, rho)
            # Twenty roundings of terms of size s_j s_k, in the quadrature more than in the closed form.
            assert cross_moment(z_j, s_j, z_k, s_k, rho) == pytest.approx(expected, rel=0, abs=5e-15 * s_j * s_k)


@pytest.mark.parametrize("rho", [-0.9, -0.3, 0.0, 0.3, 0.7, 0.9, 0.999, 1.0])
def test_cross_moments_of_units_far_below_threshold_keep_their_relative_precision(rho):
    """To 1e-8 of the bound sqrt(E[eta_j^2] E[eta_k^2]), itself down to 1e-17, as the docstring has it."""
    for h in (0.0, 1.0, 5.0, 8.0):
        for k in (0.5, 5.0, 6.5, 8.0):
            expected = integrated_pair(-h, 1.0, -k, 1.0, rho)
            bound = math.sqrt(second_moment(-h, 1.0) * second_moment(-k, 1.0))
            found = cross_moment(-h, 1.0, -k, 1.0, rho)
            assert found >= 0
            assert abs(found - expected) < 1e-8 * bound


def test_uncorrelated_units_have_the_product_of_their_shifts():
    z, s = np.array(UNITS).T
    shift = mean_shift(z, s)
    np.testing.assert_allclose(cross_moment(z[:, None], s[:, None], z, s, 0.0), shift[:, None] * shift, atol=1e-15)


def test_a_unit_and_itself_have_the_second_moment_at_any_scale():
    z, s = np.array(UNITS).T
    for c in (1e-8, 1.0, 1e8):
        np.testing.assert_allclose(cross_moment(c * z, c * s, z, s, 1.0), c * second_moment(z, s), rtol=1e-14)


def test_a_cross_moment_is_continuous_up_to_the_ends():
    """Its derivative in rho is at most s_j s_k, so 1e-9 from an end it has moved by no more than that."""
    z, s = np.array(UNITS).T
    for end in (-1.0, 1.0):
        at_end, near = (cross_moment(z[:, None], s[:, None], z, s, end * (1 - d)) for d in (0.0, 1e-9))
        assert np.all(np.abs(at_end - near) <= 1.001e-9 * np.outer(s, s) + 1e-14)


@pytest.mark.parametrize("rho", [r for r in RHOS if r])
def test_a_cross_moment_exceeds_its_first_two_terms(rho):
    """E[eta_j] E[eta_k] + rho s_j s_k p_j p_k, by a rest of order rho^2: below rho^2 E[eta^2]^(1/2) of both."""
    z, s = np.array(UNITS).T
    passed, shift, size = s * on_probability(z, s), mean_shift(z, s), np.sqrt(second_moment(z, s))
    outer = lambda a: a[:, None] * a
    rest = cross_moment(z[:, None], s[:, None], z, s, rho) - outer(shift) - rho * outer(passed)
    assert np.all(rest > -1e-14)
    assert np.all(rest < rho**2 * outer(size) + 1e-14)


def test_aligned_units_add_up_and_opposed_on_units_cancel():
    """The values measured with 4 million samples, to their two digits."""
    rho = [-0.9, 0.0, 0.5, 0.9]
    np.testing.assert_allclose(cross_moment(-1, 1, -1, 1, rho), [0, 0.007, 0.028, 0.062], atol=5e-4)
    np.testing.assert_allclose(cross_moment(1, 1, 1, 1, rho), [-0.614, 0.007, 0.370, 0.677], atol=1e-3)


def network(rng, hidden=8, inputs=5, examples=4, bias=-0.3):
    """Weights and inputs; two of the encoder's rows are parallel, two opposed, and one is zero."""
    w_e = rng.normal(size=(hidden, inputs)) / math.sqrt(inputs)
    w_e[1], w_e[3], w_e[4] = 2 * w_e[0], -w_e[2], 0.0
    b_e, b_d = rng.normal(bias, 0.3, hidden), rng.normal(0, 0.3, inputs)
    return w_e, b_e, rng.normal(size=(inputs, hidden)) / math.sqrt(hidden), b_d, rng.normal(size=(examples, inputs))


@pytest.mark.parametrize("sigma", [0.1, 0.5, 2.0])
def test_every_term_of_the_loss_is_that_of_a_sample(sigma):
    """Within four standard errors, each mean over examples with its own noise."""
    w_e, b_e, w_d, b_d, x = network(np.random.default_rng(0))
    eps = sigma * np.random.default_rng(1).normal(size=(50_000, *x.shape))
    clean = relu(x @ w_e.T + b_e)
    eta = relu((x + eps) @ w_e.T + b_e) - clean
    residual = x - clean @ w_d.T - b_d
    xi = eta @ w_d.T
    own = (eta**2 @ (w_d**2).T).sum(-1)
    found = noise_loss(w_e, b_e, w_d, b_d, x, sigma)
    assert found.clean == pytest.approx((residual**2).sum() / len(x), rel=1e-14)
    for sample, term in (
        (-2 * residual * xi, found.margin),
        (own, found.sparsity),
        ((xi**2).sum(-1) - own, found.specialization),
        ((residual - xi) ** 2, found.total),
    ):
        assert standard_errors(sample.reshape(len(eps), len(x), -1).sum(-1).mean(1), term) < 4


@pytest.mark.parametrize("sigma", [0.1, 0.7, 3.0])
def test_the_total_is_the_integral_of_the_loss_over_the_noise(sigma):
    """With one input the expectation is one integral; all pairs of units then have a cosine of 1 or -1."""
    rng = np.random.default_rng(3)
    w_e, b_e, w_d, b_d = rng.normal(size=(6, 1)), rng.normal(size=6), rng.normal(size=(1, 6)), rng.normal(size=1)
    x = np.array([[0.4], [-1.1]])
    expected = 0.0
    for value in x[:, 0]:
        kinks = (-b_e / w_e[:, 0] - value) / sigma
        hidden = lambda u, v=value: relu((v + sigma * u)[..., None] * w_e[:, 0] + b_e)
        expected += expectation(lambda u, v=value, h=hidden: (v - h(u) @ w_d[0] - b_d) ** 2, kinks) / len(x)
    assert noise_loss(w_e, b_e, w_d, b_d, x, sigma).total == pytest.approx(expected, rel=1e-13)


def test_eq_17_as_printed_is_not_the_loss():
    """Without the square of W_d its second term, a mean square times the weights, would be negative here."""
    w_e, b_e, w_d, b_d, x = network(np.random.default_rng(0))
    w_d = -np.abs(w_d)
    second = second_moment(x @ w_e.T + b_e, 0.5 * np.linalg.norm(w_e, axis=1))
    found = noise_loss(w_e, b_e, w_d, b_d, x, 0.5)
    assert found.sparsity == pytest.approx((second @ (w_d**2).T).sum() / len(x), rel=1e-13)
    assert (second @ w_d.T).sum() / len(x) < -found.sparsity


def test_without_noise_the_loss_is_the_clean_one():
    found = noise_loss(*network(np.random.default_rng(4)), 0.0)
    assert found == NoiseLoss(found.clean, 0.0, 0.0, 0.0)
    assert found.clean > 0


def test_noise_moves_the_output_by_a_sum_of_two_terms_that_is_positive():
    for seed in range(10):
        found = noise_loss(*network(np.random.default_rng(seed)), 1.0)
        assert found.sparsity > 0
        assert found.sparsity + found.specialization > 0


def test_the_order_and_the_number_of_equal_examples_do_not_matter():
    *weights, x = network(np.random.default_rng(5))
    once, twice = noise_loss(*weights, x, 0.6), noise_loss(*weights, np.concatenate([x[::-1], x]), 0.6)
    for field in ("clean", "margin", "sparsity", "specialization", "total"):
        assert getattr(once, field) == pytest.approx(getattr(twice, field), rel=1e-13)


def test_small_noise_costs_the_jacobian_penalty():
    """Every unit is hundreds of deviations from its threshold, so that the network is linear and Eq. 26 exact."""
    w_e, b_e, _, b_d, x = network(np.random.default_rng(6))
    w_d = w_e.T
    z, sigma = x @ w_e.T + b_e, 1e-4
    assert np.abs(z).min() > 100 * sigma
    found = noise_loss(w_e, b_e, w_d, b_d, x, sigma)
    penalty = jacobian_penalty(w_e, w_d, z > 0, sigma).mean()
    assert found.margin == 0
    assert found.sparsity + found.specialization == pytest.approx(penalty, rel=1e-12)
    assert found.total == pytest.approx(found.clean + penalty, rel=1e-14)
    # Eq. 27 as printed has the square inside the sum over hidden units: what is left is the sparsity term alone.
    printed = sigma**2 * np.einsum("bh,hi,jh->bijh", z > 0, w_e, w_d) ** 2
    assert printed.sum((1, 2, 3)).mean() == pytest.approx(found.sparsity, rel=1e-12)
    assert abs(found.specialization) > 0.1 * penalty


def test_the_jacobian_penalty_misses_the_noise_that_turns_units_on():
    w_e, b_e, w_d, b_d, x = network(np.random.default_rng(6), bias=-2.0)
    found = noise_loss(w_e, b_e, w_d, b_d, x, 2.0)
    penalty = jacobian_penalty(w_e, w_d, x @ w_e.T + b_e > 0, 2.0).mean()
    assert found.sparsity + found.specialization > 1.5 * penalty


def test_the_jacobian_penalty_is_the_norm_of_the_jacobian_for_any_slope():
    w_e, b_e, w_d, _, x = network(np.random.default_rng(7))
    slope = 1 - np.tanh(x @ w_e.T + b_e) ** 2
    expected = [0.09 * np.linalg.norm(w_d[:3] @ np.diag(d) @ w_e) ** 2 for d in slope]
    np.testing.assert_allclose(jacobian_penalty(w_e, w_d[:3], slope, 0.3), expected, rtol=1e-13)


@pytest.mark.parametrize("f", [mean_shift, second_moment, flip_probability, on_probability])
@pytest.mark.parametrize("s", [-1.0, [0.5, -0.1], math.nan])
def test_a_negative_deviation_is_refused(f, s):
    with pytest.raises(ValueError, match=r"^s: a standard deviation must be at least 0, got [-\d.na]+$"):
        f(0.3, s)


def test_a_pair_of_units_refuses_negative_deviations_and_correlations_beyond_one():
    with pytest.raises(ValueError, match=r"^s_j: a standard deviation must be at least 0, got -1.0$"):
        cross_moment(0.0, -1.0, 0.0, 1.0, 0.0)
    with pytest.raises(ValueError, match=r"^s_k: a standard deviation must be at least 0, got -1.0$"):
        cross_moment(0.0, 1.0, 0.0, -1.0, 0.0)
    for rho in (1.5, [0.0, -1.5], math.nan):
        with pytest.raises(ValueError, match=r"^rho: a correlation must be in \[-1, 1\], got one of size (1.5|nan)$"):
            cross_moment(0.0, 1.0, 0.0, 1.0, rho)


@pytest.mark.parametrize("sigma", [-0.1, math.nan, math.inf])
def test_a_noise_that_is_no_deviation_is_refused(sigma):
    w_e, b_e, w_d, b_d, x = network(np.random.default_rng(0))
    for f in (lambda: noise_loss(w_e, b_e, w_d, b_d, x, sigma), lambda: jacobian_penalty(w_e, w_d, x @ w_e.T, sigma)):
        with pytest.raises(ValueError, match=r"^sigma: a standard deviation must be at least 0 and finite, got"):
            f()


@pytest.mark.parametrize(
    ("position", "shape", "message"),
    [
        (0, (8,), r"^w_e: the shape must be \[hidden, inputs\], got \[8\]$"),
        (1, (7,), r"^b_e: the shape must be \[hidden\] with hidden = 8, got \[7\]$"),
        (2, (8, 5), r"^w_d: the shape must be \[inputs, hidden\] with inputs = 5, hidden = 8, got \[8, 5\]$"),
        (3, (8,), r"^b_d: the shape must be \[inputs\] with inputs = 5, got \[8\]$"),
        (4, (4, 6), r"^x: the shape must be \[examples, inputs\] with inputs = 5, got \[4, 6\]$"),
        (4, (0, 5), r"^x: .*got \[0, 5\]$"),
    ],
)
def test_shapes_that_do_not_fit_are_refused_by_name(position, shape, message):
    arrays = list(network(np.random.default_rng(0)))
    arrays[position] = np.zeros(shape)
    with pytest.raises(ValueError, match=message):
        noise_loss(*arrays, 0.1)


def test_the_jacobian_refuses_slopes_of_another_width():
    w_e, _, w_d, _, _ = network(np.random.default_rng(0))
    message = r"^slope: the shape must be \[examples, hidden\] with hidden = 8, got \[4, 7\]$"
    with pytest.raises(ValueError, match=message):
        jacobian_penalty(w_e, w_d, np.zeros((4, 7)), 0.1)
