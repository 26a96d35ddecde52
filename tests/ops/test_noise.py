"""One set of tests that walks both tables: every entry needs an example here."""

import dataclasses
import json
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from sparsity.config import ConfigError, build, one_of, to_dict
from sparsity.ops import noise
from sparsity.ops.noise import (
    COUNTED,
    NOISE_SCHEDULES,
    NOISES,
    Constant,
    Gaussian,
    Geometric,
    Laplace,
    LinearToZero,
    NoiseConfig,
    Poisson,
    RemovedAt,
    SaltAndPepper,
)
from sparsity.spmd import MeshConfig, make_mesh

N = 400_000
KEY = jax.random.key(0)
X = jnp.asarray(np.random.default_rng(0).normal(size=(16, 5, 24)), jnp.float32)


@dataclasses.dataclass(frozen=True)
class Example:
    """An entry's instance, and the distribution function of what it makes of a constant x, with its jumps.

    mean, variance: of the result; cdf: of the result where it is continuous, else None.
    """

    noise: NoiseConfig
    mean: Callable
    variance: Callable
    cdf: Callable | None = None


EXAMPLES = {
    "gaussian": Example(
        Gaussian(0.7), lambda x: x, lambda x: 0.49, lambda x: lambda y: stats.norm.cdf(y, loc=x, scale=0.7)
    ),
    "laplace": Example(
        Laplace(0.7), lambda x: x, lambda x: 2 * 0.49, lambda x: lambda y: stats.laplace.cdf(y, loc=x, scale=0.7)
    ),
    # 0.3 of the entries are 0 or 2 with equal odds: E y = 0.7 x + 0.3, E y^2 = 0.7 x^2 + 0.15 * 4.
    "salt_and_pepper": Example(
        SaltAndPepper(0.3, high=2.0), lambda x: 0.7 * x + 0.3, lambda x: 0.7 * x**2 + 0.6 - (0.7 * x + 0.3) ** 2
    ),
    "poisson": Example(Poisson(0.7), lambda x: x, lambda x: 0.49 * abs(x)),
}

# An entry without an example fails every one of these tests with a KeyError of its name.
entries = pytest.mark.parametrize("name", NOISES)


def draw(name, x, key=KEY, step=0):
    return jax.jit(EXAMPLES[name].noise)(x, key, step)


@entries
@pytest.mark.parametrize("x", [-1.5, 0.0, 0.3, 20.0])
def test_mean_and_variance_are_the_stated_ones(name, x):
    """Five standard errors, of the mean and of the variance, both estimated from the sample."""
    y = np.asarray(draw(name, jnp.full(N, x)), np.float64)
    mean, variance = EXAMPLES[name].mean(x), EXAMPLES[name].variance(x)
    assert abs(y.mean() - mean) <= 5 * y.std() / N**0.5 + 1e-7 * abs(x)  # and x itself in float32
    square = (y - mean) ** 2
    assert abs(square.mean() - variance) <= 5 * square.std() / N**0.5 + 1e-7 * abs(x)


@pytest.mark.parametrize("name", ["gaussian", "laplace"])
def test_the_distribution_is_the_stated_one(name):
    y = np.asarray(draw(name, jnp.full(N, 0.25)), np.float64)
    # Kolmogorov's statistic of the true distribution exceeds 1.95 / sqrt(N) once in a thousand samples.
    assert stats.kstest(y, EXAMPLES[name].cdf(0.25)).statistic < 1.95 / N**0.5


@entries
def test_entries_are_independent_of_each_other(name):
    y = np.asarray(draw(name, jnp.full((4, N // 4), 1.0)), np.float64)
    correlation = np.corrcoef(np.concatenate([y, np.roll(y[:1], 1, axis=1)]))
    # Six pairs of rows and a row with its neighbours: each N(0, 1 / sqrt(N / 4)), five times that.
    assert np.abs(correlation - np.eye(5)).max() < 5 / (N // 4) ** 0.5


@entries
def test_the_values_are_a_function_of_key_and_step_alone_and_fresh_for_each_key(name):
    one = draw(name, X)
    assert one.shape == X.shape
    assert one.dtype == X.dtype
    np.testing.assert_array_equal(one, draw(name, X))
    np.testing.assert_array_equal(one, draw(name, X, step=7))  # a constant schedule
    assert (np.asarray(one) != np.asarray(draw(name, X, jax.random.key(1)))).mean() > 0.2


def test_the_noise_of_a_key_is_that_of_every_version_and_machine():
    """As numbers; the bits that are drawn are the same everywhere, the function of them rounds differently."""
    drawn = Gaussian(0.5)(jnp.zeros(4), jax.random.key(0), 3)
    np.testing.assert_allclose(drawn, [0.81132108, 1.01263237, -0.21679722, -0.03930867], rtol=1e-5)


@entries
@pytest.mark.parametrize("shape", [(8, 1), (4, 2), (1, 8)])
def test_the_same_values_on_any_mesh_as_on_one_device(name, shape):
    mesh = make_mesh(MeshConfig(*shape))
    apply = jax.jit(EXAMPLES[name].noise)
    expected = apply(X, KEY, jnp.int32(3))
    placed = jax.device_put(X, jax.NamedSharding(mesh, jax.P("data", None, "model")))
    with jax.set_mesh(mesh):
        got = apply(placed, KEY, jnp.int32(3))
    assert len(got.addressable_shards[0].data.ravel()) == X.size // 8  # it stayed where it was
    np.testing.assert_array_equal(got, expected)


@entries
def test_the_schedule_multiplies_the_size_and_the_step_may_be_traced(name):
    scheduled = dataclasses.replace(EXAMPLES[name].noise, schedule=LinearToZero(start=10, length=4))
    size = "probability" if name == "salt_and_pepper" else "sigma"
    half = dataclasses.replace(scheduled, **{size: getattr(scheduled, size) / 2}, schedule=Constant())
    traces = []

    @jax.jit
    def apply(x, step):
        traces.append(step)
        return scheduled(x, KEY, step)

    np.testing.assert_allclose(apply(X, 10), draw(name, X), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(apply(X, 12), half(X, KEY, 0), rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(apply(X, 14), X)  # and zero size is x itself, exactly
    assert len(traces) == 1


@entries
def test_nan_stays_where_it_is_and_ends(name):
    """A sampler that waits for a rate of NaN to be accepted would not end."""
    y = jax.jit(EXAMPLES[name].noise)(X.at[3].set(jnp.nan), KEY, 0)
    # Where X itself was left as it is, NaN was not replaced either: salt and pepper replaces some.
    left = draw(name, X) == X if name == "salt_and_pepper" else jnp.ones_like(X, bool)
    np.testing.assert_array_equal(np.isnan(y), left & (jnp.arange(16) == 3)[:, None, None])


@entries
def test_bfloat16_is_the_float32_noise_rounded_once(name):
    x = X.astype(jnp.bfloat16)
    y = draw(name, x)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y, draw(name, x.astype(jnp.float32)).astype(jnp.bfloat16))


@pytest.mark.parametrize("name", ["gaussian", "laplace", "poisson"])
def test_the_gradient_of_additive_noise_is_that_of_x(name):
    grad = jax.grad(lambda x: (X * draw(name, x)).sum())(X)
    np.testing.assert_array_equal(grad, X)


def test_replaced_entries_have_no_gradient():
    grad = jax.grad(lambda x: (2 * draw("salt_and_pepper", x)).sum())(X)
    np.testing.assert_array_equal(grad, np.where(draw("salt_and_pepper", X) == X, 2.0, 0.0))


def test_salt_and_pepper_replaces_the_stated_share_half_low_half_high():
    y = np.asarray(SaltAndPepper(0.3, low=-4.0, high=9.0)(jnp.zeros(N), KEY, 0))
    shares = np.array([(y == -4).mean(), (y == 9).mean()])
    np.testing.assert_allclose(shares, 0.15, atol=5 * (0.15 * 0.85 / N) ** 0.5)
    assert (y == 0).mean() == pytest.approx(1 - shares.sum(), abs=1e-9)
    everywhere = np.asarray(SaltAndPepper(1.0)(jnp.full(N, 0.5), KEY, 0))
    assert set(everywhere) == {0.0, 1.0}


def test_nothing_is_clamped():
    pixels = jax.random.uniform(jax.random.key(1), (1000,))
    for one in (Gaussian(0.8), Laplace(0.8), Poisson(0.8)):
        assert one(pixels, KEY, 0).max() > 1
    assert Gaussian(0.8)(pixels, KEY, 0).min() < 0


def test_shot_noise_counts_quanta_of_sigma_squared_and_leaves_zeros():
    x = jnp.where(X > 0.5, 0.0, X)
    quanta = np.asarray(Poisson(0.5)(x, KEY, 0)) / 0.25
    np.testing.assert_allclose(quanta, np.round(quanta), atol=1e-5)
    assert (quanta[np.asarray(x) == 0] == 0).all()
    assert (np.sign(quanta) * np.sign(np.asarray(x)) >= 0).all()


@pytest.mark.parametrize("rate", [0.999 * COUNTED, 1.001 * COUNTED])
def test_the_counts_of_shot_noise_pass_into_their_normal_limit(rate):
    """On either side the distribution is Poisson's, to the skewness of 1/64 that the limit leaves out."""
    y = np.asarray(Poisson(1.0)(jnp.full(N, rate), KEY, 0), np.float64)
    # A normal law misses a Poisson's by at most skewness / (6 sqrt(2 pi)) plus half a step of the count,
    # pdf(0) / (2 sqrt(rate)); chance adds 1.95 / sqrt(N).
    bound = (1 / 6 + 1 / 2) / np.sqrt(2 * np.pi * rate) + 1.95 / N**0.5
    grid = rate + np.sqrt(rate) * np.linspace(-4, 4, 81)
    empirical = np.searchsorted(np.sort(y), grid, side="right") / N
    assert np.abs(empirical - stats.poisson.cdf(grid, rate)).max() < bound
    assert abs(y.mean() - rate) < 5 * (rate / N) ** 0.5
    assert abs(y.var() / rate - 1) < 5 * (2 / N) ** 0.5


def test_sigma_may_be_traced_and_mapped_over():
    sigmas = jnp.array([0.0, 0.3, 2.0])
    for function in (noise.gaussian, noise.laplace, noise.poisson):
        mapped = jax.jit(jax.vmap(lambda s, f=function: f(X, KEY, s)))(sigmas)
        for got, sigma in zip(mapped, sigmas, strict=True):
            np.testing.assert_allclose(got, function(X, KEY, float(sigma)), rtol=1e-6, atol=1e-6)
        np.testing.assert_array_equal(mapped[0], X)


SCHEDULES = {
    "constant": (Constant(), {0: 1.0, 10: 1.0, 10**9: 1.0}),
    "linear_to_zero": (
        LinearToZero(start=800, length=400),
        {0: 1.0, 800: 1.0, 801: 0.9975, 900: 0.75, 1199: 0.0025, 1200: 0.0, 5000: 0.0},
    ),
    "geometric": (
        Geometric(start=800, length=400, end=0.01),
        {0: 1.0, 800: 1.0, 801: 0.01**0.0025, 1000: 0.1, 1100: 0.01**0.75, 1199: 0.01**0.9975, 1200: 0.0, 5000: 0.0},
    ),
    "removed_at": (RemovedAt(step=200), {0: 1.0, 199: 1.0, 200: 0.0, 201: 0.0}),
}


@pytest.mark.parametrize("name", NOISE_SCHEDULES)
def test_a_schedule_has_its_values_by_hand_in_numpy_and_in_a_compiled_step(name):
    schedule, values = SCHEDULES[name]
    steps, expected = np.array(list(values)), np.array(list(values.values()))
    np.testing.assert_allclose(schedule(steps, np), expected, rtol=1e-12)
    # float32: 1 - 399/400 keeps 1e-7 of one.
    np.testing.assert_allclose(jax.jit(schedule)(jnp.asarray(steps, jnp.int32)), expected, atol=1e-7)
    assert [float(schedule(int(s), np)) for s in steps] == pytest.approx(expected)


def test_a_geometric_schedule_may_keep_what_is_left():
    schedule = Geometric(start=10, length=5, end=0.04, kept=True)
    steps = np.array([0, 10, 15, 16, 10**9])
    for xp in (np, jnp):
        np.testing.assert_allclose(schedule(xp.asarray(steps), xp), [1, 1, 0.04, 0.04, 0.04], rtol=1e-6)


@dataclasses.dataclass(frozen=True)
class Holder:
    noise: NoiseConfig | None = one_of(NOISES, None)


@entries
def test_a_config_survives_being_written_out(name):
    for schedule, _ in SCHEDULES.values():
        holder = Holder(dataclasses.replace(EXAMPLES[name].noise, schedule=schedule))
        assert build(Holder, json.loads(json.dumps(to_dict(holder)))) == holder
    assert build(Holder, {"noise": None}) == Holder()


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"name": "gaussian", "sigma": -0.1}, "config.noise.sigma: must be at least 0, got -0.1"),
        ({"name": "gaussian"}, "config.noise.sigma: required, not given"),
        ({"name": "salt_and_pepper", "probability": 1.5}, "config.noise.probability: must be in [0, 1], got 1.5"),
        ({"name": "gausian", "sigma": 1.0}, 'config.noise.name: unknown name "gausian"; did you mean "gaussian"?'),
        (
            {"name": "poisson", "sigma": 1.0, "schedule": {"name": "linear_to_zero", "start": -1, "length": 5}},
            "config.noise.schedule.start: must be at least 0, got -1",
        ),
        (
            {"name": "poisson", "sigma": 1.0, "schedule": {"name": "linear_to_zero", "start": 0, "length": 0}},
            "config.noise.schedule.length: must be at least 1, got 0",
        ),
        (
            {"name": "poisson", "sigma": 1.0, "schedule": {"name": "geometric", "start": 0, "length": 9, "end": 0.0}},
            "config.noise.schedule.end: must be in (0, 1), got 0.0",
        ),
        (
            {"name": "poisson", "sigma": 1.0, "schedule": {"name": "geometric", "start": -1, "length": 9, "end": 0.1}},
            "config.noise.schedule.start: must be at least 0, got -1",
        ),
        (
            {"name": "poisson", "sigma": 1.0, "schedule": {"name": "geometric", "start": 0, "length": 0, "end": 0.1}},
            "config.noise.schedule.length: must be at least 1, got 0",
        ),
        (
            {"name": "laplace", "sigma": 1.0, "schedule": {"name": "removed_at", "step": -2}},
            "config.noise.schedule.step: must be at least 0, got -2",
        ),
    ],
)
def test_impossible_settings_are_refused_by_name(section, message):
    with pytest.raises(ConfigError) as caught:
        build(Holder, {"noise": section})
    assert str(caught.value) == message
