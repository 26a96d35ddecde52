"""The 1,797 handwritten digits inside scikit-learn: 8x8 grey, ten classes. No download."""

from __future__ import annotations

import dataclasses
import functools
from typing import ClassVar, Literal

import numpy as np

from sparsity.config import later, lookup
from sparsity.data.mock import Mock
from sparsity.data.pipeline import Batch, ImageSource, Split

# index % 10 -> split. Neighbouring digits come from the same writers, so the splits share
# writers: this measures reading of known hands, not of unknown ones.
_SPLITS = {"train": (0, 1, 2, 3, 4, 5, 6), "validation": (7,), "test": (8, 9)}


@dataclasses.dataclass(frozen=True)
class Digits(ImageSource):
    """The digits source: 1,260 train, 179 validation and 358 test images, split by index.

    Attributes:
      shift: training images are moved by -shift..shift pixels along each axis, uniformly, the
        border repeated; 0 for none.
      pixels: "standardised" is (x - mean) / std of the training pixels, .306 and .376; "unit" leaves them in [0, 1].
    """

    shift: int = 1
    pixels: Literal["standardised", "unit"] = later("standardised")

    classes: ClassVar[int] = 10
    image_shape: ClassVar[tuple[int, int, int]] = (8, 8, 1)

    def __post_init__(self):
        if not 0 <= self.shift < 8:
            raise ValueError(f"shift: must be in 0..7 pixels, got {self.shift}")

    def load(self, split: str) -> Split:
        """Images in [0, 1] and labels of the named split.

        Raises:
          ConfigError: a split that does not exist.
        """
        images, labels = _all()
        chosen = np.isin(np.arange(len(labels)) % 10, lookup(_SPLITS, split, "split"))
        return Split(images[chosen], labels[chosen])

    def normalise(self, images: np.ndarray) -> np.ndarray:
        """The images in the units of `pixels`."""
        if self.pixels == "unit":
            return images
        mean, std = _train_statistics()
        return ((images - mean) / std).astype(np.float32)

    @property
    def augments(self) -> bool:
        """Whether images are moved."""
        return self.shift > 0

    @property
    def std(self) -> float:
        """Deviation of the training pixels as the model reads them; noise of sigma has the ratio sigma / std to it."""
        return _train_statistics()[1] if self.pixels == "unit" else 1.0

    def mock(self) -> Mock:
        """Noise in the shape of the digits."""
        return Mock(self.image_shape, self.classes)

    def augment(self, example: Batch, rng: np.random.Generator) -> Batch:
        """The image moved by up to `shift` pixels."""
        image, s = example["image"], self.shift
        down, right = rng.integers(0, 2 * s + 1, 2)
        padded = np.pad(image, ((s, s), (s, s), (0, 0)), mode="edge")
        return example | {"image": padded[down : down + image.shape[0], right : right + image.shape[1]]}


@functools.cache
def _all() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits  # 2 s to import: only where it is used

    digits = load_digits()
    return (digits.images[..., None] / 16).astype(np.float32), digits.target.astype(np.int32)


@functools.cache
def _train_statistics() -> tuple[float, float]:
    pixels = Digits().load("train").images
    return float(pixels.mean(dtype=np.float64)), float(pixels.std(dtype=np.float64))
