"""The training step: one function, compiled with shardings and a donated state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from sparsity import spmd
from sparsity.layers.sparsify import STATS, Context
from sparsity.train.guard import all_finite
from sparsity.train.losses import Loss, LossSums
from sparsity.train.state import TrainState

Batch = dict[str, jax.Array]


@flax.struct.dataclass
class StepMetrics:
    """What one step reports, as device scalars.

    Attributes:
      loss: mean loss over the batch before the update, nats.
      accuracy: share of correct predictions, in [0, 1].
      grad_norm: global L2 norm of the gradient, before clipping.
      learning_rate: of this update.
      finite: loss and gradient hold no NaN or infinity. The updated parameters are not read again for this, which
        would cost a deep network a third of its step: the next step's loss tells, and every save checks them.
    """

    loss: jax.Array
    accuracy: jax.Array
    grad_norm: jax.Array
    learning_rate: jax.Array
    finite: jax.Array


@flax.struct.dataclass
class Record:
    """What a recording step hands out beside its metrics.

    Attributes:
      sparsity: the `SparsityStats` that the layers sowed, by module.
      grad_norms: L2 norm of the gradient of each kernel, by the path of its module; scanned layers are stacked [L].
    """

    sparsity: Any
    grad_norms: dict[str, jax.Array]


def gradients(model: nn.Module, loss: Loss, inputs: tuple[str, ...], seed: int, record: bool, accumulate: int = 1):
    """The function (state, batch) -> (LossSums, mean gradient, model_state, sparsity stats).

    Dropout is a function of (seed, step, microbatch, layer). `accumulate` microbatches are
    strided slices of the batch (example i goes to microbatch i mod accumulate, so that each is
    spread over all devices); sums and counts are added and divided once.
    """

    def loss_fn(params, model_state, batch: Batch, key):
        ctx = Context(train=True, record=record)
        logits, updates = model.apply(
            {"params": params, **model_state},
            *(batch[name] for name in inputs),
            ctx,
            rngs={"dropout": key},
            mutable=[STATS, *model_state],
        )
        sums = loss(logits, batch)
        stats = updates.pop(STATS, {})
        return sums.loss, (sums, updates, stats)

    grad_fn = jax.value_and_grad(loss_fn, has_aux=True)

    def compute(state: TrainState, batch: Batch) -> tuple[LossSums, Any, Any, Any]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        if accumulate == 1:
            (_, (sums, model_state, stats)), grads = grad_fn(state.params, state.model_state, batch, key)
        else:
            micro = jax.tree.map(lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1), batch)
            keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(accumulate))

            def body(model_state, one):
                (_, (sums, model_state, stats)), grads = grad_fn(state.params, model_state, *one)
                return model_state, (sums, stats, grads)

            model_state, added = jax.lax.scan(body, state.model_state, (micro, keys))
            sums, stats, grads = jax.tree.map(lambda x: x.sum(0), added)
        return sums, jax.tree.map(lambda g: g / sums.count, grads), model_state, stats

    return compute


def make_train_step(
    compute: Callable, tx: optax.GradientTransformation, schedule: optax.Schedule, mesh: Mesh, placed: TrainState
) -> Callable[[TrainState, Batch], tuple[TrainState, StepMetrics, Any]]:
    """Compiles (state, batch) -> (state, metrics, record); the state is donated.

    `record` is a `Record` if `compute` records, else None.
    """

    def train_step(state: TrainState, batch: Batch):
        sums, grads, model_state, stats = compute(state, batch)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        norm = optax.tree.norm(grads)
        # Squares of large numbers overflow: only then are the gradients themselves read for it.
        finite = jax.lax.cond(jnp.isfinite(norm), lambda: jnp.array(True), lambda: all_finite(grads))
        metrics = StepMetrics(
            loss=sums.loss / sums.count,
            accuracy=sums.correct / sums.count,
            grad_norm=norm,
            learning_rate=jnp.asarray(schedule(state.step), jnp.float32),
            finite=jnp.isfinite(sums.loss) & finite,
        )
        record = Record(stats, kernel_norms(grads)) if stats else None
        return TrainState(state.step + 1, params, opt_state, model_state), metrics, record

    everywhere = spmd.replicated(mesh)
    return jax.jit(
        train_step,
        in_shardings=(placed, None),
        out_shardings=(placed, everywhere, everywhere),
        donate_argnums=0,
    )


def kernel_norms(grads: Any) -> dict[str, jax.Array]:
    """L2 norm of each leaf called `kernel`, by its module's path; one norm a layer under a scanned `layers`."""
    norms = {}
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        *names, last = [p.key for p in path]
        if last == "kernel":
            axes = tuple(range("layers" in names, grad.ndim))
            # Scaled first: squares of large numbers would overflow.
            largest = jnp.maximum(jnp.abs(grad).max(axes, keepdims=True), jnp.finfo(grad.dtype).tiny)
            norm = jnp.sqrt(jnp.sum((grad / largest) ** 2, axes)) * largest.reshape(grad.shape[: axes[0]])
            norms["/".join(names)] = norm
    return norms
