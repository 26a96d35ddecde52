"""Runs of networks that others have trained, as `launch.convert` makes them: to evaluate them, or to go on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from sparsity.recipes.li2022 import t5_text

BYT5_CLASSES = 384


def t5_checkpoint(model: Mapping[str, Any], classes: int, vocabulary: str | None, text: str | None) -> ConfigDict:
    """A run of a T5 that others have trained: to evaluate it, or to go on as T5s are fine-tuned, Adafactor at 1e-3.

    Args:
      model: its settings, its `name` among them.
      classes: rows of its embedding; 384 are ByT5's bytes.
      vocabulary: the file of its SentencePiece model.
      text: the user's text; None is Python's documentation.

    Raises:
      ValueError: there is no vocabulary.
    """
    if vocabulary is None and classes != BYT5_CLASSES:
        raise ValueError(f"vocabulary: the SentencePiece model of the {classes} tokens is needed (--vocabulary)")
    tokens = {"name": "sentencepiece", "path": vocabulary, "classes": classes}
    config = t5_text()
    config.name, config.steps, config.batch = "t5_checkpoint", 1000, 8
    config.model = ConfigDict(dict(model))
    config.data = ConfigDict(
        {
            "name": "span_corruption",
            "vocabulary": tokens if vocabulary else {"name": "bytes", "byt5": True},
            "corpus": {"name": "files", "path": text} if text else {"name": "python_docs"},
        }
    )
    config.optimizer = ConfigDict({"learning_rate": 1e-3, "rule": {"name": "adafactor"}, "grad_clip": None})
    config.mesh.data, config.evals.batch = -1, 8
    return config


def text_checkpoint(model: Mapping[str, Any], classes: int, vocabulary: str | None, text: str | None) -> ConfigDict:
    """A run of a GPT-2, a Llama or a BERT that others have trained: to evaluate it, or to go on with AdamW at 2e-5.

    GPT-2 and Llama predict the next token, BERT masked ones and, if it has that head, the next sentence. That rate is
    the one of BERT's fine-tuning (Devlin et al. 2019, App. A.3), and in the range of those that ReLUfy a Llama
    (Mirzadeh et al. 2023).

    Args:
      model: its settings, its `name` among them.
      classes: rows of its embedding.
      vocabulary: the file of its tokens, a tokenizer.json, or a SentencePiece model of another name.
      text: the user's text; None is Python's documentation.

    Raises:
      ValueError: there is no vocabulary.
    """
    if vocabulary is None:
        raise ValueError(f"vocabulary: the file of the {classes} tokens is needed (--vocabulary)")
    kind = {"name": "tokenizer"} if vocabulary.endswith(".json") else {"name": "sentencepiece", "extra": 0}
    masked = model["name"] == "bert"
    config = ConfigDict(
        {
            "name": f"{model['name']}_checkpoint",
            "steps": 1000,
            "batch": 8,
            "model": dict(model),
            "data": {
                "name": "masked_text" if masked else "next_tokens",
                "vocabulary": {**kind, "path": vocabulary, "classes": classes},
                "corpus": {"name": "files", "path": text} if text else {"name": "python_docs"},
                "length": 128,
            },
            "optimizer": {
                "learning_rate": 2e-5,
                "rule": {"name": "adamw", "b1": 0.9, "b2": 0.999, "eps": 1e-8, "weight_decay": 0.01},
                "schedule": {"name": "linear", "warmup": 100},
                "grad_clip": 1.0,
            },
            "mesh": {"data": -1, "model": 1},
            "every": {"record": 50, "eval": 250, "checkpoint": 250, "speed": 50},
            "evals": {"names": ("language", "sparsity", "neurons", "units", "cost"), "split": "test", "batch": 8},
        }
    )
    if model.get("next_sentence"):
        config.data.next_sentence = True
    return config


def image_checkpoint(model: Mapping[str, Any], data: Mapping[str, Any]) -> ConfigDict:
    """A run of a classifier of images that others have trained: to evaluate it, or to go on as ViTs are fine-tuned.

    That is by SGD of momentum .9 at 0.003, cosine decay, no weight decay and gradients clipped to norm 1 (Dosovitskiy
    et al. 2021, App. B.1.1, whose batches have 512 images).

    Args:
      model: its settings, its `name` among them.
      data: the source's settings, its `name` among them.
    """
    return ConfigDict(
        {
            "name": f"{model['name']}_checkpoint",
            "steps": 1000,
            "batch": 32,
            "model": dict(model),
            "data": dict(data),
            "optimizer": {
                "learning_rate": 3e-3,
                "rule": {"name": "sgd", "momentum": 0.9},
                "schedule": {"name": "cosine", "warmup": 100},
                "grad_clip": 1.0,
            },
            "mesh": {"data": -1, "model": 1},
            "every": {"record": 50, "eval": 250, "checkpoint": 250, "speed": 50},
            "evals": {
                "names": ("accuracy", "calibration", "sparsity", "neurons", "cost"),
                "split": "test",
                "batch": 32,
            },
        }
    )
