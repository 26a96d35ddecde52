"""Bricken et al. 2023, Figs. 21 and 24: noise and sparsity at other widths, under other noises, in another task."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Sequence

import numpy as np

from sparsity.studies import draw
from sparsity.studies.bricken2023.runs import by_arm, mean_over_seeds, printed_active, runs_by_arm, sigma_axis
from sparsity.studies.draw import Drawing, Runs, RunView
from sparsity.studies.judge import Claim, Effect
from sparsity.studies.records import decades, or_none, standard_error
from sparsity.studies.runner import Record, Row, Study

NOISES = ("laplace", "salt_and_pepper", "poisson")
SHARED_UNITS = ("400", "10000")  # of the study `noise`, embedded and at the paper's scale
LARGEST = 3.0  # sigma up to which the active share is claimed to fall

Ablation = tuple[str, str]
GAUSSIAN: Ablation = ("dataset", "raw_cifar10")  # the runs of the study `noise`, which all others are compared with


def ablation(arm: str) -> Ablation:
    """What an arm changes, in the words of the paper's table: ("noise_dist", "laplace") of "ae400_photos_laplace"."""
    if arm.startswith("mlp"):
        return "task", "classification"
    for noise in NOISES:
        if arm.endswith(noise):
            return "noise_dist", noise
    units = re.match(r"ae(\d+)_", arm)[1]
    return GAUSSIAN if units in SHARED_UNITS else ("neurons", units)


def by_ablation(records: Sequence[Record]) -> dict[Ablation, dict[float, dict[int, Record]]]:
    """Ablation -> sigma (of salt and pepper the probability) -> seed -> record.

    Without noise there is no kind of noise: those runs are the Gaussian ones of sigma 0.
    """
    table = {ablation(arm): sigmas for arm, sigmas in by_arm(records).items()}
    silent = table.get(GAUSSIAN, {}).get(0.0)
    for (kind, _), sigmas in table.items():
        if kind == "noise_dist" and silent:
            sigmas[0.0] = silent
    return {key: dict(sorted(sigmas.items())) for key, sigmas in table.items()}


def _measure(run: Record | RunView, kind: str) -> float:
    """units.KIND of the only hidden layer, which autoencoder and classifier call by different names."""
    return next((m.value for m in run.outcome.measures if m.name.startswith(f"units.{kind}.")), math.nan)


def active(run: Record | RunView) -> float:
    """Share of nonzero activations over one epoch of training data, noise on."""
    return _measure(run, "density")


def table(records: Sequence[Record]) -> list[Row]:
    """Every ablation at every sigma: active share in the paper (from the authors' code) and here, mean over n seeds.

    "neurons": that many units under Gaussian noise; "dataset, raw_cifar10": as many as in the study `noise`, and its
    runs; "noise_dist": as many under another noise (salt_and_pepper: sigma is the probability); "task": a classifier.
    The paper's numbers are of its latents, but for raw_cifar10. active: share of nonzero activations, one epoch of
    training data, noise on (se: over seeds); never active: units that never are; test accuracy, or mse: without noise.
    """
    paper, rows = printed_active(), []
    for key, sigmas in by_ablation(records).items():
        for sigma, of_seed in sigmas.items():
            shares = [active(r) for r in of_seed.values()]
            theirs = paper.get(key, {}).get(sigma)
            mean = float(np.mean(shares))
            rows.append(
                {
                    "ablation": ", ".join(key),
                    "sigma": sigma,
                    "n": len(shares),
                    "active, paper": theirs,
                    "active": or_none(mean),
                    "se": standard_error(shares),
                    "difference": None if theirs is None else or_none(mean - theirs),
                    "never active": or_none(float(np.mean([_measure(r, "never") for r in of_seed.values()]))),
                    "test accuracy": or_none(mean_over_seeds(of_seed, "accuracy")),
                    "test mse": or_none(mean_over_seeds(of_seed, "mse")),
                }
            )
    return rows


def active_by_sigma(runs: Runs) -> Drawing:
    """Figs. 21 and 24: share of active units against sigma (first seed); dashed the paper's, on latents but for pixels.

    Salt and pepper against its probability; without noise it is the run of sigma 0.
    """
    shares = {arm: {s: active(view) for s, view in of.items()} for arm, of in runs_by_arm(runs).items()}
    silent = next(({0.0: one[0.0]} for arm, one in shares.items() if ablation(arm) == GAUSSIAN and 0.0 in one), {})
    paper = printed_active()
    figure, axes = draw.panels(2, 2, height=3.2, sharey=True)
    panels = dict(zip(("neurons", "noise_dist", "task", "salt_and_pepper"), axes.flat, strict=True))
    for arm, by_sigma in shares.items():
        key = ablation(arm)
        kind, setting = key
        line = silent | by_sigma if kind == "noise_dist" else by_sigma
        shown = ("neurons", "noise_dist", "task") if key == GAUSSIAN else (setting if setting in panels else kind,)
        for name in shown:
            color = panels[name].plot(*_line(line), "o-", ms=4, label=arm)[0].get_color()
            if key in paper:
                panels[name].plot(*_line(paper[key]), "x--", ms=4, lw=0.8, color=color)
    for name, axis in panels.items():
        if name == "salt_and_pepper":
            axis.set(xlabel="probability", xlim=(-0.02, 1))
        else:
            sigma_axis(axis)
        axis.set(yscale="log", ylabel="share of active units")
        axis.legend()
    return draw.done(figure)


def _line(by_sigma: dict[float, float]) -> tuple[list[float], list[float]]:
    return sorted(by_sigma), [by_sigma[s] for s in sorted(by_sigma)]


def findings(records: Sequence[Record]) -> list[str]:
    """The active shares of every ablation beside the paper's, in sentences."""
    paper, out = printed_active(), []
    for key, sigmas in by_ablation(records).items():
        ours = {sigma: float(np.mean([active(r) for r in of_seed.values()])) for sigma, of_seed in sigmas.items()}
        line = f"{', '.join(key)}: active units by sigma: {_percents(ours)}"
        theirs = {sigma: share for sigma, share in paper.get(key, {}).items() if sigma in ours}
        out.append(f"{line} (paper: {_percents(theirs)})." if theirs else f"{line}.")
    return out


def _percents(shares: dict[float, float]) -> str:
    return ", ".join(f"{100 * share:.3g}% at {sigma:g}" for sigma, share in shares.items())


def _over_seeds(records: Sequence[Record], key: Ablation, value: Callable[[np.ndarray], float]) -> Effect:
    """`value` of each seed's active shares, at the sigmas from 0 to 3."""
    judged = {s: of_seed for s, of_seed in by_ablation(records).get(key, {}).items() if s <= LARGEST}
    if 0.0 not in judged or len(judged) < 2:
        return Effect.untestable(f"{', '.join(key)}: no run with or without noise")
    seeds = sorted(set.intersection(*(set(of_seed) for of_seed in judged.values())))
    return Effect.of([value(np.array([active(of_seed[seed]) for of_seed in judged.values()])) for seed in seeds])


def _claims(id: str, where: str, what: str, key: Ablation, headline: bool = False) -> tuple[Claim, Claim]:
    return (
        Claim(
            id=f"B1.{id}",
            where=where,
            statement=f"the active share falls as noise grows: {what}",
            effect="largest rise of the active share from one sigma (or probability) to the next, up to 3",
            unit="seed",
            side="below",
            threshold=0.01,
            measure=functools.partial(_over_seeds, key=key, value=lambda shares: float(np.max(np.diff(shares)))),
            headline=headline,
        ),
        Claim(
            id=f"B1.{id}.size",
            where=where,
            statement=f"and by much: at the largest of them it is less than half of that without noise: {what}",
            effect="log10 of the active share at sigma 3 (probability .9) over that without noise",
            unit="seed",
            side="below",
            threshold=math.log10(0.5),
            measure=functools.partial(_over_seeds, key=key, value=lambda shares: decades(shares[-1], shares[0])),
            headline=headline,
        ),
    )


CLAIMS = (
    *_claims("units100", "Fig. 21a", "100 units", ("neurons", "100")),
    *_claims("units1000", "Fig. 21a", "1,000 units", ("neurons", "1000"), headline=True),
    *_claims("units100000", "Fig. 21a", "100,000 units", ("neurons", "100000")),
    *_claims("laplace", "Fig. 21c", "Laplace noise", ("noise_dist", "laplace")),
    *_claims("salt_and_pepper", "Fig. 24", "salt and pepper", ("noise_dist", "salt_and_pepper")),
    *_claims("classification", "Sec. 3, Fig. 8", "classification", ("task", "classification")),
)

ABLATIONS = Study(
    name="bricken2023/ablations",
    title="Bricken et al. 2023, Figs. 21 and 24: noise at other widths, of other kinds, in another task",
    introduction=(
        "The study of noise alone, with one thing changed at a time: the number of hidden units, the distribution of "
        "the noise, or the task. The paper says that all reproduce its result; its own numbers are printed beside, and "
        "rise in places at the smallest and the largest width. 100,000 units are run at the paper's scale only."
    ),
    findings=findings,
    figures={"Active units against noise": active_by_sigma},
    claims=CLAIMS,
    table=table,
)
