"""What models of one stack share that predict the next token: they read a prompt, then one token after the other."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from sparsity.layers.sparsify import Context


class Decoder(nn.Module):
    """`start` and `step` of a module (tokens [B, L], ctx, last [B] or None) -> logits, with a `config`.

    Prompts stand at the left of their rows, padding (segment 0) after them, and what follows takes the next places of
    the cache in all rows alike: those of padding stay empty, and no token sees them. A token's position is its own, as
    if there were no padding, so that a row says what it says alone.
    """

    def start(self, tokens_BxL: jax.Array, segments_BxL: jax.Array, ctx: Context) -> jax.Array:
        """Reads the prompts; the logits [B, V] of what follows. A mutable cache is needed.

        `ctx.slots` are the tokens that may follow; the last of them is never read.

        Raises:
          ValueError: the model has too few positions for as many after prompts of length L.
        """
        slots = tokens_BxL.shape[1] + ctx.slots - 1
        self.config.check_input((slots,))
        real_BxL = segments_BxL > 0
        last_B = jnp.maximum(real_BxL.sum(1) - 1, 0)
        return self(tokens_BxL, ctx.replace(slots=slots, weight_BxL=real_BxL), last_B)[:, 0]

    def step(self, token_B: jax.Array, segments_BxL: jax.Array, ctx: Context) -> jax.Array:
        """Reads the token before the one at `ctx.place` of those that follow; the logits [B, V] of that one."""
        length, real_BxL = segments_BxL.shape[1], segments_BxL > 0
        slots, place = length + ctx.slots - 1, length + ctx.place - 1
        place_M = jnp.arange(slots)
        seen_BxM = jnp.pad(real_BxL, ((0, 0), (0, ctx.slots - 1))) | (place_M >= length) & (place_M <= place)
        position_B = real_BxL.sum(1) + ctx.place - 1
        ctx = ctx.replace(slots=slots, place=place, position_B=position_B, seen_BxM=seen_BxM)
        return self(token_B[:, None], ctx)[:, 0]
