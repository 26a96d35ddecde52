"""How well an autoencoder reconstructs."""

from __future__ import annotations

import numpy as np

from sparsity.evals.result import ByExample, Measure, Result, Subject, mean_and_se


def reconstruction(subject: Subject) -> Result:
    """Squared error, and the share of the images' variance that is reconstructed; the first images and theirs."""
    clean, split = subject.clean, subject.config.split
    loss, images = clean.losses.loss, clean.images
    n = len(loss)
    axes = tuple(range(1, images.ndim))
    spread = ((images - images.mean(0, dtype=np.float64)) ** 2).mean(axes)
    text = f"mean over {split} examples of the mean over pixels of (clean image - output)^2"
    variance = float(spread.mean()) or np.nan  # images that are all the same leave nothing to explain
    explained = "1 - (mean squared error) / (variance of the pixels about their means over examples)"
    return Result(
        (
            Measure("mse", *mean_and_se(loss), n, text, ""),
            # The error is that of the numerator: the variance is taken as given.
            Measure("explained", 1 - float(loss.mean()) / variance, _error(loss / variance), n, explained),
        ),
        {"examples": {"images": images[:10].tolist(), "outputs": clean.outputs[:10].tolist()}},
        {"mse": ByExample(loss)},
    )


def _error(values: np.ndarray) -> float | None:
    return mean_and_se(values)[1]
