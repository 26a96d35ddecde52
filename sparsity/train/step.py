"""The training step: one function, compiled with shardings and a donated state."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from sparsity import spmd
from sparsity.layers.noise import NOISE
from sparsity.layers.predictor import PREDICTED
from sparsity.layers.sparsify import ACTIVATIONS, STATS, Activated, Context
from sparsity.ops.noise import NoiseConfig
from sparsity.train.guard import GuardConfig, all_finite
from sparsity.train.losses import Loss
from sparsity.train.penalties import Penalty
from sparsity.train.state import NO_GUARD, GuardedState, TrainState

Batch = dict[str, jax.Array]


@flax.struct.dataclass
class StepMetrics:
    """What one step reports, as device scalars.

    Attributes:
      loss: mean loss over the batch before the update, without the penalty; in the loss's units.
      accuracy: share of correct predictions, in [0, 1]; None where nothing can be correct.
      penalty: what is added to the loss, mean over the batch: penalties, losses of predictors and of BERT's next
        sentence; None without any.
      grad_norm: global L2 norm of the gradient, before clipping.
      learning_rate: of this update.
      finite: loss and gradient hold no NaN or infinity. The updated parameters are not read again for this, which
        would cost a deep network a third of its step: the next step's loss tells, and every save checks them.
      skipped: steps until now, this one included, whose update was left out because that was not so; None without a
        guard.
      spike: this step's update was left out because its loss was a spike; None without a guard.
    """

    loss: jax.Array
    accuracy: jax.Array | None
    penalty: jax.Array | None
    grad_norm: jax.Array
    learning_rate: jax.Array
    finite: jax.Array
    skipped: jax.Array | None = None
    spike: jax.Array | None = None


@flax.struct.dataclass
class Record:
    """What a recording step hands out beside its metrics.

    Attributes:
      sparsity: the `SparsityStats` that the layers sowed, by module.
      grad_norms: L2 norm of the gradient of each kernel, by the path of its module; scanned layers are stacked [L].
      weights: mean and deviation over units of the L2 norms of their incoming weights, and of their biases, by the
        path of the module, before the update.
    """

    sparsity: Any
    grad_norms: dict[str, jax.Array]
    weights: dict[str, dict[str, jax.Array]]


@dataclasses.dataclass(frozen=True)
class Objective:
    """What training minimises: the mean over items of loss + penalty, of a network that reads noisy inputs.

    Attributes:
      module: the network.
      config: its settings (`inputs` names what of a batch it reads).
      loss: of its outputs; it sees the batch without noise.
      seed: of dropout and noise.
      noise: added to the first input.
      penalty: on its activations.
      z_loss: weight of log(Z)^2 of every token, Z the sum of the exponentials of its logits.
    """

    module: nn.Module
    config: Any
    loss: Loss
    seed: int
    noise: NoiseConfig | None = None
    penalty: Penalty | None = None
    z_loss: float = 0.0

    def __call__(self, params, model_state, batch: Batch, step: jax.Array, micro: jax.Array, record: bool):
        """(sum over items, (Losses summed with the penalty's sum, new model state, sparsity stats)).

        Dropout and noise are functions of (seed, step, microbatch, layer).
        """
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(self.seed), step), micro)
        dropout, inner, outer = jax.random.split(key, 3)
        first, *rest = (batch[name] for name in self.config.inputs)
        if self.noise is not None:
            first = self.noise(first, outer, step)
        ctx = Context(step=step, train=True, noisy=True, record=record, hand_out=self.penalty is not None)
        outputs, updates = self.module.apply(
            {"params": params, **model_state},
            *(first, *rest),
            ctx,
            rngs={"dropout": dropout, NOISE: inner},
            mutable=[STATS, ACTIVATIONS, PREDICTED, *model_state],
        )
        losses = self.loss(outputs, batch)
        stats, activations = updates.pop(STATS, {}), updates.pop(ACTIVATIONS, {})
        # Of each example [B], for every item of it; of scanned layers [layers, B].
        added = [x.reshape(-1, x.shape[-1]).sum(0) for x in jax.tree.leaves(updates.pop(PREDICTED, {}))]
        if self.penalty is not None:
            added.append(self.penalty(self.config, params, _activated(activations)))
        if losses.sentence_loss is not None:
            # The mean over examples of as many items each: Devlin et al. 2019 add the means of both tasks.
            added.append(losses.sentence_loss)
        penalties = [(one_B * losses.count).sum() for one_B in added]
        sums = jax.tree.map(jnp.sum, losses)
        if self.z_loss:
            penalties.append(self.z_loss * sums.squared_z)
        penalty = sum(penalties) if penalties else None
        return sums.loss + sum(penalties), ((sums, penalty), updates, stats)


def _activated(tree: Any) -> dict[str, Activated]:
    """The handed out activations by the path of their module; scanned layers one by one, numbered."""
    out = {}
    for path, layer in jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: isinstance(x, Activated)):
        names = [p.key for p in path[:-1]]
        if "layers" in names:
            out |= {f"{'/'.join(names)}_{i}": jax.tree.map(lambda x, i=i: x[i], layer) for i in range(len(layer.h))}
        else:
            out["/".join(names)] = layer
    return out


def gradients(objective: Objective, record: bool, accumulate: int = 1):
    """The function (state, batch) -> ((Losses, penalty), mean gradient, model_state, sparsity stats).

    `accumulate` microbatches are strided slices of the batch (example i goes to microbatch
    i mod accumulate, so that each is spread over all devices); sums and counts are added and divided once.
    """
    grad_fn = jax.value_and_grad(functools.partial(objective.__call__, record=record), has_aux=True)

    def compute(state: TrainState, batch: Batch):
        if accumulate == 1:
            (_, (sums, model_state, stats)), grads = grad_fn(
                state.params, state.model_state, batch, state.step, jnp.int32(0)
            )
        else:
            micro = jax.tree.map(lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1), batch)

            def body(model_state, one):
                (_, (sums, model_state, stats)), grads = grad_fn(state.params, model_state, one[0], state.step, one[1])
                return model_state, (sums, stats, grads)

            model_state, added = jax.lax.scan(body, state.model_state, (micro, jnp.arange(accumulate)))
            sums, stats, grads = jax.tree.map(lambda x: x.sum(0), added)
        return sums, jax.tree.map(lambda g: g / sums[0].count, grads), model_state, stats

    return compute


def make_train_step(
    compute: Callable,
    tx: optax.GradientTransformation,
    schedule: optax.Schedule,
    mesh: Mesh,
    placed: TrainState,
    guard: GuardConfig = NO_GUARD,
) -> Callable[[TrainState, Batch], tuple[TrainState, StepMetrics, Any]]:
    """Compiles (state, batch) -> (state, metrics, record); the state is donated.

    `record` is a `Record` if `compute` records, else None. An update that `guard` leaves out is not made.
    """

    def train_step(state: TrainState, batch: Batch):
        (sums, penalty), grads, model_state, stats = compute(state, batch)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        new = {"params": optax.apply_updates(state.params, updates), "opt_state": opt_state, "model_state": model_state}
        loss, norm = sums.loss / sums.count, optax.tree.norm(grads)
        # Squares of large numbers overflow: only then are the gradients themselves read for it.
        finite = jax.lax.cond(jnp.isfinite(norm), lambda: jnp.array(True), lambda: all_finite(grads))
        finite &= jnp.isfinite(sums.loss)
        made, skipped, spike = state.step, None, None  # updates made before this one
        if isinstance(state, GuardedState):
            take, spike, remembered = guard.judge(state.guard, loss, finite)
            made, skipped = state.step - state.guard.left_out, remembered.skipped
            old = {name: getattr(state, name) for name in new}
            new = jax.tree.map(lambda new, old: jnp.where(take, new, old), new, old) | {"guard": remembered}
        metrics = StepMetrics(
            loss=loss,
            accuracy=None if sums.correct is None else sums.correct / sums.count,
            penalty=None if penalty is None else penalty / sums.count,
            grad_norm=norm,
            learning_rate=jnp.asarray(schedule(made), jnp.float32),
            finite=finite,
            skipped=skipped,
            spike=spike,
        )
        record = Record(stats, kernel_norms(grads), weight_summary(state.params)) if stats else None
        return state.replace(step=state.step + 1, **new), metrics, record

    everywhere = spmd.replicated(mesh)
    return jax.jit(
        train_step,
        in_shardings=(placed, None),
        out_shardings=(placed, everywhere, everywhere),
        donate_argnums=0,
    )


def weight_summary(params: Any) -> dict[str, dict[str, jax.Array]]:
    """`norm_mean`, `norm_std` of units' incoming weights and `bias_mean`, `bias_std`, by module; scanned ones [L].

    A unit is an entry of the last axis of a `kernel`, its norm L2 over all other axes.
    """
    found: dict[str, dict[str, jax.Array]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        *names, last = [p.key for p in path]
        if last in ("kernel", "bias", "shared_bias"):
            stacked = int("layers" in names)
            kind, value = (
                ("norm", jnp.sqrt((leaf**2).sum(tuple(range(stacked, leaf.ndim - 1)))))
                if last == "kernel"
                else ("bias", leaf)
            )
            over = tuple(range(stacked, value.ndim))
            one = {f"{kind}_mean": value.mean(over), f"{kind}_std": value.std(over)}
            found["/".join(names)] = found.get("/".join(names), {}) | one
    return found


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
