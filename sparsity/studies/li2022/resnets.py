"""Li et al. 2022, Figs. B.3, B.4: nonzeros after every ReLU of ResNets of basic and of bottleneck blocks, by width."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from sparsity.studies import draw
from sparsity.studies.draw import Drawing, Runs
from sparsity.studies.judge import Claim, Effect
from sparsity.studies.li2022.runs import train_accuracy, trajectory
from sparsity.studies.li2022.vits import LEARNS
from sparsity.studies.records import (
    Run,
    across,
    decades_each,
    finished,
    mean_over,
    measured,
    named,
    percent,
    standard_error,
)
from sparsity.studies.runner import Record, Row, Study

BLOCKS = ("basic", "bottleneck")
DENSE = 0.1  # share of nonzeros that every layer of the paper's ResNets is above
_NAME = re.compile(rf"^resnet_({'|'.join(BLOCKS)})_w(\d+)_.*?_(sgd|momentum|adam)_rate([\d.e-]+)_seed(\d+)$")


class Arm(NamedTuple):
    """What tells ResNets apart: kind of block, channels of the first stage, optimizer and its (peak) rate."""

    block: str
    width: int
    optimizer: str
    rate: float


def arm_and_seed(name: str) -> tuple[Arm, int]:
    """The arm and the seed of a run called "resnet_basic_w8_digits_momentum_rate0.05_seed0".

    >>> arm_and_seed("resnet_basic_w8_digits_momentum_rate0.05_seed2")
    (Arm(block='basic', width=8, optimizer='momentum', rate=0.05), 2)
    """
    block, width, optimizer, rate, seed = _NAME.search(name).groups()
    return Arm(block, int(width), optimizer, float(rate)), int(seed)


def by_arm(runs: Mapping[str, Run]) -> dict[Arm, dict[int, Run]]:
    """Arm -> seed -> run, narrow networks first, of the ResNets among runs by name."""
    out: dict[Arm, dict[int, Run]] = {}
    for name in filter(_NAME.search, runs):
        arm, seed = arm_and_seed(name)
        out.setdefault(arm, {})[seed] = runs[name]
    return dict(sorted(out.items()))


def widths(runs: Mapping[str, Run], block: str) -> list[Arm]:
    """The arms of one kind of block, narrow first."""
    return [arm for arm in by_arm(runs) if arm.block == block]


def relus(run: Run) -> np.ndarray:
    """Held-out share of nonzeros after every ReLU of the residual blocks [blocks, ReLUs]; NaN of a run that diverged.

    The last column is the block's output, after the addition; those before are inside it.
    """
    found = {m.name: m.value for m in run.outcome.measures if m.name.startswith("nonzero.block_")}
    kinds = sum(name.startswith("nonzero.block_0/") for name in found)
    return np.array(list(found.values())).reshape(-1, kinds) if found else np.full((1, 2), math.nan)


def inner(run: Run) -> np.ndarray:
    """Shares inside each block, the mean over its ReLUs but the last [blocks]."""
    return relus(run)[:, :-1].mean(1)


def output(run: Run) -> np.ndarray:
    """Shares at each block's output [blocks]."""
    return relus(run)[:, -1]


KINDS: dict[str, Callable[[Run], np.ndarray]] = {"inner": inner, "output": output}


def table(records: Sequence[Record]) -> list[Row]:
    """Every network, means over n seeds.

    start: share of nonzeros on the training batch of the first step, mean over ReLUs. inner, output: held-out share
    inside the blocks and at their outputs, mean over blocks (se over seeds). first, last: of the first and of the last
    block, mean over its ReLUs. least: of all ReLUs (the paper: above 10%). accuracy: test images; train: on training
    batches.
    """
    rows = []
    for arm, of_seed in by_arm(named(records)).items():
        runs = finished(of_seed)
        mean = functools.partial(mean_over, runs)
        row = {**arm._asdict(), "n": len(runs)}
        row["start"] = mean(lambda r: np.mean([v[0] for v in trajectory(r)[1].values()]))
        for kind, of in KINDS.items():
            row[kind] = mean(lambda r, of=of: of(r).mean())
            row[f"{kind}, se"] = standard_error([float(of(r).mean()) for r in runs])
        row["first"], row["last"] = mean(lambda r: relus(r)[0].mean()), mean(lambda r: relus(r)[-1].mean())
        row["least"] = mean(lambda r: relus(r).min())
        row["accuracy"], row["train"] = mean(lambda r: measured(r, "accuracy")), mean(train_accuracy)
        rows.append(row)
    return rows


def by_block(runs: Runs) -> Drawing:
    """Fig. B.3: held-out share of nonzeros after each ReLU by block, narrowest networks; dots are seeds, lines means.

    Dashed: 10%.
    """
    figure, axes = draw.panels(1, len(BLOCKS), sharey=True)
    for axis, block in zip(axes, BLOCKS, strict=True):
        of_seed = by_arm(runs)[widths(runs, block)[0]] if widths(runs, block) else {}
        values = np.array([100 * relus(view) for view in of_seed.values()])
        for j in range(values.shape[2] if len(values) else 0):
            label = "output" if j == values.shape[2] - 1 else f"inner {j}"
            axis.plot(values[:, :, j].mean(0), "-", color=f"C{j}", label=label)
            for v in values[:, :, j]:
                axis.plot(v, "o", color=f"C{j}", ms=3, alpha=0.6)
        axis.axhline(100 * DENSE, color="k", ls="--", lw=0.8)
        axis.set(title=f"{block} blocks", xlabel="block", ylim=(0, None))
        if axis.get_legend_handles_labels()[0]:
            axis.legend()
    axes[0].set_ylabel("nonzero (%)")
    return draw.done(figure)


def by_width(runs: Runs) -> Drawing:
    """Fig. B.4: held-out share of nonzeros inside basic blocks and at their outputs by width, means over seeds."""
    figure, axes = draw.panels(1, len(KINDS), sharey=True)
    arms = widths(runs, "basic")
    for axis, (kind, of) in zip(axes, KINDS.items(), strict=True):
        for i, arm in enumerate(arms):
            values = np.array([100 * of(view) for view in by_arm(runs)[arm].values()])
            axis.plot(values.mean(0), "o-", color=draw.color(i, len(arms)), ms=3, label=str(arm.width))
        axis.set(title=kind, xlabel="block")
    axes[0].set_ylabel("nonzero (%)")
    if arms:
        draw.legend_beside(axes[0], "width")
    return draw.done(figure)


def findings(records: Sequence[Record]) -> list[str]:
    """Every network in a sentence."""
    return [
        f"{row['block']} blocks, width {row['width']}: nonzero {percent(row['start'])} at the start; at the end "
        f"{percent(row['inner'])} inside the blocks, {percent(row['output'])} at their outputs, "
        f"{percent(row['first'])} in the first block, {percent(row['last'])} in the last, "
        f"{percent(row['least'])} after the sparsest ReLU."
        for row in table(records)
    ]


def over_arms(records: Sequence[Record], arms: Sequence[Arm], value: Callable[..., float]) -> Effect:
    """The effect with one replicate a seed: `value` of that seed's runs of each arm, in their order.

    Not testable if an arm was not run, or its mean test accuracy is below `LEARNS`.
    """
    found = by_arm(named(records))
    for arm in arms:
        accuracy = [measured(r, "accuracy") for r in found.get(arm, {}).values()]
        if accuracy and np.mean(accuracy) < LEARNS:
            return Effect.untestable(f"{_text(arm)} has a test accuracy of only {np.mean(accuracy):.2f}")
    return across({_text(arm): found.get(arm, {}) for arm in arms}, value)


def _text(arm: Arm) -> str:
    return f"{arm.block} blocks of width {arm.width}, {arm.optimizer} at {arm.rate:g}"


def _narrowest(block: str, value: Callable[[Record], float]) -> Callable[..., Effect]:
    def measure(records: Sequence[Record]) -> Effect:
        arms = widths(named(records), block)
        if not arms:
            return Effect.untestable(f"no network of {block} blocks was run")
        return over_arms(records, arms[:1], value)

    return measure


def _least_of_all_widths(block: str) -> Callable[..., Effect]:
    def measure(records: Sequence[Record]) -> Effect:
        arms = widths(named(records), block)
        if not arms:
            return Effect.untestable(f"no network of {block} blocks was run")
        return over_arms(records, arms, lambda *runs: float(np.min([relus(run).min() for run in runs])))

    return measure


def _widest_over_narrowest(value: Callable[[np.ndarray, np.ndarray], float]) -> Callable[..., Effect]:
    """`value` of log10 of the widest network's shares over the narrowest's, inside [blocks] and at outputs [blocks]."""

    def measure(records: Sequence[Record]) -> Effect:
        arms = widths(named(records), "basic")
        if len(arms) < 2:
            return Effect.untestable("fewer than two widths were run")
        ratios = lambda a, b: value(*(decades_each(of(b), of(a)) for of in KINDS.values()))
        return over_arms(records, (arms[0], arms[-1]), ratios)

    return measure


def nearer_the_output(values: np.ndarray) -> float:
    """Mean of the last half of [blocks, ...] less that of the first; of an odd number without the middle one.

    >>> nearer_the_output(np.array([0.4, 0.5, 0.1]))
    -0.3
    """
    half = len(values) // 2
    return round(float(values[-half:].mean() - values[:half].mean()), 12) if half else math.nan


def _claim(id, where, statement, effect, side, threshold, measure, headline=False) -> Claim:
    return Claim(id, where, statement, effect, "seed", side, threshold, measure, headline)


_OF_NARROWEST = "held-out share of nonzeros of the narrowest network"
_RATIO = "log10 of the held-out share of nonzeros of the widest network over the narrowest's"
CLAIMS = (
    *(
        claim
        for block, figure in zip(BLOCKS, ("Fig. B.3a", "Fig. B.3b"), strict=True)
        for claim in (
            _claim(
                f"L14.dense.{block}",
                figure,
                f"ResNets of {block} blocks are above 10% everywhere, at every width",
                "least held-out share of nonzeros of all ReLUs of the residual blocks, of networks of all widths",
                "above",
                DENSE,
                _least_of_all_widths(block),
            ),
            _claim(
                f"L14.output.{block}",
                figure,
                f"the narrowest is sparser near the output ({block})",
                f"{_OF_NARROWEST}, mean over ReLUs: the last half of the blocks less the first",
                "below",
                0.0,
                _narrowest(block, lambda run: nearer_the_output(relus(run))),
            ),
            _claim(
                f"L14.inner.{block}",
                figure,
                f"its ReLUs inside a block are sparser than the block's output ({block})",
                f"{_OF_NARROWEST} inside a block less that at its output, mean over blocks",
                "below",
                0.0,
                _narrowest(block, lambda run: float((inner(run) - output(run)).mean())),
            ),
            _claim(
                f"L14.every.{block}",
                figure,
                f"in every block of the narrowest network ({block})",
                f"{_OF_NARROWEST} after the densest ReLU inside a block less that at its output, largest of all blocks",
                "below",
                0.0,
                _narrowest(block, lambda run: float((relus(run)[:, :-1].max(1) - output(run)).max())),
            ),
        )
    ),
    _claim(
        "L3.resnet.inner",
        "Fig. B.4a",
        "wider ResNets are sparser inside their blocks",
        f"{_RATIO}, inside the blocks, mean over blocks",
        "below",
        0.0,
        _widest_over_narrowest(lambda inside, outputs: float(inside.mean())),
        headline=True,
    ),
    _claim(
        "L3.resnet.output",
        "Fig. B.4b",
        "and at the outputs of all blocks but the last",
        f"{_RATIO}, at the outputs of all blocks but the last, mean over blocks",
        "below",
        0.0,
        _widest_over_narrowest(lambda inside, outputs: float(outputs[:-1].mean())),
        headline=True,
    ),
    _claim(
        "L3.resnet.every",
        "Fig. B.4",
        "each of these layers is",
        f"{_RATIO}, largest over ReLUs but the very last",
        "below",
        0.0,
        _widest_over_narrowest(lambda inside, outputs: float(np.max([*inside, *outputs[:-1]]))),
    ),
    _claim(
        "L14.last",
        "Fig. B.4b",
        "the very last is not",
        f"{_RATIO}, at the last block's output",
        "above",
        0.0,
        _widest_over_narrowest(lambda inside, outputs: float(outputs[-1])),
    ),
)

RESNETS = Study(
    name="li2022/resnets",
    title="Li et al. 2022, Figs. B.3, B.4: ResNets are sparse, less so than Transformers",
    introduction=(
        "ResNets of basic and of bottleneck blocks classify images, and the nonzeros after every ReLU of their blocks "
        "are counted. The paper finds more than 10% everywhere, fewer towards the network's output and inside the "
        "blocks than at their outputs, and fewer in wider networks but for the very last layer."
    ),
    findings=findings,
    figures={"Nonzeros by block": by_block, "Nonzeros by width": by_width},
    claims=CLAIMS,
    table=table,
)
