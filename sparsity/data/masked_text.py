"""Masked tokens, the task BERT is trained on (Devlin et al. 2019, Sec. 3.1): say what stood there."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import numpy as np

from sparsity.config import ConfigError, one_of
from sparsity.data.corpora import CORPORA, SPLITS, PythonDocs
from sparsity.data.mock import MockText
from sparsity.data.pipeline import Batch
from sparsity.data.span_corruption import Rows
from sparsity.data.vocabularies import VOCABULARIES, Bytes


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskedText:
    """Texts of a corpus that fits into memory, some of their tokens selected anew whenever they are trained on.

    An example has `tokens` [length] as the model reads them, `targets` [length], those that stood there, and
    `target_segments` [length], 1 where a token was selected: the loss is that of these alone. Of the selected tokens
    `masked` are replaced by the vocabulary's first sentinel, `changed` by a token drawn uniformly, the rest is left.
    There are no tokens for classes and separation, and no next sentence to predict.

    Attributes:
      corpus: where the text comes from, by name; its documents are strung together.
      vocabulary: text to tokens, by name.
      length: tokens of an example.
      stride: training examples start at every `stride`-th token; None: they do not overlap.
      selected, masked, changed: shares, of the tokens and of those selected.
    """

    corpus: Any = one_of(CORPORA, PythonDocs())
    vocabulary: Any = one_of(VOCABULARIES, Bytes())
    length: int = 128
    stride: int | None = None
    selected: float = 0.15
    masked: float = 0.8
    changed: float = 0.1

    augments: ClassVar[bool] = True

    def __post_init__(self):
        if self.length < 1:
            raise ValueError(f"length: must be at least 1, got {self.length}")
        if self.stride is not None and self.stride < 1:
            raise ValueError(f"stride: must be at least 1, or None, got {self.stride}")
        if not 0 < self.selected <= 1:
            raise ValueError(f"selected: must be in (0, 1], got {self.selected}")
        if not (self.masked >= 0 and self.changed >= 0 and self.masked + self.changed <= 1):
            raise ValueError(f"masked, changed: shares of 1 together, got {self.masked} and {self.changed}")

    @property
    def classes(self) -> int:
        """Rows of the vocabulary's embedding."""
        return self.vocabulary.classes

    @property
    def text_length(self) -> int:
        """Tokens of a text that fills an example."""
        return self.length

    @property
    def count(self) -> int:
        """Tokens selected of an example: at least one."""
        return max(round(self.selected * self.length), 1)

    @property
    def inputs(self) -> Mapping[str, jax.ShapeDtypeStruct]:
        """`tokens` [length], int32."""
        return {"tokens": jax.ShapeDtypeStruct((self.length,), np.int32)}

    def load(self, split: str) -> Rows:
        """The texts of the named split. Raises ConfigError if there is none, or less text than one."""
        if self.vocabulary.sentinels < 1:
            raise ConfigError("data.vocabulary: has no token to mask others with")
        documents = [self.vocabulary.encode(text) for text in self.corpus.documents(split)]
        text = np.concatenate([np.empty(0, np.int32), *documents])
        stride = self.stride if split == "train" and self.stride else self.length
        texts = [(text[start : start + self.length],) for start in range(0, len(text) - self.length + 1, stride)]
        if not texts:
            raise ConfigError(f"data: the {split} split has fewer tokens than the {self.length} of an example")
        return Rows(self, texts, SPLITS.index(split), anew=split == "train")

    def augment(self, example: Batch, rng: np.random.Generator) -> Batch:
        """The text with some tokens selected, by `rng` alone."""
        targets = example["tokens"]
        places = rng.choice(len(targets), self.count, replace=False)
        fate = rng.random(self.count)
        drawn = rng.integers(*self.vocabulary.words, self.count)
        kept = np.where(fate < self.masked + self.changed, drawn, targets[places])
        tokens, selected = targets.copy(), np.zeros_like(targets)
        tokens[places], selected[places] = np.where(fate < self.masked, self.vocabulary.sentinel, kept), 1
        return {"tokens": tokens, "targets": targets, "target_segments": selected}

    def model_input(self, arrays: Batch) -> Batch:
        """The tokens as they are."""
        return arrays

    def mock(self) -> MockText:
        """Random tokens in sequences as long."""
        return MockText(self.length, self.classes)
