"""Thresholds of activations that have no zeros, from what a model computes on a few inputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from sparsity.layers.sparsify import Activated
from sparsity.layers.tail import LEAST
from sparsity.ops.sparsifiers import Sparsifier


def thresholds(activations: Any, sparsifier: Sparsifier, share: float) -> Any:
    """Each MLP's threshold t: a `share` of its |phi(z)| is below, over units and tokens (CATS, Lee et al. 2024).

    Args:
      activations: the collection `ACTIVATIONS` that a model hands out (`Context.hand_out`), of the inputs to go by.
      sparsifier: phi, of all these MLPs.
      share: in [0, 1).

    Returns:
      {"least": t for each unit [F], or [layers, F] where layers are stacked} in place of each MLP's, as
      `decode.weights.prepared` takes it.

    Raises:
      ValueError: the share is out of range, or activations are not finite.
    """
    if not 0 <= share < 1:
        raise ValueError(f"share: must be in [0, 1), got {share}")

    def walk(part: Any) -> Any:
        stats = part.get("sparsify") if isinstance(part, Mapping) else None
        if stats is not None:
            return {LEAST: _quantiles(stats["stats"], sparsifier, share)}
        return {name: walk(inner) for name, inner in part.items()}

    return walk(activations)


def _quantiles(given: Activated, sparsifier: Sparsifier, share: float) -> jnp.ndarray:
    z = np.asarray(given.z, np.float32)  # [B, L, F], behind a stack's [layers]
    real = None if given.weight_BxL is None else np.asarray(given.weight_BxL) > 0
    layers = z if z.ndim == 4 else z[None]
    out = []
    for i, z_BxLxF in enumerate(layers):
        z_TxF = z_BxLxF if real is None else z_BxLxF[real[i] if real.ndim == 3 else real]
        size = np.abs(np.asarray(sparsifier(jnp.asarray(z_TxF))))
        if not np.isfinite(size).all():
            raise ValueError("activations: some are not finite; no threshold is found by them")
        out.append(np.full(z.shape[-1], np.quantile(size, share), np.float32))
    return jnp.asarray(np.stack(out) if z.ndim == 4 else out[0])
