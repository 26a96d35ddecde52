"""Quantile thresholds: a stated share of the activations cut off, the smallest (Lee et al. 2024, "CATS").

For activations without exact zeros: what no threshold of the network itself makes sparse, one from data does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from sparsity.evals.result import Measure, Result, Subject
from sparsity.evals.sparsity import layer_name, mean_of_sums
from sparsity.evals.thresholds import CALIBRATION, NONE, layers_of, nats, of_mlps
from sparsity.layers.tail import LEAST_ACTIVATION

HALVINGS = 20  # of a bound of the threshold: to 1e-6 of it


def quantiles(subject: Subject) -> Result:
    """Of each share q of `config.shares`: the threshold of each layer that cuts so many off, and what all of them cost.

    A unit is cut off on a token if |a_i| < t, t its layer's. a is what the sparsifier gives: in a gated MLP before the
    product with the other branch, as CATS cuts |silu(x W_g)|, unless that has a sparsifier too; then it is the product.
    t is the smallest that cuts off a share of at least q on `CALIBRATION` examples of another split, validation's if it
    is the test split that is evaluated and the test split's otherwise; no other layer is cut meanwhile.
    """
    arrays = subject.source.model_input(subject.split.arrays())
    other = "test" if subject.config.split == "validation" else "validation"
    few = {key: x[:CALIBRATION] for key, x in subject.source.model_input(subject.load(other).arrays()).items()}
    layers = layers_of(subject.params)
    first = subject.predict(few, least=least(subject.params, dict.fromkeys(layers, 1.0))).stats
    sizes = {layer: float(np.sqrt(one.power_sum / one.examples)) for layer, one in first.items()}
    whole, measures = subject.predict(arrays), []
    for share in subject.config.shares:
        found = _quantile(subject, few, sizes, share)
        cut = subject.predict(arrays, least=least(subject.params, found), cut=True)
        rise = float(np.expm1(nats(cut) - nats(whole)))
        examples = len(next(iter(few.values())))
        rule = f"t the {100 * share:g}% quantile of a layer's |a| on n {examples} {other} examples"
        measures += _measures(share, found, cut.stats, rise, rule, subject.config.split, examples)
    return Result(tuple(measures))


def _quantile(subject: Subject, few: Any, sizes: Mapping[str, float], share: float) -> dict[str, float]:
    """By layer, the smallest threshold that cuts off `share` of `few`; `sizes` are root mean squares of a."""
    # Of all a no more than 1 - q are larger than this (Chebyshev).
    high = {layer: max(size / (1 - share) ** 0.5, NONE) for layer, size in sizes.items()}
    low = dict.fromkeys(sizes, 0.0)
    for _ in range(HALVINGS):
        middle = {layer: (low[layer] + high[layer]) / 2 for layer in sizes}
        stats = subject.predict(few, least=least(subject.params, middle)).stats
        for layer, one in stats.items():
            (high if one.kept_sum <= (1 - share) * one.examples else low)[layer] = middle[layer]
    return high


def least(params: Mapping[str, Any], thresholds: Mapping[str, float]) -> dict[str, Any]:
    """The collection `TAIL`: the threshold of its layer for each unit of every MLP in `params`, given by its name."""

    def of(kernel, path):
        name = layer_name(path)
        each = [thresholds[f"{name}_{i}"] for i in range(len(kernel))] if kernel.ndim == 3 else thresholds[name]
        return {LEAST_ACTIVATION: jnp.broadcast_to(jnp.float32(each)[..., None], kernel.shape[:-1])}

    return of_mlps(params, of)


def _measures(share, found, stats, rise: float, rule: str, split: str, few: int) -> list[Measure]:
    """Shares kept on the split, thresholds, and the rise that they make together."""
    prefix = f"quantile_{100 * share:g}"
    kept = {layer: mean_of_sums(s.examples, s.kept_sum, s.kept_sumsq) for layer, s in stats.items()}
    text = f"share of hidden units with |a| >= t on the {split} split, mean over tokens, then over n examples, {rule}"
    n = next(iter(kept.values()))[2]
    errors = [k[1] for k in kept.values()]
    bound = None if None in errors else float(np.mean(errors))
    mean = float(np.mean([k[0] for k in kept.values()]))
    return [
        Measure(
            f"{prefix}.mean", mean, bound, n, f"mean over {len(kept)} layers of: {text}; the error is an upper bound"
        ),
        *(Measure(f"{prefix}.{layer}", *of_layer, text) for layer, of_layer in kept.items()),
        *(Measure(f"{prefix}.threshold.{layer}", t, None, few, rule, "") for layer, t in found.items()),
        Measure(f"{prefix}.rise", rise, None, n, f"rise of perplexity on the {split} split, as a share of it, {rule}"),
    ]
