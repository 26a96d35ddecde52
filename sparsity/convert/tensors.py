"""Where each parameter of a model comes from in somebody else's checkpoint."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import flax
import jax
import numpy as np

from sparsity.config import ConfigError, nearest
from sparsity.writer import Progress


@dataclasses.dataclass(frozen=True)
class Tensor:
    """The tensors that one parameter is made of.

    Of a tensor a `part` is taken, its axes are put in `order` and joined as `split` says; then come `zeros` in front.

    Attributes:
      names: of the tensors; one a layer if the parameter is stacked, else one. Without any the parameter starts at 0.
      order: the tensor's axes as they follow in the parameter, (1, 0) for torch's [outputs, inputs]; None: as they are.
      split: for each axis of the parameter, the sizes of the tensor's axes that it joins, -1 for what is left: ((-1,),
        (H, K)) makes [D, H * K] of [D, H, K], and ((1, -1), (-1,)) makes [L, D] of [1, L, D]. None: axis for axis.
      part: (i, n), the i-th of n equal parts along the tensor's axis `along`; None: the whole.
      along: the first axis, or another one.
      zeros: rows of the parameter, its first, that the tensor does not have.
      stacked: the parameter has a leading axis of layers.
    """

    names: tuple[str, ...]
    order: tuple[int, ...] | None = None
    split: tuple[tuple[int, ...], ...] | None = None
    part: tuple[int, int] | None = None
    along: int = 0
    zeros: int = 0
    stacked: bool = False

    def shape(self, parameter: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of each tensor of a parameter of shape `parameter`."""
        joined = self._joined(parameter)
        sizes = [size for axes in joined for size in axes]
        out = [sizes[axis] for axis in np.argsort(self._order(sizes))]
        if self.part is not None:
            out[self.along] *= self.part[1]
        return tuple(out)

    def read(self, reader: Reader, name: str, index: tuple[slice, ...], parameter: tuple[int, ...]) -> np.ndarray:
        """The part `index` of a layer of a parameter of shape `parameter`, `zeros` apart, from the tensor `name`.

        No more is read than what encloses it: of axes that are joined, whole rows of the first.
        """
        wanted, cut, shape = [], [], []
        for piece, axes in zip(index, self._joined(parameter), strict=True):
            inner = math.prod(axes[1:])
            first, last = piece.start // inner, -(-piece.stop // inner)
            wanted += [slice(first, last), *(slice(0, size) for size in axes[1:])]
            cut.append(slice(piece.start - first * inner, piece.stop - first * inner))
            shape.append((last - first) * inner)
        order = self._order(wanted)
        theirs = [wanted[axis] for axis in np.argsort(order)]
        if self.part is not None:
            size = self.shape(parameter)[self.along] // self.part[1]
            own = theirs[self.along]
            theirs[self.along] = slice(own.start + self.part[0] * size, own.stop + self.part[0] * size)
        return reader.read(name, tuple(theirs)).transpose(order).reshape(shape)[tuple(cut)]

    def write(self, values: np.ndarray) -> np.ndarray:
        """The tensor of one layer's parameter. Raises ValueError if it is not the whole of one tensor."""
        if self.part is not None or self.zeros:
            raise ValueError(f"{self.names}: a part of a tensor is not written")
        sizes = [size for axes in self._joined(values.shape, layers=False) for size in axes]
        return np.ascontiguousarray(values.reshape(sizes).transpose(np.argsort(self._order(sizes))))

    def _joined(self, parameter: tuple[int, ...], layers: bool = True) -> list[tuple[int, ...]]:
        """For each axis of one layer's parameter the sizes of those that it joins."""
        sizes = list(parameter[1:] if self.stacked and layers else parameter)
        sizes[:1] = [size - self.zeros for size in sizes[:1]]
        split = self.split or ((-1,),) * len(sizes)
        left = lambda size, axes: tuple(size // -math.prod(axes) if axis < 0 else axis for axis in axes)
        return [left(size, axes) for size, axes in zip(sizes, split, strict=True)]

    def _order(self, axes: list) -> tuple[int, ...]:
        return self.order or tuple(range(len(axes)))


MATRIX = (1, 0)  # of torch's nn.Linear, [outputs, inputs]
WINDOW = (2, 3, 1, 0)  # of torch's nn.Conv2d, [outputs, inputs, height, width]


def linear(ours: str, theirs: str, bias: bool = True) -> dict[str, Tensor]:
    """Kernel and bias at the path `ours`, of torch's `nn.Linear` of the name `theirs`, which may have no bias."""
    return {
        f"{ours}/kernel": Tensor((f"{theirs}.weight",), MATRIX),
        f"{ours}/bias": Tensor((f"{theirs}.bias",) if bias else ()),
    }


def norm(ours: str, theirs: str) -> dict[str, Tensor]:
    """Scale and bias at the path `ours`, of a normalisation of torch of the name `theirs`."""
    return {f"{ours}/scale": Tensor((f"{theirs}.weight",)), f"{ours}/bias": Tensor((f"{theirs}.bias",))}


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
      classes: rows of its embedding, or of its head; None: it has no head.
      tensors: by the path of the parameter they make.
      ignored: of the name of a tensor, whether it may be there without being read.
      statistics: tensors of running statistics, by their path, "batch_stats/norm/mean".
      image: height, width and channels of the images that it was trained on, if it reads images.
      pixels: their scale, as the sources of photographs call it: "signed" or "standardised"; None: not known.
    """

    reader: Reader
    model: Any
    classes: int | None
    tensors: Mapping[str, Tensor]
    ignored: Callable[[str], bool]
    statistics: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)
    image: tuple[int, int, int] | None = None
    pixels: str | None = None

    @property
    def names(self) -> set[str]:
        """Of all the tensors that are read."""
        return {name for of in (self.tensors, self.statistics) for tensor in of.values() for name in tensor.names}


def sizes_of(shapes: Mapping[str, tuple[int, ...]], name: str, axes: int) -> tuple[int, ...]:
    """The shape of the tensor `name`, which sizes of the model are read from.

    Raises:
      ConfigError: it is missing, or has another number of axes.
    """
    if name not in shapes:
        raise ConfigError(f"checkpoint: has no tensor {name}, whose sizes are the model's{nearest(name, shapes)}")
    if len(shapes[name]) != axes:
        raise ConfigError(f"checkpoint: {name} has shape {shapes[name]}, and needs {axes} axes")
    return shapes[name]


def depth_of(shapes: Mapping[str, tuple[int, ...]], prefix: str, end: str) -> int:
    """How many layers there are, whose tensors are named prefix + number + end + ...; numbers start at 0.

    Raises:
      ConfigError: a number is left out.
    """
    pattern = re.compile(rf"{re.escape(prefix)}(\d+){re.escape(end)}")
    found = {match[1] for match in map(pattern.match, shapes) if match}
    for i in range(len(found)):
        if str(i) not in found:
            raise ConfigError(f"checkpoint: has {len(found)} layers, and none of them is {prefix}{i}")
    return len(found)


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
    needed = [(name, path, tensor) for path, tensor in tensors.items() for name in tensor.names]
    for name, path, tensor in needed:
        if name not in found:
            raise ConfigError(f"checkpoint: has no tensor {name}, which {path} is made of{nearest(name, found)}")
        expected = tensor.shape(shapes[path])
        if tuple(found[name]) != expected:
            raise ConfigError(f"checkpoint: {name} has shape {tuple(found[name])}, and {path} needs {expected}")
    read = {name for name, _, _ in needed}
    for name in found:
        if name not in read and not ignored(name):
            raise ConfigError(f"checkpoint: nothing is made of its tensor {name}, of shape {tuple(found[name])}")


def check_state(found: Opened, params: Any, model_state: Any) -> None:
    """That the checkpoint makes these abstract parameters and running statistics. Raises ConfigError like `check`."""
    leaves = flax.traverse_util.flatten_dict({**params, **model_state}, sep="/")
    shapes = {path: leaf.shape for path, leaf in leaves.items()}
    check({**found.tensors, **found.statistics}, shapes, found.reader.shapes(), found.ignored)


def load(tensors: Mapping[str, Tensor], abstract: Any, reader: Reader, progress: Progress | None = None) -> Any:
    """The parameters, each made shard by shard on its devices of the parts of tensors that it needs.

    Args:
      tensors: by the path of the parameter ("encoder/norm/scale").
      abstract: the parameters' shapes, dtypes and shardings.
      reader: the checkpoint.
      progress: is shown the parameters that are made.

    Raises:
      ConfigError: a tensor has numbers that are not finite, in the parameter's dtype; or there is no memory for it.
    """
    flat = flax.traverse_util.flatten_dict(abstract, sep="/")
    out = {}
    if progress is not None:
        progress.start("checkpoint", 0, len(flat), "parameter")
    # Parts of one tensor together: it may be read whole.
    for path in sorted(flat, key=lambda path: tensors[path].names):
        leaf = flat[path]
        made = lambda index, path=path, leaf=leaf: _part(tensors[path], reader, index, leaf)
        out[path] = jax.make_array_from_callback(leaf.shape, leaf.sharding, made)
        if progress is not None:
            progress.update(len(out))
    if progress is not None:
        progress.stop()
    return flax.traverse_util.unflatten_dict(out, sep="/")


def _part(tensor: Tensor, reader: Reader, index: tuple[slice, ...], leaf: Any) -> np.ndarray:
    """One shard of the parameter `leaf`; of the tensors it is made of, one is in memory at a time."""
    index = [slice(*s.indices(n)[:2]) for s, n in zip(index, leaf.shape, strict=True)]
    out = _aligned([s.stop - s.start for s in index], leaf.dtype)
    if not tensor.names:
        out[...] = 0
        return out
    layers, inner, parts = (index[0], index[1:], out) if tensor.stacked else (slice(None), index, out[None])
    if tensor.zeros:
        start, stop = (max(row - tensor.zeros, 0) for row in (inner[0].start, inner[0].stop))
        rows = len(out) - (stop - start)
        out[:rows] = 0
        inner[0], parts = slice(start, stop), out[None, rows:]
    for i, name in enumerate(tensor.names[layers]):
        part = tensor.read(reader, name, inner, leaf.shape)
        with np.errstate(over="ignore"):  # what is too large becomes infinite
            parts[i] = part
        del part  # before the next is read
        _check_finite(parts[i], name)
    return out


def _check_finite(numbers: np.ndarray, name: str) -> None:
    # The extremes show it without memory for an answer of each number.
    if numbers.size and not (np.isfinite(numbers.min()) and np.isfinite(numbers.max())):
        raise ConfigError(f"checkpoint: {name} has numbers that are not finite in {numbers.dtype}: it is no network")


def _aligned(shape: list[int], dtype: np.dtype) -> np.ndarray:
    """Memory that JAX on CPUs takes over as it is: it copies what does not start at a multiple of 64 bytes."""
    size = math.prod(shape) * dtype.itemsize
    try:
        memory = np.empty(size + 64, np.uint8)
    except MemoryError as error:
        raise ConfigError(f"checkpoint: there is no memory for {size:,} bytes of a parameter") from error
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(dtype).reshape(shape)


def unload(tensors: Mapping[str, Tensor], params: Any) -> Iterable[tuple[str, np.ndarray]]:
    """(name, tensor) of the checkpoint that `params` make, one parameter after the other."""
    for path, array in flax.traverse_util.flatten_dict(params, sep="/").items():
        tensor, values = tensors[path], np.asarray(array)
        for name, one in zip(tensor.names, values if tensor.stacked else [values], strict=True):
            yield name, tensor.write(one)
