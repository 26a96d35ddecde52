"""What a training step takes on every device, found out before it runs: what `launch.train --dry_run` prints.

Everything comes from shapes: nothing is computed, no parameter is made and no data are read, so that a laptop plans for
a pod. What the network keeps for its backward pass is estimated from the traced program; where there is a compiler for
the devices, it says what the compiled step needs and exchanges. The step is one that records nothing; those that record
take somewhat more.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental.compilation_cache import compilation_cache
from jax.extend.core import Var

from sparsity import axes
from sparsity.run.collectives import Collective, Total, collectives, totals
from sparsity.run.config import RunConfig
from sparsity.run.engine import Engine
from sparsity.run.topology import Machine

ESTIMATED = "estimated: what the traced program keeps for the backward pass, split like the batch alone"
COMPILED = "from the compiler: all that the step needs beside state and batch, gradients and workspace too"
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a run takes.

    Attributes:
      parameters: numbers that training changes.
      training_flops: three times the forward matrix products (Kaplan et al. 2020), times tokens and steps.
      state_bytes: of parameters and optimizer state, counted once wherever they are placed.
    """

    parameters: int
    training_flops: float
    state_bytes: int


def cost(config: RunConfig, devices: list | int | None = None) -> Cost:
    """The cost of a run, from shapes alone: nothing is computed, no data are read.

    Raises:
      ConfigError: the config does not fit the devices (all of them by default).
    """
    return _cost(Engine(config, devices))


def _cost(engine: Engine) -> Cost:
    config, state = engine.config, engine.abstract
    shape, classes = config.input_shape, config.data.classes
    flops = 3 * config.model.flops(shape, classes) * config.model.tokens(shape) * config.batch * config.steps
    return Cost(
        sum(math.prod(p.shape) for p in jax.tree.leaves(state.params)),
        flops,
        sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(state)),
    )


@dataclasses.dataclass(frozen=True)
class Program:
    """What the compiler says of a step.

    Attributes:
      peak: bytes on each device at the worst moment, the state among them; None if it does not say.
      given: of these, state and batch; None as before.
      exchanged: between devices; None if the program was refused.
      seconds: that compiling took.
      refusal: why there is no program: it needs more memory than there is. Empty if there is one.
    """

    peak: int | None
    given: int | None
    exchanged: tuple[Collective, ...] | None
    seconds: float
    refusal: str = ""


@dataclasses.dataclass(frozen=True)
class StepPlan:
    """A training step of a run on a machine. Bytes are those of each device.

    Attributes:
      name: of the run.
      machine: that it is planned for.
      mesh: devices along each axis.
      parameters: numbers that training changes, over all devices.
      flops: of a step, over all devices: three times the forward matrix products, whatever is computed again.
      parameter_bytes: of parameters, and as much again of their gradients.
      optimizer_bytes: of the optimizer's state, of running statistics and the step's number.
      kept_bytes: estimated: what the backward pass needs of the forward pass.
      program: what the compiler says; None where it was not asked.
    """

    name: str
    machine: Machine
    mesh: Mapping[str, int]
    parameters: int
    flops: float
    parameter_bytes: int
    optimizer_bytes: int
    kept_bytes: int
    program: Program | None

    @property
    def state_bytes(self) -> int:
        """Of what stays on a device from step to step."""
        return self.parameter_bytes + self.optimizer_bytes

    @property
    def peak_bytes(self) -> int:
        """At the worst moment: the compiler's figure, or the estimate, state, gradients and what is kept."""
        if self.program is not None and self.program.peak is not None:
            return self.program.peak
        return self.state_bytes + self.parameter_bytes + self.kept_bytes

    @property
    def activation_bytes(self) -> int:
        """Of activations: by the compiler all that a step needs beside what it is given; else the estimate."""
        if self.program is None or self.program.peak is None:
            return self.kept_bytes
        return self.program.peak - (self.state_bytes if self.program.given is None else self.program.given)

    @property
    def fits(self) -> bool | None:
        """Whether the step fits into a device's memory; None where nothing says how much that is."""
        if self.program is not None and self.program.refusal:
            return False
        return None if self.machine.memory is None else self.peak_bytes <= self.machine.memory

    @property
    def exchanged(self) -> list[Total] | None:
        """What devices exchange in a step, by kind; None where it is not known."""
        if math.prod(self.mesh.values()) == 1:
            return []
        return None if self.program is None or self.program.exchanged is None else totals(self.program.exchanged)

    def text(self) -> str:
        """The plan for the eye."""
        devices, chip = math.prod(self.mesh.values()), self.machine.chip
        mesh = " x ".join(f"{axis} {size}" for axis, size in self.mesh.items() if size > 1) or "one device"
        lines = [
            f"a training step of {self.name}; nothing has been run",
            f"machine         {self.machine.name}; mesh: {mesh}",
            f"parameters      {self.parameters:,}",
            f"FLOPs           {self.flops:.3g} in matrix products, three times those of the forward pass",
        ]
        if chip is not None:
            products, state = self.flops / devices / chip.flops, 2 * self.state_bytes / chip.bandwidth
            lines.append(
                f"at least        {1e3 * products:.3g} ms for the products at {chip.flops / 1e12:g} TFLOP/s a device, "
                f"{1e3 * state:.3g} ms to read and write the state at {chip.bandwidth / 1e9:g} GB/s"
            )
        compiled = self.program is not None and self.program.peak is not None
        lines += [
            "on each device",
            f"  parameters    {_bytes(self.parameter_bytes)}",
            f"  optimizer     {_bytes(self.optimizer_bytes)}",
            f"  activations   {_bytes(self.activation_bytes)}  {COMPILED if compiled else ESTIMATED}",
            f"  at the peak   {_bytes(self.peak_bytes)}  {self._verdict(compiled)}",
            *self._exchanges(),
        ]
        return "\n".join(lines)

    def _verdict(self, compiled: bool) -> str:
        known = "the compiler's figure" if compiled else "estimated: state, gradients and activations"
        if self.program is not None and self.program.refusal:
            return f"it does NOT fit: {self.program.refusal}"
        if self.machine.memory is None:
            return f"{known}; how much memory a device has is not known"
        verdict = {True: "it fits", False: "it does NOT fit"}[self.fits]
        return f"of {self.machine.memory / 2**30:.4g} GiB: {verdict} ({known})"

    def _exchanges(self) -> list[str]:
        """The lines on what devices exchange, and on the compiler."""
        asked = self.program is not None
        known = f"compiled in {self.program.seconds:.0f} s by {self.machine.compiler}" if asked else ""
        if self.exchanged is None:
            why = "the program was refused" if asked else self.machine.missing
            return [f"exchanged       not known: {why}", *([known] if asked else [])]
        if not self.exchanged:
            return ["exchanged       nothing", known or f"not compiled: {self.machine.missing}"]
        rows = [
            f"  {f'{t.kind}, {t.when}' if t.when else t.kind:<34}{t.times:>7,} {_bytes(t.bytes)} {_bytes(t.sent)}"
            for t in self.exchanged
        ]
        head = f"  {'exchanged in a step by each device':<34}{'times':>7} {'arrays':>13} {'sent, in rings':>14}"
        return [head, *rows, known]


def plan_step(config: RunConfig, machine: Machine) -> StepPlan:
    """The plan of a training step on a machine, compiled if it has a compiler. Nothing is run.

    Raises:
      ConfigError: the config does not fit the machine.
    """
    engine = Engine(config, machine.devices)
    state, run_cost = engine.abstract, _cost(engine)
    return StepPlan(
        name=config.name,
        machine=machine,
        mesh=dict(engine.mesh.shape),
        parameters=run_cost.parameters,
        flops=run_cost.training_flops / config.steps,
        parameter_bytes=_held(state.params),
        optimizer_bytes=_held((state.step, state.opt_state, state.model_state)),
        kept_bytes=kept_bytes(engine),
        program=None if machine.compiler is None else _compile(engine),
    )


def _held(tree: Any) -> int:
    """Bytes of one device's part of the arrays of `tree`."""
    part = lambda leaf: math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    return sum(map(part, jax.tree.leaves(tree)))


def batch_shapes(config: RunConfig, batch: int | None = None) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of a training batch of `batch` examples, the config's by default; no data are read."""
    source = config.data.mock()
    example = source.model_input(source.augment(source.load("train")[0], np.random.default_rng(0)))
    rows = config.batch if batch is None else batch
    return {name: jax.ShapeDtypeStruct((rows, *np.shape(x)), np.asarray(x).dtype) for name, x in example.items()}


def kept_bytes(engine: Engine) -> int:
    """Bytes that a device keeps of the forward pass for the backward pass, by the traced program.

    It is what differentiation stores, of a device's share of a microbatch, parameters left out. That hidden units are
    split too makes it less, as does what XLA computes again; what a rematerialised layer needs for itself comes on top.
    """
    config, state = engine.config, engine.abstract
    split = jax.sharding.NamedSharding(engine.mesh, axes.spec(("batch",)))
    rows = split.shard_shape((config.batch // config.accumulate,))[0]

    def residuals(params, model_state, batch, step):
        objective = lambda p: engine.objective(p, model_state, batch, step, step, record=False)
        _, pull_back, _ = jax.vjp(objective, params, has_aux=True)
        return jax.tree.leaves(pull_back)

    unplaced = lambda tree: jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
    params, model_state, step = unplaced((state.params, state.model_state, state.step))
    jaxpr = jax.make_jaxpr(residuals)(params, model_state, batch_shapes(config, rows), step).jaxpr
    given = {id(v) for v in (*jaxpr.invars, *jaxpr.constvars)}
    kept = {id(v): v.aval for v in jaxpr.outvars if isinstance(v, Var) and id(v) not in given}
    return sum(math.prod(a.shape) * a.dtype.itemsize for a in kept.values())


def _compile(engine: Engine) -> Program:
    """What the compiler for the engine's devices says of its training step."""
    split = jax.sharding.NamedSharding(engine.mesh, axes.spec(("batch",)))
    batch = {
        name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=split) for name, x in batch_shapes(engine.config).items()
    }
    with _no_cache(), jax.set_mesh(engine.mesh):
        lowered = engine.step(engine.placed, record=False).lower(engine.abstract, batch)
        began = time.monotonic()
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            return _refused(str(error), time.monotonic() - began)
        seconds = time.monotonic() - began
    memory, exchanged = compiled.memory_analysis(), collectives(compiled.as_text())
    given, peak = memory.argument_size_in_bytes, memory.peak_memory_in_bytes
    if engine.mesh.devices.flat[0].platform == "cpu":  # which leaves temporaries out of it
        peak = given + memory.output_size_in_bytes - memory.alias_size_in_bytes + memory.temp_size_in_bytes
    return Program(peak, given, exchanged, seconds)


def _refused(message: str, seconds: float) -> Program:
    """A program that needs too much memory, from the compiler's complaint: "Used 74.53G of 15.75G hbm"."""
    found = re.search(r"[Uu]sed ([\d.]+)([KMGT]?)i?B? of ([\d.]+)([KMGT]?)i?B? hbm", message)
    if found is None:
        return Program(None, None, None, seconds, " ".join(message.split())[:200])
    peak, limit = (float(found[i]) * _UNITS[found[i + 1]] for i in (1, 3))
    return Program(int(peak), None, None, seconds, f"a program has {limit / 2**30:.4g} GiB")


@contextlib.contextmanager
def _no_cache() -> Iterator[None]:
    """Without the compilation cache: programs for machines that are not there cannot be read back from it."""
    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # or the setting has no effect any more
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()


def _bytes(size: float) -> str:
    """`size` as text, 13 characters wide."""
    for unit, one in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size >= one:
            return f"{size / one:>9,.4g} {unit}"
    return f"{size:>9,.4g} B  "
