"""The state of training, and how it is born: already sharded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, PartitionSpec

from sparsity import spmd
from sparsity.layers.sparsify import Context
from sparsity.train.guard import GuardConfig, GuardState


@flax.struct.dataclass
class TrainState:
    """Everything that training changes.

    Attributes:
      step: steps done, int32 scalar: updates, and those that the guard left out.
      params: parameters, unboxed (optimizers with factored slots need bare arrays).
      opt_state: the optimizer's state.
      model_state: running statistics of layers that have them (BatchNorm); else empty.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    model_state: Any


@flax.struct.dataclass
class GuardedState(TrainState):
    """The state of training with a guard; without one it has nothing of it, and nothing of it is saved.

    Attributes:
      guard: what the guard remembers.
    """

    guard: GuardState


NO_GUARD = GuardConfig()


def guarded(state: TrainState, guard: GuardState | None) -> TrainState:
    """`state`, with what its guard remembers if it has one."""
    return state if guard is None else GuardedState(*vars(state).values(), guard)


def init_fn(
    model: nn.Module, tx: optax.GradientTransformation, seed: int, inputs: tuple, guard: GuardConfig = NO_GUARD
) -> Callable[[], TrainState]:
    """A function without arguments that makes the state of step 0 from `seed`.

    `inputs` are zero arrays of the model's input shapes, one example long.
    """
    return lambda: _new(model, tx, seed, inputs, guard)[0]


def _new(
    model: nn.Module, tx: optax.GradientTransformation, seed: int, inputs: tuple, guard: GuardConfig
) -> tuple[TrainState, Any]:
    """The state of step 0, and its parameters in the boxes that name their axes."""
    boxed = model.init(jax.random.key(seed), *inputs, Context())
    variables = dict(nn.meta.unbox(boxed))
    params = variables.pop("params")
    state = TrainState(jnp.zeros((), jnp.int32), params, tx.init(params), variables)
    return guarded(state, guard.init()), boxed["params"]


def shapes_and_specs(
    model: nn.Module, tx: optax.GradientTransformation, inputs: tuple, guard: GuardConfig = NO_GUARD
) -> tuple[TrainState, TrainState]:
    """Shape and dtype, and PartitionSpec, of every leaf of the state; these come from the parameters' axis names."""
    shapes, boxed = jax.eval_shape(lambda: _new(model, tx, 0, inputs, guard))
    specs = spmd.param_specs(boxed)
    replicated = lambda tree: jax.tree.map(lambda _: PartitionSpec(), tree)
    of_state = TrainState(
        step=PartitionSpec(),
        params=specs,
        opt_state=spmd.optimizer_specs(shapes.opt_state, shapes.params, specs),
        model_state=replicated(shapes.model_state),
    )
    return shapes, guarded(of_state, replicated(jax.eval_shape(guard.init)))


def state_specs(
    model: nn.Module, tx: optax.GradientTransformation, inputs: tuple, guard: GuardConfig = NO_GUARD
) -> TrainState:
    """PartitionSpecs of every leaf of the state."""
    return shapes_and_specs(model, tx, inputs, guard)[1]


def init_state(
    model: nn.Module,
    tx: optax.GradientTransformation,
    mesh: Mesh,
    seed: int,
    inputs: tuple,
    placed: TrainState | None = None,
    guard: GuardConfig = NO_GUARD,
) -> tuple[TrainState, TrainState]:
    """The state of step 0 and its NamedShardings (`placed`, if they are known); each device computes only its own part.

    The values are those of a single device, whatever the mesh: JAX's random bits do not depend
    on the sharding.
    """
    placed = placed or spmd.shardings(mesh, state_specs(model, tx, inputs, guard))
    with jax.set_mesh(mesh):
        state = jax.jit(init_fn(model, tx, seed, inputs, guard), out_shardings=placed)()
    return state, placed


def abstract_state(shapes: TrainState, placed: TrainState) -> TrainState:
    """Shapes, dtypes and shardings of the state without computing it: the target of a restore."""
    return jax.tree.map(lambda s, p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=p), shapes, placed)
