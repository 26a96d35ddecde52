import math

import numpy as np
import pytest
from scipy.integrate import quad

from sparsity.theory import finite_width
from sparsity.theory.edge_of_chaos import bifurcation, thresholded
from sparsity.theory.finite_width import FiniteWidth, largest_clip, sample_growth, stable_field
from sparsity.theory.gaussian import Activation
from sparsity.theory.maps import MeanField

RELU = MeanField(thresholded(0.0), 2.0, 0.0)


def with_weights(field, width, depth, networks, rng):
    """(v_L, log of the worst growth of a squared gradient) of networks whose every weight is drawn."""
    act, out = field.activation, []
    for _ in range(networks):
        z, layers = rng.normal(size=width), []
        for _ in range(depth - 1):
            w = rng.normal(0, math.sqrt(field.sigma_w2 / width), (width, width))
            h = act.phi(z)
            layers.append((w, act.slope(z)))
            z = w @ h + rng.normal(0, math.sqrt(field.sigma_b2), width)
        v = field.sigma_w2 * (h**2).mean() + field.sigma_b2
        delta = rng.normal(size=width)
        least, worst = np.log(delta @ delta), 0.0
        for w, slope in reversed(layers):
            delta = slope * (w.T @ delta)
            size = np.log(delta @ delta)
            least, worst = min(least, size), max(worst, size - least)
        out.append((v, worst))
    return np.array(out).T


def error(p, n):
    """Standard error of a share, that of half a case at the least."""
    return math.sqrt(max(p * (1 - p), 0.5 / n) / n)


@pytest.fixture(scope="module")
def drawn():
    """500 networks of width 100 and depth 30, CReLU .85/.9, weights and all: (field, v_L, worst growth)."""
    field = stable_field(0.85, 0.9)
    return field, *with_weights(field, 100, 30, 500, np.random.default_rng(0))


def test_gradients_sampled_without_weights_have_the_law_of_those_with_weights(drawn):
    """Shares above three levels, each within four standard errors of the difference."""
    field, _, worst = drawn
    sampled = sample_growth(field, 100, 30, 3000, np.random.default_rng(1))
    for level in (2.0, 4.0, math.log(1e3)):
        p = (sampled > level).mean()
        assert 0.03 < p < 0.97
        assert abs((worst > level).mean() - p) < 4 * math.hypot(error(p, 500), error(p, 3000))


def test_the_chain_has_the_law_of_networks_with_weights(drawn):
    field, last, worst = drawn
    net = FiniteWidth(field, 100)
    found = (worst > math.log(1e3)).mean()
    assert found > 0.04
    assert abs(net.failure(30) - found) < 4 * error(found, 500) + 0.1 * found
    values, law = net.variances(30)
    for share in (0.1, 0.5, 0.9):
        below = np.interp(np.quantile(last, share), values, np.cumsum(law) - law / 2)
        assert abs(below - share) < 4 * error(share, 500)


@pytest.mark.parametrize(
    ("sparsity", "slope", "two_sided", "width", "depth"),
    [
        (0.85, 0.9, False, 100, 30),
        (0.85, 0.9, False, 300, 40),
        (0.8, 0.9, True, 200, 40),
        (0.7, 0.5, True, 100, 60),
        (0.85, 0.995, False, 1000, 20),
    ],
)
def test_failures_are_as_frequent_as_in_simulated_networks(sparsity, slope, two_sided, width, depth):
    """At three ratios. Beside four standard errors, a tenth of p: what terms of higher order in 1/N leave."""
    field, networks = stable_field(sparsity, slope, two_sided=two_sided), 1000
    worst = sample_growth(field, width, depth, networks, np.random.default_rng(3))
    for ratio in (30.0, 1e3, 1e5):
        p, found = FiniteWidth(field, width).failure(depth, ratio), (worst > math.log(ratio)).mean()
        assert abs(p - found) < 4 * error(found, networks) + 0.1 * found + 0.005


def test_without_the_reuse_of_weights_too_few_failures_are_predicted(monkeypatch):
    field = stable_field(0.85, 0.8, two_sided=True)
    worst = sample_growth(field, 300, 100, 800, np.random.default_rng(2))
    found = (worst > math.log(1e3)).mean()
    net = FiniteWidth(field, 300)
    assert abs(net.failure(100) - found) < 4 * error(found, 800)
    monkeypatch.setattr(finite_width._Chain, "reuse", lambda self, share: (0 * share, 0 * share))
    assert net.failure(100) < found - 4 * error(found, 800)


@pytest.mark.parametrize(("sparsity", "slope", "q"), [(0.8, 0.7, 1.0), (0.6, 0.5, 3.0)])
def test_a_wide_networks_variance_has_the_spread_of_the_first_order(sparsity, slope, q):
    field, width, depth = stable_field(sparsity, slope, q), 20_000, 12
    values, law = FiniteWidth(field, width, q).variances(depth)
    expected = field.spread(q, width, depth)
    mean = law @ values
    # Terms of order 1/N^2, relative to the first: some 20/N; and the grid.
    assert law @ (values - mean) ** 2 == pytest.approx(expected.variance, rel=5e-3)
    assert mean - q == pytest.approx(expected.drift, rel=0.02, abs=2e-6 * q)
    assert law.sum() == pytest.approx(1.0, abs=1e-12)


def test_a_finer_grid_gives_the_same_answer(monkeypatch):
    net = FiniteWidth(stable_field(0.85, 0.9), 300)
    coarse = net.failure(60)
    finite_width._chain.cache_clear()
    monkeypatch.setattr(finite_width, "_STEP", 0.35)
    monkeypatch.setattr(finite_width, "_BIN", 0.04)
    fine = net.failure(60)
    finite_width._chain.cache_clear()
    assert coarse == pytest.approx(fine, abs=2e-3)


def test_gradients_of_relu_are_a_martingale():
    """He initialisation: log G has k = N / 5, the variance plays no part, and reuse changes nothing.

    The known law of the logarithm, mean -5 L / (2 N) to first order (Hanin & Nica 2020), and Doob's inequality:
    growth from one given layer exceeds x with probability 1/x at most.
    """
    width, depth = 500, 50
    net = FiniteWidth(RELU, width)
    assert net.log_growth(depth) == pytest.approx(-5 * (depth - 1) / (2 * width), rel=0.02)
    assert net.failure(depth, 4.0) < (depth - 1) / 4
    worst = sample_growth(RELU, width, depth, 1500, np.random.default_rng(4))
    p = (worst > math.log(4.0)).mean()
    assert abs(net.failure(depth, 4.0) - p) < 4 * error(p, 1500)


def test_failure_is_rarer_in_wider_and_shallower_networks_and_at_larger_ratios():
    field = stable_field(0.85, 0.9)
    by_width = [FiniteWidth(field, width).failure(60) for width in (100, 300, 1000, 3000)]
    by_depth = [FiniteWidth(field, 300).failure(depth) for depth in (10, 30, 100, 300)]
    by_ratio = [FiniteWidth(field, 300).failure(60, ratio) for ratio in (10.0, 1e3, 1e6)]
    assert by_width == sorted(by_width, reverse=True)
    assert by_depth == sorted(by_depth)
    assert by_ratio == sorted(by_ratio, reverse=True)
    assert by_width[0] > 0.2
    assert FiniteWidth(field, 100_000).failure(60) < 1e-9  # the infinite network stays at q


def test_failures_at_the_papers_size_are_those_of_its_table_2():
    """Width 300, depth 100: the rows that fail in Table 2 above every row that trains; unclipped ones fail for sure."""
    fails = [(0.85, 0.9, False), (0.7, 0.9, True), (0.8, 0.9, True), (0.85, 0.9, True)]
    trains = [(0.8, 0.9, False), (0.7, 0.9, False), (0.85, 0.7, False), (0.6, 0.9, True), (0.85, 0.7, True)]
    p = lambda s, slope, two: FiniteWidth(stable_field(s, slope, two_sided=two), 300).failure(100)
    assert min(p(*row) for row in fails) > finite_width.TOLERATED > max(p(*row) for row in trains)
    tau = 1.0364
    activation = thresholded(tau, two_sided=True)
    sigma_w2 = 1 / float(activation.slope_power(1.0, 2))
    unclipped = MeanField(activation, sigma_w2, 1 - sigma_w2 * float(activation.power(1.0, 2)))
    assert FiniteWidth(unclipped, 300).failure(100) > 0.3


def test_the_largest_clip_just_serves_and_grows_with_width_and_shrinks_with_depth():
    found = {(n, d): largest_clip(0.85, n, d) for n, d in ((100, 30), (300, 30), (300, 100), (3000, 100))}
    for (width, depth), one in found.items():
        field = stable_field(0.85, one.slope)
        assert FiniteWidth(field, width).failure(depth) == pytest.approx(one.failure, rel=1e-6)
        assert one.failure <= finite_width.TOLERATED
        assert FiniteWidth(stable_field(0.85, one.slope + 3e-3), width).failure(depth) > finite_width.TOLERATED
        assert field.variance_slope(1.0) == pytest.approx(one.slope, abs=1e-9)
        assert float(field.activation.phi(np.array([99.0]))[0]) == pytest.approx(one.m)
    slopes = {key: one.slope for key, one in found.items()}
    assert slopes[100, 30] < slopes[300, 30]
    assert slopes[300, 100] < slopes[3000, 100]
    assert slopes[300, 100] < slopes[300, 30]
    # The bifurcation of the infinite network bounds nothing: shallow and wide networks never leave q.
    assert slopes[300, 100] < bifurcation(0.85)
    assert largest_clip(0.85, 30_000, 30).slope > bifurcation(0.85)


def test_no_clip_serves_a_network_that_is_too_narrow():
    assert largest_clip(0.9, 20, 300) == finite_width.StableClip(None, None, None)


def test_any_activation_can_be_asked():
    """A shifted tanh, by quadrature: the chain's moments at one variance are scipy's."""
    activation = Activation(lambda z: np.tanh(z) + 0.2)
    field = MeanField(activation, 1.3, 0.1)
    f = lambda z: activation.phi(np.array([z]))[0]
    density = lambda z: math.exp(-z * z / 2 / 1.7) / math.sqrt(2 * math.pi * 1.7)
    expected = [
        quad(lambda z, g=g: g(z) * density(z), -20, 20, epsabs=1e-12)[0]
        for g in (
            lambda z: f(z) ** 2,
            lambda z: f(z) ** 4,
            lambda z: np.cosh(z) ** -4,
            lambda z: np.cosh(z) ** -8,
            lambda z: np.cosh(z) ** -4 * f(z) ** 2,
            lambda z: np.cosh(z) ** -4 * z * z,
        )
    ]
    np.testing.assert_allclose(finite_width._moments(field, np.array([1.7]))[:, 0], expected, rtol=1e-7)
    assert 0 <= FiniteWidth(field, 100).failure(20) <= 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: FiniteWidth(RELU, 0), "width must be at least 1"),
        (lambda: FiniteWidth(RELU, 10, -1.0), "width must be at least 1 and q positive"),
        (lambda: FiniteWidth(RELU, 10).failure(0), "depth: must be at least 1, got 0"),
        (lambda: FiniteWidth(RELU, 10).failure(3, 1.0), "ratio: must be above 1, got 1.0"),
        (lambda: largest_clip(0.85, 100, 10, tolerated=0.0), r"tolerated: must be in \(0, 1\), got 0.0"),
    ],
)
def test_impossible_questions_are_refused(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()


def test_one_layer_cannot_fail():
    net = FiniteWidth(stable_field(0.85, 0.9), 100)
    assert net.failure(1) == 0.0
    values, law = net.variances(1)
    assert values[np.argmax(law)] == 1.0
    assert law.max() == 1.0
