"""The sources read what TFDS itself wrote, on disk: nothing of TFDS is mocked."""

import io

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.image_classification import cifar, mnist

from sparsity.config import ConfigError, build, to_dict
from sparsity.data import SOURCES, tfds_sources
from sparsity.data.pipeline import train_batches
from sparsity.data.tfds_sources import CIFAR10, MNIST

STORED = {"train": 30, "test": 7}  # examples of each split written here
SPLITS = {"train": 27, "validation": 3, "test": 7}
REAL = {MNIST: mnist.MNIST, CIFAR10: cifar.Cifar10}
SIZES = {MNIST: (54_000, 6_000, 10_000), CIFAR10: (45_000, 5_000, 10_000)}
EACH = pytest.mark.parametrize("cls", REAL, ids=lambda c: c.__name__)


def pixels(cls, split):
    """Random images whose first pixel is their index, and both extremes in each."""
    rng = np.random.default_rng(len(split))
    images = rng.integers(0, 256, (STORED[split], *cls.image_shape), dtype=np.uint8)
    images[:, 0, 0, 0] = np.arange(STORED[split])
    images[:, 0, 1, 0], images[:, 0, 2, 0] = 0, 255
    return images


def png(image):
    """An image as a PNG file; TFDS takes it as it is, where an array would need tensorflow."""
    file = io.BytesIO()
    Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(file, "PNG")
    file.seek(0)
    return file


def prepare(cls, folder):
    """Writes a small dataset with the real one's name, version and features, by TFDS's own writer."""
    with tfds.core.registered.skip_registration():

        class Small(tfds.core.GeneratorBasedBuilder):
            name = cls.dataset.split(":")[0]
            VERSION = REAL[cls].VERSION

            def _info(self):
                features = {
                    "image": tfds.features.Image(shape=cls.image_shape),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
                return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

            def _split_generators(self, manager):
                return {split: self._generate_examples(split) for split in STORED}

            def _generate_examples(self, split):
                for i, image in enumerate(pixels(cls, split)):
                    yield i, {"image": png(image), "label": i % 10}

    Small(data_dir=folder, file_format="array_record").download_and_prepare()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    for cls in REAL:
        prepare(cls, folder)
    return folder


@pytest.fixture
def looked_in(monkeypatch):
    """A function that makes a folder TFDS_DATA_DIR, which TFDS reads when it is imported."""
    tfds_sources._read.cache_clear()
    yield lambda folder: monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(folder))
    tfds_sources._read.cache_clear()


@pytest.fixture
def data(looked_in, prepared):
    looked_in(prepared)


@EACH
def test_the_settings_are_those_of_tfds(cls):
    builder = tfds.builder(cls.dataset)
    assert (builder.info.features["image"].shape, builder.info.features["label"].num_classes) == (cls.image_shape, 10)
    assert cls.classes == 10
    assert len(cls.mean) == len(cls.std) == cls.image_shape[-1]
    (name,) = [n for n, c in SOURCES.items() if c is cls]
    assert cls.dataset == f"{name}:3.*.*"
    assert to_dict(cls()) == {"held_out": 0.1}


@EACH
@pytest.mark.usefixtures("data")
class TestPrepared:
    def test_the_splits_have_their_sizes_types_and_range(self, cls):
        for name, size in SPLITS.items():
            split = cls().load(name)
            assert len(split) == size
            assert split.images.shape == (size, *cls.image_shape)
            assert (split.images.dtype, split.labels.dtype) == (np.float32, np.int32)
            assert (split.images.min(), split.images.max()) == (0, 1)

    def test_the_pixels_and_labels_are_those_that_were_written(self, cls):
        for stored, names in (("train", ("train", "validation")), ("test", ("test",))):
            splits = [cls().load(name) for name in names]
            images = np.concatenate([s.images for s in splits])
            index = np.round(255 * images[:, 0, 0, 0]).astype(int)
            # TFDS shuffles as it writes; every image is there once, in one split only.
            assert sorted(index) == list(range(STORED[stored]))
            np.testing.assert_array_equal(images, pixels(cls, stored)[index].astype(np.float32) / 255)
            np.testing.assert_array_equal(np.concatenate([s.labels for s in splits]), index % 10)

    def test_validation_is_the_end_of_the_stored_train_split(self, cls):
        whole = tfds.data_source(cls.dataset, split="train[90%:]")
        expected = [example["image"] / np.float32(255) for example in whole]
        np.testing.assert_array_equal(cls().load("validation").images, expected)

    @pytest.mark.parametrize(("held_out", "kept"), [(0.5, 15), (0.29, 21), (0.99, 0)])
    def test_another_share_can_be_held_out(self, cls, held_out, kept):
        assert [len(cls(held_out).load(name)) for name in SPLITS] == [kept, 30 - kept, 7]

    def test_a_split_cannot_be_changed_under_another(self, cls):
        with pytest.raises(ValueError, match="read-only"):
            cls().load("train").images[0] = 0

    def test_training_batches_are_the_normalised_images(self, cls):
        batch = next(train_batches(cls(), 27, 0, 0))
        split = cls().load("train")
        order = np.lexsort(batch["image"].reshape(27, -1).T)
        expected = cls().normalise(split.images)
        np.testing.assert_array_equal(batch["image"][order], expected[np.lexsort(expected.reshape(27, -1).T)])
        assert batch["image"].dtype == np.float32

    def test_an_unknown_split_is_refused(self, cls):
        with pytest.raises(ConfigError, match='unknown split "tset"; did you mean "test"'):
            cls().load("tset")


@EACH
def test_the_real_data_are_divided_as_price_et_al_divide_them(cls, monkeypatch):
    stored = {"train": sum(SIZES[cls][:2]), "test": SIZES[cls][2]}
    monkeypatch.setattr(tfds_sources, "_read", lambda _, s: (np.zeros((stored[s], 0)), np.zeros(stored[s], np.int32)))
    assert tuple(len(cls().load(name)) for name in SPLITS) == SIZES[cls]


@EACH
def test_normalised_pixels_with_the_stated_moments_have_mean_0_and_mean_square_1(cls):
    mean, std = np.array(cls.mean), np.array(cls.std)
    images = np.stack([mean - std, mean + std]).astype(np.float32)[:, None, None]  # [2, 1, 1, channels]
    normalised = cls().normalise(images)
    assert normalised.dtype == np.float32
    np.testing.assert_allclose(normalised[:, 0, 0].T, [[-1, 1]] * len(cls.mean), rtol=1e-6)


@EACH
def test_augmentation_changes_nothing(cls):
    example = {"image": np.ones(cls.image_shape), "label": 3}
    assert cls().augment(example, np.random.default_rng(0)) is example


@EACH
def test_a_dataset_that_is_not_there_is_one_line_with_the_directory_and_the_mend(cls, looked_in, tmp_path):
    looked_in(tmp_path)
    with pytest.raises(ConfigError) as error:
        cls().load("train")
    message, name = str(error.value), cls.dataset.split(":")[0]
    assert message.startswith(f"data: no {cls.dataset} in {tmp_path}/{name}/{REAL[cls].VERSION} (TFDS_DATA_DIR")
    assert f"tfds.builder('{name}', file_format='array_record').download_and_prepare()" in message
    assert "pip install tensorflow-cpu" in message
    assert "\n" not in message
    assert not any(tmp_path.iterdir())  # nothing was downloaded


def test_a_dataset_in_another_format_is_one_line(looked_in, tmp_path):
    prepare(MNIST, tmp_path)
    info = next(tmp_path.rglob("dataset_info.json"))
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    for file in tmp_path.rglob("*array_record*"):
        file.rename(str(file).replace("array_record", "tfrecord"))
    looked_in(tmp_path)
    with pytest.raises(
        ConfigError, match=r"^data: .*/mnist/3\.0\.1 is in the tfrecord format; delete it and prepare .*$"
    ):
        MNIST().load("train")


@pytest.mark.parametrize("held_out", [0, 1, -0.1])
def test_an_impossible_share_is_refused(held_out):
    with pytest.raises(ConfigError, match=rf"^config\.held_out: must be in \(0, 1\), got {float(held_out)}$"):
        build(MNIST, {"held_out": held_out})


def test_cifar_can_be_moved_and_mirrored():
    cifar = build(CIFAR10, {"padding": 4})
    assert (cifar.augments, CIFAR10().augments) == (True, False)
    assert to_dict(cifar) == {"held_out": 0.1, "padding": 4}
    image = np.random.default_rng(0).random((32, 32, 3), np.float32)
    made = [cifar.augment({"image": image, "label": 3}, np.random.default_rng(i)) for i in range(200)]
    assert {m["label"] for m in made} == {3}
    for m in (m["image"] for m in made):
        # What comes in has the mean colour, which the model reads as 0.
        outside = (m == np.float32(cifar.mean)).all(-1)
        np.testing.assert_allclose(cifar.normalise(m)[outside], 0, atol=1e-6)
        assert outside.sum() in {32**2 - (32 - down) * (32 - right) for down in range(5) for right in range(5)}
        assert np.isin(m[~outside], image).all()
    with pytest.raises(ConfigError, match=r"^config\.padding: must be in 0..31"):
        build(CIFAR10, {"padding": 32})
