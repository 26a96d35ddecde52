"""Li et al. 2022, Figs. B.5, B.6: nonzeros of a T5 one of whose MLPs has no connection around it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from sparsity.studies import draw
from sparsity.studies.draw import Drawing, Runs
from sparsity.studies.judge import Claim, Effect
from sparsity.studies.li2022.runs import STACKS, Arm, by_arm, over_arms, train_accuracy, trajectory
from sparsity.studies.records import decades, measured, named, or_none, percent
from sparsity.studies.runner import Record, Row, Study

_SETTLED = 0.1  # share of the records at the start that do not count: all networks start at one half


def with_and_without(runs) -> tuple[Arm, Arm] | None:
    """The arm with all connections and the one without that of a layer; None if one of them was not run."""
    arms = by_arm(runs)
    return next(((a._replace(without=None), a) for a in arms if a.without and a._replace(without=None) in arms), None)


def changes(one: Record, other: Record) -> dict[str, float]:
    """By layer: root mean square over recorded steps of log10 of the share of nonzeros, `other` over `one`."""
    (_, a), (_, b) = trajectory(one), trajectory(other)
    start = math.ceil(_SETTLED * len(next(iter(a.values()), ())))
    ratio = lambda name: [decades(y, x) for x, y in zip(a[name][start:], b[name][start:], strict=True)]
    return {name: float(np.sqrt(np.mean(np.square(ratio(name))))) for name in a}


def table(records: Sequence[Record]) -> list[Row]:
    """Every layer with all connections and without one, means over n seeds.

    with, without: share of nonzeros on held-out text at the end. change: root mean square over the recorded steps of
    log10 of the share on training batches, without over with. The last two rows are the accuracies of target tokens,
    held out and on training batches; "of" says what a row is of.
    """
    runs = named(records)
    arms = with_and_without(runs)
    if arms is None:
        return []
    pairs = _finished(runs, arms)
    changed = [changes(*pair) for pair in pairs]
    mean = lambda value: or_none(float(np.mean([value(*p) for p in pairs]))) if pairs else None
    layers = [f"{stack}_{i}" for stack in STACKS for i in range(arms[0].layers)]
    rows = []
    for name in layers:
        row = {"of": name, "n": len(pairs), "removed": name == arms[1].without}
        row["with"] = mean(lambda a, b, name=name: measured(a, f"nonzero.{name}"))
        row["without"] = mean(lambda a, b, name=name: measured(b, f"nonzero.{name}"))
        row["change"] = or_none(float(np.mean([c[name] for c in changed]))) if pairs else None
        rows.append(row)
    for of, value in (("held-out accuracy", lambda r: measured(r, "accuracy")), ("training accuracy", train_accuracy)):
        row = {"of": of, "n": len(pairs), "removed": None}
        row["with"] = mean(lambda a, b, value=value: value(a))
        row["without"], row["change"] = mean(lambda a, b, value=value: value(b)), None
        rows.append(row)
    return rows


def _finished(runs, arms: tuple[Arm, Arm]) -> list[tuple[Record, Record]]:
    table = by_arm(runs)
    pairs = [(run, table[arms[1]][seed]) for seed, run in table[arms[0]].items() if seed in table[arms[1]]]
    return [pair for pair in pairs if all(r.outcome.status == "finished" for r in pair)]


def layers_by_step(runs: Runs) -> Drawing:
    """Figs. B.5, B.6: nonzeros on training batches of each layer against step, with all connections and without one.

    First seed of which both have finished (empty if there is none), log y; the layer without it is named in bold.
    """
    arms = with_and_without(runs)
    pairs = _finished(runs, arms) if arms else []
    if not pairs:
        return draw.done(draw.panels(1, 1)[0])
    (steps, a), (other_steps, b) = map(trajectory, pairs[0])
    columns = min(arms[0].layers, 4)
    names = [f"{stack}_{i}" for stack in STACKS for i in range(arms[0].layers)]
    figure, axes = draw.panels(-(-len(names) // columns), columns, height=1.6, sharex=True, sharey=True)
    for axis, name in zip(np.ravel(axes), names, strict=False):
        axis.plot(steps, 100 * a[name], color="C0", label="with")
        axis.plot(other_steps, 100 * b[name], color="C3", label="without")
        axis.set_title(name, fontweight="bold" if name == arms[1].without else None)
        draw.log_y(axis)
    for axis in np.ravel(axes)[len(names) :]:
        axis.set_visible(False)
    np.ravel(axes)[0].legend()
    figure.supxlabel("step")
    figure.supylabel("nonzero (%)")
    return draw.done(figure)


def findings(records: Sequence[Record]) -> list[str]:
    """The layer without its connection, the others and the accuracy, in sentences."""
    rows = table(records)
    if not rows:
        return ["No pair of runs with and without a connection."]
    layers = [row for row in rows if row["removed"] is not None]
    (removed,) = [row for row in layers if row["removed"]]
    others = [row["change"] for row in layers if not row["removed"] and row["change"] is not None]
    accuracy = next(row for row in rows if row["of"] == "held-out accuracy")
    if removed["change"] is None or not others:
        return ["No pair of runs has finished."]
    return [
        f"Without the connection around {removed['of']} it ends with {percent(removed['without'])} nonzero instead of "
        f"{percent(removed['with'])}; its share is off by {removed['change']:.2f} decades in training, the others' by "
        f"{np.mean(others):.2f} (at most {max(others):.2f}).",
        f"Held-out accuracy {percent(accuracy['without'])} instead of {percent(accuracy['with'])} (paper: 1.6% less).",
    ]


def _between(value: Callable[[Record, Record, str], float]) -> Callable[..., Effect]:
    """`value` of the runs with and without, and of the layer's name, by seed."""

    def measure(records: Sequence[Record]) -> Effect:
        arms = with_and_without(named(records))
        if arms is None:
            return Effect.untestable("no pair of runs with and without a connection")
        return over_arms(records, arms, lambda a, b: value(a, b, arms[1].without))

    return measure


def _own_over_largest(a: Record, b: Record, layer: str) -> float:
    found = changes(a, b)
    return decades(found[layer], float(np.max([v for name, v in found.items() if name != layer])))


def _others_over_own(a: Record, b: Record, layer: str) -> float:
    found = changes(a, b)
    return float(np.mean([v for name, v in found.items() if name != layer])) / found[layer]


CLAIMS = (
    Claim(
        "L15.most",
        "Fig. B.5",
        "the layer that loses the connection around its MLP changes most",
        "log10 of its change (root mean square over steps of log10 of its share, without over with) over the largest "
        "change of another layer",
        "seed",
        "above",
        0.0,
        _between(_own_over_largest),
    ),
    Claim(
        "L15.others",
        "Figs. B.5, B.6",
        "the others change much less: less than half as much on average",
        "mean change of the other layers over that layer's",
        "seed",
        "below",
        0.5,
        _between(_others_over_own),
    ),
    Claim(
        "L15.accuracy",
        "App. B.1",
        "it costs accuracy, 1.6% of the tokens",
        "held-out accuracy without the connection less that with it",
        "seed",
        "below",
        0.0,
        _between(lambda a, b, layer: measured(b, "accuracy") - measured(a, "accuracy")),
    ),
)

T5_NO_SKIP = Study(
    name="li2022/t5_no_skip",
    title="Li et al. 2022, Figs. B.5 and B.6: a layer without the connection around its MLP",
    introduction=(
        "Two T5s are trained alike, one of them without the residual connection around the MLP of one encoder layer. "
        "The paper finds that the share of nonzeros takes another course in that layer, that it changes much less in "
        "the others, and that 1.6% fewer tokens are predicted."
    ),
    findings=findings,
    figures={"Nonzeros by layer and step": layers_by_step},
    claims=CLAIMS,
    table=table,
)
