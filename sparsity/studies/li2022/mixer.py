"""Li et al. 2022, Fig. B.2: nonzeros of a Mixer's token MLPs and of its channel MLPs, beside a ViT's."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence

import numpy as np

from sparsity.models.mixer import CHANNEL, TOKEN
from sparsity.studies import draw
from sparsity.studies.draw import Drawing, Runs
from sparsity.studies.judge import Claim, Effect
from sparsity.studies.li2022.runs import train_accuracy, trajectory
from sparsity.studies.li2022.vits import LEARNS
from sparsity.studies.records import (
    Run,
    across,
    decades_each,
    finished,
    grid_by,
    mean_over,
    measured,
    named,
    percent,
    standard_error,
)
from sparsity.studies.runner import Record, Row, Study

MIXER, VIT = "mixer", "vit"
SPARSE = 2 * 0.063  # share of nonzeros: twice the mean of the paper's ViT, which the first channel MLPs are like
ALIKE = math.log10(1.5)
_NAME = re.compile(rf"^({MIXER}|{VIT})_.*_seed(\d+)$")


def network_and_seed(name: str) -> tuple[str, int]:
    """The network, a Mixer or a ViT, and the seed of a run.

    >>> network_and_seed("mixer_digits_seed0"), network_and_seed("vit_digits_noise0_seed2")
    (('mixer', 0), ('vit', 2))
    """
    network, seed = _NAME.search(name).groups()
    return network, int(seed)


def by_network(runs) -> dict[str, dict[int, Run]]:
    """Network -> seed -> run, of runs by name."""
    return {network: of_seed for (network,), of_seed in grid_by(network_and_seed, runs).items()}


def shares(run: Run, kind: str = "") -> np.ndarray:
    """Share of nonzeros on held-out images by layer; of a Mixer that of one kind of MLPs. One NaN if it diverged."""
    measures = run.outcome.measures
    found = [m.value for m in measures if m.name.startswith("nonzero.block_") and m.name.endswith(kind)]
    return np.array(found or [math.nan])


def change(run: Run, kind: str) -> np.ndarray:
    """Of the share of nonzeros on training batches, by layer of one kind, from the first step to the last."""
    _, by_layer = trajectory(run)
    return np.array([v[-1] - v[0] for name, v in by_layer.items() if name.endswith(kind)] or [math.nan])


def table(records: Sequence[Record]) -> list[Row]:
    """Share of nonzeros of every layer on held-out images, means over n seeds (of the Mixer).

    token, channel: of the Mixer's two kinds of MLPs (se over seeds); start: on the training batch of the first step.
    vit: the ViT's layer of the same number. The paper's token MLPs are above 50%. accuracy: test images, Mixer's;
    train: on training batches.
    """
    found = by_network(named(records))
    mixers, vits = finished(found.get(MIXER, {})), finished(found.get(VIT, {}))
    rows = []
    for i in range(len(shares(mixers[0], CHANNEL))) if mixers else ():
        row = {"layer": i, "n": len(mixers)}
        for kind in (TOKEN, CHANNEL):
            row[f"{kind}, start"] = float(np.mean([trajectory(r)[1][f"block_{i}/{kind}"][0] for r in mixers]))
            values = [float(shares(r, kind)[i]) for r in mixers]
            row[kind], row[f"{kind}, se"] = float(np.mean(values)), standard_error(values)
        vit = [shares(r)[i] for r in vits if len(shares(r)) > i]
        row["vit"] = float(np.mean(vit)) if vit else None
        row["accuracy"] = mean_over(mixers, lambda r: measured(r, "accuracy"))
        row["train"] = mean_over(mixers, train_accuracy)
        rows.append(row)
    return rows


def by_layer(runs: Runs) -> Drawing:
    """Fig. B.2: share of nonzeros of each layer on held-out images (log y); dots are seeds, lines their mean."""
    figure, (axis,) = draw.panels(1, 1)
    found = by_network(runs)
    curves = {
        "token MLPs": (MIXER, TOKEN, "C1"),
        "channel MLPs": (MIXER, CHANNEL, "C0"),
        "ViT": (VIT, "", "C7"),
    }
    for label, (network, kind, color) in curves.items():
        values = [100 * shares(view, kind) for view in found.get(network, {}).values()]
        if values:
            axis.plot(np.mean(values, 0), "-", color=color, label=label)
        for v in values:
            axis.plot(v, "o", color=color, ms=3, alpha=0.6)
    axis.axhline(50, color="k", ls="--", lw=0.8)
    axis.set(xlabel="layer", ylabel="nonzero (%)")
    draw.log_y(axis)
    axis.legend()
    return draw.done(figure)


def by_step(runs: Runs) -> Drawing:
    """Nonzeros on training batches by layer against step (log y), token MLPs left, channel MLPs right, first seed."""
    figure, axes = draw.panels(1, 2, sharey=True)
    view = next(iter(by_network(runs).get(MIXER, {}).values()), None)
    steps, by_name = trajectory(view) if view else (np.array([]), {})
    for axis, kind in zip(axes, (TOKEN, CHANNEL), strict=True):
        layers = [name for name in by_name if name.endswith(kind)]
        for i, name in enumerate(layers):
            axis.plot(steps, 100 * by_name[name], color=draw.color(i, len(layers)), label=name.split("/")[0])
        axis.set(title=f"{kind} MLPs", xlabel="step")
        draw.log_y(axis)
    axes[0].set_ylabel("nonzero (%)")
    if axes[0].lines:
        axes[0].legend()
    return draw.done(figure)


def findings(records: Sequence[Record]) -> list[str]:
    """Both kinds of MLPs in a sentence."""
    rows = table(records)
    if not rows:
        return ["No Mixer has finished."]
    mean = lambda key: percent(float(np.mean([row[key] for row in rows])))
    return [
        f"Token MLPs: nonzero {mean('token, start')} at the start, {mean(TOKEN)} on held-out images at the end (the "
        f"paper: above 50%); channel MLPs {mean('channel, start')} and {mean(CHANNEL)}; means over {len(rows)} layers."
    ]


def _of(value: Callable[..., float], networks: tuple[str, ...] = (MIXER,)) -> Callable[..., Effect]:
    """`value` of a seed's Mixer (and ViT). Not testable if one was not run, or has not learnt by its mean accuracy."""

    def measure(records: Sequence[Record]) -> Effect:
        found = by_network(named(records))
        groups = {network: found.get(network, {}) for network in networks}
        for network, of_seed in groups.items():
            learnt = np.mean([measured(r, "accuracy") for r in of_seed.values()]) if of_seed else math.nan
            if learnt < LEARNS:
                return Effect.untestable(f"the {network}'s test accuracy is only {learnt:.2f}")
        return across(groups, value)

    return measure


def decades_from_vit(mixer: Run, vit: Run) -> np.ndarray:
    """log10 of each channel MLP's share over that of the ViT's layer of the same number; NaN if depths differ."""
    a, b = shares(mixer, CHANNEL), shares(vit)
    return decades_each(a, b) if len(a) == len(b) else np.full(len(a), math.nan)


def early(layers: int) -> int:
    """How many of the layers are the first ones: a third, four of twelve as in the paper, one at least."""
    return max(round(layers / 3), 1)


def _early_gap(mixer: Run, vit: Run) -> float:
    gaps = decades_from_vit(mixer, vit)
    return float(np.abs(gaps[: early(len(gaps))]).mean())


def _late_gap(mixer: Run, vit: Run) -> float:
    gaps = decades_from_vit(mixer, vit)
    return float(gaps[early(len(gaps)) : -1].mean()) if len(gaps) > early(len(gaps)) + 1 else math.nan


def _claim(id: str, statement: str, effect: str, side, threshold: float, measure: Callable) -> Claim:
    return Claim(id, "Fig. B.2", statement, effect, "seed", side, threshold, measure)


CLAIMS = (
    _claim(
        "L13.token",
        "token MLPs are dense: each is above 50%",
        "least held-out share of nonzeros of a token MLP over layers",
        "above",
        0.5,
        _of(lambda run: float(shares(run, TOKEN).min())),
    ),
    _claim(
        "L13.apart",
        "and denser than channel MLPs",
        "held-out share of nonzeros, mean over layers: token MLPs less channel MLPs",
        "above",
        0.0,
        _of(lambda run: float(shares(run, TOKEN).mean() - shares(run, CHANNEL).mean())),
    ),
    _claim(
        "L13.falls",
        "the share falls in every channel MLP",
        "largest change over channel MLPs of the share of nonzeros on training batches, end less start",
        "below",
        0.0,
        _of(lambda run: float(change(run, CHANNEL).max())),
    ),
    _claim(
        "L13.size",
        "channel MLPs are sparse as a ViT is, whose mean is 6.3%: no more than twice that",
        "held-out share of nonzeros of channel MLPs, mean over layers",
        "below",
        SPARSE,
        _of(lambda run: float(shares(run, CHANNEL).mean())),
    ),
    _claim(
        "L13.first",
        "the first third of the channel MLPs has almost the ViT's share: within a factor of 1.5",
        "mean over these of |log10 of their held-out share over that of the ViT's layer of the same number|",
        "below",
        ALIKE,
        _of(_early_gap, (MIXER, VIT)),
    ),
    _claim(
        "L13.later",
        "the later ones but the last are denser than the ViT's",
        "mean over these of log10 of their held-out share over that of the ViT's layer of the same number",
        "above",
        0.0,
        _of(_late_gap, (MIXER, VIT)),
    ),
)

MIXER_STUDY = Study(
    name="li2022/mixer",
    title="Li et al. 2022, Fig. B.2: a Mixer's channel MLPs are sparse, its token MLPs are not",
    introduction=(
        "An MLP-Mixer classifies images: the MLPs that mix channels within a token take turns with those, an eighth "
        "as wide, that mix tokens within a channel. The paper finds the first as sparse as a ViT's in the first "
        "layers and denser in the later ones, and the second above 50%. Both are measured apart, beside a ViT of as "
        "many layers."
    ),
    findings=findings,
    figures={"Nonzeros by layer": by_layer, "Nonzeros by step": by_step},
    claims=CLAIMS,
    table=table,
)
