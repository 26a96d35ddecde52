import dataclasses
import math

import numpy as np
import pytest
from scipy import stats

from sparsity.config import ConfigError, build
from sparsity.evals.result import EvalConfig, Measure, Predictions, mean_and_se


def measure(value, se, unit="share"):
    return str(Measure("name", value, se, 10, "definition", unit))


@pytest.mark.parametrize(
    ("value", "se", "unit", "text"),
    [
        (0.97845, 0.00772, "share", "97.8 ± 0.8 %"),
        (1.0, 0.0, "share", "100.0 ± 0.0 %"),
        (0.5, None, "share", "50 %"),
        (0.12345, None, "share", "12.35 %"),
        (0.08312, 0.01249, "nats", "0.083 ± 0.012 nats"),
        (1.5, 0.12, "nats", "1.50 ± 0.12 nats"),
        (14.26, 1.54, "steps/s", "14.3 ± 1.5 steps/s"),
        (123456.7, 234.5, "FLOPs", "123,457 ± 234 FLOPs"),
        (0.5, 1e-9, "nats", "0.5000 ± 0.0000 nats"),
        (2.0, 0.0, "nats", "2.00 ± 0.00 nats"),
        (1234567, None, "FLOPs", "1,234,567 FLOPs"),
        (1234.5, None, "GiB", "1,234.50 GiB"),
        (212345, None, "", "212,345"),
    ],
)
def test_a_measure_reads_as_its_value_with_its_error_and_unit(value, se, unit, text):
    assert measure(value, se, unit) == text


@pytest.mark.parametrize("unit", ["share", "nats"])
@pytest.mark.parametrize("se", [None, math.nan])
def test_a_measure_that_is_nan_says_so(se, unit):
    assert measure(math.nan, se, unit).startswith("nan")


def test_an_infinite_measure_says_so():
    assert measure(math.inf, None, "nats") == "inf nats"
    assert measure(math.inf, math.inf, "nats") == "inf ± inf nats"


def test_mean_and_standard_error_by_hand():
    # Deviations -1.5, -0.5, 0.5, 1.5: variance 5/3, se sqrt(5/12).
    mean, se = mean_and_se(np.array([1.0, 2.0, 3.0, 4.0]))
    assert mean == 2.5
    assert se == pytest.approx(math.sqrt(5 / 12), rel=1e-15)


def test_mean_and_standard_error_of_booleans_is_the_binomial_one():
    mean, se = mean_and_se(np.array([True] * 3 + [False] * 1))
    assert mean == 0.75
    assert se == pytest.approx(math.sqrt(0.75 * 0.25 / 3), rel=1e-15)


def test_mean_and_standard_error_are_taken_in_float64():
    values = (np.random.default_rng(0).normal(size=10_000) + 1000).astype(np.float32)
    mean, se = mean_and_se(values)
    assert mean == pytest.approx(math.fsum(map(float, values)) / 10_000, rel=1e-14)
    assert se == pytest.approx(stats.sem(values.astype(np.float64)), rel=1e-12)


def test_one_value_has_no_standard_error():
    assert mean_and_se(np.array([0.25])) == (0.25, None)


def test_a_nan_among_the_values_makes_both_nan():
    assert np.isnan(mean_and_se(np.array([1.0, np.nan, 2.0]))).all()


def test_a_prediction_is_correct_where_the_label_is_the_first_argmax_and_no_logit_is_nan():
    logits = np.array([[1, 2, 0], [3, 2, 0], [1, 1, 0], [1, 1, 0], [np.nan, 1, 0], [np.nan, 1, 0]], np.float32)
    predictions = Predictions(logits, {"label": np.array([1, 1, 0, 1, 0, 1])}, None, {})
    np.testing.assert_array_equal(predictions.correct, [True, False, True, False, False, False])


def test_a_subject_is_asked_once_for_its_clean_predictions_with_normalised_images(make_subject):
    asked = []

    def predict(arrays, noisy):
        asked.append((arrays["image"], arrays["label"], noisy))
        return Predictions(np.zeros((len(arrays["label"]), 3), np.float32), arrays, None, {})

    subject = make_subject(labels=[0, 2], predict=predict, logits=np.zeros((2, 3)))
    assert subject.clean is subject.clean
    ((inputs, labels, noisy),) = asked
    assert not noisy
    np.testing.assert_array_equal(inputs, np.zeros((2, 4, 4, 1)))
    np.testing.assert_array_equal(labels, [0, 2])


def test_examples_are_known_by_their_labels_and_pixels_and_not_by_the_scale_they_are_read_in(make_subject):
    rng = np.random.default_rng(0)
    images, labels = rng.random((5, 4, 4, 1), np.float32), rng.integers(0, 3, 5).astype(np.int32)
    of = lambda images, labels, **settings: make_subject(np.zeros((len(labels), 3)), labels, images=images, **settings)
    subject = of(images, labels)
    scaled = type("Scaled", (type(subject.source),), {"normalise": lambda self, x: 2 * x})
    raw = dataclasses.replace(subject, source=scaled())
    assert subject.examples == of(images.copy(), labels.copy(), seed=1).examples == raw.examples
    darker, other = images.copy(), labels.copy()
    darker[3, 1, 2, 0] /= 2
    other[4] = (other[4] + 1) % 3
    few = of(images[:4], labels[:4])
    assert len({s.examples for s in (subject, of(darker, labels), of(images, other), few)}) == 4


@pytest.mark.parametrize("noise", [False, True])
def test_a_subject_is_under_noise_if_the_evaluation_says_so_and_on_the_training_split_always(make_subject, noise):
    asked, loaded = [], []

    def predict(arrays, noisy):
        asked.append(noisy)
        return Predictions(None, arrays, None, {})

    subject = make_subject(predict=predict, noise=noise)
    load = subject.load
    subject = dataclasses.replace(subject, load=lambda split: loaded.append(split) or load(split))
    for _ in range(2):
        _ = subject.clean, subject.trained
    assert asked == [noise, True]
    assert loaded == ["test", "train"]


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"batch": 0}, "config.batch: must be at least 1, got 0"),
        ({"ece_bins": 0}, "config.ece_bins: must be at least 1, got 0"),
        ({"split": "train"}, 'config.split: unknown choice "train"'),
        ({"corruptions": "cifar"}, 'config.corruptions: unknown choice "cifar"; did you mean "cifar_c"?'),
    ],
)
def test_impossible_settings_are_refused_by_name(section, message):
    with pytest.raises(ConfigError) as caught:
        build(EvalConfig, {"names": ()} | section)
    assert str(caught.value).startswith(message)


def test_a_finite_measure_with_an_infinite_error_prints():
    assert measure(1.5, math.inf, "nats") == "1.50 ± inf nats"
