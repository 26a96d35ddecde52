"""Attention whose queries and keys are rotated by their places (Su et al. 2021), with shared keys (Llama)."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sparsity import axes
from sparsity.layers.attention import causal, kept_pair
from sparsity.layers.dense import dense
from sparsity.layers.initializers import gpt2_weights
from sparsity.layers.sparsify import Context


def rotated(x_BxLxHxK: jax.Array, theta: float, position_B: jax.Array | None = None, positions: int = 0) -> jax.Array:
    """Rotates numbers j and j + K/2 of token t's heads, as one point of a plane, by the angle t theta^(-2 j / K).

    The product of a rotated query and a rotated key depends on their distance alone. Halves are paired, as in Hugging
    Face's checkpoints of Llama; Su et al. pair neighbours, which is the same up to the order of the numbers.
    Angles are float32 at least; the result has the dtype of `x`. With `position_B` there is one token a row, which is
    the one at that position, below `positions`.

    >>> rotated(jnp.ones((1, 1, 1, 4)), 10_000.0)  # the first token is where it was
    Array([[[[1., 1., 1., 1.]]]], dtype=float32)
    """
    length, size = x_BxLxHxK.shape[1] if position_B is None else positions, x_BxLxHxK.shape[-1]
    speed_J = theta ** (-np.arange(0, size, 2) / size)
    angle_LxJ = np.arange(length)[:, None] * speed_J  # float64, on the host: exact at any length
    precise = jnp.promote_types(x_BxLxHxK.dtype, jnp.float32)
    cos, sin = (jnp.asarray(f(angle_LxJ)[:, None], precise) for f in (np.cos, np.sin))  # [L, 1, J]
    if position_B is not None:
        cos, sin = cos[position_B][:, None], sin[position_B][:, None]  # [B, 1, 1, J]
    first, second = jnp.split(x_BxLxHxK.astype(precise), 2, axis=-1)
    halves = first * cos - second * sin, second * cos + first * sin
    return jnp.concatenate(halves, axis=-1).astype(x_BxLxHxK.dtype)


class RotaryAttention(nn.Module):
    """softmax(R(Q) R(K)^T / sqrt(d_head)) V of each token and those before it, then an output projection; no biases.

    Scores and softmax are at least float32 whatever the compute dtype. With `ctx.slots` rotated keys and values are
    kept (see `attention.kept`), and with `ctx.place` the one token reads those that `ctx.seen_BxM` names.

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

        def project(name, heads, length_axis):
            out = dense(heads * self.head_dim, ("embed", "heads"), name=name, **settings)
            split = (batch, length, heads, self.head_dim)
            return axes.constrain(out(x_BxLxD).reshape(split), ("batch", length_axis, "heads", "head_dim"))

        turn = lambda y_BxLxHxK: rotated(y_BxLxHxK, self.theta, ctx.position_B, ctx.slots)
        q_BxLxHxK = turn(project("query", self.heads, "length"))
        # Every query reads keys and values up to its own: they are gathered where the length is split.
        k_BxMxGxK, v_BxMxGxK = turn(project("key", self.kv_heads, None)), project("value", self.kv_heads, None)
        if ctx.slots:
            k_BxMxGxK, v_BxMxGxK = kept_pair(self, k_BxMxGxK, v_BxMxGxK, ctx)
        q_BxLxGxRxK = q_BxLxHxK.reshape(batch, length, self.kv_heads, -1, self.head_dim)
        precise = jnp.promote_types(q_BxLxHxK.dtype, jnp.float32)
        scores = jnp.einsum("bqgrd,bkgd->bgrqk", q_BxLxGxRxK, k_BxMxGxK, preferred_element_type=precise)
        weights = jax.nn.softmax(causal(scores, ctx) / self.head_dim**0.5).astype(v_BxMxGxK.dtype)
        y_BxLxD = jnp.einsum("bgrqk,bkgd->bqgrd", weights, v_BxMxGxK).reshape(batch, length, -1)
        return axes.constrain(
            dense(d_model, ("heads", "embed"), name="out", **settings)(y_BxLxD), ("batch", "length", "embed")
        )
