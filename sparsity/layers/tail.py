"""The tail of h: hidden numbers that hardly change what an MLP writes, measured or cut off.

Unit i adds h_i w_i to the output, w_i its row of W_o. It is in the tail of a token if |h_i| ||w_i|| < eps (Zhang et al.
2024, "ReLU^2 wins"; Luo et al. 2024, "Sparsing Law"): even a GELU's h, which has no exact zeros, has a sparsity so.
What the cut costs is ||sum over the tail of h_i w_i|| / ||y||, which they call CETT. Or it is in the tail if |a_i| < t,
a what the sparsifier gives, before the product with the gate (Lee et al. 2024, "CATS").
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax
import jax
import jax.numpy as jnp

from sparsity.layers.sparsify import Context, mean_over_tokens

TAIL = "tail"  # the variable collection of thresholds, and the name that `TailStats` are sown under
LEAST = "least"  # in it: of each unit, the smallest |h_i| that is not cut, eps / ||w_i|| [F]
LEAST_ACTIVATION = "least_activation"  # or the smallest |a_i| that is not, t [F]


@flax.struct.dataclass
class TailStats:
    """Sums over the examples of one or more batches, for one MLP, of means over an example's tokens; merge by addition.

    Attributes:
      examples: number of examples.
      kept_sum: share of hidden units that are not in the tail.
      kept_sumsq: its square.
      error_sum: ||y - y'|| / ||y||, y the MLP's output and y' that without the tail; 0 where nothing is lost.
      power_sum: mean over units of (|h_i| / least_i)^2, which is (|h_i| ||w_i|| / eps)^2; or of (|a_i| / t)^2.
    """

    examples: Any
    kept_sum: Any
    kept_sumsq: Any
    error_sum: Any
    power_sum: Any


def without_tail(
    h_BxLxF: jax.Array,
    least_F: jax.Array,
    out: Callable[[jax.Array], jax.Array],
    ctx: Context,
    compared_BxLxF: jax.Array | None = None,
) -> tuple[jax.Array, TailStats]:
    """What the MLP writes, of all of h (`ctx.tail` "measured") or without its tail ("cut"), and the statistics.

    NaN is in no tail, and makes its example's statistics NaN. `out` maps h to the MLP's output [B, L, D]: W_o, a bias.
    `compared_BxLxF` is what `least_F` is the least size of; None: h.
    """
    compared_BxLxF = h_BxLxF if compared_BxLxF is None else compared_BxLxF
    kept_BxLxF = ~(jnp.abs(compared_BxLxF).astype(jnp.float32) < least_F)
    broken_BxL = jnp.isnan(h_BxLxF).any(-1)
    y_BxLxD, cut_BxLxD = out(h_BxLxF), out(jnp.where(kept_BxLxF, h_BxLxF, 0))
    # W_o times the tail, less the bias: in half precision the difference of y and y' would be all rounding.
    nothing = jnp.zeros((*(1,) * (h_BxLxF.ndim - 1), h_BxLxF.shape[-1]), h_BxLxF.dtype)
    lost_BxLxD = out(jnp.where(kept_BxLxF, 0, h_BxLxF)) - out(nothing)
    norm = lambda x: jnp.linalg.norm(x.astype(jnp.float32), axis=-1)
    lost_BxL = norm(lost_BxLxD)
    error_BxL = jnp.where(lost_BxL == 0, 0, lost_BxL / norm(y_BxLxD))
    power_BxL = jnp.mean((compared_BxLxF.astype(jnp.float32) / least_F) ** 2, axis=-1)
    shares = (kept_BxLxF.mean(-1, dtype=jnp.float32), error_BxL, power_BxL)
    share_B, error_B, power_B = (mean_over_tokens(jnp.where(broken_BxL, jnp.nan, x), ctx.weight_BxL) for x in shares)
    weight_B = jnp.ones_like(share_B) if ctx.weight_B is None else ctx.weight_B.astype(jnp.float32)
    if ctx.weight_BxL is not None:
        weight_B = weight_B * (ctx.weight_BxL > 0).any(-1)
    total = lambda x_B: jnp.sum(jnp.where(weight_B > 0, x_B, 0) * weight_B)  # padding never counts, not even its NaN
    stats = TailStats(weight_B.sum(), total(share_B), total(share_B**2), total(error_B), total(power_B))
    return {"measured": y_BxLxD, "cut": cut_BxLxD}[ctx.tail], stats
