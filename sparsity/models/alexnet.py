"""AlexNet for small images, with noise at the pixels or after the convolutions (Bricken et al. 2023, App. J.3)."""

from __future__ import annotations

import dataclasses
import itertools
from typing import ClassVar, Literal

import flax.linen as nn
import jax
from flax.typing import Initializer

from sparsity import axes
from sparsity.config import one_of
from sparsity.layers import initializers
from sparsity.layers.dense import dense, named
from sparsity.layers.mlp import kept_flops
from sparsity.layers.noise import Noise
from sparsity.layers.sparsify import Context, Sparsify
from sparsity.ops.noise import NOISES, NoiseConfig
from sparsity.ops.sparsifiers import SPARSIFIERS, Sparsifier

WINDOW = 3  # side of every convolution's window
POOLED = (0, 1, 4)  # the convolutions that are pooled before anything reads them


@dataclasses.dataclass(frozen=True)
class AlexNetConfig:
    """Settings of an AlexNet: five convolutions, two hidden dense layers and the head.

    The paper does not say how it fitted AlexNet to 32x32 images. This repository's choice, and its default sizes, is
    the variant common for CIFAR-10 (23,272,266 parameters with ten classes): windows of 3x3, zeros around the image,
    and h of the first, second and last convolution pooled over squares of 2x2, an odd row or column dropped.

    Attributes:
      sparsifier: phi of every hidden layer, elementwise, by name from `SPARSIFIERS`.
      channels: of the five convolutions.
      widths: units of the two hidden dense layers.
      stride: of the first convolution; 1 takes images of 8x8.
      pooling: the largest of four, or their mean.
      noise: added, in training, to what the first dense layer reads. Noise on the image is the run's.
      dropout: rate on what the two hidden dense layers read, before the noise.
      init: "torch" draws weights and biases from U(+-1 / sqrt(fan_in)); "xavier" weights from Xavier's uniform and
        "he" from He's normal distribution, biases 0.
    """

    sparsifier: Sparsifier = one_of(SPARSIFIERS)
    channels: tuple[int, ...] = (64, 192, 384, 256, 256)
    widths: tuple[int, ...] = (4096, 4096)
    stride: int = 2
    pooling: Literal["max", "average"] = "max"
    noise: NoiseConfig | None = one_of(NOISES, None)
    dropout: float = 0.0
    init: Literal["torch", "xavier", "he"] = "torch"

    task: ClassVar[str] = "classification"
    inputs: ClassVar[tuple[str, ...]] = ("image",)

    def __post_init__(self):
        for field, count in (("channels", 5), ("widths", 2)):
            sizes = getattr(self, field)
            if len(sizes) != count or min(sizes) < 1:
                raise ValueError(f"{field}: must be {count} numbers, at least 1 each, got {sizes}")
        if self.stride < 1:
            raise ValueError(f"stride: must be at least 1, got {self.stride}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: must be in [0, 1), got {self.dropout}")
        if not self.sparsifier.elementwise:
            raise ValueError(f"sparsifier: {type(self.sparsifier).__name__} does not act on each unit alone")

    def reduced(self, parts: int) -> AlexNetConfig:
        """The same with few channels and units; `parts` devices split them."""
        channels = tuple(axes.narrowed(size, parts, 8) for size in self.channels)
        widths = tuple(axes.narrowed(size, parts) for size in self.widths)
        return dataclasses.replace(self, channels=channels, widths=widths)

    def build(self, classes: int) -> AlexNet:
        """The module that maps images to logits over `classes`."""
        return AlexNet(self, classes)

    def check_input(self, shape: tuple[int, ...]) -> None:
        """Raises ValueError if the poolings leave nothing of an image of `shape` [height, width, channels]."""
        least = 7 * self.stride + 1  # ceil(least / stride) = 8, halved three times
        if min(shape[:2]) < least:
            raise ValueError(
                f"stride: {self.stride} takes images of {least}x{least} and more, not {shape[0]}x{shape[1]}"
            )

    def layers(self) -> tuple[str, ...]:
        """The names that the hidden layers record under, from the input to the head."""
        return (*(f"conv_{i}" for i in range(5)), "dense_0", "dense_1")

    def tokens(self, shape: tuple[int, ...]) -> int:
        """One, the image: its layers differ in the number of positions that share their weights."""
        return 1

    def skippable_flops(self, shape: tuple[int, ...], classes: int) -> dict[str, float]:
        """FLOPs of what reads each layer's h: what zeros of h can save.

        Nothing for the layers that are pooled: a square of h with one nonzero is no zero.
        """
        reading = self._flops(shape, classes)[1:]
        return {name: 0.0 if i in POOLED else reading[i] for i, name in enumerate(self.layers())}

    def flops(self, shape: tuple[int, ...], classes: int, density: dict[str, float] | None = None) -> float:
        """Forward FLOPs per image: products only, those with the zeros around it included; a multiply-add is 2.

        `density` by layer skips zeros of h; None is the dense model.
        """
        skippable = self.skippable_flops(shape, classes)
        always = sum(self._flops(shape, classes)) - sum(skippable.values())
        return always + kept_flops(skippable, density)

    def _flops(self, shape: tuple[int, ...], classes: int) -> list[float]:
        """FLOPs of every layer, the head included."""
        height, width = (-(-size // self.stride) for size in shape[:2])
        out = []
        for i, (inputs, channels) in enumerate(itertools.pairwise((shape[2], *self.channels))):
            out.append(2.0 * height * width * WINDOW**2 * inputs * channels)
            if i in POOLED:
                height, width = height // 2, width // 2
        sizes = (height * width * self.channels[-1], *self.widths, classes)
        return out + [2.0 * a * b for a, b in itertools.pairwise(sizes)]


class Layer(nn.Module):
    """phi(W x + b), W a convolution if x is a map [B, height, width, channels], a matrix if it is [B, inputs]."""

    config: AlexNetConfig
    features: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, ctx: Context) -> jax.Array:
        cfg, inputs = self.config, x.shape[-1]
        if x.ndim == 2:
            z = dense(self.features, ("embed", "mlp"), **_inits(cfg, inputs), name="dense")(x)
        else:
            inits = _inits(cfg, WINDOW**2 * inputs)
            z = nn.Conv(
                self.features,
                (WINDOW, WINDOW),
                self.stride,
                padding=WINDOW // 2,
                kernel_init=named(inits["kernel_init"], "window", "window", "embed", "mlp"),
                bias_init=named(inits["bias_init"], "mlp"),
                name="conv",
            )(x)
        z = axes.constrain(z, ("batch", *("length",) * (z.ndim - 2), "mlp"))
        return Sparsify(cfg.sparsifier, name="sparsify")(z, ctx)


def _inits(cfg: AlexNetConfig, fan_in: int) -> dict[str, Initializer]:
    if cfg.init == "torch":
        return dict.fromkeys(("kernel_init", "bias_init"), initializers.fan_in_uniform(fan_in))
    kernel_init = {"xavier": nn.initializers.xavier_uniform, "he": nn.initializers.he_normal}[cfg.init]()
    return {"kernel_init": kernel_init, "bias_init": nn.initializers.zeros}


class AlexNet(nn.Module):
    """Images [B, height, width, channels] to logits [B, classes]."""

    config: AlexNetConfig
    classes: int

    @nn.compact
    def __call__(self, images: jax.Array, ctx: Context) -> jax.Array:
        cfg, h = self.config, images
        pool = nn.max_pool if cfg.pooling == "max" else nn.avg_pool
        drop = nn.Dropout(cfg.dropout, deterministic=not ctx.train)
        for i, channels in enumerate(cfg.channels):
            h = Layer(cfg, channels, cfg.stride if i == 0 else 1, name=f"conv_{i}")(h, ctx)
            if i in POOLED:
                h = pool(h, (2, 2), (2, 2))
        h_BxF = Noise(cfg.noise, name="noise")(drop(h.reshape(len(h), -1)), ctx)
        h_BxF = Layer(cfg, cfg.widths[0], name="dense_0")(h_BxF, ctx)
        h_BxF = Layer(cfg, cfg.widths[1], name="dense_1")(drop(h_BxF), ctx)
        return dense(self.classes, ("embed", "classes"), **_inits(cfg, cfg.widths[1]), name="head")(h_BxF)
