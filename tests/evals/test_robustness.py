import dataclasses

import numpy as np
import pytest
from PIL import Image
from scipy.stats import sem

from sparsity.config import ConfigError
from sparsity.data import images as images_lib
from sparsity.data import pipeline
from sparsity.data.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from sparsity.data.pipeline import Lazy, Stream
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
def evaluated(make_subject, check_by_example):
    def evaluate(**settings):
        subject = make_subject(np.zeros((40, 3)), LABELS, images=IMAGES, predict=predict, **settings)
        result = robustness(subject)
        check_by_example(result, *(m.name for m in result.measures))
        return {m.name: m for m in result.measures}

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


class OnDisk(Lazy):
    """The images, of which every second one is seen, in parts that are noted."""

    image_shape, labels, most = IMAGES.shape[1:], LABELS, 20

    def __init__(self):
        self.parts = []

    def take(self, indices):
        self.parts.append(indices.tolist())
        return {"image": IMAGES[indices], "label": LABELS[indices]}


def test_a_split_that_is_not_in_memory_is_read_once_a_batch_at_a_time(make_subject):
    split = OnDisk()
    subject = make_subject(np.zeros((40, 3)), LABELS, images=IMAGES, predict=predict, batch=8)
    measures = {m.name: m for m in robustness(dataclasses.replace(subject, load=lambda _: split)).measures}
    seen = np.arange(20) * 2
    assert split.parts == [seen[:8].tolist(), seen[8:16].tolist(), seen[16:].tolist()]
    for name in CORRUPTIONS:
        for severity in SEVERITIES:
            noisy = corrupt(IMAGES[seen], name, severity, 0, "imagenet_c", seen)
            hits = guess(noisy - np.float32(0.5)) == LABELS[seen]
            measure = measures[f"robustness.{name}.{severity}"]
            assert (measure.value, measure.n) == (hits.mean(), 20)
    assert measures["robustness.mean"].value < 1


@pytest.fixture
def imagenet_c(tmp_path):
    """Published folders of three classes: images of class 1 are bright, and the rest dark, but under shot noise."""
    for name in CORRUPTIONS:
        for severity in SEVERITIES:
            for label in range(3):
                folder = tmp_path / f"{name}_noise" / str(severity) / f"n{label}"
                folder.mkdir(parents=True)
                for i in range(2):
                    value = 200 if label == 1 and not (name == "shot" and i < severity - 3) else 50
                    Image.new("RGB", (4, 4), (value,) * 3).save(folder / f"{i}.png")
    images_lib.list_files.cache_clear()
    images_lib.class_folders.cache_clear()
    return tmp_path


@pytest.fixture
def named(make_subject, imagenet_c):
    """A subject whose classes have names."""

    class Named(type(make_subject().source)):
        def class_names(self):
            return ("n0", "n1", "n2")

    return dataclasses.replace(
        make_subject(np.zeros((40, 3)), LABELS, images=IMAGES, imagenet_c=str(imagenet_c)), source=Named()
    )


@pytest.mark.parametrize("held", [1 << 31, 10])
def test_imagenet_c_is_read_as_it_is_published(named, held, monkeypatch):
    monkeypatch.setattr(pipeline, "_HELD", held)

    def answer(examples):
        assert isinstance(examples, Stream) == (held == 10)
        arrays = named.source.model_input(examples.split.arrays()) if held == 10 else examples
        return predict(arrays)

    measures = {m.name: m for m in robustness(dataclasses.replace(named, predict=answer)).measures}
    # Of six images the two of class 2 are dark and taken for class 0; under shot noise one of class 1 at severity 4 is
    # dark too, two at severity 5.
    assert measures["robustness.gaussian"].value == pytest.approx(4 / 6)
    found = [measures[f"robustness.shot.{s}"].value for s in SEVERITIES]
    assert found == pytest.approx([4 / 6, 4 / 6, 4 / 6, 3 / 6, 2 / 6])
    assert (measures["robustness.mean"].n, len(measures)) == (6, 19)
    assert measures["robustness.shot.4"].definition == (
        "accuracy under shot noise, severity 4 of the published ImageNet-C"
    )


def test_conditions_of_imagenet_c_that_differ_in_their_images_are_refused(named, imagenet_c):
    (imagenet_c / "impulse_noise" / "2" / "n1" / "1.png").unlink()
    subject = dataclasses.replace(named, predict=predict)
    with pytest.raises(ConfigError, match=r"impulse_noise/2 has not the images that .*gaussian_noise/1 has"):
        robustness(subject)


def test_data_whose_classes_have_no_names_cannot_be_compared_with_imagenet_c(make_subject, imagenet_c):
    with pytest.raises(ConfigError, match=r"^data: FakeSource has no names of classes"):
        robustness(make_subject(np.zeros((40, 3)), LABELS, images=IMAGES, imagenet_c=str(imagenet_c)))
