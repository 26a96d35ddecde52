"""Images too many for memory: files of class folders, or records of TFDS, decoded as they are asked for."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import math
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image, UnidentifiedImageError

from sparsity.config import ConfigError
from sparsity.data.pipeline import Batch, Lazy, in_threads

ENDINGS = (".jpg", ".jpeg", ".png")  # of image files, in capitals too
# What they may hold. ImageNet has some under other names; pillow also knows formats that it starts programs for.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP")


# Pillow warns of an image of many pixels, and refuses those of twice as many: here `decode` refuses both.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class Stored(Protocol):
    """Encoded images of a split.

    Attributes:
      labels: [n] int32, or what gives them by index.
    """

    labels: Any

    def read(self, i: int) -> tuple[bytes, int, str]:
        """What the i-th image's file holds, its label, and what it is called."""


@dataclasses.dataclass(frozen=True, eq=False)
class Files:
    """Image files in class folders.

    Attributes:
      folder: what the class folders are in.
      classes: names of the classes; a label is a place among them.
      names: of the files, in their class folders.
      labels: [n], int32.
    """

    folder: Path
    classes: tuple[str, ...]
    names: Sequence[str]
    labels: np.ndarray

    def path(self, i: int) -> str:
        """Of the i-th file, from `folder`."""
        return f"{self.classes[self.labels[i]]}/{self.names[i]}"

    def read(self, i: int) -> tuple[bytes, int, str]:
        """See `Stored`. Raises ConfigError if the file cannot be read."""
        file = self.folder / self.path(i)
        try:
            return file.read_bytes(), int(self.labels[i]), str(file)
        except OSError as error:
            raise ConfigError(f"data: {file} cannot be read ({error.strerror})") from error

    def same_names(self, other: Files) -> bool:
        """Whether the files are called as the `other` ones, class folder by class folder."""
        return list(self.names) == list(other.names) and np.array_equal(self.labels, other.labels)

    def part(self, low: float, high: float) -> Files:
        """The files whose `share_of` their path is in [low, high)."""
        shares = np.array([share_of(self.path(i)) for i in range(len(self.names))])
        (kept,) = np.nonzero((shares >= low) & (shares < high))
        return dataclasses.replace(self, names=[self.names[i] for i in kept], labels=self.labels[kept])


def share_of(path: str) -> float:
    """A number in [0, 1) that is drawn for a path, the same on every machine.

    >>> share_of("cat/1.png") == share_of("cat/1.png") != share_of("cat/2.png")
    True
    """
    return int.from_bytes(hashlib.blake2b(path.encode(), digest_size=6).digest(), "big") / 2**48


@functools.lru_cache(maxsize=32)
def class_folders(folder: Path) -> tuple[str, ...]:
    """The names of the folders in one, sorted: the classes. Raises ConfigError if there are none."""
    try:
        with os.scandir(folder) as entries:
            names = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    except OSError as error:
        raise ConfigError(f"data: {folder} cannot be read ({error.strerror})") from error
    if not names:
        raise ConfigError(f"data: {folder} has no class folders")
    return tuple(names)


@functools.lru_cache(maxsize=32)
def list_files(folder: Path, classes: tuple[str, ...]) -> Files:
    """The images of all class folders in `folder`, in the order of their names; not every class need be there.

    Raises:
      ConfigError: a folder that is none of `classes`, or no images.
    """
    known = {name: label for label, name in enumerate(classes)}
    names, counts = [], np.zeros(len(classes), np.int64)
    for name in class_folders(folder):
        if name not in known:
            raise ConfigError(f"data: {folder / name} is of none of the {len(classes)} classes that training has")
        with os.scandir(folder / name) as entries:
            inside = sorted(e.name for e in entries if e.name.lower().endswith(ENDINGS) and not e.name.startswith("."))
        names += inside
        counts[known[name]] = len(inside)
    if not names:
        raise ConfigError(f"data: {folder} has no images ({', '.join(ENDINGS)}) in its class folders")
    order = [known[name] for name in class_folders(folder)]
    return Files(folder, classes, names, np.repeat(order, counts[order]).astype(np.int32))


@dataclasses.dataclass(frozen=True, eq=False)
class Records:
    """Records first..first + n - 1 of a split that TFDS has prepared, their images left encoded.

    Attributes:
      dataset: what it is called.
      records: TFDS's data source; any thread may read it.
      first: the first record.
      n: how many.
    """

    dataset: str
    records: Sequence[dict[str, Any]]
    first: int
    n: int

    @property
    def labels(self) -> RecordLabels:
        """Labels by index."""
        return RecordLabels(self)

    def read(self, i: int) -> tuple[bytes, int, str]:
        """See `Stored`."""
        record = self.records[self.first + int(i)]
        return record["image"], int(record["label"]), f"example {self.first + int(i)} of {self.dataset}"


@dataclasses.dataclass(frozen=True)
class RecordLabels:
    """The labels of records, read as they are asked for, which reads the images' bytes too."""

    of: Records

    def __len__(self) -> int:
        return self.of.n

    def __getitem__(self, indices) -> np.ndarray:
        indices = np.arange(self.of.n)[indices] if isinstance(indices, slice) else np.asarray(indices)
        labels = in_threads(lambda i: self.of.read(i)[1], np.ravel(indices).tolist())
        return np.array(labels, np.int32).reshape(indices.shape)


def decode(data: bytes, name: str) -> Image.Image:
    """The RGB image of a file: grey, palette and CMYK ones converted, what is transparent as opaque as the rest.

    Raises:
      ConfigError: it cannot be decoded, or has no pixels, or more than pillow's MAX_IMAGE_PIXELS; in one line with its
        name.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        if not 0 < math.prod(image.size) <= Image.MAX_IMAGE_PIXELS:
            raise ValueError(f"{image.width} x {image.height} pixels")
        if image.mode == "P":  # its transparency may be a colour's, which RGB has no place for
            image = image.convert("RGBA")
        elif image.mode == "I" or image.mode.startswith("I;16"):  # of 16 bits: pillow would clip, not scale
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        return image.convert("RGB")
    except MemoryError:
        raise
    except Exception as error:  # pillow's decoders raise anything
        unknown = isinstance(error, UnidentifiedImageError) or not str(error)
        reason = "its format is unknown" if unknown else str(error).splitlines()[0]
        raise ConfigError(f"data: {name} cannot be decoded as an image ({reason})") from error


def central(image: Image.Image, shorter: int, size: int) -> Image.Image:
    """The central `size` x `size` pixels of the image when its shorter side is scaled to `shorter`, bilinearly."""
    scale = shorter / min(image.size)
    if scale != 1:
        # Pillow's bilinear filter is as wide as a pixel of the result: nothing is left out.
        image = image.resize([max(round(scale * side), shorter) for side in image.size], Image.Resampling.BILINEAR)
    left, top = ((side - size) // 2 for side in image.size)
    return image.crop((left, top, left + size, top + size))


def to_unit(image: Image.Image) -> np.ndarray:
    """Pixels [h, w, 3], float32 in [0, 1]."""
    return np.asarray(image, np.float32) / np.float32(255)


@dataclasses.dataclass(frozen=True, eq=False)
class Encoded(Lazy):
    """Images of one split, decoded as they are asked for. `take` and `arrays` give their `central` parts in [0, 1].

    Attributes:
      stored: the images.
      shorter, size: of `central`.
      whole: one by one they are whole instead, uint8 of any size, for the source's `augment`.
      most: examples that evaluators see at most; None: all.
    """

    stored: Stored
    shorter: int
    size: int
    whole: bool = False
    most: int | None = None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Of what `take` gives."""
        return (self.size, self.size, 3)

    @property
    def labels(self) -> Any:
        """[n], or what gives them by index."""
        return self.stored.labels

    def __repr__(self) -> str:
        return f"Encoded({type(self.stored).__name__}, {len(self)}, {self.size})"

    def __getitem__(self, i) -> Batch:
        return self._example(i, np.asarray) if self.whole else self.take(i)

    def take(self, indices) -> Batch:
        """One example, or those of an array of indices, stacked; decoded by all cores at once.

        Raises:
          ConfigError: an image cannot be read or decoded.
        """
        make = lambda i: self._example(i, lambda image: to_unit(central(image, self.shorter, self.size)))
        examples, shape = in_threads(make, np.ravel(indices).tolist()), np.shape(indices)
        stacked = {name: np.stack([example[name] for example in examples]) for name in examples[0]}
        return {name: x.reshape((*shape, *x.shape[1:])) for name, x in stacked.items()}

    def _example(self, i: int, pixels: Callable[[Image.Image], np.ndarray]) -> Batch:
        data, label, name = self.stored.read(i)
        image = decode(data, name)
        short, long = sorted(image.size)
        if self.shorter**2 * long > Image.MAX_IMAGE_PIXELS * short:
            shape = f"{image.width} x {image.height} pixels"
            raise ConfigError(f"data: {name} of {shape} is too long to be scaled to a shorter side of {self.shorter}")
        return {"image": pixels(image), "label": np.int32(label)}
