"""The axis legend, the one table from logical axes to mesh axes, and `constrain`.

Shape suffixes on array names follow this legend: B batch, L length (tokens), D model
(`embed`), F hidden units of an MLP (`mlp`), H heads, V vocabulary or classes, K kept units.
`h_BxLxF` is an array of shape [batch, length, hidden].

A misspelt axis raises here. In JAX and Flax alone it would silently mean "unsharded".
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
from jax.sharding import PartitionSpec

from sparsity.config import lookup

MESH_AXES = ("data", "model")

# Logical axis -> mesh axis (None: replicated). Megatron-style: hidden units, heads and the
# vocabulary are split over `model`; examples over `data`.
RULES: dict[str, str | None] = {
    "batch": "data",
    "length": None,
    "embed": None,
    "mlp": "model",
    "heads": "model",
    "head_dim": None,
    "vocab": "model",
    "layers": None,  # the stacked axis of scanned layers
    "rank": None,  # of a predictor's two matrices
    "buckets": None,  # distances between tokens
    "patch": None,  # values of one image patch
    "window": None,  # positions of a convolution's window
    "classes": None,  # too few to split
}


class AxisError(ValueError):
    """An axis name that stands in no rule."""


def spec(axes: Sequence[str | None]) -> PartitionSpec:
    """The PartitionSpec of logical `axes` (None: replicated).

    Raises:
      AxisError: a name that is not in `RULES`.

    >>> tuple(spec(("batch", "length", "mlp")))
    ('data', None, 'model')
    """
    return PartitionSpec(*(None if a is None else lookup(RULES, a, "axis", AxisError) for a in axes))


def narrowed(size: int, parts: int, aim: int = 16) -> int:
    """The size of a sharded axis in a small stand-in of a model: about `aim`, never above `size`.

    It is a multiple of `parts`, the devices that split the axis, wherever `size` is.

    >>> [narrowed(size, parts) for size, parts in ((300, 1), (300, 3), (8, 2))]
    [16, 18, 8]
    """
    return min(size, -(-aim // parts) * parts)


def constrain(x: jax.Array, axes: Sequence[str | None]) -> jax.Array:
    """Pins the sharding of `x` to logical `axes` under `jax.set_mesh`; else returns `x`.

    Raises:
      AxisError: an unknown name, with or without a mesh, or a wrong number of names.
    """
    if len(axes) != x.ndim:
        raise AxisError(f"{len(axes)} axes {tuple(axes)} for an array of shape {x.shape}")
    partition = spec(axes)
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, partition)
