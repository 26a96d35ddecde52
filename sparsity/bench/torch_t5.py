"""The T5 of torch's `transformers`, from the extra [peer]: what a suite compares its arms with, if it is installed."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparsity.models.t5 import DECODER, ENCODER, T5Config
from sparsity.run import RunConfig


def available() -> bool:
    """Whether torch and `transformers` are installed, and ours computes where they do, on the CPU."""
    return jax.default_backend() == "cpu" and all(importlib.util.find_spec(name) for name in ("torch", "transformers"))


def model_of(model: T5Config, classes: int) -> Any:
    """The T5 of `transformers` of these sizes, with random weights."""
    import transformers

    return transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            vocab_size=classes,
            d_model=model.d_model,
            d_kv=model.head_dim,
            d_ff=model.mlp.d_ff,
            num_layers=model.depth(ENCODER),
            num_decoder_layers=model.depth(DECODER),
            num_heads=model.heads,
            dropout_rate=model.dropout,
            feed_forward_proj="relu",
            decoder_start_token_id=0,
            use_cache=True,
        )
    )


def train_step(config: RunConfig, batch: dict[str, np.ndarray]) -> Callable[[], Any]:
    """Forward, loss, backward and Adafactor of torch."""
    import torch

    peer = model_of(config.model, config.data.classes).train()
    optimizer = torch.optim.Adafactor(peer.parameters(), lr=0.01)
    inputs, targets = (torch.tensor(batch[name]).long() for name in ("inputs", "targets"))

    def step():
        loss = peer(input_ids=inputs, labels=targets).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return jnp.float32(loss.item())

    return step


def greedy(model: T5Config, classes: int, inputs: np.ndarray, tokens: tuple[int, int]) -> dict[str, Callable[[], Any]]:
    """Greedy `generate` of so many tokens, whatever it says; the arms are called "torch, 32" and so on.

    Its stacks have as many layers each: `transformers` makes the decoder's cache as deep as the encoder.
    """
    import torch

    peer = model_of(model, classes).eval()
    read = torch.tensor(inputs).long()

    def generate(n: int):
        with torch.inference_mode():
            said = peer.generate(read, min_new_tokens=n, max_new_tokens=n, do_sample=False, num_beams=1)
        return jnp.asarray(said.numpy())

    return {f"torch, {n}": functools.partial(generate, n) for n in tokens}
