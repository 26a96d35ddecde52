"""Bricken et al. 2023, App. D, Figs. 13 to 15: noise against L1 and Top-k."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from sparsity.studies import draw
from sparsity.studies.bricken2023.fronts import (
    ALONE,
    Front,
    by_method,
    finite,
    front_of_noise,
    point,
    runs_by_method,
)
from sparsity.studies.bricken2023.runs import mean_over_seeds
from sparsity.studies.draw import Drawing, Runs
from sparsity.studies.judge import Claim, Effect
from sparsity.studies.records import decades, measured, or_none, standard_error
from sparsity.studies.runner import Record, Row, Study

DENSITY, LIVE, NEVER = "units.density.hidden", "units.live.hidden", "units.never.hidden"
GABOR, SURROUND = "fields.phases.gabor.above_null", "fields.phases.centre_surround.above_null"
NORMS, LIKE, MEMORY = "exemplars.norm_ratio", "exemplars.above_null", "exemplars.over_held_out"
L1, UNIT_NORM, TOP_K = "l1", "l1_unit_norm", "top_k"
LARGEST = (1e-4, 1e-5)  # weights of L1 at which the paper sees Gabors
SPARSE = 0.1  # share of active units below which a network is called sparse here
CHANCE = 0.05  # share of fields of the null that count as Gabor-like, centre-surround, or like an example
COLUMNS = {
    "density": DENSITY,
    "density, live": LIVE,
    "never active": NEVER,
    "silent": "units.silent.hidden",
    "test mse": "mse",
    "explained": "explained",
    "gabor": GABOR,
    "centre-surround": SURROUND,
    "largest norm": NORMS,
    "like an example": LIKE,
    "over held-out": MEMORY,
}


def table(records: Sequence[Record]) -> list[Row]:
    """Every method at its settings (sigma, the weight of L1, k/units; the paper's), means over n seeds; noise annealed.

    active: share of nonzero activations on the test split without noise (se: over seeds); excess: log10 of the test mse
    over that of noise alone at the same active share (first seed). density: the same share on the training split;
    density, live: among units that are ever active there; never active: the others; silent: units whose activations
    sum to less than 1e-5; of dead: share of the zeros that never active units give. gabor, centre-surround: share of
    units whose field is explained better than 95% of fields of random phases are, and best by that function. largest
    norm: of the units' incoming weights, over the median. like an example: share of units that look more like one
    training image than 95% of fields of random phases do; over held-out: by how much more than like a test image.
    """
    methods, rows = by_method(records), []
    front = front_of_noise(methods, 0)
    for label, settings in methods.items():
        for value, of_seed in settings.items():
            shares = [point(r)[0] for r in of_seed.values()]
            row = {"method": label, "setting": value, "n": len(shares), "active": or_none(float(np.mean(shares)))}
            row |= {"se": standard_error(shares), "excess": or_none(front.excess(of_seed[min(of_seed)]))}
            row |= {column: or_none(mean_over_seeds(of_seed, key)) for column, key in COLUMNS.items()}
            row["of dead"] = or_none(float(np.mean([zeros_of_dead(r) for r in of_seed.values()])))
            rows.append(row)
    return rows


def zeros_of_dead(record: Record) -> float:
    """Share of the zeros on the training split that are those of units that never are active; NaN without zeros."""
    zeros = 1 - measured(record, DENSITY)
    return measured(record, NEVER) / zeros if zeros > 0 else math.nan


def loss_and_dead(runs: Runs) -> Drawing:
    """Fig. 13: test loss (left) and never active units (right) against the share of active units; a dot a setting.

    The line is the front of noise alone; the number at a dot is sigma, the weight of L1, or k/units.
    """
    figure, axes = draw.panels(1, 2, height=4)
    for i, (label, settings) in enumerate(runs_by_method(runs).items()):
        views, color = list(settings.values()), f"C{i}"
        shares, losses = zip(*map(point, views), strict=True)
        axes[0].plot(shares, losses, "o", ms=5, color=color, label=label)
        for share, loss, value in zip(shares, losses, settings, strict=True):
            axes[0].annotate(f"{value:g}", (share, loss), fontsize=6, xytext=(3, 3), textcoords="offset points")
        axes[1].plot(shares, [measured(v, NEVER) for v in views], "o", ms=5, color=color, label=label)
        if label == ALONE:
            axes[0].plot(*zip(*Front(map(point, views)).points, strict=True), "-", lw=1, color=color)
    axes[0].set(xscale="log", yscale="log", xlabel="share of active units, test split", ylabel="test mse")
    axes[1].set(xscale="log", xlabel="share of active units, test split", ylabel="share of units never active")
    axes[1].legend()
    return draw.done(figure)


def fields_of(label: str, value: float, where: str) -> Callable[[Runs], Drawing]:
    """The figure of the receptive fields of one method at one setting."""

    def fields(runs: Runs) -> Drawing:
        arrays = runs_by_method(runs)[label][value].outcome.arrays
        return draw.receptive_fields(np.asarray(arrays["fields.fields"]), np.asarray(arrays["fields.activity"]))

    fields.__doc__ = (
        f"{where}: weights into each unit, {label} at {value:g}, that of the largest pre-activation on one test image "
        "first; each is scaled by its largest weight, grey is 0."
    )
    return fields


def findings(records: Sequence[Record]) -> list[str]:
    """Loss, active and dead units of every method, in sentences."""
    out = []
    for label, settings in by_method(records).items():
        said = []
        for value, of_seed in settings.items():
            share, loss = np.mean([point(r) for r in of_seed.values()], 0)
            dead = mean_over_seeds(of_seed, NEVER)
            said.append(f"{value:g}: {100 * share:.3g}%, {loss:.3g}, {100 * dead:.3g}%")
        out.append(f"{label}, active units, test mse and never active units by setting: {'; '.join(said)}.")
    return out


def _distance(records: Sequence[Record], label: str) -> Effect:
    """Mean over settings of a method (first seed) of |log10 of its loss over noise's at the same active share|."""
    methods = by_method(records)
    front = front_of_noise(methods, 0)
    runs = [of_seed[0] for of_seed in methods.get(label, {}).values()]
    return Effect.of([abs(e) for e in finite([front.excess(r) for r in runs])])


def _dead(records: Sequence[Record], label: str) -> Effect:
    """Mean over the sparse runs of a method of the share of zeros that dead units give."""
    runs = [r for of_seed in by_method(records).get(label, {}).values() for r in of_seed.values()]
    return Effect.of([zeros_of_dead(r) for r in runs if 0 < measured(r, DENSITY) < SPARSE])


def _of_top_k(records: Sequence[Record], value: Callable[[Record], float], sparse: bool = False) -> Effect:
    """`value` of the runs of Top-k, one replicate a k; of those with a share of active units below a tenth if asked."""
    runs = [of_seed[0] for of_seed in by_method(records).get(TOP_K, {}).values()]
    return Effect.of([value(r) for r in runs if not sparse or measured(r, DENSITY) < SPARSE])


def _less_noise(records: Sequence[Record], value: Callable[[Record], float], sparse: bool = False) -> Effect:
    """`_of_top_k`, less the mean of `value` over the networks trained with noise."""
    noisy = [of_seed[0] for sigma, of_seed in by_method(records).get(ALONE, {}).items() if sigma > 0]
    if not noisy:
        return Effect.untestable("no run with noise")
    usual = float(np.mean([value(r) for r in noisy]))
    return _of_top_k(records, lambda record: value(record) - usual, sparse)


Weights = Mapping[float, Record]  # weight of L1 -> the record of one seed; 0 is training without a penalty


def _of_l1(records: Sequence[Record], label: str, value: Callable[[Weights], float]) -> Effect:
    """`value` of the runs of L1 with the paper's two largest weights and without, one replicate a seed."""
    methods = by_method(records)
    runs = {0.0: methods.get(ALONE, {}).get(0.0), **{w: methods.get(label, {}).get(w) for w in LARGEST}}
    missing = [f"{weight:g}" for weight, of_seed in runs.items() if not of_seed]
    if missing:
        return Effect.untestable(f"{label}: no run of weight {', '.join(missing)}")
    seeds = sorted(set.intersection(*(set(of_seed) for of_seed in runs.values())))
    return Effect.of([value({weight: of_seed[seed] for weight, of_seed in runs.items()}) for seed in seeds])


def _more_gabors(runs: Weights) -> float:
    return float(np.max([measured(runs[w], GABOR) for w in LARGEST])) - measured(runs[0.0], GABOR)


def _most_surrounds(runs: Weights) -> float:
    return float(np.max([measured(runs[w], SURROUND) for w in LARGEST]))  # unlike max, it keeps NaN


def _sparser(runs: Weights) -> float:
    """log10 of the active share at weight 1e-5 over that without a penalty: at 1e-4 the paper found all units dead."""
    return decades(measured(runs[LARGEST[1]], DENSITY), measured(runs[0.0], DENSITY))


def _claim(id: str, where: str, statement: str, effect: str, unit: str, side, threshold: float, measure, **settings):
    return Claim(id, where, statement, effect, unit, side, threshold, functools.partial(measure, **settings))


CLAIMS = (
    *(
        _claim(
            f"B9.{label}",
            "Fig. 13, left",
            f"{name} and noise lie on one front of held-out loss against sparsity",
            "mean |log10 of the test mse over that of noise alone at the same active share|; a factor 1.5 is one front",
            "setting",
            "below",
            math.log10(1.5),
            _distance,
            label=label,
        )
        for label, name in ((L1, "L1"), (TOP_K, "Top-k"))
    ),
    *(
        _claim(
            f"B9.dead.{label}",
            "Fig. 13, right",
            f"the sparsity of {name} {'is mostly' if side == 'above' else 'is not mostly'} dead units",
            "share of the zeros that never active units give, runs with less than a tenth of the units active",
            "run",
            side,
            0.5,
            _dead,
            label=label,
        )
        for label, name, side in ((TOP_K, "Top-k", "above"), (ALONE, "noise", "below"), (L1, "L1", "below"))
    ),
    _claim(
        "B10.gabor",
        "Fig. 14",
        "L1 with weights of unit norm forms Gabors",
        "share of Gabor-like fields (null: random phases), the more of weights 1e-4 and 1e-5, less that without L1",
        "seed",
        "above",
        CHANCE,
        _of_l1,
        label=UNIT_NORM,
        value=_more_gabors,
    ),
    _claim(
        "B10.surround",
        "Fig. 14",
        "and no centre-surround fields",
        "share of centre-surround fields (null: random phases), the more of weights 1e-4 and 1e-5",
        "seed",
        "below",
        CHANCE,
        _of_l1,
        label=UNIT_NORM,
        value=_most_surrounds,
    ),
    _claim(
        "B10.without",
        "Sec. 3",
        "without unit norms L1 forms no fields",
        "share of Gabor-like fields (null: random phases), the more of weights 1e-4 and 1e-5, less that without L1",
        "seed",
        "below",
        CHANCE,
        _of_l1,
        label=L1,
        value=_more_gabors,
    ),
    _claim(
        "B10.sparsifies",
        "Sec. 3, footnote 3",
        "though it sparsifies",
        "log10 of the active share, L1 of weight 1e-5 without unit norms, over that without L1",
        "seed",
        "below",
        math.log10(0.5),
        _of_l1,
        label=L1,
        value=_sparser,
    ),
    _claim(
        "B10.greedy",
        "App. D, Fig. 15",
        "Top-k has a few greedy units with much larger weights, noise has none",
        "log10 of the largest over the median norm of a unit's weights, sparse Top-k (under a tenth active) less noise",
        "k",
        "above",
        math.log10(2),
        _less_noise,
        value=lambda record: decades(measured(record, NORMS), 1.0),
        sparse=True,
    ),
    _claim(
        "B10.examples",
        "App. D, Fig. 15",
        "a number of Top-k's units look like training examples",
        "share of units more like one training image than 95% of fields of random phases, less noise's mean",
        "k",
        "above",
        CHANCE,
        _less_noise,
        value=lambda record: measured(record, LIKE),
    ),
    _claim(
        "B10.memory",
        "App. D, Fig. 15",
        "which they have memorised: images held out they resemble less",
        "best correlation with training images less that with as many held out, beyond that of fields of random phases",
        "k",
        "above",
        0.0,
        _of_top_k,
        value=lambda record: measured(record, MEMORY),
    ),
)

PARETO = Study(
    name="bricken2023/pareto",
    title="Bricken et al. 2023, Figs. 13 to 15: noise against L1 and Top-k",
    introduction=(
        "One autoencoder made sparse in three ways: by noise on its input, annealed away before the end; by an L1 "
        "penalty on its activations, with weights of unit norm or free ones; by Top-k, reached from all units. What is "
        "compared: the loss on test images without noise at the same share of active units, dead units, and fields."
    ),
    findings=findings,
    figures={
        "Loss and dead units against sparsity": loss_and_dead,
        **{f"Receptive fields, L1 {value:g}, unit norms": fields_of(UNIT_NORM, value, "Fig. 14") for value in LARGEST},
        f"Receptive fields, L1 {LARGEST[1]:g}, free norms": fields_of(L1, LARGEST[1], "Sec. 3"),
        "Receptive fields, Top-k": fields_of(TOP_K, 0.03, "Fig. 15"),
    },
    claims=CLAIMS,
    table=table,
)
