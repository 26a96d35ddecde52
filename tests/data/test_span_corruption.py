import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsity.data.span_corruption import Corruption, corrupt, fill
from sparsity.data.vocabularies import EOS, Bytes

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
    assert not masks[:, 0].any() and masks[:, -1].all()
    # Away from the ends each token is out with probability .15: 2,000 masks have an error of .008, 468 tokens 4.3 of it.
    assert np.abs(masks[:, 50:-50].mean(0) - 85 / 568).max() < 0.04


def test_span_lengths_are_uniform_over_all_ways_of_cutting():
    # Two spans of 4 taken tokens: the first one has 1, 2 or 3 of them, each as likely.
    corruption = Corruption(density=0.4, mean_span=2)
    first = [np.flatnonzero(~corruption.mask(10, np.random.default_rng(s))[::-1])[0] for s in range(3000)]
    shares = np.bincount(first, minlength=4)[1:] / 3000
    np.testing.assert_allclose(shares, 1 / 3, atol=0.04)  # four standard errors are .035


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
