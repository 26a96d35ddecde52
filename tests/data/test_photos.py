import time
from itertools import islice

import numpy as np
import pytest
from sklearn.datasets import load_sample_images

from sparsity.config import ConfigError, build, to_dict
from sparsity.data.mock import Mock
from sparsity.data.photos import Photos
from sparsity.data.pipeline import train_batches
from sparsity.run import run_config

SPLITS = ("train", "validation", "test")
RAW = np.stack(load_sample_images().images)  # [2, 427, 640, 3], uint8


def covered(source, split):
    """How many patches of the split contain each pixel, [2, 427, 640]."""
    count = np.zeros(RAW.shape[:3], int)
    for photograph, row, column in source.load(split).positions:
        count[photograph, row : row + source.patch, column : column + source.patch] += 1
    return count


@pytest.mark.parametrize(("patch", "stride"), [(1, 1), (12, 4), (33, 7), (64, 1)])
def test_no_pixel_belongs_to_two_splits(patch, stride):
    seen = [covered(Photos(patch=patch, stride=stride, count=None), split) > 0 for split in SPLITS]
    assert all(s.any((1, 2)).all() for s in seen)  # each split has patches of both photographs
    assert np.sum(seen, 0).max() == 1


def test_all_positions_cover_every_pixel_of_the_photographs():
    source = Photos(patch=12, count=None)
    shares = [(covered(source, split) > 0).mean() for split in SPLITS]
    np.testing.assert_allclose(shares, [0.7, 0.1, 0.2], rtol=1e-12)


def test_the_number_of_positions_by_hand():
    # 12x12: 427 - 11 rows; runs of 64, 128 and 256 columns lose 11 each; two photographs.
    assert len(Photos(count=None).load("train")) == 2 * 416 * (53 + 117 + 245)
    assert len(Photos(count=None).load("test")) == 2 * 416 * (53 + 53)
    # Side by side: 35 rows and, of 64 columns, 5.
    assert len(Photos(count=None, stride=12).load("validation")) == 2 * 35 * 5


@pytest.mark.parametrize("colour", [False, True])
def test_a_patch_is_the_square_of_the_photograph_at_its_position(colour):
    split = Photos(patch=9, colour=colour, count=50).load("train")
    expected = RAW / 255 if colour else (RAW @ [0.299, 0.587, 0.114] / 255)[..., None]
    assert (split.images.shape, split.images.dtype) == ((50, 9, 9, 3 if colour else 1), np.float32)
    for i, (photograph, row, column) in enumerate(split.positions):
        there = expected[photograph, row : row + 9, column : column + 9]
        np.testing.assert_allclose(split.images[i], there, rtol=1e-6, atol=1e-7)
        np.testing.assert_array_equal(split[i]["image"], split.images[i])
        assert split[i].keys() == {"image"}


def test_the_units_are_those_of_the_whole_range():
    images = Photos(patch=64, stride=16, colour=True, count=None).load("train").images
    assert (images.min(), images.max()) == (0, 1)


def test_a_draw_has_the_stated_number_without_repeats_and_in_proportion():
    source = Photos(count=7001)
    drawn = {split: source.load(split).positions for split in SPLITS}
    assert [len(p) for p in drawn.values()] == [7001, 1001, 2001]  # a 7th and two 7ths, rounded up
    for split, positions in drawn.items():
        everywhere = {tuple(p) for p in Photos(count=None).load(split).positions}
        assert len({tuple(p) for p in positions} & everywhere) == len(positions)


def test_a_draw_is_uniform_over_the_positions():
    source = Photos(count=100_000)
    positions = source.load("train").positions
    # 345,280 positions in 3 runs of 53, 117 and 245 of 415 columns, half of them in each photograph. Three
    # deviations of a draw of this size, a little less without replacement.
    shares = [np.mean((positions[:, 2] >= a) & (positions[:, 2] < b)) for a, b in ((0, 64), (192, 320), (384, 640))]
    np.testing.assert_allclose(shares, np.array([53, 117, 245]) / 415, atol=3 * 0.5 / np.sqrt(1e5))
    assert np.mean(positions[:, 0]) == pytest.approx(0.5, abs=3 * 0.5 / np.sqrt(1e5))


def test_the_seed_decides_the_draw():
    one, same, other = (Photos(count=100, seed=s).load("train").positions for s in (3, 3, 4))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any(1).mean() > 0.9


def test_a_small_region_gives_all_that_it_has():
    source = Photos(patch=64, count=20_000)
    assert len(source.load("validation")) == 2 * 364 < 20_000 / 7


@pytest.mark.parametrize("start", [0, 37])
def test_the_batches_are_a_function_of_seed_and_step(start):
    source = Photos(count=300, contrast="zero_mean")
    whole = list(islice(train_batches(source, 16, 5, 0), start + 3))[start:]
    resumed = list(islice(train_batches(source, 16, 5, start, threads=0), 3))
    other = list(islice(train_batches(source, 16, 6, start), 3))
    for a, b, c in zip(whole, resumed, other, strict=True):
        assert a.keys() == {"image"}
        assert (a["image"].shape, a["image"].dtype) == ((16, 12, 12, 1), np.float32)
        np.testing.assert_array_equal(a["image"], b["image"])
        assert (a["image"] != c["image"]).any()


def test_an_epoch_is_the_normalised_train_split():
    source = Photos(count=64, contrast="unit_variance")
    batches = islice(train_batches(source, 16, 0, 0), 4)
    got = np.concatenate([b["image"] for b in batches]).reshape(64, -1)
    expected = source.normalise(source.load("train").images).reshape(64, -1)
    # One patch at a time or many: sums of 144 float32 in another order.
    np.testing.assert_allclose(got[np.lexsort(got.T)], expected[np.lexsort(expected.T)], rtol=1e-5, atol=1e-5)


# A patch of mean 1/2 and deviation 1/4, and a nearly flat one, deviation 1/1000.
PAIR = np.stack([np.tile([[0.25], [0.75]], (2, 2)), np.tile([[0.499], [0.501]], (2, 2))])[..., None].astype(np.float32)


@pytest.mark.parametrize(
    ("contrast", "deviations"),
    [("none", (0.25, 0.001)), ("zero_mean", (0.25, 0.001)), ("unit_variance", (1.0, 0.05))],  # .001 / floor .02
)
def test_contrast_by_hand(contrast, deviations):
    source = Photos(contrast=contrast)
    got = source.normalise(PAIR)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got.mean((1, 2, 3)), [0.5 * (contrast == "none")] * 2, atol=1e-7)
    np.testing.assert_allclose(got.std((1, 2, 3)), deviations, rtol=1e-4)  # 1e-7 of the mean in .001
    np.testing.assert_array_equal(source.normalise(PAIR[1]), got[1])


def test_a_constant_patch_becomes_zero_and_colours_keep_their_differences():
    source = Photos(contrast="unit_variance", colour=True)
    assert not source.normalise(np.full((3, 3, 3), 0.5, np.float32)).any()
    red = np.zeros((3, 3, 3), np.float32)
    red[..., 0] = 1
    assert source.normalise(red)[0, 0] == pytest.approx([2**0.5, -(2**-0.5), -(2**-0.5)], rel=1e-6)


@pytest.mark.parametrize("contrast", ["none", "zero_mean", "unit_variance"])
def test_std_is_that_of_the_normalised_training_pixels(contrast):
    source = Photos(count=2000, contrast=contrast)
    pixels = source.normalise(source.load("train").images).astype(np.float64)
    assert source.std == pytest.approx(pixels.std(), rel=1e-6)


def test_std_of_many_patches_is_that_of_some_of_them():
    source = Photos(count=60_000)
    pixels = source.load("train").images.astype(np.float64)
    # 5,000 of them; patch variances spread by about their mean, so half of 1/sqrt(5000).
    assert source.std == pytest.approx(pixels.std(), rel=3 * 0.007)


def test_the_splits_have_the_contrast_that_the_comment_states():
    stated = {"train": (0.114, 0.064), "validation": (0.117, 0.053), "test": (0.114, 0.075)}
    for split, values in stated.items():
        patches = Photos(count=None, stride=2).load(split)
        variances = patches.images.var((1, 2, 3), dtype=np.float64)
        got = [variances[patches.positions[:, 0] == i].mean() ** 0.5 for i in (0, 1)]
        assert got == pytest.approx(values, abs=0.001)


def test_it_is_light():
    source = Photos(patch=32, colour=True, count=None)  # 281,160 patches would be 3.5 GB
    source.load("test")  # the photographs are read
    start = time.perf_counter()
    split = source.load("train")
    assert time.perf_counter() - start < 2
    assert split.photographs.nbytes + split.positions.nbytes < 11e6


def test_patches_cannot_be_changed_under_one_another():
    split = Photos(count=10).load("train")
    split[0]["image"][:] = 0  # a copy
    assert split[0]["image"].any()


def test_patches_are_cut_many_at_a_time_as_one_by_one():
    split = Photos(patch=7, colour=True, count=30).load("train")
    index = np.array([3, 3, 29, 0])
    np.testing.assert_array_equal(split.take(index)["image"], [split[i]["image"] for i in index])
    np.testing.assert_array_equal(split.arrays()["image"], split.images)


def test_it_reads_back_from_its_json():
    source = Photos(patch=8, colour=True, stride=3, count=None, contrast="zero_mean")
    assert build(Photos, to_dict(source)) == source


def test_augmentation_changes_nothing():
    example = {"image": np.ones((12, 12, 1))}
    assert Photos().augment(example, np.random.default_rng(0)) is example


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"patch": 65}, r"^config\.patch: must be in 1\.\.64 pixels, got 65$"),
        ({"stride": 0}, r"^config\.stride: must be at least 1, got 0$"),
        ({"count": 0}, r"^config\.count: must be in 1\.\.345280 \(the training positions\) or None, got 0$"),
        ({"stride": 100}, r"^config\.count: must be in 1\.\.60 \(the training positions\) or None, got 20000$"),
        ({"seed": -1}, r"^config\.seed: must be at least 0, got -1$"),
        ({"floor": 0.0}, r"^config\.floor: must be positive, got 0\.0$"),
        ({"contrast": "zeromean"}, r'^config\.contrast: unknown choice "zeromean"; did you mean "zero_mean"\?$'),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        build(Photos, settings)


def test_an_unknown_split_is_refused():
    with pytest.raises(ConfigError, match='unknown split "tset"; did you mean "test"'):
        Photos().load("tset")


def test_a_classifier_has_nothing_to_learn_from_them(tiny_config):
    tiny_config.data = {"name": "photos"}
    with pytest.raises(ConfigError, match=r"^config\.data: Photos has no labels, and the model is a classifier$"):
        run_config(tiny_config)


def test_their_stand_in_has_no_labels_either():
    mock = Mock((12, 12, 1), None)
    assert build(Mock, to_dict(mock)) == mock
    split = mock.load("train")
    assert split.labels is None
    assert split[0].keys() == next(train_batches(mock, 8, 0, 0)).keys() == {"image"}
