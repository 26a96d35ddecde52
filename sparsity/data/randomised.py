"""Sources with something random put in the place of what could be learnt (Li et al. 2022, Secs. 3, 4.3, App. E).

And one with training examples left out at random.

What is drawn for an example is a function of (seed, split, its place in the split) alone: the same in every epoch, on
every mesh, in every process.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, ClassVar

import numpy as np

from sparsity.config import ConfigError, lookup, one_of
from sparsity.data.digits import Digits
from sparsity.data.imagenet import ImageFolder, ImageNet21k, ImageNet2012
from sparsity.data.mock import Mock
from sparsity.data.pipeline import Batch, ImageSource, Lazy, Split, example_of, stack_images
from sparsity.data.tfds_sources import CIFAR10, CIFAR100, MNIST, SVHN

# Sources of labelled images, which those below stand in front of.
LABELLED: dict[str, type] = {
    "digits": Digits,
    "mnist": MNIST,
    "cifar10": CIFAR10,
    "cifar100": CIFAR100,
    "svhn_cropped": SVHN,
    "imagenet2012": ImageNet2012,
    "imagenet21k": ImageNet21k,
    "image_folder": ImageFolder,
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
    """What stands in front of a source has its shapes, classes and, unless it says otherwise, units and augmentation.

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

    def class_names(self) -> tuple[str, ...]:
        """Those of the source. Raises ConfigError if they have none."""
        return self.of.class_names()

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

    def load(self, split: str) -> Split | Relabelled:
        """The named split of the source. Raises ConfigError if there is none."""
        clean = self.of.load(split)
        if split != "train":
            return clean
        if isinstance(clean, Lazy):
            return Relabelled(clean, self)
        return Split(clean.images, self.relabelled(clean.labels, np.arange(len(clean))))

    def relabelled(self, labels: np.ndarray, indices: np.ndarray) -> np.ndarray:
        """What the `labels` of the training examples at `indices` become, int32."""
        noisy = drawn(self.seed, 0, indices) < self.share
        new = np.minimum(self.classes * drawn(self.seed, 1, indices), self.classes - 1).astype(np.int32)
        return np.where(noisy, new, labels)


@dataclasses.dataclass(frozen=True)
class Relabelled(Lazy):
    """A training split whose images are made as they are asked for, with labels that are noisy."""

    of: Lazy
    noise: NoisyLabels

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """That of the split."""
        return self.of.image_shape

    @property
    def most(self) -> int | None:
        """That of the split."""
        return self.of.most

    def __len__(self) -> int:
        return len(self.of)

    def __getitem__(self, i) -> Batch:
        return self._noisy(self.of[i], i)

    def take(self, indices) -> Batch:
        """One example, or those of an array of indices, stacked."""
        return self._noisy(self.of.take(indices), indices)

    def _noisy(self, examples: Batch, indices) -> Batch:
        return examples | {"label": self.noise.relabelled(examples["label"], np.asarray(indices))}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Subset(_InFrontOf):
    """Some of the training examples, drawn without replacement; a smaller subset lies in a larger one of its seed.

    Validation and test examples stay (of datasets of varying scale: Li et al. 2022, Fig. 2c).

    Attributes:
      examples: training examples.
    """

    examples: int

    def __post_init__(self):
        super().__post_init__()
        if self.examples < 1:
            raise ValueError(f"examples: must be at least 1, got {self.examples}")

    def load(self, split: str) -> Split | Chosen | Lazy:
        """The named split of the source. Raises ConfigError if there is none, or fewer training examples."""
        whole = self.of.load(split)
        if split != "train":
            return whole
        if self.examples > len(whole):
            raise ConfigError(f"data.examples: {self.examples} asked for, the train split has {len(whole)}")
        chosen = np.sort(np.argsort(drawn(self.seed, 0, np.arange(len(whole))), kind="stable")[: self.examples])
        if isinstance(whole, Lazy):
            return Chosen(whole, chosen)
        return Split(whole.images[chosen], whole.labels[chosen])


@dataclasses.dataclass(frozen=True, eq=False)
class Chosen(Lazy):
    """Some examples of a split whose images are made as they are asked for.

    Attributes:
      of: the split.
      chosen: [n], the places of the examples in it.
    """

    of: Lazy
    chosen: np.ndarray

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """That of the split."""
        return self.of.image_shape

    @property
    def most(self) -> int | None:
        """That of the split."""
        return self.of.most

    def __len__(self) -> int:
        return len(self.chosen)

    def __repr__(self) -> str:
        return f"Chosen({self.of!r}, {len(self)}, {int(self.chosen.sum())})"

    def __getitem__(self, i) -> Batch:
        return self.of[int(self.chosen[i])]

    def take(self, indices) -> Batch:
        """One example, or those of an array of indices, stacked."""
        return self.of.take(self.chosen[indices])


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomImages(_InFrontOf):
    """Every image is one of independent uniform pixels, always the same; labels are those of the source.

    Training images are not augmented: shifted noise is other noise. Held-out images are drawn too, so that nothing but
    the labels' frequencies can be known of them. Models read pixels with mean 0, as those in [-1, 1] of Li et al. 2022
    (Fig. 5b), and deviation 1, whatever the units of the source.
    """

    augments: ClassVar[bool] = False
    std: ClassVar[float] = 1.0  # of pixels as the model reads them

    def load(self, split: str) -> Drawn:
        """The named split. Raises ConfigError if there is none."""
        key, of = (self.seed, lookup(_SPLITS, split, "split")), self.of.load(split)
        return Drawn(self.image_shape, key, of.labels, of.most if isinstance(of, Lazy) else None)

    def normalise(self, images: np.ndarray) -> np.ndarray:
        """(x - 1/2) sqrt(12): uniform pixels with mean 0 and variance 1."""
        return (images - np.float32(0.5)) * np.float32(math.sqrt(12))

    def augment(self, example: Batch, rng: np.random.Generator) -> Batch:
        """The example as it is."""
        return example


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomData(RandomImages):
    """Images of independent uniform pixels, labels drawn uniformly, in the shape of a source whose data are not read.

    Models read pixels with mean 0 and deviation 1, as of `RandomImages`.

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
class Drawn(Lazy):
    """Examples of one split: images of uniform pixels in [0, 1), drawn as they are asked for, and labels.

    Attributes:
      image_shape: height, width and channels.
      key: seed and stream.
      labels: [n], or what gives them by index.
      most: examples that evaluators see at most; None: all.
    """

    image_shape: tuple[int, int, int]
    key: tuple[int, int]
    labels: Any
    most: int | None = None

    def take(self, indices) -> Batch:
        """One example, or those of an array of indices, stacked."""
        labels = self.labels[np.asarray(indices)]
        if len(self) * math.prod(self.image_shape) <= _HELD:
            return example_of(self._images[indices], labels)
        return example_of(stack_images(self._image, indices, self.image_shape), labels)

    def seen(self) -> np.ndarray:
        """The indices of the examples that evaluators see. Raises ConfigError if they are endless."""
        if len(self) == ENDLESS:
            raise ConfigError("data: endless training data cannot be read whole; give data.examples")
        return super().seen()

    @functools.cached_property
    def _images(self) -> np.ndarray:
        return stack_images(self._image, np.arange(len(self)), self.image_shape)

    def _image(self, index: int) -> np.ndarray:
        # A generator of its own, which takes longer than the pixels.
        return np.random.default_rng((*self.key, index)).random(self.image_shape, np.float32)
