"""Noise in the shape of a dataset, images or text: what `--smoke` trains on."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np

from sparsity.config import lookup
from sparsity.data.pipeline import ImageSource, Split, TextSource, Windows

_SEEDS = {"train": 0, "validation": 1, "test": 2}


@dataclasses.dataclass(frozen=True)
class Mock(ImageSource):
    """Images of independent uniform pixels with labels at random: nothing can be learnt from them.

    Attributes:
      image_shape: height, width and channels.
      classes: labels are in 0..classes - 1; None for no labels.
    """

    image_shape: tuple[int, int, int]
    classes: int | None

    examples: ClassVar[int] = 16  # of every split
    std: ClassVar[float] = 1.0  # of pixels as the model reads them

    def __post_init__(self):
        if min(self.image_shape) < 1:
            raise ValueError(f"image_shape: must be at least 1 everywhere, got {self.image_shape}")
        if self.classes is not None and self.classes < 1:
            raise ValueError(f"classes: must be at least 1, got {self.classes}")

    def load(self, split: str) -> Split:
        """The named split, always the same. Raises ConfigError if there is no such split."""
        rng = np.random.default_rng(lookup(_SEEDS, split, "split"))
        images = rng.random((self.examples, *self.image_shape), np.float32)
        if self.classes is None:
            return Split(images, None)
        return Split(images, rng.integers(0, self.classes, self.examples).astype(np.int32))

    def normalise(self, images: np.ndarray) -> np.ndarray:
        """(x - 1/2) sqrt(12): uniform pixels with mean 0 and variance 1."""
        return (images - np.float32(0.5)) * np.float32(np.sqrt(12))

    def mock(self) -> Mock:
        """Itself."""
        return self


@dataclasses.dataclass(frozen=True)
class MockText(TextSource):
    """Sequences of independent uniform tokens: nothing can be learnt from them.

    Attributes:
      length: tokens of an example.
      classes: tokens are in 0..classes - 1.
    """

    length: int
    classes: int

    examples: ClassVar[int] = 16  # of every split

    def __post_init__(self):
        for field in ("length", "classes"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field}: must be at least 1, got {getattr(self, field)}")

    def load(self, split: str) -> Windows:
        """The named split, always the same. Raises ConfigError if there is no such split."""
        rng = np.random.default_rng(lookup(_SEEDS, split, "split"))
        positions = self.length * np.arange(self.examples)
        return Windows(rng.integers(0, self.classes, self.length * self.examples + 1), positions, self.length)

    def mock(self) -> MockText:
        """Itself."""
        return self
