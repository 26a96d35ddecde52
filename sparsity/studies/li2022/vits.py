"""What the studies of ViTs of Li et al. 2022 share: networks told apart by their settings, and layers by their depth.

A share is that of hidden units with h != 0 per token, after the activation. Every claim's threshold was fixed before
the runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from sparsity.config import to_dict
from sparsity.studies import draw
from sparsity.studies.draw import RunView
from sparsity.studies.judge import Effect
from sparsity.studies.li2022.runs import shares, trained_shares, trajectory
from sparsity.studies.records import Run, across, measured
from sparsity.studies.runner import Record

BLOCK = "block"  # the stack of layers that a ViT has
LEARNS = 0.5  # test accuracy from which on a network on digits has learnt; chance is a tenth
DIGITS, IMAGES, INFINITE = "digits", "random_images", "random_data"  # what an arm reads


class Arm(NamedTuple):
    """What tells the ViTs of a study apart.

    Attributes:
      d_model, layers, d_ff: sizes.
      data: "digits", "random_images" or "random_data", which is infinite.
      examples: of training, if they are fewer than all.
      noise: share of the training labels that is drawn anew.
      k: of Top-k; None is the dense network.
      penalty, weight: on activations; the weight is of their sum over units and layers.
    """

    d_model: int
    layers: int
    d_ff: int
    data: str = DIGITS
    examples: int | None = None
    noise: float = 0.0
    k: int | None = None
    penalty: str | None = None
    weight: float = 0.0


def config_of(run: Record | RunView) -> dict[str, Any]:
    """A run's config as plain values."""
    return run.config if isinstance(run, RunView) else to_dict(run.config)


def arm_of(run: Record | RunView) -> Arm:
    """The arm of a run, read from its config."""
    config = config_of(run)
    model, data, penalty = config["model"], config["data"], config.get("penalty") or {}
    found = {"data": data["name"]}
    if data["name"] == "noisy_labels":
        found = {"data": data["of"]["name"], "noise": data["share"]}
    elif data["name"] == "subset":
        found = {"data": data["of"]["name"], "examples": data["examples"]}
    return Arm(
        model["d_model"],
        model["layers"],
        model["mlp"]["d_ff"],
        **found,
        k=model["mlp"]["sparsifier"].get("k"),
        penalty=penalty.get("name"),
        weight=penalty.get("weight", 0.0),
    )


def by_arm(runs: Iterable[Run]) -> dict[Arm, dict[int, Run]]:
    """Arm -> seed -> run, in order: smaller networks first, and what an arm does not have before what it has."""
    out: dict[Arm, dict[int, Run]] = {}
    for run in runs:
        out.setdefault(arm_of(run), {})[config_of(run)["seed"]] = run
    return dict(sorted(out.items(), key=lambda item: [(x is not None, x) for x in item[0]]))


def describe(arm: Arm) -> str:
    """An arm in words.

    >>> describe(Arm(64, 4, 512, noise=0.5))
    'd_model 64, 4 layers, d_ff 512, 50% of the labels random'
    """
    words = [f"d_model {arm.d_model}", f"{arm.layers} layers", f"d_ff {arm.d_ff}"]
    words += [{IMAGES: "random images", INFINITE: "infinite data"}.get(arm.data, arm.data)] * (arm.data != DIGITS)
    words += [f"{arm.examples} examples"] * (arm.examples is not None)
    words += [f"{100 * arm.noise:g}% of the labels random"] * (arm.noise > 0)
    words += [f"k {arm.k}"] * (arm.k is not None)
    words += [f"{(arm.penalty or '').upper()} of weight {arm.weight:g}"] * (arm.penalty is not None)
    return ", ".join(words)


def over_arms(
    records: Sequence[Record],
    arms: Sequence[Arm],
    value: Callable[..., float],
    learnt: Sequence[Arm] | None = None,
) -> Effect:
    """The effect with one replicate a seed: `value` of that seed's runs of each arm, in their order.

    Not testable if an arm was not run, or where networks that should have learnt did not: the mean test accuracy of one
    of the arms `learnt` (None: the first) is below `LEARNS`. A seed of which a run diverged is no evidence.
    """
    table = by_arm(records)
    for arm in arms[:1] if learnt is None else learnt:
        accuracy = [measured(r, "accuracy") for r in table.get(arm, {}).values()]
        if accuracy and np.mean(accuracy) < LEARNS:
            return Effect.untestable(f"{describe(arm)}: has not learnt, its test accuracy is below {LEARNS:g}")
    return across({describe(arm): table.get(arm, {}) for arm in arms}, value)


def end(run: Record | RunView) -> np.ndarray:
    """Share of nonzeros of each layer on the training batch of the last step [layers]; one NaN if there is none."""
    return trained_shares(run, BLOCK)


def held_out(run: Record | RunView) -> np.ndarray:
    """Share of nonzeros of each layer on the test split [layers]; one NaN for a run that diverged."""
    return shares(run, BLOCK)


def start(run: Record | RunView) -> np.ndarray:
    """Share of nonzeros of each layer on the training batch of the first step [layers]; one NaN if there is none."""
    by_layer = trajectory(run)[1]
    return np.array([values[0] for values in by_layer.values()] or [np.nan])


def between(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Those of a network's layers whose middle, (i + 1/2) / layers, lies at a depth from `low` to `high`.

    So layers of shallow networks stand for those of the paper's twelve: its first four are the first third.

    >>> between(np.array([0.4, 0.3, 0.2, 0.1]), 0, 4 / 12), between(np.array([0.4, 0.3, 0.2, 0.1]), 4 / 12, 8 / 12)
    (array([0.4]), array([0.3, 0.2]))
    """
    middle = (np.arange(len(values)) + 0.5) / len(values)
    return values[(middle >= low) & (middle <= high)]


def plot_layers(axis: Any, views: Iterable[RunView], value: Callable[[RunView], np.ndarray], color, label) -> None:
    """Shares of nonzeros in percent (log y), layer by layer: dots are seeds, the line their mean."""
    found = [100 * value(view) for view in views]
    found = [v for v in found if len(v) > 1 and np.isfinite(v).all()]
    if not found:
        return
    places = np.linspace(0, 1, len(found[0]))
    axis.plot(places, np.mean(found, 0), "-", color=color, label=label)
    for v in found:
        axis.plot(places, v, "o", color=color, ms=3, alpha=0.6)


def layer_axis(axis: Any, title: str) -> None:
    """What axes of `plot_layers` have in common."""
    axis.set(title=title, xlabel="layer, first to last", ylim=(0.5, 100))
    draw.log_y(axis)
    axis.set_xticks([0, 1], ["first", "last"])
    axis.set_yticks([1, 3, 10, 30, 100], ["1", "3", "10", "30", "100"])
