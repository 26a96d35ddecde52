"""`Sparsify`: the one place that applies a sparsifier and records what it did.

`Context` carries what changes from step to step into every module; `SparsityStats` is what a
layer hands out when recording is on: sums and counts, never means, so that records of
batches, hosts and steps merge by addition.
"""

from __future__ import annotations

from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sparsity.ops.sparsifiers import Sparsifier

STATS = "sparsity"  # the variable collection that recorded statistics are sown into
ACTIVATIONS = "activations"  # the one that pre-activations and activations are sown into, for penalties

# Bins of the pre-activation histogram: 64 of width 1/4 on [-8, 8), and both tails.
HISTOGRAM_EDGES = np.linspace(-8.0, 8.0, 65)

THRESHOLDS = (1e-4, 1e-2)  # of |h|, for activations without exact zeros (Bricken et al. 2023, App. H.1)
FLAT = 0.01  # |phi'(z)| below this is a flat place of phi

DEFINITION = (
    "nonzero fraction: share of hidden units with h != 0 after the sparsifier (if a gate has one too, after their "
    "product) and before dropout, averaged over the tokens of an example, then over examples with equal weight"
)


@flax.struct.dataclass
class Context:
    """What a module needs to know about this step.

    Attributes:
      weight_B: 1 for real examples, 0 for padding; None counts every example once.
      weight_BxL: 1 for real tokens of what the module reads, 0 for padding; None counts all. Models set it.
      step: updates done, which schedules of noise and of k go by; a traced integer in training.
      train: dropout on (static).
      noisy: noise on (static), in training and, where it is asked for, in evaluation.
      record: sow `SparsityStats` (static: a second compiled program, free when off).
      hand_out: sow `Activated` (static), what penalties on activations read.
      slots: tokens that the cache of what attention has read has room for; 0 is no cache (static). To a model's `start`
        and `step`: tokens that may follow; a `Decoder` adds those of the prompt.
      place: of the one token that is read now, those before it being in the cache; None: whole sequences are read. To a
        model's `step`: of the token that is asked for, among those that follow.
      position_B: its place in its own row, where prompts of different lengths stand before it.
      seen_BxM: True for the places of the cache that it sees, where those are not all up to its own.
      tail: of h: "kept"; "measured", its `layers.tail.TailStats` sown; or "cut" off and measured (static).
    """

    weight_B: jax.Array | None = None
    weight_BxL: jax.Array | None = None
    step: Any = 0
    train: bool = flax.struct.field(pytree_node=False, default=False)
    noisy: bool = flax.struct.field(pytree_node=False, default=False)
    record: bool = flax.struct.field(pytree_node=False, default=False)
    hand_out: bool = flax.struct.field(pytree_node=False, default=False)
    slots: int = flax.struct.field(pytree_node=False, default=0)
    place: Any = None
    position_B: jax.Array | None = None
    seen_BxM: jax.Array | None = None
    tail: str = flax.struct.field(pytree_node=False, default="kept")


@flax.struct.dataclass
class Activated:
    """Pre-activations z and activations h of one layer, both [B, ..., F].

    `weight_BxL` is 1 for real tokens, those between the first and the last axis, and 0 for padding; None counts all.
    """

    z: jax.Array
    h: jax.Array
    weight_BxL: jax.Array | None = None


@flax.struct.dataclass
class SparsityStats:
    """Sums over the examples of one or more batches, for one layer; merge by addition.

    Tokens of one example are not independent, so the unit of replication is the example: the
    sums of the per-example fractions and of their squares give mean and standard error.

    Attributes:
      examples: number of examples n.
      tokens: number of tokens.
      fraction_sum: sum over examples of the nonzero fraction (see `DEFINITION`); NaN if any
        pre-activation or activation of a counted example is NaN.
      fraction_sumsq: sum of its square.
      above_T: sum over examples of the share of hidden units with |h| > t, for each t of `THRESHOLDS`.
      flat_sum: sum over examples of the share of hidden units with |phi'(z)| < `FLAT` (Bricken et al. 2023, Fig. 20).
      variance_sum: sum over examples of the mean of z^2 over tokens and units, the q_l of mean-field theory.
      fired_F: per unit, the number of tokens on which it was nonzero.
      size_F: per unit, the sum over tokens of |h|.
      power_3xF: per unit, the sums over tokens of z, z^2 and z^3.
      histogram: counts of pre-activations by `HISTOGRAM_EDGES`, both tails included [66].
    """

    examples: Any
    tokens: Any
    fraction_sum: Any
    fraction_sumsq: Any
    above_T: Any
    flat_sum: Any
    variance_sum: Any
    fired_F: Any
    size_F: Any
    power_3xF: Any
    histogram: Any


def sparsity_stats(
    z: jax.Array,
    h: jax.Array,
    weight_B: jax.Array | None = None,
    slope: jax.Array | None = None,
    weight_BxL: jax.Array | None = None,
) -> SparsityStats:
    """Statistics of pre-activations `z` and activations `h`, both [B, ..., F].

    Axes between the first and the last are tokens. Counts are float32, exact below 2^24 per
    batch; merge batches in float64 (`evals.sparsity.merge`). `slope` is phi'(z), where phi acts on units one by one.
    Tokens of weight 0 (`weight_BxL`) do not count, not even their NaN, nor do examples that have no others.
    """
    batch, units = z.shape[0], z.shape[-1]
    z_BxLxF = z.reshape(batch, -1, units).astype(jnp.float32)
    h_BxLxF = h.reshape(batch, -1, units)
    nonzero_BxLxF = h_BxLxF != 0  # NaN != 0: NaN is never sparse
    size_BxLxF = jnp.abs(h_BxLxF.astype(jnp.float32))
    weight_B = jnp.ones(batch, jnp.float32) if weight_B is None else weight_B.astype(jnp.float32)
    broken_BxL = (jnp.isnan(z_BxLxF) | jnp.isnan(h_BxLxF)).any(axis=2)
    real_BxL = jnp.ones(z_BxLxF.shape[:2], jnp.float32) if weight_BxL is None else weight_BxL.astype(jnp.float32)
    tokens_B, broken_B = real_BxL.sum(1), (broken_BxL & (real_BxL > 0)).any(1)
    weight_B = weight_B * (tokens_B > 0)
    weight_BxL = weight_B[:, None] * real_BxL

    def counted(share_B):  # padding never counts, not even its NaN
        return jnp.where(weight_B > 0, jnp.where(broken_B, jnp.nan, share_B), 0.0)

    def total(share_B):
        return jnp.sum(counted(share_B) * weight_B)

    def mean(x_BxLxF):  # over the real tokens of an example
        real = jnp.where(real_BxL[:, :, None] > 0, x_BxLxF, 0)
        return jnp.sum(real, axis=(1, 2), dtype=jnp.float32) / (jnp.maximum(tokens_B, 1) * units)

    def per_unit(x_BxLxF):
        # A padded token's NaN would survive a weight of 0.
        kept = jnp.where(weight_BxL[:, :, None] > 0, x_BxLxF, 0.0)
        return jnp.einsum("bf,b->f", kept.sum(1), weight_B)

    fraction_B = mean(nonzero_BxLxF)
    return SparsityStats(
        examples=jnp.sum(weight_B),
        tokens=jnp.sum(weight_BxL),
        fraction_sum=total(fraction_B),
        fraction_sumsq=total(fraction_B**2),
        above_T=jnp.stack([total(mean(size_BxLxF > t)) for t in THRESHOLDS]),
        flat_sum=jnp.float32(jnp.nan) if slope is None else total(mean(jnp.abs(slope.reshape(z_BxLxF.shape)) < FLAT)),
        variance_sum=total(mean(z_BxLxF**2)),
        fired_F=per_unit(nonzero_BxLxF.astype(jnp.float32)),
        size_F=per_unit(size_BxLxF),
        power_3xF=jnp.stack([per_unit(z_BxLxF**p) for p in (1, 2, 3)]),
        histogram=_histogram(z_BxLxF, weight_BxL),
    )


def mean_over_tokens(values: jax.Array, weight_BxL: jax.Array | None) -> jax.Array:
    """Of values [B, ...], mean over the tokens of each example whose weight is above 0 (None: all) [B].

    Nothing elsewhere counts, not even NaN; 0 where an example has no token.
    """
    values_BxL = values.reshape(len(values), -1)
    if weight_BxL is None:
        return values_BxL.mean(-1)
    real_BxL = weight_BxL > 0
    return jnp.where(real_BxL, values_BxL, 0).sum(-1) / jnp.maximum(real_BxL.sum(-1), 1)


def _histogram(z_BxLxF: jax.Array, weight_BxL: jax.Array) -> jax.Array:
    lo, hi, bins = HISTOGRAM_EDGES[0], HISTOGRAM_EDGES[-1], len(HISTOGRAM_EDGES) - 1
    position = jnp.floor((z_BxLxF - lo) * (bins / (hi - lo)))
    # NaN has no bin: it is dropped here, and reported through fraction_sum.
    index = jnp.where(jnp.isnan(position), bins + 2, jnp.clip(position, -1, bins) + 1)
    weight = jnp.broadcast_to(weight_BxL[:, :, None], z_BxLxF.shape)
    return jnp.zeros(bins + 2, jnp.float32).at[index.astype(jnp.int32)].add(weight, mode="drop")


class Sparsify(nn.Module):
    """Applies `sparsifier` to pre-activations [B, ..., F] and, if asked, records the result.

    >>> from sparsity.ops.sparsifiers import TopK
    >>> z = jnp.array([[[3.0, -1.0, 2.0, 1.0]]])
    >>> Sparsify(TopK(k=2)).apply({}, z, Context())
    Array([[[3., 0., 2., 0.]]], dtype=float32)
    """

    sparsifier: Sparsifier

    @nn.compact
    def __call__(self, z: jax.Array, ctx: Context, factor: jax.Array | None = None) -> jax.Array:
        """The activations phi(z), or phi(z) times `factor`; they and z are what is recorded."""
        phi = self.sparsifier.at(ctx.step)
        h = phi(z) if factor is None else phi(z) * factor
        if ctx.record:
            slope = jax.jvp(phi, (z,), (jnp.ones_like(z),))[1] if self.sparsifier.elementwise else None
            self._hand_out(STATS, sparsity_stats(z, h, ctx.weight_B, slope, ctx.weight_BxL))
        if ctx.hand_out:
            self._hand_out(ACTIVATIONS, Activated(z, h, ctx.weight_BxL))
        return h

    def _hand_out(self, collection: str, value: Any) -> None:
        self.sow(collection, "stats", value, reduce_fn=lambda _, new: new, init_fn=lambda: None)
