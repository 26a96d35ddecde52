"""Random changes of training images, each a function of an example's generator alone.

Inception's crop (Szegedy et al. 2015), RandAugment (Cubuk et al. 2020), and the padded crop of small images (He et al.
2016). Pillow does the work; it lets other threads run meanwhile.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

AREA, ASPECT = (0.08, 1.0), (3 / 4, 4 / 3)  # of a crop: share of the image's area, width over height
_TRIES = 10
_GREY = (128, 128, 128)  # where an operation leaves nothing of the image


def inception_box(width: int, height: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a random part of an image (Szegedy et al. 2015, Sec. 6).

    Its area is uniform over `AREA` of the image's, its aspect over `ASPECT` (that paper's numbers), here log-uniform,
    its place uniform. What does not fit is drawn anew; after ten times it is the largest central part whose aspect is
    within `ASPECT`, as torchvision has it. Code of ViT's authors crops from 5% of the area on.
    """
    for _ in range(_TRIES):
        area = width * height * rng.uniform(*AREA)
        aspect = math.exp(rng.uniform(*map(math.log, ASPECT)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            break
    else:
        low, high = ASPECT
        w, h = min(width, round(height * high)), min(height, round(width / low))
        left, top = (width - w) // 2, (height - h) // 2
        return left, top, left + w, top + h
    left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
    return left, top, left + w, top + h


def padded_crop(image: np.ndarray, padding: int, fill: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """`image` [h, w, c] moved by -padding..padding pixels along each axis, uniformly, then mirrored with odds 1/2.

    What comes in from outside is `fill` [c] (He et al. 2016, Sec. 4.2, have padding 4 of the mean colour).
    """
    down, right = rng.integers(0, 2 * padding + 1, 2)
    height, width, channels = image.shape
    around = np.empty((height + 2 * padding, width + 2 * padding, channels), image.dtype)
    around[:] = fill
    around[padding : padding + height, padding : padding + width] = image
    cut = around[down : down + height, right : right + width]
    return cut[:, ::-1] if rng.random() < 0.5 else cut


def _affine(image: Image.Image, *inverse: float) -> Image.Image:
    """The pixel at (x, y) is the nearest to (a x + b y + c, d x + e y + f) of the image, `inverse` being a to f."""
    return image.transform(image.size, Image.Transform.AFFINE, inverse, Image.Resampling.NEAREST, fillcolor=_GREY)


def _enhanced(kind: Callable) -> Callable[[Image.Image, float], Image.Image]:
    return lambda image, s: kind(image).enhance(1 + 0.9 * s)


# RandAugment's 14 operations (Cubuk et al. 2020, Sec. 3.1). A strength s in [-1, 1] is at most the end of the range
# that AutoAugment has (Cubuk et al. 2019, Table 6), whose images are 331 pixels wide; 0 leaves the image as it is. Of
# those that have one direction |s| counts; the first three have no strength.
OPERATIONS: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "identity": lambda image, s: image,
    "auto_contrast": lambda image, s: ImageOps.autocontrast(image),
    "equalize": lambda image, s: ImageOps.equalize(image),
    "rotate": lambda image, s: image.rotate(30 * s, Image.Resampling.NEAREST, fillcolor=_GREY),
    "solarize": lambda image, s: ImageOps.solarize(image, round(256 * (1 - abs(s)))),
    "color": _enhanced(ImageEnhance.Color),
    "posterize": lambda image, s: ImageOps.posterize(image, 8 - round(4 * abs(s))),
    "contrast": _enhanced(ImageEnhance.Contrast),
    "brightness": _enhanced(ImageEnhance.Brightness),
    "sharpness": _enhanced(ImageEnhance.Sharpness),
    "shear_x": lambda image, s: _affine(image, 1, 0.3 * s, 0, 0, 1, 0),
    "shear_y": lambda image, s: _affine(image, 1, 0, 0, 0.3 * s, 1, 0),
    "translate_x": lambda image, s: _affine(image, 1, 0, 150 / 331 * s * image.width, 0, 1, 0),
    "translate_y": lambda image, s: _affine(image, 1, 0, 0, 0, 1, 150 / 331 * s * image.height),
}


@dataclasses.dataclass(frozen=True)
class RandAugment:
    """`layers` of `OPERATIONS`, drawn uniformly with replacement, one after the other, all as strong.

    Each has the strength magnitude / 10, with a random sign. The authors' TensorFlow code has two more operations,
    and counts colour, contrast, brightness and sharpness from .1 up, without a sign, and solarises and posterises less
    with a larger magnitude; here, as the paper says, all grow stronger with it.

    Attributes:
      layers: operations on an image.
      magnitude: of each, in [0, 10].
    """

    layers: int = 2
    magnitude: float = 10.0

    def __post_init__(self):
        if self.layers < 1:
            raise ValueError(f"layers: must be at least 1, got {self.layers}")
        if not 0 <= self.magnitude <= 10:
            raise ValueError(f"magnitude: must be in [0, 10], got {self.magnitude}")

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """The RGB image, changed by `rng` alone."""
        operations = list(OPERATIONS.values())
        for chosen in rng.integers(len(operations), size=self.layers):
            sign = 1 if rng.random() < 0.5 else -1
            image = operations[chosen](image, sign * self.magnitude / 10)
        return image
