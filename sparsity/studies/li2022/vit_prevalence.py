"""Li et al. 2022, Figs. 1 and 2, ViT's part: nonzeros by layer, step, size of the network and of the data set."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from sparsity.studies import draw
from sparsity.studies.draw import Drawing, Runs
from sparsity.studies.judge import Claim, Effect
from sparsity.studies.li2022.runs import train_accuracy, trajectory
from sparsity.studies.li2022.t5_prevalence import ends_over_middle
from sparsity.studies.li2022.vits import (
    Arm,
    by_arm,
    end,
    held_out,
    layer_axis,
    over_arms,
    plot_layers,
    start,
)
from sparsity.studies.records import Run, decades, decades_each, finished, mean_over, measured, percent, standard_error
from sparsity.studies.runner import Record, Row, Study

PAPER = 0.063  # share of nonzeros of ViT-B/16 at the end of training on ImageNet-21k, mean over layers (abstract)
SAME = 1.25  # factor within which two data sets give the same share; the paper's 6.3 and 5.67% are one of 1.11 apart


def sizes(runs: Iterable[Run]) -> dict[Arm, dict[int, Run]]:
    """The arms trained on all examples, smaller networks first."""
    return {arm: of_seed for arm, of_seed in by_arm(runs).items() if arm.examples is None}


def few_and_all(runs: Iterable[Run]) -> tuple[Arm, Arm] | None:
    """The arm of all examples and that of few, of the same size; None if there is no such pair."""
    arms = by_arm(runs)
    pairs = [(a._replace(examples=None), a) for a in arms if a.examples is not None]
    return next((pair for pair in pairs if pair[0] in arms), None)


def _size(arm: Arm) -> str:
    return f"{arm.layers} layers of d_ff {arm.d_ff}"


def table(records: Sequence[Record]) -> list[Row]:
    """Nonzeros of every size and data set, means over n seeds.

    examples: of training; empty for all 1,260. start, end: share of nonzeros on the training batch of the first and of
    the last step, mean over layers (se of the latter over seeds); the paper's ViT-B/16 has 50 and 6.3%. least, most: of
    a layer, at the end. held-out: the mean over layers on test images. accuracy: on these; train: on training batches.
    """
    rows = []
    for arm, of_seed in by_arm(records).items():
        runs = finished(of_seed)
        mean = functools.partial(mean_over, runs)
        row = {"d_model": arm.d_model, "layers": arm.layers, "d_ff": arm.d_ff, "examples": arm.examples}
        row |= {"n": len(runs), "start": mean(lambda r: start(r).mean()), "end": mean(lambda r: end(r).mean())}
        row["se"] = standard_error([end(r).mean() for r in runs])
        row["least"], row["most"] = mean(lambda r: end(r).min()), mean(lambda r: end(r).max())
        row["held-out"] = mean(lambda r: measured(r, "nonzero.mean"))
        row["accuracy"], row["train"] = mean(lambda r: measured(r, "accuracy")), mean(train_accuracy)
        rows.append(row)
    return rows


def nonzero_by_step(runs: Runs) -> Drawing:
    """Fig. 1 of ViTs: nonzeros on training batches by layer against step (log y), of each size's first seed.

    Dashed: the mean over layers of the paper's ViT-B/16 at the end of training.
    """
    found = sizes(runs.values())
    figure, axes = draw.panels(1, max(len(found), 1), sharey=True)
    for axis, (arm, of_seed) in zip(axes, found.items(), strict=False):
        steps, by_layer = trajectory(next(iter(of_seed.values())))
        for i, (name, values) in enumerate(by_layer.items()):
            axis.plot(steps, 100 * values, color=draw.color(i, len(by_layer)), label=name)
        axis.axhline(100 * PAPER, color="k", ls="--", lw=0.8)
        axis.set(title=_size(arm), xlabel="step", yscale="log", ylim=(1, 100))
        axis.set_yticks([1, 3, 10, 30, 100], ["1", "3", "10", "30", "100"])
        axis.legend(fontsize="x-small", ncols=2, loc="lower left")
    axes[0].set_ylabel("nonzero (%)")
    return draw.done(figure)


def by_size(runs: Runs) -> Drawing:
    """Fig. 2d: nonzero share of each layer on test images, by size (log y); dots are seeds, lines their mean."""
    figure, (axis,) = draw.panels(1, 1)
    found = sizes(runs.values())
    for i, (arm, of_seed) in enumerate(found.items()):
        plot_layers(axis, of_seed.values(), held_out, draw.color(i, len(found)), _size(arm))
    layer_axis(axis, "test images")
    axis.set_ylabel("nonzero (%)")
    draw.legend_beside(axis)
    return draw.done(figure)


def train_and_test(runs: Runs) -> Drawing:
    """Fig. 2b, there of T5: nonzeros of each layer on the last training batch (line) and on test images (dots).

    By size (log y); all seeds, of which the first is named in the legend.
    """
    figure, (axis,) = draw.panels(1, 1)
    found = sizes(runs.values())
    for i, (arm, of_seed) in enumerate(found.items()):
        label = _size(arm)
        for view in of_seed.values():
            train, held, color = end(view), held_out(view), draw.color(i, len(found))
            if len(train) == len(held) == arm.layers:
                axis.plot(np.linspace(0, 1, arm.layers), 100 * train, "-", color=color, lw=1, label=label)
                axis.plot(np.linspace(0, 1, arm.layers), 100 * held, "o", color=color, ms=4)
                label = None
    layer_axis(axis, "training batch (line) and test images (dots)")
    axis.set_ylabel("nonzero (%)")
    draw.legend_beside(axis)
    return draw.done(figure)


def by_data(runs: Runs) -> Drawing:
    """Fig. 2c: nonzero share of each layer on test images, trained on all examples and on few (log y).

    Dots are seeds, lines their mean.
    """
    figure, (axis,) = draw.panels(1, 1)
    arms = by_arm(runs.values())
    for color, arm in zip(("C0", "C3"), few_and_all(runs.values()) or (), strict=False):
        label = "all examples" if arm.examples is None else f"{arm.examples} examples"
        plot_layers(axis, arms[arm].values(), held_out, color, label)
    layer_axis(axis, "test images")
    axis.set_ylabel("nonzero (%)")
    if axis.lines:
        axis.legend()
    return draw.done(figure)


def findings(records: Sequence[Record]) -> list[str]:
    """Start and end of every arm, in sentences."""
    return [
        f"{row['layers']} layers of d_ff {row['d_ff']}, {row['examples'] or 'all'} examples: nonzero "
        f"{percent(row['start'])} at the start, {percent(row['end'])} at the end, {percent(row['held-out'])} on test "
        "images (the paper's ViT-B/16 6.3% on ImageNet-21k, 5.7% on ImageNet-1k)."
        for row in table(records)
    ]


def _of_sizes(value: Callable[[Record], float], together: Callable = np.mean, layers: int = 1) -> Callable[..., Effect]:
    """`value` of a run, the mean (or what `together` makes) over the sizes of a seed with at least so many layers.

    Not testable unless all of these have learnt.
    """

    def measure(records: Sequence[Record]) -> Effect:
        arms = [arm for arm in sizes(records) if arm.layers >= layers]
        if not arms:
            return Effect.untestable("no size was run")
        return over_arms(records, arms, lambda *runs: float(together([value(r) for r in runs])), learnt=arms)

    return measure


def _data(records: Sequence[Record]) -> Effect:
    """|log10| of the test images' share of nonzeros, mean over layers, trained on few examples over that on all."""
    pair = few_and_all(records)
    if pair is None:
        return Effect.untestable("no network was trained on few examples and on all")
    ratio = lambda whole, few: abs(decades(measured(few, "nonzero.mean"), measured(whole, "nonzero.mean")))
    return over_arms(records, pair, ratio, learnt=pair)


def _train_against_test(run) -> float:
    return float(np.abs(decades_each(held_out(run), end(run))).max())


def _claim(id: str, where: str, statement: str, effect: str, side, threshold: float, measure, headline=True) -> Claim:
    return Claim(id, where, statement, effect, "seed", side, threshold, measure, headline)


CLAIMS = (
    _claim(
        "L1.half",
        "Fig. 1",
        "about half of the units are nonzero at the start",
        "|share of nonzeros at step 0, mean over layers, less one half|, mean over sizes",
        "below",
        0.05,
        _of_sizes(lambda run: abs(float(start(run).mean()) - 0.5)),
    ),
    _claim(
        "L1.falls",
        "Fig. 2",
        "the share falls in every layer",
        "largest change over layers and sizes of the share of nonzeros on training batches, end less start",
        "below",
        0.0,
        _of_sizes(lambda run: float((end(run) - start(run)).max()), np.max),
    ),
    _claim(
        "L1.size",
        "abstract",
        "to 6.3% on average over layers: no more than twice that",
        "share of nonzeros on training batches at the end, mean over layers and sizes",
        "below",
        2 * PAPER,
        _of_sizes(lambda run: float(end(run).mean())),
    ),
    _claim(
        "L1.held_out",
        "Fig. 2b, there of T5",
        "training and held-out images give the same share, layer by layer: within a tenth of it",
        "largest |log10 of the test images' share over that on the last training batch| over layers and sizes",
        "below",
        math.log10(1.1),
        _of_sizes(_train_against_test, np.max),
    ),
    _claim(
        "L1.ends",
        "Fig. 2",
        "the first and the last layers are denser than those between",
        "test images' share of nonzeros of the first or the last quarter of layers, whichever is less, less that of "
        "the layers between: the least over sizes of 4 layers and more",
        "above",
        0.0,
        _of_sizes(lambda run: ends_over_middle(held_out(run), np.min), np.min, layers=4),
    ),
    _claim(
        "L1.persists",
        "Fig. 2d",
        "networks of all sizes are sparse: each has less than half of the nonzeros it had at the start",
        "share of nonzeros on training batches, mean over layers, end over start: the largest over sizes",
        "below",
        0.5,
        _of_sizes(lambda run: float(end(run).mean() / start(run).mean()), np.max),
        headline=False,
    ),
    _claim(
        "L1.data",
        "Fig. 2c",
        "the scale of the data hardly matters: the share stays within a quarter of itself",
        "|log10 of the test images' share of nonzeros, mean over layers, trained on a tenth of the examples over that "
        "trained on all|",
        "below",
        math.log10(SAME),
        _data,
        headline=False,
    ),
)

VIT_PREVALENCE = Study(
    name="li2022/vit_prevalence",
    title="Li et al. 2022, Figs. 1 and 2: the activations of a trained ViT are sparse",
    introduction=(
        "ViTs of three sizes read digits. Half of the hidden units of their ReLU MLPs are nonzero at the start; the "
        "paper finds 6.3% after training ViT-B/16 on ImageNet-21k and 5.7% on ImageNet-1k, which has a tenth of the "
        "images, and few nonzeros at every size and in every layer. Here the smaller data set is a tenth of the digits."
    ),
    findings=findings,
    figures={
        "Nonzeros by step": nonzero_by_step,
        "Nonzeros by layer and size": by_size,
        "Training and test images": train_and_test,
        "Nonzeros by layer and number of examples": by_data,
    },
    claims=CLAIMS,
    table=table,
)
