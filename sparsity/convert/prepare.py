"""Documents of any corpus to rows of tokens that `data.prepared` reads: once, in any number of processes.

As T5's pre-training has it (Raffel et al. 2020; `span_corruption` of the t5 library's preprocessors): documents are
tokenized, without an end, strung together in order, nothing between them, and cut into rows of equal length, which are
corrupted when they are read. Three things differ. T5 strings 128 documents together, and keeps the short row at the end
of each 128; here it is all documents of a shard (a file, or small files together), and the tokens after its last whole
row are left out, and counted. T5 takes, at random, 65,536 tokens of a longer document; here it is whole. T5 reads the
documents in random order; here they stand in the order of the corpus, and it is the rows that are shuffled.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import fcntl
import hashlib
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from sparsity.config import ConfigError, build, differences, one_of, path_of, to_dict
from sparsity.data.corpora import CORPORA, Shard
from sparsity.data.prepared import CONTENTS, Contents, Counts, file_name
from sparsity.data.vocabularies import VOCABULARIES, Bytes, Vocabulary
from sparsity.writer import Progress, read_records, write_json

JOURNAL = "journal.jsonl"


@dataclasses.dataclass(frozen=True)
class Preparation:
    """What is prepared, and how.

    Attributes:
      corpus: where the text comes from, by name.
      vocabulary: text to tokens, by name.
      row: tokens of a row; 568 make T5's 512 inputs and 114 targets.
    """

    corpus: Any = one_of(CORPORA)
    vocabulary: Any = one_of(VOCABULARIES, Bytes())
    row: int = 568

    def __post_init__(self):
        if self.row < 2:
            raise ValueError(f"row: at least 2 tokens can be corrupted, got {self.row}")


@dataclasses.dataclass(frozen=True)
class Job:
    """A shard to prepare: the i-th of the n of its split."""

    split: str
    i: int
    n: int
    shard: Shard

    @property
    def key(self) -> str:
        """If it is the same, so are the rows of the same preparation."""
        return f"{file_name(self.split, self.i, self.n)} {hashlib.sha256(self.shard.label.encode()).hexdigest()}"


def prepare(preparation: Preparation, out: str | Path, workers: int = 1, progress: Progress | None = None) -> Contents:
    """Writes every split of the corpus to the directory `out`; the files do not depend on the number of `workers`.

    Until all is done they stand in `<out>.partial`, with a journal of the shards that are done: the same call goes on
    from there, and does again those whose files have another size by then. At the end `out` appears, whole.

    Raises:
      ConfigError: something is at `out` already, a document cannot be read, there is no text for a row to train on, or
        `<out>.partial` is being written, or belongs to another preparation.
    """
    out, progress = path_of(out, "--out"), progress or Progress()
    if out.exists():
        raise ConfigError(f"{out}: exists already, and nothing is overwritten")
    corpus, partial = preparation.corpus, out.with_name(f"{out.name}.partial")
    plan = to_dict(preparation) | {"vocabulary": preparation.vocabulary.identity}
    shards = {split: corpus.shards(split) for split in corpus.splits}
    jobs = [Job(split, i, len(of), shard) for split, of in shards.items() for i, shard in enumerate(of)]
    keys = {split: [job.key for job in jobs if job.split == split] for split in shards}
    try:
        partial.mkdir(parents=True, exist_ok=True)
        journal = open(partial / JOURNAL, "a", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{partial}: cannot be written ({error.strerror})") from error
    with journal:
        before = _resumed(journal, plan, partial)
        done = {job.key: before[job.key] for job in jobs if job.key in before}
        progress.start(out.name, len(done), len(jobs), "shard")
        try:
            left = [job for job in jobs if job.key not in done]
            with contextlib.closing(_each(left, preparation, partial, workers)) as results:
                for job, counts in results:
                    done[job.key] = counts
                    _append(journal, {"key": job.key} | dataclasses.asdict(counts))
                    progress.show(tokens=f"{sum(counts.tokens for counts in done.values()):,}")
                    progress.update(len(done))
        finally:
            progress.stop()
        contents = _contents(preparation, {split: [done[key] for key in of] for split, of in keys.items()})
        for file in partial.glob("*.array_record"):  # of shards that were cut differently when they were prepared
            if file.name not in {file_name(job.split, job.i, job.n) for job in jobs}:
                file.unlink()
        write_json(partial / CONTENTS, to_dict(contents))
        os.rename(partial, out)
        (out / JOURNAL).unlink()
    return contents


def _contents(preparation: Preparation, found: dict[str, list[Counts]]) -> Contents:
    """What has been prepared, from the counts of each split's shards. Raises ConfigError if no row is to train on."""
    joined = {
        split: Counts(
            sum(one.documents for one in counts),
            sum(one.tokens for one in counts),
            tuple(rows for one in counts for rows in one.rows),
        )
        for split, counts in found.items()
    }
    for split, counts in joined.items():
        if split == "train" and not any(counts.rows):
            raise ConfigError(f"the train split has {counts.tokens} tokens, fewer than the {preparation.row} of a row")
    return Contents(
        corpus=" ".join(map(str, to_dict(preparation)["corpus"].values())),
        vocabulary=preparation.vocabulary.identity,
        row=preparation.row,
        dtype=_dtype(preparation.vocabulary),
        **{split: counts for split, counts in joined.items() if any(counts.rows)},
    )


def _resumed(journal: TextIO, plan: dict[str, Any], partial: Path) -> dict[str, Counts]:
    """What is done already, by key; the journal is this process's from now on. Raises ConfigError."""
    try:
        fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ConfigError(f"{partial}: is being written by another process") from None
    records = read_records(partial / JOURNAL)
    if not records:
        _append(journal, plan)
        return {}
    first, *rest = records
    if changed := differences(first, plan):
        other = ", ".join(changed)
        raise ConfigError(
            f"{partial}: belongs to another preparation (other {other}); delete it or choose another --out"
        )
    done = {}
    for record in rest:
        with contextlib.suppress(ConfigError):  # a shard whose line is damaged is done again
            key = record.pop("key", None)
            done[key] = build(Counts, record, JOURNAL)
    return done


def _append(journal: TextIO, record: dict[str, Any]) -> None:
    # After a kill the last line may be cut short: a line break first leaves it behind, to be ignored.
    journal.write(f"\n{json.dumps(record)}\n")
    journal.flush()


def _each(jobs: list[Job], preparation: Preparation, folder: Path, workers: int) -> Iterator[tuple[Job, Counts]]:
    """Every job with its counts, when it is done."""
    of = (preparation.vocabulary, preparation.row, folder)
    if workers == 1:
        yield from ((job, write_shard(job, *of)) for job in jobs)
        return
    others = multiprocessing.active_children()
    # A fork would copy the threads of JAX.
    with concurrent.futures.ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _begin_worker) as pool:
        futures = {pool.submit(write_shard, job, *of): job for job in jobs}
        try:
            for future in concurrent.futures.as_completed(futures):
                yield futures[future], future.result()
        except BaseException:  # an interrupt too: a shard takes minutes, and is not waited for
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in multiprocessing.active_children():
                if worker not in others:
                    worker.terminate()
            raise


def _begin_worker() -> None:
    """Makes this worker end with the process that started it, and at an interrupt, without a word."""

    def watch() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=watch, daemon=True).start()


def write_shard(job: Job, vocabulary: Vocabulary, row: int, folder: Path) -> Counts:
    """Writes the rows of a shard to its file in `folder`, whole or not at all. Raises ConfigError as the shard does."""
    from array_record.python.array_record_module import ArrayRecordWriter

    file = folder / file_name(job.split, job.i, job.n)
    temporary = file.with_suffix(".tmp")
    writer = ArrayRecordWriter(str(temporary), "group_size:1")  # a record can be read without its neighbours
    documents = tokens = rows = 0
    pending = []
    try:
        for text in job.shard.read():
            pending.append(vocabulary.encode(text))
            documents, tokens = documents + 1, tokens + len(pending[-1])
            if ready := tokens // row - rows:
                joined = np.concatenate(pending)
                for one in joined[: ready * row].astype(_dtype(vocabulary)).reshape(ready, row):
                    writer.write(one.tobytes())
                pending, rows = [joined[ready * row :]], rows + ready
    finally:
        writer.close()
    with open(temporary, "rb") as written:
        os.fsync(written.fileno())
    os.replace(temporary, file)
    return Counts(documents, tokens, (rows,))


def _dtype(vocabulary: Vocabulary) -> str:
    return "<u2" if vocabulary.classes <= 1 << 16 else "<u4"
