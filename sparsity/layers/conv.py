"""`CircularConv`, a convolution that wraps around, in one or two dimensions, and `DepthwiseConv`.

Circular padding makes every position alike, as the mean-field theory assumes (Price et al. 2024,
Sec. 2; Xiao et al. 2018).
"""

from __future__ import annotations

import itertools
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Initializer

from sparsity.layers.dense import named

Product = Literal["auto", "rolls", "convolution"]


@jax.checkpoint  # the backward pass rolls again: keeping k^2 copies of every layer's h costs more time than that
def rolled_product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`circular_convolution` as one matrix product over rolled copies of `x`.

    On a CPU a convolution inside `lax.scan` runs some 15 times slower than outside; this does not.
    """
    *window, _, features = kernel.shape
    axes = tuple(range(1, 1 + len(window)))
    offsets = itertools.product(*map(range, window))
    copies = [jnp.roll(x, [k // 2 - o for k, o in zip(window, offset, strict=True)], axes) for offset in offsets]
    return jnp.concatenate(copies, axis=-1) @ kernel.reshape(-1, features)


def circular_convolution(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """y[p] = sum_o x[p + o - k // 2] kernel[o], positions modulo the size.

    Args:
      x: [B, *space, C], space of one or two axes, each at least k // 2 long.
      kernel: [k, (k,) C, F], k odd.

    Returns:
      [B, *space, F].
    """
    window = kernel.shape[:-2]
    pad = [(0, 0), *((k // 2, k // 2) for k in window), (0, 0)]
    layout = ("NHC", "HIO", "NHC") if len(window) == 1 else ("NHWC", "HWIO", "NHWC")
    strides = (1,) * len(window)
    return jax.lax.conv_general_dilated(
        jnp.pad(x, pad, mode="wrap"), kernel, strides, "VALID", dimension_numbers=layout
    )


class CircularConv(nn.Module):
    """Y = circular_convolution(x, W) + b, W [k, (k,) C, F] and b [F].

    Attributes:
      features: output channels F, sharded over the mesh's model axis.
      window: odd sides k of the window, one per spatial axis of the input.
      product: how it is computed; "auto" takes rolls on a CPU and the convolution elsewhere.
    """

    features: int
    window: tuple[int, ...]
    kernel_init: Initializer
    bias_init: Initializer = nn.initializers.zeros
    product: Product = "auto"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        names = (*("window",) * len(self.window), "embed", "mlp")
        shape = (*self.window, x.shape[-1], self.features)
        kernel = self.param("kernel", named(self.kernel_init, *names), shape)
        bias = self.param("bias", named(self.bias_init, "mlp"), (self.features,))
        rolls = self.product == "rolls" or (self.product == "auto" and jax.default_backend() == "cpu")
        return (rolled_product if rolls else circular_convolution)(x, kernel) + bias


def shifted_sum(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`depthwise_convolution` as a sum over shifted copies of `x`.

    On a CPU some 15 times as fast as the convolution; forward and backward, some 5 times.
    """
    side, (height, width) = len(kernel), x.shape[1:3]
    around = (side // 2, side // 2)
    padded = jnp.pad(x, ((0, 0), around, around, (0, 0)))
    offsets = itertools.product(range(side), repeat=2)
    return sum(padded[:, i : i + height, j : j + width] * kernel[i, j, 0] for i, j in offsets)


def depthwise_convolution(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """y[p, f] = sum_o x[p + o - k // 2, f] kernel[o, 0, f], x zero outside.

    Args:
      x: [B, height, width, F].
      kernel: [k, k, 1, F], k odd.

    Returns:
      [B, height, width, F].
    """
    layout, channels = ("NHWC", "HWIO", "NHWC"), x.shape[-1]
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=layout, feature_group_count=channels
    )


class DepthwiseConv(nn.Module):
    """Y = depthwise_convolution(x, W) + b, W [k, k, 1, F] and b [F], F sharded over the mesh's model axis.

    Attributes:
      side: odd side k of the window.
    """

    side: int
    kernel_init: Initializer
    bias_init: Initializer = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.side, self.side, 1, x.shape[-1])
        kernel = self.param("kernel", named(self.kernel_init, "window", "window", None, "mlp"), shape)
        bias = self.param("bias", named(self.bias_init, "mlp"), shape[-1:])
        return (shifted_sum if jax.default_backend() == "cpu" else depthwise_convolution)(x, kernel) + bias
