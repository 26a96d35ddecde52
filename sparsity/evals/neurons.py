"""Single units: firing rates and dead units (Li et al. 2022, Fig. 3)."""

from __future__ import annotations

import numpy as np

from sparsity.evals.result import Measure, Result, Subject


def neurons(subject: Subject) -> Result:
    """Share of dead units per layer and over all, and every unit's firing rate, sorted.

    A unit's firing rate is the share of tokens on which it is nonzero. That a unit fired on
    none of N tokens bounds its rate by 3/N at 95% confidence.
    """
    dead, rates, tokens = {}, {}, {}
    for layer, stats in subject.clean.stats.items():
        tokens[layer] = int(stats.tokens)
        broken = np.isnan(stats.fraction_sum)
        rates[layer] = np.full_like(stats.fired_F, np.nan) if broken else np.sort(stats.fired_F / stats.tokens)[::-1]
        dead[layer] = np.full_like(stats.fired_F, np.nan) if broken else stats.fired_F == 0

    def text(fewest, most):  # layers of a convolutional network may differ in their positions
        seen = fewest if fewest == most else f"{fewest} to {most}"
        return (
            f"share of hidden units that are nonzero on none of the {seen} tokens of the {subject.config.split} "
            f"split (so each fires on under {3 / max(fewest, 1):.2g} of tokens at 95% confidence); n is units, "
            "the error is binomial over them"
        )

    measures = [share(f"dead.{layer}", d, text(tokens[layer], tokens[layer])) for layer, d in dead.items()]
    if dead:
        over_all = text(min(tokens.values()), max(tokens.values()))
        measures.insert(0, share("dead.mean", np.concatenate(list(dead.values())), over_all))
    return Result(tuple(measures), {"firing_rates": {layer: r.tolist() for layer, r in rates.items()}})


def share(name: str, dead: np.ndarray, text: str) -> Measure:
    """The share of units [F] that are `dead`, with its binomial error."""
    p = float(np.mean(dead))
    return Measure(name, p, float((p * (1 - p) / len(dead)) ** 0.5), len(dead), text)
