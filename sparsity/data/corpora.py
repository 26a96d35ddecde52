"""Corpora: documents of English text by split, from inside Python or from the user's files. No download."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Protocol

from sparsity.config import ConfigError, lookup
from sparsity.data.text import documentation, regions

SPLITS = ("train", "validation", "test")


class Corpus(Protocol):
    """Where text comes from."""

    def documents(self, split: str) -> list[str]:
        """The documents of the named split. Raises ConfigError if there is no such split."""


@dataclasses.dataclass(frozen=True)
class PythonDocs:
    """The language reference that Python's `help()` shows, 370 kB, cut as the source `text` cuts it."""

    def documents(self, split: str) -> list[str]:
        """Passages that follow one another within the split. Raises ConfigError if there is no such split."""
        return _cut(documentation().tobytes(), split)


@dataclasses.dataclass(frozen=True)
class TextFiles:
    """The user's text, UTF-8.

    Attributes:
      path: a directory with subdirectories train, validation and test, whose files of the ending .txt are a document
        each; or a directory of such files, or one file, of which eight tenths are to train on, the fifth and the
        tenth of every ten equal parts to validate and to test.
    """

    path: str

    def documents(self, split: str) -> list[str]:
        """The documents of the named split.

        Raises:
          ConfigError: a split that does not exist, a path without text, or a file that is no UTF-8.
        """
        lookup(dict.fromkeys(SPLITS), split, "split")
        path = Path(self.path).expanduser()
        own = path / split
        where = own if any((path / name).is_dir() for name in SPLITS) else path
        files = [where] if where.is_file() else sorted(where.rglob("*.txt"))
        if not files:
            raise ConfigError(f"data.corpus.path: there is no file and no directory of .txt files at {where}")
        texts = [_read(file) for file in files]
        return texts if where is own else [part for text in texts for part in _cut(text.encode(), split)]


def _read(file: Path) -> str:
    try:
        return file.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"data.corpus.path: {file} is no UTF-8 text (byte {error.start})") from error


def _cut(text: bytes, split: str) -> list[str]:
    """The split's runs of a text; a letter that a border cuts in two is left out."""
    return [text[start:end].decode(errors="ignore") for start, end in regions(len(text), split)]


CORPORA = {"python_docs": PythonDocs, "files": TextFiles}
