import re

import pytest

from sparsity.config import ConfigError
from sparsity.convert.checkpoints import check_images, images_of, open_checkpoint
from sparsity.convert.tensors import Opened, Tensor


def opened(classes=10, image=(32, 32, 3), tensors=(), pixels=None):
    return Opened(None, None, classes, dict(tensors), lambda name: False, image=image, pixels=pixels)


@pytest.mark.parametrize(
    ("source", "model", "message"),
    [
        ("tim", "vit", 'unknown --source "tim"; did you mean "timm"?'),
        ("timm", "vti", 'unknown --model "vti"; did you mean "vit"?'),
        ("npz", "resnet", 'unknown --model of --source=npz "resnet"; valid: vit'),
        ("t5x", "vit", 'unknown --model of --source=t5x "vit"; valid: t5'),
    ],
)
def test_what_is_not_in_the_tables_is_refused(source, model, message):
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        open_checkpoint(source, model, "nowhere")


def test_noise_has_the_checkpoints_shape_and_classes_and_a_source_its_settings():
    assert images_of(opened(), None, {}) == {"name": "mock", "image_shape": (32, 32, 3), "classes": 10}
    expected = {"name": "cifar10", "held_out": 0.2, "pixels": "unit"}
    assert images_of(opened(), "cifar10", {"held_out": "0.2", "pixels": "unit"}) == expected


def test_noise_takes_no_settings_and_needs_a_head():
    with pytest.raises(ConfigError, match=r"^--set: is of --data, which is not given$"):
        images_of(opened(), None, {"held_out": "0.2"})
    with pytest.raises(ConfigError, match=r"^--data: is needed, as the checkpoint has no head"):
        images_of(opened(classes=None), None, {})


def test_only_a_bert_has_a_head_for_the_next_sentence(tmp_path):
    with pytest.raises(ConfigError, match=r"^--next_sentence: a gpt2 has no head for it, only a bert$"):
        open_checkpoint("hf", "gpt2", tmp_path, next_sentence=True)


def test_data_fit_the_head_and_the_positions():
    learned = {"position": Tensor(("pos_embed",))}
    check_images(opened(tensors=learned), (32, 32, 3), 10)
    check_images(opened(classes=None), (32, 32, 3), 7)
    check_images(opened(), (64, 48, 3), 10)  # a ResNet's
    with pytest.raises(ConfigError, match=r"^--data: has 7 classes, and the checkpoint's head 10$"):
        check_images(opened(), (32, 32, 3), 7)
    with pytest.raises(ConfigError, match=r"^--data: has images of 28x28x1, and the checkpoint reads 32x32x3$"):
        check_images(opened(tensors=learned), (28, 28, 1), 10)


def test_pixels_are_scaled_as_the_checkpoints_were_where_the_source_can_and_nobody_says_otherwise():
    taken = lambda theirs, name, **settings: images_of(opened(pixels=theirs), name, settings).get("pixels")
    assert taken("standardised", "imagenet2012") == "standardised"  # whose own are signed
    assert taken("signed", "image_folder", path="photos") == "signed"
    assert taken("signed", "image_folder", path="photos", pixels="unit") == "unit"
    assert taken("signed", "cifar10") is None  # it has no such scale
    assert taken(None, "imagenet2012") is None
    with pytest.raises(ConfigError, match=r'^unknown --data "imagenet"; did you mean "imagenet2'):
        images_of(opened(), "imagenet", {})
