"""Price et al. 2024: the networks of their Table 2, at initialisation, over the first steps and trained.

The claims' thresholds were fixed before the runs. Accuracy is that on the test split; a run whose
loss or parameters became non-finite counts as one at chance, as in the paper.
"""

from __future__ import annotations

import csv
import functools
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from sparsity.recipes import PRICE_ROWS
from sparsity.studies import draw
from sparsity.studies.draw import Drawing, Runs, RunView
from sparsity.studies.judge import Claim, Effect
from sparsity.studies.price2024 import TABLE_2
from sparsity.studies.runner import Record, Row, Study
from sparsity.writer import read_metrics

CHANCE = 0.1
FAILS = 0.1  # a run fails if its accuracy is this far below that of ReLU with the same seed
TRAINED_AT_7 = ("crelu_0.6_0.7", "crelu_0.7_0.7", "crelu_0.85_0.7", "cst_0.85_0.7")
EXTRA_FIXED_POINTS = ("cst_0.8_0.9", "cst_0.85_0.9")
NEAR_IDENTITY = ("crelu_0.85_0.9", "cst_0.7_0.9")


# Runs by row of Table 2 and seed.


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
    records: Sequence[Record], rows: Sequence[str], value: Callable[[list[Record], Record], float]
) -> Effect:
    """The effect with one replicate a seed: `value` of that seed's records of `rows` and of its ReLU."""
    table = by_row(records)
    missing = [row for row in (*rows, "relu") if row not in table]
    if missing:
        return Effect.untestable(f"no run of {', '.join(missing)}")
    return Effect.of([value([table[row][seed] for row in rows], relu) for seed, relu in table["relu"].items()])


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
    row = row.split("_rate")[0]
    return float(row.split("_")[-1 if row.startswith(("relu_tau", "st")) else 1]) if row != "relu" else 0.5


def fails(record: Record, relu: Record) -> bool:
    """Whether a run is more than `FAILS` below ReLU's."""
    return accuracy(record) < accuracy(relu) - FAILS


# The signal through the layers, from the records of the first steps.


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
    return float(np.mean(zeros(_metrics(record))))


def growth(norms: np.ndarray) -> float:
    """Largest over smallest gradient norm of the layers; infinite if one is not finite or a layer has none."""
    return float(norms.max() / norms.min()) if np.isfinite(norms).all() and norms.min() > 0 else math.inf


def _metrics(record: Record) -> list[dict[str, Any]]:
    return read_metrics(record.files.metrics)


# Table 2.


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


def table_2_dnn(records: Sequence[Record]) -> list[Row]:
    """Every row of Table 2: the paper's test accuracy and sparsity (5 seeds) beside ours.

    Accuracy: mean, standard deviation and standard error over n seeds, a diverged run counting as chance; "not run"
    where none was trained. Best validation: the largest accuracy of a run's nine validations, mean over runs (a run
    may end on a loss spike). Zeros: share of zeros on the test split, mean over the runs that did not diverge.
    """
    return _against_paper(records, "dnn_acc_mean", "dnn_sparsity_mean")


def table_2_cnn(records: Sequence[Record]) -> list[Row]:
    """Every row of Table 2: the paper's test accuracy and sparsity of its CNN (one run) beside ours.

    Accuracy: mean, standard deviation and standard error over n seeds, a diverged run counting as chance; "not run"
    where none was trained. Best validation: the largest accuracy of a run's nine validations, mean over runs (a run
    may end on a loss spike). Zeros: share of zeros on the test split, mean over the runs that did not diverge.
    """
    return _against_paper(records, "cnn_acc", "cnn_sparsity")


def _against_paper(records: Sequence[Record], acc: str, zero: str) -> list[Row]:
    table, paper = by_row(records), printed()
    return [_row(row, paper.get(row, {}).get(acc), paper.get(row, {}).get(zero), list(table.get(row, {}).values()))
            for row in dict.fromkeys((*PRICE_ROWS, *table))]  # fmt: skip


def _row(row: str, paper_accuracy: float | None, paper_zeros: float | None, runs: list[Record]) -> Row:
    ours = [accuracy(r) for r in runs]
    kept = [s for s in map(sparsity, runs) if not math.isnan(s)]
    n = len(ours)
    std = float(np.std(ours, ddof=1)) if n > 1 else None
    mean = float(np.mean(ours)) if n else None
    return {
        "row": row,
        "n": n or "not run",
        "diverged": sum(r.outcome.status == "diverged" for r in runs) if n else None,
        "accuracy, paper": paper_accuracy,
        "accuracy": mean,
        "std": std,
        "se": None if std is None else std / math.sqrt(n),
        "difference": None if mean is None or paper_accuracy is None else mean - paper_accuracy,
        "best validation": float(np.mean([_best_validation(r) for r in runs])) if n else None,
        "zeros, paper": paper_zeros,
        "zeros": float(np.mean(kept)) if kept else None,
    }


def _best_validation(record: Record) -> float:
    return max((r["accuracy"] for r in _metrics(record) if r["kind"] == "validation"), default=CHANCE)


def accuracy_by_row(runs: Runs) -> Drawing:
    """Test accuracy of every run by row: dots, a cross at chance if it diverged; the paper's mean as a bar."""
    return _dots(runs, "dnn_acc_mean")


def cnn_accuracy_by_row(runs: Runs) -> Drawing:
    """Test accuracy of every run by row: dots, a cross at chance if it diverged; the paper's run as a bar."""
    return _dots(runs, "cnn_acc")


def _dots(runs: Runs, column: str) -> Drawing:
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


def _spike(record: Record) -> float:
    """log10 of the largest over the median training loss in the second half of training."""
    losses = [r["loss"] for r in _metrics(record) if r["kind"] == "train"]
    late = np.array(losses[len(losses) // 2 :])
    return float(np.log10(late.max() / np.median(late)))


def table_findings(records: Sequence[Record]) -> list[str]:
    """What the trained rows show, in sentences."""
    table = by_row(records)
    out = []
    for row, runs in table.items():
        values = [accuracy(r) for r in runs.values()]
        diverged = sum(r.outcome.status == "diverged" for r in runs.values())
        kept = [s for s in map(sparsity, runs.values()) if not math.isnan(s)]
        line = f"{row}: test accuracy {100 * np.mean(values):.1f}%"
        line += f" (std {100 * np.std(values, ddof=1):.1f}, n = {len(values)})" if len(values) > 1 else " (one run)"
        line += f", zeros {100 * np.mean(kept):.1f}%" if kept else ""
        out.append(line + (f"; {diverged} of {len(values)} diverged" if diverged else "") + ".")
    trained = [row for row in PRICE_ROWS if row in table]
    return [*out, f"{len(PRICE_ROWS) - len(trained)} of the {len(PRICE_ROWS)} rows of Table 2 were not run here."]


def _mean_gap(runs: list[Record], relu: Record) -> float:
    return float(np.mean([accuracy(r) for r in runs])) - accuracy(relu)


def _drift(runs: list[Record], _: Record) -> float:
    # np.max, unlike max, keeps NaN: a diverged run has no sparsity to keep.
    return float(np.max([abs(sparsity(r) - target(row_and_seed(r.config.name)[0])) for r in runs]))


DNN_CLAIMS = (
    Claim(
        id="P1",
        where="Table 2, DNN",
        statement="unclipped fails: ReLU_tau at s = .7 and ST at s = .5 do not train",
        effect="mean test accuracy of relu_tau_0.7 and st_0.5 (diverged: chance, .1)",
        unit="seed",
        side="below",
        threshold=0.2,
        measure=functools.partial(
            over_seeds,
            rows=("relu_tau_0.7", "st_0.5"),
            value=lambda runs, _: float(np.mean([accuracy(r) for r in runs])),
        ),
        headline=True,
    ),
    Claim(
        id="P1.some",
        where="Table 2, DNN",
        statement="ReLU_tau at s = .6 fails in some seeds (.76 +- .37)",
        effect="test accuracy of relu_tau_0.6 less that of ReLU",
        unit="seed",
        side="below",
        threshold=-0.02,
        measure=functools.partial(over_seeds, rows=("relu_tau_0.6",), value=_mean_gap),
    ),
    Claim(
        id="P2",
        where="Table 2, DNN",
        statement="clipped trains: CReLU and CST with V' = .7 and s up to .85 come within 2 points of ReLU",
        effect=f"mean test accuracy of {', '.join(TRAINED_AT_7)} less that of ReLU",
        unit="seed",
        side="above",
        threshold=-0.02,
        measure=functools.partial(over_seeds, rows=TRAINED_AT_7, value=_mean_gap),
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
        measure=functools.partial(over_seeds, rows=TRAINED_AT_7, value=_drift),
        headline=True,
    ),
    Claim(
        id="P3",
        where="Table 2, DNN",
        statement="CST .8/.9 and .85/.9 fail by extra fixed points",
        effect="mean test accuracy of cst_0.8_0.9 and cst_0.85_0.9 less that of ReLU",
        unit="seed",
        side="below",
        threshold=-FAILS,
        measure=functools.partial(over_seeds, rows=EXTRA_FIXED_POINTS, value=_mean_gap),
    ),
    Claim(
        id="P4",
        where="Table 2, DNN; Fig. 4a",
        statement="CReLU .85/.9 and CST .7/.9 fail in most seeds with one fixed point",
        effect=f"share of their runs more than {FAILS:g} below ReLU in test accuracy",
        unit="seed",
        side="above",
        threshold=0.5,
        measure=functools.partial(
            over_seeds,
            rows=NEAR_IDENTITY,
            value=lambda runs, relu: float(np.mean([fails(r, relu) for r in runs])),
        ),
    ),
    Claim(
        id="P5",
        where="Table 2; App. G",
        statement="s = .85 with the smallest m (V' = .5) ends below the rest",
        effect="test accuracy of crelu_0.85_0.5 less that of crelu_0.85_0.7",
        unit="seed",
        side="below",
        threshold=-0.02,
        measure=functools.partial(
            over_seeds,
            rows=("crelu_0.85_0.5", "crelu_0.85_0.7"),
            value=lambda runs, _: accuracy(runs[0]) - accuracy(runs[1]),
        ),
    ),
    Claim(
        id="P5.spikes",
        where="App. G",
        statement="and trains unstably late, with large loss spikes",
        effect="log10(largest / median training loss of the second half) of crelu_0.85_0.5 less that of crelu_0.85_0.7",
        unit="seed",
        side="above",
        threshold=0.0,
        measure=functools.partial(
            over_seeds,
            rows=("crelu_0.85_0.5", "crelu_0.85_0.7"),
            value=lambda runs, _: _spike(runs[0]) - _spike(runs[1]),
        ),
    ),
    Claim(
        id="P6",
        where="Table 2, DNN",
        statement="accuracy does not fall from s = .6 to .85",
        effect="test accuracy of crelu_0.85_0.7 less that of crelu_0.6_0.7",
        unit="seed",
        side="above",
        threshold=-0.02,
        measure=functools.partial(
            over_seeds,
            rows=("crelu_0.85_0.7", "crelu_0.6_0.7"),
            value=lambda runs, _: accuracy(runs[0]) - accuracy(runs[1]),
        ),
    ),
)

CNN_CLAIMS = (
    Claim(
        id="P7",
        where="Table 2, CNN",
        statement="CReLU trains in every cell: at most 6 points below ReLU at s = .85",
        effect="least test accuracy of crelu_0.7_0.7 and of crelu_0.85 at V' = .7, .9, less that of ReLU",
        unit="seed",
        side="above",
        threshold=-FAILS,
        measure=functools.partial(
            over_seeds,
            rows=("crelu_0.7_0.7", "crelu_0.85_0.7", "crelu_0.85_0.9"),
            value=lambda runs, relu: min(accuracy(r) for r in runs) - accuracy(relu),
        ),
    ),
    Claim(
        id="P7.keeps",
        where="Table 2, CNN",
        statement="ReLU's accuracy is kept to s = .7",
        effect="test accuracy of crelu_0.7_0.7 less that of ReLU",
        unit="seed",
        side="above",
        threshold=-0.02,
        measure=functools.partial(over_seeds, rows=("crelu_0.7_0.7",), value=_mean_gap),
    ),
    Claim(
        id="P7.loses",
        where="Table 2, CNN",
        statement="4 to 6 points are lost at s = .85",
        effect="mean test accuracy of crelu_0.85 at V' = .7, .9, less that of ReLU",
        unit="seed",
        side="below",
        threshold=0.0,
        measure=functools.partial(over_seeds, rows=("crelu_0.85_0.7", "crelu_0.85_0.9"), value=_mean_gap),
    ),
    Claim(
        id="P7.drift",
        where="Table 2, CNN",
        statement="sparsity drifts by no more than .03",
        effect="largest |share of zeros - s| of the CReLU rows",
        unit="seed",
        side="below",
        threshold=0.03,
        measure=functools.partial(
            over_seeds,
            rows=("crelu_0.7_0.7", "crelu_0.85_0.7", "crelu_0.85_0.9"),
            value=_drift,
        ),
    ),
    Claim(
        id="P7.unclipped",
        where="Table 2, CNN",
        statement="ReLU_tau at s = .6 trains in the CNN",
        effect="test accuracy of relu_tau_0.6 less that of ReLU",
        unit="seed",
        side="above",
        threshold=-FAILS,
        measure=functools.partial(over_seeds, rows=("relu_tau_0.6",), value=_mean_gap),
    ),
    Claim(
        id="P1.cnn",
        where="Table 2, CNN",
        statement="ReLU_tau at s = .7 does not train in the CNN either (.10)",
        effect="test accuracy of relu_tau_0.7 less that of ReLU",
        unit="seed",
        side="below",
        threshold=-FAILS,
        measure=functools.partial(over_seeds, rows=("relu_tau_0.7",), value=_mean_gap),
    ),
    Claim(
        id="P3.cnn",
        where="Table 2, CNN",
        statement="CST .8/.9 and .85/.9 fail in the CNN too (.31, .29)",
        effect="mean test accuracy of cst_0.8_0.9 and cst_0.85_0.9 less that of ReLU",
        unit="seed",
        side="below",
        threshold=-FAILS,
        measure=functools.partial(over_seeds, rows=EXTRA_FIXED_POINTS, value=_mean_gap),
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
    findings=table_findings,
    figures={"Accuracy and sparsity": accuracy_by_row, "Training loss": loss_by_row},
    claims=DNN_CLAIMS,
    table=table_2_dnn,
)

TABLE2_CNN = Study(
    name="price2024/table2_cnn",
    title="Price et al. 2024, Table 2: deep CNNs with sparse activations",
    introduction=(
        "Deep convolutional networks, circular padding, stride 1, initialised on the edge of chaos at q* = 1 and "
        "trained by SGD without momentum; rows as in price2024/table2. The paper trains 50 layers of 300 channels on "
        "CIFAR10; what changed here stands in the config's docstring."
    ),
    findings=table_findings,
    figures={"Accuracy and sparsity": cnn_accuracy_by_row, "Training loss": loss_by_row},
    claims=CNN_CLAIMS,
    table=table_2_cnn,
)


# At initialisation: 100 layers, untrained.


def _leaves(record: Record) -> bool:
    """Whether q_l leaves [1/2, 2] at some layer of 100."""
    q = variances(_metrics(record))
    return not bool(np.all((q > 0.5) & (q < 2)))


def table_initial(records: Sequence[Record]) -> list[Row]:
    """Every row of Table 2 through 100 random layers, on the first training batch, n seeds.

    q_100: mean of z^2 of the last hidden layer, least, median and largest over seeds. leaves: seeds in which q_l
    leaves [1/2, 2] at some layer. zeros: share of zeros, mean over layers and seeds. growth: largest over smallest
    norm of a layer's weight gradient, median over seeds (inf: a norm is not finite or is 0).
    """
    rows = []
    for row, runs in by_row(records).items():
        metrics = [_metrics(r) for r in runs.values()]
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


def initial_findings(records: Sequence[Record]) -> list[str]:
    """Which rows leave q*, keep their sparsity, and let gradients grow."""
    rows = table_initial(records)
    left = ", ".join(f"{r['row']} ({r['leaves']} of {r['n']})" for r in rows if r["leaves"])
    grown = ", ".join(f"{r['row']} ({r['growth']:.3g})" for r in rows if not r["growth"] < 1e3)
    off = max((abs(r["zeros"] - r["s"]), r["row"]) for r in rows if r["row"].startswith("c") and not r["leaves"])
    return [
        f"q_l leaves [1/2, 2] within 100 layers in: {left or 'none'}.",
        f"Gradient norms differ by more than 1,000 between layers (median over seeds) in: {grown or 'none'}.",
        f"Initial sparsity of the clipped rows that stay: within {off[0]:.3f} of s (worst: {off[1]}).",
    ]


def _share_leaving(records: Sequence[Record], chosen: Callable[[str], bool]) -> Effect:
    runs = [r for row, seeds in by_row(records).items() if chosen(row) for r in seeds.values()]
    return Effect.of([float(_leaves(r)) for r in runs])


INITIAL_CLAIMS = (
    Claim(
        id="P9",
        where="Secs. 2, 3",
        statement="q_l stays near q* through 100 layers in every clipped row but CST .8/.9 and .85/.9",
        effect="share of runs of these rows in which q_l leaves [1/2, 2] at some layer",
        unit="run",
        side="below",
        threshold=0.1,
        measure=functools.partial(
            _share_leaving, chosen=lambda row: row.startswith("c") and row not in EXTRA_FIXED_POINTS
        ),
    ),
    Claim(
        id="P9.extra",
        where="Sec. 3.1",
        statement="in CST .8/.9 and .85/.9 it does not: it settles on a further fixed point",
        effect="share of their runs in which q_l leaves [1/2, 2] at some layer",
        unit="run",
        side="above",
        threshold=0.5,
        measure=functools.partial(_share_leaving, chosen=lambda row: row in EXTRA_FIXED_POINTS),
    ),
    Claim(
        id="P9.unclipped",
        where="Sec. 2",
        statement="unclipped with tau > 0 it diverges",
        effect="share of runs of the five unclipped rows with tau > 0 in which q_l leaves [1/2, 2] at some layer",
        unit="run",
        side="above",
        threshold=0.5,
        measure=functools.partial(_share_leaving, chosen=lambda row: not row.startswith("c") and row != "relu"),
    ),
    Claim(
        id="P5.initial",
        where="Sec. 4",
        statement="s = .85 with the smallest m has no exploding gradients at initialisation",
        effect="log10(largest / smallest gradient norm of a layer) of crelu_0.85_0.5 and cst_0.85_0.5",
        unit="run",
        side="below",
        threshold=1.0,
        measure=lambda records: Effect.of(
            [
                math.log10(growth(gradient_norms(_metrics(r))))
                for row, seeds in by_row(records).items()
                if row in ("crelu_0.85_0.5", "cst_0.85_0.5")
                for r in seeds.values()
            ]
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
    findings=initial_findings,
    figures={"Variance": variance_by_layer, "Gradients": gradients_by_layer, "Sparsity": zeros_by_layer},
    claims=INITIAL_CLAIMS,
    table=table_initial,
)


# Fig. 5: the first steps.

FLOAT32_END = 38.0  # log10 of the largest float32: what a norm that is not finite counts as


def _log_norms(metrics: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """log10 of the gradient norms [steps, layers - 1] of the recorded steps; not finite counts as `FLOAT32_END`."""
    steps = [r["step"] for r in metrics if r["kind"] == "gradients"]
    norms = np.array([gradient_norms(metrics, step) for step in steps])
    with np.errstate(divide="ignore"):
        return np.where(np.isfinite(norms), np.log10(norms), FLOAT32_END)


def table_fig5(records: Sequence[Record]) -> list[Row]:
    """One line a run: log10 of gradient norms (L2, of a layer's weights), and losses.

    At the first step: the second layer's less the last's (growth towards the input), and the largest layer's. The
    largest layer's at the third step, and over all 15. The loss before the first step and before the last. A norm
    that is not finite counts as 38.
    """
    rows = []
    for row, runs in by_row(records).items():
        for seed, record in runs.items():
            metrics = _metrics(record)
            logs = _log_norms(metrics)
            losses = [r["loss"] for r in metrics if r["kind"] == "train"]
            rows.append(
                {
                    "row": row,
                    "seed": seed,
                    "status": record.outcome.status,
                    "growth, step 1": float(logs[0, 0] - logs[0, -1]),
                    "largest, step 1": float(logs[0].max()),
                    "largest, step 3": float(logs[2].max()) if len(logs) > 2 else FLOAT32_END,
                    "largest, 15 steps": float(logs.max()),
                    "first loss": losses[0],
                    "last loss": losses[-1],
                }
            )
    return rows


def first_gradients(runs: Runs) -> Drawing:
    """Fig. 5: gradient norm (L2, of each layer's weights) against layer for the first 15 steps, dark to light.

    Of each row the seed whose norms come to be the largest: the paper shows a run that failed. Norms that are not
    finite leave the picture at its top.
    """
    rows = list(dict.fromkeys(row_and_seed(name)[0] for name in runs))
    figure, axes = draw.panels(1, len(rows), sharex=True, sharey=True)
    for axis, row in zip(axes, rows, strict=True):
        members = {name: _log_norms(view.metrics) for name, view in runs.items() if row_and_seed(name)[0] == row}
        worst = max(members, key=lambda name: members[name].max())
        for step, logs in enumerate(members[worst]):
            axis.plot(np.arange(2, len(logs) + 2), logs, color=draw.color(step, 15), lw=0.8)
        axis.set(title=f"{row}, seed {row_and_seed(worst)[1]}", xlabel="layer", ylim=(-16, 20))
    axes[0].set_ylabel("log10 gradient norm")
    return draw.done(figure)


def fig5_findings(records: Sequence[Record]) -> list[str]:
    """How large gradients come to be in 15 steps."""
    rows = table_fig5(records)
    out = []
    for row in dict.fromkeys(r["row"] for r in rows):
        mine = [r for r in rows if r["row"] == row]
        largest = ", ".join(f"{r['largest, 15 steps']:.1f}" for r in mine)
        grown = ", ".join(f"{r['growth, step 1']:.1f}" for r in mine)
        out.append(
            f"{row}: log10 of the largest gradient norm of a layer in 15 steps, by seed: {largest}; "
            f"growth from the last layer to the second at step 1: {grown}."
        )
    return out


def _of_fig5(records: Sequence[Record], row: str, value: Callable[[Row], float]) -> Effect:
    return Effect.of([value(r) for r in table_fig5(records) if r["row"] == row])


FIG5_CLAIMS = (
    Claim(
        id="P8.a",
        where="Fig. 5a",
        statement="CReLU .85/.9: gradients grow towards the input at the first step already",
        effect="log10 of the gradient norm of layer 2 over that of layer 100, step 1",
        unit="seed",
        side="above",
        threshold=0.0,
        measure=functools.partial(_of_fig5, row="crelu_0.85_0.9", value=lambda r: r["growth, step 1"]),
    ),
    Claim(
        id="P8.a3",
        where="Fig. 5a",
        statement="and reach very large values by step 3",
        effect="log10 of the largest gradient norm of a layer at step 3",
        unit="seed",
        side="above",
        threshold=2.0,
        measure=functools.partial(_of_fig5, row="crelu_0.85_0.9", value=lambda r: r["largest, step 3"]),
    ),
    Claim(
        id="P8.b",
        where="Fig. 5b",
        statement="CST .85 at V' = .8: gradients are of order 1 at the first step",
        effect="log10 of the largest gradient norm of a layer at step 1",
        unit="seed",
        side="below",
        threshold=1.0,
        measure=functools.partial(_of_fig5, row="cst_0.85_0.8", value=lambda r: r["largest, step 1"]),
    ),
    Claim(
        id="P8.b15",
        where="Fig. 5b",
        statement="and explode within 15 steps",
        effect="log10 of the largest gradient norm of 15 steps over that of step 1",
        unit="seed",
        side="above",
        threshold=1.0,
        measure=functools.partial(
            _of_fig5, row="cst_0.85_0.8", value=lambda r: r["largest, 15 steps"] - r["largest, step 1"]
        ),
    ),
)

FIG5 = Study(
    name="price2024/fig5",
    title="Price et al. 2024, Fig. 5: gradient norms over the first steps",
    introduction=(
        "Two activations of 85% sparsity whose clip is large, and two that train, in 100 layers over the first 15 "
        "steps of SGD. The paper shows one failed run of each of the first two; here are five seeds of each."
    ),
    findings=fig5_findings,
    figures={"Fig. 5": first_gradients},
    claims=FIG5_CLAIMS,
    table=table_fig5,
)


# Depth 100, trained.


def series_depth100(records: Sequence[Record]) -> list[Row]:
    """One line a recorded step of a run, measured on its training batch.

    Loss, accuracy, share of zeros (mean over layers), and the gradient's L2 norm of the weights of layers 2 to 100,
    g2 to g100.
    """
    rows = []
    for record in records:
        row, seed = row_and_seed(record.config.name)
        metrics = _metrics(record)
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
        logs = _log_norms(runs[name].metrics)
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
    findings=table_findings,
    figures={
        "Training loss": loss_by_row,
        "Accuracy and sparsity": accuracy_by_row,
        "Gradients": trained_gradients,
    },
    table=table_2_dnn,
    series=series_depth100,
)
