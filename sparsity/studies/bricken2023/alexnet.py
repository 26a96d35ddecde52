"""Bricken et al. 2023, App. J.3, Table 3, Figs. 34 and 35: an AlexNet that trains with noise, then without."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from sparsity.studies import draw
from sparsity.studies.bricken2023.deep_mlp import OPTIMIZERS, train_accuracy
from sparsity.studies.bricken2023.deep_mlp import printed as printed_accuracy
from sparsity.studies.bricken2023.runs import Grid, arm_sigma_seed, sigma_axis
from sparsity.studies.draw import Drawing, Runs, RunView
from sparsity.studies.judge import Claim, Effect
from sparsity.studies.records import Run, across, grid_by, measured, named, or_none, percent, standard_error
from sparsity.studies.runner import Record, Row, Study

TABLE_3 = Path("configs/bricken2023/table3_alexnet.csv")  # as printed; studies run from the repository's root
AFTER_CONVOLUTIONS = {0.5: 0.76, 10.0: 0.70}  # validation accuracy with noise there, App. J.3
ARMS = OPTIMIZERS | {"average": "average pooling", "convolutions": "noise after the convolutions"}
LAYERS = (*(f"conv_{i}" for i in range(5)), "dense_0", "dense_1")
LEARNS = 0.5  # mean test accuracy of Adam without noise from which on the networks are said to have trained
NONE = 0.02  # a share of dead units below this is none
LOST = 0.1  # half of the paper's 20 points
LOST_AFTER_CONVOLUTIONS = 0.03  # half of the paper's least
FITS = 0.99
ARM = re.compile(rf"_({'|'.join(sorted(ARMS, key=len, reverse=True))})$")


def arm_of(name: str) -> tuple[str, float, int]:
    """("average", 1.5, 0) of a run called "alexnet_digits_gaussian1.5_seed0_average"."""
    arm, sigma, seed = arm_sigma_seed(name)
    return ARM.search(arm)[1], sigma, seed


def printed() -> dict[tuple[str, float], float]:
    """Table 3 as printed, and what the text has of noise after the convolutions: (arm, sigma) -> accuracy."""
    after = {("convolutions", sigma): accuracy for sigma, accuracy in AFTER_CONVOLUTIONS.items()}
    return printed_accuracy(TABLE_3) | after


def active(run: Record | RunView, layer: str) -> float:
    """Share of nonzero activations of a layer, before pooling, on an epoch of training data after training."""
    return measured(run, f"units.density.{layer}")


def dead(run: Record | RunView, layer: str) -> float:
    """Share of units or channels of a layer whose activations sum to less than 1e-5 on that epoch."""
    return measured(run, f"units.silent.{layer}")


def _mean_dead(run: Record | RunView) -> float:
    return float(np.mean([dead(run, layer) for layer in LAYERS]))


def without_noise(grid: Mapping[tuple[str, float], dict[int, Run]], arm: str) -> dict[int, Run]:
    """Seed -> the run of `arm` without noise; of Adam where the arm has none."""
    return grid.get((arm, 0.0)) or grid.get(("adam", 0.0), {})


def table(records: Sequence[Record]) -> list[Row]:
    """Table 3 of the paper beside ours, and the numbers of Figs. 34 and 35; means over n seeds.

    arm: the optimizer, noise at the pixels; average: Adam, average pooling; convolutions: Adam, noise after the
    convolutions. accuracy: on the test split when noise is gone (the paper's "Val. Acc"; se: over seeds); lost: the
    same arm's without noise, Adam's where it was not run so, less that. train: on training batches of the last
    twentieth of training. active, dead, by layer: on one epoch of training data at the end; dead are units, or channels
    of a convolution, whose activations sum to less than 1e-5.
    """
    paper, grid, rows = printed(), grid_by(arm_of, named(records)), []
    for (arm, sigma), of_seed in grid.items():
        runs = list(of_seed.values())
        accuracy = [measured(r, "accuracy") for r in runs]
        base = [measured(r, "accuracy") for r in without_noise(grid, arm).values()]
        theirs, their_base = paper.get((arm, sigma)), paper.get((arm, 0.0), paper["adam", 0.0])
        row = {"arm": arm, "sigma": sigma, "n": len(runs), "accuracy, paper": theirs}
        row["accuracy"], row["se"] = or_none(float(np.mean(accuracy))), standard_error(accuracy)
        row["lost, paper"] = None if theirs is None else their_base - theirs
        row["lost"] = or_none(float(np.mean(base) - np.mean(accuracy))) if base else None
        row["train"] = or_none(float(np.mean([train_accuracy(r) for r in runs])))
        for name, share in (("active", active), ("dead", dead)):
            row |= {f"{name} {layer}": or_none(float(np.mean([share(r, layer) for r in runs]))) for layer in LAYERS}
        rows.append(row)
    return rows


def accuracy_by_sigma(runs: Runs) -> Drawing:
    """Table 3: test accuracy when noise is gone against sigma; dots: seeds, line: their mean, crosses: the paper's."""
    grid, paper = grid_by(arm_of, runs), printed()
    figure, axes = draw.panels(1, 1, height=3.4)
    for i, (arm, label) in enumerate(ARMS.items()):
        sigmas = sorted(sigma for name, sigma in grid if name == arm)
        for sigma in sigmas:
            values = [measured(view, "accuracy") for view in grid[arm, sigma].values()]
            axes[0].plot([sigma] * len(values), values, "o", color=f"C{i}", ms=4, alpha=0.7)
        means = [np.mean([measured(v, "accuracy") for v in grid[arm, s].values()]) for s in sigmas]
        axes[0].plot(sigmas, means, color=f"C{i}", label=label)
        theirs = {sigma: value for (name, sigma), value in paper.items() if name == arm}
        axes[0].plot(list(theirs), list(theirs.values()), "x", color=f"C{i}")
    sigma_axis(axes[0])
    axes[0].set(ylabel="test accuracy")
    draw.legend_beside(axes[0])
    return draw.done(figure)


def layers_by_sigma(runs: Runs) -> Drawing:
    """Fig. 35: active (left) and dead units (right) of every layer against sigma when noise is gone, Adam.

    Dots: seeds, lines: their means. The axes differ in scale.
    """
    grid = {sigma: of_seed for (arm, sigma), of_seed in sorted(grid_by(arm_of, runs).items()) if arm == "adam"}
    figure, axes = draw.panels(1, 2, height=3.4)
    for axis, (what, share) in zip(axes, (("active", active), ("dead", dead)), strict=True):
        for i, layer in enumerate(LAYERS):
            color = draw.color(i, len(LAYERS))
            values = {sigma: [share(view, layer) for view in of_seed.values()] for sigma, of_seed in grid.items()}
            for sigma, of_sigma in values.items():
                axis.plot([sigma] * len(of_sigma), of_sigma, "o", color=color, ms=3, alpha=0.7)
            axis.plot(list(values), [np.mean(v) for v in values.values()], color=color, label=layer)
        sigma_axis(axis)
        axis.set_ylabel(f"{what} units")
    axes[0].legend(fontsize=7)
    return draw.done(figure)


def dead_by_optimizer(runs: Runs) -> Drawing:
    """Fig. 34: dead units by Adam (across) and by another optimizer, when noise is gone, every layer and noisy sigma.

    A dot is a layer at a sigma, the mean over seeds; on the line both kill as many.
    """
    grid = grid_by(arm_of, runs)
    figure, axes = draw.panels(1, 2, height=3.2, sharex=True, sharey=True)
    for axis, other in zip(axes, ("sgd", "sparse_adam"), strict=True):
        shared = [(grid[key], grid[other, key[1]]) for key in grid if key[0] == "adam" and (other, key[1]) in grid]
        for i, layer in enumerate(LAYERS):
            means = [[np.mean([dead(view, layer) for view in of.values()]) for of in pair] for pair in shared]
            axis.plot(*np.reshape(means, (-1, 2)).T, "o", color=draw.color(i, len(LAYERS)), label=layer)
        axis.plot([0, 1], [0, 1], "k:", lw=0.8)
        axis.set(xlabel="dead units, Adam", ylabel=f"dead units, {OPTIMIZERS[other]}")
    axes[0].legend(fontsize=7)
    return draw.done(figure)


def findings(records: Sequence[Record]) -> list[str]:
    """Points lost and dead units by arm, in sentences."""
    rows, out = table(records), []
    for arm, label in ARMS.items():
        noisy = [row for row in rows if row["arm"] == arm and row["sigma"] > 0 and row["lost"] is not None]
        if noisy:
            low, high = (f"{100 * f(row['lost'] for row in noisy):.1f}" for f in (min, max))
            points = low if low == high else f"{low} to {high}"
            shares = [row[f"dead {layer}"] for row in noisy for layer in LAYERS if row[f"dead {layer}"] is not None]
            share = percent(float(np.mean(shares)) if shares else None)
            out.append(
                f"{label[0].upper()}{label[1:]}: {points} points of test accuracy lost by noise at the "
                f"start of training; {share} of the units dead, mean over layers and sigmas."
            )
    return out


BySigma = dict[float, Record]


def _noisy(grid: Grid, arm: str) -> list[float]:
    return sorted(sigma for name, sigma in grid if name == arm and sigma > 0)


def _over(records: Sequence[Record], arms: Sequence[str], value: Callable[..., float]) -> Effect:
    """One replicate a seed: `value`, given for each of `arms` its runs by sigma, `without_noise` among them.

    Not testable unless the networks learnt: mean test accuracy of Adam without noise of at least `LEARNS`.
    """
    grid = grid_by(arm_of, named(records))
    missing = [arm for arm in arms if not _noisy(grid, arm)]
    if missing or ("adam", 0.0) not in grid:
        return Effect.untestable(f"no runs of {', '.join(missing) or 'adam without noise'}")
    base = float(np.mean([measured(r, "accuracy") for r in grid["adam", 0.0].values()]))
    if base < LEARNS:
        return Effect.untestable(f"without noise the mean test accuracy of Adam is {base:.2f}")
    groups = {(arm, 0.0): without_noise(grid, arm) for arm in arms}
    groups |= {(arm, sigma): grid[arm, sigma] for arm in arms for sigma in _noisy(grid, arm)}

    def by_arm(*runs: Record) -> float:
        found = dict(zip(groups, runs, strict=True))
        return value(*({sigma: run for (name, sigma), run in found.items() if name == arm} for arm in arms))

    return across({f"{arm} at sigma {sigma:g}": of_seed for (arm, sigma), of_seed in groups.items()}, by_arm)


def _mean(value: Callable[[Record], float], runs: BySigma) -> float:
    """Over the noisy sigmas."""
    return float(np.mean([value(run) for sigma, run in runs.items() if sigma > 0]))


def _lost(runs: BySigma) -> dict[float, float]:
    """Test accuracy without noise less that with it, by noisy sigma."""
    base = measured(runs[0.0], "accuracy")
    return {sigma: base - measured(run, "accuracy") for sigma, run in runs.items() if sigma > 0}


def _least_lost(runs: BySigma) -> float:
    return min(_lost(runs).values())


def _gap(pixels: BySigma, convolutions: BySigma) -> float:
    """What noise at the pixels loses beyond noise after the convolutions, mean over sigmas of both."""
    one, other = _lost(pixels), _lost(convolutions)
    return float(np.mean([one[sigma] - other[sigma] for sigma in one if sigma in other]))


def _least_fit(*arms: BySigma) -> float:
    return min(train_accuracy(run) for runs in arms for run in runs.values())


def _active_change(runs: BySigma, layer: str) -> float:
    return _mean(lambda run: active(run, layer), runs) - active(runs[0.0], layer)


def _convolutions_change(runs: BySigma) -> float:
    return float(np.mean([_active_change(runs, layer) for layer in LAYERS[:5]]))


def _claim(id: str, where: str, statement: str, effect: str, side, threshold: float, arms, value) -> Claim:
    return Claim(id, where, statement, effect, "seed", side, threshold, lambda records: _over(records, arms, value))


CLAIMS = (
    _claim(
        "B19.train",
        "Table 3",
        "every network fits its training data",
        "accuracy on training batches of the last twentieth of training, the least over arms and sigmas",
        "above",
        FITS,
        tuple(ARMS),
        _least_fit,
    ),
    *(
        _claim(
            f"B19.{arm}",
            "Table 3",
            f"{what} loses about 20 points of test accuracy at every sigma",
            f"test accuracy without noise ({base}) less that with it, the least over sigmas",
            "above",
            LOST,
            (arm,),
            _least_lost,
        )
        for arm, what, base in (
            ("adam", "noise at the pixels, then none,", "Adam"),
            ("sgd", "and with SGD it", "SGD"),
            ("sparse_adam", "and with SparseAdam it", "SparseAdam, or Adam if that was not run"),
            ("average", "and with average pooling it", "average pooling, or maximum if that was not run"),
        )
    ),
    _claim(
        "B19.convolutions",
        "App. J.3",
        "noise after the convolutions loses 6 to 12 points",
        "test accuracy of Adam without noise less that with noise after the convolutions, the least over sigmas",
        "above",
        LOST_AFTER_CONVOLUTIONS,
        ("convolutions",),
        _least_lost,
    ),
    _claim(
        "B19.convolutions.less",
        "App. J.3",
        "and less than noise at the pixels does",
        "test accuracy lost by noise at the pixels less that lost by noise after the convolutions, mean over sigmas",
        "above",
        0.0,
        ("adam", "convolutions"),
        _gap,
    ),
    _claim(
        "B19.convolutions.active",
        "App. J.3",
        "but makes the convolutional layers more active",
        "active share, mean over the five, with noise after them less without noise, mean over sigmas",
        "above",
        0.0,
        ("convolutions",),
        _convolutions_change,
    ),
    _claim(
        "B19.dead",
        "Fig. 35",
        "with Adam, noise makes dead units",
        "share of dead units, mean over layers, with noise less without, mean over sigmas",
        "above",
        NONE,
        ("adam",),
        lambda runs: _mean(_mean_dead, runs) - _mean_dead(runs[0.0]),
    ),
    _claim(
        "B19.dead.sgd",
        "Fig. 34",
        "SGD has no dead units",
        "share of dead units, mean over layers and noisy sigmas, SGD",
        "below",
        NONE,
        ("sgd",),
        lambda runs: _mean(_mean_dead, runs),
    ),
    _claim(
        "B19.dead.sparse_adam",
        "Fig. 34",
        "SparseAdam has fewer than Adam",
        "share of dead units, mean over layers and sigmas, Adam less SparseAdam",
        "above",
        0.0,
        ("adam", "sparse_adam"),
        lambda adam, sparse: _mean(_mean_dead, adam) - _mean(_mean_dead, sparse),
    ),
    _claim(
        "B19.first",
        "Fig. 35",
        "the first layer ends more active than without noise",
        "active share of the first convolution, with noise less without, mean over sigmas, Adam",
        "above",
        0.0,
        ("adam",),
        lambda runs: _active_change(runs, LAYERS[0]),
    ),
    _claim(
        "B19.later",
        "Fig. 35",
        "all later layers end less active",
        "active share, with noise less without, mean over sigmas, the largest over the later layers, Adam",
        "below",
        0.0,
        ("adam",),
        lambda runs: max(_active_change(runs, layer) for layer in LAYERS[1:]),
    ),
)

ALEXNET = Study(
    name="bricken2023/alexnet",
    title="Bricken et al. 2023, Table 3: an AlexNet that trains with noise, then without",
    introduction=(
        "AlexNets classify small images. Noise is added to the pixels, or to what comes out of the convolutions, for "
        "the first two sevenths of training, annealed in the third, and gone in the rest. It is the one network of the "
        "paper that noise harms: it fits its training data all the same, and loses some 20 points on test data, "
        "whatever the optimizer and the pooling."
    ),
    findings=findings,
    figures={
        "Test accuracy": accuracy_by_sigma,
        "Active and dead units": layers_by_sigma,
        "Dead units by optimizer": dead_by_optimizer,
    },
    claims=CLAIMS,
    table=table,
)
