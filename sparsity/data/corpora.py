"""Corpora: documents of text by split, from inside Python or from the user's files. No download."""

from __future__ import annotations

import bz2
import dataclasses
import functools
import gzip
import itertools
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from sparsity.config import ConfigError, lookup, path_of
from sparsity.data.text import documentation, regions

SPLITS = ("train", "validation", "test")
_SHARDS = 256  # of a split, about, at most: prepared, each is a file, and a process may not hold many open
_BYTES = 32 << 20  # of a shard, at least
_LINE = 1 << 30  # bytes of a document: one that is longer is a compressed file gone wrong
_HELD_OUT = {"train": range(98), "validation": (98,), "test": (99,)}  # CRC-32 of a document, modulo 100
_OPEN = {".gz": gzip.open, ".bz2": bz2.open}


@dataclasses.dataclass(frozen=True)
class Shard:
    """Documents that are read one after the other; shards can be read apart, in other processes too.

    Attributes:
      label: what they are read from, names and sizes.
      read: () -> the documents, in order. It can be pickled.
    """

    label: str
    read: Callable[[], Iterable[str]]


class Corpus:
    """Where text comes from. A subclass has `shards` and, unless it has all of them, `splits`."""

    splits: Sequence[str] = SPLITS

    def shards(self, split: str) -> list[Shard]:
        """The documents of the named split, in order. Raises ConfigError if there is no such split."""
        raise NotImplementedError

    def documents(self, split: str) -> list[str]:
        """The documents of the named split, in memory. Raises ConfigError if there is none, or it cannot be read."""
        return [document for shard in self.shards(split) for document in shard.read()]


@dataclasses.dataclass(frozen=True)
class PythonDocs(Corpus):
    """The language reference that Python's `help()` shows, 370 kB, cut as the source `text` cuts it."""

    def shards(self, split: str) -> list[Shard]:
        """Passages that follow one another within the split. Raises ConfigError if there is no such split."""
        text = documentation().tobytes()
        regions(len(text), split)
        return [Shard(f"Python's documentation, {zlib.crc32(text):08x}", functools.partial(_cut, text, split))]


@dataclasses.dataclass(frozen=True)
class TextFiles(Corpus):
    """The user's text, UTF-8.

    Attributes:
      path: a directory with subdirectories train, validation and test, whose files of the ending .txt are a document
        each; or a directory of such files, or one file, of which eight tenths are to train on, the fifth and the
        tenth of every ten equal parts to validate and to test.
    """

    path: str

    @property
    def splits(self) -> Sequence[str]:
        """The subdirectories there are; all, if there is none."""
        path = path_of(self.path, "data.corpus.path")
        return [name for name in SPLITS if (path / name).is_dir()] or SPLITS

    def shards(self, split: str) -> list[Shard]:
        """The documents of the named split, in the order of their files' names.

        Raises:
          ConfigError: a split that does not exist, or a path without text; when read, a file that is no UTF-8.
        """
        lookup(dict.fromkeys(SPLITS), split, "split")
        path = path_of(self.path, "data.corpus.path")
        own = path / split
        where = own if any((path / name).is_dir() for name in SPLITS) else path
        files = [where] if where.is_file() else sorted(where.rglob("*.txt"))
        if not files:
            raise ConfigError(f"data.corpus.path: there is no file and no directory of .txt files at {where}")
        return _shards(files, functools.partial(_text, cut=None if where is own else split))


def _text(file: Path, cut: str | None) -> list[str]:
    """The document that a file is, or the runs of a split that is cut out of it."""
    try:
        text = file.read_text("utf-8")
    except OSError as error:
        raise ConfigError(f"data.corpus.path: {file} cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"data.corpus.path: {file} is no UTF-8 text (byte {error.start})") from error
    return [text] if cut is None else _cut(text.encode(), cut)


def _cut(text: bytes, split: str) -> list[str]:
    """The split's runs of a text; a letter that a border cuts in two is left out."""
    return [text[start:end].decode(errors="ignore") for start, end in regions(len(text), split)]


class Divided(Corpus):
    """What corpora share that come in splits of their own, or in none.

    Where there are none, or train alone, two documents of a hundred are held out, one to validate and one to test:
    those whose CRC-32 modulo 100 is 98 and 99. It is the text that decides, so equal documents share a split.
    A subclass has `path`, and `own`, its splits.
    """

    path: str
    own: Sequence[str]

    @property
    def splits(self) -> Sequence[str]:
        """Its own, or all of them if some are held out."""
        return SPLITS if self._held_out else [name for name in SPLITS if name in self.own]

    @property
    def _held_out(self) -> bool:
        return set(self.own) <= {"train"}

    def _stored(self, split: str) -> str:
        """The split of its own that the named one is read from."""
        lookup(dict.fromkeys(SPLITS), split, "split")
        if split not in self.splits:
            raise ConfigError(f"{self.path}: there is no {split} split, only {', '.join(self.splits)}")
        return "train" if self._held_out else split


def _of_split(read: Callable[[Any], Iterable[str]], split: str | None, piece: Any) -> Iterator[str]:
    """Those of the documents in a piece that fall to a split; None: all."""
    chosen = split and _HELD_OUT[split]
    return (text for text in read(piece) if chosen is None or zlib.crc32(text.encode()) % 100 in chosen)


@dataclasses.dataclass(frozen=True)
class RecordFiles(Divided):
    """Base of files of many documents each. A subclass has `names`, what its files are called, and `read`.

    Attributes:
      path: a directory of such files, at any depth, or one of them. A file's split is the word train, validation or
        test in its name, or in those of the directories below `path`: as in c4-train.00000-of-01024.json.gz.
      field: the one that has the text.
    """

    path: str
    field: str = "text"

    names: ClassVar[str]

    @functools.cached_property
    def _files(self) -> dict[str, list[Path]]:
        """The files of each split, in the order of their names. Raises ConfigError if one has no split, or all none."""
        path, found = path_of(self.path, "data.corpus.path"), {}
        files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if re.fullmatch(self.names, p.name))
        for file in files:
            name = file.name if file == path else str(file.relative_to(path))
            words = re.findall(r"(?<![a-z])(train|validation|test)(?![a-z])", name)
            found.setdefault(words[-1] if words else None, []).append(file)
        if not found:
            raise ConfigError(f"{path}: there is no file and no directory of files called {self.names}")
        if None in found and len(found) > 1:
            raise ConfigError(f"{found[None][0]}: its name has no split, and others have one")
        return {name or "train": files for name, files in found.items()}

    @property
    def own(self) -> Sequence[str]:
        """Those that its files' names say."""
        return list(self._files)

    def shards(self, split: str) -> list[Shard]:
        """The documents of the named split, in the order of their files' names.

        Raises:
          ConfigError: a split that does not exist, or a path without such files; when read, a document that is none:
            the message has its file and line.
        """
        files = self._files[self._stored(split)]
        read = functools.partial(type(self).read, field=self.field)
        return _shards(files, functools.partial(_of_split, read, split if self._held_out else None))


@dataclasses.dataclass(frozen=True)
class JSONLines(RecordFiles):
    """A JSON object a line, plain or compressed: C4 (allenai/c4), and Wikipedia as WikiExtractor's --json writes it."""

    names: ClassVar[str] = r".*\.jsonl?(\.gz|\.bz2)?|wiki_\d+(\.bz2)?"

    @staticmethod
    def read(file: Path, field: str) -> Iterator[str]:
        """The documents of one file. Raises ConfigError that names the line."""
        number = 0
        try:
            with _OPEN.get(file.suffix, open)(file, "rb") as lines:
                for line in iter(lambda: lines.readline(_LINE), b""):
                    number += 1
                    if len(line) == _LINE:
                        raise ValueError(f"it has {_LINE} bytes, or more")
                    if line.strip():
                        yield _of_line(line, field)
        except (OSError, EOFError, ValueError, RecursionError, zlib.error) as error:
            # Else a compressed file is damaged, or cut short.
            where = "" if isinstance(error, (ValueError, RecursionError)) else "after "
            raise ConfigError(f"{file}: {where}line {number}: {error}") from error


def _of_line(line: bytes, field: str) -> str:
    record = json.loads(line)
    if not isinstance(record, dict) or not isinstance(record.get(field), str):
        raise ValueError(f'no object with a text called "{field}"')
    record[field].encode()  # JSON can write halves of surrogate pairs, which are no text
    return record[field]


@dataclasses.dataclass(frozen=True)
class Parquet(RecordFiles):
    """Parquet files, such as those of wikimedia/wikipedia; pyarrow, which reads them, comes with TFDS."""

    names: ClassVar[str] = r".*\.parquet"

    @staticmethod
    def read(file: Path, field: str) -> Iterator[str]:
        """The documents of one file. Raises ConfigError that names the row."""
        import pyarrow  # heavy: only where it is used
        from pyarrow import parquet

        number = 0
        try:
            with parquet.ParquetFile(file) as table:
                if field not in table.schema_arrow.names:
                    raise ValueError(f'no column "{field}", only {", ".join(table.schema_arrow.names)}')
                for batch in table.iter_batches(1024, columns=[field]):
                    for text in batch.column(0).to_pylist():
                        number += 1
                        if not isinstance(text, str):
                            raise ValueError("no text")
                        yield text
        except (OSError, ValueError, pyarrow.ArrowException) as error:
            raise ConfigError(f"{file}: row {number}: {error}") from error


@dataclasses.dataclass(frozen=True)
class TFDS(Divided):
    """Text that TFDS has prepared in the array_record format, such as c4/en, read without tensorflow.

    Attributes:
      path: the directory of a version, with dataset_info.json: .../wikipedia/20230601.simple/1.0.0.
      field: the feature that has the text.
    """

    path: str
    field: str = "text"

    @functools.cached_property
    def _builder(self):
        import tensorflow_datasets as tfds  # half a second to import: only where it is used

        path = path_of(self.path, "data.corpus.path")
        if not (path / "dataset_info.json").is_file():
            raise ConfigError(f"{path}: holds no dataset of TFDS (no dataset_info.json)")
        builder = tfds.builder_from_directory(path)
        if builder.info.file_format.value != "array_record":
            raise ConfigError(f"{path}: is in the {builder.info.file_format.value} format, and not in array_record")
        if self.field not in builder.info.features:
            raise ConfigError(f'{path}: has no feature "{self.field}", only {", ".join(sorted(builder.info.features))}')
        return builder

    @property
    def own(self) -> Sequence[str]:
        """Those that TFDS has; others than train, validation and test are left alone."""
        return [name for name in self._builder.info.splits if name in SPLITS]

    def shards(self, split: str) -> list[Shard]:
        """The documents of the named split, in TFDS's order.

        Raises:
          ConfigError: a split that does not exist, or a path without such a dataset.
        """
        stored = self._stored(split)
        info = self._builder.info.splits[stored]
        ends = list(itertools.accumulate(info.shard_lengths))
        sizes = [int(info.num_bytes) * n // max(info.num_examples, 1) for n in info.shard_lengths]
        read = functools.partial(_tfds, path_of(self.path, "data.corpus.path"), self.field)
        read = functools.partial(_of_split, read, split if self._held_out else None)
        pieces = (f"{stored}[{ends[part[0]] - info.shard_lengths[part[0]]}:{ends[part[-1]]}]" for part in _parts(sizes))
        return [Shard(f"{self._builder.info.full_name} {piece}", functools.partial(read, piece)) for piece in pieces]


def _tfds(path: Path, field: str, piece: str) -> Iterator[str]:
    import tensorflow_datasets as tfds

    return (example[field].decode() for example in tfds.builder_from_directory(path).as_data_source(piece))


def _shards(files: Sequence[Path], read: Callable[[Path], Iterable[str]]) -> list[Shard]:
    """Files as shards, small ones together."""
    sizes = [file.stat().st_size for file in files]
    shards = []
    for part in _parts(sizes):
        label = ", ".join(f"{files[i]} of {sizes[i]} bytes" for i in part)
        shards.append(Shard(label, functools.partial(_chained, read, [files[i] for i in part])))
    return shards


def _chained(read: Callable[[Path], Iterable[str]], files: Sequence[Path]) -> Iterator[str]:
    return itertools.chain.from_iterable(map(read, files))


def _parts(sizes: Sequence[int]) -> Iterator[list[int]]:
    """Which of the pieces of these sizes make up a shard."""
    part, size, least = [], 0, max(_BYTES, sum(sizes) // _SHARDS)
    for i, one in enumerate(sizes):
        part, size = [*part, i], size + one
        if size >= least or i == len(sizes) - 1:
            yield part
            part, size = [], 0


CORPORA = {"python_docs": PythonDocs, "files": TextFiles, "json": JSONLines, "parquet": Parquet, "tfds": TFDS}
