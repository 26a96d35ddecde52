"""Text that `launch.prepare` has prepared: rows of tokens in ArrayRecord files, read one by one as they are asked for.

A directory of it holds `prepared.json`, which says what is in it, and the files of each split. A record is a row, as
many tokens as every other, little-endian unsigned integers. Rows lie in memory only while they are in use; the places
of a file's rows stay there once it has been read from, 14 to 20 bytes a row (array_record 0.8.6).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sparsity.config import ConfigError, build, json_of, lookup, nearest, path_of
from sparsity.data.corpora import SPLITS
from sparsity.data.span_corruption import CorruptedText, Rows

CONTENTS = "prepared.json"
DTYPES = ("<u2", "<u4")  # of tokens, as numpy writes them


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

    def __post_init__(self):
        if min(self.documents, self.tokens, *self.rows) < 0:
            raise ValueError("rows: there are no fewer than 0 documents, tokens or rows")


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

    def __post_init__(self):
        if self.row < 1:
            raise ValueError(f"row: must be at least 1, got {self.row}")
        if self.dtype not in DTYPES:
            raise ValueError(f'dtype: unknown "{self.dtype}"{nearest(self.dtype, DTYPES)}')

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
        return build(Contents, json_of(file.read_bytes(), CONTENTS), CONTENTS)
    except (ConfigError, OSError) as error:
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
        path = path_of(self.path, "data.path")
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
        if not any(rows):
            raise ConfigError(f"data.path: the {split} split of {path} has no rows")
        files = {path / file_name(split, i, len(rows)): n for i, n in enumerate(rows)}
        for file in files:
            if not file.is_file():
                raise ConfigError(f"data.path: {file} is missing")
        stored = StoredRows(files, contents.dtype, contents.row, self.vocabulary.classes)
        return Rows(self, stored, SPLITS.index(split), split == "train", self.evaluated)


class StoredRows(Sequence):
    """The rows of ArrayRecord files, one text each, int32; any thread may read them.

    Args:
      files: rows of each file, in order.
      dtype: of their tokens.
      row: tokens of each.
      classes: tokens are in 0..classes - 1.
    """

    def __init__(self, files: dict[Path, int], dtype: str, row: int, classes: int):
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        # With their numbers of rows, files are opened when they are read first.
        self._records = ArrayRecordDataSource([f"{file}[0:{rows}]" for file, rows in files.items() if rows])
        self._files, self._dtype, self._row, self._classes = files, np.dtype(dtype), row, classes

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, i: int) -> tuple[np.ndarray]:
        """Raises ConfigError, naming the file, if the row cannot be read or is not of such tokens."""
        try:
            record = self._records[int(i)]
        except IndexError:
            raise
        except Exception as error:  # the library raises nothing narrower
            raise ConfigError(f"data.path: {self._place(i)} cannot be read: {error}") from error
        if len(record) != self._row * self._dtype.itemsize:
            raise ConfigError(
                f"data.path: {self._place(i)} has {len(record)} bytes, and {self._row} tokens {self._dtype} are needed"
            )
        tokens = np.frombuffer(record, self._dtype)
        if tokens.max() >= self._classes:  # beyond the embedding JAX reads its last row without a word
            raise ConfigError(f"data.path: {self._place(i)} has token {tokens.max()}, of 0..{self._classes - 1}")
        return (tokens.astype(np.int32),)

    def _place(self, i: int) -> str:
        """What the i-th row is called."""
        for file, rows in self._files.items():
            if i < rows:
                return f"row {i} of {file}"
            i -= rows
        return f"row {i} after the last"
