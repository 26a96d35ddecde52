"""ImageNet and other folders of photographs, too many for memory, and ImageNet-C as it is published.

Nothing is downloaded. ImageNet is read as TFDS prepares it (array_record; see `tfds_sources`), without tensorflow, or
from class folders of image files.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from PIL import Image

from sparsity.config import ConfigError, lookup, path_of
from sparsity.data.augment import RandAugment, inception_box
from sparsity.data.corruptions import CORRUPTIONS, SEVERITIES
from sparsity.data.images import Encoded, Files, Records, Stored, central, class_folders, list_files, to_unit
from sparsity.data.mock import Mock
from sparsity.data.pipeline import Batch, ImageSource
from sparsity.data.tfds_sources import data_source, prepared

_SPLITS = ("train", "validation", "test")
# Of the pixels of ImageNet-1k's training images in [0, 1], as commonly used.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_UNITS = {"unit": (0.0, 1.0), "signed": (0.5, 0.5), "standardised": (_MEAN, _STD)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class PhotographSource(ImageSource):
    """Base of the sources of photographs of any size. A subclass has `classes`, `class_names` and `stored`.

    A held-out image is scaled so that its shorter side is 256 / 224 of `size`, and its centre is cut out. A training
    image is cropped, mirrored and put through RandAugment, in this order, where these are on.

    Attributes:
      size: height and width of what the model reads.
      crop: of training images: "inception" is a random part, see `augment.inception_box`, scaled bilinearly; "centre"
        is that of held-out images.
      flip: training images are mirrored with odds 1/2.
      rand_augment: changes training images; None for nothing.
      pixels: "signed" is 2 x - 1 of pixels in [0, 1], as ViT and Mixer read them; "standardised" is (x - mean) / std
        of ImageNet's pixels, channel by channel; "unit" leaves them in [0, 1].
      held_out: share of the stored training images that a held-out split is, where there is none; in (0, 1/2).
      evaluated: examples of a split that evaluators see, at most, from all parts of it alike.
    """

    size: int = 224
    crop: Literal["inception", "centre"] = "inception"
    flip: bool = True
    rand_augment: RandAugment | None = None
    pixels: Literal["signed", "standardised", "unit"] = "signed"
    held_out: float = 0.01
    evaluated: int = 50_000

    classes: ClassVar[int]

    def __post_init__(self):
        for field in ("size", "evaluated"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field}: must be at least 1, got {getattr(self, field)}")
        if not 0 < self.held_out < 0.5:
            raise ValueError(f"held_out: must be in (0, 0.5), got {self.held_out}")

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels."""
        return (self.size, self.size, 3)

    @property
    def augments(self) -> bool:
        """Whether training images differ from held-out ones."""
        return self.crop == "inception" or self.flip or self.rand_augment is not None

    @property
    def std(self) -> float:
        """Deviation of ImageNet's pixels as the model reads them, mean over channels."""
        return float(np.mean(np.divide(_STD, _UNITS[self.pixels][1])))

    def class_names(self) -> tuple[str, ...]:
        """Of the labels, in their order: names of folders. Raises ConfigError if the data are not there."""
        raise NotImplementedError

    def stored(self, split: str) -> Stored:
        """The encoded images of the named split. Raises ConfigError if they are not there."""
        raise NotImplementedError

    def load(self, split: str) -> Encoded:
        """The named split.

        Raises:
          ConfigError: a split that does not exist, or data that are not there or do not fit.
        """
        lookup(dict.fromkeys(_SPLITS), split, "split")
        whole = split == "train" and self.augments
        return Encoded(self.stored(split), self._shorter, self.size, whole, self.evaluated)

    def normalise(self, images: np.ndarray) -> np.ndarray:
        """The images in the units of `pixels`."""
        if self.pixels == "unit":
            return images
        mean, std = _UNITS[self.pixels]
        return (images - np.float32(mean)) / np.float32(std)

    def augment(self, example: Batch, rng: np.random.Generator) -> Batch:
        """The whole image, uint8 of any size, cropped and randomly changed: [size, size, 3] in [0, 1]."""
        image = Image.fromarray(example["image"])
        if self.crop == "inception":
            part = image.crop(inception_box(*image.size, rng))
            image = part.resize((self.size, self.size), Image.Resampling.BILINEAR)
        else:
            image = central(image, self._shorter, self.size)
        if self.flip and rng.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self.rand_augment is not None:
            image = self.rand_augment(image, rng)
        return example | {"image": to_unit(image)}

    def mock(self) -> Mock:
        """Noise in the shape of the images."""
        return Mock(self.image_shape, self.classes)

    @property
    def _shorter(self) -> int:
        return round(self.size * 256 / 224)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageFolder(PhotographSource):
    """Image files of a directory, path/SPLIT/CLASS/*.jpg (.jpeg, .png); classes are the sorted names in path/train.

    The validation split is the folder `validation` or `val`; if there is neither, the training images whose path has
    a hash that says so, `held_out` of them. The test split is the folder `test`.

    Attributes:
      path: the directory.
      classes: how many there are in path/train.
    """

    path: str
    classes: int

    def __post_init__(self):
        super().__post_init__()
        if self.classes < 1:
            raise ValueError(f"classes: must be at least 1, got {self.classes}")

    def class_names(self) -> tuple[str, ...]:
        """The sorted names of the folders in path/train. Raises ConfigError if they are not `classes`."""
        return _counted(path_of(self.path, "data.path") / "train", self.classes)

    def stored(self, split: str) -> Files:
        """See `PhotographSource`."""
        root = path_of(self.path, "data.path")
        train, validation = self.class_names(), _validation(root)
        if split == "test":
            if not (root / "test").is_dir():
                raise ConfigError(f"data.path: {root} has no folder test (evals.split may be validation)")
            return list_files(root / "test", train)
        if validation is not None:
            return list_files(root / "train" if split == "train" else validation, train)
        low, high = (0, self.held_out) if split == "validation" else (self.held_out, 1)
        return _part(root / "train", train, low, high)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageNet2012(PhotographSource):
    """ImageNet-1k (Russakovsky et al. 2015): 1,281,167 photographs to train on and hold out, 50,000 to test.

    The test split is the 50,000 images that ImageNet calls validation; the validation split is held out of the others.
    Of TFDS it is their end, as TFDS shuffles them when it prepares; of folders a hash of the path decides.

    Attributes:
      path: a directory path/train/CLASS/*.JPEG, path/val/CLASS/*.JPEG; None: as TFDS prepares it.
    """

    path: str | None = None

    classes: ClassVar[int] = 1000
    dataset: ClassVar[str] = "imagenet2012:5.*.*"

    def class_names(self) -> tuple[str, ...]:
        """WordNet's numbers of the classes, n01440764 first. Raises ConfigError if the data are not there."""
        if self.path is not None:
            return _counted(path_of(self.path, "data.path") / "train", self.classes)
        return _tfds_names(self.dataset, self.classes)

    def stored(self, split: str) -> Stored:
        """See `PhotographSource`."""
        if self.path is None:
            if split == "test":
                return _records(self.dataset, "validation", 0, 1)
            kept = 1 - self.held_out
            return _records(self.dataset, "train", *((0, kept) if split == "train" else (kept, 1)))
        root, names = path_of(self.path, "data.path"), self.class_names()
        if split == "test":
            validation = _validation(root)
            if validation is None:
                raise ConfigError(f"data.path: {root} has no folder val, of ImageNet's validation images")
            return list_files(validation, names)
        low, high = (0, self.held_out) if split == "validation" else (self.held_out, 1)
        return _part(root / "train", names, low, high)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageNet21k(PhotographSource):
    """ImageNet-21k (Deng et al. 2009; fall 2011): 14.2 million photographs, a label each.

    There is one set of images; `held_out` of them are the validation split, as many the test split. Of folders a hash
    of the path decides; of TFDS these are the end of its split `train`, or `full`, the test split last.

    Attributes:
      path: a directory path/CLASS/*.JPEG; None: `imagenet21k` under TFDS_DATA_DIR, which somebody has prepared in
        TFDS's format (TFDS itself has no such dataset), with features `image` and `label`.
      classes: how many there are.
    """

    path: str | None = None
    classes: int = 21_841
    evaluated: int = 10_000  # logits of more would be gigabytes

    dataset: ClassVar[str] = "imagenet21k"

    def __post_init__(self):
        super().__post_init__()
        if self.classes < 1:
            raise ValueError(f"classes: must be at least 1, got {self.classes}")

    def class_names(self) -> tuple[str, ...]:
        """WordNet's numbers of the classes. Raises ConfigError if the data are not there."""
        if self.path is not None:
            return _counted(path_of(self.path, "data.path"), self.classes)
        return _tfds_names(self.dataset, self.classes)

    def stored(self, split: str) -> Stored:
        """See `PhotographSource`."""
        names, h = self.class_names(), self.held_out
        if self.path is not None:
            low, high = {"validation": (0, h), "test": (h, 2 * h), "train": (2 * h, 1)}[split]
            return _part(path_of(self.path, "data.path"), names, low, high)
        there = prepared(self.dataset).info.splits
        low, high = {"train": (0, 1 - 2 * h), "validation": (1 - 2 * h, 1 - h), "test": (1 - h, 1)}[split]
        return _records(self.dataset, "train" if "train" in there else "full", low, high)


def published_folders(root: str) -> dict[tuple[str, int], Path]:
    """The folders of ImageNet-C, root/gaussian_noise/1 and so on, by `CORRUPTIONS` and severity.

    Raises:
      ConfigError: one is not there.
    """
    path = path_of(root, "evals.imagenet_c")
    found = {(name, s): path / f"{name}_noise" / str(s) for name in CORRUPTIONS for s in SEVERITIES}
    for folder in found.values():
        if not folder.is_dir():
            raise ConfigError(f"evals.imagenet_c: {folder} is not there")
    return found


def published(folder: Path, names: Sequence[str], size: int, most: int | None) -> Encoded:
    """The images in the class folders of one of `published_folders`.

    They are 224 x 224 already: their shorter side is scaled to `size`, if it is another, and nothing cropped off.

    Args:
      folder: of one corruption and severity.
      names: of the classes, in the order of the labels.
      size: height and width.
      most: examples at most; None: all.

    Raises:
      ConfigError: a class that is none of `names`, or no images.
    """
    return Encoded(list_files(folder, tuple(names)), size, size, most=most)


def _validation(root: Path) -> Path | None:
    return next((root / name for name in ("validation", "val") if (root / name).is_dir()), None)


def _counted(folder: Path, classes: int) -> tuple[str, ...]:
    names = class_folders(folder)
    if len(names) != classes:
        raise ConfigError(f"data.path: {folder} has {len(names)} class folders, and data.classes are {classes}")
    return names


@functools.lru_cache(maxsize=8)
def _part(folder: Path, names: tuple[str, ...], low: float, high: float) -> Files:
    part = list_files(folder, names).part(low, high)
    if not part.names:
        raise ConfigError(f"data.held_out: of the images in {folder} none is left for a split")
    return part


def _tfds_names(dataset: str, classes: int) -> tuple[str, ...]:
    feature = prepared(dataset).info.features["label"]
    if feature.num_classes != classes:
        raise ConfigError(f"data.classes: {dataset} has {feature.num_classes} classes, not {classes}")
    return tuple(feature.names)


def _records(dataset: str, split: str, low: float, high: float) -> Records:
    """Of a split that TFDS has, the records from the share `low` to the share `high` of them."""
    source = _data_source(dataset, split)
    first, end = round(low * len(source)), round(high * len(source))
    if first == end:
        raise ConfigError(f"data.held_out: of the {len(source)} images of {dataset} none is left for a split")
    return Records(f"{dataset} {split}", source, first, end - first)


@functools.cache
def _data_source(dataset: str, split: str) -> Any:
    return data_source(prepared(dataset), split, encoded=True)
