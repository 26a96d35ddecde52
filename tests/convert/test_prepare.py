"""Preparing text: rows are the documents' tokens in order, and what is stopped looks like nothing whole."""

import fcntl
import gzip
import io
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from sparsity.config import ConfigError, build
from sparsity.convert import prepare as prepare_lib
from sparsity.convert.prepare import JOURNAL, Job, Preparation, write_shard
from sparsity.data import corpora
from sparsity.data.corpora import SPLITS, JSONLines, PythonDocs, Shard
from sparsity.data.prepared import CONTENTS, Counts, PreparedText, StoredRows, read_contents
from sparsity.data.span_corruption import SpanCorruption
from sparsity.data.vocabularies import Bytes
from sparsity.writer import Progress

ROW = 34  # of 32 inputs


def prepare(corpus, out, workers=1, row=ROW, **changes):
    return prepare_lib.prepare(Preparation(corpus=corpus, row=row, **changes), out, workers, Progress(io.StringIO()))


def write(file, texts):
    file.parent.mkdir(exist_ok=True)
    with gzip.open(file, "wt") as lines:
        lines.writelines(json.dumps({"text": text}) + "\n" for text in texts)


@pytest.fixture
def c4(tmp_path, monkeypatch):
    """Five files to train on and one to validate, a shard each, with their documents."""
    monkeypatch.setattr(corpora, "_BYTES", 1)
    texts = [[f"shard {i}, document {j}. " + "word " * (j % 60) for j in range(20)] for i in range(6)]
    for i in range(5):
        write(tmp_path / "c4" / f"c4-train.{i:05d}-of-00005.json.gz", texts[i])
    write(tmp_path / "c4" / "c4-validation.00000-of-00001.json.gz", texts[5])
    return JSONLines(str(tmp_path / "c4")), texts


def rows_of(path, split):
    rows = PreparedText(path=str(path), length=32).load(split).texts
    return np.stack([rows[i][0] for i in range(len(rows))])


def contents_of(path):
    return {file.name: file.read_bytes() for file in Path(path).iterdir()}


def test_rows_are_the_documents_tokens_in_order_but_for_the_end_of_each_shard(c4, tmp_path):
    corpus, texts = c4
    contents = prepare(corpus, tmp_path / "out")
    assert contents == read_contents(tmp_path / "out")
    expected, tokens = [], 0
    for shard in texts[:5]:
        of = Bytes().encode("".join(shard))
        expected.append(of[: len(of) // ROW * ROW].reshape(-1, ROW))
        tokens += len(of)
    np.testing.assert_array_equal(rows_of(tmp_path / "out", "train"), np.concatenate(expected))
    assert (contents.train.documents, contents.train.tokens) == (100, tokens)
    assert contents.train.rows == tuple(map(len, expected))
    assert 0 < tokens - sum(contents.train.rows) * ROW < 5 * ROW
    assert contents.validation.rows == (len(Bytes().encode("".join(texts[5]))) // ROW,)
    assert contents.test is None
    names = {f"train-{i:05d}-of-00005.array_record" for i in range(5)}
    assert set(contents_of(tmp_path / "out")) == names | {"validation-00000-of-00001.array_record", CONTENTS}
    assert {p.name for p in tmp_path.iterdir()} == {"c4", "out"}


def test_prepared_rows_are_those_of_the_corpus_in_memory_and_corrupted_alike(tmp_path):
    prepare(PythonDocs(), tmp_path / "out", row=568)
    for split in SPLITS:
        in_memory = SpanCorruption().load(split).arrays()
        prepared = PreparedText(path=str(tmp_path / "out")).load(split)
        assert len(prepared) == len(in_memory["inputs"]) > 60
        for name, array in prepared.arrays().items():
            np.testing.assert_array_equal(array, in_memory[name])


def test_the_files_do_not_depend_on_the_number_of_processes(c4, tmp_path):
    prepare(c4[0], tmp_path / "one")
    prepare(c4[0], tmp_path / "two", workers=2)
    assert contents_of(tmp_path / "one") == contents_of(tmp_path / "two")


@pytest.fixture
def written(monkeypatch):
    """The shards that are written, and where to stop: before the shard of that number."""
    real, log = prepare_lib.write_shard, {"stop": None, "shards": []}

    def write_shard(job, *args):
        if len(log["shards"]) == log["stop"]:
            raise KeyboardInterrupt
        counts = real(job, *args)
        log["shards"].append((job.split, job.i))
        return counts

    monkeypatch.setattr(prepare_lib, "write_shard", write_shard)
    return log


def test_an_interrupted_preparation_is_refused_and_goes_on_where_it_stopped(c4, tmp_path, written):
    prepare(c4[0], tmp_path / "whole")
    written |= {"stop": 2, "shards": []}
    with pytest.raises(KeyboardInterrupt):
        prepare(c4[0], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    partial = tmp_path / "out.partial"
    for path in (tmp_path / "out", partial):
        with pytest.raises(ConfigError, match=r"holds no prepared text \(no prepared.json\)"):
            PreparedText(path=str(path), length=32).load("train")
    with open(partial / JOURNAL, "a") as journal:
        journal.write('\n{"key": "train-0')  # what a kill may leave of a line
    (partial / "train-00002-of-00005.tmp").write_bytes(b"half")
    written |= {"stop": None, "shards": []}
    prepare(c4[0], tmp_path / "out")
    assert written["shards"] == [("train", 2), ("train", 3), ("train", 4), ("validation", 0)]
    assert contents_of(tmp_path / "out") == contents_of(tmp_path / "whole")
    assert not partial.exists()


def test_a_bad_document_is_named_and_once_mended_only_its_shard_is_done_again(c4, tmp_path, written):
    corpus, texts = c4
    bad = tmp_path / "c4" / "c4-train.00003-of-00005.json.gz"
    good = bad.read_bytes()
    bad.write_bytes(gzip.compress(gzip.decompress(good)[:-10]))
    with pytest.raises(ConfigError, match=rf"^{bad}: line 20: Unterminated string"):
        prepare(corpus, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    write(bad, texts[3][:-1])
    write(tmp_path / "c4" / "c4-train.00000-of-00005.json.gz", texts[0] + ["another"])
    written["shards"] = []
    prepare(corpus, tmp_path / "out")
    assert written["shards"] == [("train", 0), ("train", 3), ("train", 4), ("validation", 0)]
    prepare(corpus, tmp_path / "whole")
    assert contents_of(tmp_path / "out") == contents_of(tmp_path / "whole")


def test_shards_that_are_cut_otherwise_when_it_goes_on_leave_nothing_behind(c4, tmp_path, written, monkeypatch):
    written["stop"] = 3
    with pytest.raises(KeyboardInterrupt):
        prepare(c4[0], tmp_path / "out")
    written["stop"] = None
    monkeypatch.setattr(corpora, "_BYTES", 10**9)
    prepare(c4[0], tmp_path / "out")
    prepare(c4[0], tmp_path / "whole")
    assert contents_of(tmp_path / "out") == contents_of(tmp_path / "whole")


def test_a_worker_that_fails_ends_the_preparation_with_its_message(c4, tmp_path):
    bad = tmp_path / "c4" / "c4-train.00000-of-00005.json.gz"
    bad.write_bytes(gzip.compress(b"{"))
    with pytest.raises(ConfigError, match=rf"^{bad}: line 1: "):
        prepare(c4[0], tmp_path / "out", workers=2)
    assert not (tmp_path / "out").exists()


def test_nothing_is_overwritten(c4, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(ConfigError, match=r"out: exists already, and nothing is overwritten$"):
        prepare(c4[0], tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_directory_of_another_preparation_is_left_alone(c4, tmp_path, written):
    written["stop"] = 1
    with pytest.raises(KeyboardInterrupt):
        prepare(c4[0], tmp_path / "out")
    written["stop"] = None
    before = contents_of(tmp_path / "out.partial")
    with pytest.raises(ConfigError, match=r"out.partial: belongs to another preparation \(other row\); delete it"):
        prepare(c4[0], tmp_path / "out", row=ROW + 1)
    with open(tmp_path / "out.partial" / JOURNAL) as journal:
        fcntl.flock(journal, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match=r"out.partial: is being written by another process$"):
            prepare(c4[0], tmp_path / "out")
    assert contents_of(tmp_path / "out.partial") == before


def test_too_little_text_is_refused(tmp_path):
    write(tmp_path / "c4" / "train.json.gz", ["too little"])
    with pytest.raises(ConfigError, match=r"^the train split has 10 tokens, fewer than the 34 of a row$"):
        prepare(JSONLines(str(tmp_path / "c4")), tmp_path / "out")


def test_a_held_out_split_without_a_row_does_not_exist(tmp_path):
    write(tmp_path / "c4" / "a.json.gz", ["text enough for a row, and for a few more"] * 10)
    assert list(prepare(JSONLines(str(tmp_path / "c4")), tmp_path / "out").splits) == ["train"]


def test_where_nothing_can_be_written_is_one_line(c4, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"file/out.partial: cannot be written \(Not a directory\)$"):
        prepare(c4[0], tmp_path / "file" / "out")


def test_progress_counts_shards(c4, tmp_path):
    stream = io.StringIO()
    prepare_lib.prepare(Preparation(corpus=c4[0], row=ROW), tmp_path / "out", 1, Progress(stream, seconds=0))
    lines = stream.getvalue().splitlines()
    assert [line.split("  ")[1] for line in lines] == [f"shard {i}/6" for i in range(1, 7)]
    assert all("shards/s  ETA" in line and "tokens " in line for line in lines)


@pytest.mark.parametrize(("classes", "size"), [(1 << 16, 2), ((1 << 16) + 1, 4)])
def test_the_last_token_of_a_vocabulary_is_stored_as_it_is(tmp_path, classes, size):
    last = np.full(ROW, classes - 1, np.int32)
    vocabulary = SimpleNamespace(classes=classes, encode=lambda text: last)
    job = Job("train", 0, 1, Shard("one document", lambda: iter(["a"])))
    assert write_shard(job, vocabulary, ROW, tmp_path) == Counts(1, ROW, (1,))
    file = tmp_path / "train-00000-of-00001.array_record"
    np.testing.assert_array_equal(StoredRows({file: 1}, f"<u{size}", ROW, classes)[0][0], last)


def test_a_row_of_one_token_is_refused():
    with pytest.raises(ConfigError, match=r"row: at least 2 tokens can be corrupted, got 1$"):
        build(Preparation, {"corpus": {"name": "python_docs"}, "row": 1}, "prepare")
