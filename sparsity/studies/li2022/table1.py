"""Li et al. 2022, Table 1 and Figs. 8 to 10: Top-k ViTs under label noise and corruption, and their calibration."""

from __future__ import annotations

import csv
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from sparsity.config import to_dict
from sparsity.data.corruptions import CORRUPTIONS, SEVERITIES
from sparsity.studies import draw
from sparsity.studies.draw import Drawing, Runs, RunView
from sparsity.studies.judge import Claim, Effect
from sparsity.studies.li2022.vits import LEARNS
from sparsity.studies.records import (
    Run,
    across,
    finished,
    grid_by,
    mean_over,
    measured,
    named,
    records_of,
    standard_error,
)
from sparsity.studies.runner import Record, Row, Study

_NAME = re.compile(r"(?:_k(\d+))?_noise([\d.]+)_seed(\d+)$")
PAPERS_K = 128 / 3072  # of d_ff
SAME = 0.01  # of accuracy
TABLE_FILE = Path("configs/li2022/table1.csv")  # as printed; studies run from the repository's root
_PRINTED = {0.0: "natural", 0.4: "label_noise40", 0.8: "label_noise80"}  # its columns of accuracy, by share of noise


def printed() -> tuple[dict[str, float], dict[str, float]]:
    """Table 1 as printed, in shares: of the dense network, and with k = 128."""
    with open(TABLE_FILE, encoding="utf-8") as file:
        rows = {line.pop("method"): line for line in csv.DictReader(file)}
    shares = lambda row: {
        key.removesuffix("_pct").removesuffix("_acc"): float(value) / 100 for key, value in row.items()
    }
    return shares(rows["ViT"]), shares(rows["Top-128 ViT"])


def arm_and_seed(name: str) -> tuple[int | None, float, int]:
    """(k or None, share of noisy labels, seed) of a run called "vit_digits_k21_noise0.4_seed0".

    >>> arm_and_seed("vit_digits_k21_noise0.4_seed3"), arm_and_seed("vit_digits_noise0_seed0")
    ((21, 0.4, 3), (None, 0.0, 0))
    """
    k, noise, seed = _NAME.search(name).groups()
    return None if k is None else int(k), float(noise), int(seed)


def papers_k(runs: Mapping[str, Run]) -> int | None:
    """The k whose share of d_ff is nearest to the paper's 128 of 3,072; None if there is no Top-k."""
    shares = {}
    for name, run in runs.items():
        config = run.config if isinstance(run, RunView) else to_dict(run.config)
        if (k := arm_and_seed(name)[0]) is not None:
            shares[k] = k / config["model"]["mlp"]["d_ff"]
    return min(shares, key=lambda k: abs(shares[k] - PAPERS_K)) if shares else None


def history(run) -> np.ndarray:
    """Accuracy on the (clean) validation split over training."""
    return np.array([line["accuracy"] for line in records_of(run, "validation")])


def fall(run) -> float:
    """Validation accuracy: its best over training less its last, of means over three validations in a row."""
    values = history(run)
    if len(values) < 3:
        return float("nan")
    smooth = np.convolve(values, np.ones(3) / 3, "valid")
    return float(smooth.max() - smooth[-1])


def table(records: Sequence[Record]) -> list[Row]:
    """Table 1 of the paper beside ours; means over n seeds (se: of the test accuracy, over seeds).

    k: None is the dense network. noise: share of the training labels drawn anew. accuracy: on clean test images.
    gaussian, impulse, shot: under corruption, mean over severities. ece: of 15 equal bins. The paper's are of
    ImageNet-1k, with 128 of 3,072. fall: of the validation accuracy from its best to its last. train: accuracy on
    training batches at the end, noisy labels included. nonzero: share of nonzeros on test images, mean over layers.
    """
    rows, best, paper = [], papers_k(named(records)), printed()
    for (k, noise), of_seed in grid_by(arm_and_seed, named(records)).items():
        runs = finished(of_seed)
        mean = functools.partial(mean_over, runs)
        theirs = paper[k is not None] if k in (None, best) else {}
        row = {"k": k, "noise": noise, "n": len(runs)}
        row["accuracy, paper"] = theirs.get(_PRINTED.get(noise))
        row["accuracy"] = mean(lambda r: measured(r, "accuracy"))
        row["se"] = standard_error([measured(r, "accuracy") for r in runs])
        for name in CORRUPTIONS:
            row[f"{name}, paper"] = theirs.get(name) if noise == 0 else None
            row[name] = mean(lambda r, name=name: measured(r, f"robustness.{name}"))
        row["ece, paper"] = theirs.get("ece") if noise == 0 else None
        row["ece"], row["fall"] = mean(lambda r: measured(r, "ece")), mean(fall)
        row["train"] = mean(lambda r: np.mean([line["accuracy"] for line in records_of(r, "train")][-100:]))
        row["nonzero"] = mean(lambda r: measured(r, "nonzero.mean"))
        rows.append(row)
    return rows


def label_noise(runs: Runs) -> Drawing:
    """Fig. 8: accuracy on training batches (thin) and on clean validation images (thick) by step, by share of noise.

    First seed; the dense network and Top-k.
    """
    noises = sorted({noise for _, noise in grid_by(arm_and_seed, runs)})
    figure, axes = draw.panels(1, len(noises), sharey=True)
    for (k, noise), of_seed in grid_by(arm_and_seed, runs).items():
        if k not in (None, papers_k(runs)):
            continue
        axis, view = axes[noises.index(noise)], next(iter(of_seed.values()))
        train, validation = view.records("train"), view.records("validation")
        color, label = ("C0", "dense") if k is None else ("C3", f"k = {k}")
        steps, values = draw.smoothed([r["step"] for r in train], [r["accuracy"] for r in train], 50)
        axis.plot(steps, 100 * values, color=color, lw=0.8, alpha=0.7)
        axis.plot([r["step"] for r in validation], 100 * history(view), color=color, lw=2, label=label)
        axis.set(title=f"{100 * noise:g}% of the labels noisy", xlabel="step")
    axes[0].set_ylabel("accuracy (%)")
    axes[0].legend()
    return draw.done(figure)


def corruption(runs: Runs) -> Drawing:
    """Fig. 10: accuracy under each noise by severity, dense and at every k, mean over seeds."""
    figure, axes = draw.panels(1, len(CORRUPTIONS), sharey=True)
    clean = {k: of_seed for (k, noise), of_seed in grid_by(arm_and_seed, runs).items() if noise == 0}
    for axis, name in zip(axes, CORRUPTIONS, strict=True):
        for i, (k, of_seed) in enumerate(clean.items()):
            values = [[measured(v, f"robustness.{name}.{s}") for s in SEVERITIES] for v in of_seed.values()]
            color, label = ("k", "dense") if k is None else (draw.color(i - 1, len(clean) - 1), f"k = {k}")
            axis.plot(SEVERITIES, 100 * np.mean(values, 0), "o-", color=color, ms=3, label=label)
        axis.set(title=name, xlabel="severity")
    axes[0].set_ylabel("accuracy (%)")
    axes[-1].legend()
    return draw.done(figure)


def calibration_by_step(runs: Runs) -> Drawing:
    """Fig. 9: expected calibration error on validation images by step, dense and at every k, mean over seeds."""
    figure, (axis,) = draw.panels(1, 1)
    clean = {k: of_seed for (k, noise), of_seed in grid_by(arm_and_seed, runs).items() if noise == 0}
    for i, (k, of_seed) in enumerate(clean.items()):
        lines = [records_of(view, "validation") for view in of_seed.values()]
        length = min(map(len, lines))
        values = np.array([[line["ece"] for line in one[:length]] for one in lines])
        color, label = ("k", "dense") if k is None else (draw.color(i - 1, len(clean) - 1), f"k = {k}")
        axis.plot([line["step"] for line in lines[0][:length]], 100 * values.mean(0), color=color, label=label)
    axis.set(xlabel="step", ylabel="expected calibration error (%)")
    axis.legend()
    return draw.done(figure)


def findings(records: Sequence[Record]) -> list[str]:
    """Top-k at the paper's share of units against the dense network, in sentences."""
    rows, k = {(r["k"], r["noise"]): r for r in table(records)}, papers_k(named(records))
    dense_paper, top_k_paper = printed()
    out = []
    for noise in sorted({n for _, n in rows}):
        dense, top_k = rows.get((None, noise)), rows.get((k, noise))
        if dense and top_k and dense["accuracy"] is not None and top_k["accuracy"] is not None:
            gain = 100 * (top_k["accuracy"] - dense["accuracy"])
            column = _PRINTED.get(noise)
            theirs = f" (the paper {100 * (top_k_paper[column] - dense_paper[column]):+.2f})" if column else ""
            out.append(f"{100 * noise:g}% of the labels noisy: k = {k} {gain:+.2f} points of test accuracy{theirs}.")
    return out


def _gap(value: Callable[[Record], float], noise: float = 0.0, k: int | None = None) -> Callable[..., Effect]:
    """`value` with Top-k (the paper's share of units, or k) less that of the dense network of the same seed.

    Not testable where the dense network has learnt nothing without label noise.
    """

    def measure(records: Sequence[Record]) -> Effect:
        runs = named(records)
        grid, chosen = grid_by(arm_and_seed, runs), k or papers_k(runs)
        clean = grid.get((None, 0.0), {})
        if not clean or np.mean([measured(r, "accuracy") for r in clean.values()]) < LEARNS:
            return Effect.untestable("without label noise the dense network was not run or has not learnt")
        groups = {"the dense network": grid.get((None, noise), {}), f"k = {chosen}": grid.get((chosen, noise), {})}
        return across(groups, lambda dense, top_k: value(top_k) - value(dense))

    return measure


def _alone(value: Callable[[Record], float], k: bool, noise: float) -> Callable[..., Effect]:
    """`value` of the dense network, or of Top-k, by seed."""

    def measure(records: Sequence[Record]) -> Effect:
        runs = named(records)
        return across({"runs": grid_by(arm_and_seed, runs).get((papers_k(runs) if k else None, noise), {})}, value)

    return measure


def _of(name: str) -> Callable[[Record], float]:
    return lambda run: measured(run, name)


def _harder(run: Record) -> float:
    """Accuracy under corruption at the highest severity less that at the lowest, mean over noises."""
    at = lambda severity: np.mean([measured(run, f"robustness.{name}.{severity}") for name in CORRUPTIONS])
    return float(at(SEVERITIES[-1]) - at(SEVERITIES[0]))


def _late_ece(run: Record) -> float:
    """Calibration error on validation images, its last less its least over training."""
    values = [line["ece"] for line in records_of(run, "validation")]
    return float(values[-1] - min(values)) if values else float("nan")


def _smaller_k(records: Sequence[Record]) -> Effect:
    """Calibration error at the smallest k less that at the largest, by seed."""
    grid = {k: s for (k, noise), s in grid_by(arm_and_seed, named(records)).items() if noise == 0 and k is not None}
    if len(grid) < 2:
        return Effect.untestable("fewer than two k were run")
    groups = {f"k = {k}": grid[k] for k in (min(grid), max(grid))}
    return across(groups, lambda small, large: measured(small, "ece") - measured(large, "ece"))


def _claim(id, where, statement, effect, side, threshold, measure, headline=True) -> Claim:
    return Claim(id, where, statement, effect, "seed", side, threshold, measure, headline)


_ACCURACY = "test accuracy of Top-k (k = 128 of 3,072 or as many) less the dense network's"
CLAIMS = (
    _claim(
        "L8.clean",
        "Table 1",
        "without label noise Top-k is as accurate, to a point",
        _ACCURACY,
        "above",
        -SAME,
        _gap(_of("accuracy")),
    ),
    *(
        _claim(
            f"L8.{100 * noise:g}",
            "Table 1",
            f"with {100 * noise:g}% of the labels noisy it is more accurate",
            _ACCURACY,
            "above",
            0.0,
            _gap(_of("accuracy"), noise),
        )
        for noise in (0.4, 0.8)
    ),
    _claim(
        "L8.peak",
        "Fig. 8",
        "at 80% the dense network's accuracy peaks and falls, by more than a point",
        "fall of its validation accuracy from its best (means of three validations)",
        "above",
        0.01,
        _alone(fall, k=False, noise=0.8),
    ),
    _claim(
        "L8.rises",
        "Fig. 8",
        "Top-k's keeps rising: it falls less",
        "fall of Top-k's validation accuracy less the dense network's, 80% of the labels noisy",
        "below",
        0.0,
        _gap(fall, 0.8),
    ),
    *(
        _claim(
            f"L9.{name}",
            "Table 1, Fig. 10",
            f"under {name} noise Top-k is more accurate",
            f"accuracy under {name} noise, mean over severities, less the dense network's",
            "above",
            0.0,
            _gap(_of(f"robustness.{name}")),
        )
        for name in CORRUPTIONS
    ),
    _claim(
        "L9.severity",
        "Fig. 10",
        "most at high severity",
        "loss from severity 1 to 5, mean over noises, Top-k's less the dense network's",
        "above",
        0.0,
        _gap(_harder),
        headline=False,
    ),
    _claim(
        "L10.ece",
        "Table 1, Fig. 9",
        "it is better calibrated",
        "expected calibration error less the dense network's",
        "below",
        0.0,
        _gap(_of("ece")),
    ),
    _claim(
        "L10.late",
        "Fig. 9",
        "the dense network's calibration becomes worse late in training",
        "its last expected calibration error on validation images less its least",
        "above",
        0.0,
        _alone(_late_ece, k=False, noise=0.0),
        headline=False,
    ),
    _claim(
        "L10.smaller",
        "Fig. 9",
        "the smaller k, the better the calibration",
        "expected calibration error at the smallest k less that at the largest",
        "below",
        0.0,
        _smaller_k,
        headline=False,
    ),
)

TABLE_1 = Study(
    name="li2022/table1",
    title="Li et al. 2022, Table 1: Top-k ViTs under label noise and corruption",
    introduction=(
        "ViTs with and without Top-k in their MLPs classify images; a share of their training labels is random, or "
        "their test images are corrupted. The paper finds that Top-k, which is as accurate on clean data, loses less "
        "to either, and is better calibrated, without another setting changed."
    ),
    findings=findings,
    figures={"Label noise": label_noise, "Corruption": corruption, "Calibration": calibration_by_step},
    claims=CLAIMS,
    table=table,
)
