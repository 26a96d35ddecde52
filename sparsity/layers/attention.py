"""Multi-head attention: scaled with biases (ViT, GPT-2), and T5's, which reads distances between tokens."""

from __future__ import annotations

import math
from collections.abc import Callable

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

    Scores and softmax are at least float32 whatever the compute dtype. With `ctx.slots` keys and values are kept (see
    `kept`), and with `ctx.place` the one token reads those that `ctx.seen_BxM` names.

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

        def project(name, length_axis):
            out = dense(d_model, ("embed", "heads"), kernel_init=self.kernel_init, name=name, **settings)
            return axes.constrain(out(x_BxLxD).reshape(split), ("batch", length_axis, "heads", "head_dim"))

        # Every query reads all keys and values: they are gathered where the length is split.
        q_BxLxHxK, k_BxMxHxK, v_BxMxHxK = project("query", "length"), project("key", None), project("value", None)
        if ctx.slots:
            k_BxMxHxK, v_BxMxHxK = kept_pair(self, k_BxMxHxK, v_BxMxHxK, ctx)
        precise = jnp.promote_types(q_BxLxHxK.dtype, jnp.float32)
        scores_BxHxLxM = jnp.einsum("bqhd,bkhd->bhqk", q_BxLxHxK, k_BxMxHxK, preferred_element_type=precise)
        if self.causal:
            scores_BxHxLxM = causal(scores_BxHxLxM, ctx)
        weights_BxHxLxM = jax.nn.softmax(scores_BxHxLxM / split[-1] ** 0.5).astype(v_BxMxHxK.dtype)
        weights_BxHxLxM = nn.Dropout(self.dropout, deterministic=not ctx.train)(weights_BxHxLxM)
        y_BxLxD = jnp.einsum("bhqk,bkhd->bqhd", weights_BxHxLxM, v_BxMxHxK).reshape(x_BxLxD.shape)
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

        def project(name, y_BxLxD, length_axis, scale=1.0):
            init = nn.initializers.variance_scaling(scale, "fan_in", "normal")
            out = dense(self.heads * self.head_dim, ("embed", "heads"), kernel_init=init, name=name, **settings)
            split = (*y_BxLxD.shape[:2], self.heads, self.head_dim)
            return axes.constrain(out(y_BxLxD).reshape(split), ("batch", length_axis, "heads", "head_dim"))

        settings = {"use_bias": False, "dtype": self.dtype}
        q_BxLxHxK = project("query", x_BxLxD, "length", 1 / self.head_dim)
        read = memory_BxMxD if self.cross else x_BxLxD
        # Every query reads all keys and values: they are gathered where the length is split.
        of = lambda name: kept(self, name, lambda: project(name, read, None), ctx, fixed=self.cross)
        k_BxHxMxK, v_BxHxMxK = of("key"), of("value")
        scores_BxHxLxM = _scores(q_BxLxHxK, k_BxHxMxK)
        if bias_1xHxLxM is not None:
            scores_BxHxLxM = scores_BxHxLxM + bias_1xHxLxM
        if mask_Bx1xLxM is not None:  # finite: a token of padding, which sees none, must not become NaN
            scores_BxHxLxM = jnp.where(mask_Bx1xLxM, scores_BxHxLxM, jnp.finfo(scores_BxHxLxM.dtype).min)
        weights_BxHxLxM = jax.nn.softmax(scores_BxHxLxM).astype(v_BxHxMxK.dtype)
        weights_BxHxLxM = nn.Dropout(self.dropout, (-2,), deterministic=not ctx.train)(weights_BxHxLxM)
        y_BxLxHxK = jnp.einsum("bhqk,bhkd->bqhd", weights_BxHxLxM, v_BxHxMxK)
        init = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
        out = dense(x_BxLxD.shape[-1], ("heads", "embed"), kernel_init=init, name="out", **settings)
        return axes.constrain(out(y_BxLxHxK.reshape(*x_BxLxD.shape[:2], -1)), ("batch", "length", "embed"))


def _scores(q_BxLxHxK: jax.Array, k_BxHxMxK: jax.Array) -> jax.Array:
    """Q K^T [B, H, L, M], float32 at least."""
    precise = jnp.promote_types(q_BxLxHxK.dtype, jnp.float32)
    if q_BxLxHxK.shape[1] > 1:
        return jnp.einsum("bqhd,bhkd->bhqk", q_BxLxHxK, k_BxHxMxK, preferred_element_type=precise)
    # Of one query a CPU reads the keys five times as fast with heads first in both. Training sums as it always has.
    return jnp.einsum("bhqd,bhkd->bhqk", q_BxLxHxK.swapaxes(1, 2), k_BxHxMxK, preferred_element_type=precise)


def kept(
    module: nn.Module, name: str, project: Callable[[], jax.Array], ctx: Context, fixed: bool = False
) -> jax.Array:
    """Keys or values [B, H, M, K] of all tokens that can be read: heads first, as the products read them.

    Of the tokens that are read now `project` makes them, [B, L, H, K]. With `ctx.slots` they are kept in a cache that
    has room for as many, in which the token at `ctx.place` takes its place; it lies on the mesh by batch and heads.

    Args:
      module: whose attention it is.
      name: of the matrix, such as "key".
      fixed: made once, of a memory, and then read as they are.

    Raises:
      ValueError: `ctx.place` without the cache of the tokens before it.
    """
    stored, before = f"{name}s", None  # another name than the matrix's
    if ctx.place is not None:
        if not module.has_variable(CACHE, stored):
            raise ValueError("place: there is no cache of the tokens before it")
        before = module.get_variable(CACHE, stored)
        if fixed:
            return before
    now_BxHxMxK = project().swapaxes(1, 2)
    if not ctx.slots:
        return now_BxHxMxK
    if before is not None:
        now_BxHxMxK = jax.lax.dynamic_update_slice_in_dim(before, now_BxHxMxK, ctx.place, 2)
    room = 0 if fixed else ctx.slots - now_BxHxMxK.shape[2]
    whole_BxHxMxK = jnp.pad(now_BxHxMxK, ((0, 0), (0, 0), (0, room), (0, 0)))
    module.put_variable(CACHE, stored, axes.constrain(whole_BxHxMxK, ("batch", "heads", None, "head_dim")))
    return now_BxHxMxK


def kept_pair(
    module: nn.Module, k_BxLxHxK: jax.Array, v_BxLxHxK: jax.Array, ctx: Context
) -> tuple[jax.Array, jax.Array]:
    """Keys and values [B, M, H, K] of all tokens that can be read, of those that are read now; see `kept`."""
    of = lambda name, now_BxLxHxK: kept(module, name, lambda: now_BxLxHxK, ctx).swapaxes(1, 2)
    return of("key", k_BxLxHxK), of("value", v_BxLxHxK)


def causal(scores: jax.Array, ctx: Context) -> jax.Array:
    """Scores [B, ..., L, M] with -inf at the keys that a query does not see: those after it.

    With `ctx.place` there is one query, which sees what `ctx.seen_BxM` names.
    """
    if ctx.place is None:
        place_L = jnp.arange(scores.shape[-1])
        return jnp.where(place_L[:, None] >= place_L, scores, -jnp.inf)
    return jnp.where(jnp.expand_dims(ctx.seen_BxM, range(1, scores.ndim - 1)), scores, -jnp.inf)


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
