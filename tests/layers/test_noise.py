"""How noise reaches a network; what the noises are is tested in tests/ops/test_noise.py."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsity.layers.noise import NOISE, Noise
from sparsity.layers.sparsify import Context
from sparsity.ops.noise import Gaussian, LinearToZero, RemovedAt
from sparsity.spmd import MeshConfig, make_mesh

X = jnp.asarray(np.random.default_rng(0).normal(size=(8, 3, 4)), jnp.float32)
HALF = Gaussian(sigma=0.5)


def apply(noise, ctx, key=0, x=X):
    return Noise(noise).apply({}, x, ctx, rngs={NOISE: jax.random.key(key)})


@pytest.mark.parametrize(
    ("noise", "ctx"),
    [(HALF, Context()), (HALF, Context(train=True, record=True)), (None, Context(noisy=True))],
    ids=["not noisy", "in training, but not noisy", "no noise"],
)
def test_without_noise_the_input_itself_comes_out_and_no_random_stream_is_needed(noise, ctx):
    assert Noise(noise).apply({}, X, ctx) is X


def test_the_noise_has_its_size_and_no_parameters():
    assert Noise(HALF).init({"params": jax.random.key(0), NOISE: jax.random.key(0)}, X, Context(noisy=True)) == {}
    x = jnp.full((100, 100), 3.0)
    n = np.asarray(apply(HALF, Context(noisy=True), x=x) - x, np.float64)
    # 10,000 draws: the deviation's relative error is 1 / sqrt(20,000) = 0.7%, the mean's error 0.005; five times those.
    assert n.std() == pytest.approx(0.5, rel=5 / 20_000**0.5)
    assert abs(n.mean()) < 5 * 0.5 / 100


def test_the_same_key_gives_the_same_noise_and_another_key_fresh_noise():
    noisy = Context(noisy=True)
    np.testing.assert_array_equal(apply(HALF, noisy), apply(HALF, noisy))
    assert (apply(HALF, noisy) != apply(HALF, noisy, key=1)).all()


def test_the_schedule_goes_by_the_step_of_the_context():
    noise = Gaussian(sigma=0.5, schedule=LinearToZero(start=10, length=4))
    at = jax.jit(lambda step: apply(noise, Context(step=step, noisy=True)))
    whole = at(0) - X
    np.testing.assert_array_equal(at(10), at(0))
    # A difference of numbers of size 3 in float32.
    np.testing.assert_allclose(at(13) - X, 0.25 * whole, atol=1e-6)
    np.testing.assert_array_equal(at(14), X)
    np.testing.assert_array_equal(at(10_000), X)


def test_noise_that_is_removed_ends_with_its_step():
    noise = Gaussian(sigma=0.5, schedule=RemovedAt(3))
    assert (apply(noise, Context(step=2, noisy=True)) != X).all()
    np.testing.assert_array_equal(apply(noise, Context(step=3, noisy=True)), X)


class Twice(nn.Module):
    """Noise at two places of a network: both noises apart."""

    @nn.compact
    def __call__(self, x, ctx):
        first = Noise(HALF, name="first")(x, ctx) - x
        return first, Noise(HALF, name="second")(x, ctx) - x


def test_two_places_of_a_network_have_independent_noises():
    x = jnp.zeros(20_000)
    first, second = Twice().apply({}, x, Context(noisy=True), rngs={NOISE: jax.random.key(0)})
    # The correlation of independent samples is N(0, 1 / sqrt(n)): five times that.
    assert abs(np.corrcoef(first, second)[0, 1]) < 5 / x.size**0.5


def test_the_values_are_those_of_one_device_on_a_mesh_of_eight():
    mesh = make_mesh(MeshConfig(4, 2))
    run = jax.jit(lambda x, step: apply(HALF, Context(step=step, noisy=True), x=x))
    expected = run(X, 3)
    placed = jax.device_put(X, jax.NamedSharding(mesh, jax.P("data", None, "model")))
    with jax.set_mesh(mesh):
        got = run(placed, 3)
    assert len(got.addressable_shards[0].data.ravel()) == X.size // 8  # it stayed where it was
    np.testing.assert_array_equal(got, expected)
