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

# Bins of the pre-activation histogram: 64 of width 1/4 on [-8, 8), and both tails.
HISTOGRAM_EDGES = np.linspace(-8.0, 8.0, 65)

DEFINITION = (
    "nonzero fraction: share of hidden units with h != 0 after the sparsifier and before dropout, "
    "averaged over the tokens of an example, then over examples with equal weight"
)


@flax.struct.dataclass
class Context:
    """What a module needs to know about this step.

    Attributes:
      train: dropout on (static).
      record: sow `SparsityStats` (static: a second compiled program, free when off).
      weight_B: 1 for real examples, 0 for padding; None counts every example once.
    """

    weight_B: jax.Array | None = None
    train: bool = flax.struct.field(pytree_node=False, default=False)
    record: bool = flax.struct.field(pytree_node=False, default=False)


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
      variance_sum: sum over examples of the mean of z^2 over tokens and units, the q_l of mean-field theory.
      fired_F: per unit, the number of tokens on which it was nonzero.
      histogram: counts of pre-activations by `HISTOGRAM_EDGES`, both tails included [66].
    """

    examples: Any
    tokens: Any
    fraction_sum: Any
    fraction_sumsq: Any
    variance_sum: Any
    fired_F: Any
    histogram: Any


def sparsity_stats(z: jax.Array, h: jax.Array, weight_B: jax.Array | None = None) -> SparsityStats:
    """Statistics of pre-activations `z` and activations `h`, both [B, ..., F].

    Axes between the first and the last are tokens. Counts are float32, exact below 2^24 per
    batch; merge batches in float64 (`evals.sparsity.merge`).
    """
    batch, units = z.shape[0], z.shape[-1]
    z_BxLxF = z.reshape(batch, -1, units).astype(jnp.float32)
    h_BxLxF = h.reshape(batch, -1, units)
    nonzero_BxLxF = h_BxLxF != 0  # NaN != 0: NaN is never sparse
    weight_B = jnp.ones(batch, jnp.float32) if weight_B is None else weight_B.astype(jnp.float32)

    fraction_B = jnp.mean(nonzero_BxLxF, axis=(1, 2), dtype=jnp.float32)
    broken_B = (jnp.isnan(z_BxLxF) | jnp.isnan(h_BxLxF)).any(axis=(1, 2))
    fraction_B = jnp.where(broken_B, jnp.nan, fraction_B)
    counted_B = jnp.where(weight_B > 0, fraction_B, 0.0)  # padding never counts, not even its NaN
    return SparsityStats(
        examples=jnp.sum(weight_B),
        tokens=jnp.sum(weight_B) * z_BxLxF.shape[1],
        fraction_sum=jnp.sum(counted_B * weight_B),
        fraction_sumsq=jnp.sum(counted_B**2 * weight_B),
        variance_sum=jnp.sum(jnp.where(weight_B > 0, jnp.mean(z_BxLxF**2, axis=(1, 2)), 0.0) * weight_B),
        fired_F=jnp.einsum("blf,b->f", nonzero_BxLxF.astype(jnp.float32), weight_B),
        histogram=_histogram(z_BxLxF, weight_B),
    )


def _histogram(z_BxLxF: jax.Array, weight_B: jax.Array) -> jax.Array:
    lo, hi, bins = HISTOGRAM_EDGES[0], HISTOGRAM_EDGES[-1], len(HISTOGRAM_EDGES) - 1
    position = jnp.floor((z_BxLxF - lo) * (bins / (hi - lo)))
    # NaN has no bin: it is dropped here, and reported through fraction_sum.
    index = jnp.where(jnp.isnan(position), bins + 2, jnp.clip(position, -1, bins) + 1)
    weight = jnp.broadcast_to(weight_B[:, None, None], z_BxLxF.shape)
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
    def __call__(self, z: jax.Array, ctx: Context) -> jax.Array:
        h = self.sparsifier(z)
        if ctx.record:
            stats = sparsity_stats(z, h, ctx.weight_B)
            self.sow(STATS, "stats", stats, reduce_fn=lambda _, new: new, init_fn=lambda: None)
        return h
