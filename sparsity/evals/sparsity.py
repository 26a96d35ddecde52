"""Nonzero fractions per layer (Li et al. 2022, Figs. 1 and 2)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np

from sparsity.evals.result import Measure, Result, Subject
from sparsity.layers.scan import LAYERS
from sparsity.layers.sparsify import DEFINITION, SparsityStats
from sparsity.layers.tail import TAIL

S = TypeVar("S")


def by_layer(tree: Mapping[str, Any], kind: type[S] = SparsityStats) -> dict[str, S]:
    """What of one kind was sown, as {layer name: stats}; a layer is named by the path above its MLP.

    Layers stand in the order of their numbers, `block_10` after `block_9`. Statistics stacked by `nn.scan` under
    `layers` become `layers_0`, `layers_1`, ..., in the order of the scan; under `encoder/layers`, `encoder_0`, ....
    """
    out = {}
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: isinstance(x, kind))
    in_order = lambda leaf: [numbered(p.key) for p in leaf[0]]
    for path, stats in sorted((leaf for leaf in leaves if isinstance(leaf[1], kind)), key=in_order):
        name = layer_name([p.key for p in path])
        if np.ndim(stats.examples) == 0:
            out[name] = stats
            continue
        stats = jax.tree.map(np.asarray, stats)  # one transfer, not one per layer
        for i in range(len(stats.examples)):
            out[f"{name}_{i}"] = jax.tree.map(lambda x, i=i: x[i], stats)
    return out


def numbered(name: str) -> list[int | str]:
    """What names are sorted by for their numbers to rise.

    >>> sorted(["block_10", "block_9"], key=numbered)
    ['block_9', 'block_10']
    """
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def layer_name(path: Sequence[str]) -> str:
    """The name of a layer by the path of its MLP or of anything in it; of a stack of layers, that of the stack.

    >>> layer_name(["encoder", "layers", "mlp"]), layer_name(["block_0", "mlp", "sparsify", "stats"])
    ('encoder', 'block_0')
    """
    path = [name for name in path if name not in ("mlp", "sparsify", "stats", TAIL)]
    # Of two stacks the name says which: "encoder/layers" is "encoder".
    return "/".join(path[:-1] if len(path) > 1 and path[-1] == LAYERS else path)


def merge(parts: Sequence[Mapping[str, S]]) -> dict[str, S]:
    """Adds the statistics of several batches, in float64."""
    total: dict[str, S] = {}
    for part in parts:
        for layer, stats in part.items():
            stats = jax.tree.map(lambda x: np.asarray(x, np.float64), stats)
            total[layer] = stats if layer not in total else jax.tree.map(np.add, total[layer], stats)
    return total


def nonzero_fraction(stats: SparsityStats) -> tuple[float, float | None, int]:
    """(mean over examples, standard error over examples, n); NaN stays NaN."""
    return mean_of_sums(stats.examples, stats.fraction_sum, stats.fraction_sumsq)


def mean_of_sums(examples: Any, total: Any, sumsq: Any) -> tuple[float, float | None, int]:
    """(mean, standard error, n) of n values from their sum and that of their squares.

    se^2 = (sumsq - n mean^2) / (n - 1) / n.
    """
    n = int(examples)
    if n == 0:
        return float("nan"), None, 0
    mean = float(total) / n
    if n < 2:
        return mean, None, n
    variance = max(float(sumsq) - n * mean**2, 0.0) / (n - 1)
    return mean, float("nan") if np.isnan(mean) else (variance / n) ** 0.5, n


def sparsity(subject: Subject) -> Result:
    """Nonzero fraction of every layer and their mean, and the pre-activations' histograms."""
    stats = subject.clean.stats
    measures, means = [], []
    for layer, one in stats.items():
        mean, se, n = nonzero_fraction(one)
        means.append(mean)
        measures.append(Measure(f"nonzero.{layer}", mean, se, n, DEFINITION))
    if means:
        # Layers see the same examples, so their errors are not independent: the sum of the
        # errors over layers bounds that of the mean from above.
        bound = float(np.mean([m.se for m in measures])) if all(m.se is not None for m in measures) else None
        text = f"mean over {len(means)} layers of: {DEFINITION}; the error is an upper bound"
        measures.insert(0, Measure("nonzero.mean", float(np.mean(means)), bound, measures[0].n, text))
    return Result(tuple(measures), {"histogram": {layer: s.histogram.tolist() for layer, s in stats.items()}})
