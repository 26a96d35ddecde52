"""PPL-p% sparsity: how much of h can be cut off before perplexity rises by p% (Luo et al. 2024, "Sparsing Law").

For activations without exact zeros, such as GELU's, and for those with them too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from sparsity.evals.result import Measure, Predictions, Result, Subject
from sparsity.evals.sparsity import layer_name, mean_of_sums
from sparsity.layers.tail import LEAST

CALIBRATION = 64  # examples of the validation split, at most, that thresholds are found on
# Thresholds tried, over the root mean square of what a unit adds to the output of its MLP.
GRID = 2.0 ** np.arange(-12, 6.5, 0.5)
ERRORS = (1e-4, 1.0)  # of an MLP's output, between which the one that is allowed is sought
NONE = 1e-30  # a threshold that only zeros are below
HALVINGS = 12  # of its logarithm: to 0.3% of it


def thresholds(subject: Subject) -> Result:
    """Of each perplexity rise of `config.rises`: the share of hidden units kept, by layer, and the thresholds.

    A unit is cut off on a token if |h_i| ||w_i|| < eps, w_i its row of W_o. Every layer has the eps that makes the
    relative error of its output, alone and on average, the same number c in all layers, on `CALIBRATION` examples of
    the validation split. c is the largest found, by halving, whose perplexity, all layers cut, is up by no more than
    p%; if there is none, only zeros are cut off.
    """
    arrays = subject.source.model_input(subject.split.arrays())
    few = {key: x[:CALIBRATION] for key, x in subject.source.model_input(subject.load("validation").arrays()).items()}
    curves = _curves(subject, few)
    whole = subject.predict(arrays)
    measures = []
    for rise in subject.config.rises:
        error, eps, cut = _largest_error(subject, arrays, curves, nats(whole) + np.log1p(rise))
        measures += _measures(rise, error, eps, cut, np.expm1(nats(cut) - nats(whole)), subject, few)
    return Result(tuple(measures), {"tail": {layer: curve.tolist() for layer, curve in curves.items()}})


def _curves(subject: Subject, few: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """By layer: thresholds, the errors of the layer's output that they make, and the shares kept [3, thresholds]."""
    layers = layers_of(subject.params)
    means = lambda stats, field: getattr(stats, field) / stats.examples
    first = subject.predict(few, least=least(subject.params, dict.fromkeys(layers, 1.0))).stats
    scale = {layer: float(np.sqrt(means(first[layer], "power_sum"))) for layer in layers}
    points: dict[str, list] = {layer: [] for layer in layers}
    for factor in GRID:
        # An MLP that adds nothing has no threshold; any will do.
        eps = {layer: factor * (scale[layer] or 1.0) for layer in layers}
        stats = subject.predict(few, least=least(subject.params, eps)).stats
        for layer, one in stats.items():
            points[layer].append((eps[layer], means(one, "error_sum"), means(one, "kept_sum")))
    return {layer: np.array(p).T for layer, p in points.items()}


def _largest_error(subject, arrays, curves, most: float):
    """The largest error of every layer's output with which the loss stays within `most`, thresholds, predictions."""
    cut_at = lambda eps: subject.predict(arrays, least=least(subject.params, eps), cut=True)
    error, eps, best = 0.0, dict.fromkeys(curves, NONE), None
    low, high = np.log(ERRORS)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        tried = {layer: threshold(curve, np.exp(middle)) for layer, curve in curves.items()}
        found = cut_at(tried)
        if nats(found) <= most:
            low, error, eps, best = middle, float(np.exp(middle)), tried, found
        else:
            high = middle
    return error, eps, best or cut_at(eps)


def threshold(curve: np.ndarray, error: float) -> float:
    """The threshold that makes `error`, between those tried: linear in the logarithms of both.

    Below the smallest error that was made it is the largest threshold that made none, and `NONE` if all made one.
    """
    eps, errors, _ = curve
    # A larger tail may cancel: the smallest threshold that makes an error counts.
    errors = np.maximum.accumulate(errors)
    above = int(np.searchsorted(errors, error, side="right"))
    if above == 0:
        return NONE
    if above == len(errors) or errors[above - 1] <= 0:
        return float(eps[above - 1])
    share = np.log(error / errors[above - 1]) / np.log(errors[above] / errors[above - 1])
    return float(eps[above - 1] * (eps[above] / eps[above - 1]) ** share)


def least(params: Mapping[str, Any], eps: Mapping[str, float]) -> dict[str, Any]:
    """The collection `TAIL`: eps / ||w_i|| of each unit of every MLP in `params`, eps given by the layer's name.

    A unit whose row of W_o is 0 adds nothing: it is always cut off, its threshold is infinite.
    """

    def of(kernel, path):
        norms = jnp.linalg.norm(kernel.astype(jnp.float32), axis=-1)
        name = layer_name(path)
        each = [eps[f"{name}_{i}"] for i in range(len(norms))] if norms.ndim == 2 else eps[name]
        return {LEAST: jnp.where(norms > 0, jnp.float32(each)[..., None] / norms, jnp.inf)}

    return of_mlps(params, of)


def layers_of(params: Mapping[str, Any]) -> list[str]:
    """The names of all layers that have an MLP."""
    names = []

    def of(kernel, path):
        name = layer_name(path)
        names.extend([f"{name}_{i}" for i in range(len(kernel))] if kernel.ndim == 3 else [name])

    of_mlps(params, of)
    return names


def of_mlps(params: Mapping[str, Any], of: Callable[[Any, tuple[str, ...]], Any], path: tuple[str, ...] = ()) -> Any:
    """`of` each W_o and its MLP's path, in a tree like that of the parameters."""
    if "wi" in params and "wo" in params:
        return of(params["wo"]["kernel"], path)
    inner = {name: of_mlps(part, of, (*path, name)) for name, part in params.items() if isinstance(part, Mapping)}
    return {name: part for name, part in inner.items() if part}


def nats(predictions: Predictions) -> float:
    """Mean loss of a token."""
    return float(predictions.losses.loss.sum() / predictions.losses.count.sum())


def _measures(rise, error, eps, cut, risen, subject, calibrated) -> list[Measure]:
    """Shares kept, thresholds, the error that they make of each layer's output and the rise that they make together."""
    prefix, split = f"ppl_{100 * rise:g}", subject.config.split
    few = len(next(iter(calibrated.values())))
    rule = (
        f"cut with which perplexity on the {split} split rises by at most {100 * rise:g}% (Sparsing Law's "
        f"PPL-{100 * rise:g}%), relative error of each layer's output {error:.3g} on n {few} validation examples"
    )
    kept = {layer: mean_of_sums(s.examples, s.kept_sum, s.kept_sumsq) for layer, s in cut.stats.items()}
    text = f"share of hidden units that are not cut off, mean over an example's tokens, then over n, at the {rule}"
    n = next(iter(kept.values()))[2]
    errors = [k[1] for k in kept.values()]
    bound = None if None in errors else float(np.mean(errors))
    mean = float(np.mean([k[0] for k in kept.values()]))
    of_eps = f"cut off is what adds less than this (norm of h_i w_i) to the layer's output, at the {rule}"
    return [
        Measure(
            f"{prefix}.mean", mean, bound, n, f"mean over {len(kept)} layers of: {text}; the error is an upper bound"
        ),
        *(Measure(f"{prefix}.{layer}", *of_layer, text) for layer, of_layer in kept.items()),
        *(Measure(f"{prefix}.eps.{layer}", value, None, few, of_eps, "") for layer, value in eps.items()),
        Measure(f"{prefix}.rise", risen, None, n, f"rise of perplexity, as a share of it, at the {rule}"),
        Measure(f"{prefix}.error", error, None, few, f"aim of ||y - y'|| / ||y||, y' without the tail: {rule}"),
    ]
