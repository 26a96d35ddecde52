"""Losses as sums and counts, so that accumulated microbatches weigh their examples alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import flax
import jax
import jax.numpy as jnp
import optax


@flax.struct.dataclass
class LossSums:
    """Sums over the counted items of a batch; divide once, at the end.

    Attributes:
      loss: sum of the loss, nats.
      correct: sum of correct predictions.
      count: number of items.
    """

    loss: jax.Array
    correct: jax.Array
    count: jax.Array


def classification(logits: jax.Array, batch: Mapping[str, jax.Array]) -> LossSums:
    """Softmax cross-entropy of `logits` [B, classes] against `batch["label"]` [B].

    loss = -sum_i log softmax(logits_i)[label_i]; a prediction is correct if the label is the
    argmax (the first one on ties; never when a logit is NaN).
    """
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
    correct = (jnp.argmax(logits, -1) == batch["label"]) & ~jnp.isnan(logits).any(-1)
    return LossSums(nats.sum(), correct.sum(dtype=jnp.float32), jnp.float32(nats.size))


Loss = Callable[[jax.Array, Mapping[str, jax.Array]], LossSums]

LOSSES: dict[str, Loss] = {"classification": classification}
