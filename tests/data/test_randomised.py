import dataclasses
import functools
import itertools

import numpy as np
import pytest
from PIL import Image
from scipy.stats import chisquare, kstest

from sparsity.config import ConfigError, build
from sparsity.data import SOURCES, randomised
from sparsity.data.digits import Digits
from sparsity.data.imagenet import ImageFolder
from sparsity.data.mock import Mock
from sparsity.data.pipeline import train_batches
from sparsity.data.randomised import ENDLESS, NoisyLabels, RandomData, RandomImages, Subset, drawn

DIGITS = Digits()
CLEAN = DIGITS.load("train")


def test_drawn_numbers_are_uniform_and_independent_of_their_neighbours():
    n = np.arange(100_000)
    u = drawn(3, 1, n)
    assert kstest(u, "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(u[1:], u[:-1])[0, 1]) < 4 / len(n) ** 0.5
    # Streams and seeds have nothing to do with each other.
    for other in (drawn(3, 2, n), drawn(4, 1, n)):
        assert abs(np.corrcoef(u, other)[0, 1]) < 4 / len(n) ** 0.5


def test_drawn_numbers_are_those_of_the_index_whatever_is_asked_with_it():
    u = drawn(0, 0, np.arange(1000))
    np.testing.assert_array_equal(drawn(0, 0, np.array([999, 3, 3])), u[[999, 3, 3]])
    assert drawn(0, 0, np.array(7)) == u[7]
    assert ((u >= 0) & (u < 1)).all()


@pytest.mark.parametrize("share", [0.4, 0.8])
def test_a_share_of_the_labels_is_drawn_over_all_classes(share):
    labels = NoisyLabels(of=DIGITS, share=share).load("train").labels
    wrong = labels != CLEAN.labels
    # One in ten of what is drawn is right by chance; four standard errors of 1,260.
    expected = share * 0.9
    assert wrong.mean() == pytest.approx(expected, abs=4 * (expected * (1 - expected) / len(labels)) ** 0.5)
    assert chisquare(np.bincount(labels[wrong], minlength=10)).pvalue > 1e-3


def test_labels_are_the_same_every_time_and_a_larger_share_contains_the_smaller():
    load = lambda share, seed=0: NoisyLabels(of=DIGITS, share=share, seed=seed).load("train").labels
    np.testing.assert_array_equal(load(0.4), load(0.4))
    assert (load(0.4) != load(0.4, seed=1)).any()
    np.testing.assert_array_equal(load(0.0), CLEAN.labels)
    few, many = load(0.4), load(0.8)
    drawn_for_few = few != CLEAN.labels
    np.testing.assert_array_equal(many[drawn_for_few], few[drawn_for_few])


def test_images_and_held_out_labels_are_untouched():
    noisy = NoisyLabels(of=DIGITS, share=1.0)
    np.testing.assert_array_equal(noisy.load("train").images, CLEAN.images)
    for split in ("validation", "test"):
        np.testing.assert_array_equal(noisy.load(split).labels, DIGITS.load(split).labels)
    assert (noisy.classes, noisy.image_shape, noisy.augments) == (10, (8, 8, 1), True)


def test_a_noisy_label_stays_with_its_example_through_epochs_and_processes():
    source = NoisyLabels(of=Digits(shift=0), share=0.8)
    split, seen = source.load("train"), {}
    for rows in (np.arange(30), np.arange(30, 60)):
        batches = train_batches(source, 60, 0, 0, rows=rows)
        for _ in range(42):  # two epochs
            batch = next(batches)
            for image, label in zip(batch["image"], batch["label"], strict=True):
                assert seen.setdefault(image.tobytes(), int(label)) == label
    by_image = {source.normalise(i).tobytes(): int(n) for i, n in zip(split.images, split.labels, strict=True)}
    assert seen == by_image


def test_random_images_are_fixed_and_uniform_and_keep_the_labels():
    source = RandomImages(of=DIGITS)
    train = source.load("train")
    np.testing.assert_array_equal(train.arrays()["label"], CLEAN.labels)
    np.testing.assert_array_equal(train[7]["image"], source.load("train").take(np.array([3, 7]))["image"][1])
    assert kstest(train.arrays()["image"].ravel()[:10_000], "uniform").pvalue > 1e-3
    assert (train[7]["image"] != source.load("test")[7]["image"]).all()
    assert (train[7]["image"] != RandomImages(of=DIGITS, seed=1).load("train")[7]["image"]).all()
    assert not source.augments
    assert source.model_input(train[7])["image"].shape == (8, 8, 1)


@pytest.mark.parametrize("of", [DIGITS, Digits(pixels="unit")])
@pytest.mark.parametrize("source", [RandomImages, functools.partial(RandomData, examples=1260)])
def test_models_read_random_pixels_with_mean_zero_and_deviation_one_whatever_the_source(source, of):
    source = source(of=of)
    pixels = source.model_input(source.load("train").arrays())["image"]
    n = pixels.size
    # Four standard errors; that of the deviation of uniform numbers is sqrt((9/5 - 1) / 4 n).
    assert abs(pixels.mean(dtype=np.float64)) < 4 / n**0.5
    assert pixels.std(dtype=np.float64) == pytest.approx(source.std, abs=4 * (0.2 / n) ** 0.5)
    assert np.abs(pixels).max() <= 3**0.5 + 1e-6
    assert (pixels.dtype, source.std) == (np.float32, 1.0)


def test_random_data_of_so_many_examples_come_again_and_endless_ones_do_not():
    fixed, endless = RandomData(of=DIGITS, examples=32), RandomData(of=DIGITS)
    images = lambda source, n: [b["image"] for b in itertools.islice(train_batches(source, 16, 0, 0), n)]
    epochs = [{i.tobytes() for b in images(fixed, 4)[2 * e : 2 * e + 2] for i in b} for e in (0, 1)]
    assert epochs[0] == epochs[1]
    assert len(epochs[0]) == 32
    assert len({i.tobytes() for b in images(endless, 20) for i in b}) == 320
    assert len(endless.load("train")) == ENDLESS
    assert len(endless.load("test")) == 1024


def test_images_held_in_memory_are_those_that_are_drawn_one_by_one(monkeypatch):
    few = RandomData(of=DIGITS, examples=20, seed=3)
    held = [few.load("train").take(indices)["image"] for indices in ([3, 1, 3], 7)]
    monkeypatch.setattr(randomised, "_HELD", 0)
    for indices, images in zip(([3, 1, 3], 7), held, strict=True):
        np.testing.assert_array_equal(few.load("train").take(indices)["image"], images)
    assert [i.shape for i in held] == [(3, 8, 8, 1), (8, 8, 1)]


def test_labels_of_random_data_are_uniform_and_fixed():
    split = RandomData(of=DIGITS, examples=5000).load("train")
    labels = split.arrays()["label"]
    assert chisquare(np.bincount(labels, minlength=10)).pvalue > 1e-3
    assert labels.dtype == np.int32
    assert split[4999]["label"] == labels[4999]
    assert (RandomData(of=DIGITS, examples=5000, seed=1).load("train").arrays()["label"] != labels).any()


def test_a_subset_is_of_the_training_examples_alone_and_lies_in_a_larger_one():
    few, more, other = (Subset(of=DIGITS, examples=n, seed=s).load("train") for n, s in ((126, 0), (400, 0), (126, 1)))
    assert (len(few), len(more)) == (126, 400)
    places = {image.tobytes(): i for i, image in enumerate(CLEAN.images)}
    found = [[places[image.tobytes()] for image in split.images] for split in (few, more, other)]
    assert set(found[0]) < set(found[1])
    assert set(found[0]) != set(found[2])
    assert found[0] == sorted(found[0])
    np.testing.assert_array_equal(few.labels, CLEAN.labels[found[0]])
    # Uniform over the split: 126 places of 1,260 have a mean of 630 and a deviation of 364 / sqrt(126).
    assert np.mean(found[0]) == pytest.approx(630, abs=4 * 364 / 126**0.5)
    for split in ("validation", "test"):
        np.testing.assert_array_equal(Subset(of=DIGITS, examples=126).load(split).images, DIGITS.load(split).images)
    assert Subset(of=DIGITS, examples=126).augments


def test_a_subset_of_images_that_are_not_in_memory_is_those_of_its_places(tmp_path):
    for i in range(12):
        folder = tmp_path / "train" / f"class{i % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9), (20 * i, 0, 0)).save(folder / f"{i}.png")
    of = ImageFolder(path=str(tmp_path), classes=3, size=8)
    whole, few = of.load("train"), Subset(of=of, examples=5).load("train")
    reds = [round(255 * float(red) / 20) for red in few.arrays()["image"][:, 0, 0, 0]]
    assert (len(few), len(set(reds)), few.image_shape, few.most) == (5, 5, (8, 8, 3), whole.most)
    np.testing.assert_array_equal(few.arrays()["label"], np.array(reds) % 3)
    expected = np.sort(np.argsort(drawn(0, 0, np.arange(12)))[:5])
    np.testing.assert_array_equal(few.arrays()["image"], whole.take(expected)["image"])
    np.testing.assert_array_equal(few.take(np.array([4, 1]))["image"], whole.take(expected[[4, 1]])["image"])
    assert (few[2]["image"] == whole[expected[2]]["image"]).all()
    assert repr(few) == f"Chosen({whole!r}, 5, {expected.sum()})"
    batch = next(train_batches(Subset(of=of, examples=5), 5, 0, 0))
    assert sorted(batch["label"]) == sorted(few.arrays()["label"])
    with pytest.raises(ConfigError, match="13 asked for, the train split has 12"):
        Subset(of=of, examples=13).load("train")


def test_endless_data_are_not_read_whole():
    with pytest.raises(ConfigError, match=r"endless training data cannot be read whole; give data\.examples"):
        RandomData(of=DIGITS).load("train").arrays()


@pytest.mark.parametrize("name", ["noisy_labels", "random_images", "random_data", "subset"])
def test_each_is_built_by_name_and_mocked_in_the_shape_of_its_source(name):
    section = {"of": {"name": "cifar10"}} | {"noisy_labels": {"share": 0.4}, "subset": {"examples": 3}}.get(name, {})
    source = build(SOURCES[name], section)
    assert (source.classes, source.image_shape) == (10, (32, 32, 3))
    assert source.mock() == Mock((32, 32, 3), 10)
    assert source.inputs["image"].shape == (32, 32, 3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NoisyLabels(of=DIGITS, share=40.0), "share: must be in"),
        (lambda: NoisyLabels(of=DIGITS, share=float("nan")), "share: must be in"),
        (lambda: NoisyLabels(of=DIGITS, share=0.4, seed=-1), "seed: must be at least 0"),
        (lambda: NoisyLabels(of=Mock((4, 4, 1), None), share=0.4), "of: has no labels"),
        (lambda: RandomData(of=DIGITS, examples=0), "examples: must be at least 1"),
        (lambda: RandomData(of=DIGITS, held_out=0), "held_out: must be at least 1"),
        (lambda: Subset(of=DIGITS, examples=0), "examples: must be at least 1"),
        (lambda: Subset(of=DIGITS, examples=1261).load("train"), "examples: 1261 asked for, the train split has 1260"),
        (lambda: build(SOURCES["random_images"], {"of": {"name": "digit"}}), 'did you mean "digits"'),
    ],
)
def test_mistakes_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_split_that_does_not_exist_is_refused():
    for source in (NoisyLabels(of=DIGITS, share=0.4), RandomImages(of=DIGITS), RandomData(of=DIGITS)):
        with pytest.raises(ConfigError, match='unknown split "training"'):
            source.load("training")
    assert dataclasses.replace(RandomData(of=DIGITS), examples=3).load("train").arrays()["image"].shape == (3, 8, 8, 1)
