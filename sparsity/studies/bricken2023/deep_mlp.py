"""Bricken et al. 2023, App. J.2, Table 2, Figs. 26 and 33: noise at the input of a 3-layer classifier, by optimizer."""

from __future__ import annotations

import csv
import itertools
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from sparsity.studies import draw
from sparsity.studies.bricken2023.runs import Grid, arm_sigma_seed, sigma_axis
from sparsity.studies.draw import Drawing, Runs, RunView
from sparsity.studies.judge import Claim, Effect
from sparsity.studies.records import across, grid_by, measured, named, records_of, standard_error
from sparsity.studies.runner import Record, Row, Study

TABLE_2 = Path("configs/bricken2023/table2_deep_mlp.csv")  # as printed; studies run from the repository's root
OPTIMIZERS = {"adam": "Adam", "sgd": "SGD", "sparse_adam": "SparseAdam"}
LAYERS = (1, 2, 3)
LEARNS = 0.5  # mean test accuracy without noise from which on the networks are said to have trained
NONE = 0.02  # a share of dead units below this is none
POINT = 0.01
ARM = re.compile(r"_(sparse_adam|adam|sgd|before\d)$")


def arm_of(name: str) -> tuple[str, float, int]:
    """("adam", 1.5, 0) of a run called "mlp3x200_latents_gaussian1.5_seed0_adam"; "before2": noise before layer 2."""
    arm, sigma, seed = arm_sigma_seed(name)
    return ARM.search(arm)[1], sigma, seed


def printed(table: Path = TABLE_2) -> dict[tuple[str, float], float]:
    """Table 2, or another of its columns, as printed: (optimizer, sigma) -> validation accuracy."""
    keys = {name: key for key, name in OPTIMIZERS.items()}
    with open(table, encoding="utf-8") as file:
        return {(keys[r["optimizer"]], float(r["noise_sigma"])): float(r["val_acc"]) for r in csv.DictReader(file)}


def active(run: Record | RunView, layer: int) -> float:
    """Share of nonzero activations of a layer, 1 to 3, on an epoch of training data after training."""
    return measured(run, f"units.density.layer_{layer - 1}")


def dead(run: Record | RunView, layer: int) -> float:
    """Share of units of a layer whose activations sum to less than 1e-5 on that epoch (the paper's definition)."""
    return measured(run, f"units.silent.layer_{layer - 1}")


def validations(run: Record | RunView) -> list[dict[str, float]]:
    """The validations of a run, under the noise of their step."""
    return run.records("validation") if isinstance(run, RunView) else records_of(run, "validation")


def before_annealing(run: Record | RunView) -> dict[str, float]:
    """The last validation under noise of full size, after a quarter of training."""
    steps = run.config["steps"] if isinstance(run, RunView) else run.config.steps
    return [line for line in validations(run) if line["step"] <= steps // 4][-1]


def train_accuracy(record: Record) -> float:
    """Mean accuracy on training batches of the last twentieth of training."""
    values = [r["accuracy"] for r in records_of(record, "train")]
    return float(np.mean(values[-max(len(values) // 20, 1) :]))


def table(records: Sequence[Record]) -> list[Row]:
    """Table 2 of the paper beside ours, and Fig. 33's numbers; means over n seeds.

    arm: the optimizer, noise at the input; before2 and before3: Adam, noise in front of layer 2 or 3 alone. accuracy:
    on the test split (the paper's "Val. Acc"; se: over seeds), gain: over the same optimizer without noise. train: on
    training batches of the last twentieth of training. active, dead, by layer: after training, on one epoch of training
    data; dead are units whose activations sum to less than 1e-5. dead before: units of all layers that no validation
    example activates, under full noise at the start of annealing. norm: mean norm of the weights into a layer's units.
    """
    paper, grid, rows = printed(), grid_by(arm_of, named(records)), []
    for (arm, sigma), of_seed in grid.items():
        runs = list(of_seed.values())
        accuracy = [measured(r, "accuracy") for r in runs]
        base = [measured(r, "accuracy") for r in grid.get((arm, 0.0), {}).values()]
        theirs = paper.get((arm, sigma))
        row = {"arm": arm, "sigma": sigma, "n": len(runs), "accuracy, paper": theirs}
        row["accuracy"] = float(np.mean(accuracy))
        row["se"] = standard_error(accuracy)
        row["gain, paper"] = None if theirs is None else theirs - paper[arm, 0.0]
        row["gain"] = row["accuracy"] - float(np.mean(base)) if base else None
        row["train"] = float(np.mean([train_accuracy(r) for r in runs]))
        for name, share in (("active", active), ("dead", dead)):
            row |= {f"{name} {layer}": float(np.mean([share(r, layer) for r in runs])) for layer in LAYERS}
        early = [before_annealing(r)["dead.mean"] for r in runs] if arm in OPTIMIZERS else []
        row["dead before"] = float(np.mean(early)) if early else None
        row |= {f"norm {layer}": float(np.mean([norm(r, layer) for r in runs])) for layer in LAYERS}
        rows.append(row)
    return rows


def norm(record: Record, layer: int) -> float:
    """Mean over a layer's units of the L2 norm of their incoming weights, at the last recorded step."""
    return records_of(record, "weights")[-1]["modules"][f"dense_{layer - 1}"]["norm_mean"]


def layers_by_sigma(runs: Runs) -> Drawing:
    """Fig. 33: active (left) and dead units (right) by layer against sigma, a row an optimizer; every seed a dot.

    Filled: after annealing, on an epoch of training data. Rings: before it, under full noise, on the validation split,
    where a unit is dead that no example activates.
    """
    grid = grid_by(arm_of, runs)
    shown = [name for name in OPTIMIZERS if any(arm == name for arm, _ in grid)]
    figure, axes = draw.panels(len(shown), 2, height=2.6)
    for row, name in zip(np.reshape(axes, (-1, 2)), shown, strict=True):
        for layer, (arm, sigma) in itertools.product(LAYERS, grid):
            for view in grid[arm, sigma].values() if arm == name else ():
                early, style = before_annealing(view), {"color": draw.color(layer - 1, 3), "ms": 4, "alpha": 0.7}
                values = (("nonzero", active(view, layer)), ("dead", dead(view, layer)))
                for axis, (kind, after) in zip(row, values, strict=True):
                    axis.plot(sigma, after, "o", **style)
                    axis.plot(sigma, early[f"{kind}.layer_{layer - 1}"], "o", mfc="none", **style)
        for axis, what in zip(row, ("active", "dead"), strict=True):
            sigma_axis(axis, "latents")
            axis.set(ylabel=f"{what} units, {OPTIMIZERS[name]}")
    for layer in LAYERS:
        np.ravel(axes)[0].plot([], [], "o", color=draw.color(layer - 1, 3), label=f"layer {layer}")
    np.ravel(axes)[0].legend()
    return draw.done(figure)


def dead_by_optimizer(runs: Runs) -> Drawing:
    """Fig. 26: dead units of layers 2 and 3 after annealing, by Adam (across) and by another optimizer, every sigma.

    A dot is a sigma, the mean over seeds; on the line both kill as many.
    """
    grid = grid_by(arm_of, runs)
    figure, axes = draw.panels(1, 2, height=3.2, sharex=True, sharey=True)
    for axis, other in zip(axes, ("sgd", "sparse_adam"), strict=True):
        for layer in LAYERS[1:]:
            pairs = [(grid[k], grid[other, k[1]]) for k in grid if k[0] == "adam" and (other, k[1]) in grid]
            means = [[np.mean([dead(view, layer) for view in of.values()]) for of in pair] for pair in pairs]
            axis.plot(*np.reshape(means, (-1, 2)).T, "o", color=draw.color(layer - 1, 3), label=f"layer {layer}")
        axis.plot([0, 1], [0, 1], "k:", lw=0.8)
        axis.set(xlabel="dead units, Adam", ylabel=f"dead units, {OPTIMIZERS[other]}")
    axes[0].legend()
    return draw.done(figure)


def accuracy_by_sigma(runs: Runs) -> Drawing:
    """Table 2: test accuracy after annealing against sigma; dots: seeds, line: their mean, crosses: the paper's."""
    grid, paper = grid_by(arm_of, runs), printed()
    figure, axes = draw.panels(1, 1, height=3.2)
    for i, (name, label) in enumerate(OPTIMIZERS.items()):
        sigmas = sorted(sigma for arm, sigma in grid if arm == name)
        for sigma in sigmas:
            for view in grid[name, sigma].values():
                axes[0].plot(sigma, measured(view, "accuracy"), "o", color=f"C{i}", ms=4, alpha=0.7)
        means = [np.mean([measured(v, "accuracy") for v in grid[name, s].values()]) for s in sigmas]
        axes[0].plot(sigmas, means, color=f"C{i}", label=label)
        axes[0].plot(sigmas, [paper.get((name, s), math.nan) for s in sigmas], "x", color=f"C{i}")
    sigma_axis(axes[0], "latents")
    axes[0].set(ylabel="test accuracy")
    axes[0].legend()
    return draw.done(figure)


def norms_by_step(runs: Runs) -> Drawing:
    """Mean norm of the weights into layer 1 (left) and 2 (right) against step, by where noise stands (first seed)."""
    grid = grid_by(arm_of, runs)
    shown = {"none": ("adam", 0.0)} | {
        f"before layer {arm[-1]}": (arm, sigma) for arm, sigma in grid if arm.startswith("before")
    }
    figure, axes = draw.panels(1, 2)
    for label, key in shown.items():
        if key in grid:
            lines = next(iter(grid[key].values())).records("weights")
            for layer, axis in enumerate(axes):
                norms = [line["modules"][f"dense_{layer}"]["norm_mean"] for line in lines]
                axis.plot([line["step"] for line in lines], norms, label=label)
    for layer, axis in zip(LAYERS, axes, strict=False):
        axis.set(xlabel="step", ylabel=f"norm of weights into layer {layer}", yscale="log")
    axes[1].legend(title="noise")
    return draw.done(figure)


def findings(records: Sequence[Record]) -> list[str]:
    """Accuracy and dead units by optimizer, in sentences."""
    rows, out = table(records), []
    for name, label in OPTIMIZERS.items():
        noisy = [row for row in rows if row["arm"] == name and row["sigma"] > 0]
        if noisy and noisy[0]["gain"] is not None:
            low, high = (100 * f(row["gain"] for row in noisy) for f in (min, max))
            shares = ", ".join(f"{100 * np.mean([row[f'dead {layer}'] for row in noisy]):.0f}%" for layer in LAYERS)
            out.append(
                f"{label}: test accuracy after annealing {low:+.1f} to {high:+.1f} points from that without noise; "
                f"dead units of layers 1, 2, 3: {shares}, mean over sigmas."
            )
    return out


def _noisy(grid: Grid, arm: str) -> list[tuple[str, float]]:
    return sorted(key for key in grid if key[0] == arm and key[1] > 0)


def _over(records: Sequence[Record], arms: Sequence[str], value: Callable[..., float]) -> Effect:
    """One replicate a seed: `value`, given for each of `arms` its runs without noise and by noisy sigma.

    Not testable unless the networks learnt: mean test accuracy without noise of at least `LEARNS`.
    """
    grid = grid_by(arm_of, named(records))
    missing = [arm for arm in arms if (arm, 0.0) not in grid or not _noisy(grid, arm)]
    if missing:
        return Effect.untestable(f"no runs of {', '.join(missing)} with noise and without")
    base = float(np.mean([measured(r, "accuracy") for arm in arms for r in grid[arm, 0.0].values()]))
    if base < LEARNS:
        return Effect.untestable(f"without noise the mean test accuracy is {base:.2f}")
    keys = sorted(key for key in grid if key[0] in arms)

    def by_arm(*runs: Record) -> float:
        found = dict(zip(keys, runs, strict=True))
        return value(*({sigma: run for (name, sigma), run in found.items() if name == arm} for arm in arms))

    return across({f"{arm} at sigma {sigma:g}": grid[arm, sigma] for arm, sigma in keys}, by_arm)


BySigma = dict[float, Record]


def _mean(value: Callable[[Record], float], runs: BySigma) -> float:
    """Over the noisy sigmas."""
    return float(np.mean([value(run) for sigma, run in runs.items() if sigma > 0]))


def _dead_late(run: Record) -> float:
    return float(np.mean([dead(run, layer) for layer in LAYERS[1:]]))


def _dead_gap(a: BySigma, b: BySigma) -> float:
    return _mean(_dead_late, a) - _mean(_dead_late, b)


def _dead_since(run: Record) -> float:
    """Share of units of all layers that no validation example activates: at the last validation less at annealing."""
    return validations(run)[-1]["dead.mean"] - before_annealing(run)["dead.mean"]


def _active_change(layer: int) -> Callable[..., float]:
    """Active share with noise less that without, mean over sigmas and optimizers."""
    return lambda *arms: float(
        np.mean([_mean(lambda run: active(run, layer), runs) - active(runs[0.0], layer) for runs in arms])
    )


def _gains(*arms: BySigma) -> dict[float, float]:
    """Test accuracy less that without noise, mean over optimizers, by noisy sigma."""
    gain = lambda runs, sigma: measured(runs[sigma], "accuracy") - measured(runs[0.0], "accuracy")
    return {sigma: float(np.mean([gain(runs, sigma) for runs in arms])) for sigma in arms[0] if sigma > 0}


def _grown(records: Sequence[Record], layer: int) -> Effect:
    """log10 of the mean norm of the weights before `layer`, noise in front of it alone, over that without noise."""
    grid = grid_by(arm_of, named(records))
    noisy = [grid[key] for key in _noisy(grid, f"before{layer}")]
    groups = {f"noise before layer {layer}": noisy[0] if noisy else {}, "adam, no noise": grid.get(("adam", 0.0), {})}
    return across(groups, lambda run, base: math.log10(norm(run, layer - 1) / norm(base, layer - 1)))


def _claim(id: str, where: str, statement: str, effect: str, side, threshold: float, measure) -> Claim:
    return Claim(id, where, statement, effect, "seed", side, threshold, measure)


def _of(arms: Sequence[str], value: Callable[..., float]) -> Callable[[Sequence[Record]], Effect]:
    return lambda records: _over(records, arms, value)


ALL = tuple(OPTIMIZERS)
CLAIMS = (
    *(
        _claim(
            f"B16.adam.{other}",
            "Fig. 26, 33",
            f"Adam has more dead units than {OPTIMIZERS[other]}",
            f"share of dead units of layers 2 and 3 after annealing, Adam less {OPTIMIZERS[other]}, mean over sigmas",
            "above",
            0.0,
            _of(("adam", other), _dead_gap),
        )
        for other in ("sgd", "sparse_adam")
    ),
    _claim(
        "B16.sgd",
        "Fig. 33",
        "SGD spares layer 2",
        "share of dead units of layer 2 after annealing, SGD, mean over sigmas",
        "below",
        NONE,
        _of(("sgd",), lambda runs: _mean(lambda run: dead(run, 2), runs)),
    ),
    _claim(
        "B16.sparse_adam.before",
        "App. J.2",
        "SparseAdam kills no units before annealing",
        "share of units of all layers that no validation example activates at the start of annealing, mean over sigmas",
        "below",
        NONE,
        _of(("sparse_adam",), lambda runs: _mean(lambda run: before_annealing(run)["dead.mean"], runs)),
    ),
    _claim(
        "B16.sparse_adam.after",
        "App. J.2",
        "but some afterwards",
        "the same share at the last validation less that at the start of annealing, mean over sigmas",
        "above",
        NONE,
        _of(("sparse_adam",), lambda runs: _mean(_dead_since, runs)),
    ),
    _claim(
        "B16.layer1",
        "Sec. 3, Fig. 33",
        "noise at the input does not sparsify layer 1",
        "active share of layer 1 after annealing, with noise less without, mean over sigmas and optimizers",
        "above",
        -0.05,
        _of(ALL, _active_change(1)),
    ),
    *(
        _claim(
            f"B16.layer{layer}",
            "Sec. 3, Fig. 33",
            f"but layer {layer}",
            f"active share of layer {layer} after annealing, with noise less without, mean over sigmas and optimizers",
            "below",
            0.0,
            _of(ALL, _active_change(layer)),
        )
        for layer in (2, 3)
    ),
    _claim(
        "B16.accuracy",
        "Table 2",
        "after annealing every sigma is at or above the baseline, within a point",
        "lowest over sigmas of test accuracy less that without noise, mean over optimizers",
        "above",
        -POINT,
        _of(ALL, lambda *arms: min(_gains(*arms).values())),
    ),
    _claim(
        "B16.small",
        "Table 2",
        "small noise does slightly better than none",
        "test accuracy at sigma .1 and .5 less that without noise, mean over optimizers",
        "above",
        0.0,
        _of(ALL, lambda *arms: float(np.mean([_gains(*arms)[sigma] for sigma in (0.1, 0.5)]))),
    ),
    _claim(
        "B16.most",
        "Sec. 3",
        "by one point at most",
        "highest over sigmas of test accuracy less that without noise, mean over optimizers",
        "below",
        1.5 * POINT,
        _of(ALL, lambda *arms: max(_gains(*arms).values())),
    ),
    *(
        _claim(
            f"B17.layer{layer}",
            "Sec. 3",
            f"with noise in front of layer {layer} alone the weights before it grow",
            f"log10 of the mean norm of the weights into layer {layer - 1}, over that without noise",
            "above",
            0.0,
            lambda records, layer=layer: _grown(records, layer),
        )
        for layer in (2, 3)
    ),
)

DEEP_MLP = Study(
    name="bricken2023/deep_mlp",
    title="Bricken et al. 2023, Table 2: noise at the input of a 3-layer classifier",
    introduction=(
        "Classifiers of latents with three hidden layers of 200 ReLU units. Noise is added to the input for the first "
        "quarter of training, annealed in the second, and gone in the second half. The paper finds that layers 2 and 3 "
        "stay sparse, by dead units if Adam trains them, and that accuracy does not suffer."
    ),
    findings=findings,
    figures={
        "Active and dead units": layers_by_sigma,
        "Dead units by optimizer": dead_by_optimizer,
        "Test accuracy": accuracy_by_sigma,
        "Noise inside the network": norms_by_step,
    },
    claims=CLAIMS,
    table=table,
)
