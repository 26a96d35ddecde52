"""Normalisation layers whose parameters name their axes."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from sparsity.layers.dense import named


def layer_norm(name: str, dtype: str = "float32", epsilon: float = 1e-6) -> nn.LayerNorm:
    """LayerNorm over D with scale and bias; `epsilon` is that of ViT, GPT-2 has 1e-5."""
    return nn.LayerNorm(
        epsilon=epsilon,
        dtype=jnp.dtype(dtype),
        scale_init=named(nn.initializers.ones, "embed"),
        bias_init=named(nn.initializers.zeros, "embed"),
        name=name,
    )


def rms_norm(name: str, dtype: str = "float32", epsilon: float = 1e-6) -> nn.RMSNorm:
    """RMSNorm, x / sqrt(mean(x^2) + epsilon) over D, with a scale and no bias; the mean is float32's at least."""
    return nn.RMSNorm(
        epsilon=epsilon, dtype=jnp.dtype(dtype), scale_init=named(nn.initializers.ones, "embed"), name=name
    )


def batch_norm(name: str, train: bool) -> nn.BatchNorm:
    """BatchNorm over the channels F with scale and bias, eps 1e-5.

    Mean and (biased) variance are those of the whole batch if `train`, else running ones, of momentum 0.9, which a
    training step moves.
    """
    return nn.BatchNorm(
        use_running_average=not train,
        momentum=0.9,
        scale_init=named(nn.initializers.ones, "mlp"),
        bias_init=named(nn.initializers.zeros, "mlp"),
        name=name,
    )
