import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import expit, softmax
from scipy.stats import norm

from sparsity.theory.first_gradient import (
    collision,
    cross_entropy_gradient,
    leading_cross_entropy_gradient,
    mse_gradient,
)

P = np.array([0.0, 0.3, 1.0, 2.5])


def sampled(loss_gradient, classes, draw, n=200_000, seed=0):
    """Mean and standard error over V of dl/dp_i = <dl/df, v_i>, [F] each."""
    rng = np.random.default_rng(seed)
    total, squares = np.zeros(len(P)), np.zeros(len(P))
    for _ in range(20):
        v = draw(rng, (n // 20, len(P), classes))
        g = np.einsum("nk,nik->ni", loss_gradient(np.einsum("i,nik->nk", P, v)), v)
        total, squares = total + g.sum(0), squares + (g**2).sum(0)
    mean = total / n
    return mean, np.sqrt((squares / n - mean**2) / n)


def gaussian(deviation):
    return lambda rng, shape: rng.normal(0, deviation, shape)


def uniform(limit):
    return lambda rng, shape: rng.uniform(-limit, limit, shape)


@pytest.mark.parametrize(("draw", "variance"), [(gaussian(0.5), 0.25), (uniform(0.6), 0.12)])
def test_the_mean_gradient_of_squared_error_is_that_of_samples(draw, variance):
    y = np.array([1.0, -2.0, 0.5])
    mean, error = sampled(lambda f: f - y, 3, draw)
    assert (np.abs(mean - mse_gradient(P, 3 * variance)) < 5 * error + 1e-12).all()


@pytest.mark.parametrize(("classes", "deviation"), [(2, 1.0), (3, 0.5), (10, 1.0), (10, 3.0)])
def test_that_of_cross_entropy_is_that_of_samples(classes, deviation):
    one_hot = np.eye(classes)[0]
    mean, error = sampled(lambda f: softmax(f, -1) - one_hot, classes, gaussian(deviation))
    assert (np.abs(mean - cross_entropy_gradient(P, classes, deviation**2)) < 5 * error + 1e-12).all()


@pytest.mark.parametrize("q", [1e-3, 0.1, 1.0, 10.0, 100.0])
def test_two_classes_collide_as_a_logistic_function_says(q):
    """Of two classes pi_1 = 1 / (1 + e^-d), d ~ N(0, 2 q): sum pi^2 = 1 - 2 pi_1 (1 - pi_1)."""
    scale = (2 * q) ** 0.5
    f = lambda d: 2 * expit(d) * expit(-d) * norm.pdf(d, scale=scale)
    expected = 1 - 2 * quad(f, 0, 12 * scale, points=[1.0, min(5.0, 11 * scale)], epsabs=1e-13, limit=200)[0]
    assert collision(q, 2) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("classes", [2, 10, 1000, 32_128])
def test_small_logits_collide_as_the_expansion_says(classes):
    """sum pi^2 = 1/K + (1 - 1/K) q / K + O(q^2): softmax of small f is (1 + f - mean f) / K."""
    q = 1e-3
    expected = (1 + q * (1 - 1 / classes)) / classes
    assert collision(q, classes) == pytest.approx(expected, rel=3e-6)


@pytest.mark.parametrize("q", [0.0, 0.5, 30.0])
def test_one_class_always_collides_and_many_lie_between(q):
    assert collision(q, 1) == pytest.approx(1, abs=1e-9)
    found = [collision(q, k) for k in (2, 5, 50)]
    assert found == sorted(found, reverse=True)
    assert all(1 / k - 1e-12 <= c <= 1 for k, c in zip((2, 5, 50), found, strict=True))


@pytest.mark.parametrize(("q", "classes", "n"), [(4.0, 1000, 4000), (1e4, 10, 200_000)])
def test_many_classes_and_large_logits_collide_as_samples_do(q, classes, n):
    rng = np.random.default_rng(0)
    values = (softmax(q**0.5 * rng.normal(size=(n, classes)), -1) ** 2).sum(-1)
    error = values.std() / len(values) ** 0.5
    assert collision(q, classes) == pytest.approx(values.mean(), abs=5 * error)


def test_small_weights_have_the_leading_order_and_large_ones_less():
    for classes in (2, 10):
        leading = leading_cross_entropy_gradient(P, classes, classes * 1e-4)
        np.testing.assert_allclose(cross_entropy_gradient(P, classes, 1e-4), leading, rtol=2e-3)
        large = leading_cross_entropy_gradient(P, classes, classes * 4.0)
        assert (cross_entropy_gradient(P, classes, 4.0)[1:] < large[1:]).all()


def test_what_is_active_has_a_positive_gradient_and_what_is_not_has_none():
    for classes, variance in ((2, 0.1), (1000, 5.0)):
        g = cross_entropy_gradient(P, classes, variance)
        assert g[0] == 0
        assert (g[1:] > 0).all()
    assert (cross_entropy_gradient(np.zeros(3), 5, 1.0) == 0).all()


@pytest.mark.parametrize(("q", "classes"), [(-1.0, 3), (float("nan"), 3), (1.0, 0)])
def test_what_is_no_variance_and_no_class_is_refused(q, classes):
    with pytest.raises(ValueError, match="q, classes"):
        collision(q, classes)
