import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsity.layers.rotary import RotaryAttention, rotated
from sparsity.layers.sparsify import Context

RNG = np.random.default_rng(0)


def turned(x, theta):
    """Halves as complex numbers, multiplied by exp(i t theta^(-2 j / K)): Su et al. 2021, Eq. 12."""
    size = x.shape[-1]
    z = x[..., : size // 2] + 1j * x[..., size // 2 :]
    speeds = theta ** (-2 * np.arange(size // 2) / size)
    z = z * np.exp(1j * np.arange(x.shape[1])[:, None] * speeds)[:, None]
    return np.concatenate([z.real, z.imag], -1)


@pytest.mark.parametrize("theta", [10_000.0, 500_000.0])
def test_rotations_are_those_of_complex_numbers_far_out_too(theta):
    x = RNG.normal(size=(1, 9000, 1, 8)).astype(np.float32)
    # Angles of up to 9,000 radians would lose three digits in float32.
    np.testing.assert_allclose(rotated(jnp.asarray(x), theta), turned(x.astype(np.float64), theta), atol=2e-6)


def test_products_of_rotated_vectors_depend_on_their_distance_alone():
    q, k = (np.broadcast_to(RNG.normal(size=8), (1, 12, 1, 8)).astype(np.float32) for _ in range(2))
    scores = np.einsum("bqhd,bkhd->qk", rotated(jnp.asarray(q), 10.0), rotated(jnp.asarray(k), 10.0))
    for distance in (-5, 0, 3):
        np.testing.assert_allclose(np.diagonal(scores, distance), scores.diagonal(distance)[0], rtol=1e-5, atol=1e-5)
    assert scores.std() > 0.1


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_attention_is_the_formula_and_shares_keys_among_neighbouring_heads(kv_heads):
    x = RNG.normal(size=(2, 5, 12)).astype(np.float32)
    module = RotaryAttention(heads=4, kv_heads=kv_heads, head_dim=6, theta=100.0)
    shapes = flax.core.meta.unbox(jax.eval_shape(module.init, jax.random.key(0), x, Context()))
    params = jax.tree.map(lambda p: RNG.normal(0, 0.4, p.shape).astype(np.float32), shapes)["params"]
    product = lambda name: (x.astype(np.float64) @ params[name]["kernel"]).reshape(2, 5, -1, 6)
    q, k = (turned(product(name), 100.0) for name in ("query", "key"))
    k, v = (np.repeat(y, 4 // kv_heads, axis=2) for y in (k, product("value")))
    scores = np.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(6)
    scores = np.where(np.tri(5, dtype=bool), np.exp(scores), 0)
    y = np.einsum("bhqk,bkhd->bqhd", scores / scores.sum(-1, keepdims=True), v).reshape(2, 5, -1)
    expected = y @ params["out"]["kernel"]
    np.testing.assert_allclose(module.apply({"params": params}, x, Context()), expected, rtol=1e-5, atol=1e-5)
