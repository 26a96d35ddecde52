"""Beyond Bricken et al. 2023: robustness and calibration of classifiers that trained under noise (Li et al. 2022)."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from sparsity.data.corruptions import CORRUPTIONS, SEVERITIES
from sparsity.studies import draw
from sparsity.studies.bricken2023.runs import by_variant, seed_claim
from sparsity.studies.draw import Drawing, Runs
from sparsity.studies.judge import Claim
from sparsity.studies.records import Run, measured, named, or_none, percent, standard_error
from sparsity.studies.runner import Record, Row, Study

LAYER = "layer_0"
# What is judged of each way of training, as (variant, sigma); all against `PLAIN`.
PLAIN = ("mlp", 0.0)
ARMS = {
    "constant": (("mlp", 0.3), ("mlp", 0.8)),
    "annealed": (("mlp_annealed", 0.3), ("mlp_annealed", 0.8)),
    "top_k": (("mlp_top_k_0.1", 0.0), ("mlp_top_k_0.03", 0.0)),
}
WORDS = {
    "constant": "training under noise",
    "annealed": "training under noise that is annealed away",
    "top_k": "Top-k",
}
AT = {"constant": "sigma .3 and .8", "annealed": "sigma .3 and .8", "top_k": "10% and 3% of the units"}
KEPT = 0.5  # share of the gain that annealing is to leave


def trainings(runs: Mapping[str, Run]) -> dict[str, dict[float, dict[int, Run]]]:
    """Training -> setting -> seed -> run; the setting is sigma, or the share of units that Top-k keeps."""
    out: dict[str, dict[float, dict[int, Run]]] = {}
    for variant, sigmas in by_variant(runs).items():
        kept = re.fullmatch(r"mlp_top_k_([\d.]+)", variant)
        for sigma, of_seed in sigmas.items():
            label = "top_k" if kept else "annealed" if variant == "mlp_annealed" else "constant" if sigma else "plain"
            out.setdefault(label, {})[float(kept[1]) if kept else sigma] = of_seed
    return out


def at_severity(run: Run, severity: int) -> float:
    """Test accuracy at one severity, mean over the corruptions."""
    return float(np.mean([measured(run, f"robustness.{name}.{severity}") for name in CORRUPTIONS]))


def table(records: Sequence[Record]) -> list[Row]:
    """Every training at its settings (sigma, the paper's; of top_k k/units), means over n seeds; no noise of training.

    active: share of nonzero activations on the test digits; accuracy, ece: there; corrupted: accuracy, mean over three
    corruptions and five severities, by corruption, and at the least and the highest severity. se: over seeds, which
    share one test set.
    """
    rows = []
    for label, settings in trainings(named(records)).items():
        for value, of_seed in settings.items():
            row: Row = {"training": label, "setting": value, "n": len(of_seed)}
            for column, take in _COLUMNS.items():
                values = [take(run) for run in of_seed.values()]
                row[column] = or_none(float(np.mean(values)))
                if column in ("accuracy", "ece", "corrupted"):
                    row[f"se of {column}"] = standard_error(values)
            rows.append(row)
    return rows


def _measure(name: str) -> Callable[[Run], float]:
    return lambda run: measured(run, name)


_COLUMNS: dict[str, Callable[[Run], float]] = {
    "active": _measure(f"nonzero.{LAYER}"),
    "accuracy": _measure("accuracy"),
    "ece": _measure("ece"),
    "corrupted": _measure("robustness.mean"),
    **{name: _measure(f"robustness.{name}") for name in CORRUPTIONS},
    "severity 1": lambda run: at_severity(run, SEVERITIES[0]),
    "severity 5": lambda run: at_severity(run, SEVERITIES[-1]),
}


def by_severity(runs: Runs) -> Drawing:
    """Test accuracy against the severity of each corruption (0 is none), means over seeds, at the settings judged."""
    found = by_variant(runs)
    figure, axes = draw.panels(1, len(CORRUPTIONS), height=3.4, sharey=True)
    lines = {"plain": (PLAIN, "k", "-")}
    for (label, wanted), style in zip(ARMS.items(), ("--", "-", ":"), strict=True):
        for i, (variant, sigma) in enumerate(wanted):
            setting = f"{sigma:g}" if sigma else variant.rpartition("_")[2]
            lines[f"{label.replace('_', '-')} {setting}"] = ((variant, sigma), f"C{i}", style)
    for axis, corruption in zip(axes, CORRUPTIONS, strict=True):
        names = ["accuracy", *(f"robustness.{corruption}.{s}" for s in SEVERITIES)]
        for label, ((variant, sigma), color, style) in lines.items():
            some = found.get(variant, {}).get(sigma, {}).values()
            if some:
                heights = np.mean([[measured(view, name) for name in names] for view in some], axis=0)
                axis.plot([0, *SEVERITIES], heights, style, color=color, label=label)
        axis.set(title=corruption, xlabel="severity")
    axes[0].set_ylabel("test accuracy")
    axes[-1].legend(fontsize=7)
    return draw.done(figure)


def by_share(runs: Runs) -> Drawing:
    """Accuracy under corruption (left) and calibration error (right) against the share of active units; every run."""
    figure, axes = draw.panels(1, 2, height=3.4)
    for i, (label, settings) in enumerate(trainings(runs).items()):
        views = [view for of_seed in settings.values() for view in of_seed.values()]
        shares = [measured(view, f"nonzero.{LAYER}") for view in views]
        for axis, name in zip(axes, ("robustness.mean", "ece"), strict=True):
            axis.plot(shares, [measured(v, name) for v in views], "o", ms=4, alpha=0.7, color=f"C{i}", label=label)
    for axis, label in zip(axes, ("accuracy under corruption", "expected calibration error"), strict=True):
        axis.set(xscale="log", xlabel="share of active units, test split", ylabel=label)
    axes[-1].legend()
    return draw.done(figure)


def findings(records: Sequence[Record]) -> list[str]:
    """Accuracy, accuracy under corruption and calibration of every training, in sentences."""
    return [
        f"{row['training'].replace('_', '-')} at {row['setting']:g} (n = {row['n']}): {percent(row['active'])} active, "
        f"accuracy {percent(row['accuracy'])}, under corruption {percent(row['corrupted'])} "
        f"({percent(row['severity 5'])} at severity 5), calibration error {percent(row['ece'])}."
        for row in table(records)
    ]


def _gain(take: Callable[[Run], float]) -> Callable[[list[Record]], float]:
    """`take`, mean over all runs but the first, less that of the first."""
    return lambda runs: float(np.mean([take(run) for run in runs[1:]])) - take(runs[0])


def _steepness(run: Run) -> float:
    return at_severity(run, SEVERITIES[-1]) - at_severity(run, SEVERITIES[0])


def _left(runs: list[Record]) -> float:
    """What annealing leaves of the gain of constant noise, less `KEPT` of it; runs: plain, two constant, two annealed.

    NaN, which is no evidence, where constant noise gains nothing.
    """
    plain, *noisy = (measured(run, "robustness.mean") for run in runs)
    constant, annealed = float(np.mean(noisy[:2])) - plain, float(np.mean(noisy[2:])) - plain
    return annealed - KEPT * constant if constant > 0 else math.nan


def _beside_top_k(runs: list[Record]) -> float:
    scores = [measured(run, "robustness.mean") for run in runs]
    return float(np.mean(scores[:2]) - np.mean(scores[2:]))


def _claims_of(arm: str) -> tuple[Claim, ...]:
    wanted, words, at = (PLAIN, *ARMS[arm]), WORDS[arm], AT[arm]
    where = "Li et al. 2022, Table 1, Fig. 10" if arm == "top_k" else "beyond the paper"
    calibration = "Li et al. 2022, Table 1, Fig. 9" if arm == "top_k" else where
    return (
        seed_claim(
            wanted,
            _gain(_measure("robustness.mean")),
            id=f"robustness.{arm}",
            where=where,
            statement=f"{words} makes a classifier more accurate under corruptions",
            effect=f"accuracy, mean over corruptions and severities, of {at}, less that of the plain network",
            side="above",
            threshold=0.0,
        ),
        seed_claim(
            wanted,
            _gain(_steepness),
            id=f"robustness.{arm}.severe",
            where=where,
            statement=f"what {words} gains is more at the highest severity than at the least",
            effect=f"accuracy at severity 5 less that at 1, of {at}, less the same of the plain network",
            side="above",
            threshold=0.0,
        ),
        seed_claim(
            wanted,
            _gain(_measure("ece")),
            id=f"robustness.{arm}.calibration",
            where=calibration,
            statement=f"{words} makes a classifier better calibrated",
            effect=f"expected calibration error of {at}, less that of the plain network",
            side="below",
            threshold=0.0,
        ),
        seed_claim(
            wanted,
            _gain(_measure("accuracy")),
            id=f"robustness.{arm}.accuracy",
            where=where,
            statement=f"{words} costs less than a point of accuracy without corruption",
            effect=f"test accuracy of {at}, less that of the plain network",
            side="above",
            threshold=-0.01,
        ),
    )


CLAIMS = (
    *(claim for arm in ARMS for claim in _claims_of(arm)),
    seed_claim(
        (PLAIN, *ARMS["constant"], *ARMS["annealed"]),
        _left,
        id="robustness.kept",
        where="beyond the paper",
        statement="at least half of the robustness that noise gives outlasts its annealing",
        effect="gain of annealed noise in accuracy under corruptions less half of that of constant noise",
        side="above",
        threshold=0.0,
    ),
    seed_claim(
        (*ARMS["annealed"], *ARMS["top_k"]),
        _beside_top_k,
        id="robustness.beside_top_k",
        where="beyond the paper",
        statement="networks that noise made sparse are more robust than those of Top-k",
        effect="accuracy, mean over corruptions and severities, of annealed noise less that of Top-k",
        side="above",
        threshold=0.0,
    ),
)

ROBUSTNESS = Study(
    name="bricken2023/robustness",
    title="Beyond Bricken et al. 2023: robustness and calibration after training under noise",
    introduction=(
        "Li et al. 2022 find that sparse activations, forced by Top-k, make classifiers more robust against corrupted "
        "images and better calibrated. Noise in training makes activations sparse too, and the sparsity outlasts it. "
        "Here classifiers of digits that trained under constant noise, or under noise that was annealed away, stand "
        "beside Top-k and beside plain training: accuracy without corruption and under three of them at five "
        "severities, and calibration, all without training's noise."
    ),
    findings=findings,
    figures={"Accuracy under corruption": by_severity, "Against sparsity": by_share},
    claims=CLAIMS,
    table=table,
)
