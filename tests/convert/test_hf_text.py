"""GPT-2, BERT and Llama of `transformers`, written by hand, against what torch made of them.

test_peer_text.py keeps the golden values true.
"""

import shutil

import ml_dtypes
import numpy as np
import pytest

from sparsity import recipes
from sparsity.config import ConfigError, to_dict
from sparsity.convert import hf_text
from sparsity.models.llama import LlamaConfig
from sparsity.ops.sparsifiers import Gelu, GeluTanh, Relu, Silu
from sparsity.run import run_config
from tests.convert import images, texts


def opened(case, path, changes=(), rename=lambda name: name, **more):
    tensors = {rename(name): x for name, x in texts.tensors_of(case).items()} | more
    images.write_safetensors(path, tensors, texts.CONFIGS[case] | dict(changes))
    return texts.OPEN[case.split()[0]](path)


@pytest.mark.parametrize("case", texts.CONFIGS)
def test_logits_are_those_of_torch(case, tmp_path):
    expected = texts.golden(case)
    assert np.abs(expected).max() > 0.3
    # Both are float32, two blocks deep.
    assert np.abs(texts.logits_of(opened(case, tmp_path)) - expected).max() < 1e-5 * np.abs(expected).max()


def test_settings_are_those_of_the_file(tmp_path):
    gpt2, bert, llama, tied = (opened(case, tmp_path / case) for case in texts.CONFIGS)
    assert [f.classes for f in (gpt2, bert, llama, tied)] == [texts.V] * 4
    assert [f.model.mlp.sparsifier for f in (gpt2, bert, llama)] == [GeluTanh(), Gelu(), Silu()]
    assert (gpt2.model.positions, gpt2.model.dropout, gpt2.model.mlp.d_ff) == (texts.POSITIONS, 0.1, texts.FF)
    assert isinstance(llama.model, LlamaConfig)
    assert (llama.model.kv_heads, llama.model.theta, llama.model.epsilon, llama.model.tied) == (2, 50.0, 1e-5, False)
    assert (tied.model.kv_heads, tied.model.head_size, tied.model.epsilon, tied.model.tied) == (4, 6, 1e-6, True)
    relu = opened("llama", tmp_path / "relu", {"hidden_act": "relu"})
    assert relu.model.mlp.sparsifier == Relu()


def test_rotations_of_transformers_5_stand_in_one_entry(tmp_path):
    new = {"rope_parameters": {"rope_type": "default", "rope_theta": 7.0}}
    assert opened("llama", tmp_path, new).model.theta == 7.0


OLD = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}


def test_names_of_old_checkpoints_and_tensors_that_nobody_reads(tmp_path):
    buffer = {"h.0.attn.bias": np.ones((1, 1, 4, 4), np.float32)}
    found = opened("gpt2", tmp_path / "gpt2", rename=lambda name: name.removeprefix("transformer."), **buffer)
    np.testing.assert_allclose(texts.logits_of(found), texts.golden("gpt2"), rtol=1e-4, atol=1e-5)

    def old(name):
        for new, was in OLD.items():
            name = name.replace(new, was)
        return name

    unread = {"cls.seq_relationship.weight": np.ones((2, 8), np.float32)}
    found = opened("bert", tmp_path / "bert", rename=old, **unread)
    np.testing.assert_allclose(texts.logits_of(found), texts.golden("bert"), rtol=1e-4, atol=1e-5)


def test_a_bert_comes_with_its_other_head_if_that_is_asked_for(tmp_path):
    rng = np.random.default_rng(0)
    shapes = {"bert.pooler.dense": (texts.D, texts.D), "cls.seq_relationship": (2, texts.D)}
    head = {f"{name}.weight": rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    head |= {f"{name}.bias": rng.normal(size=shape[0]).astype(np.float32) for name, shape in shapes.items()}
    left = opened("bert", tmp_path, **head)
    assert not left.model.next_sentence
    found = hf_text.open_bert(tmp_path, next_sentence=True)
    outputs = texts.outputs_of(found, texts.TOKENS, np.zeros_like(texts.TOKENS))
    np.testing.assert_allclose(outputs.tokens, texts.golden("bert"), rtol=1e-4, atol=1e-5)
    _, params = texts.params_of(found)
    np.testing.assert_array_equal(params["pooler"]["kernel"], head["bert.pooler.dense.weight"].T)
    np.testing.assert_array_equal(params["next_sentence"]["bias"], head["cls.seq_relationship.bias"])
    model = {"name": "bert", **to_dict(found.model), "positions": 512}
    section = recipes.text_checkpoint(model, found.classes, "tokenizer.json", None)
    assert run_config(section).data.next_sentence
    opened("bert", tmp_path / "without")
    without = hf_text.open_bert(tmp_path / "without", next_sentence=True)
    with pytest.raises(ConfigError, match=r"has no tensor bert\.pooler\.dense\.weight"):
        texts.params_of(without)


REFUSED = [
    ("gpt2", {"model_type": "bert"}, r'--model: gpt2, but the checkpoint is a "bert"'),
    ("gpt2", {"layer_norm_epsilon": 1e-6}, r"layer_norm_epsilon 1e-06 is not the 1e-05 of the model here"),
    ("gpt2", {"activation_function": "mish"}, r'unknown activation of config.json "mish"; did you mean "swish"'),
    ("gpt2", {"embd_pdrop": 0.0}, r"resid_pdrop 0.1, embd_pdrop 0.0, attn_pdrop 0.1 differ"),
    ("gpt2", {"tie_word_embeddings": False}, r"tie_word_embeddings False is not the True of the model here"),
    ("bert", {"tie_word_embeddings": False}, r"tie_word_embeddings False is not the True of the model here"),
    ("bert", {"hidden_act": "relu"}, r"hidden_act relu is not the gelu of the model here"),
    ("llama", {"attention_bias": True}, r"attention_bias True is not the False of the model here"),
    ("llama", {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, r'rotations of the kind "llama3"'),
    ("llama", {"num_attention_heads": 3, "num_key_value_heads": 3}, r"heads: 3 does not divide d_model 8"),
]


@pytest.mark.parametrize(("case", "changes", "message"), REFUSED)
def test_what_the_models_here_have_not_is_refused_in_one_line(case, changes, message, tmp_path):
    with pytest.raises(ConfigError, match=message) as caught:
        opened(case, tmp_path, changes)
    assert "\n" not in str(caught.value)


def test_a_tensor_that_is_missing_or_too_many_names_itself(tmp_path):
    extra = {"model.layers.0.self_attn.q_proj.bias": np.zeros(8, np.float32)}
    found = opened("llama", tmp_path / "extra", **extra)
    with pytest.raises(ConfigError, match=r"nothing is made of its tensor model\.layers\.0\.self_attn\.q_proj\.bias"):
        texts.params_of(found)
    drop = lambda name: name.replace("layers.1.mlp.up_proj", "layers.1.mlp.up")
    with pytest.raises(ConfigError, match=r"has no tensor model\.layers\.1\.mlp\.up_proj\.weight"):
        texts.params_of(opened("llama", tmp_path / "missing", rename=drop))


def test_a_bfloat16_checkpoint_becomes_float32_parameters(tmp_path):
    exact = texts.tensors_of("llama")
    rounded = {name: x.astype(ml_dtypes.bfloat16) for name, x in exact.items()}
    images.write_safetensors(tmp_path, rounded, texts.CONFIGS["llama"])
    _, params = texts.params_of(texts.OPEN["llama"](tmp_path))
    kernel = params["block_1"]["mlp"]["wo"]["kernel"]
    assert kernel.dtype == np.float32
    np.testing.assert_array_equal(kernel, rounded["model.layers.1.mlp.down_proj.weight"].T.astype(np.float32))
    assert (kernel != exact["model.layers.1.mlp.down_proj.weight"].T).any()


def test_a_tensor_in_two_files_is_refused(tmp_path):
    images.write_safetensors(tmp_path, texts.tensors_of("llama"), texts.CONFIGS["llama"])
    shutil.copy(tmp_path / "model.safetensors", tmp_path / "model.fp16.safetensors")
    with pytest.raises(ConfigError, match=r"^--path: .* is in model\.fp16\.safetensors and in model\.safetensors"):
        texts.OPEN["llama"](tmp_path)
