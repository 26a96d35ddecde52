"""Vision Transformer (Dosovitskiy et al. 2021) with any sparsifier in its MLPs (Li et al. 2022)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sparsity import axes
from sparsity.config import later
from sparsity.layers.attention import SelfAttention
from sparsity.layers.dense import dense, named
from sparsity.layers.mlp import MLPConfig, SparseMLP, mlp_flops
from sparsity.layers.norms import layer_norm
from sparsity.layers.scan import Remat, rematerialised
from sparsity.layers.sparsify import Context


@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """Settings of a ViT.

    Attributes:
      mlp: the MLP of every block.
      d_model: width D.
      layers: number of blocks.
      heads: attention heads; divides d_model.
      patch: side of a square patch in pixels; divides the image's height and width.
      pool: what the head reads: a class token, or the mean over tokens (gap).
      dropout: rate after the position embedding and after each attention and MLP output.
      dtype: compute dtype; parameters are float32.
      positions: what is added to the patches: "learned", a vector each, the class token's included, or "sincos",
        see `sincos`, and nothing to the class token.
      representation: numbers of a tanh layer in front of the head (ImageNet-21k's recipe has as many as d_model); None
        for no such layer.
      head_bias: where the head's biases start; -10 in ImageNet-21k's recipe, whose loss is that of each class alone.
      norm_epsilon: of every LayerNorm, added to the variance; transformers' ViTs have 1e-12.
      remat: what is kept of a block's forward pass for its backward pass, see `layers.scan.rematerialised`.
    """

    mlp: MLPConfig
    d_model: int
    layers: int
    heads: int
    patch: int
    pool: Literal["cls", "gap"] = "cls"
    dropout: float = 0.0
    dtype: Literal["float32", "bfloat16"] = "float32"
    positions: Literal["learned", "sincos"] = later("learned")
    representation: int | None = later(None)
    head_bias: float = later(0.0)
    norm_epsilon: float = later(1e-6)
    remat: Remat = later("none")

    task: ClassVar[str] = "classification"
    inputs: ClassVar[tuple[str, ...]] = ("image",)

    def __post_init__(self):
        for field in ("d_model", "layers", "heads", "patch"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field}: must be at least 1, got {getattr(self, field)}")
        if self.d_model % self.heads:
            raise ValueError(f"heads: {self.heads} does not divide d_model {self.d_model}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: must be in [0, 1), got {self.dropout}")
        if self.positions == "sincos" and self.d_model % 4:
            raise ValueError(f"positions: sincos needs a d_model that 4 divides, got {self.d_model}")
        if self.representation is not None and self.representation < 1:
            raise ValueError(f"representation: must be at least 1, or None, got {self.representation}")
        if self.norm_epsilon <= 0:
            raise ValueError(f"norm_epsilon: must be positive, got {self.norm_epsilon}")

    def reduced(self, parts: int) -> ViTConfig:
        """Two narrow blocks of the same kind; `parts` devices split heads and hidden units."""
        heads = axes.narrowed(self.heads, parts, 2)
        d_model = heads * min(self.d_model // self.heads, 8)
        mlp, layers = self.mlp.reduced(parts), min(self.layers, 2)
        representation = None if self.representation is None else min(self.representation, 16)
        sizes = {"d_model": d_model, "layers": layers, "heads": heads, "representation": representation}
        return dataclasses.replace(self, mlp=mlp, **sizes)

    def build(self, classes: int) -> ViT:
        """The module that maps images to logits over `classes`."""
        return ViT(self, classes)

    def check_input(self, shape: tuple[int, ...]) -> None:
        """Raises ValueError unless images of `shape` [height, width, channels] fit the patches."""
        if shape[0] % self.patch or shape[1] % self.patch:
            raise ValueError(f"patch: {self.patch} does not divide the image's {shape[0]}x{shape[1]} pixels")

    def mlps(self) -> dict[str, MLPConfig]:
        """Every MLP of the model by the name it records under, in order."""
        return {f"block_{i}": self.mlp for i in range(self.layers)}

    def tokens(self, shape: tuple[int, ...]) -> int:
        """Sequence length L for images of `shape` [height, width, channels]."""
        return (shape[0] // self.patch) * (shape[1] // self.patch) + (self.pool == "cls")

    def skippable_flops(self, shape: tuple[int, ...], classes: int) -> dict[str, float]:
        """FLOPs per token of each block's second MLP matrix: what zeros of its h can save."""
        return {name: mlp_flops(mlp, self.d_model, 1.0).second for name, mlp in self.mlps().items()}

    def flops(self, shape: tuple[int, ...], classes: int, density: dict[str, float] | None = None) -> float:
        """Forward FLOPs per token: matrix products only, a multiply-add is 2.

        `density` by layer skips the zeros in each second MLP matrix; None is the dense model.
        The head and the patch embedding are spread over the tokens.
        """
        length, d = self.tokens(shape), self.d_model
        patches = length - (self.pool == "cls")
        head = d * classes if self.representation is None else (d + classes) * self.representation
        total = 2.0 * (patches * self.patch**2 * shape[2] * d + head) / length
        for name, mlp in self.mlps().items():
            flops = mlp_flops(mlp, d, 1.0 if density is None else density[name])
            total += 8.0 * d * d + 4.0 * length * d + flops.first + flops.second_sparse
        return total


class Block(nn.Module):
    """Pre-norm Transformer block: x + attention(norm(x)), then x + MLP(norm(x))."""

    config: ViTConfig

    @nn.compact
    def __call__(self, x_BxLxD: jax.Array, ctx: Context) -> jax.Array:
        cfg = self.config
        drop = nn.Dropout(cfg.dropout, deterministic=not ctx.train)
        y_BxLxD = layer_norm("norm_attention", cfg.dtype, cfg.norm_epsilon)(x_BxLxD)
        y_BxLxD = SelfAttention(cfg.heads, cfg.dropout, dtype=cfg.dtype, name="attention")(y_BxLxD, ctx)
        x_BxLxD = x_BxLxD + drop(y_BxLxD)
        y_BxLxD = layer_norm("norm_mlp", cfg.dtype, cfg.norm_epsilon)(x_BxLxD)
        return x_BxLxD + drop(SparseMLP(cfg.mlp, cfg.dtype, name="mlp")(y_BxLxD, ctx))


class ViT(nn.Module):
    """Images [B, height, width, channels] to float32 logits [B, classes]."""

    config: ViTConfig
    classes: int

    @nn.compact
    def __call__(self, images: jax.Array, ctx: Context) -> jax.Array:
        cfg = self.config
        x_BxLxD = dense(cfg.d_model, ("patch", "embed"), dtype=cfg.dtype, name="embed")(patches(images, cfg.patch))
        batch, _, d_model = x_BxLxD.shape
        if cfg.positions == "sincos":
            grid = images.shape[1] // cfg.patch, images.shape[2] // cfg.patch
            x_BxLxD = x_BxLxD + jnp.asarray(sincos(*grid, d_model), x_BxLxD.dtype)
        if cfg.pool == "cls":
            cls_1xD = self.param("cls", named(nn.initializers.zeros, "position", "embed"), (1, d_model))
            cls_Bx1xD = jnp.broadcast_to(cls_1xD.astype(x_BxLxD.dtype), (batch, 1, d_model))
            x_BxLxD = jnp.concatenate([cls_Bx1xD, x_BxLxD], axis=1)
        if cfg.positions == "learned":
            position = named(nn.initializers.normal(0.02), "position", "embed")
            position_LxD = self.param("position", position, x_BxLxD.shape[1:])
            x_BxLxD = x_BxLxD + position_LxD.astype(x_BxLxD.dtype)
        x_BxLxD = nn.Dropout(cfg.dropout, deterministic=not ctx.train)(x_BxLxD)
        x_BxLxD = axes.constrain(x_BxLxD, ("batch", "length", "embed"))
        block = rematerialised(Block, cfg.remat)
        for name in cfg.mlps():
            x_BxLxD = block(cfg, name=name)(x_BxLxD, ctx)
        x_BxLxD = layer_norm("norm", cfg.dtype, cfg.norm_epsilon)(x_BxLxD)
        x_BxD = x_BxLxD[:, 0] if cfg.pool == "cls" else x_BxLxD.mean(axis=1)
        precise = jnp.promote_types(x_BxD.dtype, jnp.float32)
        if cfg.representation is not None:
            into = dense(cfg.representation, ("embed", "mlp"), dtype=cfg.dtype, name="representation")
            x_BxD = jnp.tanh(into(x_BxD))
        head = dense(
            self.classes,
            ("embed" if cfg.representation is None else "mlp", "classes"),
            kernel_init=nn.initializers.zeros,
            bias_init=nn.initializers.constant(cfg.head_bias),
            dtype=precise,
            name="head",
        )
        return head(x_BxD.astype(precise))


def sincos(rows: int, columns: int, d_model: int) -> np.ndarray:
    """Positions [rows * columns, D] of a grid, row by row: sin, cos of the column, then of the row (Chen et al. 2021).

    Each at D / 4 frequencies, from 1 down to 1 / 10,000, in a geometric series.

    >>> sincos(1, 2, 4).round(3)
    array([[0.   , 1.   , 0.   , 1.   ],
           [0.841, 0.54 , 0.   , 1.   ]])
    """
    y, x = np.mgrid[:rows, :columns]
    frequencies = 1e4 ** -np.linspace(0, 1, d_model // 4)
    angles = [np.outer(place.ravel(), frequencies) for place in (x, y)]
    return np.concatenate([f(a) for a in angles for f in (np.sin, np.cos)], axis=1)


def patches(images: jax.Array, side: int) -> jax.Array:
    """Images [B, h, w, c] as flattened square patches [B, (h/side)(w/side), side*side*c], row by row."""
    batch, height, width, channels = images.shape
    x = images.reshape(batch, height // side, side, width // side, side, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, -1, side * side * channels)
