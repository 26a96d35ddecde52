"""The files of a run: the config it was made with, its records and how it ended."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from sparsity import config as config_lib
from sparsity.config import ConfigError
from sparsity.evals.result import Measure
from sparsity.run.config import RunConfig, run_config
from sparsity.writer import read_json, write_json

_TAIL = 4 << 20  # bytes of metrics.jsonl that its last step's record is looked for in


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
        try:
            return run_config(self._saved())
        except WorkdirError:
            raise
        except ConfigError as error:
            raise WorkdirError(f"workdir {self.path}: its config.json is refused: {error}") from error

    def _saved(self) -> dict[str, Any]:
        """What config.json says. Raises WorkdirError if it is no JSON of a config's kind."""
        try:
            saved = read_json(self.config)
        except ConfigError as error:
            raise WorkdirError(f"{error}; without it {self.path} is of no run: use another workdir") from error
        if not isinstance(saved, dict):
            raise WorkdirError(f"{self.config}: is no config, but {type(saved).__name__}; use another workdir")
        return saved

    def refuse_remains(self) -> None:
        """Raises WorkdirError if there are checkpoints, but no config that says of what: others' would be taken."""
        places = self.checkpoints.iterdir() if self.checkpoints.is_dir() else ()
        if not self.config.exists() and any(place.name.isdigit() for place in places):
            raise WorkdirError(
                f"workdir {self.path}: has checkpoints, and no config.json that says of what; use another workdir"
            )

    def refuse_other(self, config: RunConfig) -> None:
        """Raises WorkdirError naming the keys if the workdir belongs to another config, or to none that can be read."""
        self.refuse_remains()
        if not self.config.exists():
            return
        changed = config_lib.differences(self._saved(), config_lib.to_dict(config))
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
        """How the run ended, or None while it has not. Raises WorkdirError if what stands there is damaged."""
        if not self.outcome.exists():
            return None
        mend = "delete it, and the run is evaluated anew from its last checkpoint"
        try:
            stored = read_json(self.outcome)
        except ConfigError as error:
            raise WorkdirError(f"{error}; {mend}") from error
        try:
            return _outcome_of(stored)
        except ValueError as error:
            raise WorkdirError(f"{self.outcome}: {error}; {mend}") from error

    def check_records(self, outcome: Outcome) -> None:
        """Raises WorkdirError if metrics.jsonl lacks the last step of a run that finished: it was cut short."""
        if outcome.status != "finished" or not outcome.step:
            return
        try:
            with open(self.metrics, "rb") as file:
                file.seek(max(file.seek(0, os.SEEK_END) - _TAIL, 0))
                tail = file.read()
        except OSError as error:
            raise WorkdirError(f"{self.metrics}: cannot be read ({error.strerror})") from error
        if f'"kind": "train", "step": {outcome.step - 1},'.encode() not in tail:
            raise WorkdirError(
                f"{self.metrics}: has no record of the run's last step, {outcome.step - 1}: it was cut short; delete "
                f"{self.path}, and the run is done anew"
            )

    def write_outcome(self, outcome: Outcome) -> None:
        """Records how the run ended; terminal."""
        stored = dataclasses.asdict(outcome)
        del stored["resumed"]
        write_json(self.outcome, stored)


def _outcome_of(stored: Any) -> Outcome:
    """The outcome that JSON has. Raises ValueError if it is not one's."""
    number, text = (int, float), str
    kinds = {"name": text, "value": number, "se": (*number, type(None)), "n": int, "definition": text, "unit": text}
    found = _of_kinds(stored, {"status": text, "step": int, "measures": list, "arrays": dict}, Outcome)
    if found.get("status") not in get_args(get_type_hints(Outcome)["status"]):
        raise ValueError(f"its status is {found.get('status')!r}")
    measures = tuple(Measure(**_of_kinds(m, kinds, Measure)) for m in found.pop("measures", []))
    return Outcome(**found, measures=measures, resumed=True)


def _of_kinds(stored: Any, kinds: Mapping[str, Any], cls: type) -> dict[str, Any]:
    """`stored`, if it has the fields of `cls`, each of its kind. Raises ValueError."""
    what = cls.__name__.lower()
    if not isinstance(stored, dict):
        raise ValueError(f"its {what} is of type {type(stored).__name__}")
    for name, value in stored.items():
        if isinstance(value, bool) or not isinstance(value, kinds.get(name, ())):
            raise ValueError(f"the {name} of its {what} is of type {type(value).__name__}")
    needed = (f.name for f in dataclasses.fields(cls) if f.default is f.default_factory is dataclasses.MISSING)
    if missing := [name for name in needed if name not in stored]:
        raise ValueError(f"its {what} has no {missing[0]}")
    return stored
