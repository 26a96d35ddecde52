"""Leaving well: preemption signals and divergence."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from sparsity import distributed


class Diverged(Exception):
    """A non-finite loss, gradient or parameter at `step`: the run ends, its result is this."""

    def __init__(self, step: int):
        super().__init__(f"non-finite at step {step}")
        self.step = step


def all_finite(tree: Any) -> jax.Array:
    """Whether no leaf holds NaN or infinity, a scalar bool. By maxima: squares of large numbers would overflow."""
    return jnp.isfinite(jnp.stack([jnp.float32(0), *(jnp.abs(x).max() for x in jax.tree.leaves(tree))])).all()


class Preempted(Exception):
    """The process was asked to stop; the state of `step` is saved and a rerun resumes it."""

    def __init__(self, step: int):
        super().__init__(f"stopped after step {step}; rerun the same command to resume")
        self.step = step


class StopSignals:
    """Within `with`, the first SIGTERM or Ctrl-C only sets `requested`; a second Ctrl-C interrupts.

    Outside the main thread, where Python forbids handlers, signals keep their usual meaning. Of several processes that
    share a `mesh` all stop at the step at which the first of them knows of a signal: with every step they ask one
    another. JAX's own point of preemption would cost no all-reduce, but it takes a second to notice, knows no Ctrl-C,
    and takes SIGTERM for itself outside training too.
    """

    def __init__(self, mesh: Mesh | None = None) -> None:
        self.requested = False
        self._previous: dict[int, object] = {}
        self._anywhere = distributed.Anywhere(mesh) if distributed.several() else None

    def ask(self) -> None:
        """Begins to ask the other processes; before a step is dispatched, which the answer would else wait for."""
        if self._anywhere is not None:
            self._answer = self._anywhere.ask(self.requested)

    def agreed(self) -> bool:
        """Whether to stop: all processes say the same of the last `ask`."""
        return self.requested if self._anywhere is None else bool(jax.device_get(self._answer))

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._previous = {s: signal.signal(s, self._handle) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
