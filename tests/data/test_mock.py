import numpy as np
import pytest

from sparsity.config import ConfigError, build, to_dict
from sparsity.data.mock import Mock, MockText
from sparsity.data.pipeline import train_batches

SHAPE = (6, 5, 3)


def test_every_split_has_its_own_random_images_in_the_asked_shape():
    mock = Mock(SHAPE, 4)
    splits = [mock.load(name) for name in ("train", "validation", "test")]
    for split in splits:
        assert split.images.shape == (Mock.examples, *SHAPE)
        assert (split.images.dtype, split.labels.dtype) == (np.float32, np.int32)
        assert 0 <= split.images.min() < 0.01
        assert 0.99 < split.images.max() <= 1
        assert set(split.labels.tolist()) == set(range(4))
    images = np.concatenate([s.images for s in splits]).reshape(3 * Mock.examples, -1)
    assert len(np.unique(images, axis=0)) == 3 * Mock.examples


def test_a_split_is_the_same_every_time():
    one, other = Mock(SHAPE, 4).load("train"), Mock(SHAPE, 4).load("train")
    np.testing.assert_array_equal(one.images, other.images)
    np.testing.assert_array_equal(one.labels, other.labels)


def test_normalised_images_have_mean_0_and_variance_1():
    mock = Mock((50, 50, 1), 2)
    normalised = mock.normalise(mock.load("train").images)
    # 40,000 pixels: standard errors of 0.005 and, of the variance (fourth moment 1.8), 0.0045; four times those.
    assert abs(normalised.mean()) < 0.02
    assert normalised.var() == pytest.approx(1, abs=0.018)
    assert normalised.dtype == np.float32


def test_augmentation_changes_nothing():
    example = {"image": np.ones(SHAPE), "label": 3}
    assert Mock(SHAPE, 4).augment(example, np.random.default_rng(0)) is example


def test_it_reads_back_from_its_json():
    mock = Mock(SHAPE, 4)
    assert build(Mock, to_dict(mock)) == mock


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"image_shape": [8, 0, 1], "classes": 2},
            r"^config\.image_shape: must be at least 1 everywhere, got \(8, 0, 1\)$",
        ),
        ({"image_shape": [8, 8], "classes": 2}, r"^config\.image_shape: expected 3 values, got 2$"),
        ({"image_shape": [8, 8, 1], "classes": 0}, r"^config\.classes: must be at least 1, got 0$"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        build(Mock, settings)


def test_an_unknown_split_is_refused():
    with pytest.raises(ConfigError, match='unknown split "tset"; did you mean "test"'):
        Mock(SHAPE, 4).load("tset")


def test_every_split_has_its_own_random_text():
    mock = MockText(40, 7)
    splits = [mock.load(name).arrays() for name in ("train", "validation", "test")]
    for split in splits:
        for name in ("tokens", "targets"):
            assert (split[name].shape, split[name].dtype) == ((MockText.examples, 40), np.int32)
            assert set(split[name].ravel().tolist()) == set(range(7))
        np.testing.assert_array_equal(split["targets"][:, :-1], split["tokens"][:, 1:])
    assert len(np.unique(np.concatenate([s["tokens"] for s in splits]), axis=0)) == 3 * MockText.examples
    np.testing.assert_array_equal(mock.load("test").arrays()["tokens"], splits[2]["tokens"])


def test_mock_text_is_served_like_any_other_and_reads_back_from_its_json():
    mock = MockText(5, 300)
    assert build(MockText, to_dict(mock)) == mock == mock.mock()
    batch = next(train_batches(mock, 8, 0, 0))
    for name, spec in mock.inputs.items():
        assert (batch[name].shape, batch[name].dtype) == ((8, *spec.shape), spec.dtype)


@pytest.mark.parametrize("field", ["length", "classes"])
def test_impossible_settings_of_mock_text_are_refused(field):
    with pytest.raises(ConfigError, match=rf"^config\.{field}: must be at least 1, got 0$"):
        build(MockText, {"length": 4, "classes": 4, field: 0})


def test_a_mock_of_data_without_labels_has_none():
    mock = Mock(SHAPE, None)
    assert mock.load("train").arrays().keys() == {"image"}
    np.testing.assert_array_equal(mock.load("test").images, Mock(SHAPE, 4).load("test").images)
    assert build(Mock, to_dict(mock)) == mock.mock() == mock
