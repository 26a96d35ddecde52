"""Units that are larger than all others, and units that are training examples (Bricken et al. 2023, Fig. 15)."""

from __future__ import annotations

import numpy as np

from sparsity import spmd
from sparsity.config import ConfigError
from sparsity.evals.receptive_fields import rephased
from sparsity.evals.result import Measure, Result, Subject, mean_and_se

LEVEL = 0.05  # share of fields of the null that look as much like a training image as the threshold asks
_UNITS = 256  # at a time: bounds the memory


def exemplars(subject: Subject) -> Result:
    """How much the first layer's weights look like images that were trained on, and how unequal their norms are.

    A field's likeness to an image is their correlation over pixels; its best over many images grows with the number
    and with the smoothness of the field. So there are two yardsticks: fields of random phases (`rephased`), and as
    many images that were held out, which a unit that has memorised an example resembles less.

    Raises:
      ConfigError: the model's first layer does not read a whole image.
    """
    if not hasattr(subject.model, "encoder"):
        raise ConfigError(f"evals.names: {type(subject.model).__name__} has no units with a receptive field")
    shape = subject.source.inputs["image"].shape
    kernel = spmd.fetch(subject.model.encoder(subject.params)[0]).astype(np.float64)
    norms = np.linalg.norm(kernel, axis=0)
    fields = kernel.T.reshape(-1, *shape)
    null = rephased(fields, subject.seed)
    train, held_out = (np.asarray(p.images) for p in (subject.trained, subject.clean))
    few = min(len(train), len(held_out))
    best, of_null = best_correlation(fields, train), best_correlation(null, train)
    threshold = float(np.quantile(of_null, 1 - LEVEL))
    p, n = float(np.mean(best > threshold)), len(fields)
    sample = train[np.linspace(0, len(train) - 1, few).astype(int)]
    closer = best_correlation(fields, sample) - best_correlation(fields, held_out[:few])
    of_null = best_correlation(null, sample) - best_correlation(null, held_out[:few])
    like = f"largest correlation over pixels of a unit's weights with one of {len(train)} training images"
    memory = f"largest correlation of a unit's weights with one of {few} training images, less that with as many of the"
    memory += f" {subject.config.split} split; mean over n units, less that of fields of random phases"
    ratio = float(norms.max() / np.median(norms)) if np.median(norms) > 0 else float("inf")
    return Result(
        (
            Measure("exemplars.correlation", *mean_and_se(best), n, f"mean over n units of the {like}", ""),
            Measure(
                "exemplars.above_null",
                p,
                (p * (1 - p) / n) ** 0.5,
                n,
                f"share of n units whose {like} exceeds {threshold:.3g}, which {LEVEL:g} of fields of random phases do",
            ),
            Measure("exemplars.over_held_out", *mean_and_se(closer - of_null), n, memory, ""),
            Measure("exemplars.norm_ratio", ratio, None, n, "largest L2 norm of a unit's weights over the median", ""),
        )
    )


def best_correlation(fields: np.ndarray, images: np.ndarray) -> np.ndarray:
    """[n] of fields [n, h, w, c]: the largest correlation over pixels with one of `images` [m, h, w, c], 0 if flat."""
    fields, images = _normalised(fields), _normalised(images)
    return np.concatenate([(fields[i : i + _UNITS] @ images.T).max(1) for i in range(0, len(fields), _UNITS)])


def _normalised(images: np.ndarray) -> np.ndarray:
    """[n, pixels] float32 of mean 0 about each channel's and norm 1; zeros where the image is flat."""
    centred = images - images.mean((1, 2), keepdims=True)
    flat = centred.reshape(len(centred), -1)
    norm = np.linalg.norm(flat, axis=1, keepdims=True)
    return np.where(norm > 1e-6, flat / np.maximum(norm, 1e-6), 0).astype(np.float32)
