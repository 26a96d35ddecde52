import numpy as np
import pytest
from scipy.stats import sem

from sparsity.data.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from sparsity.evals.result import Predictions
from sparsity.evals.robustness import robustness

LABELS = np.arange(40) % 2
IMAGES = np.where(LABELS == 1, 0.6, 0.4).reshape(-1, 1, 1, 1) * np.ones((1, 4, 4, 1))
IMAGES = IMAGES.astype(np.float32)


def guess(inputs):
    """Class 1 where the first row of pixels is brighter than grey, which is 0 for the model."""
    return (inputs[:, 0].mean((1, 2)) > 0).astype(int)


def predict(arrays):
    return Predictions(np.eye(3, dtype=np.float32)[guess(arrays["image"])], arrays, None, {})


@pytest.fixture
def evaluated(make_subject):
    def evaluate(**settings):
        subject = make_subject(np.zeros((40, 3)), LABELS, images=IMAGES, predict=predict, **settings)
        return {m.name: m for m in robustness(subject).measures}

    return evaluate


def correct(name, severity, level="imagenet_c", seed=0):
    return guess(corrupt(IMAGES, name, severity, seed, level) - np.float32(0.5)) == LABELS


def test_there_is_a_measure_for_each_noise_and_severity_and_for_the_means(evaluated):
    expected = ["robustness.mean"]
    for name in CORRUPTIONS:
        expected += [*(f"robustness.{name}.{s}" for s in SEVERITIES), f"robustness.{name}"]
    assert list(evaluated()) == expected


def test_each_condition_is_the_accuracy_on_images_corrupted_before_they_are_normalised(evaluated):
    measures = evaluated()
    for name in CORRUPTIONS:
        for severity in SEVERITIES:
            measure, hits = measures[f"robustness.{name}.{severity}"], correct(name, severity)
            assert (measure.value, measure.se) == pytest.approx((hits.mean(), sem(hits)), rel=1e-13)
            assert measure.n == 40
            assert f"{name} noise, severity {severity} of the imagenet_c constants" in measure.definition
    assert min(m.value for m in measures.values()) < 1


def test_a_mean_over_conditions_has_its_error_over_examples(evaluated):
    measures = evaluated()
    table = np.array([[correct(name, s) for s in SEVERITIES] for name in CORRUPTIONS], float)
    for i, name in enumerate(CORRUPTIONS):
        examples = table[i].mean(0)
        got = measures[f"robustness.{name}"]
        assert (got.value, got.se, got.n) == pytest.approx((examples.mean(), sem(examples), 40), rel=1e-13)
    examples = table.mean((0, 1))
    got = measures["robustness.mean"]
    assert (got.value, got.se, got.n) == pytest.approx((examples.mean(), sem(examples), 40), rel=1e-13)


def test_the_constants_are_those_of_the_config(evaluated):
    measures = evaluated(corruptions="cifar_c")
    hits = correct("gaussian", 5, "cifar_c")
    assert measures["robustness.gaussian.5"].value == hits.mean() != correct("gaussian", 5).mean()


def test_the_noise_is_that_of_the_seed(evaluated):
    assert evaluated(seed=0) == evaluated(seed=0)
    assert evaluated(seed=3)["robustness.shot.5"].value == correct("shot", 5, seed=3).mean()
    assert evaluated(seed=0) != evaluated(seed=3)


def test_a_model_that_returns_nan_is_wrong_everywhere(make_subject):
    broken = lambda arrays: Predictions(np.full((len(arrays["label"]), 3), np.nan, np.float32), arrays, None, {})
    result = robustness(make_subject(np.zeros((40, 3)), LABELS, images=IMAGES, predict=broken))
    assert {m.value for m in result.measures} == {0.0}
