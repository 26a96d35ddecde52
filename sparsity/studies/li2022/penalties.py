"""Li et al. 2022, Tables C.1 and C.2: ViTs with an L1 or L2 penalty on their activations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from sparsity.data.corruptions import CORRUPTIONS
from sparsity.studies import draw
from sparsity.studies.draw import Drawing, Runs
from sparsity.studies.judge import Claim, Effect
from sparsity.studies.li2022.penalty_weights import Point, grid, of_plain, plain_arm, point, printed, weight_at
from sparsity.studies.li2022.runs import train_accuracy
from sparsity.studies.li2022.vits import Arm, by_arm, over_arms
from sparsity.studies.records import Run, finished, mean_over, measured, or_none, standard_error
from sparsity.studies.runner import Record, Row, Study

KINDS = ("l1", "l2")
SAME = 0.01  # of accuracy
# Columns of the table: those of a run's measures that the paper prints.
MEASURES = {"accuracy": "accuracy", **{name: f"robustness.{name}" for name in CORRUPTIONS}, "ece": "ece"}


def _row(penalty: str | None, weight: float | None, arm: Arm, noise: float, papers: float | None = None) -> Row:
    return {
        "penalty": penalty,
        "weight": weight,
        "of the mean": None if weight is None else weight * arm.d_ff,
        "weight, paper": papers,
        "noise": noise,
    }


def table(records: Sequence[Record]) -> list[Row]:
    """Every weight that was run, then every weight of the paper's at its density; means over n seeds.

    weight: of the sum over units and layers; of the mean: the same of the mean over units, summed over layers. weight,
    paper: what the paper prints, in a row whose weight is the one that gives its density, by interpolation; the row's
    values are interpolated too, linear in log weight. noise: share of the training labels drawn anew. nonzero: share of
    nonzeros on test images, mean over layers; of plain: over that of the network without a penalty. accuracy (se: over
    seeds) and ece: on clean test images; gaussian, impulse, shot: under corruption, mean over severities. train:
    accuracy on training batches. The paper's values are of ImageNet-1k.
    """
    arms, rows, plain, paper = by_arm(records), [], plain_arm(records), printed()
    if plain is None:
        return []
    ratios = {penalty: of_plain(records, penalty) for penalty in KINDS}
    for arm, of_seed in arms.items():
        runs, clean = finished(of_seed), arm.noise == 0
        theirs = paper["", 0.0] if arm == plain else {}
        ratio = ratios.get(arm.penalty, {}).get(arm.weight) if clean else None
        row = _row(arm.penalty, arm.weight if arm.penalty else None, arm, arm.noise) | {"n": len(runs)}
        values = {
            name: mean_over(runs, _of(measure)) for name, measure in {"nonzero": "nonzero.mean", **MEASURES}.items()
        }
        values["se"] = standard_error([measured(r, "accuracy") for r in runs])
        values["train"] = mean_over(runs, train_accuracy)
        rows.append(row | _values(values, theirs, None if ratio is None else or_none(ratio)))
    for (penalty, weight), theirs in paper.items():
        if (here := point(records, penalty, theirs["of plain"])) is None:
            continue
        ends = [finished(arms[here.low]), finished(arms[here.high])]
        at = {name: [mean_over(runs, _of(MEASURES[name])) for runs in ends] for name in MEASURES}
        values = {name: None if None in means else here.between(*means) for name, means in at.items()}
        values["nonzero"] = theirs["of plain"] * mean_over(finished(arms[plain]), _of("nonzero.mean"))
        row = _row(penalty, here.weight, plain, 0.0, weight) | {"n": min(map(len, ends))}
        rows.append(row | _values(values, theirs, theirs["of plain"]))
    return rows


def _of(measure: str) -> Callable[[Run], float]:
    return lambda run: measured(run, measure)


def _values(values: Mapping[str, float | None], theirs: Mapping[str, float], ratio: float | None) -> Row:
    """The columns of one row, the paper's before ours."""
    row = {"nonzero": values["nonzero"], "of plain": ratio}
    for name in MEASURES:
        row |= {f"{name}, paper": theirs.get(name), name: values[name]}
        row |= {"se": values.get("se")} if name == "accuracy" else {}
    return row | {"train": values.get("train")}


def density_by_weight(runs: Runs) -> Drawing:
    """Share of nonzeros on test images over the plain network's, by weight (of the sum over units), means over seeds.

    Dashed: the paper's, with its three weights; dotted: our weights that give them.
    """
    figure, axes = draw.panels(1, 2, sharey=True)
    for axis, penalty in zip(axes, KINDS, strict=True):
        ratios = of_plain(runs.values(), penalty)
        axis.plot(list(ratios), list(ratios.values()), "o-", color="C0", ms=4)
        for (name, _), theirs in printed().items():
            if name == penalty:
                axis.axhline(theirs["of plain"], color="k", ls="--", lw=0.8)
                if (found := weight_at(ratios, theirs["of plain"])) is not None:
                    axis.axvline(found, color="k", ls=":", lw=0.8)
        axis.set(title=penalty.upper(), xscale="log", xlabel="weight")
        draw.log_y(axis)
    axes[0].set_ylabel("nonzeros, of the plain network's")
    return draw.done(figure)


def gains_by_density(runs: Runs) -> Drawing:
    """Accuracy, clean and under noise (three kinds, five severities), and ECE less the plain network's, by density.

    Dots are means over seeds, bars their standard errors, crosses the paper's (ImageNet-1k).
    """
    figure, axes = draw.panels(1, 3)
    arms, plain, paper = by_arm(runs.values()), plain_arm(runs.values()), printed()
    corrupted = lambda row: float(np.mean([row[name] for name in CORRUPTIONS]))
    shown = {
        "accuracy": ("accuracy", lambda row: row["accuracy"]),
        "accuracy under noise": ("robustness.mean", corrupted),
        "ECE": ("ece", lambda row: row["ece"]),
    }
    for axis, (title, (measure, theirs)) in zip(axes, shown.items(), strict=True):
        for color, penalty in zip(("C0", "C3"), KINDS, strict=True):
            ratios, by_weight = of_plain(runs.values(), penalty), grid(runs.values(), penalty)
            gaps = {w: _gaps(arms[arm], arms[plain], measure) for w, arm in by_weight.items() if plain is not None}
            gaps = {w: 100 * g for w, g in gaps.items() if len(g)}
            errors = [standard_error(list(g)) or 0.0 for g in gaps.values()]
            at = [ratios[w] for w in gaps]
            means = [float(g.mean()) for g in gaps.values()]
            axis.errorbar(at, means, errors, fmt="o-", color=color, ms=4, label=penalty.upper())
            rows = [row for (name, _), row in paper.items() if name == penalty]
            lost = [100 * (theirs(row) - theirs(paper["", 0.0])) for row in rows]
            axis.plot([row["of plain"] for row in rows], lost, "x:", color=color, alpha=0.6)
        axis.axhline(0, color="k", lw=0.8)
        axis.set(title=title, xlabel="nonzeros, of the plain network's")
    axes[0].set_ylabel("less the plain network's (points)")
    axes[0].legend()
    return draw.done(figure)


def _gaps(of_seed: Mapping[int, Run], plain: Mapping[int, Run], measure: str) -> np.ndarray:
    return np.array([measured(r, measure) - measured(plain[s], measure) for s, r in of_seed.items() if s in plain])


def label_noise(runs: Runs) -> Drawing:
    """Accuracy on clean test images by the share of noisy training labels, plain and with L1; dots are seeds."""
    figure, (axis,) = draw.panels(1, 1)
    arms = by_arm(runs.values())
    weights = {arm.weight for arm in arms if arm.penalty == "l1" and arm.noise}
    lines = {"plain": [arm for arm in arms if arm.penalty is None]}
    lines |= {f"L1 of weight {w:g}": [a for a in arms if (a.penalty, a.weight) == ("l1", w)] for w in sorted(weights)}
    for i, (label, shown) in enumerate(lines.items()):
        values = [[100 * measured(view, "accuracy") for view in arms[arm].values()] for arm in shown]
        axis.plot([100 * arm.noise for arm in shown], [np.mean(v) for v in values], "-", color=f"C{i}", label=label)
        for arm, v in zip(shown, values, strict=True):
            axis.plot([100 * arm.noise] * len(v), v, "o", color=f"C{i}", ms=3, alpha=0.6)
    axis.set(xlabel="noisy training labels (%)", ylabel="test accuracy (%)")
    axis.legend()
    return draw.done(figure)


def findings(records: Sequence[Record]) -> list[str]:
    """Each of the paper's weights at its density, in sentences, with ours under both ways to take it."""
    plain = next((row for row in table(records) if row["penalty"] is None and row["noise"] == 0), None)
    said = []
    for row in table(records):
        if row["weight, paper"] is None or plain is None or None in (row["accuracy"], plain["accuracy"]):
            continue
        under = lambda of: float(np.mean([of[name] for name in CORRUPTIONS]))
        said.append(
            f"{row['penalty'].upper()}, the paper's {row['weight, paper']:g}: {100 * row['of plain']:.0f}% of the plain"
            f" network's nonzeros at a weight of {row['weight']:.2g} of the sum over units, {row['of the mean']:.2g} of"
            f" their mean. Accuracy {100 * (row['accuracy'] - plain['accuracy']):+.2f} points, under noise "
            f"{100 * (under(row) - under(plain)):+.2f}, ECE {100 * (row['ece'] - plain['ece']):+.2f}."
        )
    missing = [
        f"{p.upper()} {w:g}" for (p, w), row in printed().items() if p and not point(records, p, row["of plain"])
    ]
    return said + [f"No weights that were run stand around the density of {', '.join(missing)}."] * bool(missing)


def _points(records: Sequence[Record], wanted: Sequence[tuple[str, float]]) -> list[Point] | str:
    """The points of (penalty, share of the plain network's nonzeros), or why there are not all of them."""
    found = [point(records, penalty, target) for penalty, target in wanted]
    if None not in found:
        return found
    penalty, target = wanted[found.index(None)]
    ratios = ", ".join(f"{ratio:.2f}" for ratio in of_plain(records, penalty).values()) or "none"
    return f"{penalty.upper()}: {target:.2f} of the plain network's nonzeros do not lie between those reached, {ratios}"


def _gain(penalty: str, weight: float, measure: str) -> Callable[..., Effect]:
    """A measure at the density of the paper's `weight` less the plain network's, by seed."""

    def effect(records: Sequence[Record]) -> Effect:
        plain = plain_arm(records)
        points = _points(records, [(penalty, printed()[penalty, weight]["of plain"])])
        if plain is None or isinstance(points, str):
            return Effect.untestable("no plain network was run" if plain is None else points)
        (here,), of = points, _of(measure)
        gain = lambda usual, low, high: here.between(of(low), of(high)) - of(usual)
        return over_arms(records, [plain, here.low, here.high], gain)

    return effect


def _matched(measure: str) -> Callable[..., Effect]:
    """A measure with L1 less that with L2, both at the density of the paper's L1 of .01, by seed."""

    def effect(records: Sequence[Record]) -> Effect:
        plain, target = plain_arm(records), printed()["l1", 0.01]["of plain"]
        points = _points(records, [(penalty, target) for penalty in KINDS])
        if plain is None or isinstance(points, str):
            return Effect.untestable("no plain network was run" if plain is None else points)
        arms = [plain, *(arm for p in points for arm in (p.low, p.high))]

        def value(first, *runs):
            of = [measured(run, measure) for run in runs]
            return points[0].between(*of[:2]) - points[1].between(*of[2:])

        return over_arms(records, arms, value)

    return effect


def _noisy(noise: float) -> Callable[..., Effect]:
    """Test accuracy with L1 less the plain network's, a share of the labels noisy, by seed."""

    def effect(records: Sequence[Record]) -> Effect:
        arms = [plain_arm(records), plain_arm(records, noise), *grid(records, "l1", noise).values()][:3]
        if None in arms or len(arms) < 3:
            return Effect.untestable(
                f"no network with and without L1 was run with {100 * noise:g}% of the labels noisy"
            )
        gap = lambda clean, plain, penalised: measured(penalised, "accuracy") - measured(plain, "accuracy")
        return over_arms(records, arms, gap)

    return effect


def _claim(id: str, where: str, statement: str, effect: str, side, threshold: float, measure) -> Claim:
    return Claim(f"L11.{id}", where, statement, effect, "seed", side, threshold, measure)


_CORRUPTED = "accuracy under corruption, mean over three noises and five severities, less the plain network's, at {}"
_ECE = "expected calibration error less the plain network's, at {}"
_CLEAN = "clean test accuracy less the plain network's, at {}"
_DENSITY = {0.01: "80% of its nonzeros", 0.1: "59% of its nonzeros", 1.0: "28% of its nonzeros"}
_L2_DENSITY = {0.01: "92% of its nonzeros", 0.1: "78% of its nonzeros", 1.0: "54% of its nonzeros"}
CLAIMS = (
    *(
        claim
        for weight in (0.01, 0.1)
        for claim in (
            _claim(
                f"l1_{weight:g}.corruption",
                "Table C.1",
                f"L1 of the paper's weight {weight:g} makes networks more robust",
                _CORRUPTED.format(_DENSITY[weight]),
                "above",
                0.0,
                _gain("l1", weight, "robustness.mean"),
            ),
            _claim(
                f"l1_{weight:g}.ece",
                "Table C.1",
                "and better calibrated",
                _ECE.format(_DENSITY[weight]),
                "below",
                0.0,
                _gain("l1", weight, "ece"),
            ),
            _claim(
                f"l1_{weight:g}.clean",
                "Table C.1",
                "and as accurate, to a point",
                _CLEAN.format(_DENSITY[weight]),
                "above",
                -SAME,
                _gain("l1", weight, "accuracy"),
            ),
        )
    ),
    _claim(
        "l1_1.clean",
        "Table C.1",
        "L1 of the paper's weight 1 costs accuracy",
        _CLEAN.format(_DENSITY[1.0]),
        "below",
        0.0,
        _gain("l1", 1.0, "accuracy"),
    ),
    *(
        claim
        for weight in (0.01, 0.1, 1.0)
        for claim in (
            _claim(
                f"l2_{weight:g}.corruption",
                "Table C.2",
                f"L2 of the paper's weight {weight:g} makes networks more robust",
                _CORRUPTED.format(_L2_DENSITY[weight]),
                "above",
                0.0,
                _gain("l2", weight, "robustness.mean"),
            ),
            _claim(
                f"l2_{weight:g}.ece",
                "Table C.2",
                "and better calibrated",
                _ECE.format(_L2_DENSITY[weight]),
                "below",
                0.0,
                _gain("l2", weight, "ece"),
            ),
        )
    ),
    _claim(
        "less.corruption",
        "App. C.2",
        "less than L1 does at the same density",
        "accuracy under corruption with L1 less that with L2, both at 80% of the plain network's nonzeros",
        "above",
        0.0,
        _matched("robustness.mean"),
    ),
    _claim(
        "less.ece",
        "App. C.2",
        "in calibration too",
        "expected calibration error with L1 less that with L2, both at 80% of the plain network's nonzeros",
        "below",
        0.0,
        _matched("ece"),
    ),
    *(
        _claim(
            f"noise{100 * noise:g}",
            "beyond: Sec. 4.3 has it of Top-k",
            f"with {100 * noise:g}% of the labels noisy a network with L1 is more accurate",
            "test accuracy less the plain network's, at the middle weight of L1",
            "above",
            0.0,
            _noisy(noise),
        )
        for noise in (0.4, 0.8)
    ),
)

PENALTIES = Study(
    name="li2022/penalties",
    title="Li et al. 2022, Tables C.1 and C.2: ViTs with a penalty on their activations",
    introduction=(
        "ViTs are trained with the L1 or the squared L2 norm of their activations added to the loss. The paper finds "
        "that sparsity by these means too makes networks more robust to corrupted images and better calibrated, L2 "
        "less than L1. Its weights mean nothing without the reduction, which it does not print: here the weights are "
        "those that leave as large a share of the plain network's nonzeros."
    ),
    findings=findings,
    figures={"Density": density_by_weight, "Gains": gains_by_density, "Label noise": label_noise},
    claims=CLAIMS,
    table=table,
)
