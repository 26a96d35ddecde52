"""Top-k, which looks at a whole token."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp

from sparsity.config import later
from sparsity.ops import top_k
from sparsity.ops.sparsifiers.base import Sparsifier, require
from sparsity.ops.sparsifiers.dense_references import Gelu


@dataclasses.dataclass(frozen=True)
class TopK(Sparsifier):
    """Top-k: keeps the k largest activations of each token, h = Top_k(act(z)) (Li et al. 2022, Eq. 9).

    With method exact and ReLU, k units stay nonzero when at least k are positive, fewer when fewer
    are. GELU has no zero set but underflow: k units stay, negative values among them where fewer
    are positive. Ties go to the lower index, as in `jax.lax.top_k`. NaN stays NaN.

    Attributes:
      k: units kept per token, 1 <= k <= d_ff; a divisor of d_ff for method group.
      act: the activation that Top-k ranks, "relu" or "gelu".
      method: how the units are found, see `ops.top_k`; statistical keeps about k.
      steps: counts that correct the threshold of statistical.
      recall_target: share of the true top k that approx finds on a TPU, in (0, 1].
      anneal: steps over which the kept units fall from all to k, in a straight line, rounded down
        (Bricken et al. 2023, App. D); 0 for k from the start. Methods exact and statistical only.
    """

    k: int
    act: Literal["relu", "gelu"] = "relu"
    method: top_k.Method = "exact"
    steps: int = top_k.STEPS
    recall_target: float = 0.95
    anneal: int = later(0)

    elementwise: ClassVar[bool] = False

    def __post_init__(self):
        require(self.k >= 1, f"k: must be at least 1, got {self.k}")
        require(self.steps >= 0, f"steps: must be at least 0, got {self.steps}")
        require(0 < self.recall_target <= 1, f"recall_target: must be in (0, 1], got {self.recall_target}")
        require(self.anneal >= 0, f"anneal: must be at least 0, got {self.anneal}")
        require(self.anneal < 1 << 31, f"anneal: must be below 2^31, got {self.anneal}")  # steps have 32 bits
        fixed = self.method in ("approx", "group")
        require(not (self.anneal and fixed), f"anneal: method {self.method} needs its k when compiling")

    def __call__(self, z, xp=jnp):
        return self._keep(z, self.k, xp)

    def at(self, step):
        return (lambda z: self._keep(z, self.kept(step, z.shape[-1]))) if self.anneal else self

    def kept(self, step, units: int) -> jax.Array:
        """Units kept of `units` at `step`: floor(units - (units - k) step / anneal), not below k; traced."""
        if not self.anneal:
            return jnp.int32(self.k)
        step, all_dropped = jnp.clip(jnp.asarray(step, jnp.int32), 0, self.anneal), units - self.k
        # ceil(all_dropped step / anneal), exactly: the product may wrap around, its distance to the multiple of
        # `anneal` that float32 finds nearby does not.
        near = jnp.floor(jnp.float32(all_dropped) * step.astype(jnp.float32) / self.anneal).astype(jnp.int32)
        left = all_dropped * step - near * self.anneal
        return units - (near - (-left) // self.anneal)

    def _keep(self, z, k, xp=jnp):
        if xp is not jnp:
            raise ValueError("top_k ranks a whole token: it has no numpy form")
        # ReLU is monotone: ranking z gives the same values and saves a pass. GELU falls below -0.75.
        relu = self.act == "relu"
        h = z if relu else Gelu()(z)
        settings = {"relu": relu, "steps": self.steps, "recall_target": self.recall_target}
        return top_k.keep_top_k(h, k, self.method, **settings)

    def check_width(self, d_ff):
        require(self.k <= d_ff, f"k: {self.k} is more than the d_ff {d_ff} units there are")
        divides = self.method != "group" or d_ff % self.k == 0
        require(divides, f"k: method group keeps one of each of k equal blocks; {self.k} does not divide {d_ff}")

    def resized(self, d_ff, to):
        k = max(1, round(self.k * to / d_ff))
        if self.method == "group":
            k = max(i for i in range(1, k + 1) if to % i == 0)
        return dataclasses.replace(self, k=k)
