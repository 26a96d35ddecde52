"""What a run writes: metrics.jsonl, small JSON files, and its progress for the eye."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TextIO

from tqdm import tqdm

from sparsity.config import ConfigError, flatten, json_of, lookup, no_room


class WriteError(ConfigError):
    """A file that cannot be written, the disk being full, say: the message is one line, fit to be printed alone."""


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if not no_room(error):
            raise
        raise WriteError(f"{path}: cannot be written ({error.strerror})") from error


def write_json(path: Path, value: Any) -> None:
    """Writes `value` to `path` whole or not at all (temporary file, then rename). Raises WriteError."""
    write_text(path, json.dumps(value, indent=1, allow_nan=True) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes `text` to `path` whole or not at all. Raises WriteError."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Writes `data` to `path` whole or not at all. Raises WriteError."""
    temporary = path.with_name(f".{path.name}.tmp{os.getpid()}")
    try:
        with _writing(path):
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()  # where there is no room, none is taken
        raise


def read_json(path: Path) -> Any:
    """The JSON value in `path`. Raises ConfigError, in one line, if it cannot be read or is none."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    return json_of(text, str(path))


class MetricsWriter:
    """Appends records to a JSON-lines file, one flushed line each.

    Every record has a `kind` and a `step`. Opening drops the records from step `start` on, so
    that after a resume each step stands there once; a line cut short by a kill goes too.

    Args:
      sinks: are told all numbers, also of the records that were kept.
      say: told, in a line, of a sink that breaks: it is left out from then on, and the run goes on.

    Raises:
      ConfigError: the file is there and cannot be read.
    """

    def __init__(self, path: Path, start: int = 0, sinks: Sequence[Sink] = (), say: Callable[[str], None] = print):
        self._path = path
        kept = [r for r in read_metrics(path) if r["step"] < start]
        write_text(path, "".join(json.dumps(r) + "\n" for r in kept))
        self._file = open(path, "a", encoding="utf-8")
        self._sinks, self._say = list(sinks), say
        for record in kept if sinks else ():
            self._show(record)

    def write(self, kind: str, step: int, **values: Any) -> None:
        """Appends one record. Raises WriteError; part of it may stand in the file then, and is dropped on opening."""
        record = {"kind": kind, "step": step} | values
        with _writing(self._path):
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()
        self._show(record)

    def close(self) -> None:
        """Closes the file and the sinks."""
        with contextlib.suppress(OSError):  # of what could not be written: that was said when it was
            self._file.close()
        for sink in list(self._sinks):
            self._try(sink, sink.close)

    def _show(self, record: Mapping[str, Any]) -> None:
        for sink in list(self._sinks):
            self._try(sink, lambda sink=sink: sink.write(record["step"], scalars(record)))

    def _try(self, sink: Sink, do: Callable[[], None]) -> None:
        try:
            do()
        except Exception as error:  # of whatever kind: a run does not end because it cannot be looked at
            self._sinks.remove(sink)
            self._say(f"{type(sink).__name__}: gets nothing more ({error}); metrics.jsonl has all")


class NoMetrics:
    """Writes nothing, as every process does but the first."""

    def write(self, kind: str, step: int, **values: Any) -> None:
        """Drops a record."""

    def close(self) -> None:
        """Nothing is open."""


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All whole records of a metrics file; none if it does not exist. Raises ConfigError if it cannot be read."""
    return [r for r in read_records(path) if isinstance(r.get("kind"), str) and type(r.get("step")) is int]


def damaged_lines(path: Path) -> int:
    """Lines of a metrics file that are no record, beside one that a kill has cut short at its end."""
    return max(_read(path).count(b"\n") - len(read_metrics(path)), 0)


def read_records(path: Path) -> list[dict[str, Any]]:
    """The lines of a file that are JSON objects; none if it does not exist. Raises ConfigError if it cannot be read."""
    records = []
    for line in _read(path).split(b"\n"):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue  # the last line of a killed process, or what a disk has made of another
        if isinstance(record, dict):
            records.append(record)
    return records


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error


class Sink(Protocol):
    """Where the numbers of a run are looked at, beside its metrics.jsonl, which alone is its record.

    It is opened with (directory of the run, its name, its config as plain values), and then told all that the record
    has from the first step on, also what stood there before a resume: each number once.
    """

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Shows numbers of a step, by name."""

    def close(self) -> None:
        """Nothing more comes."""


class TensorBoard:
    """Event files in the run's directory `tensorboard/`, by tensorboardX; each opening writes them anew."""

    def __init__(self, directory: Path, name: str, config: Mapping[str, Any]):
        write = _needed("tensorboard")
        folder = directory / "tensorboard"
        for old in folder.glob("events.out.tfevents.*"):
            old.unlink()
        # What a TensorBoard that is running has read of the old files is purged.
        self._writer = write(str(folder), purge_step=0)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Shows numbers of a step, by name."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Nothing more comes."""
        self._writer.close()


class WandB:
    """A run at Weights & Biases, whose id the run's directory keeps: resumed it is the same, and gets what it lacks."""

    def __init__(self, directory: Path, name: str, config: Mapping[str, Any]):
        init, path = _needed("wandb"), directory / "wandb.json"
        if not path.exists():
            write_json(path, {"id": uuid.uuid4().hex[:8]})
        identity = read_json(path)["id"]
        self._run = init(id=identity, name=name, dir=str(directory), config=dict(config), resume="allow")
        self._first = self._run.step  # those before it stand there

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Shows numbers of a step, by name."""
        if step >= self._first:
            self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Nothing more comes."""
        self._run.finish()


SINKS: dict[str, Callable[[Path, str, Mapping[str, Any]], Sink]] = {"tensorboard": TensorBoard, "wandb": WandB}
_PACKAGES = {"tensorboard": ("tensorboardX", "SummaryWriter"), "wandb": ("wandb", "init")}  # what a sink calls


def check_sinks(names: Sequence[str]) -> None:
    """Raises ConfigError, in one line, if there is no such sink, or its package is not installed."""
    for name in names:
        lookup(SINKS, name, "sink")
        _needed(name)


def open_sinks(names: Sequence[str], directory: Path, run: str, config: Mapping[str, Any]) -> list[Sink]:
    """The named sinks of the run called `run`, with its `config` as plain values. Raises ConfigError, in one line."""
    check_sinks(names)
    opened = []
    for name in names:
        try:
            opened.append(SINKS[name](directory, run, config))
        except Exception as error:  # of a package of others: there is no account, no room on the disk
            raise ConfigError(f"--sinks={name}: {' '.join(str(error).split())}") from error
    return opened


def mirror(path: Path, sinks: Sequence[Sink]) -> None:
    """Tells `sinks` all that a metrics file has, and closes them: of a run that has ended."""
    for sink in sinks:
        for record in read_metrics(path):
            sink.write(record["step"], scalars(record))
        sink.close()


def _needed(sink: str) -> Any:
    """What a sink calls, of the package that its extra installs. Raises ConfigError if that is missing."""
    package, name = _PACKAGES[sink]
    try:
        return getattr(importlib.import_module(package), name)
    except (ImportError, AttributeError) as error:  # a directory ./wandb is imported too, and has no functions
        extra = f"pip install -e '.[{sink}]'"
        raise ConfigError(f"--sinks={sink}: {package} is not installed; {extra}") from error


def scalars(record: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a record of metrics.jsonl, called kind/key; lists, such as histograms, are left out.

    >>> scalars({"kind": "sparsity", "step": 3, "layers": {"block_0": {"nonzero": 0.5, "histogram": [1, 2]}}})
    {'sparsity/layers.block_0.nonzero': 0.5}
    """
    values = flatten({key: value for key, value in record.items() if key not in ("kind", "step")})
    number = lambda value: isinstance(value, (int, float)) and not isinstance(value, bool)
    return {f"{record['kind']}/{key}": value for key, value in values.items() if number(value)}


class Progress:
    """A bar on a terminal; elsewhere one plain line every `seconds`, and the last step's.

    Shows run, step, loss, accuracy, nonzero %, steps/s and the time left.
    """

    def __init__(self, stream: TextIO | None = None, seconds: float = 10.0):
        self._stream, self._seconds = stream or sys.stderr, seconds
        self._bar: tqdm | None = None

    def start(self, name: str, step: int, steps: int, unit: str = "step") -> None:
        """Begins run `name` at `step` of `steps`; other work is counted in other units."""
        self._name, self._first, self._steps, self._unit = name, step, steps, unit
        self._shown: dict[str, str] = {}
        self._began = self._printed = time.monotonic()
        if self._stream.isatty():
            self._bar = tqdm(
                initial=step, total=steps, desc=name, unit=f" {unit}s", file=self._stream, dynamic_ncols=True
            )

    def show(self, **values: str) -> None:
        """Sets figures to display beside the step, formatted."""
        self._shown |= values

    def update(self, done: int) -> None:
        """`done` steps of the run are done."""
        if self._bar is not None:
            self._bar.set_postfix(self._shown, refresh=False)
            self._bar.update(done - self._bar.n)
            return
        now = time.monotonic()
        if now - self._printed < self._seconds and done != self._steps:
            return
        self._printed = now
        rate = (done - self._first) / max(now - self._began, 1e-9)
        figures = "".join(f"  {k.replace('_', ' ')} {v}" for k, v in self._shown.items())
        left = (self._steps - done) / rate if rate else float("inf")
        speed = f"{rate:.1f} {self._unit}s/s  ETA {left:.0f} s"
        line = f"{self._name}  {self._unit} {done}/{self._steps}{figures}  {speed}"
        print(line, file=self._stream, flush=True)

    def say(self, message: str) -> None:
        """Prints a line without tearing the bar."""
        if self._bar is not None:
            tqdm.write(message, file=self._stream)
        else:
            print(message, file=self._stream, flush=True)

    def stop(self) -> None:
        """Ends the bar of this run."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class NoProgress(Progress):
    """Shows and says nothing, as every process does but the first."""

    def start(self, name: str, step: int, steps: int, unit: str = "step") -> None:
        """Nothing begins."""

    def update(self, done: int) -> None:
        """Nothing is shown."""

    def say(self, message: str) -> None:
        """Nothing is said."""

    def show(self, **values: str) -> None:
        """Nothing is displayed."""
