"""Nonzero fractions per layer (Li et al. 2022, Figs. 1 and 2)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from sparsity.evals.result import Measure, Result, Subject
from sparsity.layers.scan import LAYERS
from sparsity.layers.sparsify import DEFINITION, SparsityStats


def by_layer(tree: Mapping[str, Any]) -> dict[str, SparsityStats]:
    """The sown collection as {layer name: stats}; a layer is named by the path above its MLP.

    Layers stand in the order of their numbers, `block_10` after `block_9`. Statistics stacked by `nn.scan` under
    `layers` become `layers_0`, `layers_1`, ..., in the order of the scan; under `encoder/layers`, `encoder_0`, ....
    """
    out = {}
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: isinstance(x, SparsityStats))
    numbered = lambda leaf: [[int(s) if s.isdigit() else s for s in re.split(r"(\d+)", p.key)] for p in leaf[0]]
    for path, stats in sorted(leaves, key=numbered):
        names = [p.key for p in path]
        path = [n for n in names if n not in ("mlp", "sparsify", "stats")]
        # Of two stacks the name says which: "encoder/layers" is "encoder".
        name = "/".join(path[:-1] if len(path) > 1 and path[-1] == LAYERS else path)
        if np.ndim(stats.examples) == 0:
            out[name] = stats
            continue
        stats = jax.tree.map(np.asarray, stats)  # one transfer, not one per layer
        for i in range(len(stats.examples)):
            out[f"{name}_{i}"] = jax.tree.map(lambda x, i=i: x[i], stats)
    return out


def merge(parts: Sequence[Mapping[str, SparsityStats]]) -> dict[str, SparsityStats]:
    """Adds the statistics of several batches, in float64."""
    total: dict[str, SparsityStats] = {}
    for part in parts:
        for layer, stats in part.items():
            stats = jax.tree.map(lambda x: np.asarray(x, np.float64), stats)
            total[layer] = stats if layer not in total else jax.tree.map(np.add, total[layer], stats)
    return total


def nonzero_fraction(stats: SparsityStats) -> tuple[float, float | None, int]:
    """(mean over examples, standard error over examples, n); NaN stays NaN.

    se^2 = (sumsq - n mean^2) / (n - 1) / n.
    """
    n = int(stats.examples)
    if n == 0:
        return float("nan"), None, 0
    mean = float(stats.fraction_sum) / n
    if n < 2:
        return mean, None, n
    variance = max(float(stats.fraction_sumsq) - n * mean**2, 0.0) / (n - 1)
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
