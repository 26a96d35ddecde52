"""What a weight of a penalty on activations is worth: the share of the plain network's nonzeros that it leaves.

Li et al. 2022 print weights (Tables C.1, C.2) and not what they multiply, a sum or a mean over tokens, units, layers.
They print densities too, and by these their weights are matched to ours.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sparsity.studies.li2022.vits import Arm, by_arm
from sparsity.studies.records import Run, finished, measured

TABLE_FILE = Path("configs/li2022/penalties.csv")  # as printed; studies run from the repository's root


def printed() -> dict[tuple[str, float], dict[str, float]]:
    """Tables C.1 and C.2 as printed, in shares, by penalty and weight; ("", 0) is the plain network.

    "of plain" is the share of nonzeros over the plain network's.
    """
    with open(TABLE_FILE, encoding="utf-8") as file:
        rows = {(line.pop("penalty"), float(line.pop("weight"))): line for line in csv.DictReader(file)}
    found = {key: {c.removesuffix("_pct"): float(v) / 100 for c, v in row.items()} for key, row in rows.items()}
    return {key: row | {"of plain": row["nonzero"] / found["", 0.0]["nonzero"]} for key, row in found.items()}


def plain_arm(runs: Iterable[Run], noise: float = 0.0) -> Arm | None:
    """The arm without a penalty, with a share of random labels."""
    return next((arm for arm in by_arm(runs) if arm.penalty is None and arm.noise == noise), None)


def grid(runs: Iterable[Run], penalty: str, noise: float = 0.0) -> dict[float, Arm]:
    """Weight -> the arm with that penalty, with a share of random labels; weights rising."""
    return {arm.weight: arm for arm in by_arm(runs) if (arm.penalty, arm.noise) == (penalty, noise)}


def of_plain(runs: Iterable[Run], penalty: str) -> dict[float, float]:
    """Weight -> share of nonzeros on test images over the plain network's, of means over layers and seeds."""
    runs = list(runs)
    arms, plain = by_arm(runs), plain_arm(runs)
    share = lambda arm: float(np.mean([measured(r, "nonzero.mean") for r in finished(arms[arm])] or [math.nan]))
    whole = math.nan if plain is None else share(plain) or math.nan  # without a nonzero there is nothing to compare to
    return {weight: share(arm) / whole for weight, arm in grid(runs, penalty).items()}


def weight_at(ratios: Mapping[float, float], target: float) -> float | None:
    """The weight that gives `target`: between the two nearest, log weight is linear in log ratio.

    None unless the ratios fall as weights rise, are positive and stand on both sides of it.

    >>> weight_at({1e-5: 0.8, 1e-3: 0.2}, 0.4)
    0.0001
    """
    weights = np.array(sorted(ratios))
    values = np.array([ratios[w] for w in weights])
    falling = len(values) > 1 and (np.diff(values) < 0).all() and values[-1] > 0
    if not falling or not values[-1] <= target <= values[0]:
        return None
    return float(f"{10 ** np.interp(-np.log10(target), -np.log10(values), np.log10(weights)):.6g}")


class Point(NamedTuple):
    """A density between those of two arms of neighbouring weights, and the weight that gives it."""

    low: Arm
    high: Arm
    weight: float

    def between(self, low: float, high: float) -> float:
        """What lies here between a value of either arm, linear in log weight."""
        ends = np.log10([self.low.weight, self.high.weight])
        return float(np.interp(math.log10(self.weight), ends, (low, high)))


def point(runs: Iterable[Run], penalty: str, target: float) -> Point | None:
    """Where a penalty leaves `target` of the plain network's nonzeros; None if no two weights stand around it."""
    runs = list(runs)
    found, arms = weight_at(of_plain(runs, penalty), target), list(grid(runs, penalty).values())
    if found is None:
        return None
    i = min(max(int(np.searchsorted([arm.weight for arm in arms], found)), 1), len(arms) - 1)
    return Point(arms[i - 1], arms[i], found)
