"""Weights as decoding reads them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import flax
import jax

from sparsity.config import nearest
from sparsity.layers.inference import Inference
from sparsity.layers.mlp import MLPConfig
from sparsity.layers.scan import LAYERS
from sparsity.layers.tail import LEAST, LEAST_ACTIVATION
from sparsity.models.gpt2 import GPT2Config
from sparsity.models.llama import LlamaConfig
from sparsity.models.t5 import DECODER, T5Config
from sparsity.ops.sparsifiers import TopK

DECODES = T5Config | GPT2Config | LlamaConfig  # the settings of models that say tokens one by one
MLPPath = tuple[str, ...]  # of an MLP in a tree of parameters


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
    if not isinstance(config, DECODES):
        raise ValueError(f"inference: {type(config).__name__} is not a model that decodes: T5, GPT-2, Llama")
    mlp = dataclasses.replace(
        config.mlp, sparsifier=at_end(config.mlp.sparsifier), gate=at_end(config.mlp.gate), inference=mode
    )
    if least is not None and not mode.lays_out:
        raise ValueError(f"inference: thresholds are given, which {type(mode).__name__} has no use for")
    least = None if least is None else unstacked(config, least)[1]
    config, params = unstacked(config, params)
    config = dataclasses.replace(config, mlp=mlp)
    if not mode.lays_out:
        return config, params
    paths = _mlps(params)
    decoders = [path for path in paths if path[0] == DECODER] if isinstance(config, T5Config) else paths
    thresholds = dict.fromkeys(decoders) if least is None else _thresholds(least, paths, decoders, mlp)

    def laid_out(part: Mapping[str, Any], path: MLPPath = ()) -> Any:
        if path in thresholds:
            return mode.lay_out(part, mlp, config.dtype, thresholds[path])
        return {n: laid_out(x, (*path, n)) if isinstance(x, Mapping) else x for n, x in part.items()}

    return config, laid_out(params)


def _mlps(params: Mapping[str, Any], path: MLPPath = ()) -> list[MLPPath]:
    """The places of all MLPs in a tree of parameters."""
    if "wi" in params and "wo" in params:
        return [path]
    parts = {name: part for name, part in params.items() if isinstance(part, Mapping)}
    return [found for name, part in parts.items() for found in _mlps(part, (*path, name))]


def _thresholds(least: Any, paths: Sequence[MLPPath], needed: Sequence[MLPPath], mlp: MLPConfig) -> dict[MLPPath, Any]:
    """Of each MLP that needs them, its thresholds [F]. Raises ValueError if some are missing, or those of no MLP."""
    given: dict[MLPPath, dict[str, Any]] = {}
    for (*path, kind), values in flax.traverse_util.flatten_dict(least).items():
        given.setdefault(tuple(path), {})[kind] = values
    names = ["/".join(path) for path in paths]
    for path in given:
        if path not in paths:
            name = "/".join(path)
            raise ValueError(f'inference: thresholds are given of "{name}", which is no MLP{nearest(name, names)}')
    for path in needed:
        if path not in given:
            raise ValueError(f"inference: no thresholds are given of {'/'.join(path)}")
    return {path: _of_activations(given[path], mlp) for path in needed}


def _of_activations(least: Mapping[str, Any], mlp: MLPConfig) -> Any:
    """The thresholds [F] of |phi(z)|, which alone say which rows are needed before any is read."""
    if LEAST_ACTIVATION in least and mlp.gate is None:
        return least[LEAST_ACTIVATION]
    if LEAST in least and not mlp.gated:
        return least[LEAST]
    if not {LEAST, LEAST_ACTIVATION} & least.keys():
        raise ValueError(
            f'inference: thresholds are called "{LEAST}" or "{LEAST_ACTIVATION}", not "{next(iter(least))}"'
        )
    raise ValueError("inference: these thresholds are of a product with a gate, which is known when its rows are read")


def at_end(sparsifier: Any) -> Any:
    """The sparsifier at the end of its schedule."""
    return dataclasses.replace(sparsifier, anneal=0) if isinstance(sparsifier, TopK) else sparsifier
