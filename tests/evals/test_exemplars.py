import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from sparsity.config import ConfigError
from sparsity.data.pipeline import Split
from sparsity.evals.exemplars import best_correlation, exemplars
from sparsity.evals.result import EvalConfig, Predictions, Subject

SHAPE = (12, 12, 1)


def subject_of(fields, train, test):
    """A subject whose first layer has the `fields` [n, h, w, c] as its units' weights."""
    splits = {"train": Split(train, None), "test": Split(test, None)}
    kernel = fields.reshape(len(fields), -1).T
    return Subject(
        predict=lambda arrays, noisy: Predictions(None, arrays, None, {}),
        source=SimpleNamespace(inputs={"image": SimpleNamespace(shape=SHAPE)}, model_input=lambda arrays: arrays),
        load=splits.__getitem__,
        model=SimpleNamespace(encoder=lambda params: (kernel, np.zeros(len(fields)))),
        params={},
        mesh=None,
        noise=None,
        config=EvalConfig(names=()),
        seed=0,
    )


def measures_of(subject):
    return {m.name.removeprefix("exemplars."): m for m in exemplars(subject).measures}


@pytest.fixture
def images():
    """Training and test images without anything in common."""
    rng = np.random.default_rng(0)
    return rng.random((300, *SHAPE), np.float32), rng.random((100, *SHAPE), np.float32)


def test_correlation_is_over_pixels_whatever_level_and_scale():
    rng = np.random.default_rng(1)
    field, other = rng.normal(size=(2, 1, *SHAPE))
    best = best_correlation(field, np.concatenate([other, 3 * field + 7, -field]))
    assert best == pytest.approx([1.0], abs=1e-6)
    assert best_correlation(field, -field) == pytest.approx([-1.0], abs=1e-6)
    assert best_correlation(field, other) == pytest.approx([np.corrcoef(field.ravel(), other.ravel())[0, 1]], abs=1e-6)


def test_each_channel_is_centred_by_itself():
    field = np.random.default_rng(2).normal(size=(1, 6, 6, 3))
    assert best_correlation(field, field + np.array([1.0, -2.0, 5.0])) == pytest.approx([1.0], abs=1e-6)


def test_a_flat_field_or_image_resembles_nothing():
    flat, field = np.full((1, *SHAPE), 0.3), np.random.default_rng(3).normal(size=(1, *SHAPE))
    assert best_correlation(flat, field) == best_correlation(field, flat) == [0.0]


def test_units_that_are_training_images_are_found(images):
    train, test = images
    # Every third training image is compared with as many test images.
    fields = np.concatenate([train[:30:3], np.random.default_rng(4).normal(size=(30, *SHAPE))])
    found = measures_of(subject_of(fields, train, test))
    assert found["above_null"].value == pytest.approx(10 / 40, abs=0.08)  # of the other 30 a twentieth
    assert found["above_null"].n == 40
    assert found["correlation"].value > 0.4


def test_units_that_are_training_images_are_nearer_to_these_than_to_others(images):
    train, test = images
    remembered = train[np.linspace(0, len(train) - 1, len(test)).astype(int)][:40]
    found = measures_of(subject_of(remembered, train, test))
    assert found["over_held_out"].value > 0.5
    assert found["over_held_out"].se < 0.05
    seen_only_in_test = measures_of(subject_of(test[:40], train, test))
    assert seen_only_in_test["over_held_out"].value < -0.5


def test_random_units_remember_nothing(images):
    found = measures_of(subject_of(np.random.default_rng(5).normal(size=(200, *SHAPE)), *images))
    assert abs(found["over_held_out"].value) < 3 * found["over_held_out"].se
    assert found["above_null"].value == pytest.approx(0.05, abs=0.05)


def test_the_norm_ratio_is_of_the_largest_and_the_median(images):
    fields = np.random.default_rng(6).normal(size=(9, *SHAPE))
    norms = np.array([1, 1, 1, 1, 1, 1, 2, 5, 8]) / np.linalg.norm(fields.reshape(9, -1), axis=1)
    fields *= norms[:, None, None, None]
    assert measures_of(subject_of(fields, *images))["norm_ratio"].value == pytest.approx(8)


def test_a_model_without_such_units_is_refused(images):
    subject = dataclasses.replace(subject_of(np.ones((1, *SHAPE)), *images), model=SimpleNamespace())
    with pytest.raises(ConfigError, match=r"^evals\.names: SimpleNamespace has no units with a receptive field$"):
        exemplars(subject)
