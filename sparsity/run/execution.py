"""Trains and evaluates a run: the engine, the loop, the checkpoints and the records, connected."""

from __future__ import annotations

import contextlib
import resource
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sparsity import config as config_lib
from sparsity import distributed, spmd
from sparsity.checkpoint import Checkpoints
from sparsity.data.pipeline import train_batches
from sparsity.evals import EVALS
from sparsity.evals.neurons import neurons
from sparsity.evals.result import ByExample, Measure, Result, Subject, mean_and_se
from sparsity.evals.sparsity import by_layer, merge, nonzero_fraction
from sparsity.run.config import RunConfig, directory_name
from sparsity.run.engine import Engine, last_state
from sparsity.run.workdir import Outcome, Workdir, WorkdirError
from sparsity.train.guard import Diverged
from sparsity.train.loop import Hooks, train
from sparsity.train.state import TrainState
from sparsity.train.step import StepMetrics
from sparsity.writer import (
    MetricsWriter,
    NoMetrics,
    NoProgress,
    Progress,
    check_sinks,
    damaged_lines,
    mirror,
    open_sinks,
    read_metrics,
    write_json,
)

# The evaluator that scores validations in training, by the model's task.
VALIDATION = {"classification": "accuracy", "reconstruction": "reconstruction", "language": "language"}


def evaluate(subject: Subject, names: tuple[str, ...]) -> Result:
    """Runs the named evaluators on one network and joins their results."""
    results = [EVALS[name](subject) for name in names]
    arrays: dict[str, Any] = {}
    by_example: dict[str, ByExample] = {}
    for result in results:
        arrays |= result.arrays
        by_example |= result.by_example
    return Result(tuple(m for r in results for m in r.measures), arrays, by_example)


def run(config: RunConfig, workdir: str | Path, progress: Progress | None = None, sinks: Sequence[str] = ()) -> Outcome:
    """Trains and evaluates `config` in `workdir`; resumes what is there, returns at once if it ended.

    The run that it starts from is run first, unless there is a checkpoint of its own: then it needs the other no more.
    A run that starts from one that diverged has diverged at step 0.

    Several processes call it together, with a workdir that all of them see; the first one claims and writes it, and
    alone has the measures of a run that had ended.

    Args:
      sinks: of `writer.SINKS`, by name: where the numbers of metrics.jsonl are shown too. No part of the config.

    Raises:
      WorkdirError: the workdir is unwritable, claimed, or belongs to another config.
      ConfigError: the config does not fit the devices, or a sink cannot be opened.
      Preempted: a stop signal came; the state is saved and the same call resumes.
    """
    progress = (progress or Progress()) if distributed.first() else NoProgress()
    check_sinks(sinks)
    files = Workdir(workdir)
    with contextlib.ExitStack() as claim:
        if (ended := _ended(files, config, claim)) is not None:
            if sinks and distributed.first():
                mirror(files.metrics, open_sinks(sinks, files.path, config.name, config_lib.to_dict(config)))
            return ended
        engine = Engine(config)
        if distributed.first():
            write_json(files.config, config_lib.to_dict(config))
        outcome = _train_and_evaluate(engine, files, progress, sinks)
        if distributed.first():
            files.write_outcome(outcome)
    return outcome


def _ended(files: Workdir, config: RunConfig, claim: contextlib.ExitStack) -> Outcome | None:
    """How the run ended; None if there is something left to do: then the first process holds the claim."""
    ended: Outcome | None = None

    def look() -> tuple[str, int] | None:
        nonlocal ended
        files.create()
        ended = files.ended(config)
        if ended is None:
            claim.enter_context(files.claim())
            ended = files.ended(config)  # another process may have held the claim until now, and ended the run
        return None if ended is None else (ended.status, ended.step)

    found = distributed.agreed(look)
    return ended if ended is not None or found is None else Outcome(*found, resumed=True)


def start_of(files: Workdir, config: RunConfig) -> Workdir | None:
    """Where the run stands that the one of `files` starts from; None if it starts from none."""
    return None if config.start is None else Workdir(files.path.absolute().parent / directory_name(config.start))


def _first_state(engine: Engine, files: Workdir, progress: Progress, sinks: Sequence[str]) -> TrainState | None:
    """The state of step 0: as the seed draws it, or with the last parameters of the run that this one starts from.

    That run is run first if there is something left to do of it. None if it diverged.
    """
    config, start = engine.config, start_of(files, engine.config)
    if start is None:
        return engine.new_state()[0]
    ended = run(config.start, start.path, progress, sinks)
    if ended.status == "diverged":
        progress.say(f"{config.name}: {config.start.name}, which it starts from, diverged")
        return None
    _, last = last_state(start, step=ended.step)  # its end, not a checkpoint before it
    return engine.state_of(last.params, last.model_state)


def _train_and_evaluate(engine: Engine, files: Workdir, progress: Progress, sinks: Sequence[str]) -> Outcome:
    config = engine.config
    with Checkpoints(files.checkpoints, config.keep, say=progress.say) as checkpoints:
        meta = {"config": config_lib.to_dict(config)}
        fresh = checkpoints.latest() is None
        state = _first_state(engine, files, progress, sinks) if fresh else engine.restore(checkpoints)
        if state is None:
            return Outcome("diverged", 0)
        start = int(jax.device_get(state.step))
        if start > config.steps:
            raise WorkdirError(f"config.steps: {config.steps} is below the {start} steps that {files.path} has done")
        # Before a save is under way: data that are missing leave no checkpoint, and TFDS, which changes how modules are
        # imported while it is, breaks the save's thread, which imports too.
        rows = spmd.rows_of_process(engine.mesh, config.batch)
        batches = train_batches(config.data, config.batch, config.seed, start, rows=rows)
        if fresh:
            checkpoints.save(0, state, meta)  # so that a last good checkpoint always exists
        if damaged := damaged_lines(files.metrics):
            progress.say(f"{files.metrics}: {damaged} damaged lines are left out")
        writer: MetricsWriter | NoMetrics = NoMetrics()
        if distributed.first():
            shown = open_sinks(sinks, files.path, config.name, meta["config"])
            writer = MetricsWriter(files.metrics, start, shown, progress.say)
        progress.start(config.name, start, config.steps)
        try:
            state = train(
                state,
                batches,
                engine.step(engine.placed, record=False),
                engine.step(engine.placed, record=True),
                engine.mesh,
                config.steps,
                config.every,
                _hooks(engine, checkpoints, meta, writer, progress),
                config.guard.skips,
            )
        except Diverged as diverged:
            progress.say(f"{config.name}: diverged at step {diverged.step}")
            return Outcome("diverged", diverged.step)
        finally:
            writer.close()
            progress.stop()
        result = evaluate(engine.subject(state, config.evals.split), config.evals.names)
    measures = (*result.measures, *_machine_measures(files))
    return Outcome("finished", config.steps, measures, result.arrays)


def _hooks(engine, checkpoints: Checkpoints, meta, writer: MetricsWriter | NoMetrics, progress: Progress) -> Hooks:
    """Connects the loop to the files, the progress bar and the evaluators."""

    def on_step(step, metrics):
        reported = {k: getattr(metrics, k) for k in ("loss", "accuracy", "penalty", "grad_norm", "learning_rate")}
        values = {k: float(v) for k, v in reported.items() if v is not None}
        if metrics.skipped is not None:
            values |= {"skipped": int(metrics.skipped), "spike": int(metrics.spike)}
        writer.write("train", step, **values)
        if line := _left_out(engine.config, step, metrics):
            progress.say(line)
        progress.show(**{k: f"{values[k]:.3f}" for k in ("loss", "accuracy") if k in values})
        progress.update(step + 1)

    def on_record(step, record):
        layers, fractions = {}, []
        for layer, stats in merge([by_layer(record.sparsity)]).items():
            mean, se, n = nonzero_fraction(stats)
            fractions.append(mean)
            q = float(stats.variance_sum / stats.examples)
            above = (stats.above_T / stats.examples).tolist()
            z = float(stats.power_3xF[0].mean() / stats.tokens)  # over units and tokens
            layers[layer] = {"nonzero": mean, "se": se, "n": n, "above": above, "q": q, "mean": z}
            layers[layer]["histogram"] = stats.histogram.tolist()
        writer.write("sparsity", step, layers=layers)
        writer.write("gradients", step, norms={name: norm.tolist() for name, norm in record.grad_norms.items()})
        writer.write("weights", step, modules=jax.tree.map(lambda x: x.tolist(), record.weights))
        progress.show(nonzero=f"{100 * np.mean(fractions):.1f}%")

    def on_eval(step, state):
        subject = engine.subject(state, "validation")
        always = (VALIDATION[engine.config.model.task], "sparsity")
        measures = evaluate(subject, (*always, *engine.config.evals.during)).measures
        measures += neurons(subject).measures
        writer.write("validation", step, **{m.name: m.value for m in measures})

    def on_speed(step, seconds, n):
        writer.write("speed", step, seconds_per_step=seconds, n=n)

    def save(step, state):
        checkpoints.save(step, state, meta)

    return Hooks(on_step, on_record, on_eval, on_speed, save)


def _left_out(config: RunConfig, step: int, metrics: StepMetrics) -> str:
    """Says that the guard has left out a step, and why; empty if it has not."""
    if metrics.skipped is not None and not metrics.finite and metrics.skipped <= config.guard.skips:
        times = f"{metrics.skipped} of {config.guard.skips} times"
        return f"{config.name}: step {step} is left out, its loss or gradient is not finite ({times})"
    return f"{config.name}: step {step} is left out, its loss {metrics.loss:.4g} is a spike" if metrics.spike else ""


def _machine_measures(files: Workdir) -> tuple[Measure, ...]:
    """Speed and memory: figures of this machine, not of the network; never bit-reproducible."""
    seconds = [r.get("seconds_per_step") for r in read_metrics(files.metrics) if r["kind"] == "speed"]
    windows = [1 / s for s in seconds if isinstance(s, float) and s > 0]  # what else stands there, a disk has made
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    memory = kilobytes / 1024**2 if sys.platform != "darwin" else kilobytes / 1024**3
    text = "most resident memory on the host that the process ever had, earlier runs of the same process included"
    out = [Measure("peak_memory_gib", memory, None, 1, text, "GiB")]
    if windows:
        text = "training steps per second, mean over n windows of plain steps (no compile, record, eval or save)"
        out.insert(0, Measure("steps_per_second", *mean_and_se(windows), len(windows), text, "steps/s"))
    return tuple(out)
