import numpy as np
import pytest
from scipy.stats import sem

from sparsity.evals.reconstruction import reconstruction
from sparsity.evals.result import Predictions
from sparsity.train.losses import Losses

RNG = np.random.default_rng(0)


@pytest.fixture
def measure(make_subject, check_by_example):
    """(images as the model reads them, outputs) -> measures by name, and arrays."""

    def run(images, outputs, **config):
        images, outputs = np.asarray(images, np.float32), np.asarray(outputs, np.float32)
        squares = ((images - outputs) ** 2).reshape(len(images), -1).mean(1)
        losses = Losses(squares, None, np.ones_like(squares))
        predict = lambda arrays, noisy: Predictions(outputs, {"image": images}, losses, {})
        result = reconstruction(make_subject(predict=predict, **config))
        if np.isfinite(outputs).all():
            check_by_example(result, "mse")
        return {m.name: m for m in result.measures}, result.arrays

    return run


def test_error_and_explained_variance_by_hand(measure):
    """Pixels 0 and 4, then 2 and 4: means 1 and 4, variance (1 + 0) / 2. Errors (1 + 0) / 2 and 0: mean 1/4."""
    images = np.reshape([0.0, 4.0, 2.0, 4.0], (2, 2, 1, 1))
    outputs = np.reshape([1.0, 4.0, 2.0, 4.0], (2, 2, 1, 1))
    found, _ = measure(images, outputs)
    assert list(found) == ["mse", "explained"]
    assert (found["mse"].value, found["mse"].n, found["mse"].unit) == (0.25, 2, "")
    assert found["mse"].se == pytest.approx(0.25)  # of 1/2 and 0
    assert (found["explained"].value, found["explained"].n, found["explained"].unit) == (0.5, 2, "share")
    assert found["explained"].se == pytest.approx(0.5)  # that of the error, over the variance


def test_both_are_those_of_numpy_in_float64(measure):
    images = RNG.normal(2.0, 1.0, (50, 4, 4, 3)).astype(np.float32)
    outputs = (images + RNG.normal(0, 0.5, images.shape)).astype(np.float32)
    found, _ = measure(images, outputs)
    wide = images.astype(np.float64).reshape(50, -1)
    errors = ((wide - outputs.reshape(50, -1)) ** 2).mean(1)
    variance = wide.var(0).mean()
    # The losses are float32.
    assert (found["mse"].value, found["mse"].se) == pytest.approx((errors.mean(), sem(errors)), rel=1e-6)
    explained = (1 - errors.mean() / variance, sem(errors) / variance)
    assert (found["explained"].value, found["explained"].se) == pytest.approx(explained, rel=1e-5)


def test_perfect_outputs_explain_all_and_the_mean_image_nothing(measure):
    images = RNG.normal(size=(20, 4, 4, 1)).astype(np.float32)
    perfect, _ = measure(images, images)
    assert (perfect["mse"].value, perfect["explained"].value) == (0, 1)
    mean, _ = measure(images, np.broadcast_to(images.mean(0), images.shape))
    assert mean["explained"].value == pytest.approx(0, abs=1e-6)
    worse, _ = measure(images, -images)
    assert worse["explained"].value < -1


def test_a_large_mean_does_not_spoil_the_variance(measure):
    images = 100 + RNG.normal(0, 0.1, (30, 2, 2, 1)).astype(np.float32)
    found, _ = measure(images, np.full_like(images, 100))
    wide = images.astype(np.float64)
    assert found["explained"].value == pytest.approx(1 - ((wide - 100) ** 2).mean() / wide.var(0).mean(), abs=1e-5)


def test_images_without_variance_have_an_error_and_nothing_to_explain(measure):
    same = np.ones((3, 2, 2, 1))
    found, _ = measure(same, 2 * same)
    assert found["mse"].value == 1
    assert np.isnan(found["explained"].value)


def test_one_example_has_no_error_bar(measure):
    found, _ = measure(np.ones((1, 2, 2, 1)), np.zeros((1, 2, 2, 1)))
    assert (found["mse"].value, found["mse"].se, found["mse"].n) == (1, None, 1)
    assert np.isnan(found["explained"].value)
    assert found["explained"].se is None


def test_nan_outputs_are_nan_in_both(measure):
    images = RNG.normal(size=(4, 2, 2, 1))
    outputs = images.copy()
    outputs[1, 0, 0, 0] = np.nan
    found, _ = measure(images, outputs)
    assert np.isnan([found["mse"].value, found["explained"].value]).all()


def test_the_first_ten_images_are_shown_with_their_outputs(measure):
    images, outputs = RNG.normal(size=(2, 12, 2, 2, 1)).astype(np.float32)
    _, arrays = measure(images, outputs)
    np.testing.assert_array_equal(np.float32(arrays["examples"]["images"]), images[:10])
    np.testing.assert_array_equal(np.float32(arrays["examples"]["outputs"]), outputs[:10])


def test_the_definition_names_the_split(measure):
    found, _ = measure(np.zeros((2, 2, 2, 1)), np.ones((2, 2, 2, 1)), split="validation")
    assert "validation examples" in found["mse"].definition
