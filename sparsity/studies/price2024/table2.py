"""Price et al. 2024, Table 2, the deep MLP: which sparse activations train, and whether they stay sparse."""

from __future__ import annotations

import csv
import functools
import math
from collections.abc import Sequence

import numpy as np

from sparsity.recipes import PRICE_ROWS
from sparsity.studies import draw
from sparsity.studies.draw import Drawing, Runs
from sparsity.studies.judge import Claim, Effect
from sparsity.studies.price2024.maps import TABLE_2
from sparsity.studies.price2024.runs import (
    CHANCE,
    EXTRA_FIXED_POINTS,
    FLOAT32_END,
    accuracy,
    by_row,
    gain,
    largest_gap,
    least_gap,
    loss_by_row,
    metrics_of,
    over_seeds,
    row_and_seed,
    sentences,
    sparsity,
    summary,
    target,
)
from sparsity.studies.runner import Record, Row, Study

FAILS = 0.1  # a run fails if its accuracy is this far below ReLU's
TRAINED_AT_7 = ("crelu_0.6_0.7", "crelu_0.7_0.7", "crelu_0.85_0.7", "cst_0.85_0.7")
SMALLEST_M = ("crelu_0.85_0.5", "cst_0.85_0.5")


def printed() -> dict[str, dict[str, float]]:
    """Table 2 as printed, by row: accuracies and sparsities of the DNN (mean, std) and of the CNN."""
    out = {}
    with open(TABLE_2, encoding="utf-8") as file:
        for line in csv.DictReader(file):
            kind, s = line["activation"].removesuffix("_m").lower().replace("_tau", ""), float(line["s"])
            if kind == "relu":
                row = "relu" if s == 0.5 else f"relu_tau_{s}"
            else:
                row = f"{kind}_{s}" + (f"_{line['Vprime']}" if line["m"] else "")
            out[row] = {k: float(line[k]) for k in line if k.startswith(("dnn", "cnn"))}
    return out


def table(records: Sequence[Record]) -> list[Row]:
    """Every row of Table 2: the paper's test accuracy and sparsity (5 seeds) beside ours.

    Accuracy: mean, standard deviation and standard error over n seeds, a diverged run counting as chance; "not run"
    where none was trained. Best validation: the largest accuracy of a run's validations, mean over runs (a run
    may end on a loss spike). Zeros: share of zeros on the test split, mean over the runs that did not diverge.
    """
    return against_paper(records, "dnn_acc_mean", "dnn_sparsity_mean")


def against_paper(records: Sequence[Record], acc: str, zero: str) -> list[Row]:
    """Every row of Table 2, then rows of our own: the paper's columns `acc` and `zero` beside ours."""
    table, paper = by_row(records), printed()
    rows = []
    for row in dict.fromkeys((*PRICE_ROWS, *table)):
        runs, theirs = list(table.get(row, {}).values()), paper.get(row, {})
        ours = summary(runs) if runs else {"n": "not run"}
        mean = ours.get("accuracy")
        rows.append(
            {
                "row": row,
                "n": ours["n"],
                "diverged": ours.get("diverged"),
                "accuracy, paper": theirs.get(acc),
                "accuracy": mean,
                "std": ours.get("std"),
                "se": ours.get("se"),
                "difference": None if mean is None or acc not in theirs else mean - theirs[acc],
                "best validation": float(np.mean([_best_validation(r) for r in runs])) if runs else None,
                "zeros, paper": theirs.get(zero),
                "zeros": ours.get("zeros"),
            }
        )
    return rows


def _best_validation(record: Record) -> float:
    return max((r["accuracy"] for r in metrics_of(record) if r["kind"] == "validation"), default=CHANCE)


def accuracy_by_row(runs: Runs) -> Drawing:
    """Test accuracy of every run by row: dots, a cross at chance if it diverged; the paper's mean as a bar."""
    return dots(runs, "dnn_acc_mean")


def dots(runs: Runs, column: str) -> Drawing:
    """Test accuracy and zeros of every run by row, with the accuracy that the paper prints in `column`."""
    figure, axes = draw.panels(1, 2, sharey=True)
    rows, paper = list(dict.fromkeys(row_and_seed(name)[0] for name in runs)), printed()
    for name, view in runs.items():
        y = rows.index(row_and_seed(name)[0])
        value = view.measures()
        if view.outcome.status == "diverged":
            axes[0].plot(CHANCE, y, "x", color="C3")
            continue
        axes[0].plot(value["accuracy"].value, y, "o", color="C0", ms=4, alpha=0.7)
        axes[1].plot(1 - value["nonzero.mean"].value, y, "o", color="C0", ms=4, alpha=0.7)
    for y, row in enumerate(rows):
        if row in paper:
            axes[0].plot(paper[row][column], y, "|", color="k", ms=12)
        axes[1].plot(target(row), y, "|", color="k", ms=12)
    axes[0].set(xlabel="test accuracy", xlim=(0, 1), yticks=range(len(rows)), yticklabels=rows)
    axes[0].invert_yaxis()
    axes[1].set(xlabel="share of zeros on the test split (bar: s)", xlim=(0, 1))
    return draw.done(figure)


def findings(records: Sequence[Record]) -> list[str]:
    """What the trained rows show, in sentences."""
    table = by_row(records)
    run = sum(row in table for row in PRICE_ROWS)
    said = sentences({"row": row} | summary(list(runs.values())) for row, runs in table.items())
    return [*said, f"{len(PRICE_ROWS) - run} of the {len(PRICE_ROWS)} rows of Table 2 were not run here."]


def _failures(records: Sequence[Record], row: str) -> Effect:
    """Share of the seeds of `row` that end more than `FAILS` below ReLU's mean test accuracy."""
    gaps = over_seeds(records, (row,), least_gap)
    if gaps.failed:
        return gaps
    table = by_row(records)
    relu = float(np.mean([accuracy(r) for r in table["relu"].values()]))
    return Effect.of_share([accuracy(r) < relu - FAILS for r in table[row].values()])


def _highest_loss(record: Record) -> float:
    """log10 of the largest training loss, in nats, of the second half of training; a diverged run has no end to it."""
    if record.outcome.status == "diverged":
        return FLOAT32_END
    losses = [r["loss"] for r in metrics_of(record) if r["kind"] == "train"]
    return math.log10(max(losses[len(losses) // 2 :]))


def drift(runs: list[Record], _: Record) -> float:
    """Largest |share of zeros on the test split - s| of `runs`."""
    # np.max, unlike max, keeps NaN: a diverged run has no sparsity to keep.
    return float(np.max([abs(sparsity(r) - target(row_and_seed(r.config.name)[0])) for r in runs]))


def _fails(row: str, paper: str) -> Claim:
    return Claim(
        id=f"P1.{row}",
        where="Table 2, DNN",
        statement=f"unclipped fails: {row} does not train ({paper})",
        effect=f"test accuracy of {row} (diverged: chance, .1)",
        unit="seed",
        side="below",
        threshold=0.2,
        measure=functools.partial(over_seeds, rows=(row,), value=lambda runs, _: accuracy(runs[0])),
        headline=True,
    )


def _fails_mostly(row: str, paper: str) -> Claim:
    return Claim(
        id=f"P4.{row}",
        where="Table 2, DNN; Fig. 4a",
        statement=f"{row} fails in most seeds, with one fixed point ({paper})",
        effect=f"share of its runs more than {FAILS:g} below ReLU's mean test accuracy",
        unit="seed",
        side="above",
        threshold=0.5,
        measure=functools.partial(_failures, row=row),
    )


CLAIMS = (
    _fails("relu_tau_0.7", ".10"),
    _fails("st_0.5", ".10"),
    Claim(
        id="P1.some",
        where="Table 2, DNN",
        statement="ReLU_tau at s = .6 fails in some seeds (.76 +- .37)",
        effect="test accuracy of relu_tau_0.6 less that of ReLU",
        unit="seed",
        side="below",
        threshold=-0.02,
        measure=gain("relu_tau_0.6", over="relu"),
    ),
    Claim(
        id="P2",
        where="Table 2, DNN",
        statement="clipped trains: CReLU and CST with V' = .7 and s up to .85 come within 2 points of ReLU",
        effect=f"test accuracy of the worst of {', '.join(TRAINED_AT_7)} less that of ReLU",
        unit="seed",
        side="above",
        threshold=-0.02,
        measure=functools.partial(over_seeds, rows=TRAINED_AT_7, value=least_gap),
        headline=True,
    ),
    Claim(
        id="P2.sparsity",
        where="Table 2, DNN",
        statement="and keep their sparsity: test sparsity within .02 of s",
        effect=f"largest |share of zeros - s| of {', '.join(TRAINED_AT_7)}",
        unit="seed",
        side="below",
        threshold=0.02,
        measure=functools.partial(over_seeds, rows=TRAINED_AT_7, value=drift),
        headline=True,
    ),
    Claim(
        id="P3",
        where="Table 2, DNN",
        statement="CST .8/.9 and .85/.9 fail, by extra fixed points",
        effect="test accuracy of the better of cst_0.8_0.9 and cst_0.85_0.9 less that of ReLU",
        unit="seed",
        side="below",
        threshold=-FAILS,
        measure=functools.partial(over_seeds, rows=EXTRA_FIXED_POINTS, value=largest_gap),
    ),
    _fails_mostly("crelu_0.85_0.9", ".28 +- .37"),
    _fails_mostly("cst_0.7_0.9", ".27 +- .36"),
    Claim(
        id="P5",
        where="Table 2; App. G",
        statement="s = .85 with the smallest m (V' = .5) ends below ReLU (.78 and .76 against .94)",
        effect="test accuracy of the better of crelu_0.85_0.5 and cst_0.85_0.5 less that of ReLU",
        unit="seed",
        side="below",
        threshold=-0.02,
        measure=functools.partial(over_seeds, rows=SMALLEST_M, value=largest_gap),
    ),
    Claim(
        id="P5.spikes",
        where="App. G",
        statement="and trains unstably late, with large loss spikes",
        effect="log10 of the largest training loss of the second half, crelu_0.85_0.5 less crelu_0.85_0.7",
        unit="seed",
        side="above",
        threshold=0.0,
        measure=functools.partial(
            over_seeds,
            rows=("crelu_0.85_0.5",),
            value=lambda runs, other: _highest_loss(runs[0]) - _highest_loss(other),
            reference="crelu_0.85_0.7",
        ),
    ),
    Claim(
        id="P6",
        where="Table 2, DNN",
        statement="accuracy does not fall from s = .6 to .85 (CReLU, V' = .7; by less than 2 points)",
        effect="test accuracy of crelu_0.85_0.7 less that of crelu_0.6_0.7",
        unit="seed",
        side="above",
        threshold=-0.02,
        measure=gain("crelu_0.85_0.7", over="crelu_0.6_0.7"),
    ),
)

TABLE2 = Study(
    name="price2024/table2",
    title="Price et al. 2024, Table 2: deep MLPs with sparse activations",
    introduction=(
        "Deep fully connected networks with one activation throughout, initialised on the edge of chaos at q* = 1 and "
        "trained by SGD without momentum. Rows differ in the activation alone: shifted ReLU and soft threshold with "
        "a threshold tau for a target sparsity s, and both clipped at an m that gives the variance map a slope V'(q*) "
        "below 1 (crelu_0.85_0.7 is clipped ReLU with s = .85 and V' = .7). The paper trains 100 layers for some "
        "100,000 steps on MNIST; what changed here stands in the config's docstring."
    ),
    findings=findings,
    figures={"Accuracy and sparsity": accuracy_by_row, "Training loss": loss_by_row},
    claims=CLAIMS,
    table=table,
    draws_diverged=True,
)
