import itertools

import numpy as np
import pytest
from scipy.stats import binomtest

from sparsity.config import ConfigError, build
from sparsity.data import SOURCES
from sparsity.data.masked_text import MaskedText
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
    parts = [batches(SOURCE, 1, process=p, processes=2)[0] for p in (0, 1)]
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


def test_it_is_built_by_name_and_mocked():
    source = build(SOURCES["masked_text"], {"length": 16})
    assert source.inputs["tokens"].shape == (16,)
    assert (source.mock().length, source.mock().classes) == (16, 384)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"length": 0}, "length: must be at least 1"),
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
