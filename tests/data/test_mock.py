import numpy as np
import pytest

from sparsity.config import ConfigError, build, to_dict
from sparsity.data.mock import Mock

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


def test_a_mock_of_data_without_labels_has_none():
    mock = Mock(SHAPE, None)
    assert mock.load("train").arrays().keys() == {"image"}
    np.testing.assert_array_equal(mock.load("test").images, Mock(SHAPE, 4).load("test").images)
    assert build(Mock, to_dict(mock)) == mock.mock() == mock
