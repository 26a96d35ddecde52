"""Multi-head attention: scaled with biases (ViT, GPT-2), and T5's, which reads distances between tokens."""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.typing import Initializer

from sparsity import axes
from sparsity.layers.dense import dense, named
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


class T5Attention(nn.Module):
    """softmax(Q K^T + bias) V, then an output projection, of heads of any size (Raffel et al. 2020).

    Scores are not divided by sqrt(d_head): the queries' matrix starts smaller by as much. Neither matrix has a bias.
    Scores and softmax are at least float32 whatever the compute dtype.

    Attributes:
      heads: H.
      head_dim: numbers of a query, a key and a value.
      dropout: rate applied to the weights of the values; a value is dropped for all queries of an example.
      dtype: compute dtype; parameters are float32.
    """

    heads: int
    head_dim: int
    dropout: float = 0.0
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self,
        x_BxLxD: jax.Array,
        memory_BxMxD: jax.Array,
        ctx: Context,
        bias_1xHxLxM: jax.Array | None = None,
        mask_Bx1xLxM: jax.Array | None = None,
    ) -> jax.Array:
        """What tokens x [B, L, D] read of `memory` [B, M, D]: [B, L, D]; where `mask` is False, nothing."""

        def project(name, y_BxLxD, scale=1.0):
            init = nn.initializers.variance_scaling(scale, "fan_in", "normal")
            out = dense(self.heads * self.head_dim, ("embed", "heads"), kernel_init=init, name=name, **settings)
            split = (*y_BxLxD.shape[:2], self.heads, self.head_dim)
            return axes.constrain(out(y_BxLxD).reshape(split), ("batch", "length", "heads", "head_dim"))

        settings = {"use_bias": False, "dtype": self.dtype}
        q_BxLxHxK = project("query", x_BxLxD, 1 / self.head_dim)
        k_BxMxHxK, v_BxMxHxK = project("key", memory_BxMxD), project("value", memory_BxMxD)
        precise = jnp.promote_types(q_BxLxHxK.dtype, jnp.float32)
        scores_BxHxLxM = jnp.einsum("bqhd,bkhd->bhqk", q_BxLxHxK, k_BxMxHxK, preferred_element_type=precise)
        if bias_1xHxLxM is not None:
            scores_BxHxLxM = scores_BxHxLxM + bias_1xHxLxM
        if mask_Bx1xLxM is not None:  # finite: a token of padding, which sees none, must not become NaN
            scores_BxHxLxM = jnp.where(mask_Bx1xLxM, scores_BxHxLxM, jnp.finfo(precise).min)
        weights_BxHxLxM = jax.nn.softmax(scores_BxHxLxM).astype(v_BxMxHxK.dtype)
        weights_BxHxLxM = nn.Dropout(self.dropout, (-2,), deterministic=not ctx.train)(weights_BxHxLxM)
        y_BxLxHxK = jnp.einsum("bhqk,bkhd->bqhd", weights_BxHxLxM, v_BxMxHxK)
        init = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
        out = dense(x_BxLxD.shape[-1], ("heads", "embed"), kernel_init=init, name="out", **settings)
        return axes.constrain(out(y_BxLxHxK.reshape(*x_BxLxD.shape[:2], -1)), ("batch", "length", "embed"))


def buckets_of(distances: np.ndarray, buckets: int, max_distance: int, both: bool) -> np.ndarray:
    """The bucket of each distance (place of the key less that of the query), as T5 has them.

    Half of the buckets hold one distance each, the rest grow with the logarithm up to `max_distance`; all beyond share
    the last. With `both` directions, keys that come later have buckets of their own; else they share that of 0.

    >>> buckets_of(np.array([0, -1, -5, -100]), 8, 20, both=False)
    array([0, 1, 4, 7])
    """
    back = -distances
    later = np.zeros_like(back)
    if both:
        buckets //= 2
        later, back = np.where(back < 0, buckets, 0), np.abs(back)
    back = np.maximum(back, 0)
    exact = buckets // 2
    # float32, as in T5: at a power of two float64 may round to the other side.
    ratio = np.log(np.maximum(back, 1).astype(np.float32) / exact) / math.log(max_distance / exact)
    far = exact + (ratio * (buckets - exact)).astype(np.int32)
    return later + np.where(back < exact, back, np.minimum(far, buckets - 1))


class RelativeBias(nn.Module):
    """bias[0, h, i, j] = table[bucket(j - i), h], added to the scores of queries i and keys j of one stack's layers.

    Attributes:
      heads: H.
      buckets, max_distance, both: see `buckets_of`.
    """

    heads: int
    buckets: int
    max_distance: int
    both: bool

    @nn.compact
    def __call__(self, queries: int, keys: int) -> jax.Array:
        init = named(nn.initializers.variance_scaling(1.0, "fan_avg", "uniform"), "buckets", "heads")
        table = self.param("embedding", init, (self.buckets, self.heads))
        # Row i is row 0 rotated by i: no index of [L, M] entries, and a gradient without a scatter of as many.
        period = queries + keys
        place = np.arange(period)
        distances = np.where(place < keys, place, place - period)
        row_HxP = table[buckets_of(distances, self.buckets, self.max_distance, self.both)].T
        rows = jnp.broadcast_to(row_HxP[:, None], (self.heads, queries, period)).reshape(self.heads, -1)
        rows = rows[:, : queries * (period - 1)].reshape(self.heads, queries, period - 1)
        return rows[None, :, :, :keys]
