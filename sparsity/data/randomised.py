"""Sources with something random put in the place of what could be learnt (Li et al. 2022, Secs. 2.3, 4.2, App. E).

What is drawn for an example is a function of (seed, split, its place in the split) alone: the same in every epoch, on
every mesh, in every process.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np

from sparsity.config import ConfigError, lookup, one_of
from sparsity.data.digits import Digits
from sparsity.data.mock import Mock
from sparsity.data.pipeline import Batch, ImageSource, Split, example_of
from sparsity.data.tfds_sources import CIFAR10, CIFAR100, MNIST, SVHN

# Sources of labelled images, which those below stand in front of.
LABELLED: dict[str, type] = {
    "digits": Digits,
    "mnist": MNIST,
    "cifar10": CIFAR10,
    "cifar100": CIFAR100,
    "svhn_cropped": SVHN,
    "mock": Mock,
}
_SPLITS = {"train": 0, "validation": 1, "test": 2}
_HELD = 1 << 26  # numbers of a split whose images stay in memory once drawn, at most: 256 MiB
ENDLESS = 2**31  # training examples of which none comes twice in a run


def drawn(seed: int, stream: int, indices: np.ndarray) -> np.ndarray:
    """A uniform number in [0, 1) for each of `indices`, a function of (seed, stream, index).

    The finaliser of SplitMix64 (Steele et al. 2014), twice: of the index, and of that with the key of (seed, stream).

    >>> bool(drawn(0, 0, np.array([5, 6]))[0] == drawn(0, 0, np.array([6, 5]))[1])
    True
    """
    key = np.random.SeedSequence((seed, stream)).generate_state(1, np.uint64)[0]
    with np.errstate(over="ignore"):  # arithmetic is modulo 2^64
        mixed = _mix(_mix(np.asarray(indices, np.uint64)) ^ key)
    return (mixed >> np.uint64(11)) * 2.0**-53


def _mix(x: np.ndarray) -> np.ndarray:
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@dataclasses.dataclass(frozen=True, kw_only=True)
class _InFrontOf(ImageSource):
    """What stands in front of a source has its shapes, classes, units and, unless it says otherwise, augmentation.

    Attributes:
      of: the source, by name.
      seed: of what is drawn.
    """

    of: Any = one_of(LABELLED)
    seed: int = 0

    def __post_init__(self):
        if self.seed < 0:
            raise ValueError(f"seed: must be at least 0, got {self.seed}")
        if self.of.classes is None:
            raise ValueError("of: has no labels")

    @property
    def classes(self) -> int:
        """Those of the source."""
        return self.of.classes

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """That of the source."""
        return self.of.image_shape

    @property
    def augments(self) -> bool:
        """Whether the source changes examples in training."""
        return self.of.augments

    @property
    def std(self) -> Any:
        """That of the source's pixels."""
        return self.of.std

    def normalise(self, images: np.ndarray) -> np.ndarray:
        """As the source does it."""
        return self.of.normalise(images)

    def augment(self, example: Batch, rng: np.random.Generator) -> Batch:
        """As the source does it."""
        return self.of.augment(example, rng)

    def mock(self) -> Mock:
        """Noise in the shape of the source."""
        return self.of.mock()


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoisyLabels(_InFrontOf):
    """A share of the training labels is drawn anew, uniformly over all classes, the right one included.

    So of C classes a share of about (1 - 1/C) `share` is wrong. Validation and test labels stay. All random labels
    (Zhang et al. 2017) are a share of 1.

    Attributes:
      share: of the training labels; Li et al. 2022 have .4 and .8 (Table 1), .5, .7 and 1 (Fig. 5a).
    """

    share: float

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.share <= 1:
            raise ValueError(f"share: must be in [0, 1], got {self.share}")

    def load(self, split: str) -> Split:
        """The named split of the source. Raises ConfigError if there is none."""
        clean = self.of.load(split)
        if split != "train":
            return clean
        indices = np.arange(len(clean))
        noisy = drawn(self.seed, 0, indices) < self.share
        labels = np.minimum(self.classes * drawn(self.seed, 1, indices), self.classes - 1).astype(np.int32)
        return Split(clean.images, np.where(noisy, labels, clean.labels))


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomImages(_InFrontOf):
    """Every image is one of independent uniform pixels, always the same; labels are those of the source.

    Training images are not augmented: shifted noise is other noise. Held-out images are drawn too, so that nothing but
    the labels' frequencies can be known of them (Li et al. 2022, Fig. 5b).
    """

    augments: ClassVar[bool] = False

    def load(self, split: str) -> Drawn:
        """The named split. Raises ConfigError if there is none."""
        return Drawn(self.image_shape, (self.seed, lookup(_SPLITS, split, "split")), self.of.load(split).labels)

    def augment(self, example: Batch, rng: np.random.Generator) -> Batch:
        """The example as it is."""
        return example


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomData(RandomImages):
    """Images of independent uniform pixels, labels drawn uniformly, in the shape of a source whose data are not read.

    Attributes:
      examples: training examples, fixed; None: new ones for ever (Li et al. 2022, Fig. 5c, App. E), `ENDLESS` of them.
      held_out: examples of the validation and of the test split.
    """

    examples: int | None = None
    held_out: int = 1024

    def __post_init__(self):
        super().__post_init__()
        for field in ("examples", "held_out"):
            if getattr(self, field) is not None and getattr(self, field) < 1:
                raise ValueError(f"{field}: must be at least 1, got {getattr(self, field)}")

    def load(self, split: str) -> Drawn:
        """The named split. Raises ConfigError if there is none."""
        stream = lookup(_SPLITS, split, "split")
        n = (self.examples or ENDLESS) if split == "train" else self.held_out
        return Drawn(self.image_shape, (self.seed, stream), Labels(n, self.classes, (self.seed, stream)))


@dataclasses.dataclass(frozen=True)
class Labels:
    """Uniform labels of `n` examples, drawn as they are asked for."""

    n: int
    classes: int
    key: tuple[int, int]

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, indices) -> np.ndarray:
        indices = np.arange(self.n)[indices] if isinstance(indices, slice) else np.asarray(indices)
        seed, stream = self.key
        uniform = drawn(seed, 16 + stream, indices)
        return np.minimum(self.classes * uniform, self.classes - 1).astype(np.int32)


@dataclasses.dataclass(frozen=True)
class Drawn:
    """Examples of one split: images of uniform pixels in [0, 1), drawn as they are asked for, and labels.

    Attributes:
      image_shape: height, width and channels.
      key: seed and stream.
      labels: [n], or what gives them by index.
    """

    image_shape: tuple[int, int, int]
    key: tuple[int, int]
    labels: np.ndarray | Labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i) -> Batch:
        return self.take(i)

    def take(self, indices) -> Batch:
        """One example, or those of an array of indices, stacked."""
        indices = np.asarray(indices)
        if len(self) * math.prod(self.image_shape) <= _HELD:
            return example_of(self._images[indices], self.labels[indices])
        images = self._drawn(np.ravel(indices))
        return example_of(images.reshape(*indices.shape, *self.image_shape), self.labels[indices])

    def arrays(self) -> Batch:
        """All examples, stacked. Raises ConfigError if they are endless."""
        if len(self) == ENDLESS:
            raise ConfigError("data: endless training data cannot be read whole; give data.examples")
        return self.take(np.arange(len(self)))

    @functools.cached_property
    def _images(self) -> np.ndarray:
        return self._drawn(range(len(self)))

    def _drawn(self, indices: Iterable[int]) -> np.ndarray:
        """Images [n, height, width, channels]; each has a generator of its own, which takes longer than its pixels."""
        draw = lambda index: np.random.default_rng((*self.key, int(index))).random(self.image_shape, np.float32)
        return np.stack([draw(index) for index in indices])
