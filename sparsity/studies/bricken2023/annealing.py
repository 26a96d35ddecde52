"""Bricken et al. 2023, Figs. 8 and 31: what is left of sparsity and performance when the noise is annealed away."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from sparsity.config import to_dict
from sparsity.studies import draw
from sparsity.studies.bricken2023.runs import active_shares, by_variant, seed_claim, sigma_axis
from sparsity.studies.draw import Drawing, Runs, RunView
from sparsity.studies.judge import Claim
from sparsity.studies.records import (
    Run,
    decades,
    diverged,
    measured,
    named,
    or_none,
    percent,
    records_of,
    standard_error,
)
from sparsity.studies.runner import Record, Row, Study

TASKS = {"ae": "reconstruction", "mlp": "classification"}  # by the variant of their runs without noise
LAYER = {"ae": "hidden", "mlp": "layer_0"}
SCORE = {"ae": "explained", "mlp": "accuracy"}
# Classification as the paper prints it (Sec. 3): accuracy, and the share of active units.
PAPER = {0.0: (0.934, 0.66), 0.1: (0.943, 0.55), 0.3: (0.943, 0.45)}


def table(records: Sequence[Record]) -> list[Row]:
    """One line a task and sigma (the paper's; at 0 there is nothing to anneal), means over n seeds.

    active: share of nonzero activations on a training batch, the last one before annealing began and the last one;
    the paper's is that of its end. dead: share of units that are nonzero on no validation image under the noise of the
    step (which turns on units that no image does), at the same times. never active: share of units that are nonzero on
    no image of the training split, at the end. score: share of the test images' variance that is reconstructed, or of
    the test digits that are classified right; se: over seeds, which share one test set. test mse: of reconstruction.
    """
    rows = []
    for task, runs in _by_task(named(records)).items():
        for sigma, of_seed in runs.items():
            some = list(of_seed.values())
            mean = lambda values: or_none(float(np.mean(values)))
            active, dead = (np.array([around(r, *f(r)) for r in some]) for f in (active_shares, dead_shares))
            score = [measured(r, SCORE[task]) for r in some]
            accuracy, share = PAPER.get(sigma, (None, None)) if task == "mlp" else (None, None)
            rows.append(
                {
                    "task": TASKS[task],
                    "sigma": sigma,
                    "n": len(some),
                    "active before": mean(active[:, 0]),
                    "active after": mean(active[:, 1]),
                    "active, paper": share,
                    "dead before": mean(dead[:, 0]),
                    "dead after": mean(dead[:, 1]),
                    "never active": mean([measured(r, f"units.never.{LAYER[task]}") for r in some]),
                    "score": mean(score),
                    "se": standard_error(score),
                    "score, paper": accuracy,
                    "test mse": mean([measured(r, "mse") for r in some]),
                }
            )
    return rows


def _by_task(runs: Mapping[str, Run]) -> dict[str, dict[float, dict[int, Run]]]:
    """Variant without noise -> sigma -> seed -> run: without noise as it is, with noise annealed."""
    variants = by_variant(runs)
    return {task: variants.get(task, {}) | variants.get(f"{task}_annealed", {}) for task in TASKS if task in variants}


def fall_of_noise(run: Record | RunView) -> tuple[int, int] | None:
    """The steps from which on noise falls and is 0; None if it does not."""
    config = run.config if isinstance(run, RunView) else to_dict(run.config)
    schedule = config["noise"]["schedule"]
    return (schedule["start"], schedule["start"] + schedule["length"]) if "start" in schedule else None


def around(run: Record | RunView, steps: list[int], values: list[float]) -> tuple[float, float]:
    """The last value before noise began to fall (NaN if it does not), and the last; NaN of a run that diverged."""
    if diverged(run):
        return math.nan, math.nan
    fall = fall_of_noise(run)
    before = math.nan if fall is None else [v for step, v in zip(steps, values, strict=True) if step <= fall[0]][-1]
    return before, values[-1]


def dead_shares(run: Record | RunView) -> tuple[list[int], list[float]]:
    """Steps of validations, and the share of units that were nonzero on no image under the noise of the step."""
    lines = records_of(run, "validation")
    return [line["step"] for line in lines], [line["dead.mean"] for line in lines]


def active_by_step(runs: Runs) -> Drawing:
    """Fig. 8: share of active units on the training batch against step (first seed); noise falls between the lines."""
    return _by_step(runs, active_shares, "share of active units")


def dead_by_step(runs: Runs) -> Drawing:
    """Fig. 31: share of units that are nonzero on no validation image under the noise of the step, against step."""
    return _by_step(runs, dead_shares, "share of dead units")


def _by_step(runs: Runs, curve: Callable[[RunView], tuple[list[int], list[float]]], label: str) -> Drawing:
    tasks = _by_task(runs)
    figure, axes = draw.panels(1, len(tasks))
    for axis, (task, sigmas) in zip(axes, tasks.items(), strict=True):
        for i, (sigma, of_seed) in enumerate(sigmas.items()):
            view = next(iter(of_seed.values()))
            axis.plot(*curve(view), color=draw.color(i, len(sigmas)), label=f"{sigma:g}")
        for step in fall_of_noise(view) or ():
            axis.axvline(step, color="purple", lw=0.8)
        axis.set(title=TASKS[task], xlabel="step", ylim=(0, None))
    axes[0].set_ylabel(label)
    draw.legend_beside(axes[-1], "sigma")
    return draw.done(figure)


def active_by_sigma(runs: Runs) -> Drawing:
    """Share of active units before noise began to fall (circles) and at the end (dots) against sigma; every seed."""
    tasks = _by_task(runs)
    figure, axes = draw.panels(1, len(tasks), height=3.2, sharey=True)
    for axis, (task, sigmas) in zip(axes, tasks.items(), strict=True):
        for sigma, of_seed in sigmas.items():
            for view in of_seed.values():
                before, after = around(view, *active_shares(view))
                axis.plot(sigma, before, "o", color="C1", mfc="none", ms=6)
                axis.plot(sigma, after, "o", color="C0", ms=4, alpha=0.7)
        sigma_axis(axis)
        axis.set(yscale="log", title=TASKS[task])
    axes[0].set_ylabel("share of active units")
    return draw.done(figure)


def score_by_sigma(runs: Runs) -> Drawing:
    """Test score after annealing against sigma, every seed a dot: explained variance, or accuracy (bars: the paper)."""
    tasks = _by_task(runs)
    figure, axes = draw.panels(1, len(tasks), height=3.2)
    for axis, (task, sigmas) in zip(axes, tasks.items(), strict=True):
        for sigma, of_seed in sigmas.items():
            for view in of_seed.values():
                axis.plot(sigma, measured(view, SCORE[task]), "o", color="C0", ms=4, alpha=0.7)
            if task == "mlp" and sigma in PAPER:
                axis.plot(sigma, PAPER[sigma][0], "_", color="k", ms=12)
        sigma_axis(axis)
        axis.set(title=TASKS[task], ylabel=SCORE[task])
    return draw.done(figure)


def findings(records: Sequence[Record]) -> list[str]:
    """Active and dead shares around the annealing, and the scores, in sentences."""
    out = []
    for row in table(records):
        score = f"{row['task']} at sigma {row['sigma']:g} (n = {row['n']}): test score {percent(row['score'])}"
        active = f"active {percent(row['active before'])} before annealing, {percent(row['active after'])} at the end"
        dead = f"dead {percent(row['dead before'])}, then {percent(row['dead after'])}"
        out.append(f"{score}, {active}, {dead}." if row["sigma"] else f"{score}.")
    return out


def _largest_rise(runs: list[Record]) -> float:
    """log10 of the active share at the end over that before annealing, of the run where it rose most."""
    # np.max, unlike max, keeps NaN.
    return float(np.max([decades(*reversed(around(r, *active_shares(r)))) for r in runs]))


def _still_sparse(runs: list[Record]) -> float:
    """log10 of the active share at the end over that of the first of `runs`."""
    without, annealed = (around(r, *active_shares(r))[1] for r in runs)
    return decades(annealed, without)


def _worst_score(task: str) -> Callable[[list[Record]], float]:
    """Score of the worst of the annealed runs less that of the first of `runs`."""
    return lambda runs: float(np.min([measured(r, SCORE[task]) for r in runs[1:]])) - measured(runs[0], SCORE[task])


def _worst_mse(runs: list[Record]) -> float:
    """log10 of the largest test mse of the annealed runs over that of the first of `runs`."""
    without, *annealed = (measured(r, "mse") for r in runs)
    return decades(float(np.max(annealed)), without)


def _mean_gain(runs: list[Record]) -> float:
    """Mean test accuracy of the annealed runs less that of the first of `runs`."""
    without, *annealed = (measured(r, "accuracy") for r in runs)
    return float(np.mean(annealed)) - without


def _killed(choose: Callable) -> Callable[[list[Record]], float]:
    """`choose` (np.min or np.max) of what annealing adds to the dead share of each run."""
    return lambda runs: float(choose([np.diff(around(r, *dead_shares(r)))[0] for r in runs]))


def _with(task: str, *sigmas: float) -> tuple[tuple[str, float], ...]:
    return tuple((f"{task}_annealed", sigma) for sigma in sigmas)


def _keeps(id: str, task: str, headline: bool) -> Claim:
    return seed_claim(
        _with(task, 0.3, 0.8, 1.5, 3.0),
        _largest_rise,
        id=id,
        where="Fig. 8",
        statement=f"annealing the noise away keeps the network sparse ({TASKS[task]})",
        effect="log10 of the active share at the end over that before annealing, where it rose most of sigma .3 to 3",
        side="below",
        threshold=math.log10(1.25),
        headline=headline,
    )


def _kills(id: str, task: str, spared: tuple[float, ...], hit: tuple[float, ...]) -> tuple[Claim, Claim]:
    least = f"sigma {hit[0]:g}"
    return (
        seed_claim(
            _with(task, *spared),
            _killed(np.max),
            id=f"{id}.below",
            where="Fig. 31, Sec. 3",
            statement=f"annealing kills no units below {least} ({TASKS[task]})",
            effect="dead share at the end less that before annealing, the largest below " + least,
            side="below",
            threshold=0.01,
            headline=True,
        ),
        seed_claim(
            _with(task, *hit),
            _killed(np.min),
            id=f"{id}.from",
            where="Fig. 31, Sec. 3",
            statement=f"annealing kills units from {least} on ({TASKS[task]})",
            effect="dead share at the end less that before annealing, the least from " + least + " on",
            side="above",
            threshold=0.01,
            headline=True,
        ),
    )


CLAIMS = (
    _keeps("B6.sparsity", "ae", headline=True),
    _keeps("B6.sparsity.classification", "mlp", headline=False),
    seed_claim(
        (("ae", 0.0), *_with("ae", 0.8)),
        _still_sparse,
        id="B6.sparse",
        where="Fig. 8",
        statement="the network that noise of sigma .8 made stays much sparser than one that never had noise",
        effect="log10 of the active share at the end, sigma .8 annealed over no noise (reconstruction)",
        side="below",
        threshold=math.log10(0.5),
        headline=True,
    ),
    seed_claim(
        (("ae", 0.0), *_with("ae", 0.1, 0.3, 0.8, 1.5, 3.0)),
        _worst_score("ae"),
        id="B6.loss",
        where="Fig. 8; abstract",
        statement="annealed, up to sigma 3, there is no noticeable cost: less than 1% of the images' variance",
        effect="explained variance of test images, the worst of sigma .1 to 3 annealed less that without noise",
        side="above",
        threshold=-0.01,
        headline=True,
    ),
    seed_claim(
        (("ae", 0.0), *_with("ae", 0.1, 0.3, 0.8, 1.5, 3.0)),
        _worst_mse,
        id="B6.loss.relative",
        where="Fig. 8; abstract",
        statement="and none relative to the loss itself: the test error is less than 5% larger",
        effect="log10 of the test mse, the largest of sigma .1 to 3 annealed over that without noise",
        side="below",
        threshold=math.log10(1.05),
    ),
    seed_claim(
        (("mlp", 0.0), *_with("mlp", 0.1, 0.3)),
        _mean_gain,
        id="B6.accuracy",
        where="Sec. 3",
        statement="little noise, then annealed, improves classification (94.3% at .1 and .3 against 93.4%)",
        effect="test accuracy, mean of sigma .1 and .3 annealed less that without noise (one test set for all seeds)",
        side="above",
        threshold=0.0,
        headline=True,
    ),
    seed_claim(
        (("mlp", 0.0), *_with("mlp", 0.1, 0.3, 0.8, 1.5, 3.0)),
        _worst_score("mlp"),
        id="B6.accuracy.kept",
        where="Fig. 8, Sec. 3",
        statement="annealed, up to sigma 3, classification loses less than a point",
        effect="test accuracy, the worst of sigma .1 to 3 annealed less that without noise",
        side="above",
        threshold=-0.01,
    ),
    *_kills("B6.dead", "ae", (0.1, 0.3), (0.8, 1.5, 3.0)),
    *_kills("B6.dead.classification", "mlp", (0.1, 0.3, 0.8, 1.5), (3.0, 10.0)),
)

ANNEALING = Study(
    name="bricken2023/annealing",
    title="Bricken et al. 2023: sparsity after the noise is gone",
    introduction=(
        "Autoencoders of photographs, and classifiers of digits with the same hidden layer, train under Gaussian noise "
        "for half of their steps; then the noise falls linearly to 0. Does the sparsity that noise made stay, what "
        "does it cost, and does the annealing kill units? Sigma is the paper's, for data of deviation .25; the runs "
        "have the same ratio of noise to data."
    ),
    findings=findings,
    figures={
        "Active units": active_by_step,
        "Active units before and after": active_by_sigma,
        "Dead units": dead_by_step,
        "Scores": score_by_sigma,
    },
    claims=CLAIMS,
    table=table,
)
