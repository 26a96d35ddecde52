"""Weights as decoding reads them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from sparsity.layers.scan import LAYERS


def unstacked(config: Any, params: Any) -> tuple[Any, Any]:
    """The same model with a module and arrays of its own for each layer, its scans unrolled, if it has any (T5).

    Training stacks the layers of a stack into one array a parameter, so that one layer is compiled. When a token at a
    time is decoded, cutting a layer's weights out of the stack would cost a copy of them.
    """
    if not (hasattr(config, "scan") and config.scan):
        return config, params
    return dataclasses.replace(config, scan=False), _unrolled(params)


def _unrolled(params: Any) -> Any:
    if not isinstance(params, Mapping):
        return params
    out = {name: _unrolled(part) for name, part in params.items() if name != LAYERS}
    if LAYERS in params:
        depth = len(jax.tree.leaves(params[LAYERS])[0])
        out |= {f"{LAYERS}_{i}": jax.tree.map(lambda x, i=i: x[i], params[LAYERS]) for i in range(depth)}
    return out
