"""The training loop."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.sharding import Mesh

from sparsity import spmd
from sparsity.train.guard import Diverged, Preempted, StopSignals, sound
from sparsity.train.state import TrainState
from sparsity.train.step import Record, StepMetrics


@dataclasses.dataclass(frozen=True)
class Hooks:
    """What the loop calls; it knows neither evaluators nor files.

    Attributes:
      on_step: (step, metrics), every step, one step late.
      on_record: (step, record), every recording step, one step late.
      on_eval: (step, state), before the update of each evaluation step.
      on_speed: (step, seconds per step over the window's plain steps, number of them).
      save: (step, state), only with a state known to be finite.
    """

    on_step: Callable[[int, StepMetrics], None]
    on_record: Callable[[int, Record], None]
    on_eval: Callable[[int, TrainState], None]
    on_speed: Callable[[int, float, int], None]
    save: Callable[[int, TrainState], None]


@dataclasses.dataclass(frozen=True)
class Intervals:
    """After how many steps each thing happens; all count from step 0.

    Attributes:
      record: sparsity statistics, from a second compiled step (and at the last step).
      eval: validation.
      checkpoint: saving.
      speed: length of the windows over which steps/s is measured.
    """

    record: int = 50
    eval: int = 250
    checkpoint: int = 250
    speed: int = 50

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if getattr(self, field.name) < 1:
                raise ValueError(f"{field.name}: must be at least 1, got {getattr(self, field.name)}")


def train(
    state: TrainState,
    batches: Iterator[dict[str, Any]],
    plain_step: Callable,
    record_step: Callable,
    mesh: Mesh,
    steps: int,
    every: Intervals,
    hooks: Hooks,
    skips: int = 0,
) -> TrainState:
    """Runs steps `state.step` to `steps` - 1 and returns the state after them.

    Step s is the update from the parameters after s updates; whatever is reported under s
    describes those parameters. The order within a step is part of the contract: evaluate,
    step, read the metrics of the step before, save. A guard in the step may leave `skips` of them out.

    Raises:
      Diverged: a loss or a gradient not finite, beyond `skips`, or what was to be saved; nothing of it was saved.
      Preempted: a stop signal came; the state is saved.
    """
    start = int(jax.device_get(state.step))
    pending: tuple[int, StepMetrics, Record | None] | None = None
    window = _Window()

    def settle() -> None:
        """Reads the metrics of the last dispatched step, and stops if they are not finite once too often."""
        nonlocal pending
        if pending is None:
            return
        (step, *device), pending = pending, None
        metrics, record = jax.device_get(device)
        if record is not None:
            hooks.on_record(step, record)
        hooks.on_step(step, metrics)
        if not metrics.finite and (metrics.skipped is None or metrics.skipped > skips):
            raise Diverged(step)

    # Copies between host and device happen only where they are written: place_batch, device_get.
    with StopSignals(mesh) as stop, jax.set_mesh(mesh), jax.transfer_guard("disallow"):
        for step in range(start, steps):
            if step % every.eval == 0:
                settle()
                hooks.on_eval(step, state)
                window.interrupt()
            batch = spmd.place_batch(mesh, next(batches))
            recording = step % every.record == 0 or step == steps - 1
            stop.ask()
            dispatched = (record_step if recording else plain_step)(state, batch)
            settle()
            state, pending = dispatched[0], (step, *dispatched[1:])
            done, stopping = step + 1, stop.agreed()  # read once: what is raised below was saved here
            if done % every.checkpoint == 0 or done == steps or stopping:
                settle()
                if not sound(state.params, (state.opt_state, state.model_state)):
                    raise Diverged(step)
                hooks.save(done, state)
                window.interrupt()
            if recording:
                settle()
                window.interrupt()
            if done - start <= 2:
                window.interrupt()  # both programs are compiled in the first two steps
            window.tick()
            if done % every.speed == 0 and window.steps:
                hooks.on_speed(step, window.seconds / window.steps, window.steps)
                window = _Window()
            if stopping:
                raise Preempted(done)
    return state


class _Window:
    """Wall time of plain steps alone: steps next to an evaluation, record or save are left out."""

    def __init__(self) -> None:
        self.seconds, self.steps = 0.0, 0
        self._last: float | None = None

    def interrupt(self) -> None:
        self._last = None

    def tick(self) -> None:
        now = time.perf_counter()
        if self._last is not None:
            self.seconds, self.steps = self.seconds + now - self._last, self.steps + 1
        self._last = now
