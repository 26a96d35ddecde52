"""What the studies of fronts share: runs by method and setting, and the front of noise alone.

A run is a point (share of active units, squared error), both on the test split without noise.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from sparsity.studies.bricken2023.runs import arm_sigma_seed
from sparsity.studies.draw import Runs, RunView
from sparsity.studies.records import measured
from sparsity.studies.runner import Record

ALONE = "noise"
METHOD = re.compile(r"_(l1|top_k|clipped)_([\de.-]+?)(_unit_norm)?$")

Point = tuple[float, float]
Settings = dict[str, dict[float, dict[int, Record]]]


def method(name: str) -> tuple[str, float, int]:
    """Method, setting and seed of a run's name; the setting of noise alone is sigma, else the method's own.

    >>> method("ae400_photos_gaussian0.8_seed1_annealed")
    ('noise', 0.8, 1)
    >>> method("ae400_photos_gaussian0_seed0_l1_1e-05_unit_norm")
    ('l1_unit_norm', 1e-05, 0)
    >>> method("ae400_photos_gaussian0.3_seed2_annealed_top_k_0.03")
    ('noise + top_k', 0.03, 2)
    """
    arm, sigma, seed = arm_sigma_seed(name)
    found = METHOD.search(arm)
    if not found:
        return ALONE, sigma, seed
    label = found[1] + (found[3] or "")
    return f"{ALONE} + {label}" if sigma else label, float(found[2]), seed


def by_method(records: Iterable[Record]) -> Settings:
    """Method -> setting -> seed -> record, in the order of the study."""
    out: Settings = {}
    for record in records:
        label, value, seed = method(record.config.name)
        out.setdefault(label, {}).setdefault(value, {})[seed] = record
    return out


def runs_by_method(runs: Runs) -> dict[str, dict[float, RunView]]:
    """Method -> setting -> the run of the first seed, for figures."""
    out: dict[str, dict[float, RunView]] = {}
    for name, view in runs.items():
        label, value, _ = method(name)
        out.setdefault(label, {}).setdefault(value, view)
    return out


def point(run: Record | RunView) -> Point:
    """Share of active units and squared error on the test split without noise."""
    return measured(run, "nonzero.hidden"), measured(run, "mse")


class Front:
    """The least loss that any of some runs has with no more than a share of active units.

    Between the runs that no other beats in both, the line is straight in the logarithms; denser than the densest of
    them their least loss is still to be had; sparser than the sparsest nothing is known.
    """

    def __init__(self, points: Iterable[Point]):
        known = sorted(p for p in points if p[0] > 0 and p[1] > 0)  # neither NaN nor a network without active units
        self.points: list[Point] = []
        for share, loss in known:
            if not self.points or loss < self.points[-1][1]:
                self.points.append((share, loss))

    def log_loss(self, share: float) -> float:
        """log10 of the least loss at `share`; NaN where it is not known."""
        if not self.points or not share >= self.points[0][0]:
            return math.nan
        shares, losses = np.log10(self.points).T
        return float(np.interp(math.log10(share), shares, losses))

    def excess(self, run: Record | RunView) -> float:
        """log10 of the run's loss over the front's at the same share of active units."""
        share, loss = point(run)
        return math.log10(loss) - self.log_loss(share) if loss > 0 else math.nan


def front_of_noise(table: Mapping[str, Mapping[float, Mapping[int, Record]]], seed: int) -> Front:
    """The front of noise alone, training without any included, of one seed."""
    return Front(point(of_seed[seed]) for of_seed in table.get(ALONE, {}).values() if seed in of_seed)


def finite(values: Sequence[float]) -> list[float]:
    """Those that are numbers."""
    return [value for value in values if math.isfinite(value)]
