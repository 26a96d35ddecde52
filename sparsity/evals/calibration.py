"""Expected calibration error and the reliability diagram (Guo et al. 2017; Li et al. 2022, Fig. 9)."""

from __future__ import annotations

import dataclasses

import numpy as np

from sparsity.evals.result import Measure, Result, Subject

_RESAMPLES = 1000


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


def calibration(subject: Subject) -> Result:
    """ECE with a bootstrap standard error over examples, and the reliability diagram."""
    clean, bins = subject.clean, subject.config.ece_bins
    if not np.isfinite(clean.logits).all():
        text = "not computed: the model returned NaN or infinity"
        return Result((Measure("ece", float("nan"), None, len(clean.labels), text),))
    confidence = np.minimum(np.exp(log_softmax(clean.logits).max(-1)), 1.0)
    n = len(confidence)
    draws = np.random.default_rng(subject.seed).integers(0, n, (_RESAMPLES, n))
    resampled = [expected_calibration_error(confidence[i], clean.correct[i], bins) for i in draws]
    text = (
        f"expected calibration error: sum over {bins} equal-width bins (lo, hi] of top-1 confidence of "
        f"(n_bin/n) |accuracy - mean confidence|; standard error by {_RESAMPLES} bootstrap resamples of examples"
    )
    value = expected_calibration_error(confidence, clean.correct, bins)
    diagram = reliability(confidence, clean.correct, bins)
    arrays = {f: getattr(diagram, f).tolist() for f in ("count", "confidence", "accuracy")}
    return Result((Measure("ece", value, float(np.std(resampled, ddof=1)), n, text),), {"reliability": arrays})
