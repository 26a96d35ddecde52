"""From the theory's answer to weights: initialisers on the edge of chaos (Price et al. 2024, Sec. 2).

Every hidden layer draws W ~ N(0, sigma_w^2 / fan_in) and b ~ N(0, sigma_b^2), which keeps the
variance of its pre-activations at q* and that of gradients at chi_1 = 1. The first layer reads
data, not activations, and only preserves its variance. fan_in is the product of all axes of a
kernel but the last: N for a matrix [N, F], C k for a 1-D and C k^2 for a 2-D convolution's kernel
[k, (k,) C, F].
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Initializer

from sparsity.ops.sparsifiers import Sparsifier
from sparsity.theory import edge_of_chaos
from sparsity.theory.edge_of_chaos import EdgeOfChaos


def edge_of(sparsifier: Sparsifier, q: float) -> EdgeOfChaos:
    """The edge of chaos of `sparsifier` at the pre-activation variance `q`.

    Warns:
      BifurcationWarning: the variance map has further fixed points.

    Raises:
      ValueError: the sparsifier is not elementwise, was made for another q, or has no edge of chaos at `q`.

    >>> from sparsity.ops.sparsifiers import Relu
    >>> edge_of(Relu(), 1.0).sigma_w2  # He et al. 2015
    2.0
    """
    made_for = getattr(sparsifier, "q", None)
    if made_for is not None and made_for != q:
        raise ValueError(f"q: the network's {q} is not the {made_for} that its sparsifier was made for")
    try:
        activation = sparsifier.activation()
    except ValueError as error:
        raise ValueError(f"sparsifier: {error}") from error
    return edge_of_chaos.at(activation, q)


def edge_weights(edge: EdgeOfChaos) -> Initializer:
    """Weights W ~ N(0, sigma_w^2 / fan_in)."""
    return nn.initializers.variance_scaling(edge.sigma_w2, "fan_in", "normal")


def edge_biases(edge: EdgeOfChaos) -> Initializer:
    """Biases b ~ N(0, sigma_b^2)."""
    return nn.initializers.normal(math.sqrt(edge.sigma_b2))


def fan_in_uniform(fan_in: int, scale: float = 1.0) -> Initializer:
    """U(-a, a) with a = scale / sqrt(fan_in), for kernels and biases alike: what torch's `nn.Linear` starts from.

    There it is written as Kaiming's uniform distribution with a negative slope of sqrt(5).
    """
    limit = scale * fan_in**-0.5
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -limit, limit)


def input_weights(gain: float = 1.0) -> Initializer:
    """First layer's W ~ N(0, gain / fan_in): pre-activations have `gain` times the input's mean square."""
    return nn.initializers.variance_scaling(gain, "fan_in", "normal")


def gpt2_weights(residuals: int = 1) -> Initializer:
    """W ~ N(0, .02^2 / residuals): GPT-2's (Radford et al. 2019), as Hugging Face's implementation has it.

    `residuals` is the number of branches whose outputs add up in the residual stream, two a block, for the matrices
    that write there; 1 for all others.
    """
    return nn.initializers.normal(0.02 * residuals**-0.5)


def t5_weights(scale: float = 1.0) -> Initializer:
    """W from a truncated normal distribution of variance scale / fan_in: T5X's MLPs and logits."""
    return nn.initializers.variance_scaling(scale, "fan_in", "truncated_normal")
