"""`dense`: a linear map whose kernel names its axes."""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Initializer
from jax import lax
from jax.typing import DTypeLike

from sparsity import axes

PART = 256  # rows of W that are summed up by themselves


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
        dot_general=_product,
        name=name,
    )


def _product(x: jax.Array, w: jax.Array, dimension_numbers: Any, precision: Any = None) -> jax.Array:
    """The product x W, as `lax.dot_general`; of one token with many inputs, as decoding has it, in parts on a CPU.

    XLA's CPU reads W at half of memory's speed where a single row meets a matrix of more rows than columns.
    """
    whole = lambda x, w: lax.dot_general(x, w, dimension_numbers, precision=precision)
    inputs, features = w.shape
    mesh = jax.sharding.get_abstract_mesh()
    if math.prod(x.shape[:-1]) != 1 or inputs % PART or inputs < 2 * features or mesh.size > 1:
        return whole(x, w)

    def in_parts(x, w):
        wide = jnp.promote_types(x.dtype, jnp.float32)
        parts = x.reshape(-1, PART), w.reshape(-1, PART, features)
        y_NxF = jnp.einsum("nk,nkf->nf", *parts, precision=precision, preferred_element_type=wide)
        return y_NxF.sum(0).astype(x.dtype).reshape(*x.shape[:-1], features)

    return lax.platform_dependent(x, w, cpu=in_parts, default=whole)
