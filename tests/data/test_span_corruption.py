import itertools
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsity.config import ConfigError, build, to_dict
from sparsity.data.corpora import TextFiles
from sparsity.data.pipeline import train_batches
from sparsity.data.span_corruption import Corruption, MockSpans, SpanCorruption, corrupt, fill
from sparsity.data.vocabularies import EOS, PAD, Bytes, SentencePiece

BYTES = Bytes()
T5 = Corruption()


def corrupted(tokens, seed, corruption=T5, vocabulary=BYTES):
    return corrupt(tokens, corruption.mask(len(tokens), np.random.default_rng(seed)), vocabulary)


@pytest.mark.parametrize(("text", "inputs", "targets"), [(568, 512, 114), (284, 256, 58), (141, 128, 29)])
def test_lengths_are_those_of_t5(text, inputs, targets):
    # Those that T5 trains with: 512 inputs and 114 targets; 58 and 29 belong to 256 and 128 inputs.
    assert T5.lengths(text)[1] == targets
    assert T5.text_length(inputs) == text
    assert T5.lengths(text)[0] <= inputs < T5.lengths(text + 1)[0]


def test_a_case_by_hand():
    tokens, mask = np.array([10, 11, 12, 13, 14, 15]), np.array([0, 1, 1, 0, 0, 1], bool)
    inputs, targets = corrupt(tokens, mask, BYTES)
    assert inputs.tolist() == [10, 383, 13, 14, 382, EOS]
    assert targets.tolist() == [383, 11, 12, 382, 15, EOS]


TEXTS = st.text(min_size=2, max_size=200).filter(lambda text: len(text.encode()) >= 2)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(TEXTS, st.integers(0, 2**32 - 1), st.floats(0.05, 0.6), st.floats(1, 6))
def test_corrupt_then_fill_returns_the_text(text, seed, density, mean_span):
    corruption = Corruption(density, mean_span)
    tokens = BYTES.encode(text)
    if corruption.counts(len(tokens))[1] > BYTES.sentinels:
        return
    inputs, targets = corrupted(tokens, seed, corruption)
    assert (len(inputs), len(targets)) == corruption.lengths(len(tokens))
    np.testing.assert_array_equal(fill(inputs, targets, BYTES), tokens)
    assert BYTES.decode(fill(inputs, targets, BYTES)) == text


def test_masks_are_functions_of_the_generator_and_each_token_is_taken_as_often_as_said():
    masks = np.stack([T5.mask(568, np.random.default_rng(seed)) for seed in range(2000)])
    np.testing.assert_array_equal(masks[3], T5.mask(568, np.random.default_rng(3)))
    assert (masks.sum(1) == 85).all()
    starts = masks[:, 1:] & ~masks[:, :-1]
    assert (starts.sum(1) == 28).all()
    assert not masks[:, 0].any()
    assert masks[:, -1].all()
    # Away from the ends each token is out with probability .15, of which 2,000 masks have an error of .008; .04 is 5.
    assert np.abs(masks[:, 50:-50].mean(0) - 85 / 568).max() < 0.04


def test_span_lengths_are_uniform_over_all_ways_of_cutting():
    # Two spans of 4 taken tokens: the first one has 1, 2 or 3 of them, each as likely.
    corruption = Corruption(density=0.4, mean_span=2)
    first = [np.flatnonzero(~corruption.mask(10, np.random.default_rng(s))[::-1])[0] for s in range(3000)]
    shares = np.bincount(first, minlength=4)[1:] / 3000
    np.testing.assert_allclose(shares, 1 / 3, atol=0.04)  # four standard errors are .035


@pytest.mark.parametrize(("density", "mean_span"), [(0.15, 3.0), (0.5, 1.0), (0.9, 2.0), (0.01, 50.0)])
def test_a_text_is_as_long_as_its_inputs_allow_and_is_found_at_once(density, mean_span):
    corruption = Corruption(density, mean_span)
    made = [corruption.lengths(n)[0] for n in range(2, 2000)]
    for inputs in range(made[0], 60):
        assert corruption.text_length(inputs) == 2 + max(i for i, n in enumerate(made) if n <= inputs)
    assert corruption.lengths(corruption.text_length(10**8))[0] <= 10**8
    with pytest.raises(ValueError, match=r"^length: \d+ inputs are those of a text of more than 2147483648 tokens$"):
        corruption.text_length(10**15)


@pytest.mark.parametrize("settings", [{"density": 0.0}, {"density": 1.0}, {"mean_span": 0.5}])
def test_settings_out_of_range_name_themselves(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        Corruption(**settings)


def test_what_cannot_be_corrupted_is_refused():
    with pytest.raises(ValueError, match="at least 2 tokens"):
        T5.counts(1)
    with pytest.raises(ValueError, match="inputs: at least 3"):
        T5.text_length(2)
    with pytest.raises(ValueError, match="more than the 100 sentinels"):
        corrupted(np.full(3000, 5), 0, vocabulary=Bytes(byt5=True))


def test_fill_survives_a_models_targets():
    tokens = BYTES.encode("a text to corrupt and to fill again")
    inputs, targets = corrupted(tokens, 1)
    assert len(fill(inputs, targets[:3], BYTES)) < len(tokens)  # spans that are missing stay out
    noisy = np.concatenate([[70, 71], targets, [72, BYTES.sentinel]])  # before the first sentinel, after the end
    np.testing.assert_array_equal(fill(inputs, noisy, BYTES), tokens)


def source(**changes):
    return SpanCorruption(**{"length": 32, "stride": 8} | changes)


def test_a_row_is_what_a_model_reads():
    rows = source()
    batch = next(train_batches(rows, 4, 0, 0))
    assert {name: batch[name].shape[1:] for name in rows.inputs} == {n: s.shape for n, s in rows.inputs.items()}
    assert {array.dtype for array in batch.values()} == {np.dtype(np.int32)}
    np.testing.assert_array_equal(batch["decoder_inputs"][:, 1:], batch["targets"][:, :-1])
    assert (batch["decoder_inputs"][:, 0] == PAD).all()
    assert (batch["input_segments"] == 1).all()
    assert (batch["inputs"][:, -1] == EOS).all()


def test_batches_are_functions_of_seed_and_step_alone_and_differ_between_epochs():
    rows = source(stride=None)
    of = lambda seed, start, part=None: next(train_batches(rows, 4, seed, start, rows=part))
    later = train_batches(rows, 4, 3, 0)
    for _ in range(5):
        next(later)
    for name, array in next(later).items():
        np.testing.assert_array_equal(array, of(3, 5)[name])
        halves = [of(3, 5, np.arange(first, first + 2))[name] for first in (0, 2)]
        np.testing.assert_array_equal(array, np.concatenate(halves))
        assert (array != of(4, 5)[name]).any() or "segments" in name
    first = of(0, 0)
    epoch = len(rows.load("train")) // 4  # the second one begins within this batch
    second = list(itertools.islice(train_batches(rows, 4, 0, epoch), epoch + 2))
    pairs = lambda batch: zip(batch["inputs"], batch["targets"], strict=True)
    seen = {fill(*pair, BYTES).tobytes(): pair[0] for batch in second for pair in pairs(batch)}
    for inputs, targets in pairs(first):  # the same text, corrupted anew
        assert (inputs != seen[fill(inputs, targets, BYTES).tobytes()]).any()


@pytest.mark.parametrize("split", ["validation", "test"])
def test_other_splits_are_always_corrupted_alike_and_share_no_text(split):
    rows = source().load(split)
    np.testing.assert_array_equal(rows.arrays()["inputs"], source().load(split).arrays()["inputs"])
    np.testing.assert_array_equal(rows.arrays()["inputs"][3], rows[3]["inputs"])
    texts = lambda rows: {text.tobytes() for row in rows.texts for text in row}
    train = source(stride=None).load("train")
    assert len(texts(rows) & texts(train)) < 0.02 * len(rows)  # the text repeats itself a little


def test_packed_rows_hold_every_document_once_each_in_a_segment_of_its_own(tmp_path):
    documents = ["a short text", "b", "another one, which is longer than a row has room for: " * 2, "the last"]
    for i, text in enumerate(documents):
        (tmp_path / "train").mkdir(exist_ok=True)
        (tmp_path / "train" / f"{i}.txt").write_text(text)
    rows = source(stride=None, packed=True, corpus=TextFiles(str(tmp_path))).load("train")
    texts = [BYTES.decode(text) for row in rows.texts for text in row]
    assert "".join(texts) == "".join(documents).replace("b", "", 1)  # one token cannot be corrupted
    for i in range(len(rows)):
        row = rows.source.augment(rows[i], np.random.default_rng(i))
        found = [
            fill(row["inputs"][row["input_segments"] == n], row["targets"][row["target_segments"] == n], BYTES)
            for n in range(1, row["input_segments"].max() + 1)
        ]
        assert [BYTES.decode(text) for text in found] == [BYTES.decode(text) for text in rows.texts[i]]
        for n in range(1, row["target_segments"].max() + 1):
            here = row["target_segments"] == n
            np.testing.assert_array_equal(row["decoder_inputs"][here][1:], row["targets"][here][:-1])
            assert row["decoder_inputs"][here][0] == PAD
        assert (row["inputs"][row["input_segments"] == 0] == PAD).all()


def test_one_file_is_cut_into_splits_that_do_not_overlap(tmp_path):
    text = "".join(f"{i:06d} " for i in range(3000))
    (tmp_path / "mine.txt").write_text(text)
    words = {s: set("".join(TextFiles(str(tmp_path)).documents(s)).split()) for s in ("train", "validation", "test")}
    whole = {s: {w for w in found if len(w) == 6} for s, found in words.items()}
    assert (
        not whole["train"] & whole["test"] | whole["train"] & whole["validation"] | whole["test"] & whole["validation"]
    )
    assert 0.75 < len(whole["train"]) / 3000 < 0.85
    assert TextFiles(str(tmp_path / "mine.txt")).documents("test") == TextFiles(str(tmp_path)).documents("test")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: TextFiles(str(path / "none")).documents("train"), "no file and no directory of .txt files"),
        (lambda path: TextFiles(str(path)).documents("dev"), 'unknown split "dev"'),
        (lambda path: TextFiles(str(path / "bad.txt")).documents("train"), r"bad.txt is no UTF-8 text \(byte 2\)"),
        (lambda path: source(corpus=TextFiles(str(path / "few.txt"))).load("train"), "fewer tokens than the 34 of a"),
        (lambda path: SentencePiece(str(path / "spiece.model")).encode("a"), "path: there is no file"),
    ],
)
def test_text_that_cannot_be_read_is_named(tmp_path, make, message):
    (tmp_path / "bad.txt").write_bytes(b"ab\xff" + b"c" * 100)
    (tmp_path / "few.txt").write_text("too few")
    with pytest.raises((ConfigError, ValueError), match=message):
        make(tmp_path)


def test_a_file_that_is_no_sentencepiece_model_is_named(tmp_path, monkeypatch):
    def processor(model_proto):
        raise RuntimeError(f"INTERNAL: {model_proto}")

    monkeypatch.setitem(sys.modules, "sentencepiece", SimpleNamespace(SentencePieceProcessor=processor))
    (tmp_path / "spiece.model").write_bytes(b"is none")
    with pytest.raises(
        ConfigError, match=rf"^data.vocabulary.path: {tmp_path}/spiece.model is no SentencePiece model$"
    ):
        SentencePiece(str(tmp_path / "spiece.model"))


@pytest.mark.parametrize("changes", [{"length": 2}, {"length": 4000}, {"stride": 0}, {"stride": 3, "packed": True}])
def test_impossible_settings_of_the_source_name_the_field(changes):
    with pytest.raises(ValueError, match=r"length|inputs|stride"):
        source(**{"stride": None} | changes)


def test_mock_rows_are_of_the_same_shapes():
    mock = source().mock()
    assert mock.inputs == source().inputs
    assert mock.mock() == mock
    batch = next(train_batches(mock, 4, 0, 0))
    real = next(train_batches(source(), 4, 0, 0))
    assert {n: (x.shape, x.dtype) for n, x in batch.items()} == {n: (x.shape, x.dtype) for n, x in real.items()}
    assert build(MockSpans, to_dict(mock)) == mock
