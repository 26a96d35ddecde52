"""What evaluators are given and what they return."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh

from sparsity.config import ConfigError, later
from sparsity.data.pipeline import Batch, Lazy, Source, Split, read_whole
from sparsity.layers.sparsify import SparsityStats
from sparsity.layers.tail import TailStats

_SAMPLE = 64  # images that examples are known by


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
class ByExample:
    """What a measure is made of, example by example: it is sum(values) / sum(counts).

    Attributes:
      values: [n], in the order of the split.
      counts: [n], what each example has of what is averaged over, such as tokens; None: one.
    """

    values: np.ndarray
    counts: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Result:
    """What an evaluator found.

    Attributes:
      measures: the numbers.
      arrays: by name, what figures need (lists of numbers), and the texts it made.
      by_example: by measure, what those are made of that are means over examples; to compare networks by, never stored.
    """

    measures: tuple[Measure, ...]
    arrays: dict[str, Any] = dataclasses.field(default_factory=dict)
    by_example: dict[str, ByExample] = dataclasses.field(default_factory=dict)


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
      noise: training's noise is on, at its size after the last step (Bricken et al. validate so); else it is off.
      dead_size: a unit is dead by Bricken et al.'s definition if its |h| sum to less than this over an epoch.
      dead_rate: it is by the Sparsing Law's if it is nonzero on less than this share of tokens.
      rises: of perplexity, as shares of it: what cutting off the tail of every h may cost (evaluator `thresholds`).
      shares: of activations, the smallest ones, that are cut off by quantile (evaluator `quantiles`).
      during: evaluators of the validation split while training, beside those that always are.
      imagenet_c: directory of the published ImageNet-C (gaussian_noise/1 and so on), whose images the robustness
        evaluator then reads; None: it makes the noise.
      prompts: file of what the evaluator `generate` reads, one prompt a line.
      length: tokens that it says after each, at most.
      temperature: at which it draws them; 0: they are the most likely ones.
      top_p: probability of the nucleus that it draws from, 1 being all tokens.
      seed: of what it draws; None: the run's.
      mode: of `layers.inference.INFERENCE`, in which it computes the decoder's MLPs, k at the end of its annealing; "":
        as in training. More than `ops.sparse_matmul.TOKENS` prompts at a time share whole products in every mode.
      imposed_k: units that the evaluator `imposed` keeps of every MLP, one evaluation each.
      rank, candidates: of searches, of that mode's or of those that the evaluator `inference` measures; 0: that of the
        predictor trained with the network, or else a sixteenth of d_model, and twice k.
    """

    names: tuple[str, ...]
    split: Literal["validation", "test"] = "test"
    batch: int = 256
    ece_bins: int = 15
    corruptions: Literal["auto", "cifar_c", "tiny_imagenet_c", "imagenet_c"] = "auto"
    noise: bool = later(False)
    dead_size: float = later(1e-5)
    dead_rate: float = later(1e-3)
    rises: tuple[float, ...] = later((0.01,))
    shares: tuple[float, ...] = later((0.5,))
    during: tuple[str, ...] = later(())
    imagenet_c: str | None = later(None)
    prompts: str | None = later(None)
    length: int = later(64)
    temperature: float = later(0.0)
    top_p: float = later(1.0)
    seed: int | None = later(None)
    mode: str = later("")
    imposed_k: tuple[int, ...] = later(())
    rank: int = later(0)
    candidates: int = later(0)

    def __post_init__(self):
        if self.batch < 1:
            raise ValueError(f"batch: must be at least 1, got {self.batch}")
        if self.ece_bins < 1:
            raise ValueError(f"ece_bins: must be at least 1, got {self.ece_bins}")
        if self.dead_size < 0:
            raise ValueError(f"dead_size: must be at least 0, got {self.dead_size}")
        if not 0 <= self.dead_rate <= 1:
            raise ValueError(f"dead_rate: must be in [0, 1], got {self.dead_rate}")
        if not self.rises or not all(0 < rise < math.inf for rise in self.rises):
            raise ValueError(f"rises: shares above 0 are needed, such as (0.01,), got {self.rises}")
        if self.length < 1:
            raise ValueError(f"length: must be at least 1, got {self.length}")
        if self.temperature < 0:
            raise ValueError(f"temperature: must be at least 0, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p: must be in (0, 1], got {self.top_p}")
        if self.top_p < 1 and not self.temperature:
            raise ValueError(
                f"top_p: at temperature 0 nothing is drawn; with {self.top_p} give a temperature, such as 1"
            )
        if self.seed is not None and not 0 <= self.seed < 1 << 32:
            raise ValueError(f"seed: must be in [0, 2^32), got {self.seed}")
        if not all(k >= 1 for k in self.imposed_k) or ("imposed" in (*self.names, *self.during) and not self.imposed_k):
            raise ValueError(f"imposed_k: numbers of units from 1 on are needed, such as (43,), got {self.imposed_k}")
        for field in ("rank", "candidates"):
            if getattr(self, field) < 0:
                raise ValueError(f"{field}: must be at least 0, got {getattr(self, field)}")
        if not self.shares or not all(0 < share < 1 for share in self.shares):
            raise ValueError(f"shares: between 0 and 1 are needed, such as (0.5,), got {self.shares}")


@dataclasses.dataclass(frozen=True)
class Predictions:
    """A model's outputs on n examples, in their order.

    Attributes:
      outputs: [n, ...] float32: logits, or images; None if they were not kept.
      arrays: the examples, as the model reads them, without what it reads if that was not in memory at once.
      losses: the training loss of each example: `loss`, `correct` and `count` [n].
      stats: recorded statistics by layer, merged over batches in float64: those of the tail if that was measured.
    """

    outputs: np.ndarray | None
    arrays: Batch
    losses: Any
    stats: dict[str, SparsityStats] | dict[str, TailStats]

    @property
    def logits(self) -> np.ndarray:
        """The outputs of a classifier [n, classes]."""
        return self.outputs

    @property
    def labels(self) -> np.ndarray | None:
        """[n]; None where the data has none."""
        return self.arrays.get("label")

    @property
    def images(self) -> np.ndarray:
        """[n, ...]: what the model read. Raises ConfigError if it was too much for memory."""
        if "image" not in self.arrays:
            raise ConfigError("evals.names: an evaluator needs all images at once; data.evaluated can make them fewer")
        return self.arrays["image"]

    @functools.cached_property
    def correct(self) -> np.ndarray:
        """[n] bool: the label is the argmax; never where a logit is NaN."""
        return (self.logits.argmax(-1) == self.labels) & ~np.isnan(self.logits).any(-1)


@dataclasses.dataclass(frozen=True)
class Subject:
    """A trained model as evaluators see it: a function from examples to predictions.

    Attributes:
      predict: (examples as the model reads them, stacked or a stream, noisy=False) -> Predictions; see `evals.predict`.
      source: the data.
      load: the name of a split -> its examples (in the source's units).
      model: the model's settings (its MLPs and FLOPs).
      params: its parameters.
      mesh: the devices they lie on.
      noise: what training adds to its input; None for nothing.
      config: the evaluation's settings.
      seed: of anything an evaluator draws.
      predict_as: other settings of the model, which has the same parameters -> `predict` of that model.
      step: updates that its parameters have had.
    """

    predict: Callable[..., Predictions]
    source: Source
    load: Callable[[str], Split | Lazy]
    model: Any
    params: Any
    mesh: Mesh
    noise: Any
    config: EvalConfig
    seed: int
    predict_as: Callable[[Any], Callable[..., Predictions]] | None = None
    step: int = 0

    @functools.cached_property
    def split(self) -> Split | Lazy:
        """The examples under evaluation."""
        return self.load(self.config.split)

    @functools.cached_property
    def clean(self) -> Predictions:
        """Predictions on the split as it is, under training's noise if `config.noise`; once for all evaluators."""
        return self.predict(read_whole(self.source, self.split), noisy=self.config.noise)

    @functools.cached_property
    def trained(self) -> Predictions:
        """Predictions on the training split under training's noise, one epoch of it; once for all evaluators."""
        return self.predict(read_whole(self.source, self.load("train")), noisy=True)

    @functools.cached_property
    def examples(self) -> str:
        """What the examples under evaluation are known by: networks of one and the same can be compared one by one.

        A digest of all labels and tokens as the model reads them, and of some of the images, spread over the split, in
        the source's units: they are the same examples to a model that wants its pixels scaled otherwise.
        """
        split, digest = self.split, hashlib.sha256()
        seen = split.seen() if isinstance(split, Lazy) else np.arange(len(split))
        rows = [split[int(i)] for i in seen[np.linspace(0, len(seen) - 1, min(_SAMPLE, len(seen))).astype(int)]]
        some = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        whole = {name: x for name, x in self.clean.arrays.items() if np.issubdtype(x.dtype, np.integer)}
        for name, x in (*sorted(whole.items()), *sorted(some.items())):
            digest.update(f"{name} {x.shape} {len(seen)}".encode())
            digest.update(np.ascontiguousarray(x).tobytes())
        return digest.hexdigest()

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        return sum(int(np.prod(p.shape)) for p in jax.tree.leaves(self.params))


Evaluator = Callable[[Subject], Result]


def mean_and_se(values: np.ndarray) -> tuple[float, float | None]:
    """Mean and standard error of the mean, std(ddof=1)/sqrt(n); no error from one value."""
    values = np.asarray(values, np.float64)
    se = None if len(values) < 2 else float(values.std(ddof=1) / np.sqrt(len(values)))
    return float(values.mean()), se
