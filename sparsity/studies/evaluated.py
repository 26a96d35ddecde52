"""Checkpoints, evaluated: the last one of each of several runs, all that a run keeps, or each as training writes it."""

from __future__ import annotations

import collections
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from sparsity.checkpoint import DamagedError, to_stderr
from sparsity.config import ConfigError, lookup
from sparsity.evals import EVALS, TASKS
from sparsity.evals.result import Result
from sparsity.run import (
    Engine,
    RunConfig,
    Workdir,
    WorkdirError,
    evaluate,
    saved_state,
    saved_steps,
    with_evals,
)

ALL = "all"  # of the checkpoints that a workdir keeps


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What is to be evaluated.

    Attributes:
      run: what tables call it: the name of its config, or its workdir where several runs have one name.
      files: its workdir.
      config: its own, but for the settings of the evaluation that were given.
      names: the evaluators.
      settings: those that were given.
    """

    run: str
    files: Workdir
    config: RunConfig
    names: tuple[str, ...]
    settings: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """A checkpoint, evaluated.

    Attributes:
      of: what was to be.
      step: updates that it has had.
      status: how its run ended: finished, diverged, or unfinished.
      result: what was found; None if it is damaged.
      examples: what the examples are known by that `result.by_example` is of; empty where there is none of it.
    """

    of: Evaluation
    step: int
    status: str
    result: Result | None
    examples: str = ""

    def remark(self) -> str:
        """Which checkpoint it is, and whether its measures equal, bit for bit, those of the end of training."""
        which = f"checkpoint of step {self.step} of {self.of.config.steps}"
        if self.of.settings:
            return f"{which}; with {', '.join(f'{key}={value}' for key, value in self.of.settings.items())}"
        recorded = self.of.files.read_outcome()
        if recorded is None or recorded.status != "finished" or recorded.step != self.step:
            return f"{which}; no recorded evaluation of this step to compare with"
        then = {m.name: m for m in recorded.measures}
        differing = [m.name for m in self.result.measures if m != then.get(m.name, m)]
        end = "the evaluation recorded at the end of training"
        found = f"differs from {end} in: {', '.join(differing)}" if differing else f"equal, bit for bit, to {end}"
        return f"{which}; {found}"


def evaluations(
    paths: Sequence[str | Path], names: Sequence[str] = (), settings: Mapping[str, str] | None = None
) -> list[Evaluation]:
    """What is to be evaluated of workdirs, and of all those that have checkpoints in directories of them.

    Args:
      names: evaluators, by default those of each run's config.
      settings: of the evaluation, as text, in the place of each run's own; see `run.with_evals`.

    Raises:
      ConfigError: there is no run, or one twice; an unknown evaluator or setting, or an evaluator of another task.
    """
    settings = settings or {}
    if not paths:
        raise ConfigError("--workdir: required")
    workdirs = [files for path in paths for files in _workdirs(Path(path))]
    places = collections.Counter(files.path.resolve() for files in workdirs)
    if twice := [str(path) for path, times in places.items() if times > 1]:
        raise ConfigError(f"--workdir: {twice[0]} is named twice")
    configs = [files.saved_config() for files in workdirs]
    called = collections.Counter(config.name for config in configs)
    out = []
    for files, config in zip(workdirs, configs, strict=True):
        config = with_evals(config, settings) if settings else config
        chosen = tuple(names) or config.evals.names
        for name in chosen:
            lookup(EVALS, name, "evaluator")
            if TASKS.get(name, config.model.task) != config.model.task:
                raise ConfigError(f"--evals: {name} scores {TASKS[name]}, the run's task is {config.model.task}")
        run = config.name if called[config.name] == 1 else str(files.path)
        out.append(Evaluation(run, files, config, chosen, settings))
    return out


def _workdirs(path: Path) -> list[Workdir]:
    """The run at `path`, or those with a checkpoint in the directories that it has."""
    if Workdir(path).config.exists() or not path.is_dir():
        return [Workdir(path)]
    inside = [files for files in map(Workdir, sorted(path.iterdir())) if files.config.exists()]
    return [files for files in inside if any(files.checkpoints.glob("[0-9]*"))] or [Workdir(path)]


def parse_steps(text: str | None) -> str | tuple[int, ...] | None:
    """`ALL`, or the steps of "100,200", in order; None of None: the last. Raises ConfigError."""
    if text in (None, ALL):
        return text
    words = text.split(",")
    if not all(word.isascii() and word.isdigit() for word in words):
        raise ConfigError(f"--steps: expected {ALL}, or steps such as 100,200, got {text!r}")
    return tuple(sorted({int(word) for word in words}))


def checkpoints_of(
    of: Evaluation, steps: str | Sequence[int] | None = None, say: Callable[[str], None] = to_stderr
) -> Iterator[Evaluated]:
    """Evaluates checkpoints of a run: the last one that is sound, or those of `steps`, compiled once.

    Args:
      steps: `ALL` are those that the workdir keeps; a damaged one is among them, without a result.
      say: told of each that is damaged.

    Raises:
      WorkdirError: there is no such checkpoint.
      CheckpointError: one that was asked for is damaged, or all are.
    """
    engine = Engine(of.config)
    wanted = (None,) if steps is None else saved_steps(of.files) if steps == ALL else steps
    if not wanted:
        raise WorkdirError(f"workdir {of.files.path}: holds no checkpoint")
    for step in wanted:
        try:
            yield _evaluated(of, engine, step, say)
        except DamagedError as error:
            if steps != ALL:
                raise
            say(str(error))
            yield _without_result(of, step)


def follow(
    of: Evaluation,
    seconds: float = 10.0,
    sleep: Callable[[float], None] = time.sleep,
    say: Callable[[str], None] = to_stderr,
) -> Iterator[Evaluated]:
    """Evaluates each checkpoint of a run that another process trains, from those there on, until the run has ended.

    It looks every `seconds`, and changes nothing. Where training is faster than it is, checkpoints that are kept no
    more are passed over, and `say` is told.
    """
    engine = Engine(of.config)
    seen: set[int] = set()
    while True:
        ended = of.files.read_outcome() is not None  # before the look: all that it wrote before that is seen
        new = [step for step in saved_steps(of.files) if step not in seen]
        for step in new:
            seen.add(step)
            try:
                yield _evaluated(of, engine, step, say)
            except (DamagedError, WorkdirError) as error:
                if step in saved_steps(of.files):
                    say(str(error))
                    yield _without_result(of, step)
                else:
                    say(f"{of.run}: the checkpoint of step {step} was removed before it could be evaluated")
        if ended and not new:
            return
        if not new:
            sleep(seconds)


def _evaluated(of: Evaluation, engine: Engine, step: int | None, say: Callable[[str], None]) -> Evaluated:
    state = saved_state(engine, of.files, step, say)
    subject = engine.subject(state, of.config.evals.split)
    result = evaluate(subject, of.names)
    return Evaluated(of, int(state.step), _status(of.files), result, subject.examples if result.by_example else "")


def _without_result(of: Evaluation, step: int) -> Evaluated:
    return Evaluated(of, step, _status(of.files), None)


def _status(files: Workdir) -> str:
    outcome = files.read_outcome()
    return "unfinished" if outcome is None else outcome.status
