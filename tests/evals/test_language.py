import math

import numpy as np
import pytest
from scipy.stats import sem

from sparsity.evals.language import language
from sparsity.evals.result import Predictions
from sparsity.train.losses import Losses


@pytest.fixture
def measure(make_subject, check_by_example):
    """(nats, correct predictions and tokens of each example) -> measures by name."""

    def run(nats, correct, tokens, sentences=(None, None), **config):
        losses = Losses(*(np.asarray(x, np.float32) for x in (nats, correct, tokens)), None, *sentences)
        predict = lambda arrays, noisy: Predictions(None, arrays, losses, {})
        result = language(make_subject(predict=predict, **config))
        if np.isfinite(nats).all():
            pairs = ["next_sentence.nll", "next_sentence.accuracy"] if sentences[0] is not None else []
            check_by_example(result, "nll", "accuracy", *pairs)
        return {m.name: m for m in result.measures}

    return run


def test_a_case_by_hand(measure):
    """6 + 2 nats over 4 + 2 tokens; 3 + 0 are right."""
    found = measure([6, 2], [3, 0], [4, 2])
    assert list(found) == ["nll", "perplexity", "accuracy"]
    assert found["nll"].value == pytest.approx(8 / 6)
    assert found["perplexity"].value == pytest.approx(math.exp(8 / 6))
    assert found["accuracy"].value == pytest.approx(0.5)
    # What is left of each example: 6 - 4 x 4/3 and 2 - 2 x 4/3 nats, +-2/3; 3 - 2 and 0 - 1 right ones.
    assert found["nll"].se == pytest.approx((2 * (2 / 3) ** 2 / 1 / 2) ** 0.5 / 3)
    assert found["accuracy"].se == pytest.approx(1 / 3)
    assert found["perplexity"].se == pytest.approx(math.exp(8 / 6) * found["nll"].se)
    assert [m.unit for m in found.values()] == ["nats", "", "share"]
    assert {m.n for m in found.values()} == {2}


def test_pairs_of_texts_are_examples_of_their_own(measure):
    found = measure([6, 2], [3, 0], [4, 2], (np.float32([0.2, 0.6]), np.float32([1, 0])))
    assert list(found) == ["nll", "perplexity", "accuracy", "next_sentence.nll", "next_sentence.accuracy"]
    nll, accuracy = (found[f"next_sentence.{name}"] for name in ("nll", "accuracy"))
    assert (nll.value, nll.se) == pytest.approx((0.4, 0.2), rel=1e-6)
    assert (accuracy.value, accuracy.se, accuracy.n) == (0.5, 0.5, 2)


def test_examples_of_equal_length_have_the_standard_error_of_their_means(measure):
    rng = np.random.default_rng(0)
    nats, correct = rng.gamma(2.0, 8.0, 40), rng.binomial(16, 0.3, 40)
    found = measure(nats, correct, np.full(40, 16))
    assert (found["nll"].value, found["nll"].se) == pytest.approx((nats.mean() / 16, sem(nats / 16)), rel=1e-6)
    assert (found["accuracy"].value, found["accuracy"].se) == pytest.approx(
        (correct.mean() / 16, sem(correct / 16)), rel=1e-6
    )


def test_examples_of_unequal_length_have_the_error_that_repetition_shows(measure):
    """The spread of the ratio over 400 data sets, itself good to 1 / sqrt(800) = 3.5%: four times that."""
    rng = np.random.default_rng(1)
    values, errors = [], []
    for _ in range(400):
        tokens = rng.integers(1, 20, 200)
        nats = rng.gamma(tokens * rng.uniform(0.5, 1.5, 200))  # tokens of one example are alike
        nll = measure(nats, np.zeros(200), tokens)["nll"]
        values.append(nll.value)
        errors.append(nll.se)
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.14)


def test_one_example_has_no_error_bar(measure):
    found = measure([3.0], [1.0], [4.0])
    assert [m.se for m in found.values()] == [None, None, None]
    assert found["nll"].value == 0.75


def test_nan_losses_are_nan_and_right_predictions_stay_countable(measure):
    found = measure([math.nan, 1.0], [0.0, 1.0], [2.0, 2.0])
    assert math.isnan(found["nll"].value)
    assert math.isnan(found["perplexity"].value)
    assert found["accuracy"].value == 0.25


def test_the_definition_names_tokens_examples_and_split(measure):
    for one in measure([6, 2], [3, 0], [4, 2], split="validation").values():
        assert "over the 6 tokens of n validation examples" in one.definition
