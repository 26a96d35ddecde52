"""The config of a run, typed and checked, and its smoke test."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from sparsity import config as config_lib
from sparsity import spmd
from sparsity.config import ConfigError, one_of
from sparsity.data import SOURCES
from sparsity.evals import EVALS, TASKS
from sparsity.evals.imposed import check_imposable
from sparsity.evals.inference import check_inferable
from sparsity.evals.result import EvalConfig
from sparsity.models import MODELS, shape_of
from sparsity.ops.noise import NOISES, NoiseConfig
from sparsity.spmd import MeshConfig
from sparsity.train.guard import GuardConfig
from sparsity.train.loop import Intervals
from sparsity.train.optimizers import OptimizerConfig
from sparsity.train.penalties import PENALTIES, Penalty

_STEPS = (1 << 31) - 1  # a state counts them in 32 bits
_NUMBERS = 1 << 28  # of an example, at most: 1 GiB
_LETTERS = 200  # of a name, at most: file systems take 255 with what is put behind it


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
      guard: which steps make no update: by default none, and the first that is not finite ends the run.
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
    guard: GuardConfig = config_lib.later(GuardConfig())

    def __post_init__(self):
        for field in ("steps", "batch", "accumulate", "keep"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field}: must be at least 1, got {getattr(self, field)}")
        if self.steps > _STEPS:
            raise ValueError(f"steps: no more than {_STEPS} are counted, got {self.steps}")
        if not re.fullmatch(r"[\w.-]+", self.name):
            raise ValueError(f'name: letters, digits, "_", "-" and "." (it names a directory), got "{self.name}"')
        if len(self.name.encode()) > _LETTERS:
            raise ValueError(f"name: no more than {_LETTERS} bytes name a directory, got {len(self.name.encode())}")
        if self.seed < 0:
            raise ValueError(f"seed: must be at least 0, got {self.seed}")
        if self.batch % self.accumulate:
            raise ValueError(f"accumulate: {self.accumulate} does not divide the batch {self.batch}")
        for field, part in vars(self.model).items():
            if getattr(part, "inference", None) is not None:
                raise ValueError(f"model.{field}.inference: it is of decoding alone, see decode.weights.prepared")
        for field in ("names", "during"):
            for name in getattr(self.evals, field):
                if name not in EVALS:
                    raise ValueError(f'evals.{field}: unknown evaluator "{name}"{config_lib.nearest(name, EVALS)}')
                if TASKS.get(name, self.model.task) != self.model.task:
                    task = self.model.task
                    raise ValueError(f"evals.{field}: {name} scores {TASKS[name]}, and the model's task is {task}")
        if "inference" in self.evals.during:
            raise ValueError("evals.during: inference is measured when training has ended, by evals.names")
        if "inference" in self.evals.names:
            check_inferable(self.model, self.evals)
        if self.evals.imposed_k:
            check_imposable(self.model)
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
        if self.mesh.sequence > 1:
            shape, n = self.input_shape, self.mesh.sequence
            for length in shape if self.model.task == "language" else (self.model.tokens(shape),):
                if length % n:
                    raise ValueError(
                        f"mesh.sequence: {n} devices do not divide the length {length} of the model's input"
                    )
        for name in self.model.inputs:
            shape = self.data.inputs[name].shape
            if math.prod(shape) > _NUMBERS:
                raise ValueError(f"data: {name} of shape {list(shape)} has more than {_NUMBERS} numbers an example")

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
    try:
        if hasattr(section, "items"):
            section = config_lib.without_stale(RunConfig, section, frozenset(chosen))
        return config_lib.build(RunConfig, section)
    except RecursionError as error:
        raise ConfigError("config.start: runs start from one another without end, or nearly") from error


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
    So is all this of the run that it starts from. The rest stays: sparsifier (every k of Top-k in proportion), noise,
    optimizer, schedule, microbatches, evaluators, mesh and seed. Both steps record, so it is the recording step that
    runs.

    Raises:
      ConfigError: the mesh does not fit the devices, or no narrow model.
    """
    devices = spmd.batch_devices(spmd.make_mesh(config.mesh))
    batch, parts = -(-8 // devices) * devices, math.lcm(config.mesh.model, config.mesh.fsdp)
    try:
        model = config.model.reduced(parts)
    except ValueError as error:
        raise ConfigError(f"config.mesh: {parts} devices do not fit a narrow model: {error}") from error
    ks = config.evals.imposed_k
    if ks:  # those that leave units out still do
        ks = tuple(dict.fromkeys(max(1, k * model.mlp.d_ff // config.model.mlp.d_ff) for k in ks))
    return dataclasses.replace(
        config,
        name=f"{config.name}_smoke",
        steps=2,
        batch=batch * config.accumulate,
        model=model,
        data=config.data.mock(),
        evals=dataclasses.replace(config.evals, batch=batch, imagenet_c=None, imposed_k=ks),
        every=Intervals(record=1, eval=1, checkpoint=1, speed=1),
        start=None if config.start is None else smoke(config.start),
    )


def directory_name(config: RunConfig) -> str:
    """<name>-<config hash>: what the directory of a run is called that others look for."""
    return f"{config.name}-{config_lib.config_hash(config)}"
