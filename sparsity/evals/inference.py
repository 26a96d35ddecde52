"""What a trained language model's modes of inference miss, and what that costs."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
import optax

from sparsity import spmd
from sparsity.config import ConfigError, lookup
from sparsity.data.pipeline import eval_batches
from sparsity.decode.weights import DECODES, at_end, prepared
from sparsity.evals.result import EvalConfig, Measure, Result, Subject, mean_and_se
from sparsity.layers.inference import INFERENCE, DenseMask, GatherOut, Inference, LowRank, QuantizedSearch, Threshold
from sparsity.layers.inference.base import Alone, Diagnosis
from sparsity.layers.mlp import MLPConfig
from sparsity.layers.sparsify import STATS, Context
from sparsity.ops.sparsifiers import TopK
from sparsity.ops.top_k import predict_approx

FIELDS = {  # of a `Diagnosis`, mean over layers
    "recall": ("share of the units that training keeps, and are not 0, that are found", "share"),
    "certified": ("share of tokens and layers of which it is proven that all are found", "share"),
    "read": ("rows of W_o that are read", "units"),
    "candidates": ("units whose pre-activations are computed exactly", "units"),
    "needed": ("candidates with which none would be missed", "units"),
}


@dataclasses.dataclass(frozen=True)
class Read:
    """What a model does in a mode with the targets of n examples of T tokens.

    Attributes:
      nats: -log p of each target [n, T].
      said: the likeliest token in its place [n, T].
      real: it is a target, no padding [n, T].
      found: of each layer whose MLP is computed in the mode, the `Diagnosis` of all tokens, its fields [n, T].
    """

    nats: np.ndarray
    said: np.ndarray
    real: np.ndarray
    found: dict[str, Diagnosis]


def inference(subject: Subject) -> Result:
    """Of every mode that the sparsifier permits: recall, what it reads, how often it says what training's path does.

    Targets are read as in training, all at once, and each token's MLPs are computed as if it came alone. Modes are
    those of `modes_of`, measures "inference.low_rank.recall" and so on.

    Raises:
      ConfigError: a model that does not decode, or whose sparsifier permits no mode but the dense ones.
    """
    modes = check_inferable(subject.model, subject.config)
    exact = read(subject, DenseMask())
    measures: list[Measure] = []
    for name, mode in modes.items():
        measures += measures_of(name, mode, subject, read(subject, Alone(mode)), exact)
    return Result(tuple(measures))


def check_inferable(model: Any, config: EvalConfig) -> dict[str, Inference]:
    """The modes that will be measured. Raises ConfigError if there are none, or the model does not decode."""
    if not isinstance(model, DECODES):
        raise ConfigError(
            f"evals.names: inference: {type(model).__name__} is not a model that decodes: T5, GPT-2, Llama"
        )
    modes = modes_of(model.mlp, model.d_model, config)
    if not modes:
        kind = type(model.mlp.sparsifier).__name__
        raise ConfigError(f"evals.names: inference: {kind} permits no mode but dense ones: train with zeros or Top-k")
    return modes


def modes_of(mlp: MLPConfig, d_model: int, config: EvalConfig) -> dict[str, Inference]:
    """The modes that read less than all of an MLP, by name: those that its sparsifier permits.

    `quantized_search` takes what its candidates give, proven or not; more candidates than units are all units.

    Raises:
      ConfigError: fewer candidates than the units that are to be found.
    """
    modes: dict[str, Inference] = {}
    if isinstance(mlp.sparsifier, TopK):
        k, recall = mlp.sparsifier.k, mlp.sparsifier.recall_target
        candidates, rank = _searched(mlp, d_model, config)
        if candidates < k:
            raise ConfigError(f"evals.candidates: {candidates} are fewer than the k {k} units that are to be found")
        modes["gather_out"] = GatherOut()
        # Elsewhere `approx_max_k` is an exact search.
        if mlp.sparsifier.method == "exact" and predict_approx(mlp.d_ff, k, recall, jax.default_backend()) is not None:
            modes["gather_out_approx"] = GatherOut("approx")
        modes["low_rank"] = LowRank(rank=rank, candidates=candidates)
        for bits in (8, 4):
            modes[f"quantized_search_{bits}"] = QuantizedSearch(candidates=candidates, bits=bits, fallback=False)
    elif mlp.sparsifier.zeros:
        modes["threshold"] = Threshold(capacity=mlp.d_ff)
    trained = dataclasses.replace(mlp, sparsifier=at_end(mlp.sparsifier))
    return {name: mode for name, mode in modes.items() if mode.reason(trained) is None}


def mode_of(name: str, mlp: MLPConfig, d_model: int, config: EvalConfig) -> Inference:
    """The mode of that name in `INFERENCE`, exact where it can be; `prepared` refuses what the sparsifier forbids.

    Raises:
      ConfigError: there is no such mode.
    """
    kind = lookup(INFERENCE, name, "mode of inference")
    candidates, rank = _searched(mlp, d_model, config)
    settings: dict[str, dict[str, int]] = {
        "low_rank": {"rank": rank, "candidates": candidates},
        "quantized_search": {"candidates": candidates},
        "threshold": {"capacity": mlp.d_ff},
    }
    return kind(**settings.get(name, {}))


def _searched(mlp: MLPConfig, d_model: int, config: EvalConfig) -> tuple[int, int]:
    """The candidates and the rank of searches."""
    k = mlp.sparsifier.k if isinstance(mlp.sparsifier, TopK) else mlp.d_ff
    return min(config.candidates or 2 * k, mlp.d_ff), config.rank or mlp.predictor or -(-d_model // 16)


def read(subject: Subject, mode: Inference) -> Read:
    """The targets of the split, read in `mode` on one device.

    Raises:
      ConfigError: the model does not decode, or its weights do not suit the mode.
    """
    try:
        model, params = prepared(subject.model, spmd.fetch(subject.params), mode)
    except ValueError as error:
        raise ConfigError(f"evals.names: {error}") from error
    module, inputs = model.build(subject.source.classes), subject.model.inputs

    @jax.jit
    def program(params, part):
        ctx = Context(weight_B=part["weight"], step=subject.step, record=True)
        logits, new = module.apply({"params": params}, *(part[n] for n in inputs), ctx, mutable=[STATS])
        nats_BxT = optax.softmax_cross_entropy_with_integer_labels(logits, part["targets"])
        return nats_BxT, logits.argmax(-1), new.get(STATS, {})

    parts: list[tuple[Any, ...]] = []
    # The batch of the evaluation is that of the whole mesh.
    batch = max(1, subject.config.batch // (1 if subject.mesh is None else spmd.batch_devices(subject.mesh)))
    for part in eval_batches(subject.source.model_input(subject.split.arrays()), batch):
        counted = part["weight"] > 0
        nats, said, stats = jax.device_get(program(params, part))
        real = part["target_segments"] > 0 if "target_segments" in part else np.ones(nats.shape, bool)
        shaped = lambda x, nats=nats, counted=counted: x.reshape(nats.shape)[counted]
        found = {name: jax.tree.map(shaped, one) for name, one in _diagnoses(stats).items()}
        parts.append((nats[counted], said[counted], real[counted], found))
    return Read(*jax.tree.map(lambda *x: np.concatenate(x), *parts))


def _diagnoses(stats: Any) -> dict[str, Diagnosis]:
    leaves = jax.tree_util.tree_leaves_with_path(stats, is_leaf=lambda x: isinstance(x, Diagnosis))
    return {"/".join(p.key for p in path): leaf for path, leaf in leaves if isinstance(leaf, Diagnosis)}


def measures_of(name: str, mode: Inference, subject: Subject, found: Read, exact: Read) -> list[Measure]:
    """What a mode finds and reads, and where what it says is not what training's path does."""
    mlp, split = subject.model.mlp, subject.config.split
    real, layers = exact.real, list(found.found.values())
    counts = real.sum(1)
    kept = counts > 0
    per_example = lambda x: (np.where(real, x, 0).sum(1) / np.maximum(counts, 1))[kept]
    over_layers = lambda field: np.mean([getattr(one, field) for one in layers], axis=0)
    which = f"{mode}, {len(layers)} layers; mean over an example's targets, then over n {split} examples"

    n = int(kept.sum())

    def measure(kind: str, values_NxT: np.ndarray, text: str, unit: str = "share") -> Measure:
        return Measure(f"inference.{name}.{kind}", *mean_and_se(per_example(values_NxT)), n, f"{text}: {which}", unit)

    active, d_model = float(per_example(over_layers("read")).mean()), subject.model.d_model
    reads = [one.bytes_read(mlp, d_model, 4, active) for one in (mode, DenseMask())]
    rise = np.where(real, found.nats, 0).sum() / np.where(real, exact.nats, 0).sum() - 1
    most = max(np.where(real, one.needed, 0).max() for one in layers)
    same = "share of targets in whose place the likeliest token is the same"
    alone = {
        "needed_most": (float(most), f"the most candidates needed, of any token and layer: {which}", "units"),
        "rise": (float(rise), f"rise of the mean loss of a target, as a share of it: {which}", "share"),
        "bytes": (
            reads[0] / reads[1],
            f"bytes of float32 weights that an MLP takes, over those of all: {mode}",
            "share",
        ),
    }
    return [
        *(measure(kind, over_layers(kind), *text) for kind, text in FIELDS.items()),
        measure("agreement", found.said == exact.said, same),
        *(Measure(f"inference.{name}.{kind}", v, None, n, text, unit) for kind, (v, text, unit) in alone.items()),
    ]
