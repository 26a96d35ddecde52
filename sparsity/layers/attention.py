"""Multi-head self-attention."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Initializer

from sparsity import axes
from sparsity.layers.dense import dense
from sparsity.layers.sparsify import Context


class SelfAttention(nn.Module):
    """softmax(Q K^T / sqrt(d_head)) V, then an output projection; [B, L, D] to [B, L, D].

    Scores and softmax are at least float32 whatever the compute dtype.

    Attributes:
      heads: H; divides D.
      dropout: rate applied to the weights of the values.
      use_bias: biases on all four matrices.
      dtype: compute dtype; parameters are float32.
      causal: a token attends to itself and to those before it, to none after it.
      kernel_init: of the query, key and value matrices; by default Xavier's uniform distribution.
      out_init: of the output projection; by default the same.
    """

    heads: int
    dropout: float = 0.0
    use_bias: bool = True
    dtype: str = "float32"
    causal: bool = False
    kernel_init: Initializer | None = None
    out_init: Initializer | None = None

    @nn.compact
    def __call__(self, x_BxLxD: jax.Array, ctx: Context) -> jax.Array:
        batch, length, d_model = x_BxLxD.shape
        split = (batch, length, self.heads, d_model // self.heads)

        settings = {"use_bias": self.use_bias, "dtype": self.dtype}

        def project(name):
            out = dense(d_model, ("embed", "heads"), kernel_init=self.kernel_init, name=name, **settings)
            return axes.constrain(out(x_BxLxD).reshape(split), ("batch", "length", "heads", "head_dim"))

        q_BxLxHxK, k_BxLxHxK, v_BxLxHxK = project("query"), project("key"), project("value")
        precise = jnp.promote_types(q_BxLxHxK.dtype, jnp.float32)
        scores_BxHxLxL = jnp.einsum("bqhd,bkhd->bhqk", q_BxLxHxK, k_BxLxHxK, preferred_element_type=precise)
        if self.causal:
            place_L = jnp.arange(length)
            scores_BxHxLxL = jnp.where(place_L[:, None] >= place_L, scores_BxHxLxL, -jnp.inf)
        weights_BxHxLxL = jax.nn.softmax(scores_BxHxLxL / split[-1] ** 0.5).astype(v_BxLxHxK.dtype)
        weights_BxHxLxL = nn.Dropout(self.dropout, deterministic=not ctx.train)(weights_BxHxLxL)
        y_BxLxD = jnp.einsum("bhqk,bkhd->bqhd", weights_BxHxLxL, v_BxLxHxK).reshape(x_BxLxD.shape)
        out = dense(d_model, ("heads", "embed"), kernel_init=self.out_init, name="out", **settings)
        return axes.constrain(out(y_BxLxD), ("batch", "length", "embed"))
