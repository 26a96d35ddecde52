"""GPT-2 (Radford et al. 2019) with any sparsifier in its MLPs and noise in front of them (Bricken et al. 2023)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from sparsity import axes
from sparsity.config import later
from sparsity.layers.attention import SelfAttention
from sparsity.layers.dense import named
from sparsity.layers.initializers import gpt2_weights
from sparsity.layers.mlp import MLPConfig, SparseMLP, mlp_flops
from sparsity.layers.noise import Noise
from sparsity.layers.norms import layer_norm
from sparsity.layers.scan import Remat, rematerialised
from sparsity.layers.sparsify import Context
from sparsity.models.decoder import Decoder

_EPSILON = 1e-5  # of every LayerNorm


@dataclasses.dataclass(frozen=True)
class GPT2Config:
    """Settings of a GPT-2: a decoder that predicts the next token from those up to it.

    Matrices and both embeddings start from N(0, .02^2), those that write to the residual stream from
    N(0, .02^2 / (2 layers)), biases at 0: Hugging Face's GPT-2, which Bricken et al. train (OpenAI's code has .01 for
    positions). Of the MLP this is so where `mlp.init` is "gpt2".

    Attributes:
      mlp: the MLP of every block; its noise is added to what comes out of the block's second LayerNorm.
      d_model: width D.
      layers: number of blocks.
      heads: attention heads; divides d_model.
      positions: rows of the learned position embedding: the longest sequence that can be read.
      noise_before_norm: the MLP's noise is added to what its LayerNorm reads instead, on the MLP's branch alone. The
        paper says "in front of each MLP", which may mean either.
      dropout: rate after the embeddings, on attention weights, and after each attention and MLP output.
      dtype: compute dtype; parameters are float32.
      remat: what is kept of a block's forward pass for its backward pass, see `layers.scan.rematerialised`.
    """

    mlp: MLPConfig
    d_model: int
    layers: int
    heads: int
    positions: int
    noise_before_norm: bool = False
    dropout: float = 0.0
    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: Remat = later("none")

    task: ClassVar[str] = "language"
    inputs: ClassVar[tuple[str, ...]] = ("tokens",)

    def __post_init__(self):
        for field in ("d_model", "layers", "heads", "positions"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field}: must be at least 1, got {getattr(self, field)}")
        if self.d_model % self.heads:
            raise ValueError(f"heads: {self.heads} does not divide d_model {self.d_model}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: must be in [0, 1), got {self.dropout}")
        if self.noise_before_norm and self.mlp.noise is None:
            raise ValueError("noise_before_norm: there is no noise (mlp.noise) to add there")

    def reduced(self, parts: int) -> GPT2Config:
        """Two narrow blocks of the same kind; `parts` devices split heads and hidden units."""
        heads = axes.narrowed(self.heads, parts, 2)
        d_model = heads * min(self.d_model // self.heads, 8)
        mlp, layers = self.mlp.reduced(parts), min(self.layers, 2)
        return dataclasses.replace(self, mlp=mlp, d_model=d_model, layers=layers, heads=heads)

    def build(self, classes: int) -> GPT2:
        """The module that maps tokens to logits over a vocabulary of `classes`."""
        return GPT2(self, classes)

    def check_input(self, shape: tuple[int, ...]) -> None:
        """Raises ValueError if sequences of `shape` [L] are longer than the positions there are."""
        if shape[0] > self.positions:
            raise ValueError(f"positions: {self.positions} are too few for sequences of {shape[0]} tokens")

    def mlps(self) -> dict[str, MLPConfig]:
        """Every MLP of the model by the name it records under, in order."""
        return {f"block_{i}": self.mlp for i in range(self.layers)}

    def tokens(self, shape: tuple[int, ...]) -> int:
        """Sequence length L of `shape` [L]."""
        return shape[0]

    def skippable_flops(self, shape: tuple[int, ...], classes: int) -> dict[str, float]:
        """FLOPs per token of each block's second MLP matrix: what zeros of its h can save."""
        return {name: mlp_flops(mlp, self.d_model, 1.0).second for name, mlp in self.mlps().items()}

    def flops(self, shape: tuple[int, ...], classes: int, density: dict[str, float] | None = None) -> float:
        """Forward FLOPs per token: matrix products only, a multiply-add is 2.

        Attention is that of all pairs of tokens, masked ones included, as it is computed. `density` by layer skips
        the zeros in each second MLP matrix; None is the dense model.
        """
        length, d = self.tokens(shape), self.d_model
        total = 2.0 * d * classes
        for name, mlp in self.mlps().items():
            flops = mlp_flops(mlp, d, 1.0 if density is None else density[name])
            total += 8.0 * d * d + 4.0 * length * d + flops.first + flops.second_sparse
        return total


class Block(nn.Module):
    """Pre-norm decoder block: x + attention(norm(x)), then x + MLP(norm(x))."""

    config: GPT2Config

    @nn.compact
    def __call__(self, x_BxLxD: jax.Array, ctx: Context) -> jax.Array:
        cfg, residuals = self.config, 2 * self.config.layers
        drop = nn.Dropout(cfg.dropout, deterministic=not ctx.train)
        inits = {"kernel_init": gpt2_weights(), "out_init": gpt2_weights(residuals)}
        attention = SelfAttention(cfg.heads, cfg.dropout, dtype=cfg.dtype, causal=True, name="attention", **inits)
        y_BxLxD = layer_norm("norm_attention", cfg.dtype, _EPSILON)(x_BxLxD)
        x_BxLxD = x_BxLxD + drop(attention(y_BxLxD, ctx))
        y_BxLxD, mlp = x_BxLxD, cfg.mlp
        if cfg.noise_before_norm:
            y_BxLxD = Noise(mlp.noise, name="noise")(y_BxLxD, ctx)
            mlp = dataclasses.replace(mlp, noise=None)
        y_BxLxD = layer_norm("norm_mlp", cfg.dtype, _EPSILON)(y_BxLxD)
        return x_BxLxD + drop(SparseMLP(mlp, cfg.dtype, residuals=residuals, name="mlp")(y_BxLxD, ctx))


class GPT2(Decoder):
    """Tokens [B, L] to logits [B, L, V], float32 at least: those at t are of token t + 1.

    The logits are x E^T, E the embedding that read the tokens. A token beyond the vocabulary makes its
    example's NaN. With `last` [B] they are those at that place of each row alone, [B, 1, V].
    """

    config: GPT2Config
    classes: int

    @nn.compact
    def __call__(self, tokens_BxL: jax.Array, ctx: Context, last_B: jax.Array | None = None) -> jax.Array:
        cfg = self.config
        embedding = named(gpt2_weights(), "vocab", "embed")
        embedding_VxD = self.param("embedding", embedding, (self.classes, cfg.d_model))
        position = named(gpt2_weights(), "position", "embed")
        position_PxD = self.param("position", position, (cfg.positions, cfg.d_model))
        if ctx.position_B is None:
            positions = position_PxD[: tokens_BxL.shape[1]]
        else:
            positions = position_PxD[ctx.position_B][:, None]
        x_BxLxD = (jnp.take(embedding_VxD, tokens_BxL, axis=0) + positions).astype(cfg.dtype)
        x_BxLxD = nn.Dropout(cfg.dropout, deterministic=not ctx.train)(x_BxLxD)
        x_BxLxD = axes.constrain(x_BxLxD, ("batch", "length", "embed"))
        block = rematerialised(Block, cfg.remat)
        for name in cfg.mlps():
            x_BxLxD = block(cfg, name=name)(x_BxLxD, ctx)
        if last_B is not None:
            x_BxLxD = jnp.take_along_axis(x_BxLxD, last_B[:, None, None], axis=1)
        x_BxLxD = layer_norm("norm", cfg.dtype, _EPSILON)(x_BxLxD)
        precise = jnp.promote_types(x_BxLxD.dtype, jnp.float32)
        logits_BxLxV = jnp.einsum("bld,vd->blv", x_BxLxD.astype(precise), embedding_VxD)
        return axes.constrain(logits_BxLxV, ("batch", "length", "vocab"))
