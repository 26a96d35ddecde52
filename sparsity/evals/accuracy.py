"""Accuracy and loss."""

from __future__ import annotations

import numpy as np

from sparsity.evals.calibration import by_rows, log_softmax
from sparsity.evals.result import ByExample, Measure, Result, Subject, mean_and_se


def accuracy(subject: Subject) -> Result:
    """Share of examples whose label is the argmax, and the mean negative log likelihood."""
    clean = subject.clean
    n = len(clean.labels)
    nll = -by_rows(lambda z, y: log_softmax(z)[np.arange(len(y)), y], clean.logits, clean.labels)
    split = subject.config.split
    return Result(
        (
            Measure("accuracy", *mean_and_se(clean.correct), n, f"share of {split} examples whose label is the argmax"),
            Measure("nll", *mean_and_se(nll), n, f"mean over {split} examples of -log p(label), in nats", "nats"),
        ),
        by_example={"accuracy": ByExample(clean.correct), "nll": ByExample(nll)},
    )
