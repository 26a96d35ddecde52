"""Greedy decoding with a cache, in one compiled program."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from sparsity.data.vocabularies import EOS, PAD
from sparsity.layers.attention import CACHE
from sparsity.layers.sparsify import Context


def make_generate(module: nn.Module, length: int, end: int | None = EOS) -> Callable[..., jax.Array]:
    """Compiles (params, inputs [B, L], input_segments [B, L]) -> the targets [B, length], each the most likely one.

    The encoder reads the inputs once, the decoder each token once: keys and values are kept. A row is padding after
    its end, and the loop stops when all rows have ended.

    Args:
      module: a T5, or whatever has its `start` and `step`.
      length: targets of a row at most.
      end: the token after which nothing is said; None: always `length` tokens, as to measure the time of one.

    Raises:
      ValueError: no target is asked for.
    """
    if length < 1:
        raise ValueError(f"length: must be at least 1, got {length}")

    def generate(params: Any, inputs_BxL: jax.Array, input_segments_BxL: jax.Array) -> jax.Array:
        apply = functools.partial(module.apply, mutable=[CACHE])
        ctx = Context(slots=length)
        logits_BxV, kept = apply({"params": params}, inputs_BxL, input_segments_BxL, ctx, method="start")
        tokens_BxT = jnp.full((len(inputs_BxL), length), PAD, jnp.int32)

        def choose(place, logits_BxV, ended_B, tokens_BxT):
            token_B = jnp.where(ended_B, PAD, jnp.argmax(logits_BxV, -1).astype(jnp.int32))
            ended_B = ended_B if end is None else ended_B | (token_B == end)
            return token_B, ended_B, tokens_BxT.at[:, place].set(token_B)

        def more(carry):
            place, _, ended_B, *_ = carry
            return (place < length) & ~ended_B.all()

        def decode(carry):
            place, token_B, ended_B, tokens_BxT, kept = carry
            variables = {"params": params, CACHE: kept}
            logits_BxV, new = apply(variables, token_B, input_segments_BxL, ctx.replace(place=place), method="step")
            return place + 1, *choose(place, logits_BxV, ended_B, tokens_BxT), new[CACHE]

        first = choose(0, logits_BxV, jnp.zeros(len(inputs_BxL), bool), tokens_BxT)
        return jax.lax.while_loop(more, decode, (jnp.int32(1), *first, kept[CACHE]))[3]

    return jax.jit(generate)
