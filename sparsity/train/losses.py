"""Losses of single examples: summed, then divided once, so that microbatches weigh their examples alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import flax
import jax
import jax.numpy as jnp
import optax

from sparsity.models.bert import Pretraining


@flax.struct.dataclass
class Losses:
    """Sums over the counted items of each example [B], or of a whole batch.

    Attributes:
      loss: sum of the loss.
      correct: number of correct predictions; None where nothing can be correct.
      count: number of items.
      squared_z: sum of log(Z)^2, Z the sum of the exponentials of the logits, which z-loss weighs; None where there
        are no logits of tokens.
      sentence_loss: of saying whether a second text follows the first, one an example; None where that is not asked.
      sentence_correct: 1 where that was said right.
    """

    loss: jax.Array
    correct: jax.Array | None
    count: jax.Array
    squared_z: jax.Array | None = None
    sentence_loss: jax.Array | None = None
    sentence_correct: jax.Array | None = None


def classification(logits: jax.Array, batch: Mapping[str, jax.Array]) -> Losses:
    """Softmax cross-entropy of `logits` [B, classes] against `batch["label"]` [B], in nats; an item is an example.

    loss_i = -log softmax(logits_i)[label_i]; a prediction is correct if the label is the
    argmax (the first one on ties; never when a logit is NaN).
    """
    nats, correct = _cross_entropy(logits, batch["label"])
    return Losses(nats, correct, jnp.ones_like(nats))


def reconstruction(images: jax.Array, batch: Mapping[str, jax.Array]) -> Losses:
    """Squared error of `images` [B, h, w, c] against the clean `batch["image"]`; an item is an example.

    loss_i = mean over pixels and channels of (clean_i - images_i)^2. Bricken et al. 2023, Eq. 2, print the sum; their
    code takes the mean, and so do the coefficients of their L1 penalty.
    """
    squares = (batch["image"] - images) ** 2
    loss = squares.mean(tuple(range(1, squares.ndim)))
    return Losses(loss, None, jnp.ones_like(loss))


def language(outputs: jax.Array | Pretraining, batch: Mapping[str, jax.Array]) -> Losses:
    """Softmax cross-entropy of logits [B, L, V] against `batch["targets"]` [B, L], in nats; an item is a token.

    Where the batch has `target_segments` [B, L], tokens of segment 0 are padding and no items. If `outputs` are of both
    of BERT's tasks, `batch["next_sentence"]` [B] is the other's label.
    """
    both = isinstance(outputs, Pretraining)
    logits = outputs.tokens if both else outputs
    nats, correct = _cross_entropy(logits, batch["targets"])
    z = jax.nn.logsumexp(logits, axis=-1) ** 2
    real = jnp.broadcast_to(batch["target_segments"] > 0 if "target_segments" in batch else True, nats.shape)
    total = lambda x: jnp.where(real, x, 0).sum(-1)  # not even NaN counts in padding
    sentence = _cross_entropy(outputs.next_sentence, batch["next_sentence"]) if both else (None, None)
    return Losses(total(nats), total(correct), total(jnp.ones_like(nats)), total(z), *sentence)


def _cross_entropy(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    correct = (jnp.argmax(logits, -1) == labels) & ~jnp.isnan(logits).any(-1)
    return nats, correct.astype(jnp.float32)


Loss = Callable[[jax.Array, Mapping[str, jax.Array]], Losses]

LOSSES: dict[str, Loss] = {"classification": classification, "reconstruction": reconstruction, "language": language}
