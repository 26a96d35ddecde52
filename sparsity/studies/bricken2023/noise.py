"""Bricken et al. 2023, Figs. 2, 3, 5 to 7, 10, 11 and 19: what training with noise alone makes of an autoencoder."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from sparsity.evals.noise_effects import LEVELS
from sparsity.layers.sparsify import HISTOGRAM_EDGES
from sparsity.studies import draw
from sparsity.studies.bricken2023.runs import (
    arm_sigma_seed,
    by_arm,
    mean_over_seeds,
    over_seeds,
    runs_by_arm,
    sigma_axis,
)
from sparsity.studies.draw import Drawing, Runs
from sparsity.studies.judge import Claim
from sparsity.studies.records import decades, measured, or_none, records_of, standard_error
from sparsity.studies.runner import Record, Row, Study

PHOTOS, DIGITS, LATENTS = "ae400_photos", "ae200_digits", "ae400_latents"
SPARSE, MORE, DELAYED = 0.8, 3.0, 10.0  # sigmas
DENSITY, NEVER = "units.density.hidden", "units.never.hidden"
COLUMNS = {
    "active": DENSITY,
    "never active": NEVER,
    "silent": "units.silent.hidden",
    "spread": "units.spread.hidden",
    "test mse": "mse",
    "explained": "explained",
    "z mean": "units.z_mean.hidden",
    "z skewness": "units.z_skewness.hidden",
    "flat": "units.flat.hidden",
    "gabor": "fields.phases.gabor.above_null",
    "centre-surround": "fields.phases.centre_surround.above_null",
    "gabor, by pixels": "fields.pixels.gabor.above",
    "centre-surround, by pixels": "fields.pixels.centre_surround.above",
    "terms: margin": "terms.margin",
    "terms: sparsity": "terms.sparsity",
    "terms: specialization": "terms.specialization",
}


def table(records: Sequence[Record]) -> list[Row]:
    """One line an arm and sigma (the paper's), means over n seeds; measured on one epoch of training data, noise on.

    active: share of nonzero activations (se: over seeds); never active: units that never are; silent: units whose
    activations sum to less than 1e-5 (the paper's dead); spread: deviation over examples of the active share, over its
    mean; test mse and explained: on test images without noise; z: moments of pre-activations, means over units; flat:
    share of units with |phi'| < .01. gabor, centre-surround: share of units whose field is explained better than 95% of
    fields of random phases are, and best by that function; by pixels: better than 95% of fields of shuffled pixels and
    by more than half. terms: what noise adds to the loss, exactly (10 examples). bias, norm: means over units of biases
    and of the norms of incoming weights, with deviations.
    """
    rows = []
    for arm, sigmas in by_arm(records).items():
        for sigma, of_seed in sigmas.items():
            runs = list(of_seed.values())
            active = [measured(r, DENSITY) for r in runs]
            row = {"arm": arm, "sigma": sigma, "n": len(runs), "active": float(np.mean(active))}
            row["se"] = standard_error(active)
            row |= {name: or_none(mean_over_seeds(of_seed, key)) for name, key in COLUMNS.items() if name != "active"}
            row |= {key: float(np.mean([last_weights(r)[key] for r in runs])) for key in WEIGHTS}
            rows.append(row)
    return rows


WEIGHTS = ("bias_mean", "bias_std", "norm_mean", "norm_std")


def last_weights(record: Record) -> dict[str, float]:
    """Mean and deviation over units of biases and encoder norms, at the last recorded step."""
    return records_of(record, "weights")[-1]["modules"]["hidden/wi"]


def active_by_step(runs: Runs) -> Drawing:
    """Fig. 5: share of active units on the training batch, noise on, against step, for every sigma (first seed)."""
    arms = runs_by_arm(runs)
    figure, axes = draw.panels(1, len(arms), sharey=True)
    for axis, (arm, sigmas) in zip(axes, arms.items(), strict=True):
        for i, (sigma, view) in enumerate(sigmas.items()):
            lines = view.records("sparsity")
            shares = [line["layers"]["hidden"]["nonzero"] for line in lines]
            axis.plot([line["step"] for line in lines], shares, color=draw.color(i, len(sigmas)), label=f"{sigma:g}")
        axis.set(title=arm, xlabel="step")
    axes[0].set(ylabel="share of active units", ylim=(0, 1))
    draw.legend_beside(axes[-1], "sigma")
    return draw.done(figure)


def active_by_sigma(runs: Runs) -> Drawing:
    """Fig. 21: share of active units at the end of training against sigma; every seed a dot."""
    figure, axes = draw.panels(1, 1, height=3.2)
    colors: dict[str, str] = {}
    for name, view in runs.items():
        arm, sigma, _ = arm_sigma_seed(name)
        color = colors.setdefault(arm, f"C{len(colors)}")
        axes[0].plot(sigma, measured(view, DENSITY), "o", color=color, ms=4, alpha=0.7)
    for arm, color in colors.items():
        axes[0].plot([], [], "o", color=color, label=arm)
    sigma_axis(axes[0])
    axes[0].set(ylabel="share of active units", yscale="log")
    axes[0].legend()
    return draw.done(figure)


def weights_by_step(runs: Runs) -> Drawing:
    """Fig. 6: biases and norms of incoming weights against step: mean over units, shaded their deviation."""
    sigmas = runs_by_arm(runs)[next(iter(runs_by_arm(runs)))]
    figure, axes = draw.panels(1, 2)
    for i, (sigma, view) in enumerate(sigmas.items()):
        lines = view.records("weights")
        steps, color = [line["step"] for line in lines], draw.color(i, len(sigmas))
        for axis, kind in zip(axes, ("bias", "norm"), strict=True):
            mean, std = (np.array([r["modules"]["hidden/wi"][f"{kind}_{m}"] for r in lines]) for m in ("mean", "std"))
            axis.plot(steps, mean, color=color, label=f"{sigma:g}")
            axis.fill_between(steps, mean - std, mean + std, color=color, alpha=0.15, lw=0)
    axes[0].set(ylabel="bias", xlabel="step")
    axes[1].set(ylabel="norm of incoming weights", xlabel="step", yscale="log")
    axes[1].legend(title="sigma", ncols=2)
    return draw.done(figure)


def pre_activations(runs: Runs) -> Drawing:
    """Fig. 2: distribution of pre-activations over units and a training batch, noise on, at the last step (log y)."""
    sigmas = runs_by_arm(runs)[next(iter(runs_by_arm(runs)))]
    figure, axes = draw.panels(1, 1, height=3.2)
    centres = (HISTOGRAM_EDGES[:-1] + HISTOGRAM_EDGES[1:]) / 2
    for i, (sigma, view) in enumerate(sigmas.items()):
        counts = np.asarray(view.records("sparsity")[-1]["layers"]["hidden"]["histogram"], float)[1:-1]
        axes[0].plot(centres, counts / counts.sum(), color=draw.color(i, len(sigmas)), label=f"{sigma:g}")
    axes[0].set(yscale="log", xlabel="pre-activation", ylabel="share", xlim=(-8, 8), ylim=(1e-6, 1))
    axes[0].legend(title="sigma", ncols=2)
    return draw.done(figure)


def reconstructions(runs: Runs) -> Drawing:
    """Fig. 3: test images (top row) and their reconstructions without noise, a row a sigma."""
    sigmas = runs_by_arm(runs)[next(iter(runs_by_arm(runs)))]
    examples = {sigma: view.outcome.arrays["examples"] for sigma, view in sigmas.items()}
    rows = [np.asarray(next(iter(examples.values()))["images"])]
    rows += [np.asarray(e["outputs"]) for e in examples.values()]
    figure, axes = draw.panels(len(rows), rows[0].shape[0], height=0.9)
    for r, (label, images) in enumerate(zip(["image", *(f"{s:g}" for s in examples)], rows, strict=True)):
        for c, image in enumerate(images):
            axes[r][c].imshow(image.squeeze(), cmap="gray", vmin=0, vmax=1)
            axes[r][c].set(xticks=[], yticks=[])
        axes[r][0].set_ylabel(label)
    return draw.done(figure)


def fields_at(sigma: float) -> Callable[[Runs], Drawing]:
    """The figure of the receptive fields at one sigma."""

    def fields(runs: Runs) -> Drawing:
        arrays = runs_by_arm(runs)[next(iter(runs_by_arm(runs)))][sigma].outcome.arrays
        chosen = np.asarray(arrays["fields.fields"]), np.asarray(arrays["fields.activity"])
        return draw.receptive_fields(*chosen)

    fields.__doc__ = (
        f"Figs. 7 and 11: weights into each unit at sigma {sigma:g}, the most active on one noisy test image first; "
        "each is scaled by its largest weight, grey is 0."
    )
    return fields


def covariance(runs: Runs) -> Drawing:
    """Fig. 19: E[eta_j eta_k] over pairs of units against training sigma; a line an injected level, in std(data)."""
    sigmas = runs_by_arm(runs)[next(iter(runs_by_arm(runs)))]
    figure, axes = draw.panels(1, 1, height=3.2)
    for i, level in enumerate(LEVELS):
        values = [measured(view, f"covariance.{level:g}") for view in sigmas.values()]
        axes[0].plot(list(sigmas), values, "o-", ms=3, color=draw.color(i, len(LEVELS)), label=f"{level:g}")
    sigma_axis(axes[0])
    axes[0].set(yscale="log", ylabel="mean of eta_j eta_k")
    axes[0].legend(title="injected / std(data)")
    return draw.done(figure)


def findings(records: Sequence[Record]) -> list[str]:
    """Active shares, dead units and fields, in sentences."""
    out = []
    for arm, sigmas in by_arm(records).items():
        share = ", ".join(f"{100 * mean_over_seeds(s, DENSITY):.1f}% at {sigma:g}" for sigma, s in sigmas.items())
        dead = max(mean_over_seeds(s, NEVER) for s in sigmas.values())
        out.append(f"{arm}: active units by sigma: {share}; at most {100 * dead:.1f}% never active.")
    return out


def _largest_rise(runs: dict[float, Record]) -> float:
    """Of the active share, from one sigma to the next up to 3."""
    shares = [measured(runs[s], DENSITY) for s in sorted(runs) if s <= MORE]
    return float(np.max(np.diff(shares)))


def _log_ratio(name: str, sigma: float, base: float) -> Callable[[dict[float, Record]], float]:
    return lambda runs: decades(measured(runs[sigma], name), measured(runs[base], name))


def _difference(name: str, sigma: float, base: float) -> Callable[[dict[float, Record]], float]:
    return lambda runs: measured(runs[sigma], name) - measured(runs[base], name)


def _relative_spread(kind: str) -> Callable[[dict[float, Record]], float]:
    """log10 of std / |mean| over units at sigma .8 less that without noise."""

    def value(runs: dict[float, Record]) -> float:
        last = {s: last_weights(runs[s]) for s in (0.0, SPARSE)}
        spread = {s: w[f"{kind}_std"] / abs(w[f"{kind}_mean"]) for s, w in last.items()}
        return math.log10(spread[SPARSE] / spread[0.0])

    return value


def _count_variance(runs: dict[float, Record]) -> float:
    """log10 of the variance over examples of the active share at sigma .8, over that without noise."""
    deviation = {s: measured(runs[s], "units.spread.hidden") * measured(runs[s], DENSITY) for s in (0.0, SPARSE)}
    return 2 * decades(deviation[SPARSE], deviation[0.0])


def _early(runs: dict[float, Record]) -> float:
    """Active share at sigma 10 less that at 3, mean over the first tenth of training after step 0."""
    share = {}
    for sigma in (MORE, DELAYED):
        lines = records_of(runs[sigma], "sparsity")
        early = lines[1 : max(len(lines) // 10, 1) + 1]
        share[sigma] = np.mean([line["layers"]["hidden"]["nonzero"] for line in early])
    return float(share[DELAYED] - share[MORE])


def _worst_covariance(runs: dict[float, Record]) -> float:
    """Size of the covariance at training sigma .8 over that at 0, less 1, of the injected level where it fell least.

    No logarithm: where a network's units are silent it is 0, and where noise hardly reaches them it may be negative.
    """
    both = ((sigma, level) for sigma in (0.0, SPARSE) for level in LEVELS)
    size = {(sigma, level): abs(measured(runs[sigma], f"covariance.{level:g}")) for sigma, level in both}
    ratios = [size[SPARSE, level] / size[0.0, level] if size[0.0, level] else math.nan for level in LEVELS]
    return float(np.max(ratios)) - 1  # NaN if one is


def _claim(id: str, where: str, statement: str, effect: str, side, threshold: float, arm: str, value, headline=False):
    return Claim(
        id=id,
        where=where,
        statement=statement,
        effect=f"{effect} ({arm})",
        unit="seed",
        side=side,
        threshold=threshold,
        measure=lambda records: over_seeds(records, arm, value),
        headline=headline,
    )


def _falls(arm: str, data: str) -> tuple[Claim, Claim]:
    return (
        _claim(
            f"B1.{data}",
            "Fig. 5, 21",
            "the active fraction falls with sigma over 0 to 3",
            "largest rise of the active share from one sigma to the next",
            "below",
            0.01,
            arm,
            _largest_rise,
            headline=True,
        ),
        _claim(
            f"B1.{data}.size",
            "Fig. 5, 21",
            "and by much: at sigma .8 it is less than half of that without noise",
            "log10 of the active share at sigma .8 over that at 0",
            "below",
            math.log10(0.5),
            arm,
            _log_ratio(DENSITY, SPARSE, 0.0),
            headline=True,
        ),
    )


CLAIMS = (
    *_falls(PHOTOS, "photos"),
    *_falls(DIGITS, "digits"),
    *_falls(LATENTS, "latents"),
    _claim(
        "B1.delayed",
        "Fig. 5",
        "at sigma 10 sparsity is delayed",
        "active share early in training at sigma 10 less that at 3",
        "above",
        0.0,
        PHOTOS,
        _early,
    ),
    _claim(
        "B2.bias",
        "Fig. 6",
        "biases become negative",
        "mean bias at sigma .8",
        "below",
        0.0,
        PHOTOS,
        lambda runs: last_weights(runs[SPARSE])["bias_mean"],
        headline=True,
    ),
    _claim(
        "B2.bias_spread",
        "Fig. 6",
        "biases synchronise",
        "log10 of std / |mean| of biases at sigma .8 over that at 0",
        "below",
        0.0,
        PHOTOS,
        _relative_spread("bias"),
        headline=True,
    ),
    _claim(
        "B2.norm_spread",
        "Fig. 6",
        "and so do the norms of encoder weights",
        "log10 of std / mean of norms at sigma .8 over that at 0",
        "below",
        0.0,
        PHOTOS,
        _relative_spread("norm"),
        headline=True,
    ),
    _claim(
        "B2.count",
        "Fig. 6",
        "the variance over inputs of the active count shrinks",
        "log10 of the variance of the active share at sigma .8 over that at 0",
        "below",
        0.0,
        PHOTOS,
        _count_variance,
        headline=True,
    ),
    _claim(
        "B2.dead",
        "Fig. 6",
        "no unit is dead at the sparse solution",
        "share of units never active over an epoch at sigma .8",
        "below",
        0.01,
        PHOTOS,
        lambda runs: measured(runs[SPARSE], NEVER),
        headline=True,
    ),
    _claim(
        "B3.mean",
        "Fig. 2",
        "pre-activations become more negative",
        "mean pre-activation in units of its deviation, sigma .8 less 0",
        "below",
        0.0,
        PHOTOS,
        lambda runs: np.subtract(
            *(measured(runs[s], "units.z_mean.hidden") / measured(runs[s], "units.z_std.hidden") for s in (SPARSE, 0.0))
        ),
    ),
    _claim(
        "B3.tail",
        "Fig. 2",
        "with a longer right tail",
        "mean over units of the skewness of pre-activations, sigma .8 less 0",
        "above",
        0.0,
        PHOTOS,
        _difference("units.z_skewness.hidden", SPARSE, 0.0),
    ),
    _claim(
        "B5.gabor",
        "Fig. 7, 11",
        "the share of Gabor-like fields rises from sigma 0 to .8",
        "share of Gabor-like fields (null: random phases), sigma .8 less 0",
        "above",
        0.0,
        PHOTOS,
        _difference("fields.phases.gabor.above_null", SPARSE, 0.0),
        headline=True,
    ),
    _claim(
        "B5.surround",
        "Fig. 7, 11",
        "and that of centre-surround fields with more noise",
        "share of centre-surround fields (null: random phases), sigma 3 less .8",
        "above",
        0.0,
        PHOTOS,
        _difference("fields.phases.centre_surround.above_null", MORE, SPARSE),
        headline=True,
    ),
    _claim(
        "B11",
        "Fig. 19",
        "E[eta_j eta_k] falls with training sigma, at every injected level",
        "size of its mean over pairs at sigma .8 over that at 0, less 1, at the injected level where it fell least",
        "below",
        0.0,
        PHOTOS,
        _worst_covariance,
    ),
)

NOISE = Study(
    name="bricken2023/noise",
    title="Bricken et al. 2023: sparsity from noise alone",
    introduction=(
        "Autoencoders of one hidden ReLU layer reconstruct patches of photographs, digits, and latents of digits, from "
        "inputs with added Gaussian noise. Nothing else asks for sparsity. Sigma is the paper's, for pixels of "
        "deviation .25 and latents of .17; the runs have the same ratio of noise to data."
    ),
    findings=findings,
    figures={
        "Active units": active_by_step,
        "Active units against sigma": active_by_sigma,
        "Biases and norms": weights_by_step,
        "Pre-activations": pre_activations,
        "Reconstructions": reconstructions,
        **{f"Receptive fields, sigma {sigma:g}": fields_at(sigma) for sigma in (0.0, 0.1, 0.3, 0.8, 1.5, 3.0, 10.0)},
        "Noise covariance": covariance,
    },
    claims=CLAIMS,
    table=table,
)
