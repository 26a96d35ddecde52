"""One run, whole: a config in, a trained and evaluated network in a workdir out."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import functools
import os
import re
import resource
import socket
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from sparsity import config as config_lib
from sparsity import spmd
from sparsity.checkpoint import Checkpoints
from sparsity.config import ConfigError, one_of
from sparsity.data import SOURCES
from sparsity.data.imagenet import published_folders
from sparsity.data.pipeline import train_batches
from sparsity.evals import EVALS, TASKS
from sparsity.evals.neurons import neurons
from sparsity.evals.predict import Predict, make_predict
from sparsity.evals.result import EvalConfig, Measure, Result, Subject, mean_and_se
from sparsity.evals.sparsity import by_layer, merge, nonzero_fraction
from sparsity.models import MODELS, shape_of
from sparsity.ops.noise import NOISES, NoiseConfig
from sparsity.spmd import MeshConfig
from sparsity.train.guard import Diverged
from sparsity.train.loop import Hooks, Intervals, train
from sparsity.train.losses import LOSSES
from sparsity.train.optimizers import OptimizerConfig
from sparsity.train.penalties import PENALTIES, Penalty
from sparsity.train.state import TrainState, abstract_state, init_state, state_specs
from sparsity.train.step import Objective, gradients, make_train_step
from sparsity.writer import MetricsWriter, Progress, read_json, read_metrics, write_json

# The evaluator that scores validations in training, by the model's task.
VALIDATION = {"classification": "accuracy", "reconstruction": "reconstruction", "language": "language"}


class WorkdirError(ConfigError):
    """A workdir that cannot be used: the message is one line, fit to be printed alone."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides a run.

    Attributes:
      name: what the run is called; its directory in a study is `<name>-<hash of this config>`.
      steps: parameter updates.
      batch: examples per update, over all devices.
      seed: of initialisation, dropout, data order and evaluation noise.
      accumulate: microbatches a batch is split into; the update is the same.
      keep: checkpoints kept.
      noise: added to what the model reads first, in training (and in evaluation if `evals.noise`).
      penalty: on activations, added to the loss in training.
      z_loss: weight of log(Z)^2 of each token, added to the loss in training, which keeps the sum Z of the exponentials
        of a language model's logits near 1; T5's is 1e-4. It is reported as (part of) the penalty.
      start: the run whose last parameters this one begins with, in the place of those that the seed draws; the step is
        0 and the optimizer new. It stands beside this run's workdir, as `directory_name` calls it, and is run first if
        it is not there.
    """

    name: str
    steps: int
    batch: int
    model: Any = one_of(MODELS)
    data: Any = one_of(SOURCES)
    optimizer: OptimizerConfig
    evals: EvalConfig
    mesh: MeshConfig = MeshConfig()
    every: Intervals = Intervals()
    seed: int = 0
    accumulate: int = 1
    keep: int = 2
    noise: NoiseConfig | None = one_of(NOISES, None, later=True)
    penalty: Penalty | None = one_of(PENALTIES, None, later=True)
    z_loss: float = config_lib.later(0.0)
    start: RunConfig | None = config_lib.later(None)

    def __post_init__(self):
        for field in ("steps", "batch", "accumulate", "keep"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field}: must be at least 1, got {getattr(self, field)}")
        if not re.fullmatch(r"[\w.-]+", self.name):
            raise ValueError(f'name: letters, digits, "_", "-" and "." (it names a directory), got "{self.name}"')
        if self.seed < 0:
            raise ValueError(f"seed: must be at least 0, got {self.seed}")
        if self.batch % self.accumulate:
            raise ValueError(f"accumulate: {self.accumulate} does not divide the batch {self.batch}")
        for field in ("names", "during"):
            for name in getattr(self.evals, field):
                if name not in EVALS:
                    raise ValueError(f'evals.{field}: unknown evaluator "{name}"{config_lib.nearest(name, EVALS)}')
                if TASKS.get(name, self.model.task) != self.model.task:
                    task = self.model.task
                    raise ValueError(f"evals.{field}: {name} scores {TASKS[name]}, and the model's task is {task}")
        if self.evals.imagenet_c is not None and self.model.task != "classification":
            raise ValueError(f"evals.imagenet_c: the model's task is {self.model.task}, not classification")
        if self.data.classes is None and self.model.task == "classification":
            raise ValueError(f"data: {type(self.data).__name__} has no labels, and the model is a classifier")
        for name in self.model.inputs:
            if name not in self.data.inputs:
                has = ", ".join(self.data.inputs)
                raise ValueError(f"data: {type(self.data).__name__} has no {name} for the model to read, only {has}")
        if self.noise is not None and self.data.inputs[self.model.inputs[0]].dtype != np.float32:
            raise ValueError(
                f"noise: the model reads {self.model.inputs[0]}, which takes none; see the MLP's own noise"
            )
        if self.penalty is not None:
            self.penalty.check(self.model)
        if self.z_loss < 0 or (self.z_loss and self.model.task != "language"):
            raise ValueError(f"z_loss: must be at least 0, and 0 but for language models, got {self.z_loss}")
        try:
            self.model.check_input(self.input_shape)
        except ValueError as error:
            raise ValueError(f"model.{error}") from error

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Sizes of what the model reads, of one example: the shape of an image, the lengths of inputs and targets."""
        return shape_of(self.model, self.data)

    def resumable_changes(self) -> tuple[str, ...]:
        """Key prefixes that may differ when a workdir is resumed: they do not change past steps."""
        horizon = () if self.optimizer.schedule.horizon_dependent else ("steps",)
        return ("every.", "evals.", "keep", *horizon)


def run_config(section: Mapping[str, Any], chosen: Iterable[str] = ()) -> RunConfig:
    """The typed config of a run from a ConfigDict or dict. Raises ConfigError, in one line.

    `chosen` are the dotted keys that the user set over a config file: choosing another sparsifier
    by name, say, drops the settings of the file's own.
    """
    return config_lib.build(RunConfig, config_lib.without_stale(RunConfig, section, frozenset(chosen)))


def with_evals(config: RunConfig, settings: Mapping[str, str]) -> RunConfig:
    """`config` with other settings of its evaluation, as text: `{"split": "validation", "rises": "(0.01, 0.05)"}`.

    Raises:
      ConfigError: an unknown key, or a value that it cannot have.
    """
    section = config_lib.to_dict(config)
    section["evals"] |= {key: config_lib.parsed(value) for key, value in settings.items()}
    return run_config(section)


def smoke(config: RunConfig) -> RunConfig:
    """Two steps of `config` on noise at reduced width: it tests that every part works, and measures nothing.

    Replaced are the name, the lengths (steps, batches, intervals), the model by a narrow and shallow one of the
    same kind, and the data by its `mock()` of the same shapes and classes; noise is made where ImageNet-C is named.
    So is all this of the run that it starts from. The rest stays: sparsifier (Top-k's k in proportion), noise,
    optimizer, schedule, microbatches, evaluators, mesh and seed. Both steps record, so it is the recording step that
    runs.

    Raises:
      ConfigError: the mesh does not fit the devices.
    """
    devices = spmd.make_mesh(config.mesh).shape["data"]
    batch = -(-8 // devices) * devices
    return dataclasses.replace(
        config,
        name=f"{config.name}_smoke",
        steps=2,
        batch=batch * config.accumulate,
        model=config.model.reduced(config.mesh.model),
        data=config.data.mock(),
        evals=dataclasses.replace(config.evals, batch=batch, imagenet_c=None),
        every=Intervals(record=1, eval=1, checkpoint=1, speed=1),
        start=None if config.start is None else smoke(config.start),
    )


def directory_name(config: RunConfig) -> str:
    """<name>-<config hash>: what the directory of a run is called that others look for."""
    return f"{config.name}-{config_lib.config_hash(config)}"


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


class Engine:
    """A config made executable: model, data, mesh, optimizer and their compiled functions.

    `devices` are those of the mesh, by default all; described ones serve to compile ahead of time.
    """

    def __init__(self, config: RunConfig, devices: list | None = None):
        self.config = config
        self.mesh = spmd.make_mesh(config.mesh, devices)
        if config.batch % (self.mesh.shape["data"] * config.accumulate):
            shape = f"{self.mesh.shape['data']} data devices x {config.accumulate} microbatches"
            raise ConfigError(f"config.batch: {config.batch} is not divisible by {shape}")
        if jax.process_count() > 1:
            raise ConfigError(f"{jax.process_count()} processes: only one is supported as yet")
        if config.evals.batch % self.mesh.shape["data"]:
            raise ConfigError(
                f"config.evals.batch: {config.evals.batch} is not divisible by {self.mesh.shape['data']} data devices"
            )
        if config.evals.imagenet_c is not None:  # now, not when training has ended
            published_folders(config.evals.imagenet_c)
            config.data.class_names()
        self.model = config.model.build(config.data.classes)
        self.tx, self.schedule = config.optimizer.build(config.steps)
        specs = (config.data.inputs[name] for name in config.model.inputs)
        self.inputs = tuple(np.zeros((1, *spec.shape), spec.dtype) for spec in specs)
        self._load = functools.cache(config.data.load)
        self.abstract = self._abstract_state()
        if config.start is not None:
            self._check_start(Engine(config.start, devices))

    def _abstract_state(self) -> TrainState:
        """Shapes, dtypes and shardings of the state; nothing is computed. Raises ConfigError."""
        specs = state_specs(self.model, self.tx, self.inputs)
        abstract = abstract_state(self.model, self.tx, spmd.shardings(self.mesh, specs), self.inputs)
        spmd.check_divisible(abstract.params, specs.params, self.mesh)
        return abstract

    def _check_start(self, start: Engine) -> None:
        """Raises ConfigError if the parameters of the run that this one starts from are not those of this one."""
        shapes = lambda state: {
            jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
            for path, leaf in jax.tree_util.tree_leaves_with_path((state.params, state.model_state))
        }
        ours, theirs = shapes(self.abstract), shapes(start.abstract)
        differing = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
        if differing:
            name = differing[0]
            there, here = (of.get(name, "none") for of in (theirs, ours))
            raise ConfigError(
                f"config.start: other parameters than here, {name.partition('/')[2]}: {there}, here {here}"
            )

    @property
    def placed(self) -> TrainState:
        """The shardings of the state."""
        return jax.tree.map(lambda leaf: leaf.sharding, self.abstract)

    def new_state(self) -> tuple[TrainState, TrainState]:
        """The state of step 0, and its shardings."""
        return init_state(self.model, self.tx, self.mesh, self.config.seed, self.inputs)

    def state_of(self, params: Any, model_state: Any) -> TrainState:
        """The state of step 0 with these parameters and running statistics, on this mesh; the optimizer is new."""
        placed = self.placed
        params, model_state = jax.device_put((params, model_state), (placed.params, placed.model_state))
        slots = jax.jit(self.tx.init, out_shardings=placed.opt_state)(params)
        return TrainState(jax.device_put(jax.numpy.int32(0), placed.step), params, slots, model_state)

    def restore(self, checkpoints: Checkpoints, step: int | None = None) -> TrainState:
        """The state of a checkpoint (the latest by default) on this mesh."""
        return checkpoints.restore(self.abstract, step)

    def step(self, placed: TrainState, record: bool):
        """The compiled training step, with or without recording."""
        config = self.config
        loss = LOSSES[config.model.task]
        objective = Objective(self.model, config.model, loss, config.seed, config.noise, config.penalty, config.z_loss)
        compute = gradients(objective, record, config.accumulate)
        return make_train_step(compute, self.tx, self.schedule, self.mesh, placed)

    @functools.cached_property
    def predict(self) -> Predict:
        """The compiled forward pass of evaluations."""
        config = self.config
        loss, keep = LOSSES[config.model.task], config.model.task != "language"
        return make_predict(
            self.model, config.model.inputs, loss, self.mesh, config.evals.batch, config.noise, config.seed, keep
        )

    def subject(self, state: TrainState, split: str) -> Subject:
        """The network of `state`, as evaluators see it, on the named split."""
        variables = {"params": state.params, **state.model_state}
        return Subject(
            predict=functools.partial(self.predict, variables, step=int(jax.device_get(state.step))),
            source=self.config.data,
            load=self._load,
            model=self.config.model,
            params=state.params,
            noise=self.config.noise,
            config=dataclasses.replace(self.config.evals, split=split),
            seed=self.config.seed,
        )


def last_state(files: Workdir, config: RunConfig | None = None) -> tuple[Engine, TrainState]:
    """The engine of a workdir's run, and the state of its last checkpoint; nothing on disk changes.

    `config` is the run's own unless its evaluation has other settings.

    Raises:
      WorkdirError: the workdir holds no run, or no checkpoint.
    """
    engine = Engine(config or files.saved_config())
    with Checkpoints(files.checkpoints, read_only=True) as checkpoints:
        if checkpoints.latest() is None:
            raise WorkdirError(f"workdir {files.path}: holds no checkpoint")
        return engine, engine.restore(checkpoints)


def evaluate(subject: Subject, names: tuple[str, ...]) -> Result:
    """Runs the named evaluators on one network and joins their results."""
    results = [EVALS[name](subject) for name in names]
    arrays: dict[str, Any] = {}
    for result in results:
        arrays |= result.arrays
    return Result(tuple(m for r in results for m in r.measures), arrays)


def run(config: RunConfig, workdir: str | Path, progress: Progress | None = None) -> Outcome:
    """Trains and evaluates `config` in `workdir`; resumes what is there, returns at once if it ended.

    A run that starts from one that diverged has diverged at step 0.

    Raises:
      WorkdirError: the workdir is unwritable, claimed, or belongs to another config.
      ConfigError: the config does not fit the devices.
      Preempted: a stop signal came; the state is saved and the same call resumes.
    """
    progress = progress or Progress()
    files = Workdir(workdir)
    files.create()
    if (ended := files.ended(config)) is not None:
        return ended
    with files.claim():
        # Again: another process may have held the claim until now, and ended the run.
        if (ended := files.ended(config)) is not None:
            return ended
        engine = Engine(config)
        write_json(files.config, config_lib.to_dict(config))
        start = _start_of(files, config)
        if start is not None and run(config.start, start.path, progress).status == "diverged":
            progress.say(f"{config.name}: {config.start.name}, which it starts from, diverged")
            outcome = Outcome("diverged", 0)
        else:
            outcome = _train_and_evaluate(engine, files, progress)
        files.write_outcome(outcome)
    return outcome


def _start_of(files: Workdir, config: RunConfig) -> Workdir | None:
    """Where the run stands that the one of `files` starts from; None if it starts from none."""
    return None if config.start is None else Workdir(files.path.parent / directory_name(config.start))


def _first_state(engine: Engine, files: Workdir) -> TrainState:
    """The state of step 0: as the seed draws it, or with the last parameters of the run that this one starts from."""
    start = _start_of(files, engine.config)
    if start is None:
        return engine.new_state()[0]
    _, last = last_state(start)
    return engine.state_of(last.params, last.model_state)


def _train_and_evaluate(engine: Engine, files: Workdir, progress: Progress) -> Outcome:
    config = engine.config
    with Checkpoints(files.checkpoints, config.keep) as checkpoints:
        meta = {"config": config_lib.to_dict(config)}
        fresh = checkpoints.latest() is None
        state = _first_state(engine, files) if fresh else engine.restore(checkpoints)
        start = int(jax.device_get(state.step))
        if start > config.steps:
            raise WorkdirError(f"config.steps: {config.steps} is below the {start} steps that {files.path} has done")
        # Before a save is under way: data that are missing leave no checkpoint, and TFDS, which changes how modules are
        # imported while it is, breaks the save's thread, which imports too.
        batches = train_batches(config.data, config.batch, config.seed, start)
        if fresh:
            checkpoints.save(0, state, meta)  # so that a last good checkpoint always exists
        writer = MetricsWriter(files.metrics, start)
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


def _hooks(engine, checkpoints: Checkpoints, meta, writer: MetricsWriter, progress: Progress) -> Hooks:
    """Connects the loop to the files, the progress bar and the evaluators."""

    def on_step(step, metrics):
        reported = {k: getattr(metrics, k) for k in ("loss", "accuracy", "penalty", "grad_norm", "learning_rate")}
        values = {k: float(v) for k, v in reported.items() if v is not None}
        writer.write("train", step, **values)
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


def _machine_measures(files: Workdir) -> tuple[Measure, ...]:
    """Speed and memory: figures of this machine, not of the network; never bit-reproducible."""
    windows = [1 / r["seconds_per_step"] for r in read_metrics(files.metrics) if r["kind"] == "speed"]
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    memory = kilobytes / 1024**2 if sys.platform != "darwin" else kilobytes / 1024**3
    text = "most resident memory on the host that the process ever had, earlier runs of the same process included"
    out = [Measure("peak_memory_gib", memory, None, 1, text, "GiB")]
    if windows:
        text = "training steps per second, mean over n windows of plain steps (no compile, record, eval or save)"
        out.insert(0, Measure("steps_per_second", *mean_and_se(windows), len(windows), text, "steps/s"))
    return tuple(out)
