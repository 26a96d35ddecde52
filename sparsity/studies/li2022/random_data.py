"""Li et al. 2022, Figs. E.1, E.2: nonzeros of two-layer MLPs by width, on real, random and endless random data."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from sparsity.studies import draw
from sparsity.studies.draw import Drawing, Runs
from sparsity.studies.judge import Claim, Effect
from sparsity.studies.li2022.runs import train_accuracy, trajectory
from sparsity.studies.records import (
    Run,
    across,
    decades,
    diverged,
    finished,
    grid_by,
    mean_over,
    measured,
    named,
    percent,
    standard_error,
)
from sparsity.studies.runner import Record, Row, Study

DATA = {"real": "real data", "random": "random data", "infinite": "infinite random data"}
OPTIMIZERS = {"sgd": "SGD", "momentum": "SGD with momentum", "adam": "Adam"}
FITS = 0.9  # accuracy on training batches from which on a network fits its data: the interpolation threshold
NOTHING = 0.05  # share of nonzeros that is "close to 0"
CLOSE = 1.0  # log2 of widths: within a factor of two
_NAME = re.compile(rf"^mlp(\d+)_\w+?_({'|'.join(DATA)})_({'|'.join(OPTIMIZERS)})_rate([\d.e-]+)_seed(\d+)$")
Widths = Mapping[int, Mapping[int, Run]]  # one curve's: width, narrow first -> seed -> run


class Curve(NamedTuple):
    """What one curve over widths has: its data, its optimizer and the rate of that."""

    data: str
    optimizer: str
    rate: float


def curve_width_seed(name: str) -> tuple[Curve, int, int]:
    """The curve, the width and the seed of a run called "mlp32_digits_random_adam_rate0.001_seed0".

    >>> curve_width_seed("mlp32_digits_random_adam_rate0.001_seed2")
    (Curve(data='random', optimizer='adam', rate=0.001), 32, 2)
    """
    width, data, optimizer, rate, seed = _NAME.search(name).groups()
    return Curve(data, optimizer, float(rate)), int(width), int(seed)


def curves(runs: Mapping[str, Run]) -> dict[Curve, dict[int, dict[int, Run]]]:
    """Curve -> width, narrow first -> seed -> run, of runs by name."""
    out: dict[Curve, dict[int, dict[int, Run]]] = {}
    for (curve, width), of_seed in sorted(grid_by(curve_width_seed, runs).items(), key=lambda item: item[0][1]):
        out.setdefault(curve, {})[width] = of_seed
    return out


def rates(runs: Mapping[str, Run], optimizer: str) -> list[float]:
    """The rates of an optimizer, small first: Fig. E.1's and Fig. E.2's."""
    return sorted({curve.rate for curve in curves(runs) if curve.optimizer == optimizer})


def share(run: Run) -> float:
    """Share of nonzeros on training batches, mean over the last tenth of the records."""
    (values,) = trajectory(run)[1].values() or ([math.nan],)
    return float(np.mean(values[-max(len(values) // 10, 1) :]))


def table(records: Sequence[Record]) -> list[Row]:
    """Every network, means over n seeds.

    start: share of nonzeros on the first training batch; nonzero: on those of the last tenth of training (se over
    seeds). train: accuracy on training batches over its last twentieth; accuracy: held out.
    """
    rows = []
    for curve, of_width in curves(named(records)).items():
        for width, of_seed in of_width.items():
            runs = finished(of_seed)
            mean = lambda value, runs=runs: mean_over(runs, value)
            row = {**curve._asdict(), "width": width, "n": len(runs)}
            row["start"] = mean(lambda r: next(iter(trajectory(r)[1].values()))[0])
            row["nonzero"], row["se"] = mean(share), standard_error([share(r) for r in runs])
            row["train"], row["accuracy"] = mean(train_accuracy), mean(lambda r: measured(r, "accuracy"))
            rows.append(row)
    return rows


def small_rates(runs: Runs) -> Drawing:
    """Fig. E.1: share of nonzeros (solid) and training accuracy (dashed) by width, at the smaller of two rates.

    Rows are data, columns optimizers; dots are seeds, lines their mean.
    """
    return _grid(runs, min)


def large_rates(runs: Runs) -> Drawing:
    """Fig. E.2: as Fig. E.1, at the larger of two rates."""
    return _grid(runs, max)


def _grid(runs: Runs, choose: Callable) -> Drawing:
    figure, axes = draw.panels(len(DATA), len(OPTIMIZERS), height=2.2, sharex=True, sharey=True)
    found = curves(runs)
    for row, data in zip(axes, DATA, strict=True):
        for axis, optimizer in zip(row, OPTIMIZERS, strict=True):
            rate = choose(rates(runs, optimizer), default=math.nan)
            of_width = found.get(Curve(data, optimizer, rate), {})
            for value, style, color in ((share, "-", "C0"), (train_accuracy, "--", "C3")):
                values = {width: [100 * value(v) for v in s.values()] for width, s in of_width.items()}
                label = {"-": "nonzero", "--": "training accuracy"}[style]
                axis.plot(list(values), [np.mean(v) for v in values.values()], style, color=color, label=label)
                for width, v in values.items():
                    axis.plot([width] * len(v), v, "o", color=color, ms=3, alpha=0.6)
            axis.set(xscale="log", ylim=(0, 101))
            axis.set_title(f"{DATA[data]}, {OPTIMIZERS[optimizer]} ({rate:g})", fontsize=8)
        row[0].set_ylabel("%")
    for axis in axes[-1]:
        axis.set_xlabel("width")
    axes[0, 0].legend()
    return draw.done(figure)


def findings(records: Sequence[Record]) -> list[str]:
    """Every curve at the smaller rates: its ends, its densest width and the narrowest that fits, in sentences."""
    out, runs = [], named(records)
    rows = {(Curve(row["data"], row["optimizer"], row["rate"]), row["width"]): row for row in table(records)}
    for curve, of_width in curves(runs).items():
        found = [rows[curve, width] for width in of_width if rows[curve, width]["nonzero"] is not None]
        if not found or curve.rate != rates(runs, curve.optimizer)[0]:
            continue
        densest = max(found, key=lambda row: row["nonzero"])
        fitting = next((f"from width {row['width']} on" for row in found if row["train"] >= FITS), "at no width")
        text = f"{DATA[curve.data]}, {OPTIMIZERS[curve.optimizer]} at {curve.rate:g}: nonzero "
        at = lambda row: f"{percent(row['nonzero'])} at width {row['width']}"
        out.append(f"{text}{at(found[0])}, at most {at(densest)}, {at(found[-1])}; the data are fitted {fitting}.")
    return out


def _finished(of_width: Widths, seed: int | None = None) -> list[list[Run]]:
    """By width, the runs that did not diverge; of all seeds but `seed`."""
    return [[r for s, r in of_seed.items() if s != seed and not diverged(r)] for of_seed in of_width.values()]


def threshold(widths: Sequence[int], accuracies: Sequence[float]) -> float:
    """log2 of the width at which training accuracies, by width, first reach `FITS`.

    Accuracy is taken as linear in log2 of the width between two networks. NaN where it is reached by no network, or by
    the narrowest, so that the threshold lies outside of the widths.
    """
    at = next((i for i, accuracy in enumerate(accuracies) if accuracy >= FITS), 0)
    if at == 0:
        return math.nan
    low, high = accuracies[at - 1 : at + 1]
    below, above = np.log2(widths[at - 1 : at + 1])
    return float(below + (FITS - low) / (high - low) * (above - below))


def fitted(of_width: Widths) -> str | None:
    """What is amiss if the threshold is not within the widths: the narrowest network fits, or none does."""
    fits = [bool(runs) and np.mean([train_accuracy(r) for r in runs]) >= FITS for runs in _finished(of_width)]
    return "the narrowest network fits them" if fits[0] else None if any(fits) else "no network fits them"


def unfitted(of_width: Widths) -> str | None:
    """What is amiss if the narrowest network does not fit its data."""
    runs = _finished(of_width)[0]
    least = float(np.mean([train_accuracy(r) for r in runs])) if runs else math.nan
    return f"the narrowest network has only {least:.2f} of them right" if least < FITS else None


def _curve(
    data: str, optimizer: str, value: Callable[[Widths, int], float], amiss: Callable = lambda of_width: None
) -> Callable[..., Effect]:
    """`value` of one curve's runs and a seed, at the smaller rate. Not testable where `amiss` says why."""

    def measure(records: Sequence[Record]) -> Effect:
        runs = named(records)
        rate = min(rates(runs, optimizer), default=math.nan)
        of_width = curves(runs).get(Curve(data, optimizer, rate), {})
        if len(of_width) < 3:
            return Effect.untestable(f"fewer than three widths were trained on {DATA[data]} by {optimizer}")
        if (why := amiss(of_width)) is not None:
            return Effect.untestable(f"{DATA[data]}: {why}")
        groups = {f"width {width}": of_seed for width, of_seed in of_width.items()}
        return across(groups, lambda *runs: value(of_width, runs[0].config.seed))

    return measure


def _by_width(of: Callable[[Run], float], of_width: Widths, seed: int) -> list[float]:
    """`of` of a seed's runs, narrow first."""
    return [of(of_seed[seed]) for of_seed in of_width.values()]


def hump(of_width: Widths, seed: int) -> float:
    """Share at the densest width but the narrowest and the widest, less the larger of these two's.

    Which width is densest is read off the other seeds' means: the best of a seed's own would be high by its noise.
    NaN, which is no evidence, without another seed at every width.
    """
    others = _finished(of_width, seed)[1:-1]
    if not all(others):
        return math.nan
    densest = 1 + int(np.argmax([np.mean([share(r) for r in runs]) for runs in others]))
    shares = _by_width(share, of_width, seed)
    return shares[densest] - max(shares[0], shares[-1])


def from_threshold(of_width: Widths, seed: int) -> float:
    """|log2| of the densest network's width over that of the `threshold`; NaN where the seed has none."""
    densest = list(of_width)[int(np.argmax(_by_width(share, of_width, seed)))]
    return abs(math.log2(densest) - threshold(list(of_width), _by_width(train_accuracy, of_width, seed)))


def slope(of_width: Widths, seed: int) -> float:
    """Slope of log share on log width, least squares: decades a decade. NaN unless all shares are positive."""
    logs = [decades(value, 1) for value in _by_width(share, of_width, seed)]
    return float(np.polyfit(np.log10(list(of_width)), logs, 1)[0]) if np.isfinite(logs).all() else math.nan


def _fall(run: Run) -> float:
    return share(run) - float(next(iter(trajectory(run)[1].values()))[0])


def _larger_rate(optimizer: str) -> Callable[..., Effect]:
    """log10 of the share at the larger rate over that at the smaller, by seed.

    Mean over the widths run at both; of the data where it is largest.
    """

    def measure(records: Sequence[Record]) -> Effect:
        runs = named(records)
        found, both = curves(runs), rates(runs, optimizer)
        if len(both) < 2:
            return Effect.untestable(f"{optimizer} was run at fewer than two rates")
        of = lambda data, rate: found.get(Curve(data, optimizer, rate), {})
        pairs = [(data, width) for data in DATA for width in of(data, both[-1])]
        groups = {
            f"{DATA[data]}, width {width}, rate {rate:g}": of(data, rate).get(width, {})
            for data, width in pairs
            for rate in (both[0], both[-1])
        }

        def largest(*of_seed: Record) -> float:
            ratios: dict[str, list[float]] = {}
            for (data, _), small, large in zip(pairs, of_seed[::2], of_seed[1::2], strict=True):
                ratios.setdefault(data, []).append(decades(share(large), share(small)))
            return float(np.max([np.mean(values) for values in ratios.values()]))

        return across(groups, largest)

    return measure


def _claims(optimizer: str) -> tuple[Claim, ...]:
    of = f"share of nonzeros on training batches at the end, {OPTIMIZERS[optimizer]}"

    def claim(id: str, where: str, statement: str, effect: str, side, threshold: float, measure: Callable) -> Claim:
        return Claim(f"L18.{id}.{optimizer}", where, statement, effect, "seed", side, threshold, measure)

    return (
        claim(
            "hump",
            "Fig. E.1",
            "on random data the share rises with width and falls again",
            f"{of}: the other seeds' densest width but the narrowest and the widest, less the larger of these two",
            "above",
            0.0,
            _curve("random", optimizer, hump, fitted),
        ),
        claim(
            "threshold",
            "Fig. E.1",
            "its peak is near the interpolation threshold: their widths are within a factor of two",
            "|log2| of the densest network's width over that at which the training accuracy crosses "
            f"{FITS:g}, {OPTIMIZERS[optimizer]}",
            "below",
            CLOSE,
            _curve("random", optimizer, from_threshold, fitted),
        ),
        claim(
            "infinite",
            "Fig. E.1",
            "on infinite data it is close to 0 at every width: below 5%",
            f"{of}, infinite random data, largest over widths",
            "below",
            NOTHING,
            _curve("infinite", optimizer, lambda *of: float(np.max(_by_width(share, *of)))),
        ),
        claim(
            "infinite_falls",
            "Fig. E.1",
            "at least it falls at every width",
            f"{of}, infinite random data, less that at the start, largest over widths",
            "below",
            0.0,
            _curve("infinite", optimizer, lambda *of: float(np.max(_by_width(_fall, *of)))),
        ),
        claim(
            "real",
            "Fig. E.1",
            "on real data, which networks of all widths fit, it falls with width",
            f"slope of log {of}, on log width, least squares over widths",
            "below",
            0.0,
            _curve("real", optimizer, slope, unfitted),
        ),
        claim(
            "rate",
            "Fig. E.2",
            "a larger learning rate makes networks sparser on all three data",
            f"log10 of the {of}, at the larger rate over that at the smaller, mean over widths, largest over data",
            "below",
            0.0,
            _larger_rate(optimizer),
        ),
    )


CLAIMS = tuple(claim for optimizer in OPTIMIZERS for claim in _claims(optimizer))

RANDOM_DATA = Study(
    name="li2022/random_data",
    title="Li et al. 2022, Figs. E.1, E.2: sparsity of two-layer MLPs, and what they can fit",
    introduction=(
        "MLPs with one hidden layer of varying width learn real images, as many random ones with random labels, and "
        "random ones without end. The paper finds most nonzeros on random data where the network is just wide enough "
        "to fit them, hardly any where the data never end, fewer with width on real data, and fewer with larger "
        "learning rates."
    ),
    findings=findings,
    figures={"Nonzeros and accuracy by width": small_rates, "At larger rates": large_rates},
    claims=CLAIMS,
    table=table,
)
