"""ConvMixer (Trockman & Kolter 2022), whose pooled features are the latents of Bricken et al. 2023."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax

from sparsity import axes
from sparsity.config import one_of
from sparsity.layers import initializers
from sparsity.layers.conv import DepthwiseConv
from sparsity.layers.dense import dense
from sparsity.layers.norms import batch_norm
from sparsity.layers.sparsify import Context, Sparsify
from sparsity.models.vit import patches
from sparsity.ops.sparsifiers import SPARSIFIERS, Sparsifier


@dataclasses.dataclass(frozen=True)
class ConvMixerConfig:
    """Settings of a ConvMixer: patch embedding, then in turn depthwise and 1x1 convolutions, mean over positions, head.

    Every layer is BatchNorm(phi(W x + b)); the input of a depthwise one is added to its output. Bricken et al. take
    latents of 256 numbers from hidden 256, depth 8, kernel 5 and patch 2, with GELU, on images of 32x32.

    Attributes:
      sparsifier: phi of every layer, by name from `SPARSIFIERS`; gelu in the papers.
      hidden: channels h of every layer.
      depth: depthwise convolutions d, and as many of 1x1.
      kernel: side k of the depthwise window, odd.
      patch: side p of a square patch in pixels; divides the image's height and width.
    """

    hidden: int
    depth: int
    sparsifier: Sparsifier = one_of(SPARSIFIERS)
    kernel: int = 5
    patch: int = 2

    task: ClassVar[str] = "classification"
    inputs: ClassVar[tuple[str, ...]] = ("image",)

    def __post_init__(self):
        for field in ("hidden", "depth", "patch"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field}: must be at least 1, got {getattr(self, field)}")
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise ValueError(f"kernel: must be odd and positive, got {self.kernel}")
        try:
            self.sparsifier.check_width(self.hidden)
        except ValueError as error:
            raise ValueError(f"sparsifier.{error}") from error

    def reduced(self, parts: int) -> ConvMixerConfig:
        """At most two narrow blocks of the same kind; `parts` devices split their channels."""
        hidden, depth = axes.narrowed(self.hidden, parts), min(self.depth, 2)
        sparsifier = self.sparsifier.resized(self.hidden, hidden)
        return dataclasses.replace(self, hidden=hidden, depth=depth, sparsifier=sparsifier)

    def build(self, classes: int) -> ConvMixer:
        """The module that maps images to logits over `classes`."""
        return ConvMixer(self, classes)

    def check_input(self, shape: tuple[int, ...]) -> None:
        """Raises ValueError unless images of `shape` [height, width, channels] fit the patches."""
        if shape[0] % self.patch or shape[1] % self.patch:
            raise ValueError(f"patch: {self.patch} does not divide the image's {shape[0]}x{shape[1]} pixels")

    def layers(self) -> tuple[str, ...]:
        """The names that the layers record under, from the input to the head."""
        return ("embed", *(f"{kind}_{i}" for i in range(self.depth) for kind in ("depthwise", "pointwise")))

    def tokens(self, shape: tuple[int, ...]) -> int:
        """Positions that share the weights: patches."""
        return (shape[0] // self.patch) * (shape[1] // self.patch)

    def skippable_flops(self, shape: tuple[int, ...], classes: int) -> dict[str, float]:
        """What zeros of each layer's h can save: nothing, a BatchNorm moves them before anything reads them."""
        return dict.fromkeys(self.layers(), 0.0)

    def flops(self, shape: tuple[int, ...], classes: int, density: dict[str, float] | None = None) -> float:
        """Forward FLOPs per patch, whatever the `density`: products only, a multiply-add is 2.

        Those with the zeros around the image are included; the head is spread over the patches.
        """
        embed = self.patch**2 * shape[2] * self.hidden
        block = self.kernel**2 * self.hidden + self.hidden**2
        return 2.0 * (embed + self.depth * block + self.hidden * classes / self.tokens(shape))


class Layer(nn.Module):
    """BatchNorm(phi(W x + b)) of [B, height, width, channels], W a depthwise convolution or one of 1x1."""

    config: ConvMixerConfig
    depthwise: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, ctx: Context) -> jax.Array:
        cfg = self.config
        if self.depthwise:
            uniform = initializers.fan_in_uniform(cfg.kernel**2)
            z = DepthwiseConv(cfg.kernel, uniform, uniform, name="conv")(x)
        else:
            uniform = initializers.fan_in_uniform(x.shape[-1])
            z = dense(cfg.hidden, ("embed", "mlp"), kernel_init=uniform, bias_init=uniform, name="dense")(x)
        z = axes.constrain(z, ("batch", "length", "length", "mlp"))
        return batch_norm("norm", ctx.train)(Sparsify(cfg.sparsifier, name="sparsify")(z, ctx))


class ConvMixer(nn.Module):
    """Images [B, height, width, channels] to logits [B, classes]; `pooled` stops before the head.

    Weights and biases start from torch's U(+-1 / sqrt(fan_in)), as in the authors' code.

    >>> import jax.numpy as jnp
    >>> from sparsity.ops.sparsifiers import Gelu
    >>> model = ConvMixerConfig(hidden=4, depth=1, sparsifier=Gelu()).build(classes=10)
    >>> images = jnp.ones((2, 8, 8, 1))
    >>> variables = model.init(jax.random.key(0), images, Context())
    >>> model.apply(variables, images, Context(), method="pooled").shape
    (2, 4)
    """

    config: ConvMixerConfig
    classes: int

    def setup(self):
        cfg = self.config
        self.embed = Layer(cfg)
        self.depthwise = [Layer(cfg, depthwise=True) for _ in range(cfg.depth)]
        self.pointwise = [Layer(cfg) for _ in range(cfg.depth)]
        uniform = initializers.fan_in_uniform(cfg.hidden)
        self.head = dense(self.classes, ("embed", "classes"), kernel_init=uniform, bias_init=uniform)

    def pooled(self, images: jax.Array, ctx: Context) -> jax.Array:
        """The mean over positions of the last layer [B, hidden]: the latents."""
        side = self.config.patch
        grid = (images.shape[1] // side, images.shape[2] // side)
        x = self.embed(patches(images, side).reshape(len(images), *grid, -1), ctx)
        for depthwise, pointwise in zip(self.depthwise, self.pointwise, strict=True):
            x = pointwise(x + depthwise(x, ctx), ctx)
        return x.mean((1, 2))

    def __call__(self, images: jax.Array, ctx: Context) -> jax.Array:
        return self.head(self.pooled(images, ctx))
