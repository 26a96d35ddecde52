"""What of the sparsity is dead units, and by which definition (Bricken et al. 2023, App. D and I; Sparsing Law)."""

from __future__ import annotations

import numpy as np

from sparsity.evals.neurons import share
from sparsity.evals.result import Measure, Result, Subject, mean_and_se
from sparsity.evals.sparsity import nonzero_fraction
from sparsity.layers.sparsify import FLAT, THRESHOLDS, SparsityStats

_STILL = 0.03  # deviation over root mean square, below which a unit's pre-activation has no skewness


def units(subject: Subject) -> Result:
    """Of the units over one epoch of the training split under training's noise, where Bricken et al. count the dead.

    Three definitions of a dead unit, the density with and without them, the entropy of activity, the spread of the
    number of active units over examples, and the moments of pre-activations. Of a split too large to be read whole it
    is the part that its source gives.
    """
    stats, config, rows = subject.trained.stats, subject.config, len(subject.load("train"))
    whole = lambda s: f"{int(s.examples)} of the {rows} examples" if s.examples < rows else "one epoch"
    places = {
        layer: f"the {int(s.tokens)} tokens of {whole(s)} of the training split, noise on" for layer, s in stats.items()
    }
    definitions = {
        "never": ("are nonzero on none of", lambda s: s.fired_F == 0),
        "silent": (f"have a sum of |h| below {config.dead_size:g} over", lambda s: s.size_F < config.dead_size),
        "rare": (
            f"are nonzero on less than {config.dead_rate:g} of",
            lambda s: s.fired_F < config.dead_rate * s.tokens,
        ),
    }
    measures = []
    for name, (what, rule) in definitions.items():
        for layer, one in stats.items():
            dead = np.where(np.isnan(one.fraction_sum), np.nan, rule(one))
            text = f"share of hidden units that {what} {places[layer]}; n is units, the error is binomial over them"
            measures.append(share(f"units.{name}.{layer}", dead, text))
    for layer, one in stats.items():
        measures += _density(layer, one, places[layer]) + _moments(layer, one, places[layer])
    return Result(tuple(measures))


def _density(layer: str, stats: SparsityStats, where: str) -> list[Measure]:
    mean, error, n = nonzero_fraction(stats)
    alive = float(np.mean(stats.fired_F > 0))
    without = (mean / alive, None if error is None else error / alive) if alive else (0.0, None)
    variance = max(float(stats.fraction_sumsq) / n - mean**2, 0.0)
    shares = stats.above_T / stats.examples
    return [
        Measure(f"units.density.{layer}", mean, error, n, f"share of nonzero h on {where}"),
        Measure(f"units.live.{layer}", *without, n, f"share of nonzero h on {where}, among units that ever are"),
        *(
            Measure(f"units.above_{t:g}.{layer}", float(s), None, n, f"share of h with |h| > {t:g} on {where}")
            for t, s in zip(THRESHOLDS, shares, strict=True)
        ),
        Measure(
            f"units.spread.{layer}",
            variance**0.5 / mean if mean else float("nan"),
            None,
            n,
            f"standard deviation over examples of the share of nonzero h, over its mean, on {where}",
            "",
        ),
        Measure(
            f"units.entropy.{layer}",
            _entropy(stats.size_F),
            None,
            len(stats.size_F),
            f"entropy of the units' shares of the sum of |h| on {where}, over that of equal shares",
            "",
        ),
    ]


def _moments(layer: str, stats: SparsityStats, where: str) -> list[Measure]:
    """Mean, deviation and skewness of each unit's pre-activation, as means over units."""
    mean, square, cube = stats.power_3xF / stats.tokens
    variance = np.maximum(square - mean**2, 0)
    third = cube - 3 * mean * square + 2 * mean**3
    # From sums of float32 nothing is left of the third moment of a unit that hardly varies. NaN is not such a one.
    varies = ~(variance <= _STILL**2 * square)
    skewness = third[varies] / variance[varies] ** 1.5
    n = len(mean)
    text = "of its pre-activation on"
    return [
        Measure(
            f"units.z_mean.{layer}",
            *mean_and_se(mean),
            n,
            f"mean over units of the mean {text} {where}",
            "",
        ),
        Measure(
            f"units.z_std.{layer}",
            *mean_and_se(np.sqrt(variance)),
            n,
            f"mean over units of the standard deviation {text} {where}",
            "",
        ),
        Measure(
            f"units.z_skewness.{layer}",
            *(mean_and_se(skewness) if len(skewness) else (float("nan"), None)),
            len(skewness),
            f"mean over units that vary by at least {_STILL:.0%} of their size of the skewness {text} {where}",
            "",
        ),
        Measure(
            f"units.flat.{layer}",
            float(stats.flat_sum / stats.examples),
            None,
            int(stats.examples),
            f"share of units with |phi'(z)| < {FLAT:g} on {where}",
        ),
    ]


def _entropy(size_F: np.ndarray) -> float:
    """-sum p log p / log F of p = size / sum(size), in [0, 1]; 0 if nothing is active."""
    total = size_F.sum()
    if total == 0 or len(size_F) == 1:
        return 0.0
    p = size_F / total
    return float(-(p * np.log(np.where(p > 0, p, 1))).sum() / np.log(len(size_F)))
