"""What evaluators are given and what they return."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from sparsity.data.pipeline import Source, Split
from sparsity.layers.sparsify import SparsityStats


@dataclasses.dataclass(frozen=True)
class Measure:
    """One number, with what makes it believable.

    Attributes:
      name: dotted, e.g. "nonzero.block_0".
      value: the number.
      se: its standard error; None where it is exact.
      n: units of replication behind `se` (examples, unless the definition says otherwise).
      definition: what was counted, averaged over what.
      unit: "share" (in [0, 1], shown in percent) or the unit to print.
    """

    name: str
    value: float
    se: float | None
    n: int
    definition: str
    unit: str = "share"

    def __str__(self) -> str:
        """The value with its standard error, e.g. `97.8 ± 0.8 %`."""
        scale, unit = (100.0, " %") if self.unit == "share" else (1.0, f" {self.unit}" if self.unit else "")
        value = scale * self.value
        if not math.isfinite(value):
            return f"{value}{unit}" if self.se is None else f"{value} ± {scale * self.se}{unit}"
        if self.se is None:
            return f"{value:,.0f}{unit}" if value == round(value) else f"{value:,.2f}{unit}"
        error = scale * self.se
        digits = 1 if scale == 100 else min(max(1 - math.floor(math.log10(error)), 0), 4) if 0 < error < math.inf else 2
        return f"{value:,.{digits}f} ± {error:,.{digits}f}{unit}"


@dataclasses.dataclass(frozen=True)
class Result:
    """An evaluator's measures, and the arrays that figures need (lists of numbers by name)."""

    measures: tuple[Measure, ...]
    arrays: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """Settings of the final evaluation.

    Attributes:
      names: evaluators to run, from `EVALS`.
      split: the split they run on.
      batch: examples per forward pass.
      ece_bins: equal-width bins of the calibration error.
      corruptions: which benchmark's noise constants the robustness evaluator uses; "auto"
        chooses by resolution. Small high-contrast images need the strong ones to notice.
    """

    names: tuple[str, ...]
    split: Literal["validation", "test"] = "test"
    batch: int = 256
    ece_bins: int = 15
    corruptions: Literal["auto", "cifar_c", "tiny_imagenet_c", "imagenet_c"] = "auto"

    def __post_init__(self):
        if self.batch < 1:
            raise ValueError(f"batch: must be at least 1, got {self.batch}")
        if self.ece_bins < 1:
            raise ValueError(f"ece_bins: must be at least 1, got {self.ece_bins}")


@dataclasses.dataclass(frozen=True)
class Predictions:
    """A model's outputs on n examples, in their order.

    Attributes:
      logits: [n, classes] float32.
      labels: [n]; None where the data has none.
      stats: recorded statistics by layer, merged over batches in float64.
    """

    logits: np.ndarray
    labels: np.ndarray | None
    stats: dict[str, SparsityStats]

    @functools.cached_property
    def correct(self) -> np.ndarray:
        """[n] bool: the label is the argmax; never where a logit is NaN."""
        return (self.logits.argmax(-1) == self.labels) & ~np.isnan(self.logits).any(-1)


@dataclasses.dataclass(frozen=True)
class Subject:
    """A trained model as evaluators see it: a function from images to predictions.

    Attributes:
      predict: (model inputs [n, h, w, c], labels [n]) -> Predictions.
      source, split: the data and the split under evaluation (images in the source's units).
      model: the model's settings (its MLPs and FLOPs).
      parameters: number of parameters.
      config: the evaluation's settings.
      seed: of anything an evaluator draws.
    """

    predict: Callable[[np.ndarray, np.ndarray], Predictions]
    source: Source
    split: Split
    model: Any
    parameters: int
    config: EvalConfig
    seed: int

    @functools.cached_property
    def clean(self) -> Predictions:
        """Predictions on the split as it is; computed once for all evaluators."""
        return self.predict(self.source.normalise(self.split.images), self.split.labels)


Evaluator = Callable[[Subject], Result]


def mean_and_se(values: np.ndarray) -> tuple[float, float | None]:
    """Mean and standard error of the mean, std(ddof=1)/sqrt(n); no error from one value."""
    values = np.asarray(values, np.float64)
    se = None if len(values) < 2 else float(values.std(ddof=1) / np.sqrt(len(values)))
    return float(values.mean()), se
