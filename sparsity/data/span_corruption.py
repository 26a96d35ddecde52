"""Span corruption, the task T5 is trained on (Raffel et al. 2020, Sec. 3.1.4): fill in what was taken out of a text."""

from __future__ import annotations

import dataclasses

import numpy as np

from sparsity.data.vocabularies import EOS, Vocabulary


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
        length = 2
        while self.lengths(length + 1)[0] <= inputs:
            length += 1
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
