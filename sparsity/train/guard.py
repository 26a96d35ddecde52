"""Leaving well: preemption signals and divergence; and going on without a step that would harm."""

from __future__ import annotations

import dataclasses
import signal
import threading
from types import FrameType
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
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


def sound(params: Any, rest: Any) -> bool:
    """Whether a state may be saved: no parameter is NaN or infinite, and nothing else (`rest`) is NaN.

    An optimizer's moment may be infinite: the square of a large gradient is, and its parameter then stands still.
    """
    of = lambda tree: [distributed.settled(_largest(x)) for x in jax.tree.leaves(tree) if _real(x)]
    largest = jax.device_get([of(params), of(rest)])
    return bool(np.isfinite(largest[0]).all() and not np.isnan(largest[1]).any())


@jax.jit  # one program a shape: one of all arrays takes long to compile
def _largest(x: jax.Array) -> jax.Array:
    return jnp.abs(x).max().astype(jnp.promote_types(x.dtype, jnp.float32))


def _real(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jnp.floating)


@flax.struct.dataclass
class GuardState:
    """What a guard remembers. It is saved with the parameters: a run that resumes goes on as if it had not stopped.

    Attributes:
      skipped: steps left out because their loss or gradient was not finite, int32 scalar.
      spikes: steps left out because their loss was a spike, int32 scalar.
      seen: finite losses until now, int32 scalar.
      losses: the last of them, [window] float32: loss i, counted from 0, at i mod window; 0 where there was none yet.
    """

    skipped: jax.Array
    spikes: jax.Array
    seen: jax.Array
    losses: jax.Array

    @property
    def left_out(self) -> jax.Array:
        """Steps that made no update, for whatever reason."""
        return self.skipped + self.spikes


@dataclasses.dataclass(frozen=True)
class SpikeConfig:
    """Which losses are spikes.

    With m and s the mean and the standard deviation of the last n losses (n - 1 under the sum of squares):

        loss > m + deviations * s,    n = min(window, losses so far) >= max(2, window // 2).

    The rule and its numbers are the field's (OLMo's skip-step optimizer, MaxText, Levanter; they watch the norm of the
    gradient by it too). Spikes enter the window as other finite losses do, so that a loss that rises for good is let
    through: of a constant one that rises to another constant about window / deviations^2 steps are left out, no more.

    Attributes:
      window: losses that are remembered.
      deviations: of these above their mean a loss is a spike.
    """

    window: int = 128
    deviations: float = 6.0

    def __post_init__(self):
        if self.window < 2:
            raise ValueError(f"window: must be at least 2, got {self.window}")
        if self.deviations <= 0:
            raise ValueError(f"deviations: must be above 0, got {self.deviations}")

    def spike(self, state: GuardState, loss: jax.Array) -> jax.Array:
        """Whether `loss`, which is finite, is a spike after the losses of `state`; a scalar bool."""
        n = jnp.minimum(state.seen, self.window)
        there = jnp.arange(self.window) < n
        mean = jnp.sum(state.losses, where=there) / jnp.maximum(n, 1)
        variance = jnp.sum((state.losses - mean) ** 2, where=there) / jnp.maximum(n - 1, 1)
        return (n >= max(2, self.window // 2)) & (loss > mean + self.deviations * jnp.sqrt(variance))


@dataclasses.dataclass(frozen=True)
class GuardConfig:
    """Which steps are left out: they count, but parameters, optimizer and running statistics stay as they were.

    The learning rate of the next update is then that of the one left out, and a schedule ends so many updates short;
    noise and data go by the step. Without a guard the state has nothing of it.

    Attributes:
      skips: steps with a loss or gradient that is not finite that a run may leave out; the next one ends it.
      spikes: what else is left out, however often; nothing if None.
    """

    skips: int = 0
    spikes: SpikeConfig | None = None

    def __post_init__(self):
        if self.skips < 0:
            raise ValueError(f"skips: must be at least 0, got {self.skips}")

    def init(self) -> GuardState | None:
        """The state of step 0; None where nothing is ever left out."""
        if not self.skips and self.spikes is None:
            return None
        counts = (jnp.zeros((), jnp.int32) for _ in range(3))  # each an array of its own: they are donated
        return GuardState(*counts, jnp.zeros(self.spikes.window if self.spikes else 1, jnp.float32))

    def judge(self, state: GuardState, loss: jax.Array, finite: jax.Array) -> tuple[jax.Array, jax.Array, GuardState]:
        """(whether the step updates anything, whether its loss is a spike, what is remembered after it).

        `finite` says whether both the loss and the gradient are.
        """
        loss = loss.astype(jnp.float32)
        spike = finite & self.spikes.spike(state, loss) if self.spikes else jnp.array(False)
        new = GuardState(
            skipped=state.skipped + ~finite,
            spikes=state.spikes + spike,
            seen=state.seen + finite,
            losses=jnp.where(finite, state.losses.at[state.seen % len(state.losses)].set(loss), state.losses),
        )
        return finite & ~spike, spike, new


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
