"""How anything here is timed: arms interleaved in one process, ratios of the same round.

Absolute times on a shared machine move by a factor of two within minutes; the ratio of two arms
a second apart does not. So every round runs every arm once, ABCABC, a ratio is taken in each
round, and its median is reported with a bootstrap interval over the rounds. Memory bandwidth and
load before and after say whether the neighbours changed meanwhile.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

ROUNDS, TRIES = 30, 2
STREAM_BYTES = 256 << 20  # more than three times the last-level cache of the machines at hand
STREAM_DRIFT = 0.2


@dataclasses.dataclass(frozen=True)
class Bar:
    """What a case promises: the median of time(arm) / time(base) stays at or below `at_most`.

    "At least three times faster" is at_most = 1/3. `aim` is the ratio hoped for. Without
    `at_most` the ratio is shown for comparison and promises nothing.
    """

    arm: str
    base: str
    at_most: float | None = None
    aim: float | None = None

    def holds(self, median: float) -> bool | None:
        """Whether a measured ratio keeps the promise; None if there is none.

        One that is not positive is of a slope that was lost among the rounds' differences, and keeps nothing.
        """
        return None if self.at_most is None else 0 < median <= self.at_most


@dataclasses.dataclass(frozen=True)
class Case:
    """Arms to compare, and facts about what they compute; without arms nothing is timed, and the facts are all.

    Attributes:
      name: what is timed, with its shape.
      rows: the distribution of the ranked numbers.
      arms: name -> a function that runs the arm once and returns its arrays.
      bars: what is promised, of arms and of slopes.
      facts: anything else for the record: kept counts, recall, matrix products.
      slopes: name -> (longer arm, shorter arm): what the longer one takes more, round by round.
      moved: arm or slope -> bytes that it reads at least; see `rates`.
      rounds: at most, of arms that take seconds each.
    """

    name: str
    rows: str
    arms: Mapping[str, Callable[[], Any]]
    bars: tuple[Bar, ...]
    facts: Mapping[str, Any]
    slopes: Mapping[str, tuple[str, str]] = dataclasses.field(default_factory=dict)
    moved: Mapping[str, float] = dataclasses.field(default_factory=dict)
    rounds: int | None = None


class Suite(Protocol):
    """Yields cases one by one, so that only one holds its arrays."""

    def __call__(self, smoke: bool) -> Iterable[Case]:
        """The cases; with `smoke`, of toy size."""


@dataclasses.dataclass(frozen=True)
class Ratio:
    """Time of an arm over that of its base: median over rounds, 95% interval of it, and min/min."""

    median: float
    low: float
    high: float
    best: float


def interleave(arms: Mapping[str, Callable[[], Any]], rounds: int, clock=time.perf_counter) -> dict[str, list[float]]:
    """Seconds of every round of every arm, ABCABC, after one round that compiles and warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for run in arms.values():
        jax.block_until_ready(run())
    for _ in range(rounds):
        for name, run in arms.items():
            begin = clock()
            jax.block_until_ready(run())
            seconds[name].append(clock() - begin)
    return seconds


def ratio(arm: list[float], base: list[float], resamples: int = 2000) -> Ratio:
    """The ratio of two arms of one run; the interval is a percentile bootstrap of the median over rounds.

    Raises:
      ValueError: arms of different numbers of rounds, or none.
    """
    if len(arm) != len(base) or not arm:
        raise ValueError(f"arms of {len(arm)} and {len(base)} rounds: a ratio needs the same rounds, at least one")
    per_round = np.asarray(arm) / np.asarray(base)
    drawn = np.random.default_rng(0).integers(0, len(per_round), (resamples, len(per_round)))
    low, high = np.percentile(np.median(per_round[drawn], axis=1), [2.5, 97.5])
    return Ratio(float(np.median(per_round)), float(low), float(high), min(arm) / min(base))


def stream_read(size: int = STREAM_BYTES) -> float:
    """Gigabytes per second of reading an array larger than the caches once, by all threads of the device, best of five.

    It is a matrix's product with a vector, which every backend splits among its threads; a sum not every one does.
    """
    columns = 1024
    x, v = jnp.ones((max(1, size // 4 // columns), columns), jnp.float32), jnp.ones(columns, jnp.float32)
    product = jax.jit(lambda x, v: jnp.dot(x, v, precision=jax.lax.Precision.HIGHEST))
    read = lambda: product(x, v).block_until_ready()
    read()
    best = min(_timed(read) for _ in range(5))
    return x.nbytes / best / 1e9


def _timed(run: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def machine() -> dict[str, Any]:
    """The machine and the versions of what was timed."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    cpu = dict(line.split(":", 1) for line in lines if ":" in line)
    cpu = {key.strip(): value.strip() for key, value in cpu.items()}
    return {
        "cpu": cpu.get("model name", platform.processor()),
        "cache": cpu.get("cache size"),
        "flags": cpu.get("flags"),
        "cores": os.cpu_count(),
        "devices": [d.device_kind for d in jax.devices()],
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax", "numpy")},
    }


def _state(size: int) -> dict[str, Any]:
    return {"stream_read_GB_per_s": stream_read(size), "load_average": os.getloadavg()}


def sound(record: Mapping[str, Any]) -> bool:
    """The machine was steady, and no slope of a round was lost among the differences of its arms."""
    return record["steady"] and all(min(record["seconds"][arm]) > 0 for arm in record["rates"])


def measure(case: Case, rounds: int = ROUNDS, stream_bytes: int = STREAM_BYTES, tries: int = 1) -> dict[str, Any]:
    """The record of one case: every round, its ratios and bars, and the machine's state around it.

    A case is `steady` if the STREAM read moved by at most 20%. What is not `sound` is measured again, as a whole, up to
    so many `tries`; the last one is the record, and says how many were made. Without arms the record is the facts.
    """
    if not case.arms:
        return {"name": case.name, "rows": case.rows, "steady": True, "bars": [], "facts": dict(case.facts)}
    for attempt in range(1, tries + 1):
        record = _measured(case, rounds, stream_bytes) | {"tries": attempt}
        if sound(record):
            break
    return record


def _measured(case: Case, rounds: int, stream_bytes: int) -> dict[str, Any]:
    before = _state(stream_bytes)
    seconds = interleave(case.arms, min(rounds, case.rounds or rounds))
    for name, (longer, shorter) in case.slopes.items():
        seconds[name] = [a - b for a, b in zip(seconds[longer], seconds[shorter], strict=True)]
    after = _state(stream_bytes)
    drift = abs(after["stream_read_GB_per_s"] / before["stream_read_GB_per_s"] - 1)
    found = [(bar, ratio(seconds[bar.arm], seconds[bar.base])) for bar in case.bars]
    stream = (before["stream_read_GB_per_s"] + after["stream_read_GB_per_s"]) / 2
    return {
        "name": case.name,
        "rows": case.rows,
        "steady": drift <= STREAM_DRIFT,
        "bars": [
            dataclasses.asdict(b) | dataclasses.asdict(r) | {"holds": b.holds(r.median)} | of_bound(b, r, case.moved)
            for b, r in found
        ],
        "rates": rates(seconds, case.moved, stream),
        "facts": dict(case.facts),
        "before": before,
        "after": after,
        "seconds": seconds,
    }


def rates(seconds: Mapping[str, list[float]], moved: Mapping[str, float], stream: float) -> dict[str, dict[str, float]]:
    """Of each arm whose bytes are known: its median time, the rate at which it reads them, and that over STREAM's.

    A share well above 1 is of an arm that does not read what it should, or finds it in a cache.
    """
    found = {}
    for name, size in moved.items():
        median = float(np.median(seconds[name]))
        rate = size / median / 1e9
        found[name] = {"ms": 1e3 * median, "bytes": size, "GB_per_s": rate, "share_of_stream": rate / stream}
    return found


def of_bound(bar: Bar, found: Ratio, moved: Mapping[str, float]) -> dict[str, float]:
    """Where the bytes of both arms are known: their ratio, which none of time is below, and the share of it reached."""
    if bar.arm not in moved or bar.base not in moved:
        return {}
    bound = moved[bar.arm] / moved[bar.base]
    return {"bound": bound, "share_of_bound": bound / found.median}


def table(records: Iterable[Mapping[str, Any]]) -> str:
    """The bars of `records` as a Markdown table: ratios of times, below 1 is faster. Facts, if there are no bars."""
    records = list(records)
    if not any(record["bars"] for record in records):
        return _facts_table(records)
    names = ("case", "rows", "arm / base", "median", "95% interval", "bar", "aim", "bound", "")
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for record in records:
        for bar in record["bars"]:
            verdict = {True: "holds", False: "MISSED", None: "for comparison"}[bar["holds"]]
            verdict += "" if record["steady"] else ", unsteady"
            goals = " | ".join(
                "" if bar.get(goal) is None else f"{bar[goal]:.3f}" for goal in ("at_most", "aim", "bound")
            )
            lines.append(
                f"| {record['name']} | {record['rows']} | {bar['arm']} / {bar['base']} | {bar['median']:.3f} "
                f"| {bar['low']:.3f}–{bar['high']:.3f} | {goals} | {verdict} |"
            )
    return "\n".join(lines)


def _facts_table(records: Iterable[Mapping[str, Any]]) -> str:
    """The facts of records that are single numbers or words, as a Markdown table."""
    rows = [
        {"case": r["name"], "rows": r["rows"]}
        | {key: value for key, value in r["facts"].items() if not isinstance(value, Mapping | list | tuple)}
        for r in records
    ]
    names = list(dict.fromkeys(name for row in rows for name in row))
    cell = lambda value: f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(cell(row.get(name, '')) for name in names)} |" for row in rows)])
