"""Documents come from the user's files in the order said, each in one split, and a bad one is named."""

import bz2
import gzip
import json
import pickle
import sys
import zlib

import pyarrow
import pytest
import tensorflow_datasets as tfds
from pyarrow import parquet

from sparsity.config import ConfigError
from sparsity.data import corpora
from sparsity.data.corpora import SPLITS, TFDS, JSONLines, Parquet, PythonDocs, TextFiles
from tests.hostile import changed, refusal

OPEN = {".gz": gzip.open, ".bz2": bz2.open}


def documents(n, name="document"):
    return [f"{name} {i}: " + "é, words. " * (i % 7) for i in range(n)]


def write_json(file, texts, field="text"):
    file.parent.mkdir(parents=True, exist_ok=True)
    with OPEN.get(file.suffix, open)(file, "wt", encoding="utf-8") as lines:
        lines.writelines(json.dumps({field: text, "url": "u"}, ensure_ascii=False) + "\n" for text in texts)


def write_c4(folder, shards=3, each=10):
    """As allenai/c4 lies: returns the documents of its splits, in order."""
    train = [documents(each, f"shard {i},") for i in range(shards)]
    for i, texts in enumerate(train):
        write_json(folder / "en" / f"c4-train.{i:05d}-of-{shards:05d}.json.gz", texts)
    validation = documents(each, "held out")
    write_json(folder / "en" / "c4-validation.00000-of-00001.json.gz", validation)
    return {"train": [text for texts in train for text in texts], "validation": validation}


def write_tfds(folder, splits, file_format="array_record"):
    """A dataset with C4's text feature, written by TFDS without tensorflow."""
    with tfds.core.registered.skip_registration():

        class Tiny(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version("1.0.0")

            def _info(self):
                features = {"text": tfds.features.Text(), "url": tfds.features.Text()}
                return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

            def _split_generators(self, manager):
                return {split: self._generate_examples(texts) for split, texts in splits.items()}

            def _generate_examples(self, texts):
                yield from ((i, {"text": text, "url": "u"}) for i, text in enumerate(texts))

    Tiny(data_dir=folder, file_format=file_format).download_and_prepare()
    return folder / "tiny" / "1.0.0"


def test_c4_has_its_own_splits_and_its_documents_stand_in_the_order_of_files_and_lines(tmp_path):
    written = write_c4(tmp_path)
    corpus = JSONLines(str(tmp_path))
    assert corpus.splits == ["train", "validation"]
    assert {split: corpus.documents(split) for split in corpus.splits} == written
    with pytest.raises(ConfigError, match=r"there is no test split, only train, validation$"):
        corpus.documents("test")
    with pytest.raises(ConfigError, match='unknown split "tran"; did you mean "train"'):
        corpus.documents("tran")


def test_one_file_is_read_alone(tmp_path):
    written = write_c4(tmp_path)
    file = tmp_path / "en" / "c4-validation.00000-of-00001.json.gz"
    assert JSONLines(str(file)).documents("validation") == written["validation"]


@pytest.mark.parametrize("name", ["AA/wiki_00", "AA/wiki_00.bz2", "a.jsonl", "a.json.gz", "train/a.json"])
def test_of_files_without_splits_two_hundredths_are_held_out_by_their_text(tmp_path, name):
    texts = documents(1000)
    write_json(tmp_path / name, [*texts, texts[0]])
    (tmp_path / "README.md").write_text("is none of them")
    corpus = JSONLines(str(tmp_path))
    found = {split: corpus.documents(split) for split in SPLITS}
    assert corpus.splits == SPLITS
    assert sorted(text for split in SPLITS for text in found[split]) == sorted([*texts, texts[0]])
    assert found["test"] == [text for text in texts if zlib.crc32(text.encode()) % 100 == 99]
    assert all(4 <= len(found[split]) <= 20 for split in ("validation", "test"))
    assert found["train"] == [text for text in [*texts, texts[0]] if text in set(found["train"])]


def test_parquet_files_are_read_as_wikipedia_has_them(tmp_path):
    texts = documents(2500)  # more than a batch
    for i in range(2):
        table = {"id": list(range(1250)), "text": texts[1250 * i : 1250 * (i + 1)]}
        parquet.write_table(pyarrow.table(table), tmp_path / f"train-0000{i}-of-00002.parquet")
    corpus = Parquet(str(tmp_path))
    assert sorted(text for split in SPLITS for text in corpus.documents(split)) == sorted(texts)
    train = set(corpus.documents("train"))
    assert corpus.documents("train") == [text for text in texts if text in train]


def test_a_dataset_of_tfds_is_read_without_tensorflow(tmp_path):
    written = {"train": documents(50), "validation": documents(9, "held out")}
    path = write_tfds(tmp_path, written)
    corpus = TFDS(str(path))
    assert corpus.splits == ["train", "validation"]
    assert {split: sorted(corpus.documents(split)) for split in corpus.splits} == {
        split: sorted(texts) for split, texts in written.items()
    }
    stored = [example["text"].decode() for example in tfds.builder_from_directory(path).as_data_source("train")]
    assert corpus.documents("train") == stored  # in TFDS's order
    (shard,) = pickle.loads(pickle.dumps(corpus.shards("train")))
    assert list(shard.read()) == stored
    assert "tensorflow" not in sys.modules


def test_a_dataset_of_tfds_with_train_alone_is_divided(tmp_path):
    texts = documents(400)
    corpus = TFDS(str(write_tfds(tmp_path, {"train": texts})))
    found = [text for split in SPLITS for text in corpus.documents(split)]
    assert sorted(found) == sorted(texts)
    assert corpus.documents("test")


def test_small_files_share_a_shard_and_the_order_stays(tmp_path, monkeypatch):
    written = write_c4(tmp_path, shards=7)
    sizes = [file.stat().st_size for file in sorted((tmp_path / "en").glob("c4-train*"))]
    assert len(JSONLines(str(tmp_path)).shards("train")) == 1
    for least, shards in ((1, 7), (sizes[0] + 1, 4), (10**6, 1)):
        monkeypatch.setattr(corpora, "_BYTES", least)
        found = JSONLines(str(tmp_path)).shards("train")
        assert len(found) == shards
        assert [text for shard in found for text in pickle.loads(pickle.dumps(shard)).read()] == written["train"]
    monkeypatch.setattr(corpora, "_BYTES", 1)
    monkeypatch.setattr(corpora, "_SHARDS", 2)  # large files do too, if they are many
    assert 2 <= len(JSONLines(str(tmp_path)).shards("train")) <= 3


def test_the_label_of_a_shard_changes_with_the_size_of_its_files(tmp_path):
    write_c4(tmp_path)
    before = [shard.label for shard in JSONLines(str(tmp_path)).shards("train")]
    assert [shard.label for shard in JSONLines(str(tmp_path)).shards("train")] == before
    write_json(tmp_path / "en" / "c4-train.00001-of-00003.json.gz", documents(11))
    assert [shard.label for shard in JSONLines(str(tmp_path)).shards("train")] != before


def test_the_splits_of_text_files_are_the_directories_there_are(tmp_path):
    assert TextFiles(str(tmp_path)).splits == SPLITS
    for name in ("train", "test"):
        (tmp_path / name).mkdir()
        for i in (10, 9):
            (tmp_path / name / f"{i:02d}.txt").write_text(f"{name} {i}")
    corpus = TextFiles(str(tmp_path))
    assert corpus.splits == ["train", "test"]
    assert corpus.documents("test") == ["test 9", "test 10"]


@pytest.mark.parametrize("split", SPLITS)
def test_a_shard_of_pythons_documentation_can_be_read_elsewhere(split):
    (shard,) = PythonDocs().shards(split)
    assert list(pickle.loads(pickle.dumps(shard)).read()) == PythonDocs().documents(split)


GOOD = b'{"text": "one"}\n\n{"text": "two"}\n'
BAD_LINES = {
    "no JSON": (GOOD + b"{text: three}\n", "line 4: Expecting property name"),
    "another field": (GOOD + b'{"body": "three"}\n', 'line 4: no object with a text called "text"'),
    "no text": (GOOD + b'{"text": 3}\n', 'line 4: no object with a text called "text"'),
    "no object": (GOOD + b'["text"]\n', 'line 4: no object with a text called "text"'),
    "no UTF-8": (GOOD + b'{"text": "\xff"}\n', "line 4: 'utf-8' codec can't decode"),
    "nested": (GOOD + b"[" * 100_000 + b"\n", "line 4: maximum recursion depth exceeded"),
    "long": (GOOD + b'{"text": "' + bytes(3000) + b'"}', "line 4: it has 2000 bytes, or more"),
    "half a pair": (GOOD + b'{"text": "\\ud800"}\n', "line 4: 'utf-8' codec can't encode"),
}


@pytest.mark.parametrize("kind", BAD_LINES)
@pytest.mark.parametrize("ending", ["", ".gz"])
def test_a_bad_line_is_named_by_file_and_number(tmp_path, kind, ending, monkeypatch):
    content, message = BAD_LINES[kind]
    if kind == "long":
        monkeypatch.setattr(corpora, "_LINE", 2000)
    file = tmp_path / f"bad.json{ending}"
    file.write_bytes(gzip.compress(content) if ending else content)
    with pytest.raises(ConfigError) as error:
        JSONLines(str(tmp_path)).documents("train")
    assert str(error.value).startswith(f"{file}: {message}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("damage", ["cut short", "changed", "no gzip"])
def test_a_damaged_compressed_file_is_named_with_the_line_before_the_damage(tmp_path, damage):
    lines = "".join(json.dumps({"text": text}) + "\n" for text in documents(2000)).encode()
    content = bytearray(gzip.compress(lines))
    if damage == "changed":
        content[len(content) // 2] ^= 255
    content = {"cut short": content[:-100], "changed": content, "no gzip": lines}[damage]
    (tmp_path / "bad.json.gz").write_bytes(content)
    with pytest.raises(ConfigError, match=rf"^{tmp_path}/bad.json.gz: (after )?line \d+: "):
        JSONLines(str(tmp_path)).documents("train")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"text": ["a", None]}, "row 2: no text"),
        ({"body": ["a"], "id": [1]}, 'row 0: no column "text", only body, id'),
        (None, "row 0: "),
    ],
)
def test_a_bad_row_is_named_by_file_and_number(tmp_path, table, message):
    file = tmp_path / "bad.parquet"
    if table is None:
        file.write_bytes(b"is none")
    else:
        parquet.write_table(pyarrow.table(table), file)
    with pytest.raises(ConfigError) as error:
        Parquet(str(tmp_path)).documents("train")
    assert str(error.value).startswith(f"{file}: {message}")


def test_bytes_changed_anywhere_in_a_parquet_file_are_refused_by_its_name_or_give_text(tmp_path):
    file, lines = tmp_path / "a.parquet", []
    parquet.write_table(pyarrow.table({"text": documents(40)}), file)

    def read():
        assert all(isinstance(text, str) for text in Parquet(str(tmp_path)).documents("train"))

    for data in changed(file.read_bytes(), 200):
        file.write_bytes(data)
        lines.append(refusal(read))
    assert len(lines) == 200
    assert sum(line is not None for line in lines) > 100
    assert all(line.startswith(f"{file}: row ") for line in lines if line)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: JSONLines(str(path / "none")), "there is no file and no directory of files called"),
        (lambda path: JSONLines(str(path / "mixed")), r"other.json: its name has no split, and others have one$"),
        (lambda path: TFDS(str(path / "none")), r"none: holds no dataset of TFDS \(no dataset_info.json\)$"),
        (lambda path: TFDS(str(path / "tiny" / "1.0.0"), "body"), 'has no feature "body", only text, url$'),
        (lambda path: TFDS(str(path / "records")), r"is in the tfrecord format, and not in array_record$"),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path, make, message):
    for name in ("c4-train.json", "other.json"):
        write_json(tmp_path / "mixed" / name, ["a"])
    path = write_tfds(tmp_path, {"train": ["a"]})
    (tmp_path / "records").mkdir()
    for file in ("dataset_info.json", "features.json"):
        (tmp_path / "records" / file).write_text((path / file).read_text().replace("array_record", "tfrecord"))
    with pytest.raises(ConfigError, match=message) as error:
        make(tmp_path).documents("train")
    assert "\n" not in str(error.value)
