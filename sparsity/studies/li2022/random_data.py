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
from sparsity.studies.records import Run, across, decades, grid_by, measured, named, or_none, percent, standard_error
from sparsity.studies.runner import Record, Row, Study

DATA = {"real": "real data", "random": "random data", "infinite": "infinite random data"}
OPTIMIZERS = {"sgd": "SGD", "momentum": "SGD with momentum", "adam": "Adam"}
FITS = 0.9  # accuracy on training batches from which on a network fits its data: the interpolation threshold
NOTHING = 0.05  # share of nonzeros that is "close to 0"
CLOSE = 1.5  # steps of width: the next one is close to the threshold, the one after is not
_NAME = re.compile(rf"^mlp(\d+)_\w+?_({'|'.join(DATA)})_({'|'.join(OPTIMIZERS)})_rate([\d.e-]+)_seed(\d+)$")


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
            runs = [r for r in of_seed.values() if r.outcome.status == "finished"]
            mean = lambda value, runs=runs: or_none(float(np.mean([value(r) for r in runs]))) if runs else None
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


def threshold(accuracies: Sequence[float]) -> int:
    """Place of the narrowest network that fits its data, of training accuracies by width; their number if none does."""
    return next((i for i, accuracy in enumerate(accuracies) if accuracy >= FITS), len(accuracies))


def fitted(of_width: Mapping[int, Mapping[int, Run]]) -> str | None:
    """What is amiss if the threshold is not within the widths: the narrowest network fits, or the widest does not."""
    at = threshold([float(np.mean([train_accuracy(r) for r in s.values()])) for s in of_width.values()])
    return "the narrowest network fits them" if at == 0 else "no network fits them" if at == len(of_width) else None


def unfitted(of_width: Mapping[int, Mapping[int, Run]]) -> str | None:
    """What is amiss if the narrowest network does not fit its data."""
    least = float(np.mean([train_accuracy(r) for r in next(iter(of_width.values())).values()]))
    return f"the narrowest network has only {least:.2f} of them right" if least < FITS else None


def _curve(
    data: str, optimizer: str, value: Callable[[Sequence[Run]], float], amiss: Callable = lambda of_width: None
) -> Callable[..., Effect]:
    """`value` of a seed's runs of one curve, narrow first, at the smaller rate. Not testable where `amiss` says why."""

    def measure(records: Sequence[Record]) -> Effect:
        runs = named(records)
        rate = min(rates(runs, optimizer), default=math.nan)
        of_width = curves(runs).get(Curve(data, optimizer, rate), {})
        if len(of_width) < 3:
            return Effect.untestable(f"fewer than three widths were trained on {DATA[data]} by {optimizer}")
        if (why := amiss(of_width)) is not None:
            return Effect.untestable(f"{DATA[data]}: {why}")
        return across({f"width {width}": s for width, s in of_width.items()}, lambda *r: value(r))

    return measure


def hump(runs: Sequence[Run]) -> float:
    """Share of the densest network between the narrowest and the widest, less the larger of these two's."""
    shares = [share(r) for r in runs]
    return max(shares[1:-1]) - max(shares[0], shares[-1])


def from_threshold(runs: Sequence[Run]) -> float:
    """Steps of width between the densest network and the narrowest that fits its data."""
    return abs(int(np.argmax([share(r) for r in runs])) - threshold([train_accuracy(r) for r in runs]))


def _fall(run: Run) -> float:
    return share(run) - float(next(iter(trajectory(run)[1].values()))[0])


def _larger_rate(optimizer: str) -> Callable[..., Effect]:
    """Share at the larger rate less that at the smaller, mean over data and the widths run at the larger, by seed."""

    def measure(records: Sequence[Record]) -> Effect:
        runs = named(records)
        found, both = curves(runs), rates(runs, optimizer)
        if len(both) < 2:
            return Effect.untestable(f"{optimizer} was run at fewer than two rates")
        groups = {
            f"{DATA[data]}, width {width}, rate {rate:g}": found.get(Curve(data, optimizer, rate), {}).get(width, {})
            for data in DATA
            for width in found.get(Curve(data, optimizer, both[-1]), {})
            for rate in (both[0], both[-1])
        }
        return across(
            groups, lambda *r: float(np.mean([share(b) - share(a) for a, b in zip(r[::2], r[1::2], strict=True)]))
        )

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
            f"{of}: the densest width but the narrowest and the widest, less the larger of these two",
            "above",
            0.0,
            _curve("random", optimizer, hump, fitted),
        ),
        claim(
            "threshold",
            "Fig. E.1",
            "its peak is near the interpolation threshold: at the width where it is crossed, or next to it",
            "steps of width (each a factor of four) from the densest network to the narrowest with a training accuracy "
            f"of {FITS:g}, {OPTIMIZERS[optimizer]}",
            "below",
            CLOSE,
            _curve("random", optimizer, from_threshold, fitted),
        ),
        claim(
            "infinite",
            "Fig. E.1",
            "on infinite data it is close to 0: below 5%",
            f"{of}, infinite random data, mean over widths",
            "below",
            NOTHING,
            _curve("infinite", optimizer, lambda runs: float(np.mean([share(r) for r in runs]))),
        ),
        claim(
            "infinite_falls",
            "Fig. E.1",
            "at least it falls",
            f"{of}, infinite random data, less that at the start, mean over widths",
            "below",
            0.0,
            _curve("infinite", optimizer, lambda runs: float(np.mean([_fall(r) for r in runs]))),
        ),
        claim(
            "real",
            "Fig. E.1",
            "on real data, which networks of all widths fit, it falls with width",
            f"log10 of the {of}, of the widest network over the narrowest's",
            "below",
            0.0,
            _curve("real", optimizer, lambda runs: decades(share(runs[-1]), share(runs[0])), unfitted),
        ),
        claim(
            "rate",
            "Fig. E.2",
            "a larger learning rate makes networks sparser",
            f"{of}: at the larger rate less that at the smaller, mean over data and widths",
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
