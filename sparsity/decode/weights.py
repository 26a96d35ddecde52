"""Weights as decoding reads them."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from sparsity.layers.scan import LAYERS
from sparsity.models.t5 import DECODER, ENCODER, T5Config


def unstacked(config: T5Config, params: Any) -> tuple[T5Config, Any]:
    """The same T5 with a module and arrays of its own for each layer, its scan unrolled.

    Training stacks the layers of a stack into one array a parameter, so that one layer is compiled. When a token at a
    time is decoded, cutting a layer's weights out of the stack would cost a copy of them.
    """
    if not config.scan:
        return config, params
    out = dict(params)
    for stack in (ENCODER, DECODER):
        rest = {name: part for name, part in params[stack].items() if name != LAYERS}
        one = lambda i, stack=stack: jax.tree.map(lambda x: x[i], params[stack][LAYERS])
        out[stack] = rest | {f"{LAYERS}_{i}": one(i) for i in range(config.depth(stack))}
    return dataclasses.replace(config, scan=False), out
