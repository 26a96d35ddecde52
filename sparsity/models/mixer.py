"""MLP-Mixer (Tolstikhin et al. 2021) with any sparsifier in its token and in its channel MLPs (Li et al. 2022, B.1)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from sparsity import axes
from sparsity.layers.dense import dense
from sparsity.layers.mlp import MLPConfig, SparseMLP, kept_flops, mlp_flops
from sparsity.layers.norms import layer_norm
from sparsity.layers.sparsify import Context
from sparsity.models.vit import patches

TOKEN, CHANNEL = "token", "channel"


@dataclasses.dataclass(frozen=True)
class MixerConfig:
    """Settings of an MLP-Mixer. No attention, no positions, no dropout but that of its MLPs.

    Attributes:
      mlp: the channel MLP of every block, which reads the d_model numbers of a token.
      token_mlp: the token MLP of every block, which reads one number of each of the image's tokens, channel by channel.
      d_model: width D.
      layers: number of blocks.
      patch: side of a square patch in pixels; divides the image's height and width.
      dtype: compute dtype; parameters are float32.
    """

    mlp: MLPConfig
    token_mlp: MLPConfig
    d_model: int
    layers: int
    patch: int
    dtype: Literal["float32", "bfloat16"] = "float32"

    task: ClassVar[str] = "classification"
    inputs: ClassVar[tuple[str, ...]] = ("image",)

    def __post_init__(self):
        for field in ("d_model", "layers", "patch"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field}: must be at least 1, got {getattr(self, field)}")

    def reduced(self, parts: int) -> MixerConfig:
        """Two narrow blocks of the same kind; `parts` devices split hidden units and width."""
        return dataclasses.replace(
            self,
            mlp=self.mlp.reduced(parts),
            token_mlp=self.token_mlp.reduced(parts),
            d_model=axes.narrowed(self.d_model, parts),
            layers=min(self.layers, 2),
        )

    def build(self, classes: int) -> Mixer:
        """The module that maps images to logits over `classes`."""
        return Mixer(self, classes)

    def check_input(self, shape: tuple[int, ...]) -> None:
        """Raises ValueError unless images of `shape` [height, width, channels] fit the patches."""
        if shape[0] % self.patch or shape[1] % self.patch:
            raise ValueError(f"patch: {self.patch} does not divide the image's {shape[0]}x{shape[1]} pixels")

    def mlps(self) -> dict[str, MLPConfig]:
        """Every MLP of the model by the name it records under, in order."""
        kinds = {TOKEN: self.token_mlp, CHANNEL: self.mlp}
        return {f"block_{i}/{kind}": mlp for i in range(self.layers) for kind, mlp in kinds.items()}

    def tokens(self, shape: tuple[int, ...]) -> int:
        """Tokens L of images of `shape` [height, width, channels]: their patches."""
        return (shape[0] // self.patch) * (shape[1] // self.patch)

    def skippable_flops(self, shape: tuple[int, ...], classes: int) -> dict[str, float]:
        """FLOPs per token of each MLP's second matrix: what zeros of its h can save.

        A token MLP runs once a channel on L numbers, so that D / L times its FLOPs fall on a token.
        """
        length = self.tokens(shape)
        seconds = {
            TOKEN: mlp_flops(self.token_mlp, length, 1.0).second * self.d_model / length,
            CHANNEL: mlp_flops(self.mlp, self.d_model, 1.0).second,
        }
        return {name: seconds[name.split("/")[1]] for name in self.mlps()}

    def flops(self, shape: tuple[int, ...], classes: int, density: dict[str, float] | None = None) -> float:
        """Forward FLOPs per token: matrix products only, a multiply-add is 2.

        `density` by layer skips the zeros in each second MLP matrix; None is the dense model. The head is spread over
        the tokens.
        """
        length, d = self.tokens(shape), self.d_model
        firsts = mlp_flops(self.token_mlp, length, 1.0).first * d / length + mlp_flops(self.mlp, d, 1.0).first
        total = 2.0 * (self.patch**2 * shape[2] * d + d * classes / length) + self.layers * firsts
        return total + kept_flops(self.skippable_flops(shape, classes), density)


class MixerBlock(nn.Module):
    """x + (token MLP of norm(x)^T)^T, then x + channel MLP of norm(x)."""

    config: MixerConfig

    @nn.compact
    def __call__(self, x_BxLxD: jax.Array, ctx: Context) -> jax.Array:
        cfg = self.config
        y_BxDxL = layer_norm("norm_token", cfg.dtype)(x_BxLxD).swapaxes(1, 2)
        x_BxLxD = x_BxLxD + SparseMLP(cfg.token_mlp, cfg.dtype, name=TOKEN)(y_BxDxL, ctx).swapaxes(1, 2)
        y_BxLxD = layer_norm("norm_channel", cfg.dtype)(x_BxLxD)
        return x_BxLxD + SparseMLP(cfg.mlp, cfg.dtype, name=CHANNEL)(y_BxLxD, ctx)


class Mixer(nn.Module):
    """Images [B, height, width, channels] to float32 logits [B, classes], from the mean over tokens."""

    config: MixerConfig
    classes: int

    @nn.compact
    def __call__(self, images: jax.Array, ctx: Context) -> jax.Array:
        cfg = self.config
        x_BxLxD = dense(cfg.d_model, ("patch", "embed"), dtype=cfg.dtype, name="embed")(patches(images, cfg.patch))
        x_BxLxD = axes.constrain(x_BxLxD, ("batch", "length", "embed"))
        for i in range(cfg.layers):
            x_BxLxD = MixerBlock(cfg, name=f"block_{i}")(x_BxLxD, ctx)
        x_BxD = layer_norm("norm", cfg.dtype)(x_BxLxD).mean(axis=1)
        precise = jnp.promote_types(x_BxD.dtype, jnp.float32)
        names = ("embed", "classes")
        head = dense(self.classes, names, kernel_init=nn.initializers.zeros, dtype=precise, name="head")
        return head(x_BxD.astype(precise))
