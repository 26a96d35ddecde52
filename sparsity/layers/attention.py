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

CACHE = "cache"  # the variable collection of keys and values that attention keeps while tokens are decoded one by one


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

    With `ctx.slots` keys and values are kept: self-attention has room for as many tokens, and with `ctx.place` adds
    its one token there and reads the others from where it stands; cross-attention then reads its memory no more.

    Attributes:
      heads: H.
      head_dim: numbers of a query, a key and a value.
      cross: keys and values are of a memory, not of what the queries are of.
      dropout: rate applied to the weights of the values; a value is dropped for all queries of an example.
      dtype: compute dtype; parameters are float32.
    """

    heads: int
    head_dim: int
    cross: bool = False
    dropout: float = 0.0
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self,
        x_BxLxD: jax.Array,
        ctx: Context,
        bias_1xHxLxM: jax.Array | None = None,
        mask_Bx1xLxM: jax.Array | None = None,
        memory_BxMxD: jax.Array | None = None,
    ) -> jax.Array:
        """What tokens x [B, L, D] read of themselves or of `memory` [B, M, D], where `mask` is True: [B, L, D].

        Raises:
          ValueError: `ctx.place` without the cache of the tokens before it.
        """

        def project(name, y_BxLxD, scale=1.0):
            init = nn.initializers.variance_scaling(scale, "fan_in", "normal")
            out = dense(self.heads * self.head_dim, ("embed", "heads"), kernel_init=init, name=name, **settings)
            split = (*y_BxLxD.shape[:2], self.heads, self.head_dim)
            return axes.constrain(out(y_BxLxD).reshape(split), ("batch", "length", "heads", "head_dim"))

        settings = {"use_bias": False, "dtype": self.dtype}
        q_BxLxHxK = project("query", x_BxLxD, 1 / self.head_dim)
        read = memory_BxMxD if self.cross else x_BxLxD
        k_BxHxMxK, v_BxHxMxK = (self._kept(name, lambda n=name: project(n, read), ctx) for name in ("key", "value"))
        precise = jnp.promote_types(q_BxLxHxK.dtype, jnp.float32)
        scores_BxHxLxM = jnp.einsum("bqhd,bhkd->bhqk", q_BxLxHxK, k_BxHxMxK, preferred_element_type=precise)
        if bias_1xHxLxM is not None:
            scores_BxHxLxM = scores_BxHxLxM + bias_1xHxLxM
        if mask_Bx1xLxM is not None:  # finite: a token of padding, which sees none, must not become NaN
            scores_BxHxLxM = jnp.where(mask_Bx1xLxM, scores_BxHxLxM, jnp.finfo(precise).min)
        weights_BxHxLxM = jax.nn.softmax(scores_BxHxLxM).astype(v_BxHxMxK.dtype)
        weights_BxHxLxM = nn.Dropout(self.dropout, (-2,), deterministic=not ctx.train)(weights_BxHxLxM)
        y_BxLxHxK = jnp.einsum("bhqk,bhkd->bqhd", weights_BxHxLxM, v_BxHxMxK)
        init = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
        out = dense(x_BxLxD.shape[-1], ("heads", "embed"), kernel_init=init, name="out", **settings)
        return axes.constrain(out(y_BxLxHxK.reshape(*x_BxLxD.shape[:2], -1)), ("batch", "length", "embed"))

    def _kept(self, name: str, project, ctx: Context) -> jax.Array:
        """Keys or values [B, H, M, K] of all tokens that can be read: heads first, as the products read them."""
        kept, before = f"{name}s", None  # another name than the matrix's
        if ctx.place is not None:
            if not self.has_variable(CACHE, kept):
                raise ValueError("place: there is no cache of the tokens before it")
            before = self.get_variable(CACHE, kept)
            if self.cross:
                return before
        kept_BxHxMxK = project().swapaxes(1, 2)
        if not ctx.slots:
            return kept_BxHxMxK
        if before is not None:
            kept_BxHxMxK = jax.lax.dynamic_update_slice_in_dim(before, kept_BxHxMxK, ctx.place, 2)
        stored = kept_BxHxMxK
        if not self.cross:
            stored = jnp.pad(stored, ((0, 0), (0, 0), (0, ctx.slots - stored.shape[2]), (0, 0)))
        self.put_variable(CACHE, kept, axes.constrain(stored, ("batch", "heads", "length", "head_dim")))
        return kept_BxHxMxK


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
    def __call__(self, queries: int, keys: int, place: jax.Array | None = None) -> jax.Array:
        """[1, H, queries, keys], both from the first token on; with `place` there is one query, the token there."""
        init = named(nn.initializers.variance_scaling(1.0, "fan_avg", "uniform"), "buckets", "heads")
        table = self.param("embedding", init, (self.buckets, self.heads))
        # Row i is row 0 rotated by i: no index of [L, M] entries, and a gradient without a scatter of as many.
        period = keys + (queries if place is None else keys)
        places = np.arange(period)
        distances = np.where(places < keys, places, places - period)
        row_HxP = table[buckets_of(distances, self.buckets, self.max_distance, self.both)].T
        if place is not None:
            return jnp.roll(row_HxP, place, axis=1)[None, :, None, :keys]
        rows = jnp.broadcast_to(row_HxP[:, None], (self.heads, queries, period)).reshape(self.heads, -1)
        rows = rows[:, : queries * (period - 1)].reshape(self.heads, queries, period - 1)
        return rows[None, :, :, :keys]
