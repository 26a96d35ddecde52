"""A deep convolutional network on the edge of chaos (Price et al. 2024, Sec. 4)."""

from __future__ import annotations

import dataclasses
import functools
from typing import ClassVar, Literal

import flax.linen as nn
import jax

from sparsity import axes
from sparsity.config import one_of
from sparsity.layers import initializers
from sparsity.layers.conv import CircularConv, Product
from sparsity.layers.dense import dense
from sparsity.layers.mlp import kept_flops
from sparsity.layers.scan import scanned
from sparsity.layers.sparsify import Context, Sparsify
from sparsity.models.deep_mlp import check_edge, layer_names
from sparsity.ops.sparsifiers import SPARSIFIERS, Sparsifier
from sparsity.theory.edge_of_chaos import EdgeOfChaos


@dataclasses.dataclass(frozen=True)
class DeepCNNConfig:
    """Settings of a deep CNN: circular convolutions of stride 1, mean over positions, head.

    The paper leaves open the window, stride, pooling and head: these are this repository's choice.

    Attributes:
      sparsifier: phi of every hidden layer, elementwise, by name from `SPARSIFIERS`.
      channels: channels of every hidden layer.
      depth: convolutions, the first included.
      kernel: side k of the window, odd.
      dims: 2 convolves images; 1 convolves their rows laid end to end, the theory's own case.
      q, input_gain, logit_scale: as in `DeepMLPConfig`; `input_gain` multiplies the mean square of the
        input over a window.
      product: how convolutions are computed, the numbers being the same; "auto" takes rolls and a
        matrix product on a CPU.
    """

    channels: int
    depth: int
    sparsifier: Sparsifier = one_of(SPARSIFIERS)
    kernel: int = 3
    dims: Literal[1, 2] = 2
    q: float = 1.0
    input_gain: float = 1.0
    logit_scale: float = 1.0
    product: Product = "auto"

    task: ClassVar[str] = "classification"
    inputs: ClassVar[tuple[str, ...]] = ("image",)

    def __post_init__(self):
        for field in ("channels", "depth"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field}: must be at least 1, got {getattr(self, field)}")
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise ValueError(f"kernel: must be odd and positive, got {self.kernel}")
        check_edge(self)

    @functools.cached_property
    def edge(self) -> EdgeOfChaos:
        """Where hidden layers and head are initialised; several fixed points warn, once per config."""
        return initializers.edge_of(self.sparsifier, self.q)

    @property
    def window(self) -> tuple[int, ...]:
        """The window's side, once per spatial axis."""
        return (self.kernel,) * self.dims

    def reduced(self, parts: int) -> DeepCNNConfig:
        """Three narrow layers of the same kind; `parts` devices split their channels."""
        channels, depth = axes.narrowed(self.channels, parts, 8), min(self.depth, 3)
        return dataclasses.replace(self, channels=channels, depth=depth)

    def build(self, classes: int) -> DeepCNN:
        """The module that maps images to logits over `classes`."""
        return DeepCNN(self, classes)

    def check_input(self, shape: tuple[int, ...]) -> None:
        """Raises ValueError if a window would meet itself around an image of `shape` [height, width, channels]."""
        sides = shape[:2] if self.dims == 2 else (shape[0] * shape[1],)
        if min(sides) < self.kernel:
            raise ValueError(f"kernel: {self.kernel} is wider than the {' x '.join(map(str, sides))} positions")

    def layers(self) -> tuple[str, ...]:
        """The names that the hidden layers record under, from the input to the head."""
        return layer_names(self.depth)

    def tokens(self, shape: tuple[int, ...]) -> int:
        """Positions that share the weights: pixels."""
        return shape[0] * shape[1]

    def skippable_flops(self, shape: tuple[int, ...], classes: int) -> dict[str, float]:
        """FLOPs per pixel of the convolution that reads each layer's h: what zeros of h can save.

        Nothing for the last layer: the head reads a mean over positions, which has no zeros.
        """
        hidden = 2.0 * self.kernel**self.dims * self.channels**2
        return dict(zip(self.layers(), [hidden] * (self.depth - 1) + [0.0], strict=True))

    def flops(self, shape: tuple[int, ...], classes: int, density: dict[str, float] | None = None) -> float:
        """Forward FLOPs per pixel: products only, a multiply-add is 2; the head is spread over the pixels.

        `density` by layer skips the zeros of each h in the convolution that reads it; None is the dense model.
        """
        first = 2.0 * self.kernel**self.dims * shape[2] * self.channels
        head = 2.0 * self.channels * classes / self.tokens(shape)
        return first + kept_flops(self.skippable_flops(shape, classes), density) + head


class Layer(nn.Module):
    """h -> phi(W * h + b) on the edge of chaos."""

    config: DeepCNNConfig

    @nn.compact
    def __call__(self, h: jax.Array, ctx: Context) -> tuple[jax.Array, None]:
        cfg, edge = self.config, self.config.edge
        inits = (initializers.edge_weights(edge), initializers.edge_biases(edge))
        z = CircularConv(cfg.channels, cfg.window, *inits, cfg.product, name="conv")(h)
        return Sparsify(cfg.sparsifier, name="sparsify")(_constrain(z), ctx), None


class DeepCNN(nn.Module):
    """Images [B, height, width, channels] to logits [B, classes]."""

    config: DeepCNNConfig
    classes: int

    @nn.compact
    def __call__(self, images: jax.Array, ctx: Context) -> jax.Array:
        cfg, edge = self.config, self.config.edge
        x = images if cfg.dims == 2 else images.reshape(len(images), -1, images.shape[-1])
        preserve = initializers.input_weights(cfg.input_gain)
        z = CircularConv(cfg.channels, cfg.window, preserve, product=cfg.product, name="input")(x)
        h = Sparsify(cfg.sparsifier, name="first")(_constrain(z), ctx)
        if cfg.depth > 1:
            h, _ = scanned(Layer, cfg.depth - 1)(cfg, name="layers")(h, ctx)
        h_BxF = h.mean(tuple(range(1, h.ndim - 1)))
        inits = {"kernel_init": initializers.edge_weights(edge), "bias_init": initializers.edge_biases(edge)}
        return cfg.logit_scale * dense(self.classes, ("embed", "classes"), name="head", **inits)(h_BxF)


def _constrain(z: jax.Array) -> jax.Array:
    return axes.constrain(z, ("batch", *("length",) * (z.ndim - 2), "mlp"))
