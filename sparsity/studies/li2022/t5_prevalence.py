"""Li et al. 2022, Figs. 1 to 3, T5's part: nonzeros by layer and step, on training and held-out text, and by unit."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from sparsity.studies import draw
from sparsity.studies.draw import Drawing, Runs
from sparsity.studies.judge import Claim, Effect
from sparsity.studies.li2022.runs import (
    STACKS,
    by_arm,
    layer_by_layer,
    over_arms,
    shares,
    train_accuracy,
    trained_shares,
    trajectory,
)
from sparsity.studies.records import finished, mean_over, measured, named, percent, standard_error
from sparsity.studies.runner import Record, Row, Study

PAPER = 0.027  # share of nonzeros of T5-Base at the end of training, mean over layers (Fig. 1)
RARE, SELDOM, OFTEN = 0.1, 0.01, 0.4  # firing rates of Fig. 3: below the first, above the second, "around 50%"


def firing_rates(run) -> np.ndarray:
    """Share of tokens on which each unit of the first encoder layer is nonzero [d_ff], on the split evaluated."""
    return np.array(run.outcome.arrays.get("firing_rates", {}).get("encoder_0", [math.nan]))


def final(run) -> np.ndarray:
    """Shares on training batches of all layers at the end."""
    return np.concatenate([trained_shares(run, stack) for stack in STACKS])


def table(records: Sequence[Record]) -> list[Row]:
    """Nonzeros of every size, means over n seeds.

    start, end: share of nonzeros on the training batch of the first and of the last step, mean over layers (se of the
    latter over seeds); the paper's T5-Base has 50 and 2.7%. least, most: of a layer, at the end (the paper: 1.1 and
    12.0%). held-out: the same mean on held-out text. dead, rare: units of the first encoder layer that fire on no token
    of it, and on fewer than a tenth (the paper: none, 93.5%). accuracy: of target tokens, held out; train: on training
    batches.
    """
    rows = []
    for arm, of_seed in by_arm(named(records)).items():
        runs = finished(of_seed)
        row = {"d_model": arm.d_model, "layers": arm.layers, "d_ff": arm.d_ff, "n": len(runs)}
        ends = [final(r).mean() for r in runs]
        mean = lambda value, runs=runs: mean_over(runs, value)
        row["start"] = mean(lambda r: np.mean([v[0] for v in trajectory(r)[1].values()]))
        row["end"], row["se"] = mean(lambda r: final(r).mean()), standard_error(ends)
        row["least"], row["most"] = mean(lambda r: final(r).min()), mean(lambda r: final(r).max())
        row["held-out"] = mean(lambda r: measured(r, "nonzero.mean"))
        row["dead"] = mean(lambda r: np.mean(firing_rates(r) == 0))
        row["rare"] = mean(lambda r: np.mean(firing_rates(r) < RARE))
        row["accuracy"], row["train"] = mean(lambda r: measured(r, "accuracy")), mean(train_accuracy)
        rows.append(row)
    return rows


def nonzero_by_step(runs: Runs) -> Drawing:
    """Fig. 1: nonzeros on training batches by layer against step (log y), of the second size's first seed.

    Dashed: the mean of the paper's T5-Base at the end of training.
    """
    arms = by_arm(runs)
    of_seed = list(arms.values())[min(1, len(arms) - 1)]
    steps, by_layer = trajectory(next(iter(of_seed.values())))
    figure, axes = draw.panels(1, 2, sharey=True)
    for axis, stack in zip(axes, STACKS, strict=True):
        layers = [name for name in by_layer if name.startswith(stack)]
        for i, name in enumerate(layers):
            axis.plot(steps, 100 * by_layer[name], color=draw.color(i, len(layers)), label=name)
        axis.axhline(100 * PAPER, color="k", ls="--", lw=0.8)
        axis.set(title=stack, xlabel="step", ylim=(0.5, 100))
        draw.log_y(axis)
        axis.set_yticks([1, 3, 10, 30, 100], ["1", "3", "10", "30", "100"])
        axis.legend()
    axes[0].set_ylabel("nonzero (%)")
    return draw.done(figure)


def sizes(runs: Runs) -> Drawing:
    """Figs. 2e, 2f: nonzero share of each layer on held-out text, by size (log y); dots are seeds, lines their mean."""
    return layer_by_layer(runs, lambda arm: f"{arm.layers} layers of d_ff {arm.d_ff}", "nonzero (%)", lambda arm: 100.0)


def held_out(runs: Runs) -> Drawing:
    """Fig. 2b: nonzeros of each layer on the last training batch (line) and on held-out text (dots), all seeds."""
    figure, axes = draw.panels(1, 2, sharey=True)
    for axis, stack in zip(axes, STACKS, strict=True):
        arms = by_arm(runs)
        for i, (arm, of_seed) in enumerate(arms.items()):
            for view in of_seed.values():
                train, held = trained_shares(view, stack), shares(view, stack)
                if len(train) == len(held) == arm.layers:
                    axis.plot(np.linspace(0, 1, arm.layers), 100 * train, "-", color=draw.color(i, len(arms)), lw=1)
                    axis.plot(np.linspace(0, 1, arm.layers), 100 * held, "o", color=draw.color(i, len(arms)), ms=4)
        axis.set(title=stack, xlabel="layer, first to last")
        axis.set_xticks([0, 1], ["first", "last"])
    axes[0].set_ylabel("nonzero (%)")
    return draw.done(figure)


def units(runs: Runs) -> Drawing:
    """Fig. 3: share of held-out tokens on which each unit of the first encoder layer is nonzero, sorted, by size.

    First seed; the right half on a logarithmic axis.
    """
    figure, axes = draw.panels(1, 2)
    arms = by_arm(runs)
    for i, (arm, of_seed) in enumerate(arms.items()):
        rates = np.sort(firing_rates(next(iter(of_seed.values()))))[::-1]
        for axis in axes:
            axis.plot(np.linspace(0, 1, len(rates)), 100 * rates, color=draw.color(i, len(arms)), label=f"{arm.d_ff}")
    for axis in axes:
        axis.set_xlabel("unit, sorted (share of the layer)")
    axes[0].set_ylabel("fires on (% of tokens)")
    axes[1].set_yscale("symlog", linthresh=0.1)
    axes[0].legend(title="units")
    return draw.done(figure)


def findings(records: Sequence[Record]) -> list[str]:
    """Start and end of every size, in sentences."""
    return [
        f"{row['layers']} layers of d_ff {row['d_ff']}: nonzero {percent(row['start'])} at the start, "
        f"{percent(row['end'])} at the end, {percent(row['held-out'])} on held-out text (the paper's T5-Base 2.7%); "
        f"units of the first encoder layer that fire on under a tenth of tokens {percent(row['rare'])} (93.5%), dead "
        f"{percent(row['dead'])} (none)."
        for row in table(records)
    ]


def _of_sizes(value: Callable[[Record], float], together: Callable = np.mean, layers: int = 1) -> Callable[..., Effect]:
    """`value` of a run, the mean (or what `together` makes) over the sizes of a seed with at least so many layers."""

    def measure(records: Sequence[Record]) -> Effect:
        arms = [arm for arm in by_arm(named(records)) if arm.layers >= layers]
        if not arms:
            return Effect.untestable("no size was run")
        return over_arms(records, arms, lambda *runs: float(together([value(r) for r in runs])))

    return measure


def _start(run) -> float:
    return abs(float(np.mean([values[0] for values in trajectory(run)[1].values()])) - 0.5)


def _largest_change(run) -> float:
    """Over layers, of the share on training batches from the first step to the last."""
    first = np.array([values[0] for values in trajectory(run)[1].values()])
    return float((final(run) - first).max())


def _still_falling(run) -> float:
    """Of the mean over layers: the last fifth of the records less the fifth before."""
    mean = np.mean(list(trajectory(run)[1].values()), axis=0)
    fifth = max(len(mean) // 5, 1)
    return float(mean[-fifth:].mean() - mean[-2 * fifth : -fifth].mean())


def _train_against_held_out(run) -> float:
    ratios = [np.log10(shares(run, stack) / trained_shares(run, stack)) for stack in STACKS]
    return float(np.abs(np.concatenate(ratios)).max())


def ends_over_middle(values: np.ndarray, together: Callable = np.mean) -> float:
    """Mean of the first and last quarter of layers less that of the others; NaN of fewer than 4 layers.

    `together` makes one number of the means of the two quarters: np.min takes the lesser.

    >>> ends_over_middle(np.array([0.3, 0.1, 0.1, 0.2]))
    0.15
    """
    n = len(values) // 4
    if n == 0:
        return math.nan
    return float(together([np.mean(values[:n]), np.mean(values[-n:])]) - np.mean(values[n:-n]))


def _shape(run) -> float:
    return float(np.mean([ends_over_middle(shares(run, stack)) for stack in STACKS]))


def _claim(id: str, where: str, statement: str, effect: str, side, threshold: float, measure, headline=False) -> Claim:
    return Claim(id, where, statement, effect, "seed", side, threshold, measure, headline)


CLAIMS = (
    _claim(
        "L1.half",
        "Fig. 1",
        "about half of the units are nonzero at the start",
        "|share of nonzeros at step 0, mean over layers, less one half|, mean over sizes",
        "below",
        0.05,
        _of_sizes(_start),
        headline=True,
    ),
    _claim(
        "L1.falls",
        "Figs. 1, 2",
        "the share falls in every layer",
        "largest change over layers and sizes of the share of nonzeros on training batches, end less start",
        "below",
        0.0,
        _of_sizes(_largest_change, np.max),
        headline=True,
    ),
    _claim(
        "L1.size",
        "Fig. 1, abstract",
        "to 3% on average over layers: no more than twice that",
        "share of nonzeros on training batches at the end, mean over layers and sizes",
        "below",
        0.06,
        _of_sizes(lambda run: float(final(run).mean())),
        headline=True,
    ),
    _claim(
        "L1.trend",
        "none: of these runs",
        "and is falling still when they end, short as they are",
        "share of nonzeros, mean over layers and sizes: the last fifth of training less the fifth before",
        "below",
        0.0,
        _of_sizes(_still_falling),
    ),
    _claim(
        "L1.held_out",
        "Fig. 2b",
        "training and held-out text give the same share, layer by layer: within a tenth of it",
        "largest |log10 of the held-out share over that on the last training batch| over layers and sizes",
        "below",
        math.log10(1.1),
        _of_sizes(_train_against_held_out, np.max),
        headline=True,
    ),
    _claim(
        "L1.ends",
        "Fig. 2",
        "the first and the last layers are denser than those between",
        "held-out share of the first and last quarter of layers less that of the others, mean over stacks and sizes of "
        "4 layers and more",
        "above",
        0.0,
        _of_sizes(_shape, layers=4),
        headline=True,
    ),
    _claim(
        "L2.dead",
        "Fig. 3",
        "no unit is dead",
        "largest share over sizes of the first encoder layer's units that fire on no token of held-out text",
        "below",
        0.005,
        _of_sizes(lambda run: float(np.mean(firing_rates(run) == 0)), np.max),
    ),
    _claim(
        "L2.rare",
        "Fig. 3",
        "the vast majority of units, 93.5%, fires on fewer than a tenth of tokens: more than half do",
        "share of the first encoder layer's units that fire on fewer than a tenth of tokens, mean over sizes",
        "above",
        0.5,
        _of_sizes(lambda run: float(np.mean(firing_rates(run) < RARE))),
    ),
    _claim(
        "L2.seldom",
        "Fig. 3",
        "99% of the units fire on more than a hundredth of tokens: more than 95% do",
        "share of the first encoder layer's units that fire on more than a hundredth of tokens, mean over sizes",
        "above",
        0.95,
        _of_sizes(lambda run: float(np.mean(firing_rates(run) > SELDOM))),
    ),
    _claim(
        "L2.half",
        "Fig. 3",
        "few units fire on around half of the tokens: fewer than a tenth",
        "share of the first encoder layer's units that fire on more than .4 of tokens, mean over sizes",
        "below",
        0.1,
        _of_sizes(lambda run: float(np.mean(firing_rates(run) > OFTEN))),
    ),
)

T5_PREVALENCE = Study(
    name="li2022/t5_prevalence",
    title="Li et al. 2022, Figs. 1 to 3: the activations of a trained T5 are sparse",
    introduction=(
        "T5s of three sizes fill in spans of text that were taken out. Half of the hidden units of their ReLU MLPs are "
        "nonzero at the start; the paper finds 2.7% after 100,000 steps of T5-Base on C4, in every layer, on training "
        "and on held-out text alike, and no dead units. The runs here read a three-thousandth of those tokens: what "
        "can be judged is whether the share falls everywhere, and whether it is still falling."
    ),
    findings=findings,
    figures={
        "Nonzeros by step": nonzero_by_step,
        "Nonzeros by layer and size": sizes,
        "Training and held-out text": held_out,
        "Firing rates of units": units,
    },
    claims=CLAIMS,
    table=table,
)
