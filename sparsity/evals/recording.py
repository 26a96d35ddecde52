"""The sparsity of models that are not ours: their activation function, wrapped, hands out what it does.

Our own modules record by `layers.sparsify.Sparsify`. Here nothing of the model changes but the function that it calls;
its statistics leave by callbacks, so that it may be compiled, scanned over layers or rematerialised.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sparsity.layers.sparsify import SparsityStats, sparsity_stats

Path = tuple[str, ...]  # of a module, from the outermost one

_stats = jax.jit(sparsity_stats)
_places = itertools.count()  # of the calls of activations in programs, as these are traced


class _Recording:
    """What is recorded while one function runs.

    Attributes:
      modules: the Flax modules that are being traced, the innermost last.
      calls: (place, module, statistics) of every call of an activation that was computed.
    """

    def __init__(self):
        self.modules: list[Path] = []
        self.calls: list[tuple[int, Path, SparsityStats]] = []

    def intercept(self, method: Callable, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        """Calls a method of a Flax module, which is known meanwhile."""
        if context.module.scope is None:
            return method(*args, **kwargs)
        self.modules.append(context.module.path)
        try:
            return method(*args, **kwargs)
        finally:
            self.modules.pop()

    def layers(self) -> dict[str, SparsityStats]:
        """The statistics by layer, in the order in which the layers stand in the program."""
        named: dict[str, list[SparsityStats]] = {}
        for _, path, stats in sorted(self.calls, key=lambda call: call[0]):  # those of one place stay as they came
            named.setdefault("/".join(path) or "activation", []).append(stats)
        return {
            name if len(several) == 1 else f"{name}[{i}]": stats
            for name, several in named.items()
            for i, stats in enumerate(several)
        }


_running: list[_Recording] = []  # the innermost last; callbacks come from threads of their own, and find it here


def recorded(phi: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """`phi`, and within `record_sparsity` what it does is recorded; elsewhere it costs nothing.

    For models that take their activation as an argument. It must keep the shape [examples, ..., units] of what it is
    given.

    >>> model = nn.Sequential([nn.Dense(8), recorded(nn.relu), nn.Dense(2)])
    """

    @functools.wraps(phi, updated=())
    def wrapped(z: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
        h = phi(z, *args, **kwargs)
        if _running:
            name = getattr(phi, "__name__", "activation")
            if jnp.ndim(z) < 2 or jnp.shape(h) != jnp.shape(z):
                what = f"{name} makes {jnp.shape(h)} of {jnp.shape(z)}"
                raise ValueError(f"recorded: {what}; one shape is needed, [examples, ..., units]")
            path = _running[-1].modules[-1] if _running[-1].modules else ()
            jax.debug.callback(functools.partial(_receive, next(_places), path), _stats(z, h))
        return h

    return wrapped


def record_sparsity(
    fn: Callable[..., Any], *activations: Callable[..., jax.Array]
) -> Callable[..., tuple[Any, dict[str, SparsityStats]]]:
    """A function that returns what `fn` does, and of each layer the statistics of its activation, summed in float64.

    A layer is named by the path of its Flax module; in functions without modules they are activation[0], [1] and so
    on. So are the calls of one module, in the order of the program, and the turns of a scan over layers. The first axis
    of what an activation is given are the examples, the last the units, those between them tokens.
    `evals.sparsity.nonzero_fraction` says the share of nonzeros, `merge` adds those of several batches.

    Args:
      fn: a function of arrays, such as a Flax model's `apply`. It may be compiled, if it was not called before: what is
        compiled stays as it is. Under `jax.vmap` and `jax.shard_map` each part would count as a layer: record what
        they make, of functions that take all examples.
      activations: functions to be replaced by `recorded` ones while `fn` runs, wherever a module has them as a global
        (`nn.relu`, `jax.nn.relu`, `relu`). Those that a model was given as an argument are to be `recorded` there.

    Raises:
      ValueError: from the returned function: nothing was recorded, or an activation changes its argument's shape.

    >>> x = jnp.array([[1.0, -1.0, 2.0, -3.0]])
    >>> out, layers = record_sparsity(lambda x: jax.nn.relu(x).sum(), jax.nn.relu)(x)
    >>> float(out), float(layers["activation"].fraction_sum)
    (3.0, 0.5)
    """

    @functools.wraps(fn, updated=())
    def run(*args: Any, **kwargs: Any) -> tuple[Any, dict[str, SparsityStats]]:
        recording = _Recording()
        with _replaced(activations), nn.intercept_methods(recording.intercept):
            _running.append(recording)
            try:
                out = fn(*args, **kwargs)
                jax.effects_barrier()  # until all callbacks have returned
            finally:
                _running.remove(recording)
        if not recording.calls:
            raise ValueError(
                "record_sparsity: no activation was computed; give the model recorded(relu), or name relu here. "
                "A function that was compiled before is not traced again (see jax.clear_caches), and "
                "record_sparsity is not to be compiled itself"
            )
        return out, recording.layers()

    return run


def _receive(place: int, path: Path, stats: SparsityStats) -> None:
    """Takes what a program has computed; programs may be called again when nothing is recorded any more."""
    if _running:
        _running[-1].calls.append((place, path, jax.tree.map(lambda x: np.asarray(x, np.float64), stats)))


@contextlib.contextmanager
def _replaced(functions: Sequence[Callable[..., jax.Array]]) -> Iterator[None]:
    """Puts `recorded` functions where modules have them as globals, but for jax's own; at the end all is as before."""
    before: list[tuple[Any, str, Callable]] = []
    try:
        for phi in functions:
            phi_recorded = recorded(phi)
            for name, module in list(sys.modules.items()):
                if name.startswith("jax._src"):
                    continue
                for key in [key for key, value in list(getattr(module, "__dict__", {}).items()) if value is phi]:
                    before.append((module, key, phi))
                    setattr(module, key, phi_recorded)
        yield
    finally:
        for module, key, phi in before:
            setattr(module, key, phi)
