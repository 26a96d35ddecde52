"""Next tokens of any corpus in any vocabulary: what GPT-2 and Llama are trained on, for checkpoints of theirs."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from sparsity.config import ConfigError, one_of
from sparsity.data.corpora import CORPORA, PythonDocs
from sparsity.data.mock import MockText
from sparsity.data.pipeline import TextSource, Windows
from sparsity.data.vocabularies import VOCABULARIES, Bytes


@dataclasses.dataclass(frozen=True, kw_only=True)
class NextTokens(TextSource):
    """Windows of the text of a corpus that fits into memory; every token is predicted from those before it.

    A window has length + 1 tokens: all but the last are read, all but the first are targets. Documents are strung
    together as they are, without a token between them. The source `text` is the same of bytes without an offset.

    Attributes:
      corpus: where the text comes from, by name.
      vocabulary: text to tokens, by name.
      length: tokens that are read.
      stride: training windows start at every `stride`-th token; None: at every `length`-th, as those of other splits.
    """

    corpus: Any = one_of(CORPORA, PythonDocs())
    vocabulary: Any = one_of(VOCABULARIES, Bytes())
    length: int = 128
    stride: int | None = None

    def __post_init__(self):
        for field in ("length", "stride"):
            if (value := getattr(self, field)) is not None and value < 1:
                raise ValueError(f"{field}: must be at least 1, got {value}")

    @property
    def classes(self) -> int:
        """Rows of the vocabulary's embedding."""
        return self.vocabulary.classes

    def load(self, split: str) -> Windows:
        """The windows of the named split. Raises ConfigError if there is none, or less text than one window."""
        documents = [self.vocabulary.encode(text) for text in self.corpus.documents(split)]
        text = np.concatenate([np.empty(0, np.int32), *documents])
        if len(text) <= self.length:
            raise ConfigError(f"data: the {split} split has {len(text)} tokens, and a window takes {self.length + 1}")
        stride = self.stride if split == "train" and self.stride else self.length
        return Windows(text, np.arange(0, len(text) - self.length, stride), self.length)

    def mock(self) -> MockText:
        """Random tokens in sequences as long."""
        return MockText(self.length, self.classes)
