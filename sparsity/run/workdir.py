"""The files of a run: the config it was made with, its records and how it ended."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from sparsity import config as config_lib
from sparsity.config import ConfigError
from sparsity.evals.result import Measure
from sparsity.run.config import RunConfig, run_config
from sparsity.writer import read_json, write_json


class WorkdirError(ConfigError):
    """A workdir that cannot be used: the message is one line, fit to be printed alone."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
      status: "finished" or "diverged", both terminal; "unfinished" only of a checkpoint looked at
        before its run has ended.
      step: updates done, or the step whose loss was not finite.
      measures, arrays: the final evaluation (empty if diverged).
      resumed: nothing was computed now; the workdir was already terminal.
    """

    status: Literal["finished", "diverged", "unfinished"]
    step: int
    measures: tuple[Measure, ...] = ()
    arrays: dict[str, Any] = dataclasses.field(default_factory=dict)
    resumed: bool = False


class Workdir:
    """The files of one run. `config.json`, `metrics.jsonl`, `checkpoints/`, `outcome.json`, `report/`."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.config = self.path / "config.json"
        self.metrics = self.path / "metrics.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.outcome = self.path / "outcome.json"
        self.report = self.path / "report" / "index.html"

    def create(self) -> None:
        """Makes the directory. Raises WorkdirError if it cannot be written."""
        if ":/" in str(self.path):
            raise WorkdirError(f"workdir {self.path}: only local (or mounted) directories are supported")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            probe = self.path / f".probe-{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise WorkdirError(f"workdir {self.path}: cannot be written ({error.strerror})") from error

    def saved_config(self) -> RunConfig:
        """The config this workdir was made with. Raises WorkdirError if it holds no run."""
        if not self.config.exists():
            raise WorkdirError(f"workdir {self.path}: holds no run (no config.json)")
        return run_config(read_json(self.config))

    def refuse_other(self, config: RunConfig) -> None:
        """Raises WorkdirError naming the keys if the workdir belongs to another config."""
        if not self.config.exists():
            return
        changed = config_lib.differences(read_json(self.config), config_lib.to_dict(config))
        allowed = config.resumable_changes()
        refused = {k: v for k, v in changed.items() if not k.startswith(allowed)}
        if refused:
            listed = "; ".join(f"{k}: {old!r} there, {new!r} asked for" for k, (old, new) in refused.items())
            raise WorkdirError(f"workdir {self.path}: made with another config ({listed}); use another workdir")

    def ended(self, config: RunConfig) -> Outcome | None:
        """How the run of `config` ended here, or None if there is something left to do.

        More steps are something to do, and so are other settings of the evaluation.

        Raises:
          WorkdirError: the workdir belongs to another config.
        """
        self.refuse_other(config)
        outcome = self.read_outcome()
        if outcome is None or outcome.status == "diverged":
            return outcome
        return outcome if outcome.step >= config.steps and self.saved_config().evals == config.evals else None

    @contextlib.contextmanager
    def claim(self) -> Iterator[None]:
        """Holds the run for this process, by a kernel lock that ends with the process, even by kill -9.

        Raises:
          WorkdirError: another process holds it; the message names its host and process.
        """
        with open(self.path / "lock", "a+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                raise WorkdirError(f"workdir {self.path}: is being run by {lock.read().strip()}") from None
            lock.truncate(0)
            lock.write(f"process {os.getpid()} on {socket.gethostname()}")
            lock.flush()
            yield

    def read_outcome(self) -> Outcome | None:
        """How the run ended, or None while it has not."""
        if not self.outcome.exists():
            return None
        stored = read_json(self.outcome)
        stored["measures"] = tuple(Measure(**m) for m in stored["measures"])
        return Outcome(**stored, resumed=True)

    def write_outcome(self, outcome: Outcome) -> None:
        """Records how the run ended; terminal."""
        stored = dataclasses.asdict(outcome)
        del stored["resumed"]
        write_json(self.outcome, stored)
