"""From parameters to predictions: the one forward pass that all evaluators share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh

from sparsity import spmd
from sparsity.data.pipeline import eval_batches
from sparsity.evals.result import Predictions
from sparsity.evals.sparsity import by_layer, merge
from sparsity.layers.sparsify import STATS, Context


def make_predict(
    model: nn.Module, mesh: Mesh, batch: int
) -> Callable[[Any, np.ndarray, np.ndarray | None], Predictions]:
    """Compiles (variables, images [n, ...], labels [n] or None) -> Predictions, one program for every n.

    Padding in the last batch has weight 0: it counts neither in the statistics nor in n.
    """

    @jax.jit
    def forward(variables, image, weight):
        ctx = Context(weight_B=weight, record=True)
        logits, stats = model.apply(variables, image, ctx, mutable=[STATS])
        return logits, stats.get(STATS, {})

    def predict(variables: Any, images: np.ndarray, labels: np.ndarray | None) -> Predictions:
        logits, stats = [], []
        with jax.set_mesh(mesh):
            for part in eval_batches(images, labels, batch):
                placed = spmd.place_batch(mesh, part)
                out = jax.device_get(forward(variables, placed["image"], placed["weight"]))
                logits.append(out[0][part["weight"] > 0])
                stats.append(by_layer(out[1]))
        return Predictions(np.concatenate(logits), None if labels is None else np.asarray(labels), merge(stats))

    return predict
