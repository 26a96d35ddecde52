"""What the studies of Bricken et al. 2023 share: runs by arm, sigma and seed, and the axis of sigma.

Sigma is the paper's, in the units of the paper's data; embedded data get the same ratio sigma / std(data), the second
axis of every figure. Every claim's threshold was fixed before the runs.
"""

from __future__ import annotations

import csv
import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sparsity.recipes import BRICKEN_STD
from sparsity.studies.draw import Runs, RunView
from sparsity.studies.judge import Claim, Effect
from sparsity.studies.records import Run, measured, named, records_of
from sparsity.studies.runner import Record

NOISE_NAME = re.compile(r"_(gaussian|laplace|salt_and_pepper|poisson|jacobian)([\d.]+)_seed(\d+)")
NETWORK = re.compile(r"^(ae|mlp)\d+_[^_]+")  # of an arm: kind, units and data
FIG_21 = Path("configs/bricken2023/fig21_22_ablations.csv")  # studies run from the repository's root
STEADY = ("0.1", "0.3", "0.8", "1.5", "3")  # sigmas at which the paper's networks are sparse at the end of training


def arm_sigma_seed(name: str) -> tuple[str, float, int]:
    """("ae400_photos", 0.8, 2) of a run called "ae400_photos_gaussian0.8_seed2"; what follows belongs to the arm.

    Other noises than Gaussian belong to the arm too: "ae400_photos_laplace"; so does the penalty that stands for noise.
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


def variant_sigma_seed(name: str) -> tuple[str, float, int]:
    """`arm_sigma_seed` without units and data: "ae_annealed" of "ae400_photos_annealed", the same at every scale."""
    arm, sigma, seed = arm_sigma_seed(name)
    return NETWORK.sub(r"\1", arm), sigma, seed


def by_variant(runs: Mapping[str, Run]) -> dict[str, dict[float, dict[int, Run]]]:
    """Variant -> sigma -> seed -> run, in the order of the study, of runs by name."""
    out: dict[str, dict[float, dict[int, Run]]] = {}
    for name, run in runs.items():
        variant, sigma, seed = variant_sigma_seed(name)
        out.setdefault(variant, {}).setdefault(sigma, {})[seed] = run
    return out


Grid = dict[tuple[str, float], dict[int, Record]]  # (arm, sigma) -> seed -> record


def active_shares(run: Record | RunView) -> tuple[list[int], list[float]]:
    """Recorded steps, and the share of active units on their training batch; of a network of one hidden layer."""
    lines = records_of(run, "sparsity")
    shares = [layer["nonzero"] for line in lines for layer in line["layers"].values()]
    return [line["step"] for line in lines], shares


def over_seeds(records: Sequence[Record], arm: str, value: Callable[[dict[float, Record]], float]) -> Effect:
    """The effect with one replicate a seed: `value` of that seed's runs of an arm, by sigma.

    Not testable if the arm was not run; a replicate that is not finite is no evidence.
    """
    runs = by_arm(records).get(arm)
    if not runs:
        return Effect.untestable(f"no run of {arm}")
    seeds = sorted(set.intersection(*(set(of_sigma) for of_sigma in runs.values())))
    return Effect.of([value({sigma: of_sigma[seed] for sigma, of_sigma in runs.items()}) for seed in seeds])


def over_variants(
    records: Sequence[Record], wanted: Sequence[tuple[str, float]], value: Callable[[list[Record]], float]
) -> Effect:
    """The effect with one replicate a seed: `value` of that seed's runs of each (variant, sigma), in their order.

    Not testable if one of them was not run; a replicate that is not finite is no evidence.
    """
    table = by_variant(named(records))
    found = [table.get(variant, {}).get(sigma, {}) for variant, sigma in wanted]
    missing = [f"{v} at {sigma:g}" for (v, sigma), of_seed in zip(wanted, found, strict=True) if not of_seed]
    if missing:
        return Effect.untestable(f"no run of {', '.join(missing)}")
    seeds = sorted(set.intersection(*map(set, found)))
    return Effect.of([value([of_seed[seed] for of_seed in found]) for seed in seeds])


def seed_claim(wanted: Sequence[tuple[str, float]], value: Callable[[list[Record]], float], **said: Any) -> Claim:
    """The claim that says `said`, judged by `over_variants`."""
    return Claim(unit="seed", measure=functools.partial(over_variants, wanted=wanted, value=value), **said)


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
    axis.set_xlim(-0.01, 14)  # a margin in proportion would be decades below 0
    axis.set_xlabel(f"sigma (on data of std {std:g})")
    axis.set_xticks([0, 0.05, 0.3, 1.5, 10], labels=["0", ".05", ".3", "1.5", "10"])
    # matplotlib's second axis is not compressed as the first one is, only mapped by the function that leads back to it.
    compressed = axis.xaxis.get_transform().transform
    above = axis.secondary_xaxis("top", functions=(lambda s: s / std, lambda r: compressed(np.asarray(r) * std)))
    above.set_xlabel("sigma / std(data)")
    above.set_xticks([0, 0.2, 1.2, 6, 40], labels=["0", ".2", "1.2", "6", "40"])


def printed_active() -> dict[tuple[str, str], dict[float, float]]:
    """The numbers behind Figs. 21 and 22, by the authors' code: (ablation, setting) -> sigma -> share of active units.

    What their code leaves out of the figures is there too.
    """
    out: dict[tuple[str, str], dict[float, float]] = {}
    with open(FIG_21, encoding="utf-8") as file:
        for line in csv.DictReader(file):
            setting = line["setting"].removesuffix("(commented out)")
            by_sigma = out.setdefault((line["ablation"], setting), {})
            by_sigma[float(line["noise_sigma"])] = float(line["mean_fraction_active"])
    return out
