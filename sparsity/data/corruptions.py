"""Gaussian, shot and impulse noise at five severities (Hendrycks & Dietterich 2019).

Images are in [0, 1]; the results are clipped to it. The constants belong to a benchmark, made
for its resolution: CIFAR-C (32 pixels), Tiny-ImageNet-C (64), ImageNet-C (224).
"""

from __future__ import annotations

import numpy as np

from sparsity.config import lookup
from sparsity.data.pipeline import in_threads

SEVERITIES = (1, 2, 3, 4, 5)
CORRUPTIONS = ("gaussian", "shot", "impulse")

_CONSTANTS = {
    "cifar_c": {
        "gaussian": (0.04, 0.06, 0.08, 0.09, 0.10),
        "shot": (500, 250, 100, 75, 50),
        "impulse": (0.01, 0.02, 0.03, 0.05, 0.07),
    },
    "tiny_imagenet_c": {
        "gaussian": (0.04, 0.08, 0.12, 0.15, 0.18),
        "shot": (250, 100, 50, 30, 15),
        "impulse": (0.01, 0.02, 0.05, 0.08, 0.14),
    },
    "imagenet_c": {
        "gaussian": (0.08, 0.12, 0.18, 0.26, 0.38),
        "shot": (60, 25, 12, 5, 3),
        "impulse": (0.03, 0.06, 0.09, 0.17, 0.27),
    },
}


def resolve_level(level: str, pixels: int) -> str:
    """The benchmark that `level` names; "auto" is the one whose resolution covers `pixels`."""
    if level != "auto":
        return level
    return "cifar_c" if pixels <= 32 else "tiny_imagenet_c" if pixels <= 64 else "imagenet_c"


def constants(name: str, level: str, pixels: int) -> tuple[float, ...]:
    """The five severities' constants of corruption `name`, of the benchmark `level` (see `resolve_level`).

    Raises:
      ConfigError: an unknown corruption or level.
    """
    level = resolve_level(level, pixels)
    return lookup(lookup(_CONSTANTS, level, "corruption level"), name, "corruption")


def corrupt(
    images: np.ndarray, name: str, severity: int, seed: int, level: str = "auto", numbers: np.ndarray | None = None
) -> np.ndarray:
    """`images` [n, h, w, c] in [0, 1] with noise, a function of (seed, name, severity) alone.

    gaussian: x + N(0, c^2). shot: Poisson(c x) / c. impulse: each channel value is replaced
    with probability c, by 0 or 1 with equal odds.

    With the `numbers` [n] of the images, each has noise that is a function of (seed, name, severity, number) alone:
    they can be given a few at a time.

    Raises:
      ConfigError: an unknown corruption or level. ValueError: a severity outside 1..5.
    """
    if severity not in SEVERITIES:
        raise ValueError(f"severity: must be in 1..5, got {severity}")
    c = constants(name, level, images.shape[2])[severity - 1]
    key = (seed, CORRUPTIONS.index(name), severity)
    if numbers is None:
        return _noisy(images, name, c, np.random.default_rng(key))
    each = lambda image, number: _noisy(image, name, c, np.random.default_rng((*key, number)))
    return np.stack(in_threads(each, images, numbers.tolist()))


def _noisy(images: np.ndarray, name: str, c: float, rng: np.random.Generator) -> np.ndarray:
    if name == "gaussian":
        noisy = images + rng.normal(0, c, images.shape)
    elif name == "shot":
        noisy = rng.poisson(images * c) / c
    else:
        hit = rng.random(images.shape) < c
        noisy = np.where(hit, rng.integers(0, 2, images.shape), images)
    return np.clip(noisy, 0, 1).astype(np.float32)
