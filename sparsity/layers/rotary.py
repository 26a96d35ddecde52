"""Attention whose queries and keys are rotated by their places (Su et al. 2021), with shared keys (Llama)."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sparsity import axes
from sparsity.layers.dense import dense
from sparsity.layers.initializers import gpt2_weights
from sparsity.layers.sparsify import Context


def rotated(x_BxLxHxK: jax.Array, theta: float) -> jax.Array:
    """Rotates numbers j and j + K/2 of token t's heads, as one point of a plane, by the angle t theta^(-2 j / K).

    The product of a rotated query and a rotated key depends on their distance alone. Halves are paired, as in Hugging
    Face's checkpoints of Llama; Su et al. pair neighbours, which is the same up to the order of the numbers.
    Angles are float32 at least; the result has the dtype of `x`.

    >>> rotated(jnp.ones((1, 1, 1, 4)), 10_000.0)  # the first token is where it was
    Array([[[[1., 1., 1., 1.]]]], dtype=float32)
    """
    length, size = x_BxLxHxK.shape[1], x_BxLxHxK.shape[-1]
    speed_J = theta ** (-np.arange(0, size, 2) / size)
    angle_LxJ = np.arange(length)[:, None] * speed_J  # float64, on the host: exact at any length
    precise = jnp.promote_types(x_BxLxHxK.dtype, jnp.float32)
    cos_Lx1xJ, sin_Lx1xJ = (jnp.asarray(f(angle_LxJ)[:, None], precise) for f in (np.cos, np.sin))
    first, second = jnp.split(x_BxLxHxK.astype(precise), 2, axis=-1)
    halves = first * cos_Lx1xJ - second * sin_Lx1xJ, second * cos_Lx1xJ + first * sin_Lx1xJ
    return jnp.concatenate(halves, axis=-1).astype(x_BxLxHxK.dtype)


class RotaryAttention(nn.Module):
    """softmax(R(Q) R(K)^T / sqrt(d_head)) V of each token and those before it, then an output projection; no biases.

    Scores and softmax are at least float32 whatever the compute dtype.

    Attributes:
      heads: H, of the queries.
      kv_heads: G, of keys and values; each serves H / G neighbouring heads (Ainslie et al. 2023).
      head_dim: K, numbers of a query, a key and a value; even.
      theta: base of the rotations' speeds, see `rotated`.
      dtype: compute dtype; parameters are float32.
    """

    heads: int
    kv_heads: int
    head_dim: int
    theta: float = 10_000.0
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x_BxLxD: jax.Array, ctx: Context) -> jax.Array:
        """Tokens [B, L, D] to [B, L, D]."""
        batch, length, d_model = x_BxLxD.shape
        settings = {"use_bias": False, "dtype": self.dtype, "kernel_init": gpt2_weights()}

        def project(name, heads):
            out = dense(heads * self.head_dim, ("embed", "heads"), name=name, **settings)
            split = (batch, length, heads, self.head_dim)
            return axes.constrain(out(x_BxLxD).reshape(split), ("batch", "length", "heads", "head_dim"))

        q_BxLxHxK = rotated(project("query", self.heads), self.theta)
        k_BxLxGxK = rotated(project("key", self.kv_heads), self.theta)
        v_BxLxGxK = project("value", self.kv_heads)
        q_BxLxGxRxK = q_BxLxHxK.reshape(batch, length, self.kv_heads, -1, self.head_dim)
        precise = jnp.promote_types(q_BxLxHxK.dtype, jnp.float32)
        scores = jnp.einsum("bqgrd,bkgd->bgrqk", q_BxLxGxRxK, k_BxLxGxK, preferred_element_type=precise)
        place_L = jnp.arange(length)
        scores = jnp.where(place_L[:, None] >= place_L, scores, -jnp.inf)
        weights = jax.nn.softmax(scores / self.head_dim**0.5).astype(v_BxLxGxK.dtype)
        y_BxLxD = jnp.einsum("bgrqk,bkgd->bqgrd", weights, v_BxLxGxK).reshape(batch, length, -1)
        return axes.constrain(
            dense(d_model, ("heads", "embed"), name="out", **settings)(y_BxLxD), ("batch", "length", "embed")
        )
