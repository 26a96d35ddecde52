"""T5 (Raffel et al. 2020), v1.0 and v1.1, with any sparsifier in its MLPs and noise in front of them."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sparsity import axes
from sparsity.config import nearest
from sparsity.layers.attention import RelativeBias, T5Attention
from sparsity.layers.dense import dense, named
from sparsity.layers.initializers import t5_weights
from sparsity.layers.mlp import MLPConfig, SparseMLP, kept_flops, mlp_flops
from sparsity.layers.norms import rms_norm
from sparsity.layers.scan import HIDDEN, LAYERS, Remat, rematerialised, scanned
from sparsity.layers.sparsify import Context

ENCODER, DECODER = "encoder", "decoder"


@dataclasses.dataclass(frozen=True, kw_only=True)
class T5Config:
    """Settings of a T5: an encoder that reads the inputs, a decoder that predicts the next token of the targets.

    v1.0 has a ReLU MLP and one embedding for inputs, targets and logits, x E^T / sqrt(d_model); v1.1 a gated GELU
    (`mlp.gated`) and logits of their own (`tied` off). Li et al. 2022 train v1.0. Nothing has a bias.

    Attributes:
      mlp: the MLP of every layer.
      d_model: width D.
      layers: of the encoder, and of the decoder unless `decoder_layers` says otherwise.
      decoder_layers: of the decoder; None is as many as the encoder has.
      heads: attention heads.
      head_dim: numbers of a head; heads x head_dim need not be d_model.
      buckets, max_distance: of the distances between tokens, see `layers.attention.buckets_of`.
      tied: the embedding makes the logits.
      dropout: rate after the embedding, on attention weights, after each attention and MLP and after each stack, the
        same for all tokens of an example; that inside MLPs is `mlp.dropout`.
      without_skip: names of layers ("encoder_6") without the connection around their MLP (Li et al. 2022, Fig. B.5).
      remat: what is kept of a layer's forward pass for its backward pass, see `layers.scan.rematerialised`.
      scan: layers stand stacked in one array a parameter, and one is compiled; else each has a module of its own.
      dtype: compute dtype; parameters are float32.
    """

    mlp: MLPConfig
    d_model: int
    layers: int
    decoder_layers: int | None = None
    heads: int
    head_dim: int = 64
    buckets: int = 32
    max_distance: int = 128
    tied: bool = True
    dropout: float = 0.1
    without_skip: tuple[str, ...] = ()
    remat: Remat = "none"
    scan: bool = True
    dtype: Literal["float32", "bfloat16"] = "float32"

    task: ClassVar[str] = "language"
    inputs: ClassVar[tuple[str, ...]] = ("inputs", "decoder_inputs", "input_segments", "target_segments")

    def __post_init__(self):
        for field in ("d_model", "layers", "heads", "head_dim"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field}: must be at least 1, got {getattr(self, field)}")
        if self.decoder_layers is not None and self.decoder_layers < 1:
            raise ValueError(f"decoder_layers: must be at least 1, got {self.decoder_layers}")
        if self.buckets < 4 or self.buckets % 4:
            raise ValueError(f"buckets: must be a multiple of 4, got {self.buckets}")
        if self.max_distance <= self.buckets // 2:
            raise ValueError(f"max_distance: must be above {self.buckets // 2}, got {self.max_distance}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: must be in [0, 1), got {self.dropout}")
        for name in self.without_skip:
            if name not in self.mlps():
                raise ValueError(f'without_skip: no layer "{name}"{nearest(name, self.mlps())}')

    def depth(self, stack: str) -> int:
        """Layers of the "encoder" or of the "decoder"."""
        return self.layers if stack == ENCODER else self.decoder_layers or self.layers

    def skips(self, stack: str) -> np.ndarray | None:
        """1 for layers with a connection around their MLP, 0 for those without; None if all have one."""
        names = [f"{stack}_{i}" in self.without_skip for i in range(self.depth(stack))]
        return 1 - np.asarray(names, np.float32) if any(names) else None

    def reduced(self, parts: int) -> T5Config:
        """Two narrow layers a stack of the same kind; `parts` devices split heads, hidden units and width."""
        heads, head_dim = axes.narrowed(self.heads, parts, 2), min(self.head_dim, 8)
        kept = {f"{stack}_{i}" for stack in (ENCODER, DECODER) for i in range(min(self.depth(stack), 2))}
        return dataclasses.replace(
            self,
            mlp=self.mlp.reduced(parts),
            d_model=axes.narrowed(self.d_model, parts),
            layers=min(self.layers, 2),
            decoder_layers=min(self.depth(DECODER), 2),
            heads=heads,
            head_dim=head_dim,
            without_skip=tuple(name for name in self.without_skip if name in kept),
        )

    def build(self, classes: int) -> T5:
        """The module that maps tokens to logits over a vocabulary of `classes`."""
        return T5(self, classes)

    def check_input(self, shape: tuple[int, ...]) -> None:
        """Any length can be read."""

    def mlps(self) -> dict[str, MLPConfig]:
        """Every MLP of the model by the name it records under, in order."""
        return {f"{stack}_{i}": self.mlp for stack in (ENCODER, DECODER) for i in range(self.depth(stack))}

    def tokens(self, shape: tuple[int, ...]) -> int:
        """Tokens of a row of `shape` (inputs L, targets T, ...): those of both."""
        return shape[0] + shape[1]

    def skippable_flops(self, shape: tuple[int, ...], classes: int) -> dict[str, float]:
        """FLOPs of each layer's second MLP matrix for a row, over the row's tokens: what zeros of its h can save."""
        second, row = mlp_flops(self.mlp, self.d_model, 1.0).second, dict(zip((ENCODER, DECODER), shape, strict=False))
        return {name: second * row[name.split("_")[0]] / self.tokens(shape) for name in self.mlps()}

    def flops(self, shape: tuple[int, ...], classes: int, density: dict[str, float] | None = None) -> float:
        """Forward FLOPs for a row, over its tokens: matrix products only, a multiply-add is 2.

        Attention is that of all pairs of tokens, masked ones included, as it is computed. `density` by layer skips
        the zeros in each second MLP matrix; None is the dense model.
        """
        (length, targets), d, inner = shape[:2], self.d_model, self.heads * self.head_dim
        attention = lambda queries, keys: 4.0 * d * inner * (queries + keys) + 4.0 * queries * keys * inner
        first = mlp_flops(self.mlp, d, 1.0).first
        total = self.depth(ENCODER) * (attention(length, length) + first * length)
        total += self.depth(DECODER) * (attention(targets, targets) + attention(targets, length) + first * targets)
        total += 2.0 * d * classes * targets
        return total / self.tokens(shape) + kept_flops(self.skippable_flops(shape, classes), density)


class Layer(nn.Module):
    """Pre-norm layer: x + attention(norm(x)), the decoder's x + attention to the encoder's output, x + MLP(norm(x))."""

    config: T5Config
    decoder: bool

    @nn.compact
    def __call__(self, x_BxLxD, skip, ctx, bias, mask, memory_BxMxD, memory_mask):
        """(x of the next layer, None). `skip` is what x is multiplied by around the MLP; None is 1."""
        cfg = self.config
        drop = nn.Dropout(cfg.dropout, (-2,), deterministic=not ctx.train)
        attend = lambda name, cross: T5Attention(cfg.heads, cfg.head_dim, cross, cfg.dropout, cfg.dtype, name=name)
        y_BxLxD = rms_norm("norm_attention", cfg.dtype)(x_BxLxD)
        x_BxLxD = x_BxLxD + drop(attend("attention", False)(y_BxLxD, ctx, bias, mask))
        if self.decoder:
            y_BxLxD = rms_norm("norm_cross", cfg.dtype)(x_BxLxD)
            x_BxLxD = x_BxLxD + drop(attend("cross", True)(y_BxLxD, ctx, None, memory_mask, memory_BxMxD))
        y_BxLxD = rms_norm("norm_mlp", cfg.dtype)(x_BxLxD)
        # An encoder reads all of its tokens at once, once: its MLPs stay as trained, and nothing is predicted.
        mlp = cfg.mlp if self.decoder else dataclasses.replace(cfg.mlp, inference=None, predictor=0)
        y_BxLxD = drop(SparseMLP(mlp, cfg.dtype, name="mlp")(y_BxLxD, ctx))
        x_BxLxD = (x_BxLxD if skip is None else x_BxLxD * skip.astype(x_BxLxD.dtype)) + y_BxLxD
        self.sow(HIDDEN, "x", x_BxLxD, reduce_fn=lambda _, new: new, init_fn=lambda: None)
        return axes.constrain(x_BxLxD, ("batch", "length", "embed")), None


class Stack(nn.Module):
    """Encoder or decoder: dropout, layers that share their bias of distances, a last norm, dropout."""

    config: T5Config
    decoder: bool

    @nn.compact
    def __call__(self, x_BxLxD, ctx, mask, memory_BxMxD=None, memory_mask=None):
        cfg, stack, length = self.config, DECODER if self.decoder else ENCODER, x_BxLxD.shape[1]
        drop = nn.Dropout(cfg.dropout, (-2,), deterministic=not ctx.train)
        distances = RelativeBias(cfg.heads, cfg.buckets, cfg.max_distance, both=not self.decoder, name="bias")
        bias = distances(length, mask.shape[-1], ctx.place)
        layer, skips = rematerialised(Layer, cfg.remat, in_scan=cfg.scan), cfg.skips(stack)
        shared = (ctx, bias, mask, memory_BxMxD, memory_mask)
        x_BxLxD = drop(x_BxLxD)
        if cfg.scan:
            dealt = nn.broadcast if skips is None else 0
            layers = scanned(layer, cfg.depth(stack), (dealt, *(nn.broadcast for _ in shared)))
            skips = None if skips is None else jnp.asarray(skips)
            x_BxLxD, _ = layers(cfg, self.decoder, name=LAYERS)(x_BxLxD, skips, *shared)
        else:
            for i in range(cfg.depth(stack)):
                skip = None if skips is None else jnp.asarray(skips[i])
                x_BxLxD, _ = layer(cfg, self.decoder, name=f"{LAYERS}_{i}")(x_BxLxD, skip, *shared)
        return drop(rms_norm("norm", cfg.dtype)(x_BxLxD))


class T5(nn.Module):
    """Inputs [B, L] and decoder inputs [B, T] to logits [B, T, V], float32 at least: those at t are of target t.

    Decoder inputs are the targets one place later, from token 0. Segments number the examples that are packed into one
    row, from 1; 0 is padding: tokens see those of their own segment only. A token beyond the vocabulary makes its
    row's NaN.
    """

    config: T5Config
    classes: int

    def setup(self):
        cfg = self.config
        self.embedding = self.param(
            "embedding", named(nn.initializers.normal(1.0), "vocab", "embed"), (self.classes, cfg.d_model)
        )
        self.encoder, self.decoder = Stack(cfg, decoder=False), Stack(cfg, decoder=True)
        if not cfg.tied:
            # float32: logits are compared, summed and exponentiated.
            self.head = dense(self.classes, ("embed", "vocab"), use_bias=False, kernel_init=t5_weights())

    def __call__(self, inputs_BxL, decoder_inputs_BxT, input_segments_BxL, target_segments_BxT, ctx: Context):
        """The logits [B, T, V]."""
        memory_BxLxD = self.encode(inputs_BxL, input_segments_BxL, ctx)
        return self.decode(memory_BxLxD, input_segments_BxL, decoder_inputs_BxT, target_segments_BxT, ctx)

    def encode(self, inputs_BxL: jax.Array, segments_BxL: jax.Array, ctx: Context) -> jax.Array:
        """What the encoder writes [B, L, D]."""
        mask = _same(segments_BxL, segments_BxL)
        return self.encoder(self._embed(inputs_BxL), ctx.replace(weight_BxL=segments_BxL > 0), mask)

    def decode(self, memory_BxLxD, input_segments_BxL, decoder_inputs_BxT, target_segments_BxT, ctx: Context):
        """The logits [B, T, V] of targets, of an encoder's output."""
        place_T = jnp.arange(decoder_inputs_BxT.shape[1])
        mask = _same(target_segments_BxT, target_segments_BxT) & (place_T[:, None] >= place_T)
        reads = _same(target_segments_BxT, input_segments_BxL)
        ctx = ctx.replace(weight_BxL=target_segments_BxT > 0)
        return self._logits(self.decoder(self._embed(decoder_inputs_BxT), ctx, mask, memory_BxLxD, reads))

    def start(self, inputs_BxL: jax.Array, input_segments_BxL: jax.Array, ctx: Context) -> jax.Array:
        """Reads the inputs; the logits [B, V] of the first target. `ctx.slots` and a mutable cache are needed."""
        memory_BxLxD = self.encode(inputs_BxL, input_segments_BxL, ctx.replace(slots=0))
        first = jnp.zeros_like(inputs_BxL[:, :1])
        return self.decode(memory_BxLxD, input_segments_BxL, first, jnp.ones_like(first), ctx)[:, 0]

    def step(self, token_B: jax.Array, input_segments_BxL: jax.Array, ctx: Context) -> jax.Array:
        """Reads the decoder's input at `ctx.place`; the logits [B, V] of the target there, from the cache."""
        mask = (jnp.arange(ctx.slots) <= ctx.place)[None, None, None]
        reads = _same(jnp.ones_like(token_B[:, None]), input_segments_BxL)
        return self._logits(self.decoder(self._embed(token_B[:, None]), ctx, mask, None, reads))[:, 0]

    def _logits(self, y_BxTxD: jax.Array) -> jax.Array:
        cfg, precise = self.config, jnp.promote_types(y_BxTxD.dtype, jnp.float32)
        y_BxTxD = y_BxTxD.astype(precise)
        if cfg.tied:
            logits_BxTxV = jnp.einsum("btd,vd->btv", y_BxTxD * cfg.d_model**-0.5, self.embedding)
        else:
            logits_BxTxV = self.head(y_BxTxD)
        return axes.constrain(logits_BxTxV, ("batch", "length", "vocab"))

    def _embed(self, tokens_BxL):
        x_BxLxD = jnp.take(self.embedding, tokens_BxL, axis=0).astype(self.config.dtype)
        return axes.constrain(x_BxLxD, ("batch", "length", "embed"))


def _same(queries_BxL: jax.Array, keys_BxM: jax.Array) -> jax.Array:
    """Mask [B, 1, L, M]: both are of one segment, and not padding."""
    same = (queries_BxL[:, :, None] == keys_BxM[:, None, :]) & (keys_BxM[:, None, :] > 0)
    return same[:, None]
