"""Checkpoints of language models that numpy draws, by hand in Hugging Face's names: none from the code under test.

What torch makes of them is in golden_texts.json.
"""

import json
from pathlib import Path

import flax
import jax
import jax.numpy as jnp
import numpy as np

from sparsity import spmd
from sparsity.convert import hf_text
from sparsity.convert.tensors import check_state, load
from sparsity.layers.sparsify import Context

FILE = Path(__file__).with_name("golden_texts.json")
V, D, FF, LAYERS, HEADS, POSITIONS = 16, 8, 12, 2, 4, 10
TOKENS = np.random.default_rng(3).integers(0, V, (2, 7)).astype(np.int32)
_SIZES = {"hidden_size": D, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "intermediate_size": FF}
CONFIGS = {
    "gpt2": {
        "model_type": "gpt2",
        "n_embd": D,
        "n_layer": LAYERS,
        "n_head": HEADS,
        "n_inner": FF,
        "n_positions": POSITIONS,
        "vocab_size": V,
    },
    "bert": {"model_type": "bert", "vocab_size": V, "max_position_embeddings": POSITIONS, **_SIZES},
    "llama": {
        "model_type": "llama",
        "vocab_size": V,
        "num_key_value_heads": 2,
        "rope_theta": 50.0,
        "rms_norm_eps": 1e-5,
        **_SIZES,
    },
    "llama tied": {
        "model_type": "llama",
        "vocab_size": V,
        "num_key_value_heads": 4,
        "head_dim": 6,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
        **_SIZES,
    },
}
OPEN = {"gpt2": hf_text.open_gpt2, "bert": hf_text.open_bert, "llama": hf_text.open_llama}


def tensors_of(case):
    """The tensors of a case, by their names."""
    rng = np.random.default_rng(len(case))
    out = {}

    def matrix(name, rows, columns):
        out[f"{name}.weight"] = (0.4 * rng.standard_normal((rows, columns))).astype(np.float32)

    def vector(name, size, around=0.0):
        out[name] = (around + 0.2 * rng.standard_normal(size)).astype(np.float32)

    def affine(name, rows, columns, bias):
        matrix(name, rows, columns)
        vector(f"{name}.bias", bias)

    def norm(name, bias=True):
        vector(f"{name}.weight", D, 1.0)
        if bias:
            vector(f"{name}.bias", D)

    if case == "gpt2":  # matrices are [inputs, outputs]
        matrix("transformer.wte", V, D)
        matrix("transformer.wpe", POSITIONS, D)
        for i in range(LAYERS):
            layer = f"transformer.h.{i}"
            norm(f"{layer}.ln_1")
            norm(f"{layer}.ln_2")
            affine(f"{layer}.attn.c_attn", D, 3 * D, 3 * D)
            affine(f"{layer}.attn.c_proj", D, D, D)
            affine(f"{layer}.mlp.c_fc", D, FF, FF)
            affine(f"{layer}.mlp.c_proj", FF, D, D)
        norm("transformer.ln_f")
    if case == "bert":
        embeddings = "bert.embeddings"
        for name, rows in {"word": V, "position": POSITIONS, "token_type": 2}.items():
            matrix(f"{embeddings}.{name}_embeddings", rows, D)
        norm(f"{embeddings}.LayerNorm")
        for i in range(LAYERS):
            layer = f"bert.encoder.layer.{i}"
            for name in ("query", "key", "value"):
                affine(f"{layer}.attention.self.{name}", D, D, D)
            affine(f"{layer}.attention.output.dense", D, D, D)
            norm(f"{layer}.attention.output.LayerNorm")
            affine(f"{layer}.intermediate.dense", FF, D, FF)
            affine(f"{layer}.output.dense", D, FF, D)
            norm(f"{layer}.output.LayerNorm")
        affine("cls.predictions.transform.dense", D, D, D)
        norm("cls.predictions.transform.LayerNorm")
        vector("cls.predictions.bias", V)
    if case.startswith("llama"):
        config = CONFIGS[case]
        size = config.get("head_dim", D // HEADS)
        matrix("model.embed_tokens", V, D)
        norm("model.norm", bias=False)
        if not config.get("tie_word_embeddings"):
            matrix("lm_head", V, D)
        for i in range(LAYERS):
            layer = f"model.layers.{i}"
            norm(f"{layer}.input_layernorm", bias=False)
            norm(f"{layer}.post_attention_layernorm", bias=False)
            for name in "kv":
                matrix(f"{layer}.self_attn.{name}_proj", config["num_key_value_heads"] * size, D)
            matrix(f"{layer}.self_attn.q_proj", HEADS * size, D)
            matrix(f"{layer}.self_attn.o_proj", D, HEADS * size)
            matrix(f"{layer}.mlp.gate_proj", FF, D)
            matrix(f"{layer}.mlp.up_proj", FF, D)
            matrix(f"{layer}.mlp.down_proj", D, FF)
    return out


def golden(case):
    """The logits of torch for `TOKENS`."""
    return np.array(json.loads(FILE.read_text())[case], np.float32)


def params_of(found):
    """(module, parameters) of what was found, loaded onto 2 x 4 devices."""
    module = found.model.build(found.classes)
    inputs = [jnp.zeros((1, 4), jnp.int32)] * len(found.model.inputs)
    boxed = jax.eval_shape(lambda: module.init(jax.random.key(0), *inputs, Context()))["params"]
    placed = spmd.shardings(spmd.make_mesh(spmd.MeshConfig(data=2, model=4)), spmd.param_specs(boxed))
    shapes = flax.core.meta.unbox(boxed)
    abstract = jax.tree.map(lambda s, p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=p), shapes, placed)
    check_state(found, abstract, {})
    return module, jax.device_get(load(found.tensors, abstract, found.reader))


def outputs_of(found, *inputs):
    """What our model makes of what it reads."""
    module, params = params_of(found)
    return jax.device_get(jax.jit(lambda p, x: module.apply({"params": p}, *x, Context()))(params, inputs))


def logits_of(found, tokens=TOKENS):
    """What our model makes of the tokens."""
    return outputs_of(found, tokens)
