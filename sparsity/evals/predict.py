"""From parameters to predictions: the one forward pass that all evaluators share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh

from sparsity import distributed, spmd
from sparsity.data.pipeline import Batch, Stream, eval_batches
from sparsity.evals.result import Predictions
from sparsity.evals.sparsity import by_layer, merge
from sparsity.layers.noise import NOISE
from sparsity.layers.sparsify import STATS, Context, SparsityStats
from sparsity.layers.tail import TAIL, TailStats
from sparsity.ops.noise import NoiseConfig

Predict = Callable[..., Predictions]


def make_predict(
    module: nn.Module,
    inputs: tuple[str, ...],
    loss: Callable[[jax.Array, dict[str, jax.Array]], Any],
    mesh: Mesh,
    batch: int,
    noise: NoiseConfig | None = None,
    seed: int = 0,
    keep_outputs: bool = True,
) -> Predict:
    """Compiles (variables, arrays, noisy=False, step=0) -> Predictions, one program for every number of examples.

    `arrays` are stacked examples as the model reads them, or a stream of those that are too many for memory: then no
    more than two batches of them are held, and of `Predictions.arrays` what the module reads is missing.

    Of several processes each has the examples and gets the predictions; each computes those of its devices.

    Padding in the last batch has weight 0: it counts neither in the statistics nor in n. With `least`, the collection
    `TAIL`, the statistics are `TailStats` in place of `SparsityStats`; `cut` cuts the tail off too.

    Args:
      inputs: which of `arrays` the module takes.
      loss: the training loss, of single examples: see `train.losses`.
      noise: what `noisy` predictions add to the first input, as in training at `step`; the module's own noise is on
        then too. A function of (seed, step, batch of the evaluation), always the same.
      keep_outputs: hand out the module's outputs; those of a language model may not fit into memory.
    """

    def forward(variables, part, step, number, noisy, tail):
        inner, outer = jax.random.split(jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), step), number))
        first, *rest = (part[name] for name in inputs)
        if noisy and noise is not None:
            first = noise(first, outer, step)
        ctx = Context(weight_B=part["weight"], step=step, noisy=noisy, record=tail == "kept", tail=tail)
        outputs, stats = module.apply(variables, first, *rest, ctx, rngs={NOISE: inner}, mutable=[STATS])
        return outputs if keep_outputs else None, loss(outputs, part), stats.get(STATS, {})

    # Of several processes each has to see all of it.
    shared = {"out_shardings": spmd.replicated(mesh)} if distributed.several() else {}
    forward = jax.jit(forward, static_argnames=("noisy", "tail"), **shared)

    def predict(
        variables: Any, arrays: Batch | Stream, noisy: bool = False, step: int = 0, least: Any = None, cut: bool = False
    ) -> Predictions:
        tail, kind = "kept", SparsityStats
        if cut and least is None:
            raise ValueError("cut: there are no thresholds (least)")
        if least is not None:
            tail, kind, variables = "cut" if cut else "measured", TailStats, {**variables, TAIL: least}
        outputs, losses, stats, kept = [], [], [], []
        with jax.set_mesh(mesh):
            for number, part in enumerate(eval_batches(arrays, batch)):
                at = spmd.place_everywhere(mesh, (np.int32(step), np.int32(number)))
                out = jax.device_get(forward(variables, spmd.place_whole(mesh, part), *at, noisy=noisy, tail=tail))
                real = part["weight"] > 0
                outputs.append(None if out[0] is None else out[0][real])
                losses.append(jax.tree.map(lambda x, real=real: x[real], out[1]))
                stats.append(by_layer(out[2], kind))
                if isinstance(arrays, Stream):
                    kept.append({name: x[real] for name, x in part.items() if name not in (*inputs, "weight")})
        return Predictions(
            outputs=np.concatenate(outputs) if keep_outputs else None,
            arrays={name: np.concatenate([k[name] for k in kept]) for name in kept[0]} if kept else arrays,
            losses=jax.tree.map(lambda *x: np.concatenate(x), *losses),
            stats=merge(stats),
        )

    return predict
