"""What a run writes: metrics.jsonl, small JSON files, and its progress for the eye."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from sparsity.config import ConfigError, json_of, no_room


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

    Raises:
      ConfigError: the file is there and cannot be read.
    """

    def __init__(self, path: Path, start: int = 0):
        self._path = path
        kept = [r for r in read_metrics(path) if r["step"] < start]
        write_text(path, "".join(json.dumps(r) + "\n" for r in kept))
        self._file = open(path, "a", encoding="utf-8")

    def write(self, kind: str, step: int, **values: Any) -> None:
        """Appends one record. Raises WriteError; part of it may stand in the file then, and is dropped on opening."""
        with _writing(self._path):
            self._file.write(json.dumps({"kind": kind, "step": step} | values) + "\n")
            self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        with contextlib.suppress(OSError):  # of what could not be written: that was said when it was
            self._file.close()


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
