"""Decoding with a cache, in one compiled program: the most likely tokens, or drawn ones."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from sparsity.data.vocabularies import PAD
from sparsity.decode.sampling import Sampling
from sparsity.layers.attention import CACHE
from sparsity.layers.sparsify import Context

Choose = Callable[[jax.Array, Any], jax.Array]  # (logits [B, V], place) -> tokens [B]


def make_generate(module: nn.Module, length: int, end: int | None) -> Callable[..., jax.Array]:
    """Compiles (params, inputs [B, L], input_segments [B, L], step=0) -> the targets [B, length], the most likely ones.

    What stands in a row's inputs is read once, its encoder's or its own prompt, and each target once: keys and values
    are kept, on the mesh by batch and heads. Inputs stand at the left of their row, padding (segment 0) after them; a
    row without inputs says nothing. A row is padding after its end, and the loop stops when all rows have ended. `step`
    counts the updates that the parameters have had: a schedule of k goes by it.

    Args:
      module: a T5, a GPT-2, a Llama, or whatever has their `start` and `step`.
      length: targets of a row at most.
      end: the token after which nothing is said, the vocabulary's own; None: always `length` tokens.

    Raises:
      ValueError: no target is asked for.
    """
    _check(length)

    def generate(params: Any, inputs_BxL: jax.Array, input_segments_BxL: jax.Array, step: Any = 0) -> jax.Array:
        choose = lambda logits_BxV, place: jnp.argmax(logits_BxV, -1).astype(jnp.int32)
        return _decode(module, length, end, choose, params, inputs_BxL, input_segments_BxL, step)

    return jax.jit(generate)


def make_sample(module: nn.Module, length: int, sampling: Sampling, end: int | None) -> Callable[..., jax.Array]:
    """Compiles (params, inputs [B, L], input_segments [B, L], seed, row [B], step=0) -> the targets [B, length], drawn.

    As `make_generate`, but for the choice of a token. `row` numbers the rows: one that keeps its number draws the same
    in any batch.

    Raises:
      ValueError: no target is asked for.
    """
    _check(length)

    def sample(params: Any, inputs_BxL: jax.Array, input_segments_BxL: jax.Array, seed: Any, row_B: Any, step: Any = 0):
        choose = lambda logits_BxV, place: sampling(logits_BxV, seed, row_B, place)
        return _decode(module, length, end, choose, params, inputs_BxL, input_segments_BxL, step)

    return jax.jit(sample)


def _check(length: int) -> None:
    if length < 1:
        raise ValueError(f"length: must be at least 1, got {length}")


def _decode(
    module: nn.Module,
    length: int,
    end: int | None,
    choose: Choose,
    params: Any,
    inputs_BxL: jax.Array,
    input_segments_BxL: jax.Array,
    step: Any,
) -> jax.Array:
    """The targets [B, length]."""
    apply = functools.partial(module.apply, mutable=[CACHE])
    ctx = Context(slots=length, step=step)
    logits_BxV, kept = apply({"params": params}, inputs_BxL, input_segments_BxL, ctx, method="start")

    def say(place, logits_BxV, ended_B, tokens_BxT):
        token_B = jnp.where(ended_B, PAD, choose(logits_BxV, place))
        ended_B = ended_B if end is None else ended_B | (token_B == end)
        return token_B, ended_B, tokens_BxT.at[:, place].set(token_B)

    def more(carry):
        place, _, ended_B, *_ = carry
        return (place < length) & ~ended_B.all()

    def decode(carry):
        place, token_B, ended_B, tokens_BxT, kept = carry
        variables = {"params": params, CACHE: kept}
        logits_BxV, new = apply(variables, token_B, input_segments_BxL, ctx.replace(place=place), method="step")
        return place + 1, *say(place, logits_BxV, ended_B, tokens_BxT), new[CACHE]

    empty_B = ~(input_segments_BxL > 0).any(1)
    first = say(0, logits_BxV, empty_B, jnp.full((len(inputs_BxL), length), PAD, jnp.int32))
    return jax.lax.while_loop(more, decode, (jnp.int32(1), *first, kept[CACHE]))[3]
