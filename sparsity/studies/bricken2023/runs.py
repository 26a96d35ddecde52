"""What the studies of Bricken et al. 2023 share: runs by arm, sigma and seed, and the axis of sigma.

Sigma is the paper's, in the units of the paper's data; embedded data get the same ratio sigma / std(data), the second
axis of every figure. Every claim's threshold was fixed before the runs.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from sparsity.recipes import BRICKEN_STD
from sparsity.studies.draw import Runs, RunView
from sparsity.studies.judge import Effect
from sparsity.studies.runner import Record
from sparsity.writer import read_metrics

NOISE_NAME = re.compile(r"_(gaussian|laplace|salt_and_pepper|poisson)([\d.]+)_seed(\d+)")
STEADY = ("0.1", "0.3", "0.8", "1.5", "3")  # sigmas at which the paper's networks are sparse at the end of training


def arm_sigma_seed(name: str) -> tuple[str, float, int]:
    """("ae400_photos", 0.8, 2) of a run called "ae400_photos_gaussian0.8_seed2"; what follows belongs to the arm.

    Other noises than Gaussian belong to the arm too: "ae400_photos_laplace".
    """
    found = NOISE_NAME.search(name)
    kind = "" if found[1] == "gaussian" else f"_{found[1]}"
    return name[: found.start()] + kind + name[found.end() :], float(found[2]), int(found[3])


def by_arm(records: Iterable[Record]) -> dict[str, dict[float, dict[int, Record]]]:
    """Arm -> sigma -> seed -> record, in the order of the study."""
    out: dict[str, dict[float, dict[int, Record]]] = {}
    for record in records:
        arm, sigma, seed = arm_sigma_seed(record.config.name)
        out.setdefault(arm, {}).setdefault(sigma, {})[seed] = record
    return out


def measured(run: Record | RunView, name: str) -> float:
    """A final measure; NaN for a run that diverged or did not take it."""
    return next((m.value for m in run.outcome.measures if m.name == name), math.nan)


@functools.lru_cache(maxsize=4096)
def _metrics(path: Any) -> list[dict[str, Any]]:
    return read_metrics(path)


def records_of(record: Record, kind: str) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl of one kind."""
    return [r for r in _metrics(record.files.metrics) if r["kind"] == kind]


def over_seeds(records: Sequence[Record], arm: str, value: Callable[[dict[float, Record]], float]) -> Effect:
    """The effect with one replicate a seed: `value` of that seed's runs of an arm, by sigma.

    Not testable if the arm was not run; a replicate that is not finite is no evidence.
    """
    runs = by_arm(records).get(arm)
    if not runs:
        return Effect.untestable(f"no run of {arm}")
    seeds = sorted(set.intersection(*(set(of_sigma) for of_sigma in runs.values())))
    return Effect.of([value({sigma: of_sigma[seed] for sigma, of_sigma in runs.items()}) for seed in seeds])


def across(groups: Mapping[str, Mapping[int, Record]], value: Callable[..., float]) -> Effect:
    """The effect with one replicate a seed: `value` of that seed's run of every group, groups by what they are called.

    Not testable if a group has no run. A seed of which a run diverged is no evidence: its replicate is NaN.
    """
    missing = [name for name, of_seed in groups.items() if not of_seed]
    if missing or not groups:
        return Effect.untestable(f"no run of {', '.join(missing) or 'any arm'}")
    replicates = []
    for seed in sorted(set.intersection(*map(set, groups.values()))):
        runs = [of_seed[seed] for of_seed in groups.values()]
        replicates.append(value(*runs) if all(r.outcome.status == "finished" for r in runs) else math.nan)
    return Effect.of(replicates)


def mean_over_seeds(of_sigma: dict[int, Record], name: str) -> float:
    """Mean of a final measure over the seeds of one arm at one sigma."""
    return float(np.mean([measured(r, name) for r in of_sigma.values()]))


def runs_by_arm(runs: Runs) -> dict[str, dict[float, RunView]]:
    """Arm -> sigma -> the run of the first seed, for figures."""
    out: dict[str, dict[float, RunView]] = {}
    for name, view in runs.items():
        arm, sigma, _ = arm_sigma_seed(name)
        out.setdefault(arm, {}).setdefault(sigma, view)
    return out


def sigma_axis(axis: Any, data: str = "pixels") -> None:
    """Sigma in the paper's units below, symmetric-log so that 0 has a place, and sigma / std(data) above."""
    std = BRICKEN_STD[data]
    axis.set_xscale("symlog", linthresh=0.05)
    axis.set_xlabel(f"sigma (on data of std {std:g})")
    axis.set_xticks([0, 0.05, 0.3, 1.5, 10], labels=["0", ".05", ".3", "1.5", "10"])
    above = axis.secondary_xaxis("top", functions=(lambda s: s / std, lambda r: r * std))
    above.set_xlabel("sigma / std(data)")
    above.set_xticks([0, 0.2, 1.2, 6, 40], labels=["0", ".2", "1.2", "6", "40"])
