"""Bricken et al. 2023, App. H.2, Fig. 25: what of the sparsity from noise is left under plain SGD."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from sparsity.recipes import BRICKEN_STD
from sparsity.studies import draw
from sparsity.studies.bricken2023.runs import arm_sigma_seed, mean_over_seeds
from sparsity.studies.draw import Drawing, Runs
from sparsity.studies.judge import Claim, Effect
from sparsity.studies.records import Run, measured, named, records_of, standard_error
from sparsity.studies.runner import Record, Row, Study

DENSITY = "units.density.hidden"
HALF = 0.1  # an active share within this of .5 is "about 50%"; one that falls by more than this has become sparse
MOVED = 0.1  # of the deviation of pre-activations: a mean bias that moved less is where it started
EFFECT = 0.05  # a change of the active share below this is none
CONVERGED = 1.1  # a training loss below this times the lowest
LEARNT = 0.5  # share of the variance that an autoencoder of pixels explains if it has learnt
ARM = re.compile(r"^ae\d+_(.+)_sgd([\d.]+)_b(\d+)(?:_bias([\d.]+))?$")


class Cell(NamedTuple):
    """Settings of a run but for its seed; `bias` is the rate of the biases over that of the weights."""

    data: str
    sigma: float
    rate: float
    batch: int
    bias: float


def cell_and_seed(name: str) -> tuple[Cell, int]:
    """The cell and the seed of a run called "ae200_latents_gaussian8_seed0_sgd0.1_b256"."""
    arm, sigma, seed = arm_sigma_seed(name)
    found = ARM.match(arm)
    data = "latents" if "latents" in found[1] else "pixels"
    return Cell(data, sigma, float(found[2]), int(found[3]), float(found[4] or 1)), seed


Cells = dict[Cell, dict[int, Record]]


def grid_of(runs: Mapping[str, Run]) -> dict[Cell, dict[int, Run]]:
    """Cell -> seed -> run, of runs by name, in their order."""
    out: dict[Cell, dict[int, Run]] = {}
    for name, run in runs.items():
        cell, seed = cell_and_seed(name)
        out.setdefault(cell, {})[seed] = run
    return out


def _grid(records: Sequence[Record]) -> Cells:
    return grid_of(named(records))


def table(records: Sequence[Record]) -> list[Row]:
    """One line a cell, means over n seeds; measured on one epoch of training data, noise on.

    bias rate: the rate of the biases over that of the weights. active: share of nonzero activations (se: over seeds).
    bias moved: change of the mean bias in training, in deviations of pre-activations. silent: units whose activations
    sum to less than 1e-5 (the paper's dead). loss: training loss, mean over the last twentieth of training.
    """
    rows = []
    for cell, of_seed in _grid(records).items():
        active = [measured(r, DENSITY) for r in of_seed.values()]
        row = dict(zip(("data", "sigma", "rate", "batch", "bias rate"), cell, strict=True)) | {"n": len(active)}
        row["active"] = float(np.mean(active))
        row["se"] = standard_error(active)
        row["bias moved"] = float(np.mean([bias_moved(r) for r in of_seed.values()]))
        row["silent"] = mean_over_seeds(of_seed, "units.silent.hidden")
        row["loss"] = float(np.mean([final_loss(r) for r in of_seed.values()]))
        rows.append(row)
    return rows


def bias_moved(record: Record) -> float:
    """Change of the mean bias over training, in deviations of pre-activations at its end."""
    means = [r["modules"]["hidden/wi"]["bias_mean"] for r in records_of(record, "weights")]
    return (means[-1] - means[0]) / measured(record, "units.z_std.hidden")


def from_half(record: Record) -> float:
    """Distance of the active share from one half."""
    return abs(measured(record, DENSITY) - 0.5)


def fall(record: Record) -> float:
    """Active share after training less that on the first batch."""
    return measured(record, DENSITY) - records_of(record, "sparsity")[0]["layers"]["hidden"]["nonzero"]


def final_loss(record: Record) -> float:
    """Mean training loss of the last twentieth of training."""
    losses = [r["loss"] for r in records_of(record, "train")]
    return float(np.mean(losses[-max(len(losses) // 20, 1) :]))


def active_by_batch(runs: Runs) -> Drawing:
    """Fig. 25: share of active units at the end, latents, against batch; a line a rate, a panel a sigma, a dot a seed.

    Dotted: half of the units.
    """
    grid = {cell: of_seed for cell, of_seed in grid_of(runs).items() if (cell.data, cell.bias) == ("latents", 1)}
    sigmas, rates, batches = (sorted({getattr(cell, key) for cell in grid}) for key in ("sigma", "rate", "batch"))
    figure, axes = draw.panels(1, len(sigmas), height=3, sharey=True)
    for axis, sigma in zip(axes, sigmas, strict=True):
        for i, rate in enumerate(rates):
            cells, color = sorted(c for c in grid if (c.sigma, c.rate) == (sigma, rate)), draw.color(i, len(rates))
            means = [mean_over_seeds(grid[c], DENSITY) for c in cells]
            axis.plot([c.batch for c in cells], means, color=color, label=f"{rate:g}")
            for cell in cells:
                for view in grid[cell].values():
                    axis.plot(cell.batch, measured(view, DENSITY), "o", ms=4, alpha=0.7, color=color)
        axis.axhline(0.5, color="k", ls=":", lw=0.8)
        title = f"sigma {sigma:g} ({sigma / BRICKEN_STD['latents']:.2g} std(data))"
        axis.set(title=title, xscale="log", xlabel="batch", ylim=(0, 1))
        axis.set_xticks(batches, labels=[f"{batch:,}" for batch in batches])
        axis.minorticks_off()
    axes[0].set_ylabel("share of active units")
    axes[-1].legend(title="rate")
    return draw.done(figure)


def active_by_step(runs: Runs) -> Drawing:
    """Share of active units on the training batch, noise on, against step; the corners of the grid, and pixels."""
    grid = {cell: of_seed for cell, of_seed in grid_of(runs).items() if cell.bias == 1 and cell.sigma > 0}
    figure, axes = draw.panels(1, 1, height=3.2)
    shown = [*_corners(list(grid)), *(cell for cell in grid if cell.data == "pixels")]
    for i, cell in enumerate(shown):
        lines = next(iter(grid[cell].values())).records("sparsity")
        shares = [line["layers"]["hidden"]["nonzero"] for line in lines]
        label = f"{cell.data}, sigma {cell.sigma:g}, rate {cell.rate:g}, batch {cell.batch}"
        axes[0].plot([line["step"] for line in lines], shares, color=draw.color(i, len(shown)), label=label)
    axes[0].set(xlabel="step", ylabel="share of active units", ylim=(0, 1))
    axes[0].legend(fontsize=7)
    return draw.done(figure)


def _corners(cells: Sequence[Cell]) -> list[Cell]:
    """The cells of latents at the smallest or largest rate and the smallest or largest batch."""
    cells = [cell for cell in cells if cell.data == "latents"]
    for key in ("rate", "batch"):
        values = [getattr(cell, key) for cell in cells]
        cells = [cell for cell in cells if getattr(cell, key) in (min(values), max(values))]
    return cells


def findings(records: Sequence[Record]) -> list[str]:
    """Active shares over the grid, in sentences."""
    out = []
    for sigma in sorted({c.sigma for c in _grid(records)}):
        cells = {c: f for c, f in _grid(records).items() if (c.data, c.sigma, c.bias) == ("latents", sigma, 1)}
        shares = {c: mean_over_seeds(of_seed, DENSITY) for c, of_seed in cells.items()}
        if shares:
            low, high = min(shares, key=shares.get), max(shares, key=shares.get)
            out.append(
                f"Latents, sigma {sigma:g}: {100 * shares[low]:.0f}% active (rate {low.rate:g}, batch {low.batch}) to "
                f"{100 * shares[high]:.0f}% (rate {high.rate:g}, batch {high.batch})."
            )
    for cell, of_seed in _grid(records).items():
        if cell.data == "pixels":
            share = 100 * mean_over_seeds(of_seed, DENSITY)
            out.append(f"Pixels, sigma {cell.sigma:g}: {share:.0f}% active at rate {cell.rate:g}, batch {cell.batch}.")
    return out


def _latents(grid: Cells, noisy: bool = True) -> Cells:
    """The grid on latents with noise, or without, one rate for all parameters."""
    return {c: f for c, f in grid.items() if (c.data, c.bias, c.sigma > 0) == ("latents", 1, noisy)}


def _small_rate(cells: Cells) -> Cells:
    smallest = min((c.rate for c in cells), default=None)
    return {c: of_seed for c, of_seed in cells.items() if c.rate == smallest}


def _large_batch(cells: Cells) -> Cells:
    largest = max((c.batch for c in cells), default=None)
    return {c: of_seed for c, of_seed in cells.items() if c.batch == largest and c not in _small_rate(cells)}


def _first(of_seed: Mapping[int, Record]) -> Record:
    return of_seed[min(of_seed)]


def _over_cells(
    records: Sequence[Record], choose: Callable[[Cells], Cells], value: Callable[[Record], float]
) -> Effect:
    """One replicate a chosen cell of the noisy grid: `value` of its first seed."""
    return Effect.of([value(_first(of_seed)) for of_seed in choose(_latents(_grid(records))).values()])


def _small_rate_active(records: Sequence[Record]) -> Effect:
    """Active share at the smallest rate; not testable unless training there has converged to the loss of the others."""
    cells = _latents(_grid(records))
    losses = {cell: final_loss(_first(of_seed)) for cell, of_seed in cells.items()}
    for cell in _small_rate(cells):
        ratio = losses[cell] / min(loss for c, loss in losses.items() if c.sigma == cell.sigma)
        if not ratio < CONVERGED:
            where = f"rate {cell.rate:g}, batch {cell.batch}, sigma {cell.sigma:g}"
            return Effect.untestable(f"the training loss at {where} is {ratio:.2f} times the lowest there")
    return _over_cells(records, _small_rate, from_half)


def _by_seed(
    records: Sequence[Record],
    cells: Callable[[Cells], list[tuple[Cell, Cell]]],
    value: Callable[[Record, Record], float],
) -> Effect:
    """One replicate a seed: the mean over pairs of cells of `value` of their runs."""
    grid = _grid(records)
    pairs = cells(grid)
    seeds = sorted(set.intersection(*(set(grid[cell]) for pair in pairs for cell in pair))) if pairs else []
    return Effect.of([float(np.mean([value(grid[a][s], grid[b][s]) for a, b in pairs])) for s in seeds])


def _rate_ends(grid: Cells) -> list[tuple[Cell, Cell]]:
    """At every sigma, the largest and the smallest rate at the smallest batch."""
    cells = list(_latents(grid))
    batch = min((c.batch for c in cells), default=None)
    of_sigma = {s: [c for c in cells if (c.sigma, c.batch) == (s, batch)] for s in {c.sigma for c in cells}}
    return [(max(of, key=lambda c: c.rate), min(of, key=lambda c: c.rate)) for of in of_sigma.values() if len(of) > 1]


def _bias_rates(grid: Cells) -> list[tuple[Cell, Cell]]:
    """Cells with a rate of their own for the biases, each with its like without."""
    return [(c, c._replace(bias=1.0)) for c in grid if c.bias != 1 and c._replace(bias=1.0) in grid]


def _gap(a: Record, b: Record) -> float:
    return measured(a, DENSITY) - measured(b, DENSITY)


def _pixels(records: Sequence[Record]) -> Effect:
    """Fall of the active share on pixels, by seed; not testable if the autoencoder did not learn."""
    runs = [r for cell, of_seed in _grid(records).items() if cell.data == "pixels" for r in of_seed.values()]
    explained = float(np.mean([measured(r, "explained") for r in runs])) if runs else 0.0
    if runs and explained < LEARNT:
        return Effect.untestable(f"the autoencoder of pixels explains {100 * explained:.0f}% of the variance")
    return Effect.of([fall(r) for r in runs])


def _without_noise(records: Sequence[Record]) -> Effect:
    """|active share - that of the middle of the grid| of every other cell without noise."""
    cells = _latents(_grid(records), noisy=False)
    if not cells:
        return Effect.untestable("no run without noise")
    rates, batches = (sorted({getattr(c, key) for c in cells}) for key in ("rate", "batch"))
    middle = (rates[len(rates) // 2], batches[len(batches) // 2])
    share = {(c.rate, c.batch): measured(_first(of_seed), DENSITY) for c, of_seed in cells.items()}
    if middle not in share:
        return Effect.untestable("no run in the middle of the grid without noise")
    return Effect.of([abs(value - share[middle]) for cell, value in share.items() if cell != middle])


def _claim(name: str, statement: str, effect: str, unit: str, side, threshold: float, measure) -> Claim:
    return Claim(f"B14.{name}", "App. H.2, Fig. 25", statement, effect, unit, side, threshold, measure)


CLAIMS = (
    _claim(
        "rate",
        "on latents a small rate keeps about half of the units active",
        f"|active share - .5| at the smallest rate, whose training loss is within {CONVERGED:g} times the lowest",
        "cell (batch, sigma)",
        "below",
        HALF,
        _small_rate_active,
    ),
    _claim(
        "batch",
        "on latents a large batch does",
        "|active share - .5| at the largest batch, at the other rates",
        "cell (rate, sigma)",
        "below",
        HALF,
        lambda records: _over_cells(records, _large_batch, from_half),
    ),
    _claim(
        "sparse",
        "a large rate does not, at a small batch",
        "active share at the largest rate less that at the smallest, at the smallest batch, mean over sigmas",
        "seed",
        "below",
        0.0,
        lambda records: _by_seed(records, _rate_ends, _gap),
    ),
    _claim(
        "biases",
        "where half of the units stay active the biases stay where they started",
        "|change of the mean bias| in deviations of pre-activations, smallest rate or largest batch",
        "cell (rate, batch, sigma)",
        "below",
        MOVED,
        lambda records: _over_cells(
            records, lambda cells: _small_rate(cells) | _large_batch(cells), lambda record: abs(bias_moved(record))
        ),
    ),
    _claim(
        "pixels",
        "on pixels SGD sparsifies even at full batch",
        "active share on pixels after training, all of the data in a batch, less that at the start",
        "seed",
        "below",
        -HALF,
        _pixels,
    ),
    _claim(
        "no_noise",
        "without noise neither batch nor rate has an effect",
        "|active share - that in the middle of the grid|",
        "cell (rate, batch)",
        "below",
        EFFECT,
        _without_noise,
    ),
    _claim(
        "bias_rate",
        "another rate for the biases has no effect",
        "|active share with five times the rate for biases less that without|, mean over sigmas",
        "seed",
        "below",
        EFFECT,
        lambda records: _by_seed(records, _bias_rates, lambda a, b: abs(_gap(a, b))),
    ),
)

SGD = Study(
    name="bricken2023/sgd",
    title="Bricken et al. 2023: sparsity from noise under plain SGD",
    introduction=(
        "The same denoising autoencoders as in bricken2023/noise, trained by SGD without momentum instead of Adam. The "
        "paper finds that on the easier latents a large batch or a small rate averages the noise away and half of the "
        "units stay active, while on pixels even the full batch sparsifies."
    ),
    findings=findings,
    figures={"Active units by batch": active_by_batch, "Active units by step": active_by_step},
    claims=CLAIMS,
    table=table,
)
