"""Text that `launch.prepare` has prepared: rows of tokens in ArrayRecord files, read one by one as they are asked for.

A directory of it holds `prepared.json`, which says what is in it, and the files of each split. A record is a row, as
many tokens as every other, little-endian unsigned integers. Rows lie in memory only while they are in use; the places
of a file's rows stay there once it has been read from, 14 to 20 bytes a row (array_record 0.8.6).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sparsity.config import ConfigError, build, lookup
from sparsity.data.corpora import SPLITS
from sparsity.data.span_corruption import CorruptedText, Rows

CONTENTS = "prepared.json"


@dataclasses.dataclass(frozen=True)
class Counts:
    """What is in a split, or in a part of it.

    Attributes:
      documents: that were read.
      tokens: of the documents, those left over at the end of each file among them.
      rows: of each file.
    """

    documents: int
    tokens: int
    rows: tuple[int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contents:
    """What `prepared.json` says.

    Attributes:
      corpus: what was prepared, to be read by people.
      vocabulary: the identity of the vocabulary.
      row: tokens of a row.
      dtype: of a token, as numpy writes it.
      train, validation, test: what is in each split; None: it does not exist.
    """

    corpus: str
    vocabulary: str
    row: int
    dtype: str
    train: Counts | None = None
    validation: Counts | None = None
    test: Counts | None = None

    @property
    def splits(self) -> dict[str, Counts]:
        """Those that exist, by name."""
        return {name: getattr(self, name) for name in SPLITS if getattr(self, name) is not None}


def file_name(split: str, i: int, n: int) -> str:
    """Of the i-th of a split's n files."""
    return f"{split}-{i:05d}-of-{n:05d}.array_record"


def read_contents(path: Path) -> Contents:
    """What is in a directory. Raises ConfigError if nothing has been prepared there, or not to its end."""
    file = path / CONTENTS
    if not file.is_file():
        raise ConfigError(
            f"data.path: {path} holds no prepared text (no {CONTENTS}); python -m launch.prepare makes it"
        )
    try:
        return build(Contents, json.loads(file.read_text()), CONTENTS)
    except ValueError as error:
        raise ConfigError(f"data.path: {file} cannot be read: {error}") from error


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreparedText(CorruptedText):
    """Span corruption of prepared text of any size.

    Attributes:
      path: the directory that `launch.prepare` wrote.
      evaluated: rows of a split that evaluators see, at most, from all parts of it alike; T5X evaluates on 20 batches
        of 256.
    """

    path: str
    evaluated: int = 5120

    def __post_init__(self):
        super().__post_init__()
        if self.evaluated < 1:
            raise ValueError(f"evaluated: must be at least 1, got {self.evaluated}")

    def load(self, split: str) -> Rows:
        """The rows of the named split.

        Raises:
          ConfigError: a split that does not exist, or text that is missing, incomplete, or prepared for another
            vocabulary or another length.
        """
        lookup(dict.fromkeys(SPLITS), split, "split")
        path = Path(self.path).expanduser()
        contents = read_contents(path)
        if contents.vocabulary != self.vocabulary.identity:
            asked = f"{self.vocabulary.identity} is asked for (data.vocabulary)"
            raise ConfigError(f"data.path: {path} was prepared with the vocabulary {contents.vocabulary}, and {asked}")
        if contents.row != self.text_length:
            needed = f"{self.length} inputs are made of {self.text_length} (data.length, data.corruption)"
            raise ConfigError(f"data.path: {path} has rows of {contents.row} tokens, and {needed}")
        if split not in contents.splits:
            raise ConfigError(f"data.path: {path} has no {split} split, only {', '.join(contents.splits)}")
        rows = contents.splits[split].rows
        files = {path / file_name(split, i, len(rows)): n for i, n in enumerate(rows)}
        for file in files:
            if not file.is_file():
                raise ConfigError(f"data.path: {file} is missing")
        return Rows(self, StoredRows(files, contents.dtype), SPLITS.index(split), split == "train", self.evaluated)


class StoredRows(Sequence):
    """The rows of ArrayRecord files, one text each, int32; any thread may read them.

    Args:
      files: rows of each file, in order.
      dtype: of their tokens.
    """

    def __init__(self, files: dict[Path, int], dtype: str):
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        # With their numbers of rows, files are opened when they are read first.
        self._records = ArrayRecordDataSource([f"{file}[0:{rows}]" for file, rows in files.items() if rows])
        self._dtype = np.dtype(dtype)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, i: int) -> tuple[np.ndarray]:
        return (np.frombuffer(self._records[int(i)], self._dtype).astype(np.int32),)
