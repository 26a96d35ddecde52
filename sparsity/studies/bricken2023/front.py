"""Beyond Bricken et al. 2023: noise combined with Top-k, L1 or clipped activations, against noise alone."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import numpy as np

from sparsity.studies import draw
from sparsity.studies.bricken2023.fronts import (
    ALONE,
    Front,
    Settings,
    by_method,
    front_of_noise,
    method,
    point,
)
from sparsity.studies.bricken2023.runs import mean_over_seeds
from sparsity.studies.draw import Drawing, Runs
from sparsity.studies.judge import Claim, Effect
from sparsity.studies.records import or_none, standard_error
from sparsity.studies.runner import Record, Row, Study

COMBINATIONS = {"top_k": "Top-k", "l1": "L1", "clipped": "clipped ReLU"}


def gains(methods: Settings, label: str) -> dict[float, dict[int, float]]:
    """Setting -> seed -> log10 of the loss of noise alone at the same active share over the combination's.

    NaN where a combination is sparser than all of that seed's networks of noise alone.
    """
    settings = methods.get(label, {})
    fronts = {seed: front_of_noise(methods, seed) for of_seed in settings.values() for seed in of_seed}
    return {
        value: {seed: -fronts[seed].excess(record) for seed, record in of_seed.items()}
        for value, of_seed in settings.items()
    }


def table(records: Sequence[Record]) -> list[Row]:
    """Noise alone at its sigmas, and combined (sigma .3) with k/units, the paper's weight of L1, or a clip.

    Means over n seeds. active: share of nonzero activations on the test split without noise; test mse: there too; never
    active: units that never are on the training split; gain: log10 of the mse of noise alone at the same active share
    over that of the combination, positive if the combination is better (se: over seeds); empty if it is sparser than
    all of noise alone. A clip is in std(data).
    """
    methods, rows = by_method(records), []
    for label, settings in methods.items():
        gained = gains(methods, label) if label != ALONE else {}
        for value, of_seed in settings.items():
            share, loss = np.mean([point(r) for r in of_seed.values()], 0)
            row = {
                "method": label,
                "setting": value,
                "n": len(of_seed),
                "active": float(share),
                "test mse": float(loss),
            }
            row["never active"] = or_none(mean_over_seeds(of_seed, "units.never.hidden"))
            gain = list(gained.get(value, {}).values())
            known = gain and all(map(math.isfinite, gain))
            row["gain"], row["se"] = (float(np.mean(gain)), standard_error(gain)) if known else (None, None)
            rows.append(row)
    return rows


def loss_by_share(runs: Runs) -> Drawing:
    """Test loss against the share of active units, both without noise; a dot a run, a line the front of noise alone."""
    figure, axes = draw.panels(1, 1, height=4.2)
    points: dict[str, dict[int, list]] = {}
    for name, view in runs.items():
        label, _, seed = method(name)
        points.setdefault(label, {}).setdefault(seed, []).append(point(view))
    for i, (label, of_seed) in enumerate(points.items()):
        for number, some in enumerate(of_seed.values()):
            axes[0].plot(*zip(*some, strict=True), "o", ms=5, alpha=0.7, color=f"C{i}", label=None if number else label)
            if label == ALONE:
                axes[0].plot(*zip(*Front(some).points, strict=True), "-", lw=0.8, color=f"C{i}")
    axes[0].set(xscale="log", yscale="log", xlabel="share of active units, test split", ylabel="test mse")
    axes[0].legend()
    return draw.done(figure)


def findings(records: Sequence[Record]) -> list[str]:
    """The gain of every combination, in sentences."""
    out = []
    for row in table(records):
        if row["method"] == ALONE:
            continue
        line = (
            f"{row['method']} at {row['setting']:g}: {100 * row['active']:.3g}% active, test mse {row['test mse']:.3g}"
        )
        if row["gain"] is None:
            out.append(f"{line}, in some seed sparser than any network of noise alone, or diverged.")
            continue
        error = "" if row["se"] is None else f" (log10 {row['gain']:.3f} ± {row['se']:.3f})"
        out.append(f"{line}, {10 ** -row['gain']:.3g} times that of noise alone at the same share{error}.")
    return out


def _gain_of(records: Sequence[Record], label: str) -> Effect:
    """One replicate a seed: the mean gain over the settings of one combination."""
    gained = list(gains(by_method(records), label).values())
    if not gained:
        return Effect.untestable(f"no run of {label}")
    seeds = sorted(set.intersection(*map(set, gained)))
    return Effect.of([float(np.mean([of_seed[seed] for of_seed in gained])) for seed in seeds])


def _best_gain(records: Sequence[Record]) -> Effect:
    """One replicate a seed: the gain there of the setting, of all combinations, that gains most in the other seeds."""
    methods = by_method(records)
    gained = [of_seed for name in COMBINATIONS for of_seed in gains(methods, f"{ALONE} + {name}").values()]
    if not gained:
        return Effect.untestable("no combination was run")
    seeds = sorted(set.intersection(*map(set, gained)))
    if len(seeds) < 2:
        return Effect.untestable("a setting is chosen by other seeds, and there is one seed only")
    out = []
    for seed in seeds:
        elsewhere = [float(np.mean([of_seed[s] for s in seeds if s != seed])) for of_seed in gained]
        known = [-math.inf if math.isnan(gain) else gain for gain in elsewhere]
        out.append(gained[int(np.argmax(known))][seed])
    return Effect.of(out)


def _claim(id: str, statement: str, effect: str, measure: Callable[[Sequence[Record]], Effect]) -> Claim:
    where = "Sec. 4, a hope of the paper"
    return Claim(id, where, statement, effect, "seed", "above", 0.0, measure)


CLAIMS = (
    *(
        _claim(
            f"front.{name}",
            f"noise with {what} beats noise alone at the same share of active units",
            "log10 of the test mse of noise alone at the same active share over the combination's, mean over settings",
            functools.partial(_gain_of, label=f"{ALONE} + {name}"),
        )
        for name, what in COMBINATIONS.items()
    ),
    _claim(
        "front.any",
        "some combination beats noise alone at the same share of active units",
        "the same of one setting: for each seed the one that gains most in the other seeds",
        _best_gain,
    ),
)

FRONT = Study(
    name="bricken2023/front",
    title="Beyond Bricken et al. 2023: noise combined with other ways to sparsity",
    introduction=(
        "The paper expects even sparser networks from noise combined with other approaches. Here noise of one size, "
        "annealed away, goes with Top-k, with an L1 penalty and with a clipped ReLU. The yardstick is the front of "
        "noise alone: the test loss that it reaches at the same share of active units, between its settings on a "
        "straight line in the logarithms."
    ),
    findings=findings,
    figures={"Loss against sparsity": loss_by_share},
    claims=CLAIMS,
    table=table,
)
