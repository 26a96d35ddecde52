"""Checkpoints of T5X: a msgpack index, and beside it a zarr array for every large tensor."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import flax
import jax.numpy as jnp
import numpy as np
import tensorstore

from sparsity.config import ConfigError, path_of
from sparsity.convert.tensors import MATRIX, Opened, Tensor, depth_of, sizes_of
from sparsity.data.arrays import check_expansion
from sparsity.layers.mlp import MLPConfig
from sparsity.models.t5 import DECODER, ENCODER, T5Config
from sparsity.ops.sparsifiers import GeluTanh, Relu

INDEX = "checkpoint"
TARGET = "target"  # the network within the index; beside it stands the optimizer's state
PLACEHOLDER = "PLACEHOLDER://"
_SPEC = {"driver", "kvstore", "metadata"}  # keys of a tensorstore specification
_ATTENTIONS = {ENCODER: {"attention": "attention"}, DECODER: {"attention": "self_attention"}}
_ATTENTIONS[DECODER]["cross"] = "encoder_decoder_attention"
_NORMS = {
    ENCODER: {"norm_attention": "pre_attention", "norm_mlp": "pre_mlp"},
    DECODER: {"norm_attention": "pre_self_attention", "norm_cross": "pre_cross_attention", "norm_mlp": "pre_mlp"},
}


class T5X:
    """The network in a directory `checkpoint_N`; the optimizer's state is not looked at.

    The index holds small tensors itself. For others it says which zarr array of the directory holds them: by a
    tensorstore specification, of which the path alone is used, or by a placeholder, as Orbax writes for T5X (then the
    directory may have all this in `state`). They are read part by part.

    Raises:
      ConfigError: there is no index, or it cannot be read; or a tensor is not there, is outside of the directory, or
        is not of floating-point numbers; or they claim to be many times as large as the directory.
    """

    def __init__(self, path: str | Path):
        path = path_of(path, "--path")
        self.path = path / "state" if (path / "state" / INDEX).is_file() else path
        index = self.path / INDEX
        if not index.is_file():
            beside = ", ".join(sorted(file.parent.name for file in path.glob(f"*/{INDEX}")))
            raise ConfigError(f'--path: there is no file "{INDEX}" in {path}' + (beside and f"; there is in {beside}"))
        leaves = _leaves(index)
        opening = {name: self._open(name, leaf) for name, leaf in leaves.items()}  # all at once, then waited for
        self._stored = {name: self._opened(name, future) for name, future in opening.items()}
        size = 0
        for name, stored in self._stored.items():
            dtype = getattr(stored.dtype, "numpy_dtype", stored.dtype)
            if not jnp.issubdtype(dtype, jnp.floating):
                raise ConfigError(f"--path: {name} is of {dtype}, and not of a floating-point type")
            size += math.prod(stored.shape) * dtype.itemsize
            part = () if isinstance(stored, np.ndarray) else stored.chunk_layout.read_chunk.shape
            if any(one > max(whole, 1) for one, whole in zip(part, stored.shape, strict=False)):
                raise ConfigError(f"--path: {name} of shape {tuple(stored.shape)} has parts of {tuple(part)}")
        on_disk = sum(file.stat().st_size for file in self.path.rglob("*") if file.is_file())
        check_expansion(size, on_disk, "--path", self.path)

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Of all tensors of the network, by name: "target/encoder/encoder_norm/scale"."""
        return {name: tuple(stored.shape) for name, stored in self._stored.items()}

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """A part of the tensor `name`. Raises ConfigError if a file that it lies in is missing or broken."""
        stored = self._stored[name]
        if isinstance(stored, np.ndarray):
            return stored[index]
        try:
            return stored[index].read().result()
        except MemoryError:
            raise
        except Exception as error:  # tensorstore has no error of its own
            raise _unreadable(name, error) from error

    def _open(self, name: str, leaf: Any) -> Any:
        """What the index has for a tensor: an array, or where one is, which becomes a promise of it."""
        if isinstance(leaf, np.ndarray):
            return leaf
        where = _where(leaf)
        if where is None:
            raise ConfigError(f"--path: the index does not say where {name} is")
        # A checkpoint may come from anywhere: what it names outside of its directory is not opened.
        try:
            place, root = (self.path / where).resolve(), self.path.resolve()
            there = (place / ".zarray").is_file()
        except (OSError, RuntimeError) as error:  # a name too long; links in a circle
            raise ConfigError(f"--path: the index has {name} at {where[:80]}, which is no place ({error})") from error
        if root not in place.parents:
            raise ConfigError(f"--path: the index has {name} at {where}, which is not inside {self.path}")
        if not there:
            raise ConfigError(f"--path: {name} is missing, there is no zarr array {where} in {self.path}")
        # Parts that are missing would be read as zeros.
        found = {"driver": "zarr", "kvstore": {"driver": "file", "path": f"{place}/"}, "fill_missing_data_reads": False}
        return tensorstore.open(found, open=True, read=True)

    def _opened(self, name: str, future: Any) -> np.ndarray | tensorstore.TensorStore:
        try:
            return future if isinstance(future, np.ndarray) else future.result()
        except Exception as error:  # tensorstore has no error of its own
            raise _unreadable(name, error) from error


def _leaves(index: Path) -> dict[str, Any]:
    """What the index has for each tensor of the network, by name."""
    try:
        contents = flax.serialization.msgpack_restore(index.read_bytes())
        leaves = dict(_flat(TARGET, contents.get("optimizer", contents)[TARGET]))
    except Exception as error:  # whatever stands in a file that is none of T5X's
        raise ConfigError(f'--path: {index} is no index of T5X, a msgpack with a "{TARGET}"') from error
    for name in leaves:
        if not name.isprintable():
            raise ConfigError(f"--path: {index} has a tensor of the name {name!r}")
    return leaves


def _flat(name: str, node: Any) -> Iterator[tuple[str, Any]]:
    if not isinstance(node, dict) or node.keys() >= _SPEC:
        yield name, node
        return
    for key, below in node.items():
        yield from _flat(f"{name}/{key}", below)


def _where(leaf: Any) -> str | None:
    """The path that a placeholder or a specification has, or None."""
    if isinstance(leaf, str):
        where = leaf.removeprefix(PLACEHOLDER) if leaf.startswith(PLACEHOLDER) else None
    elif isinstance(leaf, dict) and isinstance(leaf["kvstore"], dict):
        where = leaf["kvstore"].get("path", leaf.get("path"))  # beside the store in those of 2021
    else:
        where = None
    return where if isinstance(where, str) and where and where.isprintable() else None


def _unreadable(name: str, error: Exception) -> ConfigError:
    return ConfigError(f"--path: {name} cannot be read: {str(error).partition(' [tensorstore_spec')[0]}")


def open_t5(path: str | Path) -> Opened:
    """A T5 that T5X wrote: v1.0, v1.1, mT5, ByT5, FLAN. Raises ConfigError as `T5X` and `t5_config` do."""
    reader = T5X(path)
    model, classes = t5_config(reader.shapes())
    return Opened(reader, model, classes, t5_tensors(model), lambda name: False)


def t5_config(shapes: Mapping[str, tuple[int, ...]]) -> tuple[T5Config, int]:
    """(settings, rows of the embedding) of a T5 whose tensors have these shapes: T5X keeps no settings beside them.

    No shape tells the activation, ReLU or in gated MLPs GELU; the largest distance, 128; and dropout, .1 as T5 was
    fine-tuned with.

    Raises:
      ConfigError: a tensor that sizes are read from is missing or cannot be a T5's.
    """
    if any(name.startswith(f"{TARGET}/{stack}/{stack}/") for name in shapes for stack in (ENCODER, DECODER)):
        raise ConfigError(
            "--path: T5X's scanned T5s have a table of distances in every layer, and this model one a stack"
        )

    sizes = lambda name: sizes_of(shapes, f"{TARGET}/{name}", 2)
    classes, d_model = sizes("token_embedder/embedding")
    heads, buckets = sizes(f"{ENCODER}/relpos_bias/rel_embedding")
    _, joined = sizes(f"{ENCODER}/layers_0/attention/query/kernel")
    d_ff, _ = sizes(f"{ENCODER}/layers_0/mlp/wo/kernel")
    if not heads or joined % heads:
        raise ConfigError(f"checkpoint: queries of {joined} numbers cannot be of {heads} heads")
    gated = f"{TARGET}/{ENCODER}/layers_0/mlp/wi_0/kernel" in shapes
    try:
        mlp = MLPConfig(
            d_ff=d_ff,
            sparsifier=GeluTanh() if gated else Relu(),
            gated=gated,
            use_bias=False,
            dropout=0.1,
            init="t5",
            shared_dropout=True,
        )
        return T5Config(
            mlp=mlp,
            d_model=d_model,
            layers=depth_of(shapes, f"{TARGET}/{ENCODER}/layers_", "/"),
            decoder_layers=depth_of(shapes, f"{TARGET}/{DECODER}/layers_", "/"),
            heads=heads,
            head_dim=joined // heads,
            buckets=buckets,
            tied=f"{TARGET}/{DECODER}/logits_dense/kernel" not in shapes,
        ), classes
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"checkpoint: {error}") from error


def t5_tensors(config: T5Config) -> dict[str, Tensor]:
    """The tensors of a T5's parameters, by path. Kernels are [inputs, outputs], as ours; heads are joined."""
    out = {"embedding": _tensor("token_embedder/embedding")}
    if not config.tied:
        out["head/kernel"] = _tensor(f"{DECODER}/logits_dense/kernel")
    for stack in (ENCODER, DECODER):
        out[f"{stack}/norm/scale"] = _tensor(f"{stack}/{stack}_norm/scale")
        # Of heads and buckets, ours of buckets and heads.
        out[f"{stack}/bias/embedding"] = _tensor(f"{stack}/relpos_bias/rel_embedding", order=MATRIX)
        for path, name in _layer(stack, config.mlp.gated).items():
            names = [f"{stack}/layers_{i}/{name}" for i in range(config.depth(stack))]
            out[f"{stack}/layers/{path}"] = _tensor(*names, stacked=True)
    return out


def _tensor(*names: str, **settings: Any) -> Tensor:
    return Tensor(tuple(f"{TARGET}/{name}" for name in names), **settings)


def _layer(stack: str, gated: bool) -> dict[str, str]:
    """Tensors of one layer by the path within it."""
    out = {f"{ours}/scale": f"{theirs}_layer_norm/scale" for ours, theirs in _NORMS[stack].items()}
    for ours, theirs in _ATTENTIONS[stack].items():
        for name in ("query", "key", "value", "out"):
            out[f"{ours}/{name}/kernel"] = f"{theirs}/{name}/kernel"
    matrices = {"wi": "wi_0", "wi_gate": "wi_1", "wo": "wo"} if gated else {"wi": "wi", "wo": "wo"}
    return out | {f"mlp/{ours}/kernel": f"mlp/{theirs}/kernel" for ours, theirs in matrices.items()}
