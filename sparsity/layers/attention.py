"""Multi-head self-attention."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from sparsity import axes
from sparsity.layers.dense import dense
from sparsity.layers.sparsify import Context


class SelfAttention(nn.Module):
    """softmax(Q K^T / sqrt(d_head)) V, then an output projection; [B, L, D] to [B, L, D].

    Scores and softmax are at least float32 whatever the compute dtype.
    """

    heads: int
    dropout: float = 0.0
    use_bias: bool = True
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x_BxLxD: jax.Array, ctx: Context) -> jax.Array:
        batch, length, d_model = x_BxLxD.shape
        split = (batch, length, self.heads, d_model // self.heads)

        def project(name):
            out = dense(d_model, ("embed", "heads"), use_bias=self.use_bias, dtype=self.dtype, name=name)
            return axes.constrain(out(x_BxLxD).reshape(split), ("batch", "length", "heads", "head_dim"))

        q_BxLxHxK, k_BxLxHxK, v_BxLxHxK = project("query"), project("key"), project("value")
        precise = jnp.promote_types(q_BxLxHxK.dtype, jnp.float32)
        scores_BxHxLxL = jnp.einsum("bqhd,bkhd->bhqk", q_BxLxHxK, k_BxLxHxK, preferred_element_type=precise)
        weights_BxHxLxL = jax.nn.softmax(scores_BxHxLxL / split[-1] ** 0.5).astype(v_BxLxHxK.dtype)
        weights_BxHxLxL = nn.Dropout(self.dropout, deterministic=not ctx.train)(weights_BxHxLxL)
        y_BxLxD = jnp.einsum("bhqk,bkhd->bqhd", weights_BxHxLxL, v_BxLxHxK).reshape(x_BxLxD.shape)
        out = dense(d_model, ("heads", "embed"), use_bias=self.use_bias, dtype=self.dtype, name="out")
        return axes.constrain(out(y_BxLxD), ("batch", "length", "embed"))
