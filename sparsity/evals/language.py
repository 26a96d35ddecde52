"""How well a language model predicts."""

from __future__ import annotations

import numpy as np

from sparsity.evals.result import ByExample, Measure, Result, Subject, mean_and_se


def language(subject: Subject) -> Result:
    """Cross-entropy and accuracy per token; tokens of one example are not independent, so n counts examples.

    And both per example of saying whether a second text follows the first, where that is asked.
    """
    losses, split = subject.clean.losses, subject.config.split
    n, tokens = len(losses.count), losses.count.sum()
    nats, correct = _ratio(losses.loss, losses.count), _ratio(losses.correct, losses.count)
    counted = f"over the {tokens:.0f} tokens of n {split} examples"
    perplexity = float(np.exp(nats[0]))
    error = None if nats[1] is None else perplexity * nats[1]
    measures = [
        Measure("nll", *nats, n, f"mean {counted} of -log p(token), in nats", "nats"),
        Measure("perplexity", perplexity, error, n, f"exp of the mean {counted} of -log p(token)", ""),
        Measure("accuracy", *correct, n, f"share {counted} of tokens that are the argmax"),
    ]
    found = {
        "nll": ByExample(losses.loss, losses.count),
        "accuracy": ByExample(losses.correct, losses.count),
    }
    if losses.sentence_loss is not None:
        asked = f"of n {split} pairs of texts, of whether the second follows the first"
        nats, right = (mean_and_se(x) for x in (losses.sentence_loss, losses.sentence_correct))
        measures.append(Measure("next_sentence.nll", *nats, n, f"mean of -log p(label) {asked}, in nats", "nats"))
        measures.append(Measure("next_sentence.accuracy", *right, n, f"share {asked}, that are said right"))
        found |= {
            "next_sentence.nll": ByExample(losses.sentence_loss),
            "next_sentence.accuracy": ByExample(losses.sentence_correct),
        }
    return Result(tuple(measures), by_example=found)


def _ratio(values: np.ndarray, counts: np.ndarray) -> tuple[float, float | None]:
    """sum(values) / sum(counts) and its standard error over examples (the ratio estimator's)."""
    ratio, n = float(values.sum() / counts.sum()), len(values)
    if n < 2:
        return ratio, None
    left = np.asarray(values - ratio * counts, np.float64)
    return ratio, float(np.sqrt((left**2).sum() / (n - 1) / n) / counts.mean())
