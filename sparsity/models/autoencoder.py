"""A denoising autoencoder of one hidden layer (Bricken et al. 2023, Eq. 2)."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from sparsity.layers.mlp import MLPConfig, SparseMLP, mlp_flops
from sparsity.layers.sparsify import Context
from sparsity.ops.sparsifiers import Sparsifier


@dataclasses.dataclass(frozen=True)
class AutoencoderConfig:
    """Settings of an autoencoder: y = phi(x W_e + b_e) W_d + b_d, x all pixels of an image.

    It denoises what the run's `noise` adds to x: the loss compares y with the image without it.

    Attributes:
      mlp: the hidden layer, ungated; its `wi` is the encoder W_e, its `wo` the decoder W_d.
    """

    mlp: MLPConfig

    task: ClassVar[str] = "reconstruction"
    inputs: ClassVar[tuple[str, ...]] = ("image",)

    def __post_init__(self):
        if self.mlp.gated:
            raise ValueError("mlp.gated: an autoencoder's hidden layer has no gate")

    def reduced(self, parts: int) -> AutoencoderConfig:
        """The same with few units; `parts` devices split them."""
        return dataclasses.replace(self, mlp=self.mlp.reduced(parts))

    def build(self, classes: int | None) -> Autoencoder:
        """The module that maps images to images; `classes` do not matter."""
        return Autoencoder(self)

    def check_input(self, shape: tuple[int, ...]) -> None:
        """Images of any `shape` [height, width, channels] fit: they are read as one vector."""

    def layers(self) -> tuple[str, ...]:
        """The name that the hidden layer records under."""
        return ("hidden",)

    def encoder(self, params: Any) -> tuple[jax.Array, jax.Array]:
        """W_e [inputs, F] and b_e, [F], or [] if it is shared or there is none."""
        hidden = params["hidden"]
        if self.mlp.shared_bias:
            return hidden["wi"]["kernel"], hidden["shared_bias"]
        return hidden["wi"]["kernel"], hidden["wi"].get("bias", jnp.zeros(()))

    @property
    def phi(self) -> Sparsifier:
        """What makes h from z."""
        return self.mlp.sparsifier

    def tokens(self, shape: tuple[int, ...]) -> int:
        """Positions that share the weights: one."""
        return 1

    def skippable_flops(self, shape: tuple[int, ...], classes: int | None) -> dict[str, float]:
        """FLOPs of the decoder: what zeros of h can save."""
        return {"hidden": mlp_flops(self.mlp, math.prod(shape), 1.0).second}

    def flops(self, shape: tuple[int, ...], classes: int | None, density: dict[str, float] | None = None) -> float:
        """Forward FLOPs per image: matrix products only, a multiply-add is 2; `density` skips zeros of h."""
        flops = mlp_flops(self.mlp, math.prod(shape), 1.0 if density is None else density["hidden"])
        return flops.first + flops.second_sparse


class Autoencoder(nn.Module):
    """Images [B, height, width, channels] to images of the same shape."""

    config: AutoencoderConfig

    @nn.compact
    def __call__(self, images: jax.Array, ctx: Context) -> jax.Array:
        x_Bx1xD = images.reshape(len(images), 1, -1)
        return SparseMLP(self.config.mlp, name="hidden")(x_Bx1xD, ctx).reshape(images.shape)
