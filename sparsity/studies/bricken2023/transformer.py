"""Bricken et al. 2023, App. J.1, Table 1 and Fig. 32: noise in front of every MLP of a GPT-2, then none."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from sparsity.config import to_dict
from sparsity.studies import draw
from sparsity.studies.bricken2023.runs import arm_sigma_seed
from sparsity.studies.draw import Drawing, Runs, RunView
from sparsity.studies.judge import Claim, Effect
from sparsity.studies.records import (
    across,
    decades,
    grid_by,
    measured,
    named,
    or_none,
    percent,
    records_of,
    standard_error,
)
from sparsity.studies.runner import Record, Row, Study

TABLE_1 = Path("configs/bricken2023/table1_transformer.csv")  # as printed; studies run from the repository's root
LAYERS = (1, 2, 3)
LEARNS = 2.42  # nats a byte: what the byte before tells (entropy of Python's documentation given it)
NONE = 0.02  # a share of dead units below this is none
COST = 0.01  # of the loss without noise: less than this is no cost
MOST = 3.0  # the largest sigma that costs nothing, and at which the text says how sparse each layer is
BEYOND = 8.0


def place_of(name: str) -> tuple[str, float, int]:
    """("after", 3.0, 0) of a run called "gpt2_text_gaussian3_seed0", noise after the LayerNorm in front of the MLP.

    "before" of one whose name ends in "_before_norm".
    """
    arm, sigma, seed = arm_sigma_seed(name)
    return "before" if arm.endswith("_before_norm") else "after", sigma, seed


def printed() -> dict[float, dict[str, float]]:
    """Table 1 as printed, by sigma."""
    with open(TABLE_1, encoding="utf-8") as file:
        rows = [{key: float(value) for key, value in line.items()} for line in csv.DictReader(file)]
    return {row.pop("noise_sigma"): row for row in rows}


def active(run: Record | RunView, layer: int) -> float:
    """Share of nonzero activations of the MLP of block 1 to 3 on the validation split, without noise, at the end."""
    return measured(run, f"nonzero.block_{layer - 1}")


def dead(run: Record | RunView, layer: int) -> float:
    """Share of units of that MLP whose activations sum to less than 1e-5 on an epoch of training data, at the end."""
    return measured(run, f"units.silent.block_{layer - 1}")


def removed(run: Record | RunView) -> int:
    """The step from which on there is no noise."""
    config = run.config if isinstance(run, RunView) else to_dict(run.config)
    return config["model"]["mlp"]["noise"]["schedule"]["step"]


def under_noise(run: Record | RunView) -> dict[str, float]:
    """The last validation under noise, which is that of its step."""
    return [line for line in records_of(run, "validation") if line["step"] < removed(run)][-1]


def _mean_active(run: Record | RunView) -> float:
    return float(np.mean([active(run, layer) for layer in LAYERS]))


def _train_loss(run: Record) -> float:
    """Mean loss on training batches of the last twentieth of training."""
    values = [line["loss"] for line in records_of(run, "train")]
    return float(np.mean(values[-max(len(values) // 20, 1) :])) if values else math.nan


def table(records: Sequence[Record]) -> list[Row]:
    """Table 1 of the paper beside ours; means over n seeds.

    noise: after the LayerNorm in front of the MLP, or before it, on what that LayerNorm reads. active, by layer: share
    of nonzero activations on the validation split at the end, long after noise is gone; under noise: the mean over
    layers at the last validation with noise. dead: units whose activations sum to less than 1e-5 on an epoch of
    training data, the largest share of a layer. loss, accuracy: of the next token, on the validation split (se: of the
    loss, over seeds); a token is a byte, and a few letters in the paper, so that losses compare relative to that
    without noise (cost) alone. train: loss on training batches of the last twentieth of training.
    """
    paper, grid, rows = printed(), grid_by(place_of, named(records)), []
    for (place, sigma), of_seed in grid.items():
        runs = list(of_seed.values())
        base = [measured(r, "nll") for r in grid.get(("after", 0.0), {}).values()]
        loss = [measured(r, "nll") for r in runs]
        theirs = paper.get(sigma, {})
        mean = lambda value, runs=runs: or_none(float(np.mean([value(r) for r in runs])))
        row = {"noise": place, "sigma": sigma, "n": len(runs)}
        for layer in LAYERS:
            row[f"active {layer}, paper"] = theirs.get(f"layer{layer}_active")
            row[f"active {layer}"] = mean(lambda r, layer=layer: active(r, layer))
        finished = all(r.outcome.status == "finished" for r in runs)
        row["active, under noise"] = mean(lambda r: under_noise(r)["nonzero.mean"]) if finished else None
        row["dead"] = mean(lambda r: max(dead(r, layer) for layer in LAYERS))
        row["loss"], row["se"] = or_none(float(np.mean(loss))), standard_error(loss)
        row["cost, paper"] = theirs["val_loss"] / paper[0.0]["val_loss"] - 1 if theirs else None
        row["cost"] = or_none(float(np.mean(loss) / np.mean(base) - 1)) if base else None
        row["accuracy"], row["train"] = mean(lambda r: measured(r, "accuracy")), mean(_train_loss)
        rows.append(row)
    return rows


def active_by_step(runs: Runs) -> Drawing:
    """Fig. 32: active units of each MLP on the validation split against step, by sigma (first seed, log y).

    Before the line under noise after the LayerNorm, then without.
    """
    grid = {sigma: of_seed for (place, sigma), of_seed in grid_by(place_of, runs).items() if place == "after"}
    figure, axes = draw.panels(1, len(LAYERS), sharey=True)
    for layer, axis in zip(LAYERS, axes, strict=True):
        for i, (sigma, of_seed) in enumerate(sorted(grid.items())):
            view = next(iter(of_seed.values()))
            lines = view.records("validation")
            shares = [line[f"nonzero.block_{layer - 1}"] for line in lines]
            axis.plot([line["step"] for line in lines], shares, color=draw.color(i, len(grid)), label=f"{sigma:g}")
            axis.axvline(removed(view), color="k", ls=":", lw=0.8)
        axis.set(title=f"layer {layer}", xlabel="step", yscale="log")
    axes[0].set_ylabel("active units")
    draw.legend_beside(axes[-1], "sigma")
    return draw.done(figure)


def active_by_sigma(runs: Runs) -> Drawing:
    """Table 1: active units at the end by layer against sigma; dots: seeds, line: their mean, crosses: the paper's.

    Rings: noise before the LayerNorm instead.
    """
    grid, paper = grid_by(place_of, runs), printed()
    figure, axes = draw.panels(1, len(LAYERS), sharey=True)
    for layer, axis in zip(LAYERS, axes, strict=True):
        _by_sigma(axis, grid, lambda view, layer=layer: active(view, layer), draw.color(layer - 1, 3))
        axis.plot(list(paper), [row[f"layer{layer}_active"] for row in paper.values()], "kx", ms=4)
        axis.set(title=f"layer {layer}", yscale="log")
    axes[0].set_ylabel("active units")
    return draw.done(figure)


def loss_by_sigma(runs: Runs) -> Drawing:
    """Validation loss over the mean of that without noise (left), dead units of the worst layer (right), by sigma.

    Dots: seeds, line: their mean, rings: noise before the LayerNorm, crosses: the paper's.
    """
    grid, paper = grid_by(place_of, runs), printed()
    base = float(np.mean([measured(view, "nll") for view in grid.get(("after", 0.0), {}).values()] or [math.nan]))
    figure, axes = draw.panels(1, 2)
    _by_sigma(axes[0], grid, lambda view: measured(view, "nll") / base, "C0")
    axes[0].plot(list(paper), [row["val_loss"] / paper[0.0]["val_loss"] for row in paper.values()], "kx", ms=4)
    axes[0].set_ylabel("validation loss over that without noise")
    _by_sigma(axes[1], grid, lambda view: max(dead(view, layer) for layer in LAYERS), "C1")
    axes[1].set_ylabel("dead units, worst layer")
    return draw.done(figure)


def _by_sigma(axis, grid: dict[tuple[str, float], dict[int, RunView]], value: Callable, color) -> None:
    """Dots of seeds and a line of means against sigma, noise after the LayerNorm; rings: before it."""
    means = {}
    for (place, sigma), of_seed in grid.items():
        values = [value(view) for view in of_seed.values()]
        fill = {} if place == "after" else {"mfc": "none"}
        axis.plot([sigma] * len(values), values, "o", color=color, ms=4, alpha=0.7, **fill)
        if place == "after":
            means[sigma] = np.mean(values)
    axis.plot(sorted(means), [means[sigma] for sigma in sorted(means)], color=color)
    axis.set_xscale("symlog", linthresh=0.05)
    axis.set_xticks([0, 0.05, 0.3, 1.5, 8], labels=["0", ".05", ".3", "1.5", "8"])
    axis.set_xlabel("sigma")


def findings(records: Sequence[Record]) -> list[str]:
    """Active units and loss at sigma 3 and 8, by the place of the noise, in sentences."""
    rows = {(row["noise"], row["sigma"]): row for row in table(records)}
    base, out = rows.get(("after", 0.0)), []
    for (place, sigma), row in rows.items():
        if base is not None and sigma in (MOST, BEYOND):
            shares = "; ".join(
                f"layer {layer} {percent(base[f'active {layer}'])} to {percent(row[f'active {layer}'])}"
                for layer in LAYERS
            )
            cost = "no value" if row["cost"] is None else f"{100 * row['cost']:+.1f}%"
            out.append(
                f"Sigma {sigma:g} {place} the LayerNorm: active units, without noise to with it, {shares}; validation "
                f"loss {cost}; dead units of the worst layer {percent(row['dead'])}."
            )
    return out


BySigma = dict[float, Record]


def _over(records: Sequence[Record], place: str, sigmas: Sequence[float], value: Callable[[BySigma], float]) -> Effect:
    """One replicate a seed: `value` of the runs by sigma, that without noise among them.

    `sigmas` must have been run with noise at `place`; all that were are given. Not testable unless the networks learnt:
    mean validation loss without noise of at most `LEARNS`.
    """
    grid = grid_by(place_of, named(records))
    missing = [f"{s:g}" for s in sigmas if (place, s) not in grid] + ["0"] * (("after", 0.0) not in grid)
    if missing:
        return Effect.untestable(f"no run with noise {place} the LayerNorm at sigma {', '.join(missing)}")
    base = float(np.mean([measured(r, "nll") for r in grid["after", 0.0].values()]))
    if base > LEARNS:
        return Effect.untestable(f"without noise the mean validation loss is {base:.2f} nats")
    groups = {0.0: grid["after", 0.0]} | {s: grid[p, s] for p, s in sorted(grid) if p == place}
    by_sigma = lambda *runs: value(dict(zip(groups, runs, strict=True)))
    return across({f"sigma {sigma:g}": of_seed for sigma, of_seed in groups.items()}, by_sigma)


def _largest_rise(runs: BySigma) -> float:
    return float(np.max(np.diff([_mean_active(runs[sigma]) for sigma in sorted(runs)])))


def _layer_ratio(layer: int) -> Callable[[BySigma], float]:
    return lambda runs: decades(active(runs[MOST], layer), active(runs[0.0], layer))


def _mean_ratio(runs: BySigma) -> float:
    return decades(_mean_active(runs[MOST]), _mean_active(runs[0.0]))


def _since_removal(runs: BySigma) -> float:
    return decades(_mean_active(runs[MOST]), under_noise(runs[MOST])["nonzero.mean"])


def _most_dead(runs: BySigma) -> float:
    return max(dead(run, layer) for sigma, run in runs.items() if sigma > 0 for layer in LAYERS)


def _cost(runs: BySigma, sigma: float) -> float:
    return measured(runs[sigma], "nll") / measured(runs[0.0], "nll") - 1


def _largest_cost(runs: BySigma) -> float:
    return max(_cost(runs, sigma) for sigma in runs if 0 < sigma <= MOST)


def _claim(id: str, where: str, statement: str, effect: str, side, threshold: float, measure) -> Claim:
    return Claim(id, where, statement, effect, "seed", side, threshold, measure)


def _of(value: Callable[[BySigma], float], *sigmas: float, place: str = "after") -> Callable[..., Effect]:
    return lambda records: _over(records, place, sigmas, value)


CLAIMS = (
    _claim(
        "B18.falls",
        "Table 1",
        "when the noise is gone the active share is the lower, the more noise there was",
        "largest rise of the active share, mean over layers, from one sigma to the next, 0 to 8",
        "below",
        0.01,
        _of(_largest_rise, MOST, BEYOND),
    ),
    *(
        _claim(
            f"B18.layer{layer}",
            "Sec. 3, Table 1",
            f"sigma 3 leaves layer {layer} about {times} times as sparse",
            f"log10 of the active share of layer {layer} at the end, sigma 3 over no noise",
            "below",
            math.log10(0.5),
            _of(_layer_ratio(layer), MOST),
        )
        for layer, times in zip(LAYERS, ("3", "9", "2 to 3"), strict=True)
    ),
    _claim(
        "B18.stays",
        "Sec. 3, Fig. 32",
        "sparsity is retained after the noise is removed",
        "log10 of the active share, mean over layers, at the end over that at the last validation under noise, sigma 3",
        "below",
        math.log10(1.25),
        _of(_since_removal, MOST),
    ),
    _claim(
        "B18.dead",
        "Sec. 3, App. J.3",
        "there are no dead units, in any layer, at any sigma",
        "largest share of dead units over layers and noisy sigmas, at the end",
        "below",
        NONE,
        _of(_most_dead, MOST, BEYOND),
    ),
    _claim(
        "B18.loss",
        "Table 1",
        "noise up to sigma 3, then none, costs no validation loss: less than 1%",
        "largest over sigmas up to 3 of the validation loss over that without noise, less 1",
        "below",
        COST,
        _of(_largest_cost, MOST),
    ),
    _claim(
        "B18.loss.8",
        "Table 1",
        "sigma 8 does: 2.8% of it",
        "validation loss at sigma 8 over that without noise, less 1",
        "above",
        COST,
        _of(lambda runs: _cost(runs, BEYOND), BEYOND),
    ),
    _claim(
        "B18.before",
        "Sec. 3, read the other way",
        "noise before the LayerNorm, which the paper's words allow too, sparsifies as well",
        "log10 of the active share, mean over layers, at the end, sigma 3 before the LayerNorm over no noise",
        "below",
        math.log10(0.5),
        _of(_mean_ratio, MOST, place="before"),
    ),
    _claim(
        "B18.before.loss",
        "Sec. 3, read the other way",
        "and costs no validation loss at sigma 3 either",
        "validation loss at sigma 3 before the LayerNorm over that without noise, less 1",
        "below",
        COST,
        _of(lambda runs: _cost(runs, MOST), MOST, place="before"),
    ),
)

TRANSFORMER = Study(
    name="bricken2023/transformer",
    title="Bricken et al. 2023, Table 1: noise in front of every MLP of a GPT-2",
    introduction=(
        "GPT-2s of three blocks predict the next token. For the first part of training Gaussian noise is added to what "
        "every MLP reads, then it is gone. The paper finds that all three layers stay sparse without dead units, and "
        "that only the largest sigma costs validation loss. The LayerNorm in front of the MLP makes the deviation of "
        "what it reads about 1 on any data, so sigma is the paper's at both scales."
    ),
    findings=findings,
    figures={
        "Active units by step": active_by_step,
        "Active units by sigma": active_by_sigma,
        "Validation loss and dead units": loss_by_sigma,
    },
    claims=CLAIMS,
    table=table,
)
