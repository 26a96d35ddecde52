import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax as scipy_log_softmax

from sparsity.evals.calibration import (
    adaptive_calibration_error,
    bin_index,
    brier,
    calibration,
    expected_calibration_error,
    log_softmax,
    reliability,
)


def brute_bin(confidence, bins):
    """The j with j/bins < confidence <= (j+1)/bins, where the edges are the floats nearest to them."""
    return next(j for j in range(bins) if confidence <= (j + 1) / bins)


def brute_ece(confidence, correct, bins):
    """The definition bin by bin, in exact arithmetic."""
    total = Fraction(0)
    for j in range(bins):
        chosen = [i for i, c in enumerate(confidence) if brute_bin(c, bins) == j]
        if chosen:
            accuracy = Fraction(sum(bool(correct[i]) for i in chosen), len(chosen))
            mean = sum(Fraction(float(confidence[i])) for i in chosen) / len(chosen)
            total += Fraction(len(chosen), len(confidence)) * abs(accuracy - mean)
    return float(total)


# Confidences anywhere in [0, 1], the ends included, and often on an edge of ten or fifteen bins.
edges = st.sampled_from([j / bins for bins in (10, 15) for j in range(bins + 1)])
confidences = st.one_of(st.floats(0, 1), edges)
examples = st.lists(st.tuples(confidences, st.booleans()), min_size=1, max_size=40)
hypothesis_settings = settings(max_examples=200, deadline=None, derandomize=True, database=None)


@hypothesis_settings
@given(examples, st.sampled_from([1, 2, 7, 10, 15]))
def test_the_error_is_the_definition(pairs, bins):
    confidence, correct = (np.array(column) for column in zip(*pairs, strict=True))
    expected = brute_ece(confidence, correct, bins)
    assert expected_calibration_error(confidence, correct, bins) == pytest.approx(expected, abs=1e-14)


@hypothesis_settings
@given(examples, st.sampled_from([1, 2, 7, 10, 15]))
def test_the_reliability_diagram_counts_and_averages_each_bin(pairs, bins):
    confidence, correct = (np.array(column) for column in zip(*pairs, strict=True))
    diagram = reliability(confidence, correct, bins)
    where = np.array([brute_bin(c, bins) for c in confidence])
    for j in range(bins):
        chosen = where == j
        assert diagram.count[j] == chosen.sum()
        expected = (confidence[chosen].mean(), correct[chosen].mean()) if chosen.any() else (math.nan, math.nan)
        got = (diagram.confidence[j], diagram.accuracy[j])
        np.testing.assert_allclose(got, expected, rtol=1e-14, atol=1e-300)


def test_a_case_computed_by_hand_with_both_ends_and_an_edge():
    confidence = np.array([0.0, 0.1, 0.25, 0.5, 0.75, 1.0, 1.0, 0.9])
    correct = np.array([False, True, False, True, True, True, False, True])
    # Four bins: (0, .25] holds .0 .1 .25, (.25, .5] holds .5, (.5, .75] holds .75, (.75, 1] holds 1 1 .9.
    np.testing.assert_array_equal(bin_index(confidence, 4), [0, 0, 0, 1, 2, 3, 3, 3])
    expected = (abs(1 - 0.35) + abs(1 - 0.5) + abs(1 - 0.75) + abs(2 - 2.9)) / 8
    assert expected_calibration_error(confidence, correct, 4) == pytest.approx(expected, rel=1e-15)
    diagram = reliability(confidence, correct, 4)
    np.testing.assert_array_equal(diagram.count, [3, 1, 1, 3])
    np.testing.assert_allclose(diagram.confidence, [0.35 / 3, 0.5, 0.75, 2.9 / 3], rtol=1e-15)
    np.testing.assert_allclose(diagram.accuracy, [1 / 3, 1, 1, 2 / 3], rtol=1e-15)


@pytest.mark.parametrize("bins", [1, 6, 10, 15, 20, 100])
def test_an_edge_belongs_to_the_bin_below_it_and_the_next_number_to_the_bin_above(bins):
    upper = np.array([(j + 1) / bins for j in range(bins)])
    np.testing.assert_array_equal(bin_index(upper, bins), np.arange(bins))
    np.testing.assert_array_equal(bin_index(np.nextafter(upper[:-1], 1), bins), np.arange(1, bins))


def test_a_confidence_of_zero_falls_into_the_first_bin_and_of_one_into_the_last():
    np.testing.assert_array_equal(bin_index(np.array([0.0, 1.0]), 15), [0, 14])


def test_certain_and_right_is_calibrated_and_certain_and_wrong_is_not():
    ones = np.ones(4)
    assert expected_calibration_error(ones, ones == 1) == 0
    assert expected_calibration_error(ones, ones == 0) == 1
    assert expected_calibration_error(0 * ones, ones == 1) == 1


@pytest.mark.parametrize("value", [float("nan"), -1e-9, 1 + 1e-9, float("inf")])
def test_what_is_no_confidence_is_refused(value):
    confidence, correct = np.array([0.5, value]), np.array([True, True])
    for function in (expected_calibration_error, reliability):
        with pytest.raises(ValueError, match=r"^confidence: must be in \[0, 1\]; NaN is not a confidence$"):
            function(confidence, correct, 15)


def test_log_softmax_is_scipys_in_float64_even_of_large_logits():
    logits = np.random.default_rng(0).normal(0, 300, (50, 10)).astype(np.float32)
    got = log_softmax(logits)
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, scipy_log_softmax(logits.astype(np.float64), -1), rtol=1e-13, atol=1e-13)


def with_confidence(p, predicted):
    """Logits of three classes whose softmax has its maximum `p` at `predicted`."""
    probabilities = np.full(3, (1 - p) / 2)
    probabilities[predicted] = p
    return np.log(probabilities)


def test_the_evaluator_measures_the_split_and_draws_its_diagram(make_subject):
    cases = [(0.9, 0, 0), (0.9, 1, 0), (0.6, 2, 2), (0.6, 1, 1), (0.4, 0, 0)]
    subject = make_subject([with_confidence(p, k) for p, k, _ in cases], [y for *_, y in cases], ece_bins=5)
    result = calibration(subject)
    measure, *_ = result.measures
    # (.8, 1]: |1 - 1.8|; (.4, .6]: |2 - 1.2|, rounding puts .6 there or above; (.2, .4]: |1 - .4|.
    assert (measure.name, measure.n, measure.unit) == ("ece", 5, "share")
    assert measure.value == pytest.approx((0.8 + 0.8 + 0.6) / 5, abs=1e-6)
    diagram = result.arrays["reliability"]
    assert sum(diagram["count"]) == 5
    assert diagram["count"][4] == 2
    assert diagram["accuracy"][4] == 0.5
    assert diagram["confidence"][4] == pytest.approx(0.9, abs=1e-6)
    assert "5 equal-width bins (lo, hi]" in measure.definition


def test_the_standard_error_is_that_of_a_mean_where_one_bin_holds_all_examples(make_subject):
    n = 400
    rng = np.random.default_rng(0)
    logits = [with_confidence(0.95, 0)] * n
    labels = (rng.random(n) < 0.5).astype(int)
    measure, *_ = calibration(make_subject(logits, labels, ece_bins=10)).measures
    correct = labels == 0
    # One bin and a gap far from zero: ECE = 0.95 - accuracy, whose error is std / sqrt(n).
    assert measure.value == pytest.approx(0.95 - correct.mean(), abs=1e-6)
    # A deviation from 1,000 resamples is known to 1 / sqrt(2000) = 2.2%; four times that.
    assert measure.se == pytest.approx(correct.std() / math.sqrt(n), rel=0.09)


def test_the_resamples_are_a_function_of_the_seed(make_subject):
    logits = np.random.default_rng(1).normal(size=(30, 3))
    errors = [calibration(make_subject(logits, seed=seed)).measures[0].se for seed in (0, 0, 1)]
    assert errors[0] == errors[1] != errors[2]


def test_a_model_that_returns_nan_has_no_calibration_and_the_measure_prints(make_subject):
    logits = np.zeros((4, 3), np.float32)
    logits[1, 2] = np.nan
    result = calibration(make_subject(logits))
    assert [m.name for m in result.measures] == ["ece", "ece_adaptive", "brier"]
    for measure in result.measures:
        assert math.isnan(measure.value)
        assert (measure.se, measure.n) == (None, 4)
        assert "NaN" in measure.definition
    assert result.arrays == {}
    assert str(result.measures[0]) == "nan %"


def test_certainty_in_float32_is_a_confidence_of_one(make_subject):
    measure, *_ = calibration(make_subject([[1e4, 0, 0], [0, 1e4, 0]], [0, 0])).measures
    assert measure.value == 0.5


def test_an_infinite_logit_is_not_a_confidence_either(make_subject):
    ece, *_ = calibration(make_subject(np.array([[np.inf, 0.0, 0.0]]), np.array([0]))).measures
    assert np.isnan(ece.value)
    assert "infinity" in ece.definition


def test_adaptive_bins_of_a_case_computed_by_hand():
    """Sorted: .2 .4 | .6 .8 | .9 .9 1, the larger bins first."""
    confidence = np.array([0.9, 0.2, 0.8, 1.0, 0.4, 0.9, 0.6])
    correct = np.array([True, False, True, False, True, True, False])
    # Three bins of seven: 3, 2, 2: (.2 .4 .6), (.8 .9), (.9 1).
    expected = (abs(1 - 1.2) + abs(2 - 1.7) + abs(1 - 1.9)) / 7
    assert adaptive_calibration_error(confidence, correct, 3) == pytest.approx(expected, rel=1e-14)
    # One bin is the gap of the means; as many bins as examples are |correct - confidence|.
    assert adaptive_calibration_error(confidence, correct, 1) == pytest.approx(abs(4 - 4.8) / 7, rel=1e-14)
    assert adaptive_calibration_error(confidence, correct, 7) == pytest.approx(np.abs(correct - confidence).mean())


@hypothesis_settings
@given(examples, st.sampled_from([1, 2, 7, 15]))
def test_with_adaptive_bins_every_example_is_in_one_of_nearly_equal_bins(pairs, bins):
    confidence, correct = (np.array(column) for column in zip(*pairs, strict=True))
    order = sorted(range(len(confidence)), key=lambda i: confidence[i])  # stable, as the error's
    size, extra = divmod(len(order), bins)
    total, start = Fraction(0), 0
    for j in range(bins):
        stop = start + size + (j < extra)
        total += abs(
            sum((Fraction(bool(correct[i])) - Fraction(float(confidence[i])) for i in order[start:stop]), Fraction(0))
        )
        start = stop
    assert adaptive_calibration_error(confidence, correct, bins) == pytest.approx(float(total / len(order)), abs=1e-14)


def test_adaptive_bins_refuse_what_is_no_confidence():
    with pytest.raises(ValueError, match="NaN is not a confidence"):
        adaptive_calibration_error(np.array([0.5, np.nan]), np.array([True, True]))


def test_briers_score_is_scikit_learns_and_of_two_classes_twice_the_squared_error():
    from sklearn.metrics import brier_score_loss

    logits, labels = np.random.default_rng(0).normal(0, 2, (50, 4)), np.random.default_rng(1).integers(0, 4, 50)
    p = np.exp(scipy_log_softmax(logits, -1))
    one_hot = np.eye(4)[labels]
    assert brier(logits, labels).mean() == pytest.approx(((p - one_hot) ** 2).sum(1).mean(), rel=1e-12)
    two = logits[:, :2]
    positive = np.exp(scipy_log_softmax(two, -1))[:, 1]
    assert brier(two, labels % 2).mean() == pytest.approx(2 * brier_score_loss(labels % 2, positive), rel=1e-12)
    assert brier(np.array([[1e4, 0.0], [1e4, 0.0]]), np.array([0, 1])).tolist() == [0.0, 2.0]


def test_the_evaluator_measures_both_errors_and_the_score(make_subject, check_by_example):
    logits = [with_confidence(p, k) for p, k in ((0.9, 0), (0.8, 1), (0.6, 2), (0.5, 1))]
    labels = [0, 0, 2, 1]
    result = calibration(make_subject(logits, labels, ece_bins=2))
    check_by_example(result, "brier")
    found = {m.name: m for m in result.measures}
    assert found["ece_adaptive"].value == pytest.approx((abs(2 - 1.1) + abs(1 - 1.7)) / 4, abs=1e-6)
    assert "2 bins of equally many examples" in found["ece_adaptive"].definition
    assert found["brier"].value == pytest.approx(brier(np.array(logits), np.array(labels)).mean(), abs=1e-6)
    assert found["brier"].unit == ""
    assert found["brier"].se > 0
