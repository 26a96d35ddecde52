"""Span corruption, the task T5 is trained on (Raffel et al. 2020, Sec. 3.1.4): fill in what was taken out of a text."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import numpy as np

from sparsity.config import ConfigError, lookup, one_of
from sparsity.data.corpora import CORPORA, SPLITS, PythonDocs
from sparsity.data.pipeline import Batch
from sparsity.data.vocabularies import EOS, PAD, VOCABULARIES, Bytes, Vocabulary

_LONGEST = 1 << 31  # tokens of a text


@dataclasses.dataclass(frozen=True)
class Corruption:
    """How much is taken out, and how long the spans are.

    Attributes:
      density: share of the tokens that are taken out.
      mean_span: tokens of a span, on average.
    """

    density: float = 0.15
    mean_span: float = 3.0

    def __post_init__(self):
        if not 0 < self.density < 1:
            raise ValueError(f"density: must be in (0, 1), got {self.density}")
        if self.mean_span < 1:
            raise ValueError(f"mean_span: must be at least 1, got {self.mean_span}")

    def counts(self, length: int) -> tuple[int, int]:
        """(tokens taken out, spans) of a text of `length` tokens; both functions of the length alone.

        Raises:
          ValueError: fewer than two tokens: one is to be taken out and one left.

        >>> Corruption().counts(568)
        (85, 28)
        """
        if length < 2:
            raise ValueError(f"length: at least 2 tokens can be corrupted, got {length}")
        taken = min(max(round(length * self.density), 1), length - 1)
        # Every span follows a token that is left.
        return taken, min(max(round(taken / self.mean_span), 1), length - taken)

    def lengths(self, length: int) -> tuple[int, int]:
        """(inputs, targets) that a text of `length` tokens makes: one sentinel a span in both, and an end.

        >>> Corruption().lengths(568)
        (512, 114)
        """
        taken, spans = self.counts(length)
        return length - taken + spans + 1, taken + spans + 1

    def text_length(self, inputs: int) -> int:
        """Tokens of the longest text that makes no more than `inputs` inputs.

        Raises:
          ValueError: there is none.

        >>> Corruption().text_length(512)
        568
        """
        if self.lengths(2)[0] > inputs:
            raise ValueError(f"inputs: at least {self.lengths(2)[0]} are needed, got {inputs}")
        length, beyond = 2, 4
        while self.lengths(beyond)[0] <= inputs:  # a longer text never makes fewer inputs
            length, beyond = beyond, 2 * beyond
            if beyond > _LONGEST:
                raise ValueError(f"length: {inputs} inputs are those of a text of more than {_LONGEST} tokens")
        while beyond - length > 1:
            middle = (length + beyond) // 2
            length, beyond = (middle, beyond) if self.lengths(middle)[0] <= inputs else (length, middle)
        return length

    def mask(self, length: int, rng: np.random.Generator) -> np.ndarray:
        """Which of `length` tokens are taken out [length]: all ways of cutting both parts into spans are as likely.

        The first token is left and the last one taken, as in T5.
        """
        taken, spans = self.counts(length)
        runs = np.stack([_cut(length - taken, spans, rng), _cut(taken, spans, rng)], 1).reshape(-1)
        return np.repeat(np.arange(2 * spans) % 2 == 1, runs)


def _cut(items: int, parts: int, rng: np.random.Generator) -> np.ndarray:
    """Lengths of `parts` parts that `items` are cut into, none empty."""
    cuts = np.sort(rng.choice(items - 1, parts - 1, replace=False)) + 1
    return np.diff(cuts, prepend=0, append=items)


def corrupt(tokens: np.ndarray, mask: np.ndarray, vocabulary: Vocabulary) -> tuple[np.ndarray, np.ndarray]:
    """(inputs, targets) of a text [n] whose tokens in `mask` [n] are taken out.

    In the inputs a sentinel stands in the place of each span; the targets are those sentinels, each before its span.
    Both end with the end.

    Raises:
      ValueError: more spans than the vocabulary has sentinels.
    """
    starts = mask & ~np.concatenate([[False], mask[:-1]])
    spans = int(starts.sum())
    if spans > vocabulary.sentinels:
        raise ValueError(f"{spans} spans are more than the {vocabulary.sentinels} sentinels of the vocabulary")
    sentinels = vocabulary.sentinel + 1 - np.cumsum(starts)
    inputs = np.where(starts, sentinels, tokens)[~mask | starts]
    # A sentinel goes in front of every span: each start counts twice.
    targets = np.repeat(tokens[mask], 1 + starts[mask])
    targets[np.flatnonzero(starts[mask]) + np.arange(spans)] = sentinels[starts]
    end = np.asarray([EOS])
    return np.concatenate([inputs, end]).astype(np.int32), np.concatenate([targets, end]).astype(np.int32)


def fill(inputs: np.ndarray, targets: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """The text whose corruption made `inputs` and `targets`; `targets` may be a model's, of whatever quality.

    Spans that `targets` do not have stay out; what stands before its first sentinel or after its end is ignored.
    """
    spans: dict[int, list[int]] = {}
    low, at = vocabulary.sentinel - vocabulary.sentinels, None
    for token in map(int, targets):
        if token == EOS:
            break
        if low < token <= vocabulary.sentinel:
            at = spans.setdefault(token, [])
        elif at is not None:
            at.append(token)
    out: list[int] = []
    for token in map(int, inputs):
        if token == EOS:
            break
        out += spans.get(token, []) if low < token <= vocabulary.sentinel else [token]
    return np.asarray(out, np.int32)


@dataclasses.dataclass(frozen=True)
class Spans:
    """What sources of corrupted texts share: rows of `length` inputs and as many targets as these can have.

    An example is one row: `inputs` [length], `targets` [T] and `decoder_inputs` [T], the targets one place later after
    a 0, and `input_segments`, `target_segments`, which number the texts in it from 1; 0 is padding. A subclass has
    `length` and `corruption`, and `classes`.
    """

    @functools.cached_property
    def text_length(self) -> int:
        """Tokens of a text that fills a row."""
        return self.corruption.text_length(self.length)

    @functools.cached_property
    def target_length(self) -> int:
        """Targets T of a row."""
        return self.corruption.lengths(self.text_length)[1]

    @property
    def inputs(self) -> Mapping[str, jax.ShapeDtypeStruct]:
        """What a model may read, int32."""
        rows = {"inputs": self.length, "input_segments": self.length}
        rows |= dict.fromkeys(("decoder_inputs", "target_segments"), self.target_length)
        return {name: jax.ShapeDtypeStruct((n,), np.int32) for name, n in rows.items()}

    def model_input(self, arrays: Batch) -> Batch:
        """The tokens as they are."""
        return arrays


@dataclasses.dataclass(frozen=True, kw_only=True)
class CorruptedText(Spans):
    """Base of the sources of texts that are corrupted anew whenever they are trained on, and else always alike.

    A subclass has `load`, to `Rows`.

    Attributes:
      vocabulary: text to tokens, by name.
      length: inputs of a row.
      corruption: how much is taken out.
    """

    vocabulary: Any = one_of(VOCABULARIES, Bytes())
    length: int = 512
    corruption: Corruption = Corruption()

    augments: ClassVar[bool] = True

    def __post_init__(self):
        if self.corruption.counts(self.text_length)[1] > self.vocabulary.sentinels:
            raise ValueError(
                f"length: {self.length} inputs have more spans than the {self.vocabulary.sentinels} sentinels there are"
            )

    @property
    def classes(self) -> int:
        """Rows of the vocabulary's embedding."""
        return self.vocabulary.classes

    def augment(self, example: Batch, rng: np.random.Generator) -> Batch:
        """The row of texts, corrupted."""
        tokens, segments = example["tokens"], example["segments"]
        texts = (tokens[segments == n] for n in range(1, segments.max() + 1))
        pairs = [corrupt(text, self.corruption.mask(len(text), rng), self.vocabulary) for text in texts]
        inputs, targets = zip(*pairs, strict=True)
        shifted = [np.concatenate([[PAD], target[:-1]]) for target in targets]
        row = lambda parts, n: np.pad(np.concatenate(parts), (0, n - sum(map(len, parts)))).astype(np.int32)
        number = lambda parts: [np.full(len(part), i + 1) for i, part in enumerate(parts)]
        return {
            "inputs": row(inputs, self.length),
            "input_segments": row(number(inputs), self.length),
            "targets": row(targets, self.target_length),
            "decoder_inputs": row(shifted, self.target_length),
            "target_segments": row(number(targets), self.target_length),
        }

    def mock(self) -> MockSpans:
        """Random tokens in rows as long."""
        return MockSpans(length=self.length, corruption=self.corruption, classes=self.classes)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpanCorruption(CorruptedText):
    """Texts of a corpus that fits into memory.

    Attributes:
      corpus: where the text comes from, by name.
      stride: training texts start at every `stride`-th token; None: they do not overlap.
      packed: documents stay apart, cut into texts that fit, as many in a row as fit; else all documents are one text,
        cut into texts that fill a row, as T5 does it.
    """

    corpus: Any = one_of(CORPORA, PythonDocs())
    stride: int | None = None
    packed: bool = False

    def __post_init__(self):
        super().__post_init__()
        if self.stride is not None and (self.stride < 1 or self.packed):
            raise ValueError("stride: must be at least 1, and None if documents are packed")

    def load(self, split: str) -> Rows:
        """The rows of the named split. Raises ConfigError if there is none, or too little text for a row."""
        documents = [self.vocabulary.encode(text) for text in self.corpus.documents(split)]
        if self.packed:
            texts = self._pack(documents)
        else:
            text = np.concatenate([np.empty(0, np.int32), *documents])
            stride = self.stride if split == "train" and self.stride else self.text_length
            starts = range(0, len(text) - self.text_length + 1, stride)
            texts = [(text[start : start + self.text_length],) for start in starts]
        if not texts:
            raise ConfigError(f"data: the {split} split has fewer tokens than the {self.text_length} of a text")
        return Rows(self, texts, SPLITS.index(split), anew=split == "train")

    def _pack(self, documents: Sequence[np.ndarray]) -> list[tuple[np.ndarray, ...]]:
        """Rows of texts, in order: one goes into the last row if it still fits. Texts of one token are left out."""
        size, rows, left = self.text_length, [], (0, 0)
        for document in documents:
            for text in (document[start : start + size] for start in range(0, len(document), size)):
                if len(text) < 2:
                    continue
                inputs, targets = self.corruption.lengths(len(text))
                if rows and inputs <= left[0] and targets <= left[1]:
                    rows[-1].append(text)
                else:
                    rows.append([text])
                    left = (self.length, self.target_length)
                left = (left[0] - inputs, left[1] - targets)
        return [tuple(row) for row in rows]


@dataclasses.dataclass(frozen=True)
class Rows:
    """Rows of texts of one split. One by one they are corrupted already, unless `anew`; all together they always are.

    Attributes:
      source: whose rows they are.
      texts: of each row the tokens of its texts.
      seed: of their corruption.
      anew: a row is left as it is, for `source.augment` to corrupt whenever it is read.
      most: rows that `arrays` takes at most, from all parts of the split alike; None: all.
    """

    source: CorruptedText
    texts: Sequence[tuple[np.ndarray, ...]]
    seed: int
    anew: bool = False
    most: int | None = None

    def __len__(self) -> int:
        return len(self.texts)

    def __repr__(self) -> str:
        return f"Rows({len(self)}, {self.seed})"

    def __getitem__(self, i) -> Batch:
        return self._whole(i) if self.anew else self._corrupted(i)

    def arrays(self) -> Batch:
        """All rows, or `most` of them, corrupted, always alike, stacked."""
        return self._all

    @functools.cached_property
    def _all(self) -> Batch:
        taken = min(len(self), self.most or len(self))
        rows = [self._corrupted(i * len(self) // taken) for i in range(taken)]
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

    def _whole(self, i) -> Batch:
        texts, size = self.texts[i], self.source.text_length
        row = lambda parts: np.pad(np.concatenate(parts), (0, size - sum(map(len, parts)))).astype(np.int32)
        number = [np.full(len(text), n + 1) for n, text in enumerate(texts)]
        return {"tokens": row(texts), "segments": row(number)}

    def _corrupted(self, i) -> Batch:
        return self.source.augment(self._whole(i), np.random.default_rng((self.seed, int(i))))


@dataclasses.dataclass(frozen=True, kw_only=True)
class MockSpans(Spans):
    """Rows of independent uniform tokens: nothing can be learnt from them.

    Attributes:
      length: inputs of a row.
      classes: tokens are in 0..classes - 1.
      corruption: what decides the number of targets.
    """

    length: int
    classes: int
    corruption: Corruption = Corruption()

    augments: ClassVar[bool] = False

    def __post_init__(self):
        for field in ("length", "classes"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field}: must be at least 1, got {getattr(self, field)}")
        _ = self.text_length

    def load(self, split: str) -> MockRows:
        """The named split, always the same. Raises ConfigError if there is no such split."""
        rng = np.random.default_rng(lookup({name: i for i, name in enumerate(SPLITS)}, split, "split"))
        draw = lambda n: rng.integers(0, self.classes, (16, n)).astype(np.int32)
        ones = lambda n: np.ones((16, n), np.int32)
        targets = draw(self.target_length)
        rows = {"inputs": draw(self.length), "input_segments": ones(self.length), "targets": targets}
        shifted = np.pad(targets[:, :-1], ((0, 0), (1, 0)))
        return MockRows(rows | {"decoder_inputs": shifted, "target_segments": ones(self.target_length)})

    def augment(self, example: Batch, rng: np.random.Generator) -> Batch:
        """The example as it is."""
        return example

    def mock(self) -> MockSpans:
        """Itself."""
        return self


@dataclasses.dataclass(frozen=True)
class MockRows:
    """Rows in memory."""

    rows: Batch

    def __len__(self) -> int:
        return len(next(iter(self.rows.values())))

    def __getitem__(self, i) -> Batch:
        return self.take(i)

    def take(self, indices) -> Batch:
        """One row, or those of an array of indices, stacked."""
        return {name: array[indices] for name, array in self.rows.items()}

    def arrays(self) -> Batch:
        """All rows, stacked."""
        return self.rows
