"""ViTs of `transformers`, written by hand; test_peer_images.py compares them with torch's."""

import dataclasses
import json
import re

import numpy as np
import pytest
from safetensors.numpy import load_file

from sparsity.config import ConfigError
from sparsity.convert import hf
from sparsity.models.resnet import ResNetConfig
from sparsity.ops.sparsifiers import Gelu, GeluTanh, Relu, TopK
from tests.convert import images


def written(path, changes=(), arrays=None, **kind):
    tensors = images.hf_vit(arrays or images.vit(), **kind)
    return tensors, images.write_safetensors(path, tensors, images.HF_CONFIG | dict(changes))


def test_settings_and_parameters_are_those_it_was_made_of(tmp_path):
    _, path = written(tmp_path / "hf")
    found = hf.open_vit(path)
    assert (found.classes, found.image) == (images.CLASSES, images.SHAPE)
    model = found.model
    assert (model.d_model, model.layers, model.heads, model.patch) == (8, 2, 2, 2)
    assert (model.mlp.d_ff, model.mlp.sparsifier, model.norm_epsilon) == (12, Gelu(), 1e-12)
    assert (model.pool, model.positions, model.representation) == ("cls", "learned", None)
    _, variables = images.variables_of(found)
    images.assert_same(variables["params"], images.vit())


def test_there_and_back_is_the_same_to_the_byte(tmp_path):
    tensors, path = written(tmp_path / "hf")
    found = hf.open_vit(path)
    _, variables = images.variables_of(found)
    hf.write(variables["params"], found.model, found.classes, found.image, tmp_path / "back")
    back = load_file(tmp_path / "back" / "model.safetensors")
    assert {name: x.tobytes() for name, x in back.items()} == {name: x.tobytes() for name, x in tensors.items()}
    described = json.loads((tmp_path / "back" / "config.json").read_text())
    assert described.items() >= images.HF_CONFIG.items()
    assert described["architectures"] == ["ViTForImageClassification"]
    assert len(described["id2label"]) == images.CLASSES
    with pytest.raises(ConfigError, match=r"^--path: .* is not empty$"):
        hf.write_vit(variables["params"], found.model, found.classes, found.image, path)


@pytest.mark.parametrize("pooler", [8, 4, None])
def test_a_vit_model_has_a_new_head_behind_its_pooler_and_goes_back(pooler, tmp_path):
    arrays = images.vit(representation=pooler)
    size = {} if pooler is None else {"pooler_output_size": pooler}
    tensors, path = written(tmp_path / "hf", size, arrays, prefix="", head=False)
    found = hf.open_vit(path)
    assert (found.classes, found.model.representation) == (None, pooler)
    _, variables = images.variables_of(found, classes=7)
    head = {"kernel": np.zeros((pooler or 8, 7)), "bias": np.zeros(7)}
    images.assert_same(variables["params"], arrays | {"head": head})
    hf.write_vit(variables["params"], found.model, 7, found.image, tmp_path / "back")
    back = load_file(tmp_path / "back" / "model.safetensors")
    assert {name: x.tobytes() for name, x in back.items()} == {name: x.tobytes() for name, x in tensors.items()}
    assert json.loads((tmp_path / "back" / "config.json").read_text())["architectures"] == ["ViTModel"]


def test_biases_that_are_not_there_are_zeros_and_what_another_task_reads_is_passed_over(tmp_path):
    arrays = images.vit()
    tensors = images.hf_vit(arrays) | {"vit.embeddings.mask_token": np.ones((1, 1, 8), np.float32)}
    for name in ("query", "key", "value"):
        for i in range(images.LAYERS):
            del tensors[f"vit.encoder.layer.{i}.attention.attention.{name}.bias"]
            arrays[f"block_{i}"]["attention"][name]["bias"] = np.zeros(8)
    path = images.write_safetensors(tmp_path, tensors, images.HF_CONFIG | {"qkv_bias": False})
    images.assert_same(images.variables_of(hf.open_vit(path))[1]["params"], arrays)


SETTINGS = {
    "relu": ({"hidden_act": "relu"}, lambda m: m.mlp.sparsifier == Relu()),
    "gelu_new": ({"hidden_act": "gelu_new"}, lambda m: m.mlp.sparsifier == GeluTanh()),
    "gelu_pytorch_tanh": ({"hidden_act": "gelu_pytorch_tanh"}, lambda m: m.mlp.sparsifier == GeluTanh()),
    "dropout": ({"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}, lambda m: m.dropout == 0.1),
    "pairs": ({"image_size": [4, 6], "patch_size": [2, 2]}, lambda m: m.patch == 2),
}


@pytest.mark.parametrize("kind", SETTINGS)
def test_settings_are_read(kind):
    changes, right = SETTINGS[kind]
    model, image = hf.vit_config(images.HF_CONFIG | changes, pooled=False)
    assert right(model)
    assert image == ((4, 6, 3) if kind == "pairs" else images.SHAPE)


def test_what_is_not_written_is_transformers_default():
    model, image = hf.vit_config({"model_type": "vit"}, pooled=True)
    assert (model.d_model, model.layers, model.heads, model.patch, model.mlp.d_ff) == (768, 12, 12, 16, 3072)
    assert (model.norm_epsilon, model.representation, image) == (1e-12, 768, (224, 224, 3))


REFUSED = {
    "another model": ({"model_type": "deit"}, '--model: vit, but the checkpoint is a "deit"'),
    "activation": ({"hidden_act": "gelu_n"}, 'unknown hidden_act of config.json "gelu_n"; did you mean "gelu_new"?'),
    "patches": ({"patch_size": [2, 4]}, "config.json has patches of 2x4, and this model's are square"),
    "dropout": ({"hidden_dropout_prob": 0.1}, "rates of dropout 0.1 and 0.0, and the model here has one"),
    "pooler": ({"pooler_act": "relu"}, 'pooler_act "relu" is not the tanh of the model here'),
    "heads": ({"num_attention_heads": 3}, "heads: 3 does not divide d_model 8"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_a_vit_here_cannot_be_is_refused(kind):
    changes, message = REFUSED[kind]
    with pytest.raises(ConfigError, match=re.escape(message)):
        hf.vit_config(images.HF_CONFIG | changes, pooled=True)


QUERY = "vit.encoder.layer.1.attention.attention.query.weight"
DAMAGE = {
    "missing": (lambda t: t.pop(QUERY), f"has no tensor {QUERY}, which block_1/attention/query/kernel is made of"),
    "extra": (lambda t: t.update(more=t[QUERY]), "nothing is made of its tensor more, of shape (8, 8)"),
    "shape": (
        lambda t: t.update({QUERY: t[QUERY][:6]}),
        f"{QUERY} has shape (6, 8), and block_1/attention/query/kerne",
    ),
    "biases": (lambda t: t.pop(QUERY.replace("weight", "bias")), "has no tensor vit.encoder.layer.1.attention.attent"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_tensors_that_do_not_fit_are_refused_by_name(kind, tmp_path):
    tensors = images.hf_vit(images.vit())
    change, message = DAMAGE[kind]
    change(tensors)
    found = hf.open_vit(images.write_safetensors(tmp_path, tensors, images.HF_CONFIG))
    with pytest.raises(ConfigError, match=re.escape(message)):
        images.variables_of(found)


OTHERS = {
    "top_k": (lambda m: {"mlp": type(m.mlp)(12, TopK(3))}, "ViTs of ReLU, gelu or gelu_tanh MLPs with biases only"),
    "gated": (lambda m: {"mlp": type(m.mlp)(12, Gelu(), gated=True)}, "ViTs of ReLU, gelu or gelu_tanh"),
    "gap": (lambda m: {"pool": "gap"}, "a class token, learned positions and a linear head only"),
    "sincos": (lambda m: {"positions": "sincos"}, "a class token, learned positions and a linear head only"),
    "a layer in front of the head": (lambda m: {"representation": 4}, "learned positions and a linear head only"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_a_vit_that_transformers_has_not_is_not_written(kind, tmp_path):
    change, message = OTHERS[kind]
    model, image = hf.vit_config(images.HF_CONFIG, pooled=False)
    params = {"head": {"kernel": np.ones((8, 5))}}
    with pytest.raises(ConfigError, match=message):
        hf.write_vit(params, dataclasses.replace(model, **change(model)), 5, image, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_another_model_is_not_written(tmp_path):
    with pytest.raises(ConfigError, match=r"and the model is ResNetConfig$"):
        hf.write({}, ResNetConfig(Relu()), 5, (4, 4, 3), tmp_path / "back")
