"""Accuracy under Gaussian, shot and impulse noise at five severities (Li et al. 2022, Fig. 10)."""

from __future__ import annotations

import numpy as np

from sparsity.data.corruptions import CORRUPTIONS, SEVERITIES, corrupt, resolve_level
from sparsity.data.pipeline import example_of
from sparsity.evals.result import Measure, Result, Subject, mean_and_se


def robustness(subject: Subject) -> Result:
    """Accuracy for every noise and severity, and the means over severities and over all.

    An example's mean over conditions is one observation: conditions share examples, so the
    standard error of a mean over conditions is taken over examples.
    """
    images, labels = subject.split.images, subject.split.labels
    level = resolve_level(subject.config.corruptions, images.shape[2])
    correct = np.empty((len(CORRUPTIONS), len(SEVERITIES), len(labels)))
    measures = []
    for i, name in enumerate(CORRUPTIONS):
        for j, severity in enumerate(SEVERITIES):
            noisy = corrupt(images, name, severity, subject.seed, level)
            correct[i, j] = subject.predict(subject.source.model_input(example_of(noisy, labels))).correct
            text = f"accuracy under {name} noise, severity {severity} of the {level} constants"
            measures.append(Measure(f"robustness.{name}.{severity}", *mean_and_se(correct[i, j]), len(labels), text))
        text = f"accuracy under {name} noise, mean over the five severities of the {level} constants"
        measures.append(Measure(f"robustness.{name}", *mean_and_se(correct[i].mean(0)), len(labels), text))
    text = f"accuracy under noise, mean over gaussian, shot, impulse and five severities of the {level} constants"
    overall = Measure("robustness.mean", *mean_and_se(correct.mean((0, 1))), len(labels), text)
    return Result((overall, *measures))
