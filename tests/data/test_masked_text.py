import itertools

import numpy as np
import pytest
from scipy.stats import binomtest

from sparsity.config import ConfigError, build
from sparsity.data import SOURCES
from sparsity.data.masked_text import MaskedText, MockPairs, _elsewhere
from sparsity.data.pipeline import train_batches
from sparsity.data.vocabularies import Bytes

SOURCE = MaskedText(length=40)
MASK = SOURCE.vocabulary.sentinel


def batches(source, n, seed=0, batch=64, **settings):
    return list(itertools.islice(train_batches(source, batch, seed, 0, **settings), n))


@pytest.fixture(scope="module")
def trained():
    """40 batches of 64 examples: 2,560 x 6 selected tokens."""
    return {k: np.concatenate([b[k] for b in batches(SOURCE, 40)]) for k in ("tokens", "targets", "target_segments")}


def test_fifteen_percent_of_every_example_are_selected_and_only_they_change(trained):
    np.testing.assert_array_equal(trained["target_segments"].sum(1), np.full(2560, 6))
    assert SOURCE.count == round(0.15 * 40)
    left = trained["target_segments"] == 0
    np.testing.assert_array_equal(trained["tokens"][left], trained["targets"][left])
    assert set(np.unique(trained["target_segments"])) == {0, 1}


def test_of_those_eighty_percent_are_masked_ten_changed_and_ten_left(trained):
    chosen = trained["target_segments"] == 1
    tokens, targets = trained["tokens"][chosen], trained["targets"][chosen]
    n = len(tokens)
    masked, same = int((tokens == MASK).sum()), int((tokens == targets).sum())
    assert binomtest(masked, n, 0.8).pvalue > 1e-3
    # Of the changed ones one in 281 is drawn as it was.
    assert binomtest(same, n, 0.1 + 0.1 / 281).pvalue > 1e-3
    changed = tokens[(tokens != MASK) & (tokens != targets)]
    assert changed.min() >= Bytes().words[0]
    assert changed.max() <= MASK - SOURCE.vocabulary.sentinels
    assert len(np.unique(changed)) > 250  # any token of text, not only those of this one


def test_every_place_is_selected_as_often(trained):
    of_place = trained["target_segments"].sum(0)
    assert min(binomtest(int(k), 2560, 6 / 40).pvalue for k in of_place) > 1e-3 / 40


def test_a_text_is_masked_anew_in_every_epoch_and_alike_for_the_same_seed():
    small = MaskedText(length=2000)
    n = len(small.load("train"))
    first, again = (list(batches(small, 2 * n, batch=1, seed=s)) for s in (0, 0))
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a["tokens"], b["tokens"])
    by_text = {}
    for one in first:
        by_text.setdefault(one["targets"].tobytes(), []).append(one["tokens"])
    assert {len(v) for v in by_text.values()} == {2}
    assert all((a != b).any() for a, b in by_text.values())
    assert any((a["tokens"] != b["tokens"]).any() for a, b in zip(first, batches(small, n, 1, 1), strict=False))


def test_processes_read_their_shares_of_the_same_batch():
    (whole,) = batches(SOURCE, 1)
    parts = [batches(SOURCE, 1, rows=rows)[0] for rows in np.split(np.arange(len(whole["tokens"])), 2)]
    np.testing.assert_array_equal(np.concatenate([p["tokens"] for p in parts]), whole["tokens"])


def test_held_out_texts_are_always_masked_alike_and_do_not_overlap():
    one, two = (SOURCE.load("test").arrays() for _ in range(2))
    np.testing.assert_array_equal(one["tokens"], two["tokens"])
    assert (one["tokens"] != one["targets"]).any(1).mean() > 0.99
    text = SOURCE.vocabulary.decode(one["targets"][:3].ravel())
    whole = "".join(SOURCE.corpus.documents("test"))
    assert text in whole


def test_a_stride_gives_more_training_texts_and_no_more_of_the_others():
    dense = MaskedText(length=40, stride=10)
    assert len(dense.load("train")) == pytest.approx(4 * len(SOURCE.load("train")), rel=0.01)
    assert len(dense.load("test")) == len(SOURCE.load("test"))


PAIRS = MaskedText(length=40, next_sentence=True)


@pytest.fixture(scope="module")
def pairs():
    """8 batches of 64 pairs."""
    of_step = batches(PAIRS, 8)
    return {name: np.concatenate([b[name] for b in of_step]) for name in of_step[0]}


def test_two_texts_stand_between_marks_that_are_never_selected(pairs):
    first, end = MASK - 1, MASK - 2
    cuts = []
    for tokens, targets, segments, selected in zip(
        *(pairs[name] for name in ("tokens", "targets", "segments", "target_segments")), strict=True
    ):
        middle = int(segments.argmax()) - 1
        marks = np.array([0, middle, 39])
        assert (tokens[marks] == targets[marks]).all()
        assert targets[marks].tolist() == [first, end, end]
        np.testing.assert_array_equal(segments, np.arange(40) > middle)
        assert (selected.sum(), selected[marks].sum()) == (PAIRS.count, 0)
        cuts.append(middle - 1)
    assert PAIRS.count == round(0.15 * 37)
    assert (min(cuts), max(cuts)) == (1, 36)  # all of 36 cuts are as likely: one is missed with probability 36 e^-14
    assert np.mean(cuts) == pytest.approx(18.5, abs=5 * 10.4 / 512**0.5)


def test_half_of_the_second_texts_follow_and_the_others_do_not(pairs):
    whole = np.concatenate([PAIRS.vocabulary.encode(text) for text in PAIRS.corpus.documents("train")])
    whole = whole.astype(np.uint8).tobytes()
    starts = {whole[i : i + 37] for i in range(0, len(whole) - 36, 37)}
    drawn, alike = pairs["next_sentence"], []
    for targets, label in zip(pairs["targets"], drawn, strict=True):
        text = np.delete(targets, [0, _middle(targets), 39]).astype(np.uint8).tobytes()
        if label == 0:
            assert text in starts
        elif 8 < _middle(targets) < 32:
            alike.append(text in whole)
    # By chance: lines of dashes go on in other lines of dashes.
    assert len(alike) > 100
    assert np.mean(alike) < 0.02
    assert binomtest(int(drawn.sum()), len(drawn), 0.5).pvalue > 1e-3


def _middle(targets):
    """Where the first text ends."""
    return int(np.flatnonzero(targets == MASK - 2)[0])


def test_a_text_of_another_place_starts_anywhere_that_does_not_overlap():
    """Of 20 tokens, 3 that miss the 4 from the 6th on: they start at 0 to 3 or at 10 to 17."""
    rng = np.random.default_rng(0)
    taken = [_elsewhere(np.arange(20), 6, 4, 3, rng) for _ in range(2400)]
    assert all((np.diff(one) == 1).all() and len(one) == 3 for one in taken)
    places, counts = np.unique([one[0] for one in taken], return_counts=True)
    assert places.tolist() == [*range(4), *range(10, 18)]
    assert min(binomtest(int(k), 2400, 1 / 12).pvalue for k in counts) > 1e-3 / 12


def test_held_out_pairs_are_always_alike_and_mock_ones_have_the_same_arrays():
    one, two = (PAIRS.load("test").arrays() for _ in range(2))
    for name in one:
        np.testing.assert_array_equal(one[name], two[name])
    mock = PAIRS.mock()
    assert (mock, mock.mock()) == (MockPairs(40, 384), mock)
    assert PAIRS.inputs == mock.inputs
    assert {name: (x.shape[1:], x.dtype) for name, x in mock.load("test").arrays().items()} == {
        name: (x.shape[1:], x.dtype) for name, x in one.items()
    }


def test_a_text_of_too_few_tokens_for_another_place_is_refused(tmp_path):
    (tmp_path / "text.txt").write_text("a word " * 100)
    section = {"corpus": {"name": "files", "path": str(tmp_path / "text.txt")}, "length": 40, "next_sentence": True}
    with pytest.raises(ConfigError, match=r"^data: the test split has 72 tokens, too few for pairs of 37 of them$"):
        build(MaskedText, section).load("test")


def test_it_is_built_by_name_and_mocked():
    source = build(SOURCES["masked_text"], {"length": 16})
    assert source.inputs["tokens"].shape == (16,)
    assert (source.mock().length, source.mock().classes) == (16, 384)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"length": 0}, "length: must be at least 1"),
        ({"length": 4, "next_sentence": True}, "length: must be at least 5, got 4"),
        ({"stride": 0}, "stride: must be at least 1"),
        ({"selected": 0.0}, "selected: must be in"),
        ({"selected": float("nan")}, "selected: must be in"),
        ({"masked": 0.8, "changed": 0.3}, "masked, changed: shares of 1 together"),
        ({"masked": -0.1}, "masked, changed: shares of 1 together"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        MaskedText(**settings)


def test_a_text_that_is_too_short_is_refused():
    with pytest.raises(ConfigError, match="the validation split has fewer tokens than the 10000000 of an example"):
        MaskedText(length=10**7).load("validation")
