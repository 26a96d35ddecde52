"""What the studies of Price et al. 2024 share: runs by row of Table 2, their accuracy, their signal layer by layer.

Accuracy is that on the test split; a run whose loss or parameters became non-finite counts as one at chance, as in
the paper. Every claim's threshold was fixed before the runs.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from sparsity.studies import draw
from sparsity.studies.draw import Drawing, Runs
from sparsity.studies.judge import Effect
from sparsity.studies.runner import Record, Row
from sparsity.writer import read_metrics

CHANCE = 0.1
LEARNS = 0.5  # mean test accuracy from which on a row is said to have trained
EXTRA_FIXED_POINTS = ("cst_0.8_0.9", "cst_0.85_0.9")  # the rows whose variance map has them
FLOAT32_END = 38.0  # log10 of the largest float32: what a gradient norm that is not finite counts as


def row_and_seed(name: str) -> tuple[str, int]:
    """("crelu_0.85_0.7", 2) of a run called "..._crelu_0.85_0.7_seed2"; what follows the seed belongs to the row."""
    found = re.search(r"_((?:relu|crelu|cst|st)(?:_[a-z]+)?(?:_[\d.]+)*)_seed(\d+)(.*)$", name)
    return found[1] + found[3], int(found[2])


def by_row(records: Iterable[Record]) -> dict[str, dict[int, Record]]:
    """Row -> seed -> record, in the order of the study."""
    out: dict[str, dict[int, Record]] = {}
    for record in records:
        row, seed = row_and_seed(record.config.name)
        out.setdefault(row, {})[seed] = record
    return out


def over_seeds(
    records: Sequence[Record],
    rows: Sequence[str],
    value: Callable[[list[Record], Record], float],
    reference: str = "relu",
    yardstick: str = "relu",
) -> Effect:
    """The effect with one replicate a seed: `value` of that seed's records of `rows` and of the row `reference`.

    Not testable unless the row `yardstick` trained: where even ReLU learns nothing, no row fails or keeps up.
    """
    table = by_row(records)
    missing = [row for row in (*rows, reference, yardstick) if row not in table]
    if missing:
        return Effect.untestable(f"no run of {', '.join(missing)}")
    learned = float(np.mean([accuracy(r) for r in table[yardstick].values()]))
    if learned < LEARNS:
        return Effect.untestable(f"{yardstick} did not train: mean test accuracy {learned:.2f}")
    return Effect.of([value([table[row][seed] for row in rows], other) for seed, other in table[reference].items()])


def measured(record: Record, name: str) -> float:
    """A final measure; NaN for a run that diverged."""
    return next((m.value for m in record.outcome.measures if m.name == name), math.nan)


def accuracy(record: Record) -> float:
    """Test accuracy; chance for a run that diverged."""
    return CHANCE if record.outcome.status == "diverged" else measured(record, "accuracy")


def sparsity(record: Record) -> float:
    """Share of zeros on the test split, mean over layers; NaN for a run that diverged: NaN is not zero."""
    return 1 - measured(record, "nonzero.mean")


def target(row: str) -> float:
    """The sparsity that a row's threshold was chosen for; ReLU's is a half."""
    return float(row.split("_")[-1 if row.startswith(("relu_tau", "st")) else 1]) if row != "relu" else 0.5


def summary(runs: Sequence[Record]) -> Row:
    """Test accuracy over n seeds (a diverged run counts as chance), and the zeros of the runs that did not diverge."""
    values = [accuracy(r) for r in runs]
    kept = [s for s in map(sparsity, runs) if not math.isnan(s)]
    n = len(values)
    std = float(np.std(values, ddof=1)) if n > 1 else None
    return {
        "n": n,
        "diverged": sum(r.outcome.status == "diverged" for r in runs),
        "accuracy": float(np.mean(values)),
        "std": std,
        "se": None if std is None else std / math.sqrt(n),
        "zeros": float(np.mean(kept)) if kept else None,
    }


def sentences(rows: Iterable[Row]) -> list[str]:
    """The rows that `summary` made part of, in sentences."""
    out = []
    for row in rows:
        line = f"{row['row']}: test accuracy {100 * row['accuracy']:.1f}%"
        line += f" (std {100 * row['std']:.1f}, n = {row['n']})" if row["std"] is not None else " (one run)"
        line += f", zeros {100 * row['zeros']:.1f}%" if row["zeros"] is not None else ""
        out.append(line + (f"; {row['diverged']} of {row['n']} diverged" if row["diverged"] else "") + ".")
    return out


def least_gap(runs: list[Record], relu: Record) -> float:
    """Test accuracy of the worst of `runs` less that of the reference."""
    return min(accuracy(r) for r in runs) - accuracy(relu)


def largest_gap(runs: list[Record], relu: Record) -> float:
    """Test accuracy of the best of `runs` less that of the reference."""
    return max(accuracy(r) for r in runs) - accuracy(relu)


def mean_gap(runs: list[Record], relu: Record) -> float:
    """Mean test accuracy of `runs` less that of the reference."""
    return float(np.mean([accuracy(r) for r in runs])) - accuracy(relu)


def gain(row: str, over: str, yardstick: str = "relu") -> Callable[[Sequence[Record]], Effect]:
    """The measure "test accuracy of the row `row` less that of the row `over`", by seed."""
    return functools.partial(over_seeds, rows=(row,), value=mean_gap, reference=over, yardstick=yardstick)


def variances(metrics: Sequence[Mapping[str, Any]], step: int = 0) -> np.ndarray:
    """q_l [layers]: mean of z^2 over the batch and units of layer l at a recorded step."""
    (record,) = [r for r in metrics if r["kind"] == "sparsity" and r["step"] == step]
    return np.array([layer["q"] for layer in record["layers"].values()])


def zeros(metrics: Sequence[Mapping[str, Any]], step: int = 0) -> np.ndarray:
    """Share of zeros [layers] on the batch of a recorded step."""
    (record,) = [r for r in metrics if r["kind"] == "sparsity" and r["step"] == step]
    return np.array([1 - layer["nonzero"] for layer in record["layers"].values()])


def gradient_norms(metrics: Sequence[Mapping[str, Any]], step: int = 0) -> np.ndarray:
    """L2 norm of the gradient of each square weight matrix [layers - 1], from the input on, at a recorded step."""
    (record,) = [r for r in metrics if r["kind"] == "gradients" and r["step"] == step]
    (norms,) = [np.array(v) for name, v in record["norms"].items() if name.startswith("layers/")]
    return norms


def zeros_at_start(record: Record) -> float:
    """Share of zeros on the first training batch, mean over layers."""
    return float(np.mean(zeros(metrics_of(record))))


def growth(norms: np.ndarray) -> float:
    """Largest over smallest gradient norm of the layers; infinite if one is not finite or a layer has none."""
    return float(norms.max() / norms.min()) if np.isfinite(norms).all() and norms.min() > 0 else math.inf


def log_norms(metrics: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """log10 of the gradient norms [steps, layers - 1] of the recorded steps; not finite counts as `FLOAT32_END`."""
    steps = [r["step"] for r in metrics if r["kind"] == "gradients"]
    norms = np.array([gradient_norms(metrics, step) for step in steps])
    with np.errstate(divide="ignore"):
        return np.where(np.isfinite(norms), np.log10(norms), FLOAT32_END)


def metrics_of(record: Record) -> list[dict[str, Any]]:
    """The records of a run's metrics.jsonl."""
    return read_metrics(record.files.metrics)


def loss_by_row(runs: Runs) -> Drawing:
    """Training loss against step, mean of 25 steps, one line a seed, one panel a row; the axis ends at 3 log 10."""
    rows, columns = list(dict.fromkeys(_without_seed(runs).values())), 5
    figure, axes = draw.panels(-(-len(rows) // columns), columns, height=1.7, sharex=True, sharey=True)
    flat = np.ravel(axes)
    for name, view in runs.items():
        train = view.records("train")
        steps, losses = draw.smoothed([r["step"] for r in train], [r["loss"] for r in train], 25)
        flat[rows.index(_without_seed(runs)[name])].plot(steps, losses, lw=0.8)
    for axis, row in zip(flat, rows, strict=False):
        axis.set(title=row, yscale="log", ylim=(1e-4, 3 * math.log(10)))
    for axis in flat[len(rows) :]:
        axis.set_axis_off()
    flat[0].set_ylabel("loss (nats)")
    return draw.done(figure)


def _without_seed(runs: Runs) -> dict[str, str]:
    """What tells the runs apart beside the seed, by name."""
    short = {name: re.sub(r"_seed\d+", "", name) for name in runs}
    words = {name: text.split("_") for name, text in short.items()}
    shared = 0
    while len({tuple(w[: shared + 1]) for w in words.values()}) == 1 and all(
        len(w) > shared + 1 for w in words.values()
    ):
        shared += 1
    return {name: "_".join(w[shared:]) for name, w in words.items()}
