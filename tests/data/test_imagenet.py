"""TFDS's records are those that TFDS itself wrote, on disk; folders are made by hand."""

import dataclasses
import io
from itertools import islice

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from sparsity.config import ConfigError, build, to_dict
from sparsity.data import SOURCES, imagenet, images
from sparsity.data.augment import RandAugment
from sparsity.data.imagenet import ImageFolder, ImageNet21k, ImageNet2012, published, published_folders
from sparsity.data.images import Encoded, share_of
from sparsity.data.pipeline import train_batches
from sparsity.data.randomised import NoisyLabels, RandomImages

CLASSES = ("cat", "dog", "eel")
N = 60


def write(path, value, size=(12, 10)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, 255 - value, 7)).save(path)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """60 images to train on, of three classes by number, and three to validate."""
    folder = tmp_path_factory.mktemp("folder")
    for i in range(N):
        write(folder / "train" / CLASSES[i % 3] / f"{i}.png", 4 * i)
    for i, name in enumerate(CLASSES):
        write(folder / "val" / name / "0.png", 80 * i)
    return folder


def numbers(batch):
    """The numbers that the images were written with."""
    return np.round(255 * batch["image"][:, 0, 0, 0] / 4).astype(int)


def folder_of(root, **settings):
    return ImageFolder(path=str(root), classes=3, **{"size": 8} | settings)


def test_splits_are_their_folders(root):
    source = folder_of(root)
    train, validation = source.load("train"), source.load("validation")
    assert (len(train), len(validation)) == (N, 3)
    found = train.arrays()
    assert sorted(numbers(found)) == list(range(N))
    np.testing.assert_array_equal(found["label"], numbers(found) % 3)
    assert validation.arrays()["label"].tolist() == [0, 1, 2]
    with pytest.raises(ConfigError, match=r"has no folder test \(evals.split may be validation\)"):
        source.load("test")
    with pytest.raises(ConfigError, match='unknown split "tset"'):
        source.load("tset")


def test_without_a_folder_validation_is_held_out_by_the_path(root, tmp_path):
    (tmp_path / "train").symlink_to(root / "train")
    source = folder_of(tmp_path, held_out=0.2)
    found = {split: numbers(source.load(split).arrays()).tolist() for split in ("train", "validation")}
    held = {i for i in range(N) if share_of(f"{CLASSES[i % 3]}/{i}.png") < 0.2}
    assert (set(found["validation"]), set(found["train"])) == (held, set(range(N)) - held)
    assert 0 < len(held) < 30


def test_imagenets_validation_images_test_and_others_are_held_out(root, monkeypatch):
    monkeypatch.setattr(ImageNet2012, "classes", 3)
    source = ImageNet2012(path=str(root), size=8, held_out=0.2)
    parts = {split: source.load(split) for split in ("train", "validation", "test")}
    assert len(parts["test"]) == 3
    assert len(parts["train"]) + len(parts["validation"]) == N
    assert not set(numbers(parts["train"].arrays())) & set(numbers(parts["validation"].arrays()))


def test_imagenet21k_holds_both_splits_out_of_one_set(root):
    source = ImageNet21k(path=str(root / "train"), classes=3, size=8, held_out=0.2)
    found = [set(numbers(source.load(split).arrays())) for split in ("train", "validation", "test")]
    assert set.union(*found) == set(range(N))
    assert sum(map(len, found)) == N


def test_held_out_images_are_scaled_to_eight_sevenths_and_cropped(root):
    source = ImageFolder(path=str(root), classes=3, size=224)
    split = source.load("validation")
    assert (split.shorter, split.image_shape) == (256, (224, 224, 3))
    assert source.inputs["image"].shape == (224, 224, 3)


def test_training_batches_are_random_crops_that_every_order_of_threads_gives(root):
    source = folder_of(root, rand_augment=RandAugment(2, 9))
    take = lambda start, n, **kw: list(islice(train_batches(source, 6, 0, start, **kw), n))
    whole, resumed = take(0, 4, threads=0), take(2, 2, threads=3)
    for a, b in zip(whole[2:], resumed, strict=True):
        for name in ("image", "label"):
            np.testing.assert_array_equal(a[name], b[name])
    assert (whole[0]["image"].shape, whole[0]["image"].dtype) == ((6, 8, 8, 3), np.float32)
    assert abs(whole[0]["image"]).max() <= 1


def test_a_crop_lies_within_the_image_and_is_mirrored_half_of_the_time():
    ramp = np.broadcast_to(np.arange(40, dtype=np.uint8)[:, None] * 5, (40, 40))
    image = np.stack([ramp.T, ramp, np.zeros_like(ramp)], -1)  # red grows to the right, green downwards
    source = ImageFolder(path="", classes=1, size=8, pixels="unit")
    made = [source.augment({"image": image}, np.random.default_rng(i))["image"] for i in range(1000)]
    across = np.array([(m[:, -1, 0] - m[:, 0, 0]).mean() for m in made])
    down = np.array([(m[-1, :, 1] - m[0, :, 1]).mean() for m in made])
    assert (down > 0).all()
    # 1,000 coins: four standard errors.
    assert abs((across < 0).mean() - 0.5) < 4 * 0.5 / 1000**0.5
    # A crop of w pixels, scaled to 8, has ends 7 w / 8 apart, less .19 w / 8 as the filter of an end lies within.
    area = np.abs(across) * down * (255 / 5) ** 2 * (8 / 6.81) ** 2 / 40**2
    assert 0.065 < area.min() < 0.12
    # Uniform over .08..1, less what does not fit: the share log(1 / a) / log(4 / 3) of areas a > 3/4 does, so that
    # the mean is .478, with a standard error of .007.
    assert abs(area.mean() - 0.478) < 0.03
    still = dataclasses.replace(source, crop="centre", flip=False)
    assert not still.augments
    central = dataclasses.replace(source, crop="centre", size=14)  # of 16 pixels: as many on either side
    one = central.augment({"image": image}, np.random.default_rng(0))["image"]
    assert abs(one[:, :, 0].mean() - image[..., 0].mean() / 255) < 0.01


def test_without_changes_training_images_are_those_that_are_held_out(root):
    source = folder_of(root, crop="centre", flip=False)
    batch = next(train_batches(source, N, 0, 0))
    expected = source.model_input(source.load("train").arrays())["image"]
    sort = lambda x: x.reshape(N, -1)[np.argsort(x[:, 0, 0, 0])]
    np.testing.assert_array_equal(sort(batch["image"]), sort(expected))


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [
        ("unit", (0.5, 1.0, 0.0)),
        ("signed", (0, 1, -1)),
        ("standardised", (0.015 / 0.229, 0.544 / 0.224, -0.406 / 0.225)),
    ],
)
def test_pixels_are_in_the_units_that_are_asked_for(pixels, expected):
    source = ImageFolder(path="", classes=1, pixels=pixels)
    got = source.normalise(np.float32([[[[0.5, 1.0, 0.0]]]]))
    np.testing.assert_allclose(got[0, 0, 0], expected, atol=1e-6)
    assert got.dtype == np.float32
    assert source.std == pytest.approx({"unit": 0.226, "signed": 0.452, "standardised": 1.0}[pixels])


def test_noisy_labels_stand_in_front_of_images_that_are_not_in_memory(root):
    clean, noisy = folder_of(root), NoisyLabels(of=folder_of(root), share=1.0)
    split, was = noisy.load("train"), clean.load("train").arrays()
    labels = split.arrays()["label"]
    # Two thirds of what is drawn over three classes is wrong; four standard errors.
    assert abs((labels != was["label"]).mean() - 2 / 3) < 4 * (2 / 9 / N) ** 0.5
    np.testing.assert_array_equal(split.take(np.array([3, 50]))["label"], labels[[3, 50]])
    np.testing.assert_array_equal(split.arrays()["image"], was["image"])
    assert (split[7]["label"], split[7]["image"].dtype, len(split), split.most) == (labels[7], np.uint8, N, 50_000)
    batch = next(train_batches(noisy, N, 0, 0))
    assert sorted(batch["label"]) == sorted(labels)
    np.testing.assert_array_equal(noisy.load("validation").arrays()["label"], [0, 1, 2])
    in_memory = NoisyLabels.relabelled(noisy, was["label"], np.arange(N))
    np.testing.assert_array_equal(labels, in_memory)


def test_random_images_keep_the_labels_of_images_that_are_not_in_memory(root):
    split = RandomImages(of=folder_of(root, evaluated=5)).load("train")
    assert (len(split), len(split.arrays()["label"])) == (N, 5)
    np.testing.assert_array_equal(split.take(np.arange(N))["label"], folder_of(root).load("train").labels)


def test_folders_are_read_in_the_published_layout(tmp_path):
    for name in ("gaussian_noise", "shot_noise", "impulse_noise"):
        for severity in range(1, 6):
            write(tmp_path / name / str(severity) / "dog" / "1.JPEG", 100, (224, 224))
    found = published_folders(str(tmp_path))
    assert len(found) == 15
    split = published(found["shot", 3], CLASSES, 224, None)
    assert split.arrays()["label"].tolist() == [1]
    assert (split.shorter, split.size) == (224, 224)
    (tmp_path / "shot_noise" / "3" / "dog" / "1.JPEG").unlink()
    (tmp_path / "shot_noise" / "3" / "dog").rmdir()
    (tmp_path / "shot_noise" / "3").rmdir()
    with pytest.raises(ConfigError, match=r"^evals.imagenet_c: .*shot_noise/3 is not there"):
        published_folders(str(tmp_path))


def test_a_wrong_number_of_classes_is_refused(root):
    with pytest.raises(ConfigError, match=r"train has 3 class folders, and data\.classes are 4"):
        ImageFolder(path=str(root), classes=4).load("train")


@pytest.mark.parametrize(
    ("name", "section", "message"),
    [
        ("image_folder", {"path": "x"}, "config.classes: required"),
        ("image_folder", {"path": "x", "classes": 0}, "config.classes: must be at least 1"),
        ("imagenet2012", {"size": 0}, "config.size: must be at least 1"),
        ("imagenet2012", {"held_out": 0.5}, "config.held_out: must be in"),
        ("imagenet2012", {"pixels": "sined"}, 'did you mean "signed"'),
        ("imagenet21k", {"rand_augment": {"magnitude": 11.0}}, "config.rand_augment.magnitude: must be in"),
    ],
)
def test_mistakes_are_refused(name, section, message):
    with pytest.raises(ConfigError, match=message):
        build(SOURCES[name], section)


def test_a_source_reads_back_from_its_json_and_is_mocked_without_files():
    source = build(SOURCES["imagenet21k"], {"rand_augment": {"layers": 2}})
    assert build(ImageNet21k, to_dict(source)) == source
    assert (source.mock().classes, source.mock().image_shape) == (21_841, (224, 224, 3))


def prepare(dataset, version, features, folder, splits):
    """Writes a small dataset by TFDS's own writer; labels are numbers modulo 3, images as `write` has them."""
    with tfds.core.registered.skip_registration():

        class Small(tfds.core.GeneratorBasedBuilder):
            name = dataset
            VERSION = tfds.core.Version(str(version))

            def _info(self):
                return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

            def _split_generators(self, manager):
                return {split: self._generate_examples(n) for split, n in splits.items()}

            def _generate_examples(self, n):
                for i in range(n):
                    file = io.BytesIO()
                    Image.new("RGB", (12, 10), (4 * i, 255 - 4 * i, 7)).save(file, "PNG")
                    file.seek(0)
                    example = {"image": file, "label": i % 3, "file_name": f"{i}.JPEG"}
                    yield i, {key: example[key] for key in features}

    Small(data_dir=folder, file_format="array_record").download_and_prepare()


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    real = tfds.builder("imagenet2012")
    label = tfds.features.ClassLabel(names=real.info.features["label"].names)
    features = {"image": tfds.features.Image(), "label": label, "file_name": tfds.features.Text()}
    prepare("imagenet2012", real.version, features, folder, {"train": 50, "validation": 6})
    features = {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(names=list(CLASSES))}
    prepare("imagenet21k", "1.0.0", features, folder, {"full": 40})
    return folder


@pytest.fixture
def looked_in(monkeypatch):
    """A function that makes a folder TFDS_DATA_DIR."""
    imagenet._data_source.cache_clear()
    yield lambda folder: monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(folder))
    imagenet._data_source.cache_clear()


def test_tfds_has_imagenet_with_the_classes_and_names_that_are_assumed():
    label = tfds.builder(ImageNet2012.dataset).info.features["label"]
    assert label.num_classes == ImageNet2012.classes
    assert label.names[0] == "n01440764"
    assert sorted(label.names) == label.names


def test_imagenet_as_tfds_prepares_it(stored, looked_in):
    looked_in(stored)
    source = ImageNet2012(size=8, held_out=0.2)
    parts = {split: source.load(split) for split in ("train", "validation", "test")}
    assert {split: len(part) for split, part in parts.items()} == {"train": 40, "validation": 10, "test": 6}
    found = {split: part.arrays() for split, part in parts.items()}
    seen = np.concatenate([numbers(found["train"]), numbers(found["validation"])])
    assert sorted(seen) == list(range(50))
    whole = np.array(
        [np.asarray(e["image"])[0, 0, 0] // 4 for e in tfds.data_source("imagenet2012", split="train[80%:]")]
    )
    np.testing.assert_array_equal(numbers(found["validation"]), whole)
    for arrays in found.values():
        np.testing.assert_array_equal(arrays["label"], numbers(arrays) % 3)
    np.testing.assert_array_equal(parts["train"].labels[np.array([[5, 1]])], found["train"]["label"][[[5, 1]]])
    np.testing.assert_array_equal(parts["train"].labels[:4], found["train"]["label"][:4])
    assert source.class_names()[:2] == ("n01440764", "n01443537")
    assert parts["test"].stored.read(2)[2] == "example 2 of imagenet2012:5.*.* validation"
    batch = next(train_batches(source, 8, 0, 0))
    assert batch["image"].shape == (8, 8, 8, 3)


def test_imagenet21k_as_somebody_prepared_it(stored, looked_in):
    looked_in(stored)
    source = ImageNet21k(size=8, classes=3, held_out=0.1)
    assert [len(source.load(split)) for split in ("train", "validation", "test")] == [32, 4, 4]
    with pytest.raises(ConfigError, match=r"^data\.classes: imagenet21k has 3 classes, not 21841$"):
        ImageNet21k().load("train")


@pytest.mark.parametrize(("source", "where"), [(ImageNet2012(), "/imagenet2012/5.1.0"), (ImageNet21k(), "")])
def test_data_that_are_not_there_are_one_line(source, where, looked_in, tmp_path):
    looked_in(tmp_path)
    with pytest.raises(ConfigError) as error:
        source.load("train")
    assert str(error.value).startswith(f"data: no {source.dataset} in {tmp_path}{where} (TFDS_DATA_DIR")
    assert "\n" not in str(error.value)


def test_splits_that_would_be_empty_are_refused(root):
    with pytest.raises(ConfigError, match=r"^data\.held_out: of the images in .* none is left"):
        ImageNet21k(path=str(root / "train"), classes=3, held_out=1e-9).load("test")


def test_a_broken_file_stops_training_with_its_name(root, tmp_path):
    for i in range(3):
        write(tmp_path / "train" / CLASSES[i] / f"{i}.png", i)
    broken = tmp_path / "train" / "dog" / "1.png"
    broken.write_bytes(b"broken")
    (tmp_path / "val").symlink_to(root / "val")
    images.list_files.cache_clear()
    with pytest.raises(ConfigError, match=f"^data: {broken} cannot be decoded as an image"):
        next(train_batches(folder_of(tmp_path), 3, 0, 0))
    assert isinstance(folder_of(tmp_path).load("validation"), Encoded)
