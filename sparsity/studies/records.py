"""What studies read from the records of their runs: measures, lines of metrics.jsonl, effects over seeds."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from sparsity.studies.draw import RunView
from sparsity.studies.judge import Effect
from sparsity.studies.runner import Record
from sparsity.writer import read_metrics

Run = TypeVar("Run", Record, RunView)


def named(records: Iterable[Record]) -> dict[str, Record]:
    """Records by the names of their runs."""
    return {record.config.name: record for record in records}


def grid_by(arm_of: Callable[[str], tuple[Any, ...]], runs: Mapping[str, Run]) -> dict[tuple[Any, ...], dict[int, Run]]:
    """Arm -> seed -> run, in the order of the study, of runs by name; `arm_of` a name: (arm's parts, seed)."""
    out: dict[tuple[Any, ...], dict[int, Run]] = {}
    for name, run in runs.items():
        *key, seed = arm_of(name)
        out.setdefault(tuple(key), {})[seed] = run
    return out


def measured(run: Record | RunView, name: str) -> float:
    """A final measure; NaN for a run that diverged or did not take it."""
    return next((m.value for m in run.outcome.measures if m.name == name), math.nan)


def each_layer(run: Record | RunView, prefix: str = "nonzero.") -> np.ndarray:
    """The final measures whose names begin like this, layer by layer [layers]; one NaN for a run that diverged."""
    found = [m.value for m in run.outcome.measures if m.name.startswith(prefix) and m.name != f"{prefix}mean"]
    return np.array(found or [math.nan])


@functools.lru_cache(maxsize=4096)
def _metrics(path: Any) -> list[dict[str, Any]]:
    return read_metrics(path)


def records_of(run: Record | RunView, kind: str) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl of one kind."""
    metrics = run.metrics if isinstance(run, RunView) else _metrics(run.files.metrics)
    return [r for r in metrics if r["kind"] == kind]


def diverged(run: Record | RunView) -> bool:
    """Whether the run has no end: what its last records say is no evidence."""
    return run.outcome.status == "diverged"


def finished(of_seed: Mapping[int, Run]) -> list[Run]:
    """The runs that did not diverge: what tables take means over."""
    return [run for run in of_seed.values() if run.outcome.status == "finished"]


def mean_over(runs: Sequence[Any], value: Callable[[Any], float]) -> float | None:
    """A table's cell: the mean of `value` over runs; empty without a run, or where it is NaN of one."""
    return or_none(float(np.mean([value(run) for run in runs]))) if runs else None


def decades(value: float, base: float) -> float:
    """log10(value / base); NaN, which is no evidence, unless both are positive."""
    return math.log10(value / base) if value > 0 and base > 0 else math.nan


def decades_each(values: Sequence[float], bases: Sequence[float]) -> np.ndarray:
    """`decades` of each of `values` over its own of `bases`, as many; raises ValueError otherwise."""
    return np.array([decades(value, base) for value, base in zip(values, bases, strict=True)])


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


def standard_error(values: Sequence[float]) -> float | None:
    """Of the mean over seeds; None of a single one, 0 of equal ones."""
    if len(values) < 2:
        return None
    # NumPy's deviation of equal numbers may be 1e-17.
    return 0.0 if min(values) == max(values) else float(np.std(values, ddof=1) / math.sqrt(len(values)))


def or_none(value: float) -> float | None:
    """A table's cell: empty where nothing was measured."""
    return None if math.isnan(value) else value


def percent(share: float | None) -> str:
    """A table's share in a sentence."""
    return "no value" if share is None else f"{100 * share:.1f}%"
