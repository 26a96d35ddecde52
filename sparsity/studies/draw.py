"""Figures, drawn from records alone. Each takes runs by name: one run or several."""

from __future__ import annotations

import dataclasses
import inspect
import io
from collections.abc import Callable, Mapping
from typing import Any

import matplotlib

matplotlib.use("Agg")  # before pyplot: no display is needed or touched

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from sparsity.evals.result import Measure
from sparsity.layers.sparsify import HISTOGRAM_EDGES
from sparsity.run import Outcome, Workdir
from sparsity.writer import read_json, read_metrics

_STYLE = {
    "svg.fonttype": "none",  # text stays text: small, searchable
    "svg.hashsalt": "sparsity",  # the same figure gives the same file
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
}


@dataclasses.dataclass(frozen=True)
class RunView:
    """All that a report shows of one run.

    Attributes:
      outcome: how it ended, with the final measures and arrays.
      metrics: the records of metrics.jsonl.
      config: its config as plain values.
    """

    outcome: Outcome
    metrics: list[dict[str, Any]]
    config: dict[str, Any]

    @classmethod
    def of(cls, files: Workdir, outcome: Outcome) -> RunView:
        """The view of a run's workdir."""
        return cls(outcome, read_metrics(files.metrics), read_json(files.config))

    def records(self, kind: str) -> list[dict[str, Any]]:
        """The metrics of one kind."""
        return [r for r in self.metrics if r["kind"] == kind]

    def measures(self) -> dict[str, Measure]:
        """The final measures by name."""
        return {m.name: m for m in self.outcome.measures}


Runs = Mapping[str, RunView]


def training_curves(runs: Runs) -> Drawing:
    """Loss (log y; nats, or mean squared error) and accuracy, if there is one, against step.

    Training is smoothed over 25 steps, validation dotted.
    """
    figure, axes = panels(1, 2)
    for i, (name, view) in enumerate(runs.items()):
        train, validation = view.records("train"), view.records("validation")
        for axis, key, val_keys in ((axes[0], "loss", ("nll", "mse")), (axes[1], "accuracy", ("accuracy",))):
            if not train or key not in train[0]:
                continue
            steps, values = smoothed([r["step"] for r in train], [r[key] for r in train], 25)
            axis.plot(steps, values, color=f"C{i}", label=f"{name}, training")
            points = [(r["step"], r[k]) for r in validation for k in val_keys if k in r]
            if points:
                axis.plot(*zip(*points, strict=True), "o:", color=f"C{i}", ms=4, label=f"{name}, validation")
    axes[0].set(yscale="log", xlabel="step", ylabel="loss")
    axes[1].set(xlabel="step", ylabel="accuracy", ylim=(None, 1.01))
    if len(runs) > 3:
        legend_beside(axes[0])
    else:
        axes[1 if axes[1].lines else 0].legend()
    return done(figure)


def nonzero_by_step(runs: Runs) -> Drawing:
    """Nonzero % of each MLP layer on training batches against step, log y, ±1 SE (Li et al., Fig. 1)."""
    figure, axes = _one_each(runs, "nonzero activations (%)")
    for axis, (name, view) in zip(axes, runs.items(), strict=True):
        rows = view.records("sparsity")
        layers = list(rows[0]["layers"]) if rows else []
        steps = [r["step"] for r in rows]
        shown = _some(layers)
        for layer, color in zip(layers, _layer_colors(len(layers)), strict=True):
            mean = 100 * np.array([r["layers"][layer]["nonzero"] for r in rows])
            se = 100 * np.array([r["layers"][layer]["se"] or 0 for r in rows])
            axis.plot(steps, mean, color=color, label=layer if layer in shown else f"_{layer}")
            axis.fill_between(steps, mean - se, mean + se, color=color, alpha=0.2, lw=0)
        axis.set(title=name, xlabel="step", ylim=(1, 100), yscale="log")  # in this order: all may be 0
        axis.set_yticks([1, 3, 10, 30, 100], ["1", "3", "10", "30", "100"])
    axes[0].legend()
    return done(figure)


def firing_rates(runs: Runs) -> Drawing:
    """Share of tokens on which each unit is nonzero, units sorted, per layer (Li et al., Fig. 3)."""
    figure, axes = _one_each(runs, "tokens on which it fires (%)")
    for axis, (name, view) in zip(axes, runs.items(), strict=True):
        rates = view.outcome.arrays.get("firing_rates", {})
        shown = _some(list(rates))
        for (layer, values), color in zip(rates.items(), _layer_colors(len(rates)), strict=True):
            label = layer if layer in shown else f"_{layer}"
            axis.plot(np.arange(1, len(values) + 1) / len(values), 100 * np.asarray(values), color=color, label=label)
        axis.set(title=name, xlabel="unit, sorted (share of layer)", yscale="symlog", ylim=(0, 105))
        axis.set_yscale("symlog", linthresh=0.1)
        axis.set_yticks([0, 0.1, 1, 10, 100], ["0", "0.1", "1", "10", "100"])
    if axes[0].lines:
        axes[0].legend()
    return done(figure)


def pre_activations(runs: Runs) -> Drawing:
    """Histograms of pre-activations, first and last record of training, per layer (eight of many) and run."""
    layers = {name: _some(list(view.records("sparsity")[0]["layers"])) for name, view in runs.items()}
    figure, axes = panels(len(runs), max(map(len, layers.values())), height=1.8, sharex=True)
    centres = (HISTOGRAM_EDGES[:-1] + HISTOGRAM_EDGES[1:]) / 2
    width = HISTOGRAM_EDGES[1] - HISTOGRAM_EDGES[0]
    for row, (name, view) in zip(np.atleast_2d(axes), runs.items(), strict=True):
        rows = view.records("sparsity")
        for axis in row[len(layers[name]) :]:
            axis.set_visible(False)
        for axis, layer in zip(row, layers[name], strict=False):
            for record, color, label in ((rows[0], "C7", "start"), (rows[-1], "C3", "end")):
                counts = np.asarray(record["layers"][layer]["histogram"])
                # Tails beyond the edges are part of the total, not drawn.
                axis.step(centres, counts[1:-1] / counts.sum() / width, where="mid", color=color, label=label)
            axis.axvline(0, color="k", lw=0.5)
            axis.set(title=f"{name}\n{layer}", yticks=[], xlim=(-6, 4))
        row[0].set_ylabel("density")
    np.atleast_2d(axes)[0, 0].legend()
    for axis in np.atleast_2d(axes)[-1]:
        axis.set_xlabel("pre-activation z")
    return done(figure)


def reliability_diagram(runs: Runs) -> Drawing:
    """Accuracy against mean confidence per bin; area of a dot: examples in the bin (Guo et al. 2017)."""
    figure, axes = _one_each(runs, "accuracy", height=3.2)
    for axis, (name, view) in zip(axes, runs.items(), strict=True):
        axis.plot([0, 1], [0, 1], "k:", lw=1, label="_as confident as right")
        bins = view.outcome.arrays.get("reliability")
        if bins:
            count = np.asarray(bins["count"], float)
            axis.scatter(bins["confidence"], bins["accuracy"], s=10 + 300 * count / count.sum(), alpha=0.7)
        ece = view.measures().get("ece")
        axis.set(title=f"{name}\nECE {ece}" if ece else name, xlabel="confidence", xlim=(0, 1.03), ylim=(0, 1.03))
    return done(figure)


def receptive_fields(fields: np.ndarray, activity: np.ndarray, columns: int = 25) -> Drawing:
    """Fields of single units, the most active first, row by row; each is scaled by its largest weight, grey is 0.

    The weights `fields` [n, h, w, c] (grey or RGB) are drawn as 0.5 w / max|w| + 0.5, in the order of `activity` [n]
    (Bricken et al., Fig. 7: that on one noisy image), ties in the units' order. A unit without weights is all grey.

    Raises:
      ValueError: fields of another shape, activities of another number, or fewer than one column.
    """
    fields, activity = np.asarray(fields, np.float64), np.asarray(activity)
    if fields.ndim != 4 or fields.shape[3] not in (1, 3) or not len(fields):
        raise ValueError(f"fields: expected [n, h, w, 1 or 3], at least one, got {list(fields.shape)}")
    if activity.shape != (len(fields),):
        raise ValueError(f"activity: expected [{len(fields)}], one of each field, got {list(activity.shape)}")
    if columns < 1:
        raise ValueError(f"columns: must be at least 1, got {columns}")
    n, h, w, c = fields.shape
    columns = min(columns, n)
    rows = -(-n // columns)
    largest = np.abs(fields).max((1, 2, 3), keepdims=True)
    scaled = 0.5 * fields / np.where(largest > 0, largest, 1) + 0.5
    sheet = np.ones((rows * columns, h + 1, w + 1, c))  # a white line after each
    sheet[:n, :h, :w] = scaled[np.argsort(-activity, kind="stable")]
    sheet = sheet.reshape(rows, columns, h + 1, w + 1, c).swapaxes(1, 2).reshape(rows * (h + 1), columns * (w + 1), c)
    sheet = sheet[:-1, :-1]
    figure, axes = panels(1, 1, height=max(9.5 * sheet.shape[0] / sheet.shape[1], 0.5))
    axes[0].imshow(sheet if c == 3 else sheet[..., 0], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes[0].set_axis_off()
    return done(figure)


# The figures of training runs, in the order of a report; a figure's docstring is its caption.
FIGURES: dict[str, Callable[[Runs], Drawing]] = {
    "Nonzero activations": nonzero_by_step,
    "Training": training_curves,
    "Firing rates": firing_rates,
    "Pre-activations": pre_activations,
    "Calibration": reliability_diagram,
}

# What a figure is drawn from: records of a kind, or an array of the final evaluation.
_OF = {
    "Nonzero activations": "sparsity",
    "Training": "train",
    "Firing rates": "firing_rates",
    "Pre-activations": "sparsity",
    "Calibration": "reliability",
}


def drawable(runs: Runs) -> dict[str, Callable[[Runs], Drawing]]:
    """The figures of training runs for which each of these has something to draw."""
    has = {name: {*view.outcome.arrays, *(r["kind"] for r in view.metrics)} for name, view in runs.items()}
    return {heading: figure for heading, figure in FIGURES.items() if all(_OF[heading] in of for of in has.values())}


def panels(rows: int, columns: int, height: float = 2.9, **kwargs: Any) -> tuple[Figure, Any]:
    """A figure as wide as a report and its axes: an array [columns] for one row, else [rows, columns]."""
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(
            rows, columns, figsize=(9.5, height * rows), squeeze=False, layout="constrained", **kwargs
        )
    return figure, axes[0] if rows == 1 else axes


def _one_each(runs: Runs, y_label: str, height: float = 2.9) -> tuple[Figure, np.ndarray]:
    """A figure and one panel a run, three in a row at most; all share the y axis."""
    columns = min(len(runs), 3)
    figure, axes = panels(-(-len(runs) // columns), columns, height, sharey=True)
    axes = np.ravel(axes)
    for axis in axes[::columns]:
        axis.set_ylabel(y_label)
    for axis in axes[len(runs) :]:
        axis.set_visible(False)
    return figure, axes[: len(runs)]


def log_y(axis: Any) -> None:
    """A logarithmic y axis whose ticks are plain numbers, also where all of them lie within one decade."""
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter(_Plain())
    axis.yaxis.set_minor_formatter(_Plain(labelOnlyBase=False))


class _Plain(LogFormatter):
    """Labels the ticks that matplotlib would label, with %g in place of powers of ten."""

    def __call__(self, x, pos=None):
        return f"{x:g}" if super().__call__(x, pos) else ""


def legend_beside(axis: Any, title: str | None = None) -> None:
    """The legend of `axis`, right of the whole figure, where it hides nothing."""
    axis.figure.legend(*axis.get_legend_handles_labels(), title=title, loc="outside right upper")


@dataclasses.dataclass(frozen=True)
class Drawing:
    """A finished figure; a notebook shows it as the picture."""

    figure: Figure

    def svg(self) -> str:
        """An <svg> element, without the XML header and date: the same data give the same text."""
        buffer = io.StringIO()
        with plt.rc_context(_STYLE):
            self.figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
        text = buffer.getvalue()
        return text[text.index("<svg") :]

    def png(self) -> bytes:
        """A PNG of 150 dots per inch."""
        buffer = io.BytesIO()
        with plt.rc_context(_STYLE):
            self.figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
        return buffer.getvalue()

    def _repr_html_(self) -> str:
        return self.svg()


@dataclasses.dataclass(frozen=True)
class Captioned:
    """A drawing with its caption."""

    drawing: Drawing
    caption: str

    @classmethod
    def of(cls, figure: Callable[[Runs], Drawing], runs: Runs) -> Captioned:
        """What `figure` draws of `runs`, captioned by its docstring."""
        return cls(figure(runs), inspect.cleandoc(figure.__doc__))


def done(figure: Figure) -> Drawing:
    """`figure`, no longer held by pyplot, which would keep it for ever."""
    plt.close(figure)
    return Drawing(figure)


def color(i: int, n: int) -> Any:
    """The i-th of n colours in order, dark to light."""
    return plt.get_cmap("viridis")(i / max(n, 1))


def _some(layers: list[str]) -> list[str]:
    """Eight of many layers, evenly spread, the first and the last among them."""
    return [layers[round(i)] for i in np.linspace(0, len(layers) - 1, min(8, len(layers)))]


def _layer_colors(n: int) -> list[Any]:
    return [color(i, n) for i in range(n)]


def smoothed(steps: list[int], values: list[float], window: int) -> tuple[np.ndarray, np.ndarray]:
    """Means over consecutive windows, at the windows' centres."""
    groups = range(0, len(steps), window)
    return tuple(np.array([np.mean(v[i : i + window]) for i in groups]) for v in (steps, values))
