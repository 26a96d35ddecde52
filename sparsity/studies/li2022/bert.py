"""Li et al. 2022, Fig. B.1: nonzeros of a ReLU BERT by layer and step, and how its pre-activations shift."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from sparsity.studies import draw
from sparsity.studies.draw import Drawing, Runs
from sparsity.studies.judge import Claim, Effect
from sparsity.studies.li2022.runs import shares, train_accuracy, trajectory
from sparsity.studies.records import (
    Run,
    across,
    finished,
    grid_by,
    measured,
    named,
    or_none,
    percent,
    records_of,
    standard_error,
)
from sparsity.studies.runner import Record, Row, Study

PAPER = 0.1  # share of nonzeros that every layer of BERT-Base and of BERT-Large stays below
LEARNS = 0.3  # of held-out tokens: a space for each masked byte and a copy of the others are .25 of them
_NAME = re.compile(r"(.+)_seed(\d+)$")


def network_and_seed(name: str) -> tuple[str, int]:
    """The network and the seed of a run called "bert_text_seed0".

    >>> network_and_seed("bert_text_seed2")
    ('bert_text', 2)
    """
    network, seed = _NAME.search(name).groups()
    return network, int(seed)


def pre_activation_means(run: Run) -> np.ndarray:
    """Mean pre-activation over units and tokens of training batches [records, layers]."""
    lines = records_of(run, "sparsity")
    return np.array([[layer["mean"] for layer in line["layers"].values()] for line in lines] or [[math.nan]])


def trained(run: Run) -> np.ndarray:
    """Share of nonzeros on training batches [records, layers]."""
    _, by_layer = trajectory(run)
    return np.array(list(by_layer.values())).T if by_layer else np.full((1, 1), math.nan)


def table(records: Sequence[Record]) -> list[Row]:
    """Every layer, means over n seeds.

    start, end: share of nonzeros on the training batch of the first and of the last step (se of the latter over seeds);
    the paper's ends are below 10%. held-out: on held-out text at the end. z start, z end: mean pre-activation on these
    training batches, over units and tokens. accuracy: of the network, held-out tokens that were
    selected; train: on training batches.
    """
    rows = []
    for (network,), of_seed in grid_by(network_and_seed, named(records)).items():
        runs = finished(of_seed)
        for layer in range(trained(runs[0]).shape[1]) if runs else ():
            mean = lambda value, layer=layer, runs=runs: float(np.mean([value(r)[layer] for r in runs]))
            row = {"network": network, "layer": layer, "n": len(runs)}
            row |= {"start": mean(lambda r: trained(r)[0]), "end": mean(lambda r: trained(r)[-1])}
            row["se"] = standard_error([float(trained(r)[-1, layer]) for r in runs])
            row["held-out"] = or_none(mean(lambda r: shares(r, "block")))
            row["z start"] = mean(lambda r: pre_activation_means(r)[0])
            row["z end"] = mean(lambda r: pre_activation_means(r)[-1])
            row["accuracy"] = float(np.mean([measured(r, "accuracy") for r in runs]))
            row["train"] = float(np.mean([train_accuracy(r) for r in runs]))
            rows.append(row)
    return rows


def _first(runs: Runs) -> Runs:
    """The first seed's run of every network."""
    return {network: next(iter(of_seed.values())) for (network,), of_seed in grid_by(network_and_seed, runs).items()}


def nonzero_by_step(runs: Runs) -> Drawing:
    """Figs. B.1a, b: nonzeros on training batches by layer against step (log y), first seed. Dashed: 10%."""
    return _courses(runs, lambda view: 100 * trained(view), "nonzero (%)", 100 * PAPER, log=True)


def means_by_step(runs: Runs) -> Drawing:
    """Mean pre-activation on training batches by layer against step, first seed. Dashed: 0."""
    return _courses(runs, pre_activation_means, "mean pre-activation", 0.0)


def _courses(runs: Runs, value: Callable, what: str, dashed: float, log: bool = False) -> Drawing:
    views = _first(runs)
    figure, axes = draw.panels(1, len(views), sharey=True)
    for axis, (network, view) in zip(axes, views.items(), strict=True):
        steps, by_layer = trajectory(view)
        for i, (name, values) in enumerate(zip(by_layer, value(view).T, strict=True)):
            axis.plot(steps, values, color=draw.color(i, len(by_layer)), label=name)
        axis.axhline(dashed, color="k", ls="--", lw=0.8)
        axis.set(title=network, xlabel="step")
        if log:
            draw.log_y(axis)
    axes[0].set_ylabel(what)
    axes[0].legend()
    return draw.done(figure)


def histograms(runs: Runs) -> Drawing:
    """Figs. B.1c, d: pre-activations of each layer on the first and on the last recorded batch, first seed."""
    return draw.pre_activations(_first(runs))


def findings(records: Sequence[Record]) -> list[str]:
    """Every layer in a sentence."""
    return [
        f"{row['network']}, layer {row['layer']}: nonzero {percent(row['start'])} at the start, {percent(row['end'])} "
        f"at the end (the paper: below 10%), {percent(row['held-out'])} on held-out text; mean pre-activation "
        f"{row['z start']:+.2f} at the start, {row['z end']:+.2f} at the end."
        for row in table(records)
    ]


def _of_networks(value: Callable[[Record], float]) -> Callable[..., Effect]:
    """The largest `value` of a seed's networks. Not testable where they learnt nothing, by their mean accuracy."""

    def measure(records: Sequence[Record]) -> Effect:
        networks: Mapping = grid_by(network_and_seed, named(records))
        learnt = [measured(r, "accuracy") for of_seed in networks.values() for r in of_seed.values()]
        if learnt and np.mean(learnt) < LEARNS:
            return Effect.untestable(f"the networks predict only {np.mean(learnt):.2f} of the held-out tokens")
        groups = {network: of_seed for (network,), of_seed in networks.items()}
        return across(groups, lambda *runs: float(np.max([value(r) for r in runs])))

    return measure


def _largest_change(of: Callable[[Record], np.ndarray]) -> Callable[[Record], float]:
    """Over layers, from the first record to the last."""
    return lambda run: float((of(run)[-1] - of(run)[0]).max())


def _still_falling(run: Record) -> float:
    """Share of nonzeros, mean over layers: the last fifth of the records less the fifth before."""
    mean = trained(run).mean(1)
    fifth = max(len(mean) // 5, 1)
    return float(mean[-fifth:].mean() - mean[-2 * fifth : -fifth].mean())


def _claim(id: str, where: str, statement: str, effect: str, threshold: float, measure: Callable) -> Claim:
    return Claim(id, where, statement, effect, "seed", "below", threshold, measure)


CLAIMS = (
    _claim(
        "L12.falls",
        "Fig. B.1a, b",
        "the share of nonzeros falls in every layer",
        "largest change over layers of the share of nonzeros on training batches, end less start",
        0.0,
        _of_networks(_largest_change(trained)),
    ),
    _claim(
        "L12.size",
        "Fig. B.1a, b",
        "to less than 10% in every layer",
        "largest share over layers of nonzeros on the last training batch",
        PAPER,
        _of_networks(lambda run: float(trained(run)[-1].max())),
    ),
    _claim(
        "L12.trend",
        "none: of these runs",
        "and is falling still when they end, short as they are",
        "share of nonzeros, mean over layers: the last fifth of training less the fifth before",
        0.0,
        _of_networks(_still_falling),
    ),
    _claim(
        "L12.start",
        "Fig. B.1c, d",
        "pre-activations have mean 0 at the start",
        "largest |mean pre-activation| over layers on the first training batch",
        0.05,
        _of_networks(lambda run: float(np.abs(pre_activation_means(run)[0]).max())),
    ),
    _claim(
        "L12.shift",
        "Fig. B.1c, d",
        "and their mean becomes negative in every layer",
        "largest mean pre-activation over layers on the last training batch",
        0.0,
        _of_networks(lambda run: float(pre_activation_means(run)[-1].max())),
    ),
    _claim(
        "L12.shift_falls",
        "Fig. B.1c, d",
        "at least it falls in every layer",
        "largest change over layers of the mean pre-activation on training batches, end less start",
        0.0,
        _of_networks(_largest_change(pre_activation_means)),
    ),
)

BERT = Study(
    name="li2022/bert",
    title="Li et al. 2022, Fig. B.1: a BERT is sparse, and its pre-activations shift below 0",
    introduction=(
        "A BERT with ReLU in its MLPs says which tokens of a text were masked. The paper finds that every layer of "
        "BERT-Base and BERT-Large ends with less than 10% of its units nonzero, and that the mean of the "
        "pre-activations, 0 at the start, soon becomes negative. How far a small and short run comes is judged apart "
        "from the direction."
    ),
    findings=findings,
    figures={"Nonzeros by step": nonzero_by_step, "Pre-activations": histograms, "Their mean by step": means_by_step},
    claims=CLAIMS,
    table=table,
)
