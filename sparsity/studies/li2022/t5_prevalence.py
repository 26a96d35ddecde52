"""Li et al. 2022, Figs. 1 to 3, T5's part: nonzeros by layer and step, on training and held-out text, and by unit."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from sparsity.studies import draw
from sparsity.studies.draw import Drawing, Runs
from sparsity.studies.judge import Claim
from sparsity.studies.li2022.runs import (
    STACKS,
    Arm,
    by_arm,
    by_depth,
    over_arms,
    shares,
    train_accuracy,
    trained_shares,
    trajectory,
)
from sparsity.studies.records import measured, named, or_none, percent, standard_error
from sparsity.studies.runner import Record, Row, Study

PAPER = {"mean": 0.027, "least": 0.011, "most": 0.12}  # T5-Base at the end of training, Fig. 1
RARE, SELDOM, OFTEN = 0.1, 0.01, 0.4  # firing rates of Fig. 3: below the first, above the second, "around 50%"


def firing_rates(run) -> np.ndarray:
    """Share of tokens on which each unit of the first encoder layer is nonzero [d_ff], on the split evaluated."""
    return np.array(run.outcome.arrays.get("firing_rates", {}).get("encoder_0", [math.nan]))


def final(run) -> np.ndarray:
    """Shares on training batches of all layers at the end."""
    return np.concatenate([trained_shares(run, stack) for stack in STACKS])


def table(records: Sequence[Record]) -> list[Row]:
    """Nonzeros of every size, means over n seeds.

    start, end: share of nonzeros on training batches, mean over layers, at step 0 and over the last records (se over
    seeds); the paper's T5-Base has 50 and 2.7%. least, most: of a layer, at the end (the paper: 1.1 and 12.0%).
    held-out: the same mean on the test split. dead, rare: units of the first encoder layer that fire on no token of the
    test split, and on fewer than a tenth of them (the paper: none, 93.5%). accuracy: of target tokens, held out; train:
    on training batches.
    """
    rows = []
    for arm, of_seed in by_arm(named(records)).items():
        runs = [r for r in of_seed.values() if r.outcome.status == "finished"]
        row = {"d_model": arm.d_model, "layers": arm.layers, "d_ff": arm.d_ff, "n": len(runs)}
        ends = [final(r).mean() for r in runs]
        mean = lambda value, runs=runs: or_none(float(np.mean([value(r) for r in runs]))) if runs else None
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
    """Fig. 1: nonzeros on training batches by layer against step (log y), of the middle size's first seed.

    Dashed: the mean of the paper's T5-Base at the end of training.
    """
    arms = by_arm(runs)
    of_seed = list(arms.values())[len(arms) // 2]
    steps, by_layer = trajectory(next(iter(of_seed.values())))
    figure, axes = draw.panels(1, 2, sharey=True)
    for axis, stack in zip(axes, STACKS, strict=True):
        layers = [name for name in by_layer if name.startswith(stack)]
        for i, name in enumerate(layers):
            axis.plot(steps, 100 * by_layer[name], color=draw.color(i, len(layers)), label=name)
        axis.axhline(100 * PAPER["mean"], color="k", ls="--", lw=0.8)
        axis.set(title=stack, xlabel="step", yscale="log", ylim=(2, 100))
        axis.set_yticks([3, 10, 30, 100], ["3", "10", "30", "100"])
        axis.legend()
    axes[0].set_ylabel("nonzero (%)")
    return draw.done(figure)


def sizes(runs: Runs) -> Drawing:
    """Figs. 2e, 2f: nonzero share of each layer on held-out text, by size (log y); dots are seeds, lines their mean."""
    return by_depth(runs, lambda arm: f"{arm.layers} layers of d_ff {arm.d_ff}", lambda arm: 1.0)


def held_out(runs: Runs) -> Drawing:
    """Fig. 2b: nonzero share of each layer on training batches (line) and on held-out text (dots), all seeds."""
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


def _all(value):
    """`value` of a run, its mean over the sizes of a seed."""

    def measure(records: Sequence[Record]):
        arms = list(by_arm(named(records)))
        return over_arms(records, arms or [Arm(0, 0, 0)], lambda *runs: float(np.mean([value(r) for r in runs])))

    return measure


def _start(run) -> float:
    return abs(float(np.mean([values[0] for values in trajectory(run)[1].values()])) - 0.5)


def _largest_change(run) -> float:
    """Over layers, of the share on training batches from the first record to the last ones."""
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


def ends_over_middle(values: np.ndarray) -> float:
    """Mean of the first and last quarter of layers less that of the others; NaN of fewer than 4 layers.

    >>> ends_over_middle(np.array([0.3, 0.1, 0.1, 0.2]))
    0.15
    """
    n = len(values) // 4
    if n == 0:
        return math.nan
    return float(np.mean([*values[:n], *values[-n:]]) - np.mean(values[n:-n]))


def _shape(run) -> float:
    return float(np.mean([ends_over_middle(shares(run, stack)) for stack in STACKS]))


def _deep_enough(value):
    """`value`, its mean over the sizes of 4 layers and more."""

    def measure(records: Sequence[Record]):
        arms = [arm for arm in by_arm(named(records)) if arm.layers >= 4]
        return over_arms(records, arms or [Arm(0, 4, 0)], lambda *runs: float(np.mean([value(r) for r in runs])))

    return measure


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
        _all(_start),
    ),
    _claim(
        "L1.falls",
        "Figs. 1, 2",
        "the share falls in every layer",
        "largest change over layers of the share of nonzeros on training batches, end less start, mean over sizes",
        "below",
        0.0,
        _all(_largest_change),
        headline=True,
    ),
    _claim(
        "L1.size",
        "Fig. 1, abstract",
        "to 3% on average over layers: no more than twice that",
        "share of nonzeros on training batches at the end, mean over layers and sizes",
        "below",
        0.06,
        _all(lambda run: float(final(run).mean())),
    ),
    _claim(
        "L1.trend",
        "Fig. 1",
        "and is falling still when these short runs end",
        "share of nonzeros, mean over layers and sizes: the last fifth of training less the fifth before",
        "below",
        0.0,
        _all(_still_falling),
    ),
    _claim(
        "L1.held_out",
        "Fig. 2b",
        "training and held-out text give the same share, layer by layer: within a tenth of it",
        "largest |log10 of held-out over training share| over layers, mean over sizes",
        "below",
        math.log10(1.1),
        _all(_train_against_held_out),
    ),
    _claim(
        "L1.ends",
        "Fig. 2",
        "the first and the last layers are denser than those between",
        "held-out share of the first and last quarter of layers less that of the others, mean over stacks and sizes of "
        "4 layers and more",
        "above",
        0.0,
        _deep_enough(_shape),
    ),
    _claim(
        "L2.dead",
        "Fig. 3",
        "no unit is dead",
        "share of the first encoder layer's units that fire on no token of the test split, mean over sizes",
        "below",
        0.005,
        _all(lambda run: float(np.mean(firing_rates(run) == 0))),
    ),
    _claim(
        "L2.rare",
        "Fig. 3",
        "the vast majority of units, 93.5%, fires on fewer than a tenth of tokens: more than half do",
        "share of the first encoder layer's units that fire on fewer than a tenth of tokens, mean over sizes",
        "above",
        0.5,
        _all(lambda run: float(np.mean(firing_rates(run) < RARE))),
    ),
    _claim(
        "L2.seldom",
        "Fig. 3",
        "99% of the units fire on more than a hundredth of tokens: more than 95% do",
        "share of the first encoder layer's units that fire on more than a hundredth of tokens, mean over sizes",
        "above",
        0.95,
        _all(lambda run: float(np.mean(firing_rates(run) > SELDOM))),
    ),
    _claim(
        "L2.half",
        "Fig. 3",
        "few units fire on around half of the tokens: fewer than a tenth",
        "share of the first encoder layer's units that fire on more than .4 of tokens, mean over sizes",
        "below",
        0.1,
        _all(lambda run: float(np.mean(firing_rates(run) > OFTEN))),
    ),
)

T5_PREVALENCE = Study(
    name="li2022/t5_prevalence",
    title="Li et al. 2022, Figs. 1 to 3: the activations of a trained T5 are sparse",
    introduction=(
        "T5s of three sizes fill in spans of text that were taken out. Half of the hidden units of their ReLU MLPs are "
        "nonzero at the start; the paper finds 2.7% after 100,000 steps of T5-Base on C4, in every layer, on training "
        "and on held-out text alike, and no dead units. The runs here are a thousandth of that: what can be judged is "
        "whether the share falls everywhere, and whether it is still falling."
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
