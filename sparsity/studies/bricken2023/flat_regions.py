"""Bricken et al. 2023, Fig. 20: noise drives pre-activations to where the activation is flat, whichever it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from sparsity.layers.sparsify import FLAT, HISTOGRAM_EDGES
from sparsity.ops.sparsifiers import SPARSIFIERS
from sparsity.studies import draw
from sparsity.studies.bricken2023.noise import DENSITY
from sparsity.studies.bricken2023.runs import by_variant, mean_over_seeds, seed_claim, sigma_axis
from sparsity.studies.draw import Drawing, Runs
from sparsity.studies.judge import Claim
from sparsity.studies.records import Run, measured, named, or_none, percent, records_of, standard_error
from sparsity.studies.runner import Record, Row, Study

VARIANTS = {"relu": "ae", **{name: f"ae_{name}" for name in ("gelu", "reflected_relu", "sat")}}
SIGMAS = (0.0, 0.3, 0.8, 3.0)
FLAT_SHARE = "units.flat.hidden"


def table(records: Sequence[Record]) -> list[Row]:
    """One line an activation phi and sigma (the paper's), means over n seeds.

    flat: share of pre-activations with |phi'| < .01, over units and one epoch of training data, noise on (se: over
    seeds); active: share of activations that are not 0, the same; z mean, z deviation: of a unit's pre-activation,
    means over units; explained: share of the variance of test images without noise that is reconstructed.
    """
    columns = {"active": DENSITY, "z mean": "units.z_mean.hidden", "z deviation": "units.z_std.hidden"}
    columns["explained"] = "explained"
    rows = []
    for activation, sigmas in _by_activation(named(records)).items():
        for sigma, of_seed in sigmas.items():
            runs = list(of_seed.values())
            flat = [measured(r, FLAT_SHARE) for r in runs]
            row = {"activation": activation, "sigma": sigma, "n": len(runs), "flat": or_none(float(np.mean(flat)))}
            row["se"] = standard_error(flat)
            row |= {column: or_none(mean_over_seeds(of_seed, name)) for column, name in columns.items()}
            rows.append(row)
    return rows


def _by_activation(runs: Mapping[str, Run]) -> dict[str, dict[float, dict[int, Run]]]:
    """Activation -> sigma -> seed -> run."""
    variants = by_variant(runs)
    return {activation: variants[variant] for activation, variant in VARIANTS.items() if variant in variants}


def histograms(runs: Runs) -> Drawing:
    """Fig. 20: pre-activations of a training batch at the last step, noise on (log y); shaded where |phi'| < .01."""
    activations = _by_activation(runs)
    figure, axes = draw.panels(-(-len(activations) // 2), 2, sharex=True, sharey=True)
    centres = (HISTOGRAM_EDGES[:-1] + HISTOGRAM_EDGES[1:]) / 2
    z = np.linspace(HISTOGRAM_EDGES[0], HISTOGRAM_EDGES[-1], 3201)
    for axis, (activation, sigmas) in zip(np.ravel(axes), activations.items(), strict=False):
        for i, (sigma, of_seed) in enumerate(sigmas.items()):
            (layer,) = records_of(next(iter(of_seed.values())), "sparsity")[-1]["layers"].values()
            counts = np.asarray(layer["histogram"], float)
            axis.plot(centres, counts[1:-1] / counts.sum(), color=draw.color(i, len(sigmas)), label=f"{sigma:g}")
        flat = np.abs(np.gradient(SPARSIFIERS[activation]()(z, np), z)) < FLAT
        axis.fill_between(z, 0, 1, where=flat, transform=axis.get_xaxis_transform(), color="k", alpha=0.08, lw=0)
        axis.set(title=activation, yscale="log", ylim=(1e-6, 1))
    for axis in np.ravel(axes)[-2:]:
        axis.set_xlabel("pre-activation z")
    np.ravel(axes)[0].set_ylabel("share")
    np.ravel(axes)[0].legend(title="sigma")
    return draw.done(figure)


def flat_by_sigma(runs: Runs) -> Drawing:
    """Share of pre-activations with |phi'| < .01, over one epoch of training data, against sigma; every seed a dot."""
    figure, axes = draw.panels(1, 1, height=3.2)
    for i, (activation, sigmas) in enumerate(_by_activation(runs).items()):
        for sigma, of_seed in sigmas.items():
            axes[0].plot([sigma] * len(of_seed), [measured(v, FLAT_SHARE) for v in of_seed.values()], f"C{i}o", ms=4)
        axes[0].plot([], [], f"C{i}o", label=activation)
    sigma_axis(axes[0])
    axes[0].set(ylabel="share of flat pre-activations", ylim=(0, 1))
    axes[0].legend()
    return draw.done(figure)


def findings(records: Sequence[Record]) -> list[str]:
    """The flat shares of every activation, in sentences."""
    rows = table(records)
    return [
        f"{activation}: flat pre-activations by sigma: "
        + ", ".join(f"{percent(r['flat'])} at {r['sigma']:g}" for r in rows if r["activation"] == activation)
        + "."
        for activation in dict.fromkeys(r["activation"] for r in rows)
    ]


def _rises(runs: list[Record]) -> np.ndarray:
    return np.diff([measured(r, FLAT_SHARE) for r in runs])


def _claims(activation: str) -> tuple[Claim, Claim]:
    variant = VARIANTS[activation]
    return (
        seed_claim(
            ((variant, 0.0), (variant, 0.8)),
            lambda runs: float(_rises(runs)[0]),
            id=f"B12.{activation}",
            where="Fig. 20",
            statement=f"noise drives pre-activations to where {activation} is flat",
            effect="share of pre-activations with |phi'| < .01, sigma .8 less 0",
            side="above",
            threshold=0.05,
        ),
        seed_claim(
            tuple((variant, sigma) for sigma in SIGMAS),
            lambda runs: float(_rises(runs).min()),
            id=f"B12.{activation}.monotone",
            where="Fig. 20",
            statement=f"and the more the more noise there is, sigma 0 to 3 ({activation})",
            effect="least rise of the share of pre-activations with |phi'| < .01 from one sigma to the next",
            side="above",
            threshold=-0.01,
        ),
    )


FLAT_REGIONS = Study(
    name="bricken2023/flat_regions",
    title="Bricken et al. 2023: noise and the flat parts of an activation",
    introduction=(
        "Autoencoders of photographs under Gaussian noise, with four activations: ReLU and GELU, flat to the left, the "
        "reflected ReLU, flat to the right, and sat, flat on both sides. Noise does not pass where an activation is "
        "flat, so training under it should push pre-activations there. Sigma is the paper's, for data of deviation "
        ".25; the runs have the same ratio of noise to data."
    ),
    findings=findings,
    figures={"Pre-activations": histograms, "Flat pre-activations": flat_by_sigma},
    claims=tuple(claim for activation in VARIANTS for claim in _claims(activation)),
    table=table,
)
