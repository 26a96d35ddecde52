"""`CircularConv`: a convolution that wraps around, in one or two dimensions.

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
