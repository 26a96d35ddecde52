"""Weights as decoding reads them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from sparsity.layers.inference import Inference
from sparsity.layers.mlp import MLPConfig
from sparsity.layers.scan import LAYERS
from sparsity.layers.tail import LEAST, LEAST_ACTIVATION
from sparsity.models.gpt2 import GPT2Config
from sparsity.models.llama import LlamaConfig
from sparsity.models.t5 import DECODER, T5Config
from sparsity.ops.sparsifiers import TopK


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


def prepared(config: Any, params: Any, mode: Inference, least: Any = None) -> tuple[Any, Any]:
    """The same model, trained, whose decoder's MLPs are computed in `mode`, and its weights laid out for that, once.

    Layers are unstacked; k is that of the end of its annealing. A T5's encoder is left as it is.

    Args:
      config: of a T5, a GPT-2 or a Llama.
      params: the parameters as training has them, unboxed, whole on one device.
      mode: one of `layers.inference.INFERENCE`.
      least: for `Threshold`, the thresholds of each MLP's units in a tree like that of the parameters: those of
        `evals.quantiles.least`; without gates those of the evaluator `thresholds` too.

    Raises:
      ValueError: another model, a sparsifier that the mode does not permit, or thresholds missing or in vain.

    >>> from sparsity.layers.inference import Threshold
    >>> from sparsity.ops.sparsifiers import TopK
    >>> config = GPT2Config(MLPConfig(8, TopK(k=2)), d_model=4, layers=1, heads=1, positions=3)
    >>> prepared(config, {}, Threshold(capacity=4))
    Traceback (most recent call last):
    ValueError: inference: Threshold of TopK: its threshold is another one for every token; use GatherOut
    """
    if not isinstance(config, T5Config | GPT2Config | LlamaConfig):
        raise ValueError(f"inference: {type(config).__name__} is not a model that decodes: T5, GPT-2, Llama")
    mlp = dataclasses.replace(
        config.mlp, sparsifier=_trained(config.mlp.sparsifier), gate=_trained(config.mlp.gate), inference=mode
    )
    least = None if least is None else unstacked(config, least)[1]
    config, params = unstacked(config, params)
    config = dataclasses.replace(config, mlp=mlp)
    if not mode.lays_out:
        return config, params

    def laid_out(part: Mapping[str, Any], least: Any) -> Any:
        if "wi" in part and "wo" in part:
            return mode.lay_out(part, mlp, config.dtype, None if least is None else _of_activations(least, mlp))
        inner = lambda name: None if least is None else least.get(name)
        return {n: laid_out(x, inner(n)) if isinstance(x, Mapping) else x for n, x in part.items()}

    if isinstance(config, T5Config):
        return config, dict(params) | {DECODER: laid_out(params[DECODER], None if least is None else least[DECODER])}
    return config, laid_out(params, least)


def _of_activations(least: Mapping[str, Any], mlp: MLPConfig) -> Any:
    """The thresholds [F] of |phi(z)|, which alone say which rows are needed before any is read."""
    if LEAST_ACTIVATION in least and mlp.gate is None:
        return least[LEAST_ACTIVATION]
    if LEAST in least and not mlp.gated:
        return least[LEAST]
    raise ValueError("inference: these thresholds are of a product with a gate, which is known when its rows are read")


def _trained(sparsifier: Any) -> Any:
    """The sparsifier at the end of its schedule."""
    return dataclasses.replace(sparsifier, anneal=0) if isinstance(sparsifier, TopK) else sparsifier
