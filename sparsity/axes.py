"""The axis legend, the one table from logical axes to mesh axes, and `constrain`.

Shape suffixes on array names follow this legend: B batch, L length (tokens), D model
(`embed`), F hidden units of an MLP (`mlp`), H heads, V vocabulary or classes, K kept units.
`h_BxLxF` is an array of shape [batch, length, hidden].

Parameters and activations share the names. An axis of the mesh splits an array once, and rules further up come first:
activations, whose batch lies over `fsdp`, have their `embed` whole, parameters have it split. On data 2 x fsdp 2 x
sequence 2 x model 2 devices each holds of

  activations [batch, length, embed]    a quarter of the examples, half of their tokens, all numbers of a token
  activations [batch, length, mlp]      of those tokens half of the hidden units
  a parameter [embed, mlp]              a quarter

A misspelt axis raises here. In JAX and Flax alone it would silently mean "unsharded".
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import jax
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

from sparsity.config import lookup

# Neighbours are the devices of one `model` group, which exchange most.
MESH_AXES = ("data", "fsdp", "sequence", "model")

# Logical axis -> the mesh axes that split it (none: it stays whole). Examples are split over `data` and `fsdp`, tokens
# over `sequence`; Megatron-style, hidden units, heads and the vocabulary over `model`. `fsdp` splits parameters too
# (ZeRO, Rajbhandari et al. 2020): along `embed`, and hidden units where there is no such axis.
RULES: dict[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "length": ("sequence",),  # tokens; of maps [B, height, width, F] the height
    "embed": ("fsdp",),
    "mlp": ("model", "fsdp"),
    "heads": ("model",),
    "vocab": ("model",),
    "head_dim": (),
    "position": (),  # rows of a table of positions
    "layers": (),  # the stacked axis of scanned layers
    "rank": (),  # of a predictor's two matrices
    "buckets": (),  # distances between tokens
    "patch": (),  # values of one image patch
    "window": (),  # positions of a convolution's window
    "classes": (),  # too few to split
}


class AxisError(ValueError):
    """An axis name that stands in no rule."""


def spec(axes: Sequence[str | None], taken: Collection[str] = ()) -> PartitionSpec:
    """The PartitionSpec of logical `axes` (None: whole), without the mesh axes that are `taken`.

    Raises:
      AxisError: a name that is not in `RULES`.

    >>> tuple(spec(("batch", "length", "embed")))
    (('data', 'fsdp'), 'sequence', None)
    >>> tuple(spec(("embed", "mlp")))
    ('fsdp', 'model')
    """
    for axis in axes:
        if axis is not None:
            lookup(RULES, axis, "axis", AxisError)
    entries: list[tuple[str, ...]] = [()] * len(axes)
    used = set(taken)
    for rule, leads_to in RULES.items():
        for i, axis in enumerate(axes):
            if axis == rule:
                entries[i] = tuple(name for name in leads_to if name not in used)
                used.update(entries[i])
    return PartitionSpec(*(entry if len(entry) > 1 else entry[0] if entry else None for entry in entries))


def parts(mesh: Mesh | AbstractMesh, entry: str | tuple[str, ...] | None) -> int:
    """Into how many parts an `entry` of a PartitionSpec splits its axis on `mesh`."""
    names = () if entry is None else (entry,) if isinstance(entry, str) else entry
    return math.prod(mesh.shape[name] for name in names)


def fitted(mesh: Mesh | AbstractMesh, axes: Sequence[str | None], shape: Sequence[int]) -> PartitionSpec:
    """`spec(axes)` of an array of `shape` on `mesh`: what its devices do not divide stays whole.

    Such as the one token that is decoded, the one example that parameters are initialised with, and shared keys (Llama)
    that are fewer than the devices. The mesh may lack axes.
    """
    entries = spec(axes, set(MESH_AXES) - set(mesh.axis_names))
    return PartitionSpec(*(e if size % parts(mesh, e) == 0 else None for e, size in zip(entries, shape, strict=True)))


def narrowed(size: int, parts: int, aim: int = 16) -> int:
    """The size of a sharded axis in a small stand-in of a model: about `aim`, never above `size`.

    It is a multiple of `parts`, the devices that split the axis, wherever `size` is.

    >>> [narrowed(size, parts) for size, parts in ((300, 1), (300, 3), (8, 2))]
    [16, 18, 8]
    """
    return min(size, -(-aim // parts) * parts)


def constrain(x: jax.Array, axes: Sequence[str | None]) -> jax.Array:
    """Pins the sharding of `x` to logical `axes`, as `fitted`, under `jax.set_mesh`; else returns `x`.

    Raises:
      AxisError: an unknown name, with or without a mesh, or a wrong number of names.
    """
    if len(axes) != x.ndim:
        raise AxisError(f"{len(axes)} axes {tuple(axes)} for an array of shape {x.shape}")
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        spec(axes)
        return x
    return jax.lax.with_sharding_constraint(x, fitted(mesh, axes, x.shape))
