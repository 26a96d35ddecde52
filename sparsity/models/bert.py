"""BERT (Devlin et al. 2019) with any sparsifier in its MLPs (Li et al. 2022, App. B.1)."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp

from sparsity import axes
from sparsity.config import later
from sparsity.layers.attention import SelfAttention
from sparsity.layers.dense import dense, named
from sparsity.layers.initializers import gpt2_weights
from sparsity.layers.mlp import MLPConfig, SparseMLP, kept_flops, mlp_flops
from sparsity.layers.norms import layer_norm
from sparsity.layers.scan import Remat, rematerialised
from sparsity.layers.sparsify import Context

_EPSILON = 1e-12  # of every LayerNorm


@dataclasses.dataclass(frozen=True)
class BERTConfig:
    """Settings of a BERT: an encoder that predicts tokens which were masked, changed or left.

    Attributes:
      mlp: the MLP of every block; Li et al. 2022 have ReLU in place of GELU.
      d_model: width D.
      layers: number of blocks.
      heads: attention heads; divides d_model.
      positions: tokens of the longest sequence.
      dropout: rate after the embedding, on attention weights and after each attention and MLP.
      next_sentence: it reads two texts, and says of the second whether it follows the first.
      dtype: compute dtype; parameters are float32.
      remat: what is kept of a block's forward pass for its backward pass, see `layers.scan.rematerialised`.
    """

    mlp: MLPConfig
    d_model: int
    layers: int
    heads: int
    positions: int = 512
    dropout: float = 0.1
    dtype: Literal["float32", "bfloat16"] = "float32"
    next_sentence: bool = later(False)
    remat: Remat = later("none")

    task: ClassVar[str] = "language"
    types: ClassVar[int] = 2  # of BERT's two sentences; without the other task all tokens are of the first

    def __post_init__(self):
        for field in ("d_model", "layers", "heads", "positions"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field}: must be at least 1, got {getattr(self, field)}")
        if self.d_model % self.heads:
            raise ValueError(f"heads: {self.heads} does not divide d_model {self.d_model}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: must be in [0, 1), got {self.dropout}")

    @property
    def inputs(self) -> tuple[str, ...]:
        """What of a batch it reads."""
        return ("tokens", "segments") if self.next_sentence else ("tokens",)

    def reduced(self, parts: int) -> BERTConfig:
        """Two narrow blocks of the same kind; `parts` devices split heads and hidden units."""
        heads = axes.narrowed(self.heads, parts, 2)
        d_model = heads * min(self.d_model // self.heads, 8)
        mlp, layers = self.mlp.reduced(parts), min(self.layers, 2)
        return dataclasses.replace(self, mlp=mlp, d_model=d_model, layers=layers, heads=heads)

    def build(self, classes: int) -> BERT:
        """The module that maps tokens to logits over a vocabulary of `classes`."""
        return BERT(self, classes)

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

        Logits are those of all tokens, as they are computed. `density` by layer skips the zeros in each second MLP
        matrix; None is the dense model.
        """
        length, d = self.tokens(shape), self.d_model
        block = 8.0 * d * d + 4.0 * length * d + mlp_flops(self.mlp, d, 1.0).first
        heads = 2.0 * d * (d + classes) + self.next_sentence * 2.0 * d * (d + 2) / length
        return heads + self.layers * block + kept_flops(self.skippable_flops(shape, classes), density)


class Block(nn.Module):
    """Post-norm encoder block: norm(x + attention(x)), then norm(x + MLP(x))."""

    config: BERTConfig

    @nn.compact
    def __call__(self, x_BxLxD: jax.Array, ctx: Context) -> jax.Array:
        cfg = self.config
        drop = nn.Dropout(cfg.dropout, deterministic=not ctx.train)
        inits = {"kernel_init": gpt2_weights(), "out_init": gpt2_weights()}
        attention = SelfAttention(cfg.heads, cfg.dropout, dtype=cfg.dtype, name="attention", **inits)
        x_BxLxD = layer_norm("norm_attention", cfg.dtype, _EPSILON)(x_BxLxD + drop(attention(x_BxLxD, ctx)))
        y_BxLxD = SparseMLP(cfg.mlp, cfg.dtype, name="mlp")(x_BxLxD, ctx)
        return layer_norm("norm_mlp", cfg.dtype, _EPSILON)(x_BxLxD + drop(y_BxLxD))


@flax.struct.dataclass
class Pretraining:
    """Logits of BERT's two tasks.

    Attributes:
      tokens: [B, L, V], of what stood there.
      next_sentence: [B, 2]: the second text follows the first, or it does not.
    """

    tokens: jax.Array
    next_sentence: jax.Array


class BERT(nn.Module):
    """Tokens [B, L] to logits [B, L, V], float32 at least: those at t are of the token that stood there.

    logits = norm(gelu(x W + b)) E^T + c, E the embedding that read the tokens. With `next_sentence` it reads segments
    [B, L] too, 0 or 1, and gives both tasks' logits, `Pretraining`: the other's are tanh(x_0 W_p + b_p) W_s + b_s, x_0
    the first token's. A token or a segment beyond those there are makes its example's NaN.
    """

    config: BERTConfig
    classes: int

    @nn.compact
    def __call__(self, tokens_BxL: jax.Array, *rest: Any) -> jax.Array | Pretraining:
        cfg, length = self.config, tokens_BxL.shape[1]
        *segments, ctx = rest  # [B, L], if there are any
        table = lambda name, axis, rows: self.param(name, named(gpt2_weights(), axis, "embed"), (rows, cfg.d_model))
        embedding_VxD = table("embedding", "vocab", self.classes)
        position_LxD, type_2xD = table("position", "position", cfg.positions)[:length], table("type", None, cfg.types)
        x_BxLxD = jnp.take(embedding_VxD, tokens_BxL, axis=0) + position_LxD
        x_BxLxD = x_BxLxD + (jnp.take(type_2xD, segments[0], axis=0) if cfg.next_sentence else type_2xD[0])
        x_BxLxD = x_BxLxD.astype(cfg.dtype)
        x_BxLxD = layer_norm("norm_embedding", cfg.dtype, _EPSILON)(x_BxLxD)
        x_BxLxD = nn.Dropout(cfg.dropout, deterministic=not ctx.train)(x_BxLxD)
        x_BxLxD = axes.constrain(x_BxLxD, ("batch", "length", "embed"))
        block = rematerialised(Block, cfg.remat)
        for name in cfg.mlps():
            x_BxLxD = block(cfg, name=name)(x_BxLxD, ctx)
        to = lambda features, name: dense(
            features, ("embed", None), kernel_init=gpt2_weights(), dtype=cfg.dtype, name=name
        )
        first_BxD, head = x_BxLxD[:, 0], to(cfg.d_model, "head")
        x_BxLxD = layer_norm("norm_head", cfg.dtype, _EPSILON)(jax.nn.gelu(head(x_BxLxD), approximate=False))
        bias_V = self.param("head_bias", named(nn.initializers.zeros, "vocab"), (self.classes,))
        precise = jnp.promote_types(x_BxLxD.dtype, jnp.float32)
        logits_BxLxV = jnp.einsum("bld,vd->blv", x_BxLxD.astype(precise), embedding_VxD) + bias_V
        logits_BxLxV = axes.constrain(logits_BxLxV, ("batch", "length", "vocab"))
        if not cfg.next_sentence:
            return logits_BxLxV
        pooled_BxD = jnp.tanh(to(cfg.d_model, "pooler")(first_BxD))
        return Pretraining(logits_BxLxV, to(2, "next_sentence")(pooled_BxD).astype(precise))
