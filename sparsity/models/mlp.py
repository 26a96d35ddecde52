"""A plain multilayer perceptron, a classifier, with noise in front of any layer (Bricken et al. 2023, App. J.2)."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax

from sparsity import axes
from sparsity.config import one_of
from sparsity.layers import initializers
from sparsity.layers.dense import dense
from sparsity.layers.mlp import kept_flops
from sparsity.layers.noise import Noise
from sparsity.layers.sparsify import Context, Sparsify
from sparsity.ops.noise import NOISES, NoiseConfig
from sparsity.ops.sparsifiers import SPARSIFIERS, Sparsifier


@dataclasses.dataclass(frozen=True)
class MLPClassifierConfig:
    """Settings of x -> phi(x W_0 + b_0) -> ... -> logits, x all numbers of an image.

    With one entry in `widths` it is the classifier with the autoencoder's hidden layer.

    Attributes:
      widths: units of each hidden layer.
      sparsifier: phi of every hidden layer, by name from `SPARSIFIERS`.
      noise: added, in training, to what the layers of `noisy_layers` read. Noise on the image is the run's.
      noisy_layers: the hidden layers, counted from 0, that have `noise` in front of them.
      init: "torch" draws weights and biases from U(+-1 / sqrt(fan_in)), "xavier" weights from Xavier's uniform
        distribution, biases 0.
    """

    widths: tuple[int, ...]
    sparsifier: Sparsifier = one_of(SPARSIFIERS)
    noise: NoiseConfig | None = one_of(NOISES, None)
    noisy_layers: tuple[int, ...] = ()
    init: Literal["torch", "xavier"] = "torch"

    task: ClassVar[str] = "classification"
    inputs: ClassVar[tuple[str, ...]] = ("image",)

    def __post_init__(self):
        if not self.widths or min(self.widths) < 1:
            raise ValueError(f"widths: must be at least 1 each, at least one, got {self.widths}")
        if (self.noise is None) != (not self.noisy_layers):
            raise ValueError("noisy_layers: noise and the layers that have it in front of them come together")
        for layer in self.noisy_layers:
            if not 0 <= layer < len(self.widths):
                raise ValueError(f"noisy_layers: there are layers 0 to {len(self.widths) - 1}, got {layer}")
        for width in self.widths:
            try:
                self.sparsifier.check_width(width)
            except ValueError as error:
                raise ValueError(f"sparsifier.{error}") from error

    def reduced(self, parts: int) -> MLPClassifierConfig:
        """The same with few units; `parts` devices split them."""
        widths = tuple(axes.narrowed(width, parts) for width in self.widths)
        sparsifier = self.sparsifier.resized(self.widths[0], widths[0])
        return dataclasses.replace(self, widths=widths, sparsifier=sparsifier)

    def build(self, classes: int) -> MLPClassifier:
        """The module that maps images to logits over `classes`."""
        return MLPClassifier(self, classes)

    def check_input(self, shape: tuple[int, ...]) -> None:
        """Images of any `shape` fit: they are read as one vector."""

    def layers(self) -> tuple[str, ...]:
        """The names that the hidden layers record under."""
        return tuple(f"layer_{i}" for i in range(len(self.widths)))

    def encoder(self, params: Any) -> tuple[jax.Array, jax.Array]:
        """Weights [inputs, F] and biases [F] of the first layer."""
        return params["dense_0"]["kernel"], params["dense_0"]["bias"]

    @property
    def phi(self) -> Sparsifier:
        """What makes h from z."""
        return self.sparsifier

    def tokens(self, shape: tuple[int, ...]) -> int:
        """Positions that share the weights: one."""
        return 1

    def skippable_flops(self, shape: tuple[int, ...], classes: int) -> dict[str, float]:
        """FLOPs of the matrix that reads each layer's h: what zeros of h can save."""
        sizes = (*self.widths, classes)
        flops = (2.0 * a * b for a, b in itertools.pairwise(sizes))
        return dict(zip(self.layers(), flops, strict=True))

    def flops(self, shape: tuple[int, ...], classes: int, density: dict[str, float] | None = None) -> float:
        """Forward FLOPs per image: matrix products only, a multiply-add is 2; `density` by layer skips zeros of h."""
        return 2.0 * math.prod(shape) * self.widths[0] + kept_flops(self.skippable_flops(shape, classes), density)


class MLPClassifier(nn.Module):
    """Images [B, height, width, channels] to logits [B, classes]."""

    config: MLPClassifierConfig
    classes: int

    @nn.compact
    def __call__(self, images: jax.Array, ctx: Context) -> jax.Array:
        cfg = self.config

        def linear(features, names, fan_in, name):
            uniform = initializers.fan_in_uniform(fan_in)
            inits = {"kernel_init": uniform, "bias_init": uniform} if cfg.init == "torch" else {}
            return dense(features, names, name=name, **inits)

        h_BxF = images.reshape(len(images), -1)
        for i, width in enumerate(cfg.widths):
            if i in cfg.noisy_layers:
                h_BxF = Noise(cfg.noise, name=f"noise_{i}")(h_BxF, ctx)
            z_BxF = linear(width, ("embed", "mlp"), h_BxF.shape[-1], f"dense_{i}")(h_BxF)
            h_BxF = Sparsify(cfg.sparsifier, name=f"layer_{i}")(axes.constrain(z_BxF, ("batch", "mlp")), ctx)
        return linear(self.classes, ("embed", "classes"), h_BxF.shape[-1], "head")(h_BxF)
