"""`scanned`: a layer repeated, compiled once whatever the depth; `rematerialised`: one that keeps less in training."""

from __future__ import annotations

from typing import Any, Literal

import flax.linen as nn
import jax

from sparsity.layers.attention import CACHE
from sparsity.layers.noise import NOISE
from sparsity.layers.predictor import PREDICTED
from sparsity.layers.sparsify import ACTIVATIONS, STATS
from sparsity.layers.tail import TAIL

HIDDEN = "intermediates"  # the collection that layers sow what they pass on into; nothing is kept unless it is mutable
LAYERS = "layers"  # logical axis, and the name in a parameter's path, of what is stacked by layer

Remat = Literal["none", "dots", "full"]
_POLICIES = {"dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable, "full": None}


def rematerialised(layer: type[nn.Module], remat: Remat, in_scan: bool = False) -> type[nn.Module]:
    """`layer`, whose backward pass computes again what its forward pass did not keep (Chen et al. 2016).

    Args:
      remat: what is kept: "none" keeps all, "dots" the products with weights, "full" nothing but the layer's inputs.
      in_scan: it is to be `scanned`, where compilers cannot undo this as they can elsewhere.
    """
    return layer if remat == "none" else nn.remat(layer, prevent_cse=not in_scan, policy=_POLICIES[remat])


def scanned(layer: type[nn.Module], length: int, in_axes: Any = nn.broadcast) -> type[nn.Module]:
    """`layer`, a module (carry, *inputs) -> (carry, None), repeated `length` times with parameters of its own each.

    Parameters, records and what is handed out get a leading axis "layers"; dropout and noise are drawn anew in each.

    Args:
      in_axes: of each input after the carry (of all, if it is not a tuple): 0 deals it out along its first axis, one
        entry a layer; `nn.broadcast` gives all layers the same.
    """
    return nn.scan(
        layer,
        variable_axes={"params": 0, STATS: 0, ACTIVATIONS: 0, HIDDEN: 0, CACHE: 0, TAIL: 0, PREDICTED: 0},
        split_rngs={"params": True, "dropout": True, NOISE: True},
        in_axes=in_axes,
        length=length,
        metadata_params={nn.PARTITION_NAME: LAYERS},
    )
