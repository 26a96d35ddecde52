import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from sparsity.layers.initializers import edge_biases, edge_of, edge_weights, fan_in_uniform, input_weights
from sparsity.ops.sparsifiers import ClippedRelu, ClippedSoftThreshold, Gelu, Relu, Sigmoid, SoftThreshold, TopK
from sparsity.theory.edge_of_chaos import BifurcationWarning, solve
from sparsity.theory.maps import MeanField


@pytest.mark.parametrize(("shape", "fan_in"), [((300, 200), 300), ((5, 60, 200), 300), ((3, 3, 40, 200), 360)])
def test_weights_have_the_variance_over_the_fan_in_of_a_matrix_and_of_convolutions(shape, fan_in):
    edge = solve(0.8, 0.7)
    w = np.asarray(edge_weights(edge)(jax.random.key(0), shape), np.float64)
    # n normal draws: a relative error of the variance of sqrt(2/n), at most 0.6%; four times that.
    assert w.var() == pytest.approx(edge.sigma_w2 / fan_in, rel=4 * (2 / w.size) ** 0.5)
    assert abs(w).max() > 4 * w.std()  # normal, not truncated
    assert np.var(input_weights(2.5)(jax.random.key(1), shape)) == pytest.approx(
        2.5 / fan_in, rel=4 * (2 / w.size) ** 0.5
    )


def test_biases_have_their_variance_and_vanish_where_the_theory_asks_for_none():
    edge = solve(0.8, 0.7)
    b = np.asarray(edge_biases(edge)(jax.random.key(0), (100_000,)), np.float64)
    assert b.var() == pytest.approx(edge.sigma_b2, rel=4 * (2 / b.size) ** 0.5)
    np.testing.assert_array_equal(edge_biases(edge_of(Relu(), 1.0))(jax.random.key(0), (10,)), 0)


@pytest.mark.parametrize(("fan_in", "scale"), [(1, 1.0), (25, 1.0), (25, 3.0)])
def test_fan_in_uniform_is_uniform_up_to_its_limit_in_any_shape(fan_in, scale):
    u = fan_in_uniform(fan_in, scale)(jax.random.key(0), (100, 50))
    u = np.asarray(u, np.float64).ravel() * fan_in**0.5 / scale
    # Kolmogorov's statistic of the true distribution exceeds 1.95 / sqrt(n) once in a thousand samples.
    assert stats.kstest(u, stats.uniform(-1, 2).cdf).statistic < 1.95 / u.size**0.5
    assert np.abs(u).max() <= 1 + 1e-6
    assert fan_in_uniform(4)(jax.random.key(0), (3,), jnp.bfloat16).dtype == jnp.bfloat16


def variances(sparsifier, q, depth, width, seeds):
    """Mean squares of the pre-activations, [seeds, depth], of networks without training."""
    edge = edge_of(sparsifier, q)
    x = jax.random.normal(jax.random.key(99), (64,)) * q**0.5
    x = x * jnp.sqrt(q / jnp.mean(x**2))

    def network(key):
        first, rest = jax.random.split(key)
        z = x @ input_weights()(first, (64, width))

        def layer(z, key):
            a, b = jax.random.split(key)
            w, bias = edge_weights(edge)(a, (width, width)), edge_biases(edge)(b, (width,))
            return sparsifier(z) @ w + bias, jnp.mean(z**2)

        return jax.lax.scan(layer, z, jax.random.split(rest, depth))[1]

    return np.asarray(jax.lax.map(network, jax.random.split(jax.random.key(0), seeds)), np.float64)


@pytest.mark.usefixtures("optimized")
@pytest.mark.parametrize(
    ("sparsifier", "q"),
    [
        (ClippedRelu(sparsity=0.7, slope=0.5), 1.0),
        (ClippedRelu(sparsity=0.8, slope=0.7), 1.0),
        (ClippedSoftThreshold(sparsity=0.6, slope=0.5), 1.0),
        (ClippedSoftThreshold(sparsity=0.6, slope=0.5, q=4.0), 4.0),
    ],
    ids=str,
)
def test_q_stays_at_its_fixed_point_through_100_layers_as_the_theory_says(sparsifier, q):
    """Width 300. The mean over seeds and the scatter at each layer are those of `MeanField.spread`."""
    seeds, width = 12, 300
    found = variances(sparsifier, q, 100, width, seeds)
    edge = edge_of(sparsifier, q)
    field = MeanField(sparsifier.activation(), edge.sigma_w2, edge.sigma_b2)
    assert found[:, 0] == pytest.approx(q, rel=0.35)  # one draw of 300 units: 8%
    expected = field.spread(q, width, 100)
    deep = found[:, 20:]  # stationary by then: V'^40 is below 1e-6
    # Layers are correlated over some 1 / (1 - V') of them: about 25 independent values a seed.
    error = (expected.measured / (seeds * 25)) ** 0.5
    assert abs(deep.mean() - q - expected.drift) < 3 * error
    # 300 independent values: a standard error of the variance of 8%.
    assert deep.var() == pytest.approx(expected.measured, rel=0.25)


@pytest.mark.usefixtures("optimized")
def test_without_a_clip_q_wanders_off_and_with_relu_it_only_diffuses():
    """Price et al. 2024, Sec. 2: V' = 1 and V'' > 0 make q explode in a finite network."""
    assert variances(SoftThreshold(sparsity=0.5), 1.0, 100, 300, 6)[:, -1].max() > 100
    last = variances(Relu(), 1.0, 100, 300, 6)[:, -1]
    assert last.min() > 0.05
    assert last.max() < 20


@pytest.mark.usefixtures("optimized")
def test_above_the_bifurcation_q_leaves_for_the_other_fixed_point():
    """CST .85 at V' = .9 has stable fixed points at 1 and 5.34; width 300 does not hold the first."""
    with pytest.warns(BifurcationWarning):
        sparsifier = ClippedSoftThreshold(sparsity=0.85, slope=0.9)
    with pytest.warns(BifurcationWarning, match=r"q = 5\.34 \(stable"):
        last = variances(sparsifier, 1.0, 100, 300, 6)[:, -20:].mean()
    assert last > 3


REFUSED = [
    (TopK(4), 1.0, "sparsifier: TopK acts on a whole token: there is no theory of one unit alone"),
    (
        ClippedRelu(sparsity=0.8, slope=0.7, q=2.0),
        1.0,
        "q: the network's 1.0 is not the 2.0 that its sparsifier was made",
    ),
    (Sigmoid(), 1.0, "q: chi_1(1) = 1 and V(1) = 1 need a negative bias variance"),
    (Relu(), 0.0, "q: a variance must be positive, got 0.0"),
]


@pytest.mark.parametrize(("sparsifier", "q", "message"), REFUSED, ids=[m for _, _, m in REFUSED])
def test_what_has_no_edge_of_chaos_is_refused(sparsifier, q, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        edge_of(sparsifier, q)


def test_gelu_is_unstable_on_its_edge_of_chaos_and_says_so():
    with pytest.warns(BifurcationWarning, match=r"V'\(1\) = 1.07: .*q = 0.2528 \(stable.*q = 1 \(unstable"):
        edge_of(Gelu(), 1.0)
