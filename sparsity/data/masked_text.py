"""Masked tokens, the task BERT is trained on (Devlin et al. 2019, Sec. 3.1): say what stood there.

And its other task, if asked for: say whether the second of two texts follows the first.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import numpy as np

from sparsity.config import ConfigError, later, lookup, one_of
from sparsity.data.corpora import CORPORA, SPLITS, PythonDocs
from sparsity.data.mock import MockText
from sparsity.data.pipeline import Batch
from sparsity.data.span_corruption import MockRows, Rows
from sparsity.data.vocabularies import VOCABULARIES, Bytes


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskedText:
    """Texts of a corpus that fits into memory, some of their tokens selected anew whenever they are trained on.

    An example has `tokens` [length] as the model reads them, `targets` [length], those that stood there, and
    `target_segments` [length], 1 where a token was selected: the loss is that of these alone. Of the selected tokens
    `masked` are replaced by the vocabulary's first sentinel, `changed` by a token drawn uniformly, the rest is left.

    With `next_sentence` an example is two texts between marks, [CLS] A [SEP] B [SEP], which are never selected, and has
    `segments` [length], 0 until the first [SEP] and 1 after it, and `next_sentence`, 0 or 1. In half of the examples B
    follows A, 0; in the others it does not, 1: it starts anywhere in the split where it does not overlap the text that
    A is cut from. A has any number of tokens, all as likely, where Devlin et al. 2019 count sentences; what follows may
    be of the next document. Without `next_sentence` there are no marks, and one text.

    Attributes:
      corpus: where the text comes from, by name; its documents are strung together.
      vocabulary: text to tokens, by name.
      length: tokens of an example.
      stride: training examples start at every `stride`-th token; None: they do not overlap.
      selected, masked, changed: shares, of the tokens (marks do not count) and of those selected.
      next_sentence: two texts, which may follow one another.
    """

    corpus: Any = one_of(CORPORA, PythonDocs())
    vocabulary: Any = one_of(VOCABULARIES, Bytes())
    length: int = 128
    stride: int | None = None
    selected: float = 0.15
    masked: float = 0.8
    changed: float = 0.1
    next_sentence: bool = later(False)

    augments: ClassVar[bool] = True

    def __post_init__(self):
        if self.length < (least := 1 + 4 * self.next_sentence):
            raise ValueError(f"length: must be at least {least}, got {self.length}")
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
        """Tokens of a text that fills an example, with `next_sentence` beside its three marks."""
        return self.length - 3 * self.next_sentence

    @property
    def count(self) -> int:
        """Tokens selected of an example: at least one."""
        return max(round(self.selected * self.text_length), 1)

    @property
    def inputs(self) -> Mapping[str, jax.ShapeDtypeStruct]:
        """`tokens` [length], int32; with `next_sentence` also `segments`."""
        return _inputs(self.length, self.next_sentence)

    def load(self, split: str) -> Rows:
        """The texts of the named split.

        Raises:
          ConfigError: there is no such split, or less text than one (of pairs: than three), or the vocabulary lacks a
            token to mask with or the marks of pairs.
        """
        if self.vocabulary.sentinels < 1:
            raise ConfigError("data.vocabulary: has no token to mask others with")
        documents = [self.vocabulary.encode(text) for text in self.corpus.documents(split)]
        text = np.concatenate([np.empty(0, np.int32), *documents])
        size = self.text_length
        stride = self.stride if split == "train" and self.stride else size
        starts = range(0, len(text) - size + 1, stride)
        texts = [(text[start : start + size],) for start in starts]
        if not texts:
            raise ConfigError(f"data: the {split} split has fewer tokens than the {size} of an example")
        if not self.next_sentence:
            return Rows(self, texts, SPLITS.index(split), anew=split == "train")
        if len(text) < 3 * size:  # or there might be no other place for a text
            raise ConfigError(f"data: the {split} split has {len(text)} tokens, too few for pairs of {size} of them")
        pair = {"text": text, "starts": starts, "marks": self.vocabulary.marks}
        return Pairs(self, texts, SPLITS.index(split), anew=split == "train", **pair)

    def augment(self, example: Batch, rng: np.random.Generator) -> Batch:
        """The text with some tokens selected, by `rng` alone."""
        targets, more = example["tokens"], {}
        where = np.arange(len(targets))
        if self.next_sentence:
            targets, where, more = self._pair(example, rng)
        places = where[rng.choice(len(where), self.count, replace=False)]
        fate = rng.random(self.count)
        drawn = rng.integers(*self.vocabulary.words, self.count)
        kept = np.where(fate < self.masked + self.changed, drawn, targets[places])
        tokens, selected = targets.copy(), np.zeros_like(targets)
        tokens[places], selected[places] = np.where(fate < self.masked, self.vocabulary.sentinel, kept), 1
        return {"tokens": tokens, "targets": targets, "target_segments": selected} | more

    def _pair(self, example: Batch, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, Batch]:
        """(tokens [length], places of text among them, segments and whether the second text does not follow)."""
        (first, end), size = example["marks"], self.text_length
        cut = int(rng.integers(1, size))
        a, b = np.split(example["tokens"], [cut])
        drawn = bool(rng.random() < 0.5)
        if drawn:
            b = _elsewhere(example["text"], int(example["start"]), size, len(b), rng)
        tokens = np.concatenate([[first], a, [end], b, [end]]).astype(np.int32)
        where = np.delete(np.arange(self.length), [0, cut + 1, self.length - 1])
        segments = np.repeat(np.int32([0, 1]), [cut + 2, size - cut + 1])
        return tokens, where, {"segments": segments, "next_sentence": np.int32(drawn)}

    def model_input(self, arrays: Batch) -> Batch:
        """The tokens as they are."""
        return arrays

    def mock(self) -> MockText:
        """Random tokens in sequences as long, with `next_sentence` of two texts."""
        return (MockPairs if self.next_sentence else MockText)(self.length, self.classes)


def _inputs(length: int, pairs: bool) -> dict[str, jax.ShapeDtypeStruct]:
    names = ("tokens", "segments") if pairs else ("tokens",)
    return {name: jax.ShapeDtypeStruct((length,), np.int32) for name in names}


def _elsewhere(text: np.ndarray, start: int, size: int, length: int, rng: np.random.Generator) -> np.ndarray:
    """`length` tokens of `text` that overlap none of the `size` ones from `start` on; all places are as likely."""
    before = max(start - length + 1, 0)
    after = max(len(text) - length - (start + size) + 1, 0)
    place = int(rng.integers(before + after))
    place += 0 if place < before else start + size - before
    return text[place : place + length]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pairs(Rows):
    """Rows whose text is cut in two, the second part of which may be of another place.

    Attributes:
      text: the tokens of the split.
      starts: of each row, where its text starts there.
      marks: the tokens before the texts and after each.
    """

    text: np.ndarray
    starts: Sequence[int]
    marks: tuple[int, int]

    def _whole(self, i) -> Batch:
        return {"tokens": self.texts[i][0], "text": self.text, "start": self.starts[i], "marks": self.marks}


@dataclasses.dataclass(frozen=True)
class MockPairs(MockText):
    """Sequences of independent uniform tokens, segments and labels: nothing can be learnt from them."""

    @property
    def inputs(self) -> Mapping[str, jax.ShapeDtypeStruct]:
        """`tokens` and `segments` [length], int32."""
        return _inputs(self.length, pairs=True)

    def load(self, split: str) -> MockRows:
        """The named split, always the same. Raises ConfigError if there is no such split."""
        rng = np.random.default_rng(lookup({name: i for i, name in enumerate(SPLITS)}, split, "split"))
        draw = lambda below, *sizes: rng.integers(0, below, (self.examples, *sizes)).astype(np.int32)
        rows = {name: draw(self.classes, self.length) for name in ("tokens", "targets")}
        rows |= {"segments": draw(2, self.length), "target_segments": np.ones_like(rows["tokens"])}
        return MockRows(rows | {"next_sentence": draw(2)})
