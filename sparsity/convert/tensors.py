"""Where each parameter of a model comes from in somebody else's checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import flax
import jax
import numpy as np

from sparsity.config import ConfigError, nearest


@dataclasses.dataclass(frozen=True)
class Tensor:
    """The tensors that one parameter is made of.

    Attributes:
      names: of the tensors; one a layer if the parameter is stacked, else one.
      transposed: they are matrices [outputs, inputs].
      stacked: the parameter has a leading axis of layers.
    """

    names: tuple[str, ...]
    transposed: bool = False
    stacked: bool = False

    def shape(self, parameter: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of each tensor of a parameter of shape `parameter`."""
        one = parameter[1:] if self.stacked else parameter
        return one[::-1] if self.transposed else one


class Reader(Protocol):
    """A checkpoint that is read tensor by tensor."""

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Of all its tensors, by name; nothing else is read."""

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """A part of the tensor `name`."""


def check(
    tensors: Mapping[str, Tensor],
    shapes: Mapping[str, tuple[int, ...]],
    found: Mapping[str, tuple[int, ...]],
    ignored: Callable[[str], bool],
) -> None:
    """That the checkpoint is this model's.

    Args:
      tensors: by the path of the parameter.
      shapes: of the parameters, by path.
      found: of the checkpoint's tensors, by name.
      ignored: of the name of a tensor, whether it may be there without being read.

    Raises:
      ConfigError: naming the first tensor that is missing, that has another shape, or that no parameter is made of.
    """
    needed = {name: (path, tensor) for path, tensor in tensors.items() for name in tensor.names}
    for name, (path, tensor) in needed.items():
        if name not in found:
            raise ConfigError(f"checkpoint: has no tensor {name}, which {path} is made of{nearest(name, found)}")
        expected = tensor.shape(shapes[path])
        if tuple(found[name]) != expected:
            raise ConfigError(f"checkpoint: {name} has shape {tuple(found[name])}, and {path} needs {expected}")
    for name in found:
        if name not in needed and not ignored(name):
            raise ConfigError(f"checkpoint: nothing is made of its tensor {name}, of shape {tuple(found[name])}")


def load(tensors: Mapping[str, Tensor], abstract: Any, reader: Reader) -> Any:
    """The parameters, each made shard by shard on its devices of the parts of tensors that it needs.

    Args:
      tensors: by the path of the parameter ("encoder/norm/scale").
      abstract: the parameters' shapes, dtypes and shardings.
      reader: the checkpoint.
    """
    flat = flax.traverse_util.flatten_dict(abstract, sep="/")
    out = {}
    for path, leaf in flat.items():
        made = lambda index, path=path, leaf=leaf: _part(tensors[path], reader, index, leaf.dtype)
        out[path] = jax.make_array_from_callback(leaf.shape, leaf.sharding, made)
    return flax.traverse_util.unflatten_dict(out, sep="/")


def _part(tensor: Tensor, reader: Reader, index: tuple[slice, ...], dtype: Any) -> np.ndarray:
    """One shard of a parameter."""
    layers, inner = (index[0], index[1:]) if tensor.stacked else (slice(None), index)
    read = lambda name: reader.read(name, inner[::-1] if tensor.transposed else inner)
    parts = [read(name).T if tensor.transposed else read(name) for name in tensor.names[layers]]
    if not tensor.stacked:
        return np.ascontiguousarray(parts[0], dtype)
    out = np.empty((len(parts), *parts[0].shape), dtype)
    for i, part in enumerate(parts):
        out[i] = part
    return out


def unload(tensors: Mapping[str, Tensor], params: Any) -> Iterable[tuple[str, np.ndarray]]:
    """(name, tensor) of the checkpoint that `params` make, one parameter after the other."""
    for path, array in flax.traverse_util.flatten_dict(params, sep="/").items():
        tensor, values = tensors[path], np.asarray(array)
        for name, one in zip(tensor.names, values if tensor.stacked else [values], strict=True):
            yield name, np.ascontiguousarray(one.T if tensor.transposed else one)
