"""Bricken et al. 2023, Fig. 12: receptive fields of autoencoders that trained under noise for longer and longer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from sparsity.studies import draw
from sparsity.studies.bricken2023.noise import DENSITY, NEVER
from sparsity.studies.bricken2023.runs import arm_sigma_seed
from sparsity.studies.draw import Drawing, Runs, RunView
from sparsity.studies.judge import Claim, Effect
from sparsity.studies.records import Run, measured, named, or_none, percent, standard_error
from sparsity.studies.runner import Record, Row, Study

PHASES, PIXELS = "fields.phases.gabor.above_null", "fields.pixels.gabor.above"
COLUMNS = {
    "gabor": PHASES,
    "centre-surround": "fields.phases.centre_surround.above_null",
    "gabor, by pixels": PIXELS,
    "centre-surround, by pixels": "fields.pixels.centre_surround.above",
    "active": DENSITY,
    "never active": NEVER,
    "explained": "explained",
}


def by_length(runs: Mapping[str, Run]) -> dict[int, dict[int, Run]]:
    """Steps of training -> seed -> run, the shortest first, of runs by name."""
    out: dict[int, dict[int, Run]] = {}
    for name, run in runs.items():
        steps = run.config["steps"] if isinstance(run, RunView) else run.config.steps
        out.setdefault(steps, {})[arm_sigma_seed(name)[2]] = run
    return dict(sorted(out.items()))


def table(records: Sequence[Record]) -> list[Row]:
    """One line a length of training, means over n seeds.

    gabor, centre-surround: share of units whose field is explained better than 95% of fields of random phases are, and
    best by that function (se: of gabor, over seeds); by pixels: better than 95% of fields of shuffled pixels and by
    more than half. active: share of nonzero activations over one epoch of training data, noise on; never active: units
    that never are; explained: share of the variance of test images without noise that is reconstructed.
    """
    rows = []
    for steps, of_seed in by_length(named(records)).items():
        runs = list(of_seed.values())
        values = {column: [measured(r, name) for r in runs] for column, name in COLUMNS.items()}
        row = {"steps": steps, "n": len(runs)} | {column: or_none(float(np.mean(v))) for column, v in values.items()}
        rows.append(row | {"se": standard_error(values["gabor"])})
    return rows


def shares_by_length(runs: Runs) -> Drawing:
    """Shares of Gabor-like and of centre-surround fields against the length of training, by both nulls; all seeds."""
    figure, axes = draw.panels(1, 2, height=3.2)
    for axis, suffix in zip(axes, ("", ", by pixels"), strict=True):
        for i, kind in enumerate(("gabor", "centre-surround")):
            for steps, of_seed in by_length(runs).items():
                shares = [measured(view, COLUMNS[kind + suffix]) for view in of_seed.values()]
                axis.plot([steps] * len(shares), shares, "o", color=f"C{i}", ms=4)
            axis.plot([], [], "o", color=f"C{i}", label=kind)
        axis.set(xlabel="steps of training", title="null: random phases" if not suffix else "null: shuffled pixels")
    axes[0].set_ylabel("share of units")
    draw.legend_beside(axes[0])
    return draw.done(figure)


def fields_after(place: int, words: str) -> Callable[[Runs], Drawing]:
    """The figure of the receptive fields of the length at `place` in the order of lengths."""

    def fields(runs: Runs) -> Drawing:
        of_seed = list(by_length(runs).values())[place]
        arrays = next(iter(of_seed.values())).outcome.arrays
        return draw.receptive_fields(np.asarray(arrays["fields.fields"]), np.asarray(arrays["fields.activity"]))

    fields.__doc__ = (
        f"Fig. 12: weights into each unit after the {words} training, the most active on one noisy test image first; "
        "each is scaled by its largest weight, grey is 0."
    )
    return fields


def findings(records: Sequence[Record]) -> list[str]:
    """The shares of each length, in sentences."""
    return [
        f"{row['steps']:,} steps (n = {row['n']}): {percent(row['gabor'])} of the fields are Gabor-like and "
        f"{percent(row['centre-surround'])} centre-surround, beyond random phases; active {percent(row['active'])}."
        for row in table(records)
    ]


def _gain(name: str) -> Callable[[Sequence[Record]], Effect]:
    """A measure after the longest training less that after the shortest, by seed."""

    def measure(records: Sequence[Record]) -> Effect:
        lengths = by_length(named(records))
        if len(lengths) < 2:
            return Effect.untestable("no two lengths of training were run")
        shortest, longest = lengths[min(lengths)], lengths[max(lengths)]
        seeds = sorted(set(shortest) & set(longest))
        return Effect.of([measured(longest[seed], name) - measured(shortest[seed], name) for seed in seeds])

    return measure


CLAIMS = (
    Claim(
        id="B5.longer",
        where="Fig. 12",
        statement="longer training makes more fields Gabor-like",
        effect="share of Gabor-like fields (null: random phases) at sigma .3, longest less shortest training",
        unit="seed",
        side="above",
        threshold=0.0,
        measure=_gain(PHASES),
        headline=True,
    ),
    Claim(
        id="B5.longer.pixels",
        where="Fig. 12",
        statement="and so by the permutation of pixels, where a Gabor function explains more than half",
        effect="share of Gabor-like fields (null: shuffled pixels) at sigma .3, longest less shortest training",
        unit="seed",
        side="above",
        threshold=0.0,
        measure=_gain(PIXELS),
    ),
)

TRAINING_TIME = Study(
    name="bricken2023/training_time",
    title="Bricken et al. 2023: receptive fields take time",
    introduction=(
        "Autoencoders of photographs under Gaussian noise of sigma .3 (in the paper's units), trained for three "
        "lengths: how many of their units have a receptive field like those of V1?"
    ),
    findings=findings,
    figures={
        "Fields by length of training": shares_by_length,
        "Receptive fields, shortest": fields_after(0, "shortest"),
        "Receptive fields, in between": fields_after(1, "middle"),
        "Receptive fields, longest": fields_after(-1, "longest"),
    },
    claims=CLAIMS,
    table=table,
)
