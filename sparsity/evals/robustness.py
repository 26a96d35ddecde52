"""Accuracy under Gaussian, shot and impulse noise at five severities (Li et al. 2022, Fig. 10)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from sparsity.config import ConfigError
from sparsity.data.corruptions import CORRUPTIONS, SEVERITIES, corrupt, resolve_level
from sparsity.data.imagenet import published, published_folders
from sparsity.data.pipeline import Batch, Lazy, read_whole
from sparsity.evals.result import ByExample, Measure, Result, Subject, mean_and_se


def robustness(subject: Subject) -> Result:
    """Accuracy for every noise and severity, and the means over severities and over all.

    The images are those of the split, with noise that is made here, or those of ImageNet-C as it is published if the
    evaluation names its directory. An example's mean over conditions is one observation: conditions share examples,
    so the standard error of a mean over conditions is taken over examples.

    Raises:
      ConfigError: ImageNet-C is not there, or its conditions have not the same images.
    """
    if subject.config.imagenet_c is None:
        level = resolve_level(subject.config.corruptions, subject.source.inputs["image"].shape[1])
        correct, of = _generated(subject, level), f"of the {level} constants"
    else:
        correct, of = _published(subject), "of the published ImageNet-C"
    n = correct.shape[-1]
    found = {"robustness.mean": correct.mean((0, 1))}
    texts = {"robustness.mean": f"accuracy under noise, mean over gaussian, shot, impulse and five severities {of}"}
    for i, name in enumerate(CORRUPTIONS):
        for j, severity in enumerate(SEVERITIES):
            found[f"robustness.{name}.{severity}"] = correct[i, j]
            texts[f"robustness.{name}.{severity}"] = f"accuracy under {name} noise, severity {severity} {of}"
        found[f"robustness.{name}"] = correct[i].mean(0)
        texts[f"robustness.{name}"] = f"accuracy under {name} noise, mean over the five severities {of}"
    measures = (Measure(name, *mean_and_se(values), n, texts[name]) for name, values in found.items())
    return Result(tuple(measures), by_example={name: ByExample(values) for name, values in found.items()})


def _generated(subject: Subject, level: str) -> np.ndarray:
    """Whether each example is classified correctly [corruptions, severities, n], under noise that is made here."""

    def right(name: str, severity: int, examples: Batch, numbers: np.ndarray | None) -> np.ndarray:
        noisy = corrupt(examples["image"], name, severity, subject.seed, level, numbers)
        return subject.predict(subject.source.model_input(examples | {"image": noisy})).correct

    parts = [
        [[right(name, severity, *part) for severity in SEVERITIES] for name in CORRUPTIONS] for part in _parts(subject)
    ]
    return np.concatenate(parts, axis=-1)


def _parts(subject: Subject) -> Iterator[tuple[Batch, np.ndarray | None]]:
    """The examples, in the source's units, and their numbers: those in memory at once, without numbers."""
    split, size = subject.split, subject.config.batch
    if not isinstance(split, Lazy):
        yield split.arrays(), None
        return
    seen = split.seen()
    for start in range(0, len(seen), size):
        yield split.take(seen[start : start + size]), seen[start : start + size]


def _published(subject: Subject) -> np.ndarray:
    """Whether each image of ImageNet-C is classified correctly [corruptions, severities, n]."""
    folders, source = published_folders(subject.config.imagenet_c), subject.source
    size, most = source.inputs["image"].shape[0], subject.split.most if isinstance(subject.split, Lazy) else None
    correct, first = {}, None
    for condition, folder in folders.items():
        images = published(folder, source.class_names(), size, most)
        first = first or images
        if not images.stored.same_names(first.stored):
            raise ConfigError(f"evals.imagenet_c: {folder} has not the images that {first.stored.folder} has")
        correct[condition] = subject.predict(read_whole(source, images)).correct
    return np.array([[correct[name, severity] for severity in SEVERITIES] for name in CORRUPTIONS])
