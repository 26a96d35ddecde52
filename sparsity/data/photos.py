"""Square patches of the two photographs in scikit-learn, a temple by a lake and a dahlia. No download, no labels."""

from __future__ import annotations

import dataclasses
import functools
from typing import ClassVar, Literal

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from sparsity.config import lookup
from sparsity.data.mock import Mock
from sparsity.data.pipeline import Batch, ImageSource

_HEIGHT, _STRIP = 427, 64  # pixels; the photographs are ten strips wide
# Columns of both photographs -> split. A patch lies within one run of columns, so no pixel is in two splits. These
# strips, because patches have about the same contrast in each: grey ones of 12x12 pixels have deviations within the
# patch of .114 and .064 (temple, dahlia) in training, .117 and .053 in validation, .114 and .075 in test.
_REGIONS = {
    "train": ((0, 64), (192, 320), (384, 640)),
    "validation": ((128, 192),),
    "test": ((64, 128), (320, 384)),
}
_STRIPS = {split: sum(end - start for start, end in runs) // _STRIP for split, runs in _REGIONS.items()}
_LUMA = np.float32([0.299, 0.587, 0.114])  # ITU-R BT.601


@dataclasses.dataclass(frozen=True)
class Photos(ImageSource):
    """The photos source: patches of two photographs of 427 x 640 pixels, split by region.

    The regions are strips of columns, the same of both photographs: 448 to train on, 64 to validate,
    128 to test, so that no pixel is seen in two splits. There are no labels.

    Attributes:
      patch: height and width of a patch, in 1..64 pixels.
      colour: RGB patches; else grey, .299 R + .587 G + .114 B.
      stride: patches start at every `stride`-th row and column of a region.
      count: training patches drawn from all of these, without replacement; a 7th of it for validation and two
        7ths for test, or all there are; None for all positions of every split.
      seed: of the draw.
      contrast: what `normalise` does to each patch.
      floor: least deviation, in units of [0, 1], that "unit_variance" divides by; the dahlia's out-of-focus ground
        stays as flat as it is, instead of becoming the grid of its JPEG file.

    Raises:
      ValueError: more training patches than there are positions, or a value outside its range.
    """

    patch: int = 12
    colour: bool = False
    stride: int = 1
    count: int | None = 20_000
    seed: int = 0
    contrast: Literal["none", "zero_mean", "unit_variance"] = "none"
    floor: float = 0.02

    classes: ClassVar[None] = None

    def __post_init__(self):
        if not 1 <= self.patch <= _STRIP:
            raise ValueError(f"patch: must be in 1..{_STRIP} pixels, got {self.patch}")
        if self.stride < 1:
            raise ValueError(f"stride: must be at least 1, got {self.stride}")
        if self.seed < 0:
            raise ValueError(f"seed: must be at least 0, got {self.seed}")
        if self.floor <= 0:
            raise ValueError(f"floor: must be positive, got {self.floor}")
        there = 2 * len(self._rows()) * len(self._columns("train"))
        if self.count is not None and not 1 <= self.count <= there:
            raise ValueError(f"count: must be in 1..{there} (the training positions) or None, got {self.count}")

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of a patch."""
        return (self.patch, self.patch, 3 if self.colour else 1)

    def load(self, split: str) -> Patches:
        """Patches in [0, 1] of the named split, cut out as they are asked for.

        Raises:
          ConfigError: a split that does not exist.
        """
        lookup(_REGIONS, split, "split")
        grid = self._grid(split)
        if self.count is not None:
            wanted = -(-self.count * _STRIPS[split] // _STRIPS["train"])
            rng = np.random.default_rng([self.seed, list(_REGIONS).index(split)])
            grid = grid[rng.permutation(len(grid))[:wanted]]
        return Patches(_photographs(self.colour), grid, self.patch)

    def normalise(self, images: np.ndarray) -> np.ndarray:
        """Patches [..., h, w, c] with their contrast as `contrast` says.

        none: x, in [0, 1]. zero_mean: x - mean(x). unit_variance: (x - mean(x)) / max(std(x), floor). Mean and
        deviation are those of the one patch, over pixels and channels together: colours stay what they are.
        """
        if self.contrast == "none":
            return images
        over = (-3, -2, -1)
        images = images - images.mean(over, keepdims=True)
        if self.contrast == "unit_variance":
            images = images / np.maximum(images.std(over, keepdims=True), np.float32(self.floor))
        return images

    @functools.cached_property
    def std(self) -> float:
        """Deviation of the pixels of normalised training patches: noise of sigma has the ratio sigma / std to them.

        Over patches, pixels and channels together; of more than 5,000 patches, 5,000 at even steps.
        """
        patches = self.load("train")
        few = np.unique(np.linspace(0, len(patches) - 1, 5_000).astype(int))
        pixels = self.normalise(patches.cut(few))
        return float(pixels.std(dtype=np.float64))

    def mock(self) -> Mock:
        """Noise in the shape of the patches."""
        return Mock(self.image_shape, None)

    def _rows(self) -> np.ndarray:
        return np.arange(0, _HEIGHT - self.patch + 1, self.stride)

    def _columns(self, split: str) -> np.ndarray:
        runs = _REGIONS[split]
        return np.concatenate([np.arange(start, end - self.patch + 1, self.stride) for start, end in runs])

    def _grid(self, split: str) -> np.ndarray:
        """[n, 3]: photograph, row and column where the patches of a split may start."""
        axes = np.meshgrid([0, 1], self._rows(), self._columns(split), indexing="ij")
        return np.stack([a.ravel() for a in axes], 1).astype(np.int32)


@dataclasses.dataclass(frozen=True)
class Patches:
    """Examples of one split, as `Split` has them, but held as positions: overlapping patches share their pixels.

    Attributes:
      photographs: [2, height, width, channels], float32 in [0, 1].
      positions: [n, 3], int32: photograph, first row, first column.
      patch: height and width.
    """

    photographs: np.ndarray
    positions: np.ndarray
    patch: int

    labels: ClassVar[None] = None

    @functools.cached_property
    def images(self) -> np.ndarray:
        """All patches [n, patch, patch, channels]; a copy, made once."""
        return self.cut(slice(None))

    def cut(self, which: slice | np.ndarray) -> np.ndarray:
        """The patches of the chosen indices, [n, patch, patch, channels]; a copy."""
        windows = sliding_window_view(self.photographs, (self.patch, self.patch), (1, 2))
        return np.ascontiguousarray(np.moveaxis(windows[tuple(self.positions[which].T)], -3, -1))

    def __len__(self) -> int:
        return len(self.positions)

    def __repr__(self) -> str:
        return f"Patches({len(self)}, {self.patch}, {int(self.positions.sum())})"

    def arrays(self) -> Batch:
        """All examples, stacked."""
        return {"image": self.images}

    def __getitem__(self, i) -> Batch:
        return self.take(i)

    def take(self, indices) -> Batch:
        """One patch, or those of an array of indices, stacked."""
        return {"image": self.cut(indices)}


@functools.cache
def _photographs(colour: bool) -> np.ndarray:
    """Both photographs [2, 427, 640, 3 or 1] in [0, 1], float32, read-only."""
    from sklearn.datasets import load_sample_images  # seconds to import: only where it is used

    photographs = np.stack(load_sample_images().images).astype(np.float32) / 255
    if not colour:
        photographs = (photographs @ _LUMA)[..., None]
    photographs.flags.writeable = False  # patches are views of these
    return photographs
