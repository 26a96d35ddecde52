"""What the studies of Li et al. 2022 share: T5s by size and seed, and shares of nonzeros layer by layer.

A share is that of hidden units with h != 0 per token, after the activation and before dropout, padding left out. Every
claim's threshold was fixed before the runs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from sparsity.models.t5 import DECODER, ENCODER
from sparsity.studies import draw
from sparsity.studies.draw import Drawing, RunView
from sparsity.studies.judge import Effect
from sparsity.studies.records import Run, across, each_layer, measured, named, records_of
from sparsity.studies.runner import Record

STACKS = (ENCODER, DECODER)
LEARNS = 0.35  # of held-out target tokens: knowing a target's place alone predicts 30% of them, the byte before 28%
_NAME = re.compile(r"_d(\d+)_l(\d+)_f(\d+)(?:_k(\d+))?(?:_no_(\w+?))?_seed(\d+)$")


class Arm(NamedTuple):
    """What tells the T5s of a study apart: sizes, k of Top-k (None: dense) and the layer without a connection."""

    d_model: int
    layers: int
    d_ff: int
    k: int | None = None
    without: str | None = None


def arm_and_seed(name: str) -> tuple[Arm, int]:
    """The arm and the seed of a run called "t5_text_d64_l4_f512_k16_seed0".

    >>> arm_and_seed("t5_text_d64_l8_f512_no_encoder_2_seed1")
    (Arm(d_model=64, layers=8, d_ff=512, k=None, without='encoder_2'), 1)
    """
    *sizes, k, without, seed = _NAME.search(name).groups()
    return Arm(*map(int, sizes), None if k is None else int(k), without), int(seed)


def by_arm(runs: Mapping[str, Run]) -> dict[Arm, dict[int, Run]]:
    """Arm -> seed -> run, smaller networks first, of runs by name."""
    out: dict[Arm, dict[int, Run]] = {}
    for name, run in runs.items():
        arm, seed = arm_and_seed(name)
        out.setdefault(arm, {})[seed] = run
    return dict(sorted(out.items(), key=lambda item: [(x is not None, x) for x in item[0]]))


def shares(run: Record | RunView, stack: str) -> np.ndarray:
    """Share of nonzeros on the split evaluated, by layer of a stack; one NaN for a run that diverged."""
    return each_layer(run, f"nonzero.{stack}_")


def trajectory(run: Record | RunView) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The recorded steps, and the share of nonzeros on their training batches by layer's name."""
    lines = records_of(run, "sparsity")
    layers = lines[0]["layers"] if lines else {}
    by_layer = {name: np.array([line["layers"][name]["nonzero"] for line in lines]) for name in layers}
    return np.array([line["step"] for line in lines]), by_layer


def trained_shares(run: Record | RunView, stack: str) -> np.ndarray:
    """Share of nonzeros on the training batch of the last step, by layer of a stack."""
    _, by_layer = trajectory(run)
    found = [values[-1] for name, values in by_layer.items() if name.startswith(stack)]
    return np.array(found or [math.nan])


def train_accuracy(run: Record | RunView) -> float:
    """Share of target tokens predicted on training batches, over the last twentieth of training."""
    values = [line["accuracy"] for line in records_of(run, "train")]
    return float(np.mean(values[-max(len(values) // 20, 1) :])) if values else math.nan


def over_arms(records: Sequence[Record], arms: Sequence[Arm], value: Callable[..., float]) -> Effect:
    """The effect with one replicate a seed: `value` of that seed's runs of each arm, in their order.

    Not testable if an arm was not run, or where the networks learnt nothing: the first arm's mean accuracy on held-out
    text is below `LEARNS`. A seed of which a run diverged is no evidence.
    """
    table = by_arm(named(records))
    first = table.get(arms[0], {})
    learnt = float(np.mean([measured(r, "accuracy") for r in first.values()])) if first else math.nan
    if learnt < LEARNS:
        return Effect.untestable(f"{_text(arms[0])} predicts only {learnt:.2f} of the held-out tokens")
    return across({_text(arm): table.get(arm, {}) for arm in arms}, value)


def _text(arm: Arm) -> str:
    words = [f"d_model {arm.d_model}", f"{arm.layers} layers", f"d_ff {arm.d_ff}"]
    words += [f"k {arm.k}"] * (arm.k is not None) + [f"no connection around {arm.without}"] * (arm.without is not None)
    return ", ".join(words)


def layer_by_layer(
    runs: Mapping[str, RunView], label: Callable[[Arm], str], what: str, factor: Callable[[Arm], float]
) -> Drawing:
    """Held-out shares of nonzeros times `factor`, which are `what`, layer by layer (log y), encoder and decoder.

    Lines are arms, their means over seeds; dots are seeds.
    """
    figure, axes = draw.panels(1, 2, sharey=True)
    table = by_arm(runs)
    for axis, stack in zip(axes, STACKS, strict=True):
        for i, (arm, of_seed) in enumerate(table.items()):
            values = [factor(arm) * shares(view, stack) for view in of_seed.values()]
            values = [v for v in values if len(v) == arm.layers]
            if not values:
                continue
            color, places = draw.color(i, len(table)), np.linspace(0, 1, arm.layers)
            axis.plot(places, np.mean(values, 0), "-", color=color, label=label(arm) if stack == STACKS[0] else None)
            for v in values:
                axis.plot(places, v, "o", color=color, ms=3, alpha=0.6)
        axis.set(title=stack, xlabel="layer, first to last")
        draw.log_y(axis)
        axis.set_xticks([0, 1], ["first", "last"])
    axes[0].set_ylabel(what)
    draw.legend_beside(axes[0])
    return draw.done(figure)
