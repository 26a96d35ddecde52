"""A Llama-style decoder (Touvron et al. 2023) with any sparsifier in its gated MLPs."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from sparsity import axes
from sparsity.config import later
from sparsity.layers.dense import dense, named
from sparsity.layers.initializers import gpt2_weights
from sparsity.layers.mlp import MLPConfig, SparseMLP, kept_flops, mlp_flops
from sparsity.layers.norms import rms_norm
from sparsity.layers.rotary import RotaryAttention
from sparsity.layers.scan import Remat, rematerialised
from sparsity.layers.sparsify import Context
from sparsity.models.decoder import Decoder


@dataclasses.dataclass(frozen=True, kw_only=True)
class LlamaConfig:
    """Settings of a decoder with rotary places, RMSNorm and gated MLPs, without biases; it predicts the next token.

    Llama's MLP is W_down (silu(W_g x) * W_u x): here W_g is `wi`, which the sparsifier follows, and W_u is `wi_gate`.
    Its ReLUfied kin have ReLU as the sparsifier (Mirzadeh et al. 2023) or ReLU there and as `mlp.gate` (Song et al.
    2024).

    Attributes:
      mlp: the MLP of every block; gated and without biases.
      d_model: width D.
      layers: number of blocks.
      heads: attention heads H.
      kv_heads: of keys and values; None: as many as `heads`, which it must divide.
      head_dim: numbers of a head, even; None: d_model / heads.
      theta: base of the rotations' speeds; Llama 1 and 2 have 10,000, Llama 3 500,000.
      epsilon: of every RMSNorm; Llama 1 has 1e-6, later ones 1e-5.
      tied: the embedding makes the logits.
      dtype: compute dtype; parameters are float32.
      remat: what is kept of a block's forward pass for its backward pass, see `layers.scan.rematerialised`.
    """

    mlp: MLPConfig
    d_model: int
    layers: int
    heads: int
    kv_heads: int | None = None
    head_dim: int | None = None
    theta: float = 10_000.0
    epsilon: float = 1e-5
    tied: bool = False
    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: Remat = later("none")

    task: ClassVar[str] = "language"
    inputs: ClassVar[tuple[str, ...]] = ("tokens",)

    def __post_init__(self):
        for field in ("d_model", "layers", "heads", "kv_heads", "head_dim", "theta", "epsilon"):
            if (value := getattr(self, field)) is not None and value <= 0:
                raise ValueError(f"{field}: must be positive, got {value}")
        if self.head_dim is None and self.d_model % self.heads:
            raise ValueError(f"heads: {self.heads} does not divide d_model {self.d_model}; give head_dim")
        if self.head_size % 2:
            raise ValueError(f"head_dim: rotations need an even number, got {self.head_size}")
        if self.heads % (self.kv_heads or self.heads):
            raise ValueError(f"kv_heads: {self.kv_heads} does not divide the {self.heads} heads")
        if not self.mlp.gated or self.mlp.use_bias:
            raise ValueError("mlp: a Llama's is gated and has no biases")

    @property
    def head_size(self) -> int:
        """Numbers K of a head."""
        return self.head_dim or self.d_model // self.heads

    def reduced(self, parts: int) -> LlamaConfig:
        """Two narrow blocks of the same kind; `parts` devices split heads, hidden units and width."""
        heads = axes.narrowed(self.heads, parts, 2)
        kv_heads = heads if self.kv_heads in (None, self.heads) else axes.narrowed(self.kv_heads, parts, 1)
        return dataclasses.replace(
            self,
            mlp=self.mlp.reduced(parts),
            d_model=axes.narrowed(self.d_model, parts),
            layers=min(self.layers, 2),
            heads=heads,
            kv_heads=kv_heads,
            head_dim=min(self.head_size, 8),
        )

    def build(self, classes: int) -> Llama:
        """The module that maps tokens to logits over a vocabulary of `classes`."""
        return Llama(self, classes)

    def check_input(self, shape: tuple[int, ...]) -> None:
        """Any length can be read."""

    def mlps(self) -> dict[str, MLPConfig]:
        """Every MLP of the model by the name it records under, in order."""
        return {f"block_{i}": self.mlp for i in range(self.layers)}

    def tokens(self, shape: tuple[int, ...]) -> int:
        """Sequence length L of `shape` [L]."""
        return shape[0]

    def skippable_flops(self, shape: tuple[int, ...], classes: int) -> dict[str, float]:
        """FLOPs per token of each block's second MLP matrix: what zeros of its h can save.

        Zeros of the sparsifier could save the gate's column too (Mirzadeh et al. 2023); that is not counted.
        """
        return {name: mlp_flops(mlp, self.d_model, 1.0).second for name, mlp in self.mlps().items()}

    def flops(self, shape: tuple[int, ...], classes: int, density: dict[str, float] | None = None) -> float:
        """Forward FLOPs per token: matrix products only, a multiply-add is 2.

        Attention is that of all pairs of tokens, masked ones included, as it is computed. `density` by layer skips
        the zeros in each second MLP matrix; None is the dense model.
        """
        length, d, inner = self.tokens(shape), self.d_model, self.heads * self.head_size
        shared = (self.kv_heads or self.heads) * self.head_size
        block = 4.0 * d * (inner + shared) + 4.0 * length * inner + mlp_flops(self.mlp, d, 1.0).first
        return 2.0 * d * classes + self.layers * block + kept_flops(self.skippable_flops(shape, classes), density)


class Block(nn.Module):
    """Pre-norm decoder block: x + attention(norm(x)), then x + MLP(norm(x))."""

    config: LlamaConfig

    @nn.compact
    def __call__(self, x_BxLxD: jax.Array, ctx: Context) -> jax.Array:
        cfg = self.config
        heads = (cfg.heads, cfg.kv_heads or cfg.heads, cfg.head_size)
        attention = RotaryAttention(*heads, cfg.theta, cfg.dtype, name="attention")
        x_BxLxD = x_BxLxD + attention(rms_norm("norm_attention", cfg.dtype, cfg.epsilon)(x_BxLxD), ctx)
        return x_BxLxD + SparseMLP(cfg.mlp, cfg.dtype, name="mlp")(
            rms_norm("norm_mlp", cfg.dtype, cfg.epsilon)(x_BxLxD), ctx
        )


class Llama(Decoder):
    """Tokens [B, L] to logits [B, L, V], float32 at least: those at t are of token t + 1.

    A token beyond the vocabulary makes its example's NaN. With `last` [B] the logits are those at that place of each
    row alone, [B, 1, V].
    """

    config: LlamaConfig
    classes: int

    @nn.compact
    def __call__(self, tokens_BxL: jax.Array, ctx: Context, last_B: jax.Array | None = None) -> jax.Array:
        cfg = self.config
        embedding_VxD = self.param("embedding", named(gpt2_weights(), "vocab", "embed"), (self.classes, cfg.d_model))
        x_BxLxD = jnp.take(embedding_VxD, tokens_BxL, axis=0).astype(cfg.dtype)
        x_BxLxD = axes.constrain(x_BxLxD, ("batch", "length", "embed"))
        block = rematerialised(Block, cfg.remat)
        for name in cfg.mlps():
            x_BxLxD = block(cfg, name=name)(x_BxLxD, ctx)
        if last_B is not None:
            x_BxLxD = jnp.take_along_axis(x_BxLxD, last_B[:, None, None], axis=1)
        x_BxLxD = rms_norm("norm", cfg.dtype, cfg.epsilon)(x_BxLxD)
        x_BxLxD = x_BxLxD.astype(jnp.promote_types(x_BxLxD.dtype, jnp.float32))
        if cfg.tied:
            logits_BxLxV = jnp.einsum("bld,vd->blv", x_BxLxD, embedding_VxD)
        else:
            head = dense(self.classes, ("embed", "vocab"), use_bias=False, kernel_init=gpt2_weights(), name="head")
            logits_BxLxV = head(x_BxLxD)
        return axes.constrain(logits_BxLxV, ("batch", "length", "vocab"))
