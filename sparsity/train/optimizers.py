"""Optimizers and schedules, by name."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax

from sparsity.config import one_of


@dataclasses.dataclass(frozen=True)
class Constant:
    """rate(t) = peak, after a linear warm-up from 0 over `warmup` steps."""

    warmup: int = 0

    horizon_dependent: ClassVar[bool] = False

    def build(self, peak: float, steps: int) -> optax.Schedule:
        """The schedule; `steps` (the length of the run) does not enter."""
        # Not optax's warm-up: over 0 steps it stays at rate 0 for ever, with only a log line.
        return lambda t: peak * jnp.minimum(1.0, (t + 0.0) / self.warmup) if self.warmup else peak


@dataclasses.dataclass(frozen=True)
class Cosine:
    """Warm-up, then a half cosine from peak to 0 at the last step of the run."""

    warmup: int = 0

    horizon_dependent: ClassVar[bool] = True

    def build(self, peak: float, steps: int) -> optax.Schedule:
        """The schedule of a run of `steps` steps."""
        return optax.warmup_cosine_decay_schedule(0.0, peak, self.warmup, max(steps, self.warmup + 1))


@dataclasses.dataclass(frozen=True)
class Linear:
    """Warm-up, then a straight line from peak to `end` at the last step of the run."""

    warmup: int = 0
    end: float = 0.0

    horizon_dependent: ClassVar[bool] = True

    def build(self, peak: float, steps: int) -> optax.Schedule:
        """The schedule of a run of `steps` steps."""
        decay = optax.linear_schedule(peak, self.end, max(steps - self.warmup, 1))
        return optax.join_schedules([optax.linear_schedule(0.0, peak, self.warmup), decay], [self.warmup])


@dataclasses.dataclass(frozen=True)
class InverseSquareRoot:
    """rate(t) = peak sqrt(warmup / max(t, warmup)): T5's; constant for `warmup` steps, then decaying."""

    warmup: int = 10_000

    horizon_dependent: ClassVar[bool] = False

    def __post_init__(self):
        if self.warmup < 1:
            raise ValueError(f"warmup: must be at least 1, got {self.warmup}")

    def build(self, peak: float, steps: int) -> optax.Schedule:
        """The schedule; `steps` (the length of the run) does not enter."""
        return lambda t: peak * (self.warmup / jnp.maximum(t, self.warmup)) ** 0.5


SCHEDULES = {"constant": Constant, "cosine": Cosine, "linear": Linear, "inverse_square_root": InverseSquareRoot}


@dataclasses.dataclass(frozen=True)
class AdamW:
    """Adam with decoupled weight decay on kernels only (not on biases, norms, positions)."""

    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0

    def build(self, schedule: optax.Schedule) -> optax.GradientTransformation:
        """The transformation, learning rate included."""
        return optax.adamw(
            schedule, self.b1, self.b2, self.eps, weight_decay=self.weight_decay, mask=decayed_parameters
        )


@dataclasses.dataclass(frozen=True)
class SGD:
    """Stochastic gradient descent, with heavy-ball momentum if it is positive."""

    momentum: float = 0.0

    def build(self, schedule: optax.Schedule) -> optax.GradientTransformation:
        """The transformation, learning rate included."""
        return optax.sgd(schedule, self.momentum or None)


@dataclasses.dataclass(frozen=True)
class Adafactor:
    """Adafactor as T5 uses it: factored, relative step, clip 1.0, decay 1 - t^-0.8, no momentum."""

    min_dim_to_factor: int = 128

    def build(self, schedule: optax.Schedule) -> optax.GradientTransformation:
        """The transformation, learning rate included."""
        return optax.adafactor(schedule, min_dim_size_to_factor=self.min_dim_to_factor)


RULES = {"adamw": AdamW, "sgd": SGD, "adafactor": Adafactor}


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Settings of the optimizer.

    Attributes:
      learning_rate: the schedule's peak.
      rule: the update rule, by name.
      schedule: the learning rate over steps, by name.
      grad_clip: clip of the gradient's global L2 norm; None for none.
    """

    learning_rate: float
    rule: Any = one_of(RULES, AdamW())
    schedule: Any = one_of(SCHEDULES, Constant())
    grad_clip: float | None = 1.0

    def __post_init__(self):
        if self.learning_rate < 0:
            raise ValueError(f"learning_rate: must be at least 0, got {self.learning_rate}")
        if self.grad_clip is not None and self.grad_clip <= 0:
            raise ValueError(f"grad_clip: must be positive or None, got {self.grad_clip}")
        if self.schedule.warmup < 0:
            raise ValueError(f"schedule.warmup: must be at least 0, got {self.schedule.warmup}")

    def build(self, steps: int) -> tuple[optax.GradientTransformation, optax.Schedule]:
        """The gradient transformation and the learning rate of a run of `steps` steps."""
        schedule = self.schedule.build(self.learning_rate, steps)
        rule = self.rule.build(schedule)
        if self.grad_clip is None:
            return rule, schedule
        return optax.chain(optax.clip_by_global_norm(self.grad_clip), rule), schedule


def decayed_parameters(params: Any) -> Any:
    """True at the leaves that weight decay touches: those named `kernel`, by name, not by rank."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)
