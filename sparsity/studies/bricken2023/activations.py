"""Bricken et al. 2023, Figs. 22 and 23: which activations noise makes sparse, and which form receptive fields."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from sparsity.layers.sparsify import THRESHOLDS
from sparsity.studies import draw
from sparsity.studies.bricken2023.runs import by_arm, mean_over_seeds, printed_active, runs_by_arm, sigma_axis
from sparsity.studies.draw import Drawing, Runs
from sparsity.studies.judge import Claim, Effect
from sparsity.studies.records import decades, measured, or_none, standard_error
from sparsity.studies.runner import Record, Row, Study

ACTIVATIONS = ("relu", "gelu", "sigmoid", "elu", "tanh")
ABOVE = tuple(f"units.above_{t:g}.hidden" for t in THRESHOLDS)  # shares of |h| above 1e-4 and 1e-2
ACTIVE, STRICT = ABOVE
GABOR = "fields.phases.gabor.above_null"
SURROUND = "fields.phases.centre_surround.above_null"
FALLS = math.log10(0.9)  # an active share that noise lowers by a tenth or more is said to have fallen
FORMED = 0.05  # share of fields beyond that of the network without noise: more have formed
NOISY = 0.8  # sigma at which activations are compared
OTHERS = ("gelu", "sigmoid", "elu", "tanh")


def activation(arm: str) -> str:
    """The activation of an arm: "gelu" of "ae400_photos_gelu"; ReLU's has no suffix."""
    last = arm.rsplit("_", 1)[-1]
    return last if last in ACTIVATIONS else "relu"


def by_activation(records: Sequence[Record]) -> dict[str, dict[float, dict[int, Record]]]:
    """Activation -> sigma -> seed -> record."""
    return {activation(arm): sigmas for arm, sigmas in by_arm(records).items()}


COLUMNS = {
    "|h| > 1e-2": STRICT,
    "flat": "units.flat.hidden",
    "silent": "units.silent.hidden",
    "test mse": "mse",
    "gabor": GABOR,
    "centre-surround": SURROUND,
}


def table(records: Sequence[Record]) -> list[Row]:
    """Every activation at every sigma: the paper's active share (from the authors' code) and ours, means over n seeds.

    |h| > 1e-4: share of activations above it, one epoch of training data, noise on, as the paper counts (se: over
    seeds); |h| > 1e-2: the same above that; flat: share of units with |phi'| < .01; silent: units whose |h| sum to less
    than 1e-5; test mse: without noise; gabor, centre-surround: share of units whose field is explained better than 95%
    of fields of random phases are, and best by that function, where it was evaluated.
    """
    rows = []
    for name, sigmas in by_activation(records).items():
        paper = printed_active().get(("activation_cifar10", name), {})
        for sigma, of_seed in sigmas.items():
            shares = [measured(r, ACTIVE) for r in of_seed.values()]
            row = {"activation": name, "sigma": sigma, "n": len(shares), "|h| > 1e-4, paper": paper.get(sigma)}
            row |= {"|h| > 1e-4": or_none(float(np.mean(shares))), "se": standard_error(shares)}
            rows.append(row | {column: or_none(mean_over_seeds(of_seed, key)) for column, key in COLUMNS.items()})
    return rows


def active_by_sigma(runs: Runs) -> Drawing:
    """Figs. 22 and 23: share of units with |h| above a threshold against sigma (first seed); dashed the paper's."""
    figure, axes = draw.panels(1, 2, height=3.4, sharey=True)
    paper = printed_active()
    for axis, threshold, measure in zip(axes, THRESHOLDS, ABOVE, strict=True):
        for i, (arm, sigmas) in enumerate(runs_by_arm(runs).items()):
            name = activation(arm)
            axis.plot(
                list(sigmas), [measured(v, measure) for v in sigmas.values()], "o-", ms=4, color=f"C{i}", label=name
            )
            theirs = paper.get(("activation_cifar10", name))
            if theirs and measure == ACTIVE:
                axis.plot(list(theirs), list(theirs.values()), "x--", ms=4, lw=0.8, color=f"C{i}")
        sigma_axis(axis)
        axis.set(title=f"|h| > {threshold:g}", yscale="log")
    axes[0].set_ylabel("share of units")
    axes[0].legend()
    return draw.done(figure)


def fields_of(name: str) -> Callable[[Runs], Drawing]:
    """The figure of the receptive fields of one activation."""

    def fields(runs: Runs) -> Drawing:
        sigmas = next(sigmas for arm, sigmas in runs_by_arm(runs).items() if activation(arm) == name)
        arrays = sigmas[NOISY].outcome.arrays
        return draw.receptive_fields(np.asarray(arrays["fields.fields"]), np.asarray(arrays["fields.activity"]))

    fields.__doc__ = (
        f"Weights into each unit of the {name} network at sigma {NOISY:g}, that of the largest pre-activation on one "
        "noisy test image first; each is scaled by its largest weight, grey is 0."
    )
    return fields


def findings(records: Sequence[Record]) -> list[str]:
    """Active shares of every activation, and what the paper says of sigmoid."""
    out = []
    for name, sigmas in by_activation(records).items():
        shares = {s: [100 * mean_over_seeds(of_seed, m) for m in ABOVE] for s, of_seed in sigmas.items()}
        said = ", ".join(f"{loose:.3g}% ({strict:.3g}%) at {s:g}" for s, (loose, strict) in shares.items())
        out.append(f"{name}: units with |h| > 1e-4 (1e-2) by sigma: {said}.")
    out.append(
        "The paper contradicts itself on sigmoid: Sec. 3 says that the symmetric sigmoid and tanh do not become "
        "sparse, App. H.1 (Fig. 23) that sigmoid sparsifies in proportion to noise. Both are judged."
    )
    out.append(
        "The authors' numbers for GELU are not below those without noise at sigma .3: 62.5% active at 0, 97.7% at .05, "
        "96.4% at .1, 87.3% at .3, 27% at .8."
    )
    return out


Networks = dict[str, dict[float, Record]]  # activation -> sigma -> the record of one seed


def _claim(id: str, where: str, statement: str, effect: str, side, threshold: float, needed: tuple, value) -> Claim:
    """A claim with one replicate a seed: `value` of its networks, of the activations and sigmas `needed`."""
    names, sigmas = needed

    def measure(records: Sequence[Record]) -> Effect:
        table = by_activation(records)
        missing = [f"{name} at {s:g}" for name in names for s in sigmas if s not in table.get(name, {})]
        if missing:
            return Effect.untestable(f"no run of {', '.join(missing)}")
        seeds = sorted(set.intersection(*(set(table[name][s]) for name in names for s in sigmas)))
        return Effect.of([value({n: {s: table[n][s][seed] for s in sigmas} for n in names}) for seed in seeds])

    return Claim(id, where, statement, effect, "seed", side, threshold, measure)


def _log_ratio(name: str, sigma: float, measure: str = ACTIVE) -> Callable[[Networks], float]:
    """log10 of the active share at sigma over that without noise."""
    return lambda nets: decades(measured(nets[name][sigma], measure), measured(nets[name][0.0], measure))


def _falls(id: str, where: str, statement: str, name: str, side, measure: str = ACTIVE, sigma: float = NOISY) -> Claim:
    threshold = THRESHOLDS[ABOVE.index(measure)]
    effect = f"log10 of the share of |h| > {threshold:g} at sigma {sigma:g} over that without noise ({name})"
    return _claim(id, where, statement, effect, side, FALLS, ((name,), (0.0, sigma)), _log_ratio(name, sigma, measure))


def _fields(id: str, where: str, statement: str, name: str, side) -> Claim:
    effect = f"share of Gabor-like fields (null: random phases), sigma {NOISY:g} less 0 ({name})"
    value = lambda nets: measured(nets[name][NOISY], GABOR) - measured(nets[name][0.0], GABOR)
    return _claim(id, where, statement, effect, side, FORMED, ((name,), (0.0, NOISY)), value)


def _share(nets: Networks, name: str) -> float:
    return measured(nets[name][NOISY], ACTIVE)


CLAIMS = (
    _claim(
        "B13.relu",
        "Sec. 3, App. H.1",
        "no activation becomes as sparse as ReLU",
        f"share of |h| > 1e-4 at sigma {NOISY:g}, ReLU less the sparsest of {', '.join(OTHERS)}",
        "below",
        0.0,
        (ACTIVATIONS, (NOISY,)),
        lambda nets: _share(nets, "relu") - np.min([_share(nets, name) for name in OTHERS]),
    ),
    _falls("B13.gelu", "Fig. 22", "GELU sparsifies with noise", "gelu", "below"),
    _falls("B13.gelu.from", "Fig. 22", "and does from sigma .3 on", "gelu", "below", sigma=0.3),
    _fields("B13.gelu.fields", "Sec. 3, Fig. 22", "GELU networks form receptive fields", "gelu", "above"),
    _claim(
        "B13.sigmoid",
        "Fig. 23",
        "sigmoid remains less sparse than GELU and ReLU",
        f"share of |h| > 1e-4 at sigma {NOISY:g}, sigmoid less the denser of GELU and ReLU",
        "above",
        0.0,
        (("relu", "gelu", "sigmoid"), (NOISY,)),
        lambda nets: _share(nets, "sigmoid") - np.max([_share(nets, name) for name in ("relu", "gelu")]),
    ),
    _falls("B13.sigmoid.h1", "App. H.1, Fig. 23", "sigmoid sparsifies in proportion to noise", "sigmoid", "below"),
    _falls("B13.sigmoid.h1.strict", "App. H.1, Fig. 23", "so also by |h| > 1e-2", "sigmoid", "below", STRICT),
    _falls("B13.sigmoid.main", "Sec. 3", "symmetric sigmoid does not produce sparsity", "sigmoid", "above"),
    _fields("B13.sigmoid.fields", "Fig. 23", "sigmoid networks form no receptive fields", "sigmoid", "below"),
    _falls("B13.elu", "Sec. 3", "ELU generally produces sparsity", "elu", "below"),
    _falls("B13.tanh", "Sec. 3", "symmetric tanh does not", "tanh", "above"),
)

ACTIVATION_STUDY = Study(
    name="bricken2023/activations",
    title="Bricken et al. 2023, Figs. 22 and 23: noise under other activations",
    introduction=(
        "The denoising autoencoder of the study of noise alone, its ReLU replaced by GELU, sigmoid, ELU or tanh. Only "
        "ReLU has exact zeros: a unit is called active if |h| exceeds 1e-4, the paper's threshold, or 1e-2, beside it."
    ),
    findings=findings,
    figures={
        "Active units against sigma": active_by_sigma,
        "Receptive fields, GELU": fields_of("gelu"),
        "Receptive fields, sigmoid": fields_of("sigmoid"),
    },
    claims=CLAIMS,
    table=table,
)
