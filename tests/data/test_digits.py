import numpy as np
import pytest
from sklearn.datasets import load_digits

from sparsity.config import ConfigError, build
from sparsity.data.digits import Digits

SPLITS = {"train": 1260, "validation": 179, "test": 358}


@pytest.mark.parametrize(("name", "size"), SPLITS.items())
def test_the_splits_have_the_stated_sizes_types_and_range(name, size):
    split = Digits().load(name)
    assert len(split) == size
    assert split.images.shape == (size, *Digits.image_shape)
    assert (split.images.dtype, split.labels.dtype) == (np.float32, np.int32)
    assert (split.images.min(), split.images.max()) == (0, 1)
    assert set(split.labels.tolist()) == set(range(Digits.classes))


def test_the_splits_are_the_whole_data_dealt_by_the_last_digit_of_the_index():
    digits = load_digits()
    last = np.arange(1797) % 10
    chosen = {"train": last < 7, "validation": last == 7, "test": last > 7}
    # Each of the 1,797 indices is in exactly one split.
    np.testing.assert_array_equal(sum(c.astype(int) for c in chosen.values()), 1)
    for name, mask in chosen.items():
        split = Digits().load(name)
        np.testing.assert_array_equal(split.images[..., 0] * 16, digits.images[mask])
        np.testing.assert_array_equal(split.labels, digits.target[mask])


def test_no_image_stands_in_two_splits():
    seen = [{image.tobytes() for image in Digits().load(name).images} for name in SPLITS]
    assert [len(s) for s in seen] == list(SPLITS.values())
    assert len(set.union(*seen)) == 1797


def test_an_unknown_split_is_refused():
    with pytest.raises(ConfigError, match='unknown split "tset"; did you mean "test"'):
        Digits().load("tset")


def test_the_training_pixels_have_the_stated_mean_and_deviation():
    pixels = load_digits().images[np.arange(1797) % 10 < 7] / 16
    mean, std = pixels.mean(), pixels.std()
    assert f"{mean:.3f} and {std:.3f}".replace("0.", ".") in Digits.__doc__
    normalised = Digits().normalise(np.array([0.0, 1.0], np.float32))
    assert normalised.dtype == np.float32
    # Float32 division: one rounding.
    np.testing.assert_allclose(normalised, [-mean / std, (1 - mean) / std], rtol=3e-7)


def test_normalised_training_images_have_mean_0_and_deviation_1_and_others_use_the_same_numbers():
    digits = Digits()
    train = digits.normalise(digits.load("train").images).astype(np.float64)
    assert abs(train.mean()) < 1e-6
    assert abs(train.std() - 1) < 1e-6
    test = digits.normalise(digits.load("test").images).astype(np.float64)
    assert abs(test.mean()) > 1e-4


IMAGE = np.arange(64, dtype=np.float32).reshape(8, 8, 1)


def shifted(image, down, right):
    """`image` moved down and right by any whole number of pixels, its border repeated."""
    rows = np.clip(np.arange(8) - down, 0, 7)
    columns = np.clip(np.arange(8) - right, 0, 7)
    return image[rows][:, columns]


@pytest.mark.parametrize("shift", [1, 2])
def test_augmentation_moves_the_image_by_every_shift_and_repeats_the_border(shift):
    rng = np.random.default_rng(0)
    got = [Digits(shift).augment({"image": IMAGE, "label": 3}, rng) for _ in range(400)]
    assert {g["label"] for g in got} == {3}
    span = range(-shift, shift + 1)
    possible = {shifted(IMAGE, down, right).tobytes() for down in span for right in span}
    assert len(possible) == (2 * shift + 1) ** 2
    # 400 draws from at most 25: a shift is missed with probability 25 exp(-16).
    assert {g["image"].tobytes() for g in got} == possible


def test_all_shifts_are_equally_likely():
    rng, n = np.random.default_rng(1), 9000
    names = [Digits(1).augment({"image": IMAGE}, rng)["image"].tobytes() for _ in range(n)]
    counts = np.unique(names, return_counts=True)[1]
    # Five binomial standard errors of 1,000 expected.
    np.testing.assert_allclose(counts, n / 9, atol=5 * np.sqrt(n * (1 / 9) * (8 / 9)))


def test_a_shift_of_zero_changes_nothing_and_lets_batches_be_cut_whole():
    example = {"image": IMAGE, "label": 3}
    np.testing.assert_array_equal(Digits(0).augment(example, np.random.default_rng(0))["image"], IMAGE)
    assert (Digits(0).augments, Digits(1).augments) == (False, True)


def test_unit_pixels_stay_as_they_are():
    source = Digits(0, pixels="unit")
    images = source.load("train").images
    np.testing.assert_array_equal(source.normalise(images), images)
    assert source.std == pytest.approx(images.std(dtype=np.float64))


def test_augmentation_leaves_its_input_as_it_is():
    image = IMAGE.copy()
    Digits(2).augment({"image": image}, np.random.default_rng(0))
    np.testing.assert_array_equal(image, IMAGE)


@pytest.mark.parametrize("shift", [-1, 8])
def test_an_impossible_shift_is_refused(shift):
    with pytest.raises(ConfigError, match=rf"^config\.shift: must be in 0\.\.7 pixels, got {shift}$"):
        build(Digits, {"shift": shift})
