"""`dense`: a linear map whose kernel names its axes."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from flax.typing import Initializer
from jax.typing import DTypeLike

from sparsity import axes


def named(init: Initializer, *names: str) -> Initializer:
    """`init` with logical axis names attached to the parameter; unknown names raise."""
    axes.spec(names)
    return nn.with_logical_partitioning(init, names)


def dense(
    features: int,
    names: tuple[str, str],
    *,
    use_bias: bool = True,
    kernel_init: Initializer | None = None,
    bias_init: Initializer = nn.initializers.zeros,
    dtype: DTypeLike = "float32",
    name: str | None = None,
) -> nn.Dense:
    """Y = x W + b with W [in, features] on logical axes `names`, b on `names[1]`.

    Kernels are rank 2 on purpose: `nn.DenseGeneral` with three named axes fails under
    `jax.set_mesh`, because it initialises the flattened kernel.
    """
    return nn.Dense(
        features,
        use_bias=use_bias,
        dtype=jnp.dtype(dtype),
        kernel_init=named(kernel_init or nn.initializers.xavier_uniform(), *names),
        bias_init=named(bias_init, names[1]),
        name=name,
    )
