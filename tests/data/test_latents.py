import numpy as np
import pytest

from sparsity.config import ConfigError, build, to_dict
from sparsity.data.digits import Digits
from sparsity.data.latents import RMS, Latents, _latents
from sparsity.data.mock import Mock
from tests.hostile import changed, refusal

SMALL = {"hidden": 8, "depth": 1, "steps": 3, "batch": 32}


@pytest.fixture(scope="module")
def made():
    """Latents of a tiny ConvMixer trained for three steps."""
    source = Latents(**SMALL)
    return source, {split: source.load(split) for split in ("train", "validation", "test")}


def test_there_is_a_vector_with_the_label_of_every_image(made):
    source, splits = made
    for name, split in splits.items():
        images = Digits(0).load(name)
        assert split.images.shape == (len(images), 1, 1, 8)
        np.testing.assert_array_equal(split.labels, images.labels)
    assert source.inputs["image"].shape == source.image_shape == (1, 1, 8)
    assert source.classes == 10


def test_the_root_mean_square_of_a_training_coordinate_is_the_papers(made):
    train = made[1]["train"].images.astype(np.float64)
    assert np.sqrt((train**2).mean()) == pytest.approx(RMS, rel=1e-6)
    assert made[1]["test"].images.std() == pytest.approx(RMS, rel=0.3)  # one factor for all splits


def test_latents_of_one_class_are_nearer_to_each_other_than_to_others():
    """The ConvMixer has learnt to tell digits apart: nearest class means read held-out ones."""
    source = Latents(hidden=32, depth=1, steps=200, batch=128)
    train, test = (source.load(split) for split in ("train", "test"))
    means = np.stack([train.images[train.labels == c].mean(0) for c in range(10)])
    distances = ((test.images[:, None] - means) ** 2).sum((2, 3, 4))
    assert (distances.argmin(1) == test.labels).mean() > 0.7  # chance is .1; .32 after one step


def test_they_are_a_function_of_the_settings(made):
    _latents.cache_clear()
    again = Latents(**SMALL).load("test").images
    np.testing.assert_array_equal(again, made[1]["test"].images)
    assert np.abs(Latents(**SMALL | {"seed": 1}).load("test").images - again).max() > 1e-3


def test_a_file_takes_the_place_of_training(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {s: rng.normal(size=(n, 4)) for s, n in (("train", 6), ("validation", 2), ("test", 3))}
    arrays |= {f"{s}_label": np.arange(len(x)) for s, x in arrays.items()}
    np.savez(tmp_path / "latents.npz", **arrays)
    source = Latents(hidden=4, file=str(tmp_path / "latents.npz"))
    scale = RMS / np.sqrt((arrays["train"] ** 2).mean())
    np.testing.assert_allclose(source.load("test").images[:, 0, 0], scale * arrays["test"], rtol=1e-6)
    np.testing.assert_array_equal(source.load("train").labels, np.arange(6))
    with pytest.raises(ConfigError, match=r'^data\.file: "train" of .* is \[6, 4\], expected \[6, 5\]$'):
        Latents(hidden=5, file=str(tmp_path / "latents.npz")).load("train")
    del arrays["test_label"]
    np.savez(tmp_path / "other.npz", **arrays)
    with pytest.raises(ConfigError, match=r'^data\.file: .*other\.npz has no array "test_label"$'):
        Latents(hidden=4, file=str(tmp_path / "other.npz")).load("train")


DAMAGE = {
    "pickles": ({"test": np.array([[{}] * 4] * 3)}, '"test" of .* is of object'),
    "words": ({"test": np.full((3, 4), "a")}, '"test" of .* is of <U1'),
    "not finite": ({"test": np.full((3, 4), np.nan)}, '"test" of .* has numbers that are not finite, or none but 0'),
    "zeros": ({"train": np.zeros((6, 4))}, '"train" of .* has numbers that are not finite, or none but 0'),
    "a class too many": ({"test_label": np.arange(3) + 8}, r'labels of "test" of .* are not in 0\.\.9'),
    "a class below": ({"test_label": np.arange(3) - 1}, r'labels of "test" of .* are not in 0\.\.9'),
    "labels of words": ({"test_label": np.array(["a"] * 3)}, "and its labels of <U1"),
    "one number": ({"test_label": np.int64(3)}, r'"test_label" of .* is \[\], expected \[n\]'),
    "none": ({"test": np.zeros((0, 4)), "test_label": np.arange(0)}, r'"test_label" of .* is \[0\], expected \[n\]'),
    "expanding": ({"test": np.zeros((3_000_000, 4))}, "its arrays would have .*: weights have not"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_file_of_something_else_is_refused_by_the_name_of_the_array(kind, tmp_path):
    rng, (changes, message) = np.random.default_rng(0), DAMAGE[kind]
    arrays = {s: rng.normal(size=(n, 4)) for s, n in (("train", 6), ("validation", 2), ("test", 3))}
    arrays |= {f"{s}_label": np.arange(len(x)) for s, x in arrays.items()}
    np.savez_compressed(tmp_path / "latents.npz", **arrays | changes)
    with pytest.raises(ConfigError, match=rf"^data\.file: .*{message}"):
        Latents(hidden=4, file=str(tmp_path / "latents.npz")).load("train")


def test_bytes_changed_anywhere_in_a_file_are_refused_by_its_name(tmp_path):
    rng, file, lines = np.random.default_rng(0), tmp_path / "latents.npz", []
    arrays = {s: rng.normal(size=(n, 4)) for s, n in (("train", 6), ("validation", 2), ("test", 3))}
    np.savez(file, **arrays, **{f"{s}_label": np.arange(len(x)) for s, x in arrays.items()})
    for data in changed(file.read_bytes(), 120):
        file.write_bytes(data)
        _latents.cache_clear()
        lines.append(refusal(lambda: Latents(hidden=4, file=str(file)).load("test")))
    assert sum(line is not None for line in lines) > 60
    assert all(line.startswith("data.file: ") and str(file) in line for line in lines if line)


def test_a_missing_file_a_wrong_split_and_bad_settings_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"^data\.file: there is no file .*none\.npz$"):
        Latents(file=str(tmp_path / "none.npz")).load("train")
    with pytest.raises(ConfigError, match='unknown split "tset"; did you mean "test"'):
        Latents(**SMALL).load("tset")
    with pytest.raises(ConfigError, match=r"^config\.kernel: must be odd and positive, got 2$"):
        build(Latents, {"kernel": 2})
    with pytest.raises(ConfigError, match=r"^config\.steps: must be at least 1, got 0$"):
        build(Latents, {"steps": 0})


def test_it_reads_back_from_its_json_and_has_a_mock():
    source = Latents(**SMALL)
    assert build(Latents, to_dict(source)) == source
    assert source.mock() == Mock((1, 1, 8), 10)


def test_a_count_draws_training_latents_with_their_labels_and_leaves_the_other_splits(made):
    whole, few = made[1], Latents(**SMALL, count=7)
    drawn = few.load("train")
    assert len(drawn) == 7
    of = [int(np.flatnonzero((whole["train"].images == image).all((1, 2, 3)))[0]) for image in drawn.images]
    assert len(set(of)) == 7
    np.testing.assert_array_equal(drawn.labels, whole["train"].labels[of])
    for split in ("validation", "test"):
        np.testing.assert_array_equal(few.load(split).images, whole[split].images)


def test_a_count_that_cannot_be_is_refused():
    with pytest.raises(ConfigError, match=r"^data\.count: there are 1260 training latents, not 1261$"):
        Latents(**SMALL, count=1261).load("train")
    with pytest.raises(ConfigError, match=r"^config\.count: must be at least 1 or None, got 0$"):
        build(Latents, {"count": 0})
