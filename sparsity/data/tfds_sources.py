"""MNIST, CIFAR and SVHN as TensorFlow Datasets prepares them, read without tensorflow.

Nothing is downloaded here: preparing a dataset takes tensorflow, once; its files, in the
array_record format, are then read with numpy and pillow alone. They are looked for under
TFDS_DATA_DIR, by default ~/tensorflow_datasets.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np

from sparsity.config import ConfigError, later, lookup
from sparsity.data.augment import padded_crop
from sparsity.data.mock import Mock
from sparsity.data.pipeline import Batch, ImageSource, Split


@dataclasses.dataclass(frozen=True)
class TFDSSource(ImageSource):
    """Base of the sources that TFDS prepares: a subclass names its dataset and the moments of its pixels.

    TFDS has a train and a test split. The end of its train split is the validation split here;
    TFDS shuffles when it prepares, so that end is a random sample, the same on every machine.

    Attributes:
      held_out: share of TFDS's train split that is the validation split, in (0, 1).
      pixels: "standardised" is (x - mean) / std of the training pixels, channel by channel, so that their mean square
        is 1; "unit" leaves them in [0, 1].

    Attributes of a subclass, of images in [0, 1]:
      dataset: its name in TFDS, with the version; one major version has the same examples in the same order.
      mean, std: of the pixels of TFDS's whole train split, one number per channel.
    """

    held_out: float = 0.1
    pixels: Literal["standardised", "unit"] = later("standardised")

    dataset: ClassVar[str]
    classes: ClassVar[int]
    image_shape: ClassVar[tuple[int, int, int]]
    mean: ClassVar[tuple[float, ...]]
    std: ClassVar[tuple[float, ...]]

    def __post_init__(self):
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out: must be in (0, 1), got {self.held_out}")

    def load(self, split: str) -> Split:
        """Images in [0, 1] and labels of the named split; read-only views, read once a process.

        Raises:
          ConfigError: a split that does not exist, or a dataset that is not prepared.
        """
        stored = lookup({"train": "train", "validation": "train", "test": "test"}, split, "split")
        images, labels = _read(self.dataset, stored)
        kept = len(labels) - round(self.held_out * len(labels))
        part = {"train": slice(kept), "validation": slice(kept, None), "test": slice(None)}[split]
        return Split(images[part], labels[part])

    def normalise(self, images: np.ndarray) -> np.ndarray:
        """The images in the units of `pixels`."""
        if self.pixels == "unit":
            return images
        return (images - np.float32(self.mean)) / np.float32(self.std)

    def mock(self) -> Mock:
        """Noise in the shape of the images."""
        return Mock(self.image_shape, self.classes)


@dataclasses.dataclass(frozen=True)
class MNIST(TFDSSource):
    """Handwritten digits, 28x28 grey (LeCun et al. 1998): 60,000 to train on and hold out, 10,000 to test.

    Mean and deviation are those of the 60,000 images, as in PyTorch's MNIST example.
    """

    dataset: ClassVar[str] = "mnist:3.*.*"
    classes: ClassVar[int] = 10
    image_shape: ClassVar[tuple[int, int, int]] = (28, 28, 1)
    mean: ClassVar[tuple[float, ...]] = (0.1307,)
    std: ClassVar[tuple[float, ...]] = (0.3081,)


@dataclasses.dataclass(frozen=True)
class CIFARSource(TFDSSource):
    """Base of CIFAR's sources, whose training images can be moved and mirrored.

    Attributes:
      padding: training images are moved by up to so many pixels along each axis and mirrored with odds 1/2, see
        `augment.padded_crop`, the mean colour around them; 4 is the usual number (He et al. 2016, Sec. 4.2), 0 leaves
        them as they are.
    """

    padding: int = later(0)

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.padding < 32:
            raise ValueError(f"padding: must be in 0..31 pixels, got {self.padding}")

    @property
    def augments(self) -> bool:
        """Whether training images are moved and mirrored."""
        return self.padding > 0

    def augment(self, example: Batch, rng: np.random.Generator) -> Batch:
        """The image moved and mirrored, if it is to be."""
        if not self.padding:
            return example
        return example | {"image": padded_crop(example["image"], self.padding, np.float32(self.mean), rng)}


@dataclasses.dataclass(frozen=True)
class CIFAR10(CIFARSource):
    """Photographs of ten kinds of things, 32x32 RGB (Krizhevsky 2009): 50,000 to train on and hold out, 10,000 to test.

    Mean and deviation are those of the 50,000 images, channel by channel, as in fb.resnet.torch
    (125.3, 123.0, 113.9 and 63.0, 62.1, 66.7 of 255). The 0.2023, 0.1994, 0.2010 that many
    repositories have are means of the images' own deviations: with them pixels have mean square 1.6.
    """

    dataset: ClassVar[str] = "cifar10:3.*.*"
    classes: ClassVar[int] = 10
    image_shape: ClassVar[tuple[int, int, int]] = (32, 32, 3)
    mean: ClassVar[tuple[float, ...]] = (0.4914, 0.4822, 0.4465)
    std: ClassVar[tuple[float, ...]] = (0.2470, 0.2435, 0.2616)


@dataclasses.dataclass(frozen=True)
class CIFAR100(CIFARSource):
    """Photographs of a hundred kinds of things, 32x32 RGB (Krizhevsky 2009): 50,000 and 10,000 to test.

    Mean and deviation are those of the 50,000 images, channel by channel (129.3, 124.1, 112.4 and 68.2, 65.4, 70.4
    of 255, as in fb.resnet.torch).
    """

    dataset: ClassVar[str] = "cifar100:3.*.*"
    classes: ClassVar[int] = 100
    image_shape: ClassVar[tuple[int, int, int]] = (32, 32, 3)
    mean: ClassVar[tuple[float, ...]] = (0.5071, 0.4866, 0.4409)
    std: ClassVar[tuple[float, ...]] = (0.2673, 0.2564, 0.2762)


@dataclasses.dataclass(frozen=True)
class SVHN(TFDSSource):
    """House numbers, cropped to one digit, 32x32 RGB (Netzer et al. 2011): 73,257 and 26,032 to test.

    Mean and deviation are those of the 73,257 images, channel by channel, as commonly used with it; nobody has
    recomputed them here.
    """

    dataset: ClassVar[str] = "svhn_cropped:3.*.*"
    classes: ClassVar[int] = 10
    image_shape: ClassVar[tuple[int, int, int]] = (32, 32, 3)
    mean: ClassVar[tuple[float, ...]] = (0.4377, 0.4438, 0.4728)
    std: ClassVar[tuple[float, ...]] = (0.1980, 0.2010, 0.1970)


@functools.cache
def _read(dataset: str, split: str) -> tuple[np.ndarray, np.ndarray]:
    """All images in [0, 1], float32, and labels of a split that TFDS has. Raises ConfigError if it is not there."""
    builder = prepared(dataset)
    source = data_source(builder, split)
    images = np.empty((len(source), *builder.info.features["image"].shape), np.float32)
    labels = np.empty(len(source), np.int32)
    for i, example in enumerate(source):
        images[i], labels[i] = example["image"], example["label"]
    images /= 255
    images.flags.writeable = labels.flags.writeable = False  # splits are views of these
    return images, labels


def prepared(dataset: str) -> Any:
    """TFDS's builder of a dataset that is prepared. Raises ConfigError if it is not."""
    import tensorflow_datasets as tfds  # half a second to import: only where it is used

    try:
        builder = tfds.builder(dataset)
    except tfds.core.registered.DatasetNotFoundError as error:
        where = tfds.core.constants.DATA_DIR
        raise ConfigError(f"data: no {dataset} in {where} (TFDS_DATA_DIR says where to look)") from error
    if not builder.is_prepared():
        raise ConfigError(
            f"data: no {dataset} in {builder.data_dir} (TFDS_DATA_DIR says where to look); {_mend(dataset)}"
        )
    return builder


def data_source(builder: Any, split: str, encoded: bool = False) -> Sequence[Any]:
    """The examples of a split, by index, their images as they are stored if `encoded`; any thread may read them.

    Raises:
      ConfigError: another format than array_record.
    """
    import tensorflow_datasets as tfds

    try:
        return builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()} if encoded else None)
    except NotImplementedError as error:
        kind = builder.info.file_format.value
        raise ConfigError(
            f"data: {builder.data_dir} is in the {kind} format; delete it and {_mend(builder.name)}"
        ) from error


def _mend(dataset: str) -> str:
    """The command that prepares a dataset."""
    build = f"tfds.builder('{dataset.split(':')[0]}', file_format='array_record').download_and_prepare()"
    return (
        "prepare it once: pip install tensorflow-cpu importlib_resources && "
        f'python -c "import tensorflow_datasets as tfds; {build}"'
    )
