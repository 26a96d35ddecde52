"""Several seeds of one config in one vmapped program, against one after the other.

A study may group runs into one program only where this gains 1.2x on the backend at hand. On 2 CPU cores three seeds
in one program take 1.54 times as long as one after the other (1.48 to 1.59; `results/seeds.json`), so no study groups.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sparsity.bench.protocol import Bar, Case
from sparsity.models.deep_mlp import DeepMLPConfig
from sparsity.ops.sparsifiers import ClippedRelu
from sparsity.train.losses import classification
from sparsity.train.state import TrainState, init_fn
from sparsity.train.step import Objective, gradients

SEEDS = 3
WORTH = 1 / 1.2  # time of the grouped step over that of the steps one by one


def seeds_cases(smoke: bool) -> Iterator[Case]:
    """One SGD step of each of three deep MLPs (Price et al. 2024, Table 2, embedded): 64 images, CReLU .85/.7."""
    width, depth = (32, 3) if smoke else (300, 30)
    settings = DeepMLPConfig(width, depth, ClippedRelu(sparsity=0.85, slope=0.7))
    model = settings.build(10)
    rng = np.random.default_rng(0)
    data = {
        "image": jnp.asarray(rng.normal(size=(SEEDS, 64, 8, 8, 1)), jnp.float32),
        "label": jnp.asarray(rng.integers(0, 10, (SEEDS, 64))),
    }
    tx = optax.sgd(1e-2)
    compute = gradients(Objective(model, settings, classification, seed=0), record=False)

    new = lambda seed: jax.jit(init_fn(model, tx, seed, (data["image"][0, :1],)))()
    yield Case(
        name=f"training step of {SEEDS} seeds, deep MLP {width} x {depth}, 64 images",
        rows="as trained by the rounds",
        arms=grouping_arms(compute, tx, [new(seed) for seed in range(SEEDS)], data),
        bars=(Bar("vmapped", "one by one", aim=WORTH),),
        facts={"width": width, "depth": depth, "seeds": SEEDS, "grouped if at most": WORTH},
    )


def grouping_arms(
    compute: Callable, tx: optax.GradientTransformation, states: Sequence[TrainState], inputs: Any
) -> dict[str, Callable[[], Any]]:
    """Steps of several runs: one program for each in turn, and one vmapped program for all.

    `compute(state, input)` is what `train.step.gradients` makes; `inputs` are stacked, one for each of `states`. An arm
    returns what its steps come to: a list of (state, loss), or both stacked.
    """

    def train_step(state, given):
        (sums, _), grads, _, _ = compute(state, given)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return state.replace(step=state.step + 1, params=params, opt_state=opt_state), sums.loss

    one, grouped = (jax.jit(f, donate_argnums=0) for f in (train_step, jax.vmap(train_step)))
    together = jax.tree.map(lambda *x: jnp.stack(x), *states)
    apart = list(states)
    split = [jax.tree.map(lambda x, i=i: x[i], inputs) for i in range(len(states))]

    def run_apart():
        nonlocal apart
        stepped = [one(state, given) for state, given in zip(apart, split, strict=True)]
        apart = [state for state, _ in stepped]
        return stepped

    def run_together():
        nonlocal together
        together, loss = grouped(together, inputs)
        return together, loss

    return {"one by one": run_apart, "vmapped": run_together}
