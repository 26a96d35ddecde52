"""What somebody else's config.json says of a checkpoint: values that may be of any type, or claim anything."""

from __future__ import annotations

import dataclasses
import json
import math
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from sparsity.config import ConfigError
from sparsity.convert.tensors import Opened
from sparsity.writer import read_json

T = TypeVar("T")
CONFIG = "config.json"
_LARGEST = 1 << 31  # of a size
_NEEDED = object()


def read_section(file: Path) -> Mapping[str, Any]:
    """The object in a JSON file. Raises ConfigError if there is no such file, or it holds something else."""
    if not file.is_file():
        raise ConfigError(f"--path: there is no {file.name} in {file.parent}")
    found = read_json(file)
    if not isinstance(found, dict):
        raise ConfigError(f"--path: {file} is no object of JSON, but {type(found).__name__}")
    return found


def value_of(described: Mapping[str, Any], key: str, kind: type, default: Any = _NEEDED, where: str = CONFIG) -> Any:
    """The value of `key`, of the kind str, bool, dict, a finite float, or an int, which is a size.

    What is not there, or null, is the default.

    Raises:
      ConfigError: it is of another kind; a size is not in 1..2^31 - 1; or it is not there and there is no default.

    >>> value_of({"hidden_size": 768}, "hidden_size", int), value_of({}, "rms_norm_eps", float, 1e-6)
    (768, 1e-06)
    """
    value = described.get(key)
    if value is None:
        if default is _NEEDED:
            raise ConfigError(f"{where}: {key} is not given")
        return default
    if kind is float and type(value) is int and abs(value) < _LARGEST:
        value = float(value)
    if type(value) is not kind:
        raise ConfigError(f"{where}: {key} should be {kind.__name__}, and is {type(value).__name__} {value!r:.80}")
    if kind is int and not 0 < value < _LARGEST:
        raise ConfigError(f"{where}: {key} {value} is no size")
    if kind is float and not math.isfinite(value):
        raise ConfigError(f"{where}: {key} {value} is not finite")
    return value


def pair_of(config: Mapping[str, Any], key: str, default: int) -> tuple[int, int]:
    """Height and width, which a config.json has as one size or as two. Raises ConfigError as `value_of`."""
    sides = config.get(key)
    sides = sides if isinstance(sides, list) and len(sides) == 2 else [sides, sides]
    height, width = (value_of({key: side}, key, int, default) for side in sides)
    return height, width


def model_of(model: Callable[[], T]) -> T:
    """The settings that `model` makes of a config.json. Raises ConfigError if they cannot be a model's."""
    try:
        return model()
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{CONFIG}: {error}") from error


def check_names(file: Path) -> None:
    """That a whole file of safetensors has no name twice in its header: its reader takes the last of them."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            raise ConfigError(f"--path: {max(names, key=names.count)} is twice in the header of {file}")
        return found

    with open(file, "rb") as opened:
        header = opened.read(struct.unpack("<Q", opened.read(8))[0])
    json.loads(header, object_pairs_hook=once)


def check_layers(shapes: Mapping[str, tuple[int, ...]], *layers: int) -> None:
    """That there are not fewer tensors than layers, before the tensors of each are named. Raises ConfigError."""
    if max(layers) > len(shapes):
        raise ConfigError(f"{CONFIG}: has {max(layers)} layers, and the checkpoint {len(shapes)} tensors")


def check_sizes(found: Opened) -> None:
    """That no size of the model is more than all numbers that the checkpoint has, before anything of it is made.

    Raises:
      ConfigError: one is.
    """
    numbers = sum(math.prod(shape) for shape in found.reader.shapes().values())
    sizes = {"classes": found.classes, **_sizes(found.model)}
    for name, size in sizes.items():
        if size is not None and size > numbers:
            raise ConfigError(f"checkpoint: {name} of its model would be {size}, and it has {numbers} numbers")


def _sizes(settings: Any) -> dict[str, int]:
    """The integers among settings, and among those of their MLP."""
    found = {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}
    sizes = {name: value for name, value in found.items() if type(value) is int}
    return sizes | (_sizes(found["mlp"]) if "mlp" in found else {})
