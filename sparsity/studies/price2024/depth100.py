"""Price et al. 2024, Table 2 at the paper's own depth: the key rows in 100 layers, trained."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sparsity.studies import draw
from sparsity.studies.draw import Drawing, Runs
from sparsity.studies.price2024.runs import gradient_norms, log_norms, loss_by_row, metrics_of, row_and_seed, zeros
from sparsity.studies.price2024.table2 import accuracy_by_row, findings, table
from sparsity.studies.runner import Record, Row, Study


def series(records: Sequence[Record]) -> list[Row]:
    """One line a recorded step of a run, measured on its training batch.

    Loss, accuracy, share of zeros (mean over layers), and the gradient's L2 norm of the weights of layers 2 to 100,
    g2 to g100.
    """
    rows = []
    for record in records:
        row, seed = row_and_seed(record.config.name)
        metrics = metrics_of(record)
        train = {r["step"]: r for r in metrics if r["kind"] == "train"}
        for step in (r["step"] for r in metrics if r["kind"] == "gradients"):
            norms = gradient_norms(metrics, step)
            line = {"row": row, "seed": seed, "step": step, "zeros": float(f"{np.mean(zeros(metrics, step)):.4g}")}
            line |= {key: float(f"{train[step][key]:.4g}") for key in ("loss", "accuracy")}
            rows.append(line | {f"g{i + 2}": float(f"{norm:.3g}") for i, norm in enumerate(norms)})
    return rows


def trained_gradients(runs: Runs) -> Drawing:
    """Gradient norm (L2, of each layer's weights) against layer at the recorded steps, dark (first) to light (last)."""
    names = list(runs)
    figure, axes = draw.panels(-(-len(names) // 4), 4, height=1.8, sharex=True, sharey=True)
    for axis, name in zip(np.ravel(axes), names, strict=False):
        logs = log_norms(runs[name].metrics)
        for i, line in enumerate(logs):
            axis.plot(np.arange(2, len(line) + 2), line, color=draw.color(i, len(logs)), lw=0.8)
        axis.set_title(row_and_seed(name)[0])
    np.ravel(axes)[0].set_ylabel("log10 gradient norm")
    return draw.done(figure)


DEPTH100 = Study(
    name="price2024/depth100",
    title="Price et al. 2024, Table 2: 100 layers, trained",
    introduction=(
        "The key rows of Table 2 at the paper's own depth, one run each, on digits and for a fraction of the paper's "
        "steps. A row at chance after so few steps may be slow, not untrainable: ReLU's own row is the yardstick."
    ),
    findings=findings,
    figures={
        "Training loss": loss_by_row,
        "Accuracy and sparsity": accuracy_by_row,
        "Gradients": trained_gradients,
    },
    table=table,
    draws_diverged=True,
    series=series,
)
