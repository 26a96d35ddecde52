"""Optimizers and schedules, by name."""

from __future__ import annotations

import dataclasses
import re
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax

from sparsity.config import ConfigError, later, nearest, one_of


def _check_at_least_0(settings: Any, *fields: str) -> None:
    """Raises ValueError, naming the field, if one of `settings` is negative."""
    for field in fields:
        if getattr(settings, field) < 0:
            raise ValueError(f"{field}: must be at least 0, got {getattr(settings, field)}")


def _check_shares(settings: Any, *fields: str) -> None:
    for field in fields:
        if not 0 <= getattr(settings, field) < 1:
            raise ValueError(f"{field}: must be in [0, 1), got {getattr(settings, field)}")


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

    def __post_init__(self):
        _check_at_least_0(self, "end")

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
    """Adam with decoupled weight decay on kernels only (not on biases, norms, positions).

    With `weight_decay` 0 it is Adam (Kingma & Ba 2015).
    """

    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0

    def __post_init__(self):
        _check_shares(self, "b1", "b2")
        _check_at_least_0(self, "eps", "weight_decay")

    def build(self, schedule: optax.Schedule) -> optax.GradientTransformation:
        """The transformation, learning rate included."""
        return optax.adamw(
            schedule, self.b1, self.b2, self.eps, weight_decay=self.weight_decay, mask=decayed_parameters
        )


@dataclasses.dataclass(frozen=True)
class SparseAdam:
    """Adam that leaves alone what has no gradient: see `scale_by_sparse_adam`.

    There is no weight decay: it would move the parameters that are to stay.
    """

    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8

    def __post_init__(self):
        _check_shares(self, "b1", "b2")
        _check_at_least_0(self, "eps")

    def build(self, schedule: optax.Schedule) -> optax.GradientTransformation:
        """The transformation, learning rate included."""
        return optax.chain(scale_by_sparse_adam(self.b1, self.b2, self.eps), optax.scale_by_learning_rate(schedule))


@dataclasses.dataclass(frozen=True)
class SGD:
    """Stochastic gradient descent, with heavy-ball momentum if it is positive.

    With `weight_decay` w the gradient of a kernel W (not of biases and norms) is that of the loss plus w W, of the
    penalty w ||W||^2 / 2: the decay goes through the momentum, as in He et al. 2016.
    """

    momentum: float = 0.0
    weight_decay: float = later(0.0)

    def __post_init__(self):
        _check_shares(self, "momentum")
        _check_at_least_0(self, "weight_decay")

    def build(self, schedule: optax.Schedule) -> optax.GradientTransformation:
        """The transformation, learning rate included."""
        sgd = optax.sgd(schedule, self.momentum or None)
        if not self.weight_decay:
            return sgd
        return optax.chain(optax.add_decayed_weights(self.weight_decay, decayed_parameters), sgd)


@dataclasses.dataclass(frozen=True)
class Adafactor:
    """Adafactor as T5 uses it: factored, relative step, clip 1.0, decay 1 - t^-0.8, no momentum."""

    min_dim_to_factor: int = 128

    def __post_init__(self):
        if self.min_dim_to_factor < 1:
            raise ValueError(f"min_dim_to_factor: must be at least 1, got {self.min_dim_to_factor}")

    def build(self, schedule: optax.Schedule) -> optax.GradientTransformation:
        """The transformation, learning rate included."""
        return optax.adafactor(schedule, min_dim_size_to_factor=self.min_dim_to_factor)


RULES = {"adamw": AdamW, "sparse_adam": SparseAdam, "sgd": SGD, "adafactor": Adafactor}


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Settings of the optimizer.

    Attributes:
      learning_rate: the schedule's peak.
      rule: the update rule, by name.
      schedule: the learning rate over steps, by name.
      grad_clip: clip of the gradient's global L2 norm; None for none.
      multipliers: pairs of a pattern and the factor on the learning rate of the parameters whose path it matches (see
        `scale_by_path`), e.g. (("bias", 5.0),); 0 keeps them as they are. Weight decay is multiplied too.
      unit_norm: pairs of a pattern, as above, and an axis: after every update the matrices it matches are divided by
        their L2 norms along the axis (Bricken et al. 2023, App. D). Of a kernel [inputs, outputs], 0 is each output's
        incoming weights, 1 each input's outgoing ones.
    """

    learning_rate: float
    rule: Any = one_of(RULES, AdamW())
    schedule: Any = one_of(SCHEDULES, Constant())
    grad_clip: float | None = 1.0
    multipliers: tuple[tuple[str, float], ...] = later(())
    unit_norm: tuple[tuple[str, int], ...] = later(())

    def __post_init__(self):
        if self.learning_rate < 0:
            raise ValueError(f"learning_rate: must be at least 0, got {self.learning_rate}")
        if self.grad_clip is not None and self.grad_clip <= 0:
            raise ValueError(f"grad_clip: must be positive or None, got {self.grad_clip}")
        if self.schedule.warmup < 0:
            raise ValueError(f"schedule.warmup: must be at least 0, got {self.schedule.warmup}")
        if self.schedule.warmup >= 1 << 31:  # steps are counted in 32 bits
            raise ValueError(f"schedule.warmup: must be below 2^31, got {self.schedule.warmup}")
        for pattern, factor in self.multipliers:
            if factor < 0:
                raise ValueError(f'multipliers: must be at least 0, got {factor} for "{pattern}"')
        for pattern, axis in self.unit_norm:
            if axis not in (0, 1):
                raise ValueError(f'unit_norm: the axis of a matrix is 0 or 1, got {axis} for "{pattern}"')
        for field in ("multipliers", "unit_norm"):
            for pattern, _ in getattr(self, field):
                try:
                    re.compile(pattern)
                except re.error as error:
                    raise ValueError(f'{field}: "{pattern}" is no regular expression ({error})') from error

    def build(self, steps: int) -> tuple[optax.GradientTransformation, optax.Schedule]:
        """The gradient transformation and the learning rate of a run of `steps` steps."""
        schedule = self.schedule.build(self.learning_rate, steps)
        parts = [self.rule.build(schedule)]
        if self.grad_clip is not None:
            parts.insert(0, optax.clip_by_global_norm(self.grad_clip))
        if self.multipliers:
            parts.append(scale_by_path(self.multipliers))
        if self.unit_norm:
            parts.append(keep_unit_norm(self.unit_norm))  # last: it sees the parameters as they will be
        return parts[0] if len(parts) == 1 else optax.chain(*parts), schedule


def scale_by_sparse_adam(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """Adam on the entries whose gradient is not zero; the others keep their moments and do not move.

    Where g != 0, at step t = 1, 2, ... of the run:

        m <- b1 m + (1 - b1) g,    v <- b2 v + (1 - b2) g^2,
        update = sqrt(1 - b2^t) / (1 - b1^t) * m / (sqrt(v) + eps).

    The bias correction goes by t, not by how often an entry had a gradient: as in torch's SparseAdam, which
    Bricken et al. 2023 (App. J) "implemented to work with dense layers", and so does eps, which Adam adds after
    the correction. A ReLU unit that no example activates has a gradient of exactly zero on its row of the encoder,
    its bias and its column of the decoder; so has a weight whose input is 0 throughout the batch. Clipping leaves
    zeros what they are; a term of weight decay in the gradient would not.
    """

    def init(params):
        zeros = optax.tree.zeros_like(params)
        return optax.ScaleByAdamState(jnp.zeros((), jnp.int32), zeros, zeros)

    def update(grads, state, params=None):
        count = optax.safe_increment(state.count)
        mu = jax.tree.map(lambda g, m: jnp.where(g != 0, b1 * m + (1 - b1) * g, m), grads, state.mu)
        nu = jax.tree.map(lambda g, v: jnp.where(g != 0, b2 * v + (1 - b2) * g**2, v), grads, state.nu)
        scale = jnp.sqrt(1 - b2**count) / (1 - b1**count)
        updates = jax.tree.map(lambda g, m, v: jnp.where(g != 0, scale * m / (jnp.sqrt(v) + eps), 0), grads, mu, nu)
        return updates, optax.ScaleByAdamState(count, mu, nu)

    return optax.GradientTransformation(init, update)


def scale_by_path(multipliers: tuple[tuple[str, float], ...]) -> optax.GradientTransformation:
    """Updates times the factor whose pattern matches the parameter's path (see `by_path`), else as they are.

    Raises:
      ConfigError: when initialised, as `by_path`.
    """

    def init(params):
        by_path(params, multipliers, "multipliers")
        return optax.EmptyState()

    def update(updates, state, params=None):
        leaves, tree = jax.tree.flatten(updates)
        factors = by_path(updates, multipliers, "multipliers")
        return tree.unflatten(u if f is None else u * f for u, f in zip(leaves, factors, strict=True)), state

    return optax.GradientTransformation(init, update)


def keep_unit_norm(axes: tuple[tuple[str, int], ...]) -> optax.GradientTransformation:
    """Updates after which the matrices that a pattern matches (see `by_path`) have norm 1 along its axis.

    p + u becomes (p + u) / ||p + u||; a vector of zeros stays one.

    Raises:
      ConfigError: when initialised, as `by_path`, or for a parameter that is no matrix.
    """

    def init(params):
        chosen = by_path(params, axes, "unit_norm")
        for (path, leaf), axis in zip(jax.tree_util.tree_leaves_with_path(params), chosen, strict=True):
            if axis is not None and leaf.ndim != 2:
                name = jax.tree_util.keystr(path, simple=True, separator="/")
                raise ConfigError(f"config.optimizer.unit_norm: {name} of shape {leaf.shape} is no matrix")
        return optax.EmptyState()

    def update(updates, state, params):
        def one(u, p, axis):
            if axis is None:
                return u
            moved = p + u
            norm = jnp.linalg.norm(moved, axis=axis, keepdims=True)
            return moved / jnp.where(norm > 0, norm, 1) - p

        leaves, tree = jax.tree.flatten(updates)
        chosen = by_path(updates, axes, "unit_norm")
        return tree.unflatten(map(one, leaves, jax.tree.leaves(params), chosen)), state

    return optax.GradientTransformation(init, update)


def by_path(tree: Any, settings: tuple[tuple[str, Any], ...], field: str) -> list[Any]:
    """For every leaf the setting whose pattern matches its path; None if none does.

    A path is the names down to a parameter, "block_0/mlp/wi/bias"; a pattern is a regular expression that matches
    the path from the start of one of its names to the end: "bias" every bias, "wi/bias" those of every `wi`,
    "block_0/.*" all of that block.

    Raises:
      ConfigError: naming the optimizer's `field`, if a pattern matches no parameter or a parameter two patterns.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    found = [[(p, value) for p, value in settings if re.fullmatch(f"(?:.*/)?(?:{p})", path)] for path in paths]
    for pattern, _ in settings:
        if not any(pattern == p for matches in found for p, _ in matches):
            names = pattern.count("/") + 1
            ends = {"/".join(path.split("/")[-names:]) for path in paths}
            raise ConfigError(f'config.optimizer.{field}: "{pattern}" matches no parameter{nearest(pattern, ends)}')
    for path, matches in zip(paths, found, strict=True):
        if len(matches) > 1:
            both = " and ".join(f'"{p}"' for p, _ in matches)
            raise ConfigError(f"config.optimizer.{field}: {both} match {path}")
    return [matches[0][1] if matches else None for matches in found]


def decayed_parameters(params: Any) -> Any:
    """True at the leaves that weight decay touches: those named `kernel`, by name, not by rank."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)
