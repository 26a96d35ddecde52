"""ResNet (He et al. 2016) with any sparsifier in the place of its ReLUs, each measured (Li et al. 2022, App. B.1)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from sparsity import axes
from sparsity.config import one_of
from sparsity.layers import initializers
from sparsity.layers.dense import dense, named
from sparsity.layers.mlp import kept_flops
from sparsity.layers.norms import batch_norm
from sparsity.layers.sparsify import Context, Sparsify
from sparsity.ops.sparsifiers import SPARSIFIERS, Sparsifier

EXPANSION = {"basic": 1, "bottleneck": 4}  # channels that a block puts out over those inside


@dataclasses.dataclass(frozen=True)
class Conv:
    """One convolution of the network, by shape.

    Attributes:
      side, stride: of its window.
      inputs, outputs: channels.
      positions: outputs of one channel.
      reads: the layer whose h it reads, and what zeros of it can save it; None: the image, or what was pooled.
    """

    side: int
    stride: int
    inputs: int
    outputs: int
    positions: int
    reads: str | None

    @property
    def flops(self) -> float:
        """Products of one image, those with the zeros around it included; a multiply-add is 2."""
        return 2.0 * self.positions * self.side**2 * self.inputs * self.outputs


@dataclasses.dataclass(frozen=True)
class ResNetConfig:
    """Settings of a ResNet, the variant that strides in the 3x3 convolution ("v1.5").

    Attributes:
      sparsifier: in the place of every ReLU, by name; one that acts on each unit alone.
      block: "basic" is two convolutions of 3x3 (ResNet-18), "bottleneck" 1x1, 3x3 and 1x1 (ResNet-50).
      blocks: blocks of each stage; every stage but the first halves the image and doubles the channels.
      width: channels of the first stage; Li et al. 2022 have 64, 128 and 256 (Fig. B.4).
      stem: "imagenet" is 7x7 with stride 2 and 3x3 max pooling with stride 2, "small", for small images, 3x3 alone.
    """

    sparsifier: Sparsifier = one_of(SPARSIFIERS)
    block: Literal["basic", "bottleneck"] = "basic"
    blocks: tuple[int, ...] = (2, 2, 2, 2)
    width: int = 64
    stem: Literal["imagenet", "small"] = "imagenet"

    task: ClassVar[str] = "classification"
    inputs: ClassVar[tuple[str, ...]] = ("image",)

    def __post_init__(self):
        if self.width < 1:
            raise ValueError(f"width: must be at least 1, got {self.width}")
        if not self.blocks or min(self.blocks) < 1:
            raise ValueError(f"blocks: at least one of each stage, got {self.blocks}")
        if not self.sparsifier.elementwise:
            raise ValueError(f"sparsifier: {type(self.sparsifier).__name__} does not act on each unit alone")

    def reduced(self, parts: int) -> ResNetConfig:
        """One block of each of at most two stages, narrow; `parts` devices split the channels."""
        return dataclasses.replace(
            self, blocks=(1,) * min(len(self.blocks), 2), width=axes.narrowed(self.width, parts, 8)
        )

    def build(self, classes: int) -> ResNet:
        """The module that maps images to logits over `classes`."""
        return ResNet(self, classes)

    def check_input(self, shape: tuple[int, ...]) -> None:
        """Any image can be read: what is halved is never less than one pixel."""

    @property
    def inner(self) -> int:
        """ReLUs of a block before its last one."""
        return 1 if self.block == "basic" else 2

    def stages(self) -> list[tuple[int, int]]:
        """(channels inside, stride) of every block."""
        return [
            (self.width * 2**stage, 2 if stage and not i else 1)
            for stage, n in enumerate(self.blocks)
            for i in range(n)
        ]

    def layers(self) -> tuple[str, ...]:
        """The names that the ReLUs record under: the stem's, those inside each block and that of its output."""
        kinds = [*(f"inner_{j}" for j in range(self.inner)), "output"]
        return ("stem", *(f"block_{i}/{kind}" for i in range(sum(self.blocks)) for kind in kinds))

    def convolutions(self, shape: tuple[int, ...]) -> list[Conv]:
        """Every convolution for images of `shape`, in order, those of shortcuts after the others of their block."""
        halved = lambda size, times: -(-size // 2**times)
        height, width = shape[:2]
        first = self.stem == "imagenet"
        side, times = (7, 1) if first else (3, 0)
        height, width = halved(height, times), halved(width, times)
        out = [Conv(side, 1 + times, shape[2], self.width, height * width, None)]
        if first:
            height, width = halved(height, 1), halved(width, 1)
        channels, reads = self.width, None if first else "stem"
        for i, (inside, stride) in enumerate(self.stages()):
            entered = height * width
            height, width = halved(height, stride - 1), halved(width, stride - 1)
            positions, outputs = height * width, inside * EXPANSION[self.block]
            inner = [f"block_{i}/inner_{j}" for j in range(self.inner)]
            if self.block == "basic":
                out.append(Conv(3, stride, channels, inside, positions, reads))
                out.append(Conv(3, 1, inside, outputs, positions, inner[0]))
            else:
                out.append(Conv(1, 1, channels, inside, entered, reads))
                out.append(Conv(3, stride, inside, inside, positions, inner[0]))
                out.append(Conv(1, 1, inside, outputs, positions, inner[1]))
            if stride > 1 or channels != outputs:
                out.append(Conv(1, stride, channels, outputs, positions, reads))
            channels, reads = outputs, f"block_{i}/output"
        return out

    def tokens(self, shape: tuple[int, ...]) -> int:
        """One, the image: its layers differ in the number of positions that share their weights."""
        return 1

    def skippable_flops(self, shape: tuple[int, ...], classes: int) -> dict[str, float]:
        """FLOPs of the convolutions that read each layer's h: what zeros of h can save.

        Nothing for the stem's that is pooled and for the last, whose mean is taken: a mean with one nonzero is no zero.
        """
        out = dict.fromkeys(self.layers(), 0.0)
        for conv in self.convolutions(shape):
            if conv.reads is not None:
                out[conv.reads] += conv.flops
        return out

    def flops(self, shape: tuple[int, ...], classes: int, density: dict[str, float] | None = None) -> float:
        """Forward FLOPs per image: products only; `density` by layer skips zeros of h, None is the dense model."""
        convolutions, skippable = self.convolutions(shape), self.skippable_flops(shape, classes)
        head = 2.0 * convolutions[-1].outputs * classes
        always = sum(conv.flops for conv in convolutions) - sum(skippable.values())
        return always + head + kept_flops(skippable, density)


def _conv(channels: int, side: int, stride: int, name: str) -> nn.Conv:
    """Zeros around the image, no bias; weights start at N(0, 2 / fan_out)."""
    init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
    return nn.Conv(
        channels,
        (side, side),
        stride,
        padding=side // 2,
        use_bias=False,
        kernel_init=named(init, "window", "window", "embed", "mlp"),
        name=name,
    )


class ResNetBlock(nn.Module):
    """phi(BatchNorm(W ...) + shortcut(x)) of maps [B, height, width, channels].

    The shortcut is x, or BatchNorm of a 1x1 convolution of it where the shapes differ.

    Attributes:
      features: channels inside.
      stride: of the block's first 3x3 convolution.
    """

    config: ResNetConfig
    features: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array, ctx: Context) -> jax.Array:
        cfg, inside = self.config, self.features
        outputs = inside * EXPANSION[cfg.block]
        if cfg.block == "basic":
            steps = [(inside, 3, self.stride), (outputs, 3, 1)]
        else:
            steps = [(inside, 1, 1), (inside, 3, self.stride), (outputs, 1, 1)]
        h = x
        for j, (channels, side, stride) in enumerate(steps):
            z = batch_norm(f"norm_{j}", ctx.train)(_conv(channels, side, stride, f"conv_{j}")(h))
            z = axes.constrain(z, ("batch", "length", "length", "mlp"))
            if j < len(steps) - 1:
                h = Sparsify(cfg.sparsifier, name=f"inner_{j}")(z, ctx)
        if self.stride > 1 or x.shape[-1] != outputs:
            x = batch_norm("norm_shortcut", ctx.train)(_conv(outputs, 1, self.stride, "shortcut")(x))
        return Sparsify(cfg.sparsifier, name="output")(z + x, ctx)


class ResNet(nn.Module):
    """Images [B, height, width, channels] to logits [B, classes], from the mean over positions."""

    config: ResNetConfig
    classes: int

    @nn.compact
    def __call__(self, images: jax.Array, ctx: Context) -> jax.Array:
        cfg = self.config
        first = cfg.stem == "imagenet"
        h = _conv(cfg.width, 7 if first else 3, 2 if first else 1, "conv")(images)
        h = Sparsify(cfg.sparsifier, name="stem")(batch_norm("norm", ctx.train)(h), ctx)
        if first:
            h = nn.max_pool(h, (3, 3), (2, 2), ((1, 1), (1, 1)))
        for i, (inside, stride) in enumerate(cfg.stages()):
            h = ResNetBlock(cfg, inside, stride, name=f"block_{i}")(h, ctx)
        h_BxF = jnp.mean(h, (1, 2))
        uniform = initializers.fan_in_uniform(h_BxF.shape[-1])
        head = dense(self.classes, ("embed", "classes"), kernel_init=uniform, bias_init=uniform, name="head")
        return head(h_BxF)
