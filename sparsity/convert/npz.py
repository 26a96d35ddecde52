"""Vision Transformers of vision_transformer and of big_vision: one .npz file, and no settings beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from sparsity.config import ConfigError, path_of
from sparsity.convert.tensors import Opened, Tensor, depth_of, sizes_of
from sparsity.convert.vit import NEW_HEAD, cls_tensor, grid_of, position_tensor, refuse, side_of, vit_settings
from sparsity.data.arrays import Archive
from sparsity.models.vit import ViTConfig
from sparsity.ops.sparsifiers import GeluTanh

PREFIXES = ("params/", "opt/target/", "")  # of the network's names: big_vision's, its former one, vision_transformer's
FIRST = "embedding/kernel"
POSITIONS = ("pos_embedding", "Transformer/posembed_input/pos_embedding", "Transformer/pos_embedding")
BLOCK = "Transformer/encoderblock"
# A block's first LayerNorm, attention and second LayerNorm, as vision_transformer numbers them and as big_vision does.
NUMBERS = {"MlpBlock_3": (0, 1, 2), "MlpBlock_0": (0, 0, 1)}
LACKING = {
    "MAPHead_0": "a head that pools by attention (map)",
    "probe": "a head that pools by attention (map)",
    "conv_root": "a ResNet in front of its blocks (a hybrid)",
}
UNKNOWN_SIZE = 224  # pixels of a side, where positions are computed and fit all


class Npz:
    """The network in an .npz file; an optimizer's state is not looked at.

    Raises:
      ConfigError: as `Archive` does; or it has no network of these formats, or a tensor that is not of floating-point
        numbers.
    """

    def __init__(self, path: str | Path):
        self._archive = Archive(path_of(path, "--path"), "--path")
        headers = self._archive.headers
        prefixes = [prefix for prefix in PREFIXES if prefix + FIRST in headers]
        if not prefixes:
            path = self._archive.path
            raise ConfigError(f"--path: {path} has no {FIRST}: it is no ViT of vision_transformer or big_vision")
        self._prefix = prefixes[0]
        headers = {name: header for name, header in headers.items() if name.startswith(self._prefix)}
        for name, (_, dtype) in headers.items():
            if not jnp.issubdtype(dtype, jnp.floating):
                raise ConfigError(f"--path: {name} is of {dtype}, and not of a floating-point type")
        self._shapes = {name.removeprefix(self._prefix): shape for name, (shape, _) in headers.items()}
        self._last = ("", np.empty(0))

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Of all tensors of the network, by name: "Transformer/encoder_norm/scale"."""
        return self._shapes

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """A part of the tensor `name`; the file holds it whole, and the last one read is kept."""
        if self._last[0] != name:
            self._last = ("", np.empty(0))  # before the next is read
            self._last = (name, self._archive.read(f"{self._prefix}{name}"))
        return self._last[1][index]


def open_vit(path: str | Path) -> Opened:
    """A ViT of vision_transformer or of big_vision, its blocks apart or stacked (scanned).

    The GELU is flax's, its approximation by tanh. Without positions among the tensors they are big_vision's sincos2d.

    Raises:
      ConfigError: as `Npz` does; or the ViT has parts that this model lacks; or sizes cannot be a ViT's.
    """
    reader = Npz(path)
    shapes = reader.shapes()
    refuse(shapes, LACKING)
    height, width, channels, d_model = sizes_of(shapes, FIRST, 4)
    patch, cls = side_of(FIRST, height, width), "cls" in shapes
    scanned = any(name.startswith(f"{BLOCK}/") for name in shapes)
    first = BLOCK if scanned else f"{BLOCK}_0"
    mlp = next((mlp for mlp in NUMBERS if f"{first}/{mlp}/Dense_0/kernel" in shapes), "MlpBlock_0")
    *layers, _, d_ff = sizes_of(shapes, f"{first}/{mlp}/Dense_0/kernel", 2 + scanned)
    *_, heads, _ = sizes_of(shapes, f"{first}/MultiHeadDotProductAttention_{NUMBERS[mlp][1]}/query/kernel", 3 + scanned)
    positions = next((name for name in POSITIONS if name in shapes), None)
    side, own = UNKNOWN_SIZE // patch, True
    if positions is not None:
        side, own = grid_of(sizes_of(shapes, positions, 3)[1], cls)
    model = vit_settings(
        d_ff,
        GeluTanh,
        d_model=d_model,
        layers=layers[0] if scanned else depth_of(shapes, f"{BLOCK}_", "/"),
        heads=heads,
        patch=patch,
        pool="cls" if cls else "gap",
        positions="learned" if positions else "sincos",
        representation=sizes_of(shapes, "pre_logits/kernel", 2)[1] if "pre_logits/kernel" in shapes else None,
    )
    tensors = _outside(model) | NEW_HEAD
    if positions is not None:
        tensors["position"] = position_tensor(positions, zeros=cls and not own)
    classes = None
    if "head/kernel" in shapes:
        classes = sizes_of(shapes, "head/kernel", 2)[1]
        tensors |= {f"head/{leaf}": Tensor((f"head/{leaf}",)) for leaf in ("kernel", "bias")}
    for i in range(model.layers):
        tensors |= _block(model, i, scanned, NUMBERS[mlp], mlp)
    image = (side * patch, side * patch, channels)
    return Opened(reader, model, classes, tensors, lambda name: False, image=image, pixels="signed")


def _outside(model: ViTConfig) -> dict[str, Tensor]:
    """Tensors outside of the blocks, positions and head apart. Kernels are [inputs, outputs], as ours."""
    out = {
        "embed/kernel": Tensor((FIRST,), split=((model.patch, model.patch, -1), (-1,))),
        "embed/bias": Tensor(("embedding/bias",)),
        "norm/scale": Tensor(("Transformer/encoder_norm/scale",)),
        "norm/bias": Tensor(("Transformer/encoder_norm/bias",)),
    }
    if model.pool == "cls":
        out["cls"] = cls_tensor("cls")
    if model.representation is not None:
        out |= {f"representation/{leaf}": Tensor((f"pre_logits/{leaf}",)) for leaf in ("kernel", "bias")}
    return out


def _block(model: ViTConfig, i: int, scanned: bool, numbers: tuple[int, ...], mlp: str) -> dict[str, Tensor]:
    """Tensors of one block: its own, or its rows of those of all."""

    def tensor(name, *split):
        if not scanned:
            return Tensor((f"{BLOCK}_{i}/{name}",), split=split)
        return Tensor((f"{BLOCK}/{name}",), split=((1, *split[0]), *split[1:]), part=(i, model.layers))

    left, heads = (-1,), (model.heads, -1)
    before, attention, between = numbers
    out = {}
    for ours, number in (("norm_attention", before), ("norm_mlp", between)):
        out |= {f"{ours}/{leaf}": tensor(f"LayerNorm_{number}/{leaf}", left) for leaf in ("scale", "bias")}
    for name in ("query", "key", "value", "out"):
        theirs = f"MultiHeadDotProductAttention_{attention}/{name}"
        joined = (heads, left) if name == "out" else (left, heads)
        out[f"attention/{name}/kernel"] = tensor(f"{theirs}/kernel", *joined)
        out[f"attention/{name}/bias"] = tensor(f"{theirs}/bias", left if name == "out" else heads)
    for ours, theirs in (("wi", "Dense_0"), ("wo", "Dense_1")):
        out[f"mlp/{ours}/kernel"] = tensor(f"{mlp}/{theirs}/kernel", left, left)
        out[f"mlp/{ours}/bias"] = tensor(f"{mlp}/{theirs}/bias", left)
    return {f"block_{i}/{path}": tensor for path, tensor in out.items()}
