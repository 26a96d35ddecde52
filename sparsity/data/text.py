"""Text as bytes: the documentation inside Python, and WikiText-103 from local files. No download.

A token is a byte, and there are 256: this repository's choice. GPT-2's own vocabulary, 50,257 tokens of byte-pair
encoding, is not here, so losses and accuracies per token are not to be compared with those of papers that use it.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import re
from collections.abc import Iterable
from typing import ClassVar, Literal

import numpy as np

from sparsity.config import ConfigError, lookup, path_of
from sparsity.data.mock import MockText
from sparsity.data.pipeline import TextSource, Windows
from sparsity.data.vocabularies import PlainBytes, Vocabulary

_BLOCKS = 40  # equal parts of a text
# Split -> runs of blocks (from, up to) of every ten. A window lies within one run, so no byte is in two splits.
_REGIONS = {"train": ((0, 4), (5, 9)), "validation": ((4, 5),), "test": ((9, 10),)}


@dataclasses.dataclass(frozen=True)
class ByteSource(TextSource):
    """Base of the sources whose tokens are bytes.

    An example is a window of length + 1 bytes: all but the last are its tokens, all but the first its targets.

    Attributes:
      length: tokens of an example.
      stride: training windows start at every `stride`-th byte. Those of the other splits start at every `length`-th,
        so that no byte is a target twice.
    """

    length: int = 128
    stride: int = 32

    classes: ClassVar[int] = PlainBytes.classes
    vocabulary: ClassVar[Vocabulary] = PlainBytes()

    def __post_init__(self):
        for field in ("length", "stride"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field}: must be at least 1, got {getattr(self, field)}")

    def mock(self) -> MockText:
        """Random tokens in sequences as long."""
        return MockText(self.length, self.classes)

    def windows(self, text: np.ndarray, runs: Iterable[tuple[int, int]], split: str) -> Windows:
        """The windows that lie within one of the `runs` (from, up to) of `text`."""
        stride = self.stride if split == "train" else self.length
        starts = [np.arange(start, end - self.length, stride) for start, end in runs]
        return Windows(text, np.concatenate(starts), self.length)


@dataclasses.dataclass(frozen=True)
class Text(ByteSource):
    """The text source: the language reference that Python's `help()` shows, 370 kB of English and code.

    Topics stand in alphabetical order. Many repeat parts of others ("if" is in "compound" again), so a paragraph is
    kept only where it comes first: else 42% of the test text's passages of 64 bytes would stand in the training text
    too, now 1% do. The text is cut into forty equal blocks; of every ten, eight are to train on (80%), the fifth is to
    validate (10%), the tenth to test (10%).

    The text is that of the running Python, and differs between versions: `sha256` and `size` say which one it is.
    """

    def __post_init__(self):
        super().__post_init__()
        block = self.size // _BLOCKS
        if self.length >= block:
            raise ValueError(f"length: must be below the {block} bytes of a block, got {self.length}")

    @property
    def size(self) -> int:
        """Bytes of the text, all splits together."""
        return len(documentation())

    @property
    def sha256(self) -> str:
        """Of the text, all splits together, in hexadecimal."""
        return hashlib.sha256(documentation()).hexdigest()

    def load(self, split: str) -> Windows:
        """The windows of the named split. Raises ConfigError if there is no such split."""
        return self.windows(documentation(), regions(self.size, split), split)


@dataclasses.dataclass(frozen=True, kw_only=True)
class WikiText(ByteSource):
    """WikiText-103 (Merity et al. 2017), 0.5 GB of Wikipedia, in its own splits; the files are the user's.

    Attributes:
      path: directory of wiki.train.raw, wiki.valid.raw and wiki.test.raw, or of those with the ending .tokens.
      variant: that ending: raw text, or words and punctuation apart with rare words replaced by <unk>.
    """

    path: str
    variant: Literal["raw", "tokens"] = "raw"

    def load(self, split: str) -> Windows:
        """The windows of the named split; bytes are read as they are asked for.

        Raises:
          ConfigError: a split that does not exist, or a file that is missing or shorter than a window.
        """
        endings = {"train": "train", "validation": "valid", "test": "test"}
        name = f"wiki.{lookup(endings, split, 'split')}.{self.variant}"
        directory = path_of(self.path, "data.path")
        needed = [f"wiki.{ending}.{self.variant}" for ending in endings.values()]
        missing = [file for file in needed if not (directory / file).is_file()]
        if missing:
            raise ConfigError(
                f"data: no {', '.join(missing)} in {directory}; nothing is downloaded: put the {self.variant} files of "
                "WikiText-103 there (data.path, data.variant)"
            )
        size = (directory / name).stat().st_size
        if size <= self.length:
            raise ConfigError(f"data: {directory / name} has {size} bytes, and a window takes {self.length + 1}")
        return self.windows(np.memmap(directory / name, np.uint8, "r"), [(0, size)], split)


def regions(size: int, split: str) -> list[tuple[int, int]]:
    """Where the named split lies in a text of `size` bytes: runs (from, up to). Raises ConfigError if there is none."""
    chosen = lookup(_REGIONS, split, "split")
    blocks = [(ten + start, ten + end) for ten in range(0, _BLOCKS, 10) for start, end in chosen]
    return [(start * size // _BLOCKS, end * size // _BLOCKS) for start, end in blocks]


@functools.cache
def documentation() -> np.ndarray:
    """The bytes of Python's topics, every paragraph once, read-only."""
    from pydoc_data.topics import topics

    paragraphs: dict[str, str] = {}
    for name in sorted(topics):
        for paragraph in re.split(r"\n\s*\n", topics[name].strip()):
            paragraphs.setdefault(" ".join(paragraph.split()), paragraph)
    return np.frombuffer("\n\n".join(paragraphs.values()).encode(), np.uint8)
