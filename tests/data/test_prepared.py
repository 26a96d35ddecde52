"""Training on prepared text: batches are functions of (seed, step), and text of another vocabulary is refused."""

import dataclasses
import hashlib
import itertools
import json

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from sparsity.config import ConfigError, build, to_dict
from sparsity.data import SOURCES
from sparsity.data.pipeline import train_batches
from sparsity.data.prepared import CONTENTS, Contents, Counts, PreparedText, file_name
from sparsity.data.span_corruption import MockSpans, fill
from sparsity.data.vocabularies import Bytes, SentencePiece
from tests.hostile import JSON, changed, refusal, with_value

BYTES = Bytes()
ROW = 34  # of 32 inputs
COUNTS = {"train": (7, 0, 16), "validation": (11,)}


def row(split, i):
    """The i-th row of a split, like no other."""
    return np.random.default_rng((split == "train", i)).integers(3, 259, ROW)


@pytest.fixture
def path(tmp_path):
    splits = {}
    for split, rows in COUNTS.items():
        numbers = iter(range(sum(rows)))
        for i, n in enumerate(rows):
            writer = ArrayRecordWriter(str(tmp_path / file_name(split, i, len(rows))), "group_size:1")
            for number in itertools.islice(numbers, n):
                writer.write(row(split, number).astype("<u2").tobytes())
            writer.close()
        splits[split] = Counts(1, sum(rows) * ROW, rows)
    contents = Contents(corpus="random", vocabulary="bytes", row=ROW, dtype="<u2", **splits)
    (tmp_path / CONTENTS).write_text(json.dumps(to_dict(contents)))
    return tmp_path


def source(where, **changes):
    return PreparedText(**{"path": str(where), "length": 32} | changes)


def batches(path, start, steps, seed=0, **changes):
    return list(itertools.islice(train_batches(source(path), 4, seed, start, **changes), steps))


def assert_equal(got, expected):
    assert len(got) == len(expected)
    for one, other in zip(got, expected, strict=True):
        assert one.keys() == other.keys() == {*source(".").inputs, "targets"}
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def texts(batches):
    return [fill(*pair, BYTES).tobytes() for b in batches for pair in zip(b["inputs"], b["targets"], strict=True)]


def test_rows_lie_in_the_order_of_their_files(path):
    for split, rows in COUNTS.items():
        loaded = source(path).load(split)
        assert len(loaded) == sum(rows)
        for i in range(len(loaded)):
            (text,) = loaded.texts[i]
            assert text.dtype == np.int32
            np.testing.assert_array_equal(text, row(split, i))


def test_every_epoch_has_every_row_once_corrupted_anew(path):
    epochs = 4 * sum(COUNTS["train"])  # batches of 4: four epochs in as many batches as there are rows
    found = texts(batches(path, 0, epochs // 4))
    n, rows = sum(COUNTS["train"]), {row("train", i).astype(np.int32).tobytes() for i in range(sum(COUNTS["train"]))}
    for epoch in range(4):
        assert set(found[epoch * n : (epoch + 1) * n]) == rows
    assert found[:n] != found[n : 2 * n]
    inputs = np.concatenate([b["inputs"] for b in batches(path, 0, epochs // 4)])
    of = {text: {inputs[i].tobytes() for i in range(len(found)) if found[i] == text} for text in rows}
    assert all(len(ways) > 1 for ways in of.values())  # of 112; all four alike would be one chance in a million


@pytest.mark.parametrize("start", [1, 5, 6, 40])
def test_resuming_gives_the_batches_of_an_uninterrupted_run(path, start):
    assert_equal(batches(path, start, 3), batches(path, 0, start + 3)[start:])


def test_batches_depend_on_the_seed_and_not_on_threads_or_processes(path):
    expected = batches(path, 0, 8, seed=5)
    for threads in (0, 1, 5):
        assert_equal(batches(path, 0, 8, seed=5, threads=threads), expected)
    halves = [batches(path, 0, 8, seed=5, rows=np.arange(first, first + 2)) for first in (0, 2)]
    joined = [
        {name: np.concatenate([half[name] for half in step]) for name in step[0]} for step in zip(*halves, strict=True)
    ]
    assert_equal(joined, expected)
    assert texts(batches(path, 0, 8, seed=6)) != texts(expected)


def test_evaluators_see_some_rows_from_all_parts_of_a_split_always_alike(path):
    whole, part = source(path).load("validation"), source(path, evaluated=3).load("validation")
    assert len(part) == len(whole) == 11
    for name, array in part.arrays().items():
        np.testing.assert_array_equal(array, whole.arrays()[name][[0, 3, 7]])
        np.testing.assert_array_equal(array[1], whole[3][name])
    assert len(source(path, evaluated=5).load("train").arrays()["inputs"]) == 5
    with pytest.raises(ValueError, match="evaluated: must be at least 1"):
        source(path, evaluated=0)


def test_files_are_opened_when_they_are_read(path):
    loaded = source(path).load("train")
    (path / file_name("train", 2, 3)).write_bytes(b"is none")
    np.testing.assert_array_equal(loaded.texts[6][0], row("train", 6))
    with pytest.raises(Exception, match=r"64KB|ArrayRecord"):
        loaded.texts[7]


def test_a_row_that_is_damaged_on_disk_is_not_read(path):
    file = path / file_name("validation", 0, 1)
    content = bytearray(file.read_bytes())
    at = content.find(b"s", 64)  # a record's chunk holds its rows after a header of 40 bytes
    content[at + 60] ^= 1
    file.write_bytes(content)
    loaded = source(path).load("validation")
    with pytest.raises(Exception, match="hash"):
        [loaded[i] for i in range(len(loaded))]


def sentencepiece(path, content):
    """A vocabulary of a file that nothing reads but its identity."""
    (path / "spiece.model").write_bytes(content)
    vocabulary = object.__new__(SentencePiece)
    for name, value in (("path", str(path / "spiece.model")), ("extra", 100), ("classes", 32_128)):
        object.__setattr__(vocabulary, name, value)
    return vocabulary


def test_text_of_another_vocabulary_is_refused_by_both_names(path):
    one, other = sentencepiece(path, b"one"), hashlib.sha256(b"other").hexdigest()
    told = rf"prepared with the vocabulary bytes, and sentencepiece {hashlib.sha256(b'one').hexdigest()} is asked for"
    with pytest.raises(ConfigError, match=told):
        source(path, vocabulary=one).load("train")
    contents = json.loads((path / CONTENTS).read_text()) | {"vocabulary": f"sentencepiece {other}"}
    (path / CONTENTS).write_text(json.dumps(contents))
    with pytest.raises(ConfigError, match=rf"the vocabulary sentencepiece {other}, and bytes is asked for"):
        source(path).load("train")
    with pytest.raises(ConfigError, match=rf"sentencepiece {other}, and sentencepiece "):
        source(path, vocabulary=one).load("train")
    assert len(source(path, vocabulary=sentencepiece(path, b"other")).load("train")) == 23
    # Sentinels are made of none of its tokens: ByT5's are free to choose.
    (path / CONTENTS).write_text(json.dumps(contents | {"vocabulary": "bytes"}))
    assert len(source(path, vocabulary=Bytes(byt5=True)).load("train")) == 23


@pytest.mark.parametrize(
    ("changes", "split", "message"),
    [
        ({"length": 64}, "train", r"has rows of 34 tokens, and 64 inputs are made of 70 \(data.length, data.corr"),
        ({}, "test", r"has no test split, only train, validation$"),
        ({}, "tset", 'unknown split "tset"; did you mean "test"'),
        (
            {"path": "none"},
            "train",
            r"none holds no prepared text \(no prepared.json\); python -m launch.prepare makes",
        ),
        ({"vocabulary": SentencePiece("none")}, "train", "data.vocabulary.path: there is no file none; nothing is"),
    ],
)
def test_what_does_not_fit_is_one_line(path, changes, split, message):
    with pytest.raises(ConfigError, match=message) as error:
        source(path, **changes).load(split)
    assert "\n" not in str(error.value)


def test_what_is_missing_or_damaged_is_one_line(path):
    file = path / file_name("train", 1, 3)
    file.unlink()
    with pytest.raises(ConfigError, match=rf"^data.path: {file} is missing$"):
        source(path).load("train")
    content = (path / CONTENTS).read_text()
    for damaged in (content[:-5], content.replace('"row"', '"rwo"')):
        (path / CONTENTS).write_text(damaged)
        with pytest.raises(ConfigError, match=rf"^data.path: {path}/{CONTENTS} cannot be read: .*$"):
            source(path).load("validation")


def test_contents_of_anything_are_some_or_refused_by_the_name_of_their_file(path):
    whole, lines = (path / CONTENTS).read_bytes(), []
    stored = json.loads(whole)
    for text in itertools.chain(
        (with_value(stored, key, value).encode() for key, value in itertools.product([*stored, "test"], JSON)),
        (
            with_value(stored, "train", with_value(stored["train"], key, value)).encode()
            for key, value in itertools.product(stored["train"], JSON)
        ),
        changed(whole, 60),
    ):
        (path / CONTENTS).write_bytes(text)
        lines.append(refusal(lambda: source(path).load("train")))
    assert sum(line is None for line in lines) < len(lines) / 4
    assert all(line.startswith("data.path: ") and str(path) in line for line in lines if line)


def test_rows_that_are_no_tokens_of_the_model_are_named(path):
    """Beyond its embedding JAX would read the last row, without a word."""
    file = path / file_name("validation", 0, 1)
    for record, what in (
        (np.full(ROW, 384, "<u2"), "has token 384, of 0..383"),
        (np.full(ROW - 1, 3, "<u2"), f"has {2 * ROW - 2} bytes, and {ROW} tokens uint16 are needed"),
    ):
        writer = ArrayRecordWriter(str(file), "group_size:1")
        for number in range(11):
            writer.write((record if number == 4 else row("validation", number).astype("<u2")).tobytes())
        writer.close()
        loaded = source(path).load("validation")
        assert len(loaded.texts[3][0]) == ROW
        with pytest.raises(ConfigError, match=rf"^data\.path: row 4 of {file} {what}$"):
            loaded.arrays()


def test_a_run_is_described_and_smoked_without_its_files():
    section = {"name": "prepared_text", "path": "none", "vocabulary": {"name": "sentencepiece", "path": "none"}}
    built = build(SOURCES[section.pop("name")], section)
    assert (built.text_length, built.target_length, built.classes, built.evaluated) == (568, 114, 32_128, 5120)
    assert isinstance(built.mock(), MockSpans)
    assert built.mock().inputs == built.inputs
    assert build(PreparedText, to_dict(built)) == built
    with pytest.raises(ConfigError, match=r"config.stride: unknown key"):
        build(PreparedText, section | {"stride": 3})
    with pytest.raises(ConfigError, match="path: required"):
        build(PreparedText, {})


def test_settings_have_no_second_place():
    assert {f.name for f in dataclasses.fields(PreparedText)} == {
        *("path", "evaluated", "vocabulary", "length", "corruption")
    }
