import hashlib
from itertools import islice

import numpy as np
import pytest

from sparsity.config import ConfigError, build, to_dict
from sparsity.data.mock import MockText
from sparsity.data.pipeline import train_batches
from sparsity.data.text import Text, WikiText

SPLITS = ("train", "validation", "test")

# sha256 of the text -> how many bytes it has.
KNOWN = {
    "f784d6fb39bdb407417b39889b74209e5327a12c530ac010595a0cb3719c903b": 373_963,  # Python 3.11.7
    "1c9e4ab94883da88264eb990cd00fdd0f30196e707e19f7f780a3939326f0781": 374_876,  # 3.11.2
    "38ced908fdedbfaa078b6637119f3d01ffb1c3916f27ed50be4b778558e4df96": 397_720,  # 3.12.1
    "e6a1f2ba17b971f8cefbab699facd7f7af31f038fc2b3b870779b46e74d42462": 414_902,  # 3.13.0
}


def touched(source, split):
    """Which bytes of the text are in a window of the split."""
    windows = source.load(split)
    starts_and_ends = np.zeros(len(windows.text) + 1, int)
    np.add.at(starts_and_ends, windows.positions, 1)
    np.add.at(starts_and_ends, windows.positions + windows.length + 1, -1)
    return starts_and_ends.cumsum()[:-1] > 0


@pytest.mark.parametrize(("length", "stride"), [(1, 1), (128, 32), (100, 7), (9000, 5000)])
def test_no_byte_belongs_to_two_splits(length, stride):
    seen = [touched(Text(length, stride), split) for split in SPLITS]
    assert all(s.any() for s in seen)
    assert np.sum(seen, 0).max() == 1


def test_the_splits_cover_the_text_in_the_stated_shares():
    source = Text(length=1, stride=1)
    seen = [touched(source, split) for split in SPLITS]
    assert np.sum(seen, 0).min() == 1
    np.testing.assert_allclose(np.mean(seen, 1), [0.8, 0.1, 0.1], atol=1e-4)
    # Four parts of the text each, a tenth of the way apart from the next ten.
    for split in seen[1:]:
        starts = np.flatnonzero(np.diff(split.astype(int), prepend=0) == 1)
        np.testing.assert_allclose(np.diff(starts), source.size / 4, atol=2)


def test_of_the_text_of_a_known_python_the_hash_and_the_length_are_known():
    source = Text()
    if source.sha256 not in KNOWN:
        pytest.skip(f"another Python's text: {source.sha256}, {source.size} bytes")
    assert source.size == KNOWN[source.sha256]


def test_the_hash_is_that_of_the_bytes_that_are_read():
    text = Text().load("test").text
    assert hashlib.sha256(text.tobytes()).hexdigest() == Text().sha256
    assert len(text) == Text().size


def test_the_text_is_english_and_code():
    text = Text().load("train").text.tobytes().decode()
    assert text.startswith('The "assert" statement\n')
    assert text.count(" the ") > 1000
    assert text.count("def ") > 20


def test_no_paragraph_comes_twice():
    paragraphs = [" ".join(p.split()) for p in Text().load("train").text.tobytes().decode().split("\n\n")]
    assert len(set(paragraphs)) == len(paragraphs) > 2000


def test_hardly_a_passage_of_the_test_text_is_in_the_training_text():
    parts = {}
    for split in ("train", "test"):
        windows = Text(length=63, stride=1).load(split)
        text = windows.text.tobytes()
        positions = windows.positions if split == "train" else windows.positions[::3]
        parts[split] = [text[start : start + 64] for start in positions]
    known = set(parts["train"])
    # 42% with repeated paragraphs, as they stand in the topics.
    assert np.mean([passage in known for passage in parts["test"]]) < 0.03


@pytest.mark.parametrize("split", SPLITS)
def test_an_example_is_the_window_at_its_position_and_targets_come_one_later(split):
    windows = Text(length=33, stride=11).load(split)
    arrays = windows.arrays()
    assert {name: (a.shape, a.dtype) for name, a in arrays.items()} == {
        name: ((len(windows), 33), np.int32) for name in ("tokens", "targets")
    }
    text = windows.text.tobytes()
    for i in (0, 1, len(windows) // 2, len(windows) - 1):
        start = windows.positions[i]
        assert bytes(arrays["tokens"][i].tolist()) == text[start : start + 33]
        assert bytes(arrays["targets"][i].tolist()) == text[start + 1 : start + 34]
        for name in arrays:
            np.testing.assert_array_equal(windows[i][name], arrays[name][i])
            np.testing.assert_array_equal(windows.take(np.array([0, i]))[name], arrays[name][[0, i]])


def test_windows_start_every_stride_in_training_and_side_by_side_elsewhere():
    source = Text(length=100, stride=30)
    block = source.size / 40
    steps = {split: np.diff(source.load(split).positions) for split in SPLITS}
    for split, step in (("train", 30), ("validation", 100), ("test", 100)):
        inside = steps[split] < block
        assert set(steps[split][inside].tolist()) == {step}
    assert (~(steps["train"] < block)).sum() == 7  # eight runs of four blocks
    targets = [start + np.arange(1, 101) for start in source.load("test").positions]
    assert len(np.unique(targets)) == np.size(targets)  # no byte is predicted twice


def test_the_last_window_of_a_run_ends_before_its_end():
    # Blocks of 9,349 bytes and more; a window of all but one byte of a block has one or two places in it.
    block = Text().size // 40
    source = Text(length=block - 1)
    for split in ("validation", "test"):
        assert len(source.load(split)) == 4


def wikitext(tmp_path, variant="raw", **changes):
    for name, size in {"train": 50, "valid": 21, "test": 10, **changes}.items():
        (tmp_path / f"wiki.{name}.{variant}").write_bytes(bytes(range(size)))
    return WikiText(path=str(tmp_path), variant=variant, length=9, stride=4)


@pytest.mark.parametrize("variant", ["raw", "tokens"])
def test_wikitext_is_read_from_its_own_files(tmp_path, variant):
    source = wikitext(tmp_path, variant)
    starts = {split: source.load(split).arrays()["tokens"][:, 0].tolist() for split in SPLITS}
    # Windows of 10 bytes: the last of 50 starts at 40, of 21 at 9 or 11, of 10 at 0.
    assert starts == {"train": list(range(0, 41, 4)), "validation": [0, 9], "test": [0]}
    np.testing.assert_array_equal(source.load("validation").arrays()["targets"][1], range(10, 19))


def test_wikitext_of_other_files_is_not_taken_for_what_was_asked_for(tmp_path):
    wikitext(tmp_path, "tokens")
    with pytest.raises(ConfigError) as caught:
        WikiText(path=str(tmp_path)).load("validation")
    assert str(caught.value) == (
        f"data: no wiki.train.raw, wiki.valid.raw, wiki.test.raw in {tmp_path}; nothing is downloaded: "
        "put the raw files of WikiText-103 there (data.path, data.variant)"
    )


def test_wikitext_says_which_file_is_missing_or_too_short(tmp_path):
    source = wikitext(tmp_path, test=9)
    with pytest.raises(ConfigError, match=r"^data: .*wiki\.test\.raw has 9 bytes, and a window takes 10$"):
        source.load("test")
    (tmp_path / "wiki.valid.raw").unlink()
    with pytest.raises(ConfigError, match=r"^data: no wiki\.valid\.raw in "):
        source.load("train")


@pytest.mark.parametrize("start", [0, 37])
def test_the_batches_are_a_function_of_seed_and_step(start):
    source = Text(length=16, stride=999)
    whole = list(islice(train_batches(source, 8, 5, 0), start + 3))[start:]
    resumed = list(islice(train_batches(source, 8, 5, start, threads=0), 3))
    other = list(islice(train_batches(source, 8, 6, start), 3))
    for a, b, c in zip(whole, resumed, other, strict=True):
        assert {name: (x.shape, x.dtype) for name, x in a.items()} == dict.fromkeys(
            ("tokens", "targets"), ((8, 16), np.int32)
        )
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])
            assert (a[name] != c[name]).any()


def test_an_epoch_has_every_training_window_once():
    source = Text(length=64, stride=1500)  # long enough that no two are equal
    windows = source.load("train")
    n = len(windows) // 4
    got = np.concatenate([b["tokens"] for b in islice(train_batches(source, 4, 0, 0), n)])
    known = {row.tobytes() for row in windows.arrays()["tokens"]}
    assert len({row.tobytes() for row in got}) == 4 * n
    assert {row.tobytes() for row in got} <= known


@pytest.mark.parametrize("source", [Text(length=12, stride=3), WikiText(path="/data", variant="tokens", length=12)])
def test_a_source_of_bytes_has_the_documented_parts_and_reads_back_from_its_json(source):
    assert build(type(source), to_dict(source)) == source
    (spec,) = source.inputs.values()
    assert (*source.inputs, spec.shape, spec.dtype) == ("tokens", (12,), np.int32)
    assert (source.classes, source.augments) == (256, False)
    assert source.mock() == MockText(12, 256)
    assert source.mock().inputs == source.inputs
    arrays = {"tokens": np.ones((2, 12), np.int32)}
    assert source.model_input(arrays) is arrays
    assert source.augment(arrays, np.random.default_rng(0)) is arrays


@pytest.mark.parametrize(
    ("cls", "settings", "message"),
    [
        (Text, {"length": 0}, r"^config\.length: must be at least 1, got 0$"),
        (Text, {"stride": 0}, r"^config\.stride: must be at least 1, got 0$"),
        (Text, {"length": 60_000}, r"^config\.length: must be below the \d+ bytes of a block, got 60000$"),
        (WikiText, {}, r"^config\.path: required, not given$"),
        (WikiText, {"path": "/data", "length": 0}, r"^config\.length: must be at least 1, got 0$"),
        (
            WikiText,
            {"path": "/data", "variant": "token"},
            r'^config\.variant: unknown choice "token"; did you mean "tokens"\?$',
        ),
    ],
)
def test_impossible_settings_are_refused(cls, settings, message):
    with pytest.raises(ConfigError, match=message):
        build(cls, settings)


@pytest.mark.parametrize("source", [Text(), WikiText(path="/data"), MockText(4, 4)])
def test_an_unknown_split_is_refused(source):
    with pytest.raises(ConfigError, match='unknown split "tset"; did you mean "test"'):
        source.load("tset")
