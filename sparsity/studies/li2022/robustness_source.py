"""Beyond Li et al. 2022: the robustness of Top-k ViTs, with sparsity held fixed and its source varied."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from sparsity.data.corruptions import CORRUPTIONS, SEVERITIES
from sparsity.studies import draw
from sparsity.studies.draw import Drawing, Runs, RunView
from sparsity.studies.judge import Claim, Effect
from sparsity.studies.li2022.vits import LEARNS, config_of
from sparsity.studies.records import Run, across, each_layer, finished, mean_over, measured, percent, standard_error
from sparsity.studies.runner import Record, Row, Study

DENSE, TOP_K, L1, NOISE, NARROW = "dense", "top_k", "l1", "noise", "narrow"
ARMS = {  # how a network was trained
    DENSE: "plain training",
    TOP_K: "training with Top-k",
    L1: "training with L1",
    NOISE: "training under noise",
    NARROW: "a narrow network",
}
KEPT, ALL = "Top-k", "all units"  # at test: Top-k, and all positive units
CLOSE = 0.01  # of clean accuracy: networks whose robustness and calibration can be compared
HELD = 0.9  # of the nonzeros of Top-k in every layer: with fewer Top-k at test holds nothing


def arm_of(run: Record | RunView) -> str:
    """How a run was trained, one of `ARMS`, read from its config."""
    config = config_of(run)
    mlp = config["model"]["mlp"]
    if config.get("penalty"):
        return L1
    if mlp.get("noise"):
        return NOISE
    if mlp["d_ff"] == min(config["evals"]["imposed_k"]):
        return NARROW
    return TOP_K if mlp["sparsifier"]["name"] == "top_k" else DENSE


def by_arm(runs: Iterable[Run]) -> dict[str, dict[int, Run]]:
    """Arm -> seed -> run, in the order of `ARMS`; arms that were not run are empty."""
    out: dict[str, dict[int, Run]] = {arm: {} for arm in ARMS}
    for run in runs:
        out[arm_of(run)][config_of(run)["seed"]] = run
    return out


def at_test(run: Record | RunView, test: str, name: str) -> float:
    """A measure with Top-k put on at test (`KEPT`), or with all positive units (`ALL`), whatever training had."""
    return measured(run, f"{_imposed(run, test)}.{name}")


def _imposed(run: Record | RunView, test: str) -> str:
    """How measures at test begin."""
    ks = config_of(run)["evals"]["imposed_k"]
    return f"imposed.{min(ks) if test == KEPT else max(ks)}"


def retained(run: Record | RunView, test: str, name: str = "mean") -> float:
    """Accuracy under corruption ("mean", or "gaussian", or "gaussian.5") over clean accuracy."""
    clean = at_test(run, test, "accuracy")
    return at_test(run, test, f"robustness.{name}") / clean if clean > 0 else float("nan")


Value = Callable[[Run, str], float]
VALUES: dict[str, Value] = {
    "accuracy": lambda run, test: at_test(run, test, "accuracy"),
    "corrupted": lambda run, test: at_test(run, test, "robustness.mean"),
    "retained": retained,
    "ece": lambda run, test: at_test(run, test, "ece"),
}


def cells(runs: Iterable[Run]) -> dict[tuple[str, str], list[Run]]:
    """(arm, test) -> the runs that did not diverge; the narrow network has the same units either way."""
    arms = {arm: finished(of_seed) for arm, of_seed in by_arm(runs).items() if of_seed}
    return {(arm, test): some for arm, some in arms.items() for test in (KEPT, ALL) if (arm, test) != (NARROW, ALL)}


def table(records: Sequence[Record]) -> list[Row]:
    """Every training, with Top-k and with all positive units at test; means over n seeds (se: of the column before).

    nonzero: share on test images, mean over layers, and units: as many of each. accuracy: on clean test images;
    corrupted: under three noises, mean over five severities; retained: corrupted over accuracy; then of each noise, and
    of all at severity 1 and 5. ece: calibration error in 15 equal bins. A narrow network has as many units as Top-k
    keeps, the same for every image, of which few are nonzero; its MLPs have a twelfth of the parameters.
    """
    rows = []
    for (arm, test), runs in cells(records).items():
        row: dict[str, Any] = {"training": ARMS[arm], "at test": test, "n": len(runs)}
        row["nonzero"] = mean_over(runs, functools.partial(at_test, test=test, name="nonzero.mean"))
        row["units"] = mean_over(
            runs,
            lambda run, test=test: at_test(run, test, "nonzero.mean") * config_of(run)["model"]["mlp"]["d_ff"],
        )
        for name, value in VALUES.items():
            found = [value(run, test) for run in runs]
            row[name] = mean_over(runs, functools.partial(value, test=test))
            row[f"se of {name}"] = None if row[name] is None else standard_error(found)
        for name in CORRUPTIONS:
            row[f"retained, {name}"] = mean_over(runs, functools.partial(retained, test=test, name=name))
        for severity in (SEVERITIES[0], SEVERITIES[-1]):
            row[f"retained, severity {severity}"] = mean_over(
                runs,
                lambda run, test=test, s=severity: np.mean([retained(run, test, f"{c}.{s}") for c in CORRUPTIONS]),
            )
        rows.append(row)
    return rows


def series(records: Sequence[Record]) -> list[Row]:
    """Accuracy under every noise at every severity, and what it is of clean accuracy; means over seeds."""
    return [
        {
            "training": ARMS[arm],
            "at test": test,
            "corruption": name,
            "severity": severity,
            "accuracy": mean_over(runs, functools.partial(at_test, test=test, name=f"robustness.{name}.{severity}")),
            "retained": mean_over(runs, functools.partial(retained, test=test, name=f"{name}.{severity}")),
        }
        for (arm, test), runs in cells(records).items()
        for name in CORRUPTIONS
        for severity in SEVERITIES
    ]


def sources(runs: Runs) -> Drawing:
    """Accuracy under corruption, the share of clean accuracy that it is, and calibration error, by training.

    Full: with Top-k at test, the same k for all; open: with all positive units. Bars are standard errors over seeds,
    dots are seeds.
    """
    figure, axes = draw.panels(1, 3, height=3.4)
    found = cells(runs.values())
    shown = {"corrupted": "accuracy, corrupted (%)", "retained": "of clean accuracy (%)", "ece": "ECE (%)"}
    for axis, (name, what) in zip(axes, shown.items(), strict=True):
        for (arm, test), views in found.items():
            values = [100 * VALUES[name](view, test) for view in views]
            if not values:
                continue
            place = list(ARMS).index(arm) + (-0.15 if test == KEPT else 0.15)
            style = {"color": "C3" if test == KEPT else "C0", "mfc": "C3" if test == KEPT else "w"}
            axis.plot([place] * len(values), values, ".", color="C7", ms=3)
            label = f"{test} at test" if arm == DENSE else None
            axis.errorbar(place, np.mean(values), standard_error(values) or 0, fmt="o", ms=6, label=label, **style)
        axis.set_xticks(range(len(ARMS)), ["plain", "Top-k", "L1", "noise", "narrow"])
        axis.set(ylabel=what, xlabel="training")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return draw.done(figure)


def by_severity(runs: Runs) -> Drawing:
    """Share of clean accuracy left under each noise by severity, means over seeds; dashed: all units at test."""
    figure, axes = draw.panels(1, len(CORRUPTIONS), height=3.2, sharey=True)
    for axis, name in zip(axes, CORRUPTIONS, strict=True):
        for (arm, test), views in cells(runs.values()).items():
            if not views:
                continue
            values = [[retained(view, test, f"{name}.{s}") for s in SEVERITIES] for view in views]
            style, label = ("-", ARMS[arm]) if test == KEPT else ("--", None)
            color = f"C{list(ARMS).index(arm)}"
            axis.plot(SEVERITIES, 100 * np.mean(values, 0), style, color=color, label=label)
        axis.set(title=name, xlabel="severity")
    axes[0].set_ylabel("of clean accuracy (%)")
    draw.legend_beside(axes[0])
    return draw.done(figure)


def findings(records: Sequence[Record]) -> list[str]:
    """Every cell, then how Top-k's gain divides between test and training and how the two depend on one another."""
    out = []
    for row in table(records):
        units = "" if row["units"] is None else f" ({row['units']:.0f} units)"
        out.append(
            f"{row['training']}, {row['at test']} at test: {percent(row['nonzero'])} nonzero{units}, accuracy "
            f"{percent(row['accuracy'])}, under corruption {percent(row['corrupted'])}, that is "
            f"{percent(row['retained'])} of it, calibration error {percent(row['ece'])}."
        )
    arms = by_arm(records)
    for name, words in (("corrupted", "accuracy under corruption"), ("ece", "calibration error")):
        parts = (_test, _training, _interplay)
        found = [across(_pair(arms), functools.partial(part, VALUES[name])).value for part in parts]
        if all(part is not None and np.isfinite(part) for part in found):
            test, training, both = (round(100 * part, 2) + 0.0 for part in found)  # no -0.00
            out.append(
                f"Of Top-k's {100 * (found[0] + found[1]):+.2f} points of {words} Top-k at test is {test:+.2f}, "
                f"training with it {training:+.2f}; either is {both:+.2f} more with the other, as much less without."
            )
    return out


def _pair(arms: Mapping[str, Mapping[int, Record]]) -> dict[str, Mapping[int, Record]]:
    return {ARMS[arm]: arms[arm] for arm in (DENSE, TOP_K)}


def _test(value: Value, dense: Record, top_k: Record) -> float:
    """What Top-k at test adds, mean over the two trainings."""
    return sum(value(run, KEPT) - value(run, ALL) for run in (dense, top_k)) / 2


def _training(value: Value, dense: Record, top_k: Record) -> float:
    """What training with Top-k adds, mean over the two ways to test; with `_test` it is all of Top-k's gain."""
    return sum(value(top_k, test) - value(dense, test) for test in (KEPT, ALL)) / 2


def _interplay(value: Value, dense: Record, top_k: Record) -> float:
    """Half of what Top-k at test adds more after training with it than after plain training."""
    with_it, without = (value(run, KEPT) - value(run, ALL) for run in (top_k, dense))
    return (with_it - without) / 2


def _more(value: Value, dense: Record, top_k: Record) -> float:
    return _training(value, dense, top_k) - _test(value, dense, top_k)


def _past_half(value: Value, top_k: Record, dense: Record, *own: Record) -> float:
    """A network (the plain one if there is no `own`) with Top-k at test, less the middle of Top-k's gain."""
    return value((dense, *own)[-1], KEPT) - (value(top_k, KEPT) + value(dense, ALL)) / 2


def _mean(of_seed: Mapping[int, Record], value: Value, test: str) -> float:
    return float(np.mean([value(run, test) for run in finished(of_seed)]))


def _incomparable(arms: Mapping[str, Mapping[int, Record]], wanted: Iterable[tuple[str, str]], name: str) -> str | None:
    """Why `name` of these networks at test cannot be compared; None if it can.

    The plain network must have learnt, and all must be as accurate as one another on clean images, to `CLOSE`: only
    there do a share of that accuracy and a calibration error mean the same. And there must be a gain to explain: the
    95% interval, by seed, of Top-k in training and at test less plain training lies wholly on the good side.
    """
    wanted, value = [(DENSE, ALL), (TOP_K, KEPT), *wanted], VALUES[name]
    missing = dict.fromkeys(ARMS[arm] for arm, _ in wanted if not finished(arms[arm]))
    if missing:
        return f"no run of {', '.join(missing)} finished"
    clean = {cell: _mean(arms[cell[0]], VALUES["accuracy"], cell[1]) for cell in wanted}
    if not clean[DENSE, ALL] >= LEARNS:
        return f"{ARMS[DENSE]}: has not learnt, its test accuracy is below {LEARNS:g}"
    if not np.ptp(list(clean.values())) <= CLOSE:
        each = ", ".join(f"{x:.3f} of {ARMS[arm]} with {test}" for (arm, test), x in clean.items())
        return f"clean accuracies are more than {CLOSE:g} apart: {each}"
    gain = across(_pair(arms), lambda dense, top_k: _better(name) * (value(top_k, KEPT) - value(dense, ALL))).interval()
    if gain is None or gain[0] <= 0:  # NaN, of a seed that diverged, leaves it undecided
        return "Top-k, in training and at test, is not better than plain training beyond chance: nothing to explain"
    return None


def _factor(name: str, part: Callable[..., float]) -> Callable[..., Effect]:
    """A part of Top-k's gain, by seed. Not testable where the four networks are `_incomparable`."""

    def measure(records: Sequence[Record]) -> Effect:
        arms = by_arm(records)
        four = [(arm, test) for arm in (DENSE, TOP_K) for test in (KEPT, ALL)]
        if (why := _incomparable(arms, four, name)) is not None:
            return Effect.untestable(why)
        return across(_pair(arms), functools.partial(part, VALUES[name]))

    return measure


def _better(name: str) -> int:
    """1 if more is better, -1 if less is."""
    return -1 if name == "ece" else 1


def _beside(arm: str, name: str) -> Callable[..., Effect]:
    """An arm with Top-k at test less the middle between the plain network and Top-k's, by seed.

    Not testable where they are `_incomparable`, or where sparsity is not the same: in a layer the arm, if it is not
    narrow, has fewer nonzeros by itself.
    """

    def measure(records: Sequence[Record]) -> Effect:
        arms = by_arm(records)
        if (why := _incomparable(arms, [(arm, KEPT)], name)) is not None:
            return Effect.untestable(why)
        layers = lambda run: each_layer(run, f"{_imposed(run, KEPT)}.nonzero.")
        own, top = (np.mean([layers(run) for run in finished(arms[of])], axis=0) for of in (arm, TOP_K))
        if arm != NARROW and not (own >= HELD * top).all():
            each = ", ".join(f"{x:.3f}" for x in own)
            return Effect.untestable(f"{ARMS[arm]} leaves {each} nonzero by layer, where Top-k at test holds nothing")
        groups = {ARMS[of]: arms[of] for of in (TOP_K, DENSE, arm)}
        return across(groups, functools.partial(_past_half, VALUES[name]))

    return measure


def _claim(id: str, statement: str, effect: str, better: int, measure: Callable[..., Effect]) -> Claim:
    side = "above" if better > 0 else "below"
    return Claim(f"source.{id}", "beyond the paper", statement, effect, "seed", side, 0.0, measure)


_WHAT = {
    "corrupted": "accuracy under corruption, mean over three noises and five severities",
    "retained": "accuracy under corruption over clean accuracy",
    "ece": "expected calibration error",
}


def _of_factors(name: str) -> tuple[Claim, ...]:
    what, better = _WHAT[name], _better(name)
    gain = "calibration" if name == "ece" else "robustness"
    return (
        _claim(
            f"test.{name}",
            f"Top-k's {gain} goes with Top-k at test",
            f"{what}, Top-k at test less all units, mean over plain training and training with Top-k",
            better,
            _factor(name, _test),
        ),
        _claim(
            f"training.{name}",
            f"Top-k's {gain} goes with training under Top-k",
            f"{what}, training with Top-k less plain training, mean over Top-k and all units at test",
            better,
            _factor(name, _training),
        ),
        _claim(
            f"more.{name}",
            "and more with training than with test",
            f"{what}, what training adds less what test adds",
            better,
            _factor(name, _more),
        ),
    )


def _of_sources(name: str) -> tuple[Claim, ...]:
    what, better = _WHAT[name], _better(name)
    effect = f"{what}, of {{}} with Top-k at test less the middle of plain training and of training with Top-k"
    gain = "calibration" if name == "ece" else "robustness"
    return (
        *(
            _claim(
                f"{arm}.{name}",
                f"as sparse at test, {ARMS[arm]} has more than half of Top-k's gain in {gain}",
                effect.format(ARMS[arm]),
                better,
                _beside(arm, name),
            )
            for arm in (DENSE, L1, NOISE)
        ),
        _claim(
            f"{NARROW}.{name}",
            f"few units alone do not: {ARMS[NARROW]}, of a twelfth of the MLPs' parameters and fewer nonzeros yet, has "
            f"less than half of Top-k's gain in {gain}",
            effect.format(ARMS[NARROW]),
            -better,
            _beside(NARROW, name),
        ),
    )


CLAIMS = (
    *(claim for name in ("corrupted", "retained", "ece") for claim in _of_factors(name)),
    *(claim for name in ("retained", "ece") for claim in _of_sources(name)),
)

ROBUSTNESS_SOURCE = Study(
    name="li2022/robustness_source",
    title="Beyond Li et al. 2022: does sparsity cause the robustness, or go with it?",
    introduction=(
        "Top-k ViTs are sparser than dense ones, and the paper finds them more robust and better calibrated. Here "
        "networks trained plainly, with Top-k, with L1 and under noise are all tested with the same Top-k, and with "
        "all their positive units; a network with as few units as Top-k keeps, of which fewer yet are nonzero, stands "
        "beside them. If sparsity is the cause, all that are as sparse are as robust. What Top-k gains divides exactly "
        "into what it does at test and what it does to the weights in training, each a mean over the other; how much "
        "they depend on one another is said beside. Embedded scale alone."
    ),
    findings=findings,
    figures={"Source of sparsity": sources, "By severity": by_severity},
    claims=CLAIMS,
    table=table,
    series=series,
)
