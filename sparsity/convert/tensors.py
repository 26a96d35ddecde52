"""Where each parameter of a model comes from in somebody else's checkpoint."""

from __future__ import annotations

import dataclasses
import math
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
      transposed: they are matrices whose axes stand the other way round, as torch's [outputs, inputs].
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


@dataclasses.dataclass(frozen=True)
class Opened:
    """A checkpoint of a model that is known.

    Attributes:
      reader: of its tensors.
      model: settings of the model.
      classes: rows of its embedding.
      tensors: by the path of the parameter they make.
      ignored: of the name of a tensor, whether it may be there without being read.
    """

    reader: Reader
    model: Any
    classes: int
    tensors: Mapping[str, Tensor]
    ignored: Callable[[str], bool]


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
        made = lambda index, path=path, leaf=leaf: _part(tensors[path], reader, index, leaf)
        out[path] = jax.make_array_from_callback(leaf.shape, leaf.sharding, made)
    return flax.traverse_util.unflatten_dict(out, sep="/")


def _part(tensor: Tensor, reader: Reader, index: tuple[slice, ...], leaf: Any) -> np.ndarray:
    """One shard of the parameter `leaf`; of the tensors it is made of, one is in memory at a time."""
    out = _aligned([len(range(*s.indices(n))) for s, n in zip(index, leaf.shape, strict=True)], leaf.dtype)
    layers, inner, parts = (index[0], index[1:], out) if tensor.stacked else (slice(None), index, out[None])
    for i, name in enumerate(tensor.names[layers]):
        part = reader.read(name, inner[::-1] if tensor.transposed else inner)
        parts[i] = part.T if tensor.transposed else part
        del part  # before the next is read
    return out


def _aligned(shape: list[int], dtype: np.dtype) -> np.ndarray:
    """Memory that JAX on CPUs takes over as it is: it copies what does not start at a multiple of 64 bytes."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(dtype).reshape(shape)


def unload(tensors: Mapping[str, Tensor], params: Any) -> Iterable[tuple[str, np.ndarray]]:
    """(name, tensor) of the checkpoint that `params` make, one parameter after the other."""
    for path, array in flax.traverse_util.flatten_dict(params, sep="/").items():
        tensor, values = tensors[path], np.asarray(array)
        for name, one in zip(tensor.names, values if tensor.stacked else [values], strict=True):
            yield name, np.ascontiguousarray(one.T if tensor.transposed else one)
