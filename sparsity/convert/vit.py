"""What the formats of Vision Transformers have in common."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from sparsity.config import ConfigError
from sparsity.convert.tensors import WINDOW, Tensor
from sparsity.layers.mlp import MLPConfig
from sparsity.models.vit import ViTConfig
from sparsity.ops.sparsifiers import Sparsifier

NEW_HEAD = {"head/kernel": Tensor(()), "head/bias": Tensor(())}  # of a checkpoint that has none


def vit_settings(d_ff: int, activation: type[Sparsifier], **settings: Any) -> ViTConfig:
    """The settings of a ViT. Raises ConfigError if they cannot be one's."""
    try:
        return ViTConfig(mlp=MLPConfig(d_ff=d_ff, sparsifier=activation()), **settings)
    except ValueError as error:
        raise ConfigError(f"checkpoint: {error}") from error


def grid_of(positions: int, cls: bool) -> tuple[int, bool]:
    """(patches along a side of the image, which is square; whether the class token has one of the positions).

    Raises:
      ConfigError: there is no such square.
    """
    for own in (True, False) if cls else (False,):
        side = math.isqrt(positions - own)
        if side and side**2 == positions - own:
            return side, own
    raise ConfigError(f"checkpoint: {positions} positions are not those of a square of patches")


def pixels_of(mean: Any) -> str | None:
    """What sources call pixels less that `mean`, channel by channel, over their deviation; None: nothing.

    >>> pixels_of([0.5, 0.5, 0.5]), pixels_of([0.485, 0.456, 0.406])
    ('signed', 'standardised')
    """
    scales = {"signed": [0.5] * 3, "standardised": [0.485, 0.456, 0.406]}
    return next((name for name, of in scales.items() if isinstance(mean, (list, tuple)) and list(mean) == of), None)


def position_tensor(name: str, zeros: bool = False) -> Tensor:
    """[L, D] of [1, L, D]; with `zeros` the class token has no position of its own."""
    return Tensor((name,), split=((1, -1), (-1,)), zeros=int(zeros))


def cls_tensor(name: str) -> Tensor:
    """[1, D] of [1, 1, D]."""
    return Tensor((name,), split=((1, 1), (-1,)))


def torch_patches(name: str, side: int) -> dict[str, Tensor]:
    """The embedding of patches, of torch's `nn.Conv2d` of that name."""
    kernel = Tensor((f"{name}.weight",), WINDOW, ((side, side, -1), (-1,)))
    return {"embed/kernel": kernel, "embed/bias": Tensor((f"{name}.bias",))}


def side_of(kernel: str, height: int, width: int) -> int:
    """Side of a patch. Raises ConfigError if it is not square."""
    if height != width:
        raise ConfigError(f"checkpoint: {kernel} has patches of {height}x{width}, and this model's are square")
    return height


def refuse(names: Iterable[str], parts: Mapping[str, str]) -> None:
    """Raises ConfigError if a tensor's name has one of `parts` in it, which this model lacks; each with what it is."""
    for name in names:
        for part, what in parts.items():
            if part in name:
                raise ConfigError(f"checkpoint: has {what} ({name}), and this model has not")
