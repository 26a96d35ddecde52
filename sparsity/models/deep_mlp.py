"""A deep fully connected network on the edge of chaos (Price et al. 2024, Sec. 4)."""

from __future__ import annotations

import dataclasses
import functools
from typing import ClassVar

import flax.linen as nn
import jax

from sparsity import axes
from sparsity.config import one_of
from sparsity.layers import initializers
from sparsity.layers.dense import dense
from sparsity.layers.mlp import kept_flops
from sparsity.layers.scan import scanned
from sparsity.layers.sparsify import Context, Sparsify
from sparsity.ops.sparsifiers import SPARSIFIERS, Sparsifier
from sparsity.theory.edge_of_chaos import EdgeOfChaos


@dataclasses.dataclass(frozen=True)
class DeepMLPConfig:
    """Settings of a deep MLP: x -> W_1 x -> phi -> (W h + b -> phi) ... -> head.

    The paper leaves open the bias of the first layer (0 here at the start) and the head (here on
    the edge of chaos too, so that logits start with variance q).

    Attributes:
      sparsifier: phi of every hidden layer, elementwise, by name from `SPARSIFIERS`.
      width: units N of every hidden layer.
      depth: hidden layers L, the first included.
      q: the fixed point q* that the initialisation holds pre-activations at.
      input_gain: the first layer draws N(0, input_gain / inputs), so q_1 is this times the input's
        mean square; 1 preserves the variance, as in the paper, which takes less for unclipped
        thresholds, whose fixed point is stable from below only.
      logit_scale: constant factor on the logits. A network at q* with tau, m and inputs scaled by
        sqrt(q*) is the one at 1 with logits sqrt(q*) times as large; 1/sqrt(q*) undoes that.
    """

    width: int
    depth: int
    sparsifier: Sparsifier = one_of(SPARSIFIERS)
    q: float = 1.0
    input_gain: float = 1.0
    logit_scale: float = 1.0

    task: ClassVar[str] = "classification"
    inputs: ClassVar[tuple[str, ...]] = ("image",)

    def __post_init__(self):
        for field in ("width", "depth"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field}: must be at least 1, got {getattr(self, field)}")
        check_edge(self)

    @functools.cached_property
    def edge(self) -> EdgeOfChaos:
        """Where hidden layers and head are initialised; several fixed points warn, once per config."""
        return initializers.edge_of(self.sparsifier, self.q)

    def reduced(self, parts: int) -> DeepMLPConfig:
        """Three narrow layers of the same kind; `parts` devices split their units."""
        width, depth = axes.narrowed(self.width, parts), min(self.depth, 3)
        return dataclasses.replace(self, width=width, depth=depth)

    def build(self, classes: int) -> DeepMLP:
        """The module that maps images to logits over `classes`."""
        return DeepMLP(self, classes)

    def check_input(self, shape: tuple[int, ...]) -> None:
        """Images of any `shape` [height, width, channels] fit: they are read as one vector."""

    def layers(self) -> tuple[str, ...]:
        """The names that the hidden layers record under, from the input to the head."""
        return layer_names(self.depth)

    def tokens(self, shape: tuple[int, ...]) -> int:
        """Positions that share the weights: one."""
        return 1

    def skippable_flops(self, shape: tuple[int, ...], classes: int) -> dict[str, float]:
        """FLOPs of the matrix that reads each layer's h: what zeros of h can save."""
        hidden = [2.0 * self.width**2] * (self.depth - 1)
        return dict(zip(self.layers(), [*hidden, 2.0 * self.width * classes], strict=True))

    def flops(self, shape: tuple[int, ...], classes: int, density: dict[str, float] | None = None) -> float:
        """Forward FLOPs per image: matrix products only, a multiply-add is 2.

        `density` by layer skips the zeros of each h in the matrix that reads it; None is the dense model.
        """
        first = 2.0 * shape[0] * shape[1] * shape[2] * self.width
        return first + kept_flops(self.skippable_flops(shape, classes), density)


def check_edge(config) -> None:
    """What the deep networks' settings share. Raises ValueError naming the field."""
    for field in ("q", "input_gain", "logit_scale"):
        if not getattr(config, field) > 0:
            raise ValueError(f"{field}: must be positive, got {getattr(config, field)}")
    _ = config.edge


def layer_names(depth: int) -> tuple[str, ...]:
    """`first`, then `layers_0`, `layers_1`, ...: as `evals.sparsity.by_layer` names scanned layers."""
    return ("first", *(f"layers_{i}" for i in range(depth - 1)))


class Layer(nn.Module):
    """h -> phi(W h + b) on the edge of chaos."""

    config: DeepMLPConfig

    @nn.compact
    def __call__(self, h_BxF: jax.Array, ctx: Context) -> tuple[jax.Array, None]:
        cfg, edge = self.config, self.config.edge
        inits = {"kernel_init": initializers.edge_weights(edge), "bias_init": initializers.edge_biases(edge)}
        z_BxF = dense(cfg.width, ("embed", "mlp"), name="dense", **inits)(h_BxF)
        return Sparsify(cfg.sparsifier, name="sparsify")(axes.constrain(z_BxF, ("batch", "mlp")), ctx), None


class DeepMLP(nn.Module):
    """Images [B, height, width, channels] to logits [B, classes]."""

    config: DeepMLPConfig
    classes: int

    @nn.compact
    def __call__(self, images: jax.Array, ctx: Context) -> jax.Array:
        cfg, edge = self.config, self.config.edge
        x_BxD = images.reshape(len(images), -1)
        preserve = initializers.input_weights(cfg.input_gain)
        z_BxF = dense(cfg.width, ("embed", "mlp"), kernel_init=preserve, name="input")(x_BxD)
        h_BxF = Sparsify(cfg.sparsifier, name="first")(axes.constrain(z_BxF, ("batch", "mlp")), ctx)
        if cfg.depth > 1:
            h_BxF, _ = scanned(Layer, cfg.depth - 1)(cfg, name="layers")(h_BxF, ctx)
        inits = {"kernel_init": initializers.edge_weights(edge), "bias_init": initializers.edge_biases(edge)}
        return cfg.logit_scale * dense(self.classes, ("embed", "classes"), name="head", **inits)(h_BxF)
