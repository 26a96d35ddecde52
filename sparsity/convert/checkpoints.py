"""The formats of checkpoints that can be read, by name, and the models in each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args, get_type_hints

from sparsity.config import ConfigError, lookup, parsed
from sparsity.convert import hf, hf_text, npz, t5x, timm
from sparsity.convert.described import check_sizes
from sparsity.convert.tensors import Opened
from sparsity.data import SOURCES as SOURCES_OF_DATA

# What it is, and what opens it, by model.
SOURCES = {
    "hf": (
        "a directory of Hugging Face, config.json and safetensors",
        {
            "t5": hf.open_t5,
            "gpt2": hf_text.open_gpt2,
            "bert": hf_text.open_bert,
            "llama": hf_text.open_llama,
            "vit": hf.open_vit,
        },
    ),
    "t5x": ("a directory of T5X, checkpoint_1000000 with its index and zarr arrays", {"t5": t5x.open_t5}),
    "timm": (
        "a directory of safetensors of timm or torchvision, with timm's config.json if there is one",
        {"vit": timm.open_vit, "resnet": timm.open_resnet},
    ),
    "npz": ("an .npz file of vision_transformer or big_vision", {"vit": npz.open_vit}),
}
MODELS = {
    "t5": "T5 v1.0, v1.1, ByT5, FLAN",
    "gpt2": "GPT-2",
    "bert": "BERT with its head for masked tokens",
    "llama": "Llama 1 to 3, TinyLlama",
    "vit": "ViT, DeiT without distillation",
    "resnet": "ResNet-18, 50, ...",
}
TEXT = ("t5", "gpt2", "bert", "llama")  # those that read text


def open_checkpoint(source: str, model: str, path: str | Path, next_sentence: bool = False) -> Opened:
    """The checkpoint of the format `source` at `path`; with `next_sentence` a BERT with that head too.

    Raises:
      ConfigError: it cannot be read, or is of no `model`, or of one that is larger than itself; or `next_sentence` is
        asked of one that is no BERT.
    """
    _, openers = lookup(SOURCES, source, "--source")
    lookup(MODELS, model, "--model")
    opener = lookup(openers, model, f"--model of --source={source}")
    if next_sentence and model != "bert":
        raise ConfigError(f"--next_sentence: a {model} has no head for it, only a bert")
    found = opener(path, next_sentence=True) if next_sentence else opener(path)
    check_sizes(found)
    return found


def images_of(found: Opened, name: str | None, settings: Mapping[str, str]) -> dict[str, Any]:
    """The settings of the source of images `name`, or of noise that the checkpoint can read.

    Pixels are scaled as the checkpoint's were, if that is known, the source can, and the settings say nothing else.

    Raises:
      ConfigError: there is no name, but settings, or no head that says how many classes noise has.
    """
    if name is not None:
        source = lookup(SOURCES_OF_DATA, name, "--data")
        scales = get_args(get_type_hints(source).get("pixels"))
        scale = {"pixels": found.pixels} if found.pixels in scales else {}
        return {"name": name} | scale | {key: parsed(value) for key, value in settings.items()}
    if settings:
        raise ConfigError("--set: is of --data, which is not given")
    if found.classes is None:
        raise ConfigError("--data: is needed, as the checkpoint has no head that says how many classes there are")
    return {"name": "mock", "image_shape": found.image, "classes": found.classes}


def check_images(found: Opened, shape: tuple[int, ...], classes: int) -> None:
    """That a checkpoint of an image model reads images of that shape and tells that many classes apart.

    Raises:
      ConfigError: its head has another number of classes, or its positions are those of images of another size.
    """
    if found.classes not in (None, classes):
        raise ConfigError(f"--data: has {classes} classes, and the checkpoint's head {found.classes}")
    if "position" in found.tensors and tuple(shape) != found.image:
        here, there = ("x".join(map(str, sizes)) for sizes in (shape, found.image))
        raise ConfigError(f"--data: has images of {here}, and the checkpoint reads {there}")
