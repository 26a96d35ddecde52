"""A config made executable, from scratch or from the last checkpoint of a workdir."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from sparsity import distributed, spmd
from sparsity.checkpoint import Checkpoints, to_stderr
from sparsity.config import ConfigError
from sparsity.data.imagenet import published_folders
from sparsity.evals.generate import read_prompts
from sparsity.evals.predict import Predict, make_predict
from sparsity.evals.result import Subject
from sparsity.run.config import RunConfig
from sparsity.run.workdir import Workdir, WorkdirError
from sparsity.train.losses import LOSSES
from sparsity.train.state import TrainState, abstract_state, guarded, init_state, shapes_and_specs
from sparsity.train.step import Objective, gradients, make_train_step


class Engine:
    """A config made executable: model, data, mesh, optimizer and their compiled functions.

    `devices` are those of the mesh, by default all; described ones serve to compile ahead of time, and their number
    alone for shapes and shardings.
    """

    def __init__(self, config: RunConfig, devices: list | int | None = None):
        self.config = config
        self.mesh = spmd.make_mesh(config.mesh, devices)
        ways = spmd.batch_devices(self.mesh)
        if config.batch % (ways * config.accumulate):
            shape = f"{ways} data x fsdp devices x {config.accumulate} microbatches"
            raise ConfigError(f"config.batch: {config.batch} is not divisible by {shape}")
        if devices is None and distributed.several() and self.mesh.size < jax.device_count():
            text = f"takes {self.mesh.size} devices, and {jax.process_count()} processes have {jax.device_count()}"
            raise ConfigError(f"config.mesh: {text}: all are needed, or some would have nothing to do")
        if config.evals.batch % ways:
            raise ConfigError(
                f"config.evals.batch: {config.evals.batch} is not divisible by {ways} data x fsdp devices"
            )
        if config.evals.imagenet_c is not None:  # now, not when training has ended
            published_folders(config.evals.imagenet_c)
            config.data.class_names()
        if "generate" in (*config.evals.names, *config.evals.during):
            read_prompts(config.evals.prompts)
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
        shapes, specs = shapes_and_specs(self.model, self.tx, self.inputs, self.config.guard)
        spmd.check_divisible(shapes.params, specs.params, self.mesh)
        return abstract_state(shapes, spmd.shardings(self.mesh, specs))

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
        config = self.config
        return init_state(self.model, self.tx, self.mesh, config.seed, self.inputs, self.placed, config.guard)

    def state_of(self, params: Any, model_state: Any) -> TrainState:
        """The state of step 0 with these parameters and running statistics, on this mesh; the optimizer is new."""
        placed = self.placed
        params, model_state = jax.device_put((params, model_state), (placed.params, placed.model_state))
        slots = jax.jit(self.tx.init, out_shardings=placed.opt_state)(params)
        state = TrainState(jax.device_put(jax.numpy.int32(0), placed.step), params, slots, model_state)
        guard = self.config.guard.init()
        return state if guard is None else guarded(state, jax.device_put(guard, placed.guard))

    def restore(self, checkpoints: Checkpoints, step: int | None = None) -> TrainState:
        """The state of a checkpoint (the latest by default) on this mesh."""
        return checkpoints.restore(self.abstract, step)

    @property
    def objective(self) -> Objective:
        """What training minimises."""
        config, loss = self.config, LOSSES[self.config.model.task]
        return Objective(self.model, config.model, loss, config.seed, config.noise, config.penalty, config.z_loss)

    def step(self, placed: TrainState, record: bool):
        """The compiled training step, with or without recording."""
        compute = gradients(self.objective, record, self.config.accumulate)
        return make_train_step(compute, self.tx, self.schedule, self.mesh, placed, self.config.guard)

    @functools.cached_property
    def predict(self) -> Predict:
        """The compiled forward pass of evaluations."""
        return self._predict(self.model)

    def _predict(self, module: nn.Module) -> Predict:
        config = self.config
        loss, keep = LOSSES[config.model.task], config.model.task != "language"
        return make_predict(
            module, config.model.inputs, loss, self.mesh, config.evals.batch, config.noise, config.seed, keep
        )

    def subject(self, state: TrainState, split: str) -> Subject:
        """The network of `state`, as evaluators see it, on the named split."""
        variables, step = {"params": state.params, **state.model_state}, int(jax.device_get(state.step))
        of = lambda predict: functools.partial(predict, variables, step=step)
        return Subject(
            predict=of(self.predict),
            source=self.config.data,
            load=self._load,
            model=self.config.model,
            params=state.params,
            mesh=self.mesh,
            noise=self.config.noise,
            config=dataclasses.replace(self.config.evals, split=split),
            seed=self.config.seed,
            predict_as=lambda model: of(self._predict(model.build(self.config.data.classes))),
            step=step,
        )


def last_state(
    files: Workdir,
    config: RunConfig | None = None,
    step: int | None = None,
    say: Callable[[str], None] = to_stderr,
) -> tuple[Engine, TrainState]:
    """The engine of a workdir's run, and the state of its last checkpoint that is sound; nothing on disk changes.

    Args:
      config: the run's own unless its evaluation has other settings.
      step: the only checkpoint that will do.
      say: told of each that is damaged.

    Raises:
      WorkdirError: the workdir holds no run, or no such checkpoint.
      CheckpointError: it is damaged, or all are.
    """
    engine = Engine(config or files.saved_config())
    return engine, saved_state(engine, files, step, say)


def saved_state(
    engine: Engine, files: Workdir, step: int | None = None, say: Callable[[str], None] = to_stderr
) -> TrainState:
    """The state of a workdir's last checkpoint that is sound, or of that of `step`, for the engine of its run.

    Raises:
      WorkdirError: there is no such checkpoint.
      CheckpointError: it is damaged, or all are.
    """
    with Checkpoints(files.checkpoints, read_only=True, say=say) as checkpoints:
        try:
            return engine.restore(checkpoints, step)
        except FileNotFoundError as error:
            which = "no checkpoint" if step is None else f"no checkpoint of step {step}"
            raise WorkdirError(f"workdir {files.path}: holds {which}") from error


def saved_steps(files: Workdir) -> list[int]:
    """The steps of a workdir's checkpoints, in order, damaged or not; nothing on disk changes."""
    with Checkpoints(files.checkpoints, read_only=True) as checkpoints:
        return checkpoints.steps()
