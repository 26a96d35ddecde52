"""Bricken et al. 2023, Secs. 1 and 3, App. B: the penalty in noise's place, one bias for all, smaller first weights."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np

from sparsity.studies import draw
from sparsity.studies.bricken2023.noise import DENSITY, NEVER
from sparsity.studies.bricken2023.runs import (
    active_shares,
    by_arm,
    by_variant,
    mean_over_seeds,
    over_variants,
    seed_claim,
    sigma_axis,
)
from sparsity.studies.draw import Drawing, Runs, RunView
from sparsity.studies.judge import Claim, Effect
from sparsity.studies.records import decades, diverged, measured, or_none, percent, records_of
from sparsity.studies.runner import Record, Row, Study

GABOR = "fields.phases.gabor.above_null"
SPARSE = 0.8  # the sigma at which noise makes sparsity and fields
SCALES = (0.1, 0.3, 1.0, 3.0)
SCALED_AT = 3.0  # sigma
SPARSE_SHARE = 0.25  # half of the active units of a new network
NEAR = math.log10(1.1)  # "near identical"
COLUMNS = {
    "active": DENSITY,
    "never active": NEVER,
    "test mse": "mse",
    "explained": "explained",
    "gabor": GABOR,
    "centre-surround": "fields.phases.centre_surround.above_null",
}


def table(records: Sequence[Record]) -> list[Row]:
    """One line an arm and sigma (the paper's; of the penalty that stands for noise too), means over n seeds.

    active: share of nonzero activations over one epoch of training data, under the noise of training; never active:
    units that never are; test mse and explained: on test images without noise; gabor, centre-surround: share of units
    whose field is explained better than 95% of fields of random phases are, and best by that function; noisy loss:
    training loss under noise, mean over the last tenth of the steps; steps to 25%: after how many steps the active
    share of the training batch first was below 25%, between records on a line; the number of steps, if it never was.
    """
    rows = []
    for arm, sigmas in by_arm(records).items():
        for sigma, of_seed in sigmas.items():
            runs = list(of_seed.values())
            row = {"arm": arm, "sigma": sigma, "n": len(runs)}
            row |= {column: or_none(mean_over_seeds(of_seed, name)) for column, name in COLUMNS.items()}
            row["noisy loss"] = or_none(float(np.mean([noisy_loss(r) for r in runs])))
            row["steps to 25%"] = or_none(float(np.mean([steps_to_sparsity(r) for r in runs])))
            rows.append(row)
    return rows


def noisy_loss(run: Record) -> float:
    """Training loss, without a penalty, mean over the last tenth of the steps: each has new images and new noise."""
    if diverged(run):
        return math.nan
    losses = [line["loss"] for line in records_of(run, "train")]
    return float(np.mean(losses[-max(len(losses) // 10, 1) :]))


def steps_to_sparsity(run: Record | RunView) -> float:
    """Steps until the active share of the training batch is below 25%, on a line between records; all if never."""
    if diverged(run):
        return math.nan
    steps, shares = active_shares(run)
    below = next((i for i, share in enumerate(shares) if share < SPARSE_SHARE), None)
    if not below:  # never, or from the start
        return float(steps[-1] if below is None else steps[0])
    return float(np.interp(-SPARSE_SHARE, [-s for s in shares[below - 1 : below + 1]], steps[below - 1 : below + 1]))


def penalty_and_noise(runs: Runs) -> Drawing:
    """Active share (left) and share of Gabor-like fields (right) under noise of sigma, or its penalty; all seeds."""
    figure, axes = draw.panels(1, 2, height=3.2)
    for variant, label, color in (("ae", "noise", "C0"), ("ae_jacobian", "penalty", "C1")):
        for sigma, of_seed in by_variant(runs)[variant].items():
            for axis, name in zip(axes, (DENSITY, GABOR), strict=True):
                axis.plot([sigma] * len(of_seed), [measured(v, name) for v in of_seed.values()], "o", color=color, ms=4)
        axes[0].plot([], [], "o", color=color, label=label)
    for axis, label in zip(axes, ("share of active units", "share of Gabor-like fields"), strict=True):
        sigma_axis(axis)
        axis.set_ylabel(label)
    axes[0].legend()
    return draw.done(figure)


def fields_of(variant: str, words: str) -> Callable[[Runs], Drawing]:
    """The figure of the receptive fields of a variant at sigma .8."""

    def fields(runs: Runs) -> Drawing:
        view = next(iter(by_variant(runs)[variant][SPARSE].values()))
        arrays = view.outcome.arrays
        return draw.receptive_fields(np.asarray(arrays["fields.fields"]), np.asarray(arrays["fields.activity"]))

    fields.__doc__ = (
        f"Weights into each unit, {words} of sigma {SPARSE:g}, the most active on one test image first; each is scaled "
        "by its largest weight, grey is 0."
    )
    return fields


def shared_bias(runs: Runs) -> Drawing:
    """Share of active units (left), training loss (right) against step at sigma .8: a bias a unit, or one for all."""
    figure, axes = draw.panels(1, 2)
    variants = by_variant(runs)
    for variant, label, color in (("ae", "a bias a unit", "C0"), ("ae_shared_bias", "one bias", "C1")):
        for view in variants[variant][SPARSE].values():
            axes[0].plot(*active_shares(view), color=color, lw=0.8)
            train = view.records("train")
            smooth = draw.smoothed([r["step"] for r in train], [r["loss"] for r in train], 100)
            axes[1].plot(*smooth, color=color, lw=0.8)
        axes[0].plot([], [], color=color, label=label)
    axes[0].set(xlabel="step", ylabel="share of active units", ylim=(0, None))
    axes[1].set(xlabel="step", ylabel="loss under noise", yscale="log")
    axes[0].legend()
    return draw.done(figure)


def scales_by_step(runs: Runs) -> Drawing:
    """Fig. 9: active share, biases and norms of encoder weights (means over units) by step; s scales first weights."""
    figure, axes = draw.panels(1, 3)
    variants = by_variant(runs)
    for i, s in enumerate(SCALES):
        view = next(iter(variants[f"ae_scale{s:g}"][SCALED_AT].values()))
        lines, color = records_of(view, "weights"), draw.color(i, len(SCALES))
        axes[0].plot(*active_shares(view), color=color, label=f"{s:g}")
        for axis, kind in zip(axes[1:], ("bias", "norm"), strict=True):
            means = [line["modules"]["hidden/wi"][f"{kind}_mean"] for line in lines]
            axis.plot([line["step"] for line in lines], means, color=color)
    axes[0].axhline(SPARSE_SHARE, color="k", ls=":", lw=0.8)
    for axis, label in zip(axes, ("share of active units", "bias", "norm of incoming weights"), strict=True):
        axis.set(xlabel="step", ylabel=label)
    axes[2].set_yscale("log")
    axes[0].legend(title="s")
    return draw.done(figure)


def findings(records: Sequence[Record]) -> list[str]:
    """Active shares, fields, losses and times, in sentences."""
    out = []
    for row in table(records):
        line = f"{row['arm']} at sigma {row['sigma']:g}: active {percent(row['active'])}"
        line += "" if row["gabor"] is None else f", Gabor-like fields {percent(row['gabor'])}"
        line += "" if row["noisy loss"] is None else f", loss under noise {row['noisy loss']:.4g}"
        timed = "_scale" in row["arm"] and row["steps to 25%"] is not None
        out.append(line + (f", {row['steps to 25%']:.0f} steps to 25%." if timed else "."))
    return out


def _decades_of(name: str) -> Callable[[list[Record]], float]:
    """log10 of a measure of the first of two runs over that of the second."""
    return lambda runs: decades(*(measured(r, name) for r in runs))


def _fields(records: Sequence[Record]) -> Effect:
    """Gabor-like share under the penalty less that under noise, at sigma .8, if noise makes such fields at all."""
    made = over_variants(records, (("ae", SPARSE), ("ae", 0.0)), _difference)
    if made.failed is None and made.value <= 0:
        return Effect.untestable(f"noise made no Gabor-like fields: their share rose by {made.value:.3f}")
    return over_variants(records, (("ae_jacobian", SPARSE), ("ae", SPARSE)), _difference)


def _difference(runs: list[Record]) -> float:
    first, second = (measured(r, GABOR) for r in runs)
    return first - second


def _latest_gain(runs: list[Record]) -> float:
    """log10 of the steps to 25% of a run over those of the next larger scale, the largest of all neighbours."""
    steps = [steps_to_sparsity(r) for r in runs]
    return float(np.max([decades(a, b) for a, b in itertools.pairwise(steps)]))


WITH_PENALTY, WITH_NOISE, WITHOUT = ("ae_jacobian", SPARSE), ("ae", SPARSE), ("ae", 0.0)
CLAIMS = (
    seed_claim(
        (WITH_PENALTY, WITHOUT),
        _decades_of(DENSITY),
        id="B7.sparsity",
        where="Sec. 1",
        statement="the penalty sigma^2 ||J||^2 does not make the network sparse: not by the factor 2 asked of noise",
        effect="log10 of the active share, penalty of sigma .8 over neither penalty nor noise",
        side="above",
        threshold=math.log10(0.5),
    ),
    seed_claim(
        (WITH_PENALTY, WITH_NOISE),
        _decades_of(DENSITY),
        id="B7.noise",
        where="Sec. 1",
        statement="noise of the same sigma leaves less than half of the units active that the penalty leaves",
        effect="log10 of the active share, penalty over noise, both of sigma .8",
        side="above",
        threshold=math.log10(2),
    ),
    Claim(
        id="B7.fields",
        where="Sec. 1",
        statement="the penalty does not make the Gabor-like fields that noise makes",
        effect="share of Gabor-like fields (null: random phases), penalty less noise, both of sigma .8",
        unit="seed",
        side="below",
        threshold=0.0,
        measure=_fields,
    ),
    seed_claim(
        (("ae_shared_bias", SPARSE), WITH_NOISE),
        lambda runs: abs(decades(*(noisy_loss(r) for r in runs))),
        id="B4.loss",
        where="Sec. 3",
        statement="one shared bias performs nearly as one bias a unit: within 10% of the loss",
        effect="|log10| of the training loss under noise of sigma .8, shared over own biases",
        side="below",
        threshold=NEAR,
    ),
    seed_claim(
        (("ae_shared_bias", SPARSE), WITH_NOISE),
        lambda runs: abs(_decades_of(DENSITY)(runs)),
        id="B4.sparsity",
        where="Sec. 3",
        statement="and is as sparse: within 10% of the active share",
        effect="|log10| of the active share at sigma .8, shared over own biases",
        side="below",
        threshold=NEAR,
    ),
    seed_claim(
        tuple((f"ae_scale{s:g}", SCALED_AT) for s in SCALES),
        _latest_gain,
        id="B8",
        where="Fig. 9",
        statement="the smaller the first encoder weights, the sooner the network is sparse, s in {.1, .3, 1, 3}",
        effect="log10 of the steps to 25% active over those of the next larger s, the largest of all neighbours",
        side="below",
        threshold=0.0,
    ),
    seed_claim(
        (("ae_scale0.1", SCALED_AT), ("ae_scale1", SCALED_AT)),
        _latest_gain,
        id="B8.small",
        where="Fig. 9",
        statement="weights of a tenth of the default make it sparse sooner than the default does",
        effect="log10 of the steps to 25% active, s = .1 over s = 1",
        side="below",
        threshold=0.0,
    ),
)

CONTROLS = Study(
    name="bricken2023/controls",
    title="Bricken et al. 2023: what of noise makes a network sparse",
    introduction=(
        "The autoencoders of the study bricken2023/noise with one thing changed: instead of noise, the penalty "
        "sigma^2 ||J||^2 on the Jacobian, which is what noise adds to the loss to first order; one bias shared by all "
        "units; encoder weights that start s times as large. Sigma is the paper's, for data of deviation .25; the runs "
        "have the same ratio of noise to data."
    ),
    findings=findings,
    figures={
        "Penalty and noise": penalty_and_noise,
        "Receptive fields under the penalty": fields_of("ae_jacobian", "under the penalty"),
        "Receptive fields under noise": fields_of("ae", "under noise"),
        "One bias": shared_bias,
        "First weights": scales_by_step,
    },
    claims=CLAIMS,
    table=table,
)
