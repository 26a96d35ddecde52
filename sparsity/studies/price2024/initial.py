"""Price et al. 2024 at initialisation: the signal of all rows of Table 2 through 100 random layers."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from sparsity.studies import draw
from sparsity.studies.draw import Drawing, Runs, RunView
from sparsity.studies.judge import Claim, Effect
from sparsity.studies.price2024.runs import (
    EXTRA_FIXED_POINTS,
    FLOAT32_END,
    by_row,
    gradient_norms,
    growth,
    metrics_of,
    row_and_seed,
    target,
    variances,
    zeros,
)
from sparsity.studies.runner import Record, Row, Study


def _leaves(record: Record) -> bool:
    """Whether q_l leaves [1/2, 2] at some layer of 100."""
    q = variances(metrics_of(record))
    return not bool(np.all((q > 0.5) & (q < 2)))


def table(records: Sequence[Record]) -> list[Row]:
    """Every row of Table 2 through 100 random layers, on the first training batch, n seeds.

    q_100: mean of z^2 of the last hidden layer, least, median and largest over seeds. leaves: seeds in which q_l
    leaves [1/2, 2] at some layer. zeros: share of zeros, mean over layers and seeds. growth: largest over smallest
    norm of a layer's weight gradient, median over seeds (inf: a norm is not finite or is 0). q_100 is inf where z^2 is
    beyond float32, though z is not.
    """
    rows = []
    for row, runs in by_row(records).items():
        metrics = [metrics_of(r) for r in runs.values()]
        last = [variances(m)[-1] for m in metrics]
        rows.append(
            {
                "row": row,
                "n": len(metrics),
                "q_100, least": float(np.min(last)),
                "q_100": float(np.median(last)),
                "q_100, largest": float(np.max(last)),
                "leaves": sum(map(_leaves, runs.values())),
                "s": target(row),
                "zeros": float(np.mean([zeros(m) for m in metrics])),
                "growth": float(np.median([growth(gradient_norms(m)) for m in metrics])),
            }
        )
    return rows


def _families(runs: Runs) -> dict[str, list[tuple[str, str, RunView]]]:
    """(row, name, view) of the runs by kind of activation."""
    out: dict[str, list[tuple[str, str, RunView]]] = {"unclipped": [], "CReLU": [], "CST": []}
    for name, view in runs.items():
        row, _ = row_and_seed(name)
        kind = "CReLU" if row.startswith("crelu") else "CST" if row.startswith("cst") else "unclipped"
        out[kind].append((row, name, view))
    return out


def variance_by_layer(runs: Runs) -> Drawing:
    """q_l against layer l at initialisation, one line a run, colour by row; rows with further fixed points dashed."""
    return _by_layer(runs, variances, "variance q_l")


def gradients_by_layer(runs: Runs) -> Drawing:
    """L2 norm of the gradient of each layer's weights at initialisation, one line a run, colour by row."""
    return _by_layer(runs, gradient_norms, "gradient norm")


def zeros_by_layer(runs: Runs) -> Drawing:
    """Share of zeros in each layer at initialisation, one line a run, colour by row."""
    return _by_layer(runs, zeros, "share of zeros")


def _by_layer(runs: Runs, value: Callable[[Sequence[Mapping[str, Any]]], np.ndarray], label: str) -> Drawing:
    figure, axes = draw.panels(1, 3, height=3.4, sharex=True)
    for axis, (kind, members) in zip(axes, _families(runs).items(), strict=True):
        rows = list(dict.fromkeys(row for row, *_ in members))
        for row, _, view in members:
            values = value(view.metrics)
            color = draw.color(rows.index(row), len(rows))
            style = "--" if row in EXTRA_FIXED_POINTS else "-"
            first = not any(line.get_label() == row for line in axis.lines)
            layers = np.arange(101 - len(values), 101) if len(values) < 101 else np.arange(1, len(values) + 1)
            axis.plot(layers, values, style, color=color, lw=0.8, label=row if first else None)
        axis.set(title=kind, xlabel="layer")
        if members:
            axis.legend(fontsize=5, ncols=2)
        if label != "share of zeros":
            axis.set_yscale("log")
    axes[0].set_ylabel(label)
    return draw.done(figure)


def findings(records: Sequence[Record]) -> list[str]:
    """Which rows leave q*, keep their sparsity, and let gradients grow."""
    rows = table(records)
    left = ", ".join(f"{r['row']} ({r['leaves']} of {r['n']})" for r in rows if r["leaves"])
    grown = ", ".join(f"{r['row']} ({r['growth']:.3g})" for r in rows if not r["growth"] < 1e3)
    stay = [(abs(r["zeros"] - r["s"]), r["row"]) for r in rows if r["row"].startswith("c") and not r["leaves"]]
    off = "{:.3f} of s (worst: {})".format(*max(stay)) if stay else "no row stays"
    return [
        f"q_l leaves [1/2, 2] within 100 layers in: {left or 'none'}.",
        f"Gradient norms differ by more than 1,000 between layers (median over seeds) in: {grown or 'none'}.",
        f"Initial sparsity of the clipped rows that stay: within {off}.",
    ]


def _by_seed(
    records: Sequence[Record], chosen: Callable[[str], bool], value: Callable[[Record], float]
) -> dict[int, float]:
    """Mean of `value` over the chosen rows, by seed: rows of one seed share their random numbers."""
    found: dict[int, list[float]] = {}
    for row, runs in by_row(records).items():
        for seed, record in runs.items() if chosen(row) else ():
            found.setdefault(seed, []).append(value(record))
    return {seed: float(np.mean(values)) for seed, values in found.items()}


def _over_seeds(records: Sequence[Record], chosen: Callable[[str], bool], value: Callable[[Record], float]) -> Effect:
    return Effect.of(list(_by_seed(records, chosen, value).values()))


def _log_last(record: Record) -> float:
    """log10 q_100; a z^2 beyond float32 counts as `FLOAT32_END`."""
    q = float(variances(metrics_of(record))[-1])
    return math.log10(q) if math.isfinite(q) else FLOAT32_END


def _divergence(records: Sequence[Record]) -> Effect:
    unclipped = _by_seed(records, lambda row: not row.startswith("c") and row != "relu", _log_last)
    relu = _by_seed(records, lambda row: row == "relu", _log_last)
    return Effect.of([unclipped[seed] - relu[seed] for seed in unclipped.keys() & relu.keys()])


CLAIMS = (
    Claim(
        id="P9",
        where="Secs. 2, 3",
        statement="q_l stays near q* through 100 layers in every clipped row but CST .8/.9 and .85/.9",
        effect="share of these rows in which q_l leaves [1/2, 2] at some layer",
        unit="seed",
        side="below",
        threshold=0.1,
        measure=functools.partial(
            _over_seeds,
            chosen=lambda row: row.startswith("c") and row not in EXTRA_FIXED_POINTS,
            value=_leaves,
        ),
    ),
    Claim(
        id="P9.extra",
        where="Sec. 3.1",
        statement="in CST .8/.9 and .85/.9 it does not: it passes their unstable fixed points (q = 1.40, 1.26)",
        effect="q_100, mean of cst_0.8_0.9 and cst_0.85_0.9",
        unit="seed",
        side="above",
        threshold=1.4,
        measure=functools.partial(
            _over_seeds,
            chosen=lambda row: row in EXTRA_FIXED_POINTS,
            value=lambda record: float(variances(metrics_of(record))[-1]),
        ),
    ),
    Claim(
        id="P9.unclipped",
        where="Sec. 2",
        statement="unclipped with tau > 0 it diverges, unlike ReLU's",
        effect="log10 q_100, mean of the five unclipped rows with tau > 0, less ReLU's",
        unit="seed",
        side="above",
        threshold=1.0,
        measure=_divergence,
    ),
    Claim(
        id="P5.initial",
        where="Sec. 4",
        statement="s = .85 with the smallest m has no exploding gradients at initialisation",
        effect="log10(largest / smallest gradient norm of a layer), mean of crelu_0.85_0.5 and cst_0.85_0.5",
        unit="seed",
        side="below",
        threshold=1.0,
        measure=functools.partial(
            _over_seeds,
            chosen=lambda row: row in ("crelu_0.85_0.5", "cst_0.85_0.5"),
            value=lambda record: math.log10(growth(gradient_norms(metrics_of(record)))),
        ),
    ),
)

INITIAL = Study(
    name="price2024/initial",
    title="Price et al. 2024: the signal through 100 random layers",
    introduction=(
        "All 33 activations of Table 2 in the paper's own network, width 300 and depth 100, before training: the "
        "variance of pre-activations, the share of zeros and the gradients' norms, layer by layer, on real images. "
        "What separates the rows that train from those that do not is mostly visible here."
    ),
    findings=findings,
    figures={"Variance": variance_by_layer, "Gradients": gradients_by_layer, "Sparsity": zeros_by_layer},
    claims=CLAIMS,
    table=table,
    draws_diverged=True,
)
