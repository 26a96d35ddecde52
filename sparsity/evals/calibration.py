"""Calibration errors, Brier's score and the reliability diagram (Guo et al. 2017; Li et al. 2022, Fig. 9)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from sparsity.evals.result import ByExample, Measure, Result, Subject, mean_and_se

_RESAMPLES = 1000
_ROWS = 4096  # of logits that are held in float64 at once


@dataclasses.dataclass(frozen=True)
class Bins:
    """Per confidence bin (lo, hi]: how many examples, their mean confidence and accuracy (NaN if empty)."""

    count: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log softmax over the last axis, in float64."""
    z = np.asarray(logits, np.float64)
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def by_rows(score: Callable[[np.ndarray, np.ndarray], np.ndarray], logits: np.ndarray, labels: np.ndarray):
    """`score` of (logits, labels), a few rows of them at a time: what it holds in float64 stays small."""
    parts = [slice(start, start + _ROWS) for start in range(0, max(len(labels), 1), _ROWS)]
    return np.concatenate([score(logits[part], labels[part]) for part in parts])


def bin_index(confidence: np.ndarray, bins: int) -> np.ndarray:
    """The bin of each confidence: bin j is (j/bins, (j+1)/bins]; 0 falls into the first.

    Raises:
      ValueError: a confidence outside [0, 1] or NaN.
    """
    confidence = np.asarray(confidence, np.float64)
    if not ((confidence >= 0) & (confidence <= 1)).all():
        raise ValueError("confidence: must be in [0, 1]; NaN is not a confidence")
    edges = np.arange(bins + 1) / bins  # not linspace: its edges can miss j / bins by an ulp
    return np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)


def reliability(confidence: np.ndarray, correct: np.ndarray, bins: int) -> Bins:
    """The reliability diagram's numbers, `bins` equal-width bins on top-1 confidence."""
    index = bin_index(confidence, bins)
    count = np.bincount(index, minlength=bins)
    with np.errstate(invalid="ignore"):
        mean_confidence = np.bincount(index, confidence, bins) / count
        mean_accuracy = np.bincount(index, np.asarray(correct, np.float64), bins) / count
    return Bins(count, mean_confidence, mean_accuracy)


def expected_calibration_error(confidence: np.ndarray, correct: np.ndarray, bins: int = 15) -> float:
    """ECE = sum_j (n_j / n) |accuracy_j - confidence_j| over equal-width bins (lo, hi], in [0, 1].

    >>> round(expected_calibration_error(np.array([0.95, 0.95]), np.array([True, False]), 10), 6)
    0.45
    """
    index = bin_index(confidence, bins)
    gap = np.bincount(index, np.asarray(correct, np.float64) - np.asarray(confidence, np.float64), bins)
    return float(np.abs(gap).sum() / len(index))


def adaptive_calibration_error(confidence: np.ndarray, correct: np.ndarray, bins: int = 15) -> float:
    """The same over bins of equally many examples, to one (Nguyen and O'Connor 2015), in the order of confidence.

    Where most confidences are near 1, equal widths put them all into one bin. Equal ones stay in their order.

    >>> adaptive_calibration_error(np.array([0.9, 1.0, 0.95, 0.8]), np.array([True, True, False, True]), 2)
    0.3125

    Raises:
      ValueError: a confidence outside [0, 1] or NaN.
    """
    bin_index(confidence, bins)  # the same confidences are refused
    order = np.argsort(confidence, kind="stable")
    gap = (np.asarray(correct, np.float64) - np.asarray(confidence, np.float64))[order]
    return float(sum(abs(part.sum()) for part in np.array_split(gap, bins)) / len(gap))


def brier(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Brier's score (1950) of each example: sum over classes k of (p_k - [k is the label])^2, in [0, 2].

    >>> brier(np.array([[0.0, 0.0]]), np.array([1]))
    array([0.5])
    """
    p = np.exp(log_softmax(logits))
    p[np.arange(len(p)), labels] -= 1
    return (p**2).sum(-1)


def calibration(subject: Subject) -> Result:
    """ECE with equal widths and with equal numbers, Brier's score, and the reliability diagram.

    Both errors have a bootstrap standard error over examples.
    """
    clean, bins, n = subject.clean, subject.config.ece_bins, len(subject.clean.labels)
    if not np.isfinite(clean.logits).all():
        text = "not computed: the model returned NaN or infinity"
        nothing = lambda name, unit: Measure(name, float("nan"), None, n, text, unit)
        return Result((nothing("ece", "share"), nothing("ece_adaptive", "share"), nothing("brier", "")))
    sure = lambda logits, _: np.minimum(np.exp(log_softmax(logits).max(-1)), 1.0)
    confidence = by_rows(sure, clean.logits, clean.labels)
    by = f"of (n_bin/n) |accuracy - mean confidence|; standard error by {_RESAMPLES} bootstrap resamples of examples"
    measures = []
    for name, error, rule in (
        ("ece", expected_calibration_error, f"{bins} equal-width bins (lo, hi] of top-1 confidence"),
        (
            "ece_adaptive",
            adaptive_calibration_error,
            f"{bins} bins of equally many examples, sorted by top-1 confidence,",
        ),
    ):
        value = error(confidence, clean.correct, bins)
        # One resample after the other: all indices of ImageNet's would be 400 MB.
        rng = np.random.default_rng(subject.seed)
        resamples = (rng.integers(0, n, n) for _ in range(_RESAMPLES))
        se = float(np.std([error(confidence[i], clean.correct[i], bins) for i in resamples], ddof=1))
        measures.append(Measure(name, value, se, n, f"expected calibration error: sum over {rule} {by}"))
    text = "Brier's score: mean over examples of the sum over classes of (probability - 1 for the label, else 0)^2"
    scores = by_rows(brier, clean.logits, clean.labels)
    measures.append(Measure("brier", *mean_and_se(scores), n, text, ""))
    diagram = reliability(confidence, clean.correct, bins)
    arrays = {f: getattr(diagram, f).tolist() for f in ("count", "confidence", "accuracy")}
    return Result(tuple(measures), {"reliability": arrays}, {"brier": ByExample(scores)})
