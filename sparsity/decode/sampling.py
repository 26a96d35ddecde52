"""Drawing the next token: temperature and nucleus, the same whatever else is in the batch and on any mesh."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Tokens are drawn from softmax(logits / temperature), restricted to its nucleus (Holtzman et al. 2020, Sec. 3.1).

    A draw is a function of (seed, row, place): the number of its row, which is the caller's, and its place among the
    tokens of the row.

    Attributes:
      temperature: below 1 likely tokens become likelier; towards 0 it is the likeliest one.
      top_p: probability of the nucleus, see `nucleus`; 1 is all tokens.
    """

    temperature: float = 1.0
    top_p: float = 1.0

    def __post_init__(self):
        if self.temperature <= 0:
            raise ValueError(f"temperature: must be positive, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p: must be in (0, 1], got {self.top_p}")

    def __call__(self, logits_BxV: jax.Array, seed: jax.Array, row_B: jax.Array, place: jax.Array) -> jax.Array:
        """Tokens [B], int32."""
        # The largest becomes 0: no quotient overflows, however small the temperature.
        logits_BxV = logits_BxV - jnp.max(logits_BxV, axis=-1, keepdims=True)
        logits_BxV = logits_BxV / max(self.temperature, float(jnp.finfo(jnp.float32).tiny))
        if self.top_p < 1:
            logits_BxV = jnp.where(nucleus(jax.nn.softmax(logits_BxV), self.top_p), logits_BxV, -jnp.inf)

        def draw(row, logits_V):
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), row), place)
            return jax.random.categorical(key, logits_V)

        return jax.vmap(draw)(row_B, logits_BxV).astype(jnp.int32)


def nucleus(probability_BxV: jax.Array, top_p: float) -> jax.Array:
    """True for the fewest of the most probable entries of each row that have `top_p` of its probability together.

    Entries as probable as the last of them are in too, so that their order has no part in it. It is found without a
    sort: floats that are not negative are ordered as their bits are, and the largest threshold that leaves enough is
    put together from its highest bit down. Probabilities are float32.

    >>> nucleus(jnp.array([[0.125, 0.5, 0.25, 0.125]]), 0.7)
    Array([[False,  True,  True, False]], dtype=bool)
    """
    bits_BxV = jax.lax.bitcast_convert_type(probability_BxV, jnp.int32)
    places = 30  # of the bits of numbers up to 1

    def settle(i, least_Bx1):
        tried_Bx1 = least_Bx1 | (1 << (places - 1 - i))
        share_Bx1 = jnp.sum(jnp.where(bits_BxV >= tried_Bx1, probability_BxV, 0), axis=1, keepdims=True)
        return jnp.where(share_Bx1 >= top_p, tried_Bx1, least_Bx1)

    return bits_BxV >= jax.lax.fori_loop(0, places, settle, jnp.zeros((len(bits_BxV), 1), jnp.int32))
