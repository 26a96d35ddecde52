"""GPT-2, BERT and Llama as Hugging Face stores them."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparsity.config import ConfigError, lookup
from sparsity.convert.described import check_layers, model_of, value_of
from sparsity.convert.hf import HuggingFace
from sparsity.convert.tensors import MATRIX, Opened, Tensor, linear, norm
from sparsity.layers.mlp import MLPConfig
from sparsity.models.bert import BERTConfig
from sparsity.models.gpt2 import GPT2Config
from sparsity.models.llama import LlamaConfig
from sparsity.ops.sparsifiers import SPARSIFIERS

# Names of activations in config.json -> ours.
_ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu"}
_ACTIVATIONS |= {"silu": "silu", "swish": "silu", "relu2": "relu_squared"}


def open_gpt2(path: str | Path) -> Opened:
    """A GPT-2 that `transformers` wrote, or OpenAI's, whose names have no "transformer." in front.

    Raises:
      ConfigError: as `HuggingFace` and `gpt2_config` do.
    """
    reader = HuggingFace(path)
    prefix = "transformer." if any(name.startswith("transformer.") for name in reader.shapes()) else ""
    model, classes = gpt2_config(reader.config)
    check_layers(reader.shapes(), model.layers)
    # Buffers of masks, and the logits' matrix, which is the embedding.
    ignored = re.compile(rf"{re.escape(prefix)}h\.\d+\.attn\.(bias|masked_bias)|lm_head\.weight").fullmatch
    return Opened(reader, model, classes, gpt2_tensors(model, prefix), ignored)


def gpt2_config(config: Mapping[str, Any]) -> tuple[GPT2Config, int]:
    """(settings, rows of the embedding) of a GPT-2's config.json.

    Raises:
      ConfigError: it is of another model, or has what GPT-2s here have not.
    """
    _of(config, "gpt2")
    expected = {"layer_norm_epsilon": 1e-5, "tie_word_embeddings": True}
    _expect(config, expected | {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False})
    size = functools.partial(value_of, config, kind=int)
    d_model = size("n_embd")
    model = model_of(
        lambda: GPT2Config(
            mlp=_mlp(size("n_inner", default=4 * d_model), value_of(config, "activation_function", str, "gelu_new")),
            d_model=d_model,
            layers=size("n_layer"),
            heads=size("n_head"),
            positions=size("n_positions"),
            dropout=_rate(config, "resid_pdrop", "embd_pdrop", "attn_pdrop"),
        )
    )
    return model, size("vocab_size")


def gpt2_tensors(model: GPT2Config, prefix: str = "transformer.") -> dict[str, Tensor]:
    """The tensors of a GPT-2's parameters, by path; its matrices are [inputs, outputs], as ours."""
    out = {"embedding": Tensor((f"{prefix}wte.weight",)), "position": Tensor((f"{prefix}wpe.weight",))}
    out |= norm("norm", f"{prefix}ln_f")
    for i, ours in enumerate(model.mlps()):
        theirs = f"{prefix}h.{i}"
        out |= norm(f"{ours}/norm_attention", f"{theirs}.ln_1") | norm(f"{ours}/norm_mlp", f"{theirs}.ln_2")
        for part, name in enumerate(("query", "key", "value")):
            fused, path = f"{theirs}.attn.c_attn", f"{ours}/attention/{name}"
            out[f"{path}/kernel"] = Tensor((f"{fused}.weight",), part=(part, 3), along=1)
            out[f"{path}/bias"] = Tensor((f"{fused}.bias",), part=(part, 3))
        for path, name in {"attention/out": "attn.c_proj", "mlp/wi": "mlp.c_fc", "mlp/wo": "mlp.c_proj"}.items():
            out[f"{ours}/{path}/kernel"] = Tensor((f"{theirs}.{name}.weight",))
            out[f"{ours}/{path}/bias"] = Tensor((f"{theirs}.{name}.bias",))
    return out


def open_bert(path: str | Path, next_sentence: bool = False) -> Opened:
    """A BERT with the head that says what stood in the place of masked tokens.

    The pooler and the head that says whether a second text follows are left, unless `next_sentence`.

    Raises:
      ConfigError: as `HuggingFace` and `bert_config` do.
    """
    reader = HuggingFace(path)
    model, classes = bert_config(reader.config)
    model = dataclasses.replace(model, next_sentence=next_sentence)
    shapes = reader.shapes()
    check_layers(shapes, model.layers)
    old = any(name.endswith(".gamma") for name in shapes)
    ignored = r"bert\.pooler\.dense\.(weight|bias)|cls\.seq_relationship\.(weight|bias)"
    ignored += r"|cls\.predictions\.decoder\.(weight|bias)|bert\.embeddings\.position_ids"
    return Opened(reader, model, classes, bert_tensors(model, old), re.compile(ignored).fullmatch)


def bert_config(config: Mapping[str, Any]) -> tuple[BERTConfig, int]:
    """(settings, rows of the embedding) of a BERT's config.json.

    Raises:
      ConfigError: it is of another model, or has what BERTs here have not.
    """
    _of(config, "bert")
    expected = {"layer_norm_eps": 1e-12, "type_vocab_size": 2, "position_embedding_type": "absolute"}
    # The head has the MLPs' activation there, and GELU here.
    _expect(config, expected | {"hidden_act": "gelu", "is_decoder": False, "tie_word_embeddings": True})
    size = functools.partial(value_of, config, kind=int)
    model = model_of(
        lambda: BERTConfig(
            mlp=_mlp(size("intermediate_size"), "gelu"),
            d_model=size("hidden_size"),
            layers=size("num_hidden_layers"),
            heads=size("num_attention_heads"),
            positions=size("max_position_embeddings"),
            dropout=_rate(config, "hidden_dropout_prob", "attention_probs_dropout_prob"),
        )
    )
    return model, size("vocab_size")


def bert_tensors(model: BERTConfig, old: bool = False) -> dict[str, Tensor]:
    """The tensors of a BERT's parameters, by path; `old` norms have a gamma and a beta."""
    weight, bias = ("gamma", "beta") if old else ("weight", "bias")
    scaled = lambda ours, theirs: {
        f"{ours}/scale": Tensor((f"{theirs}.{weight}",)),
        f"{ours}/bias": Tensor((f"{theirs}.{bias}",)),
    }
    tables = {"embedding": "word", "position": "position", "type": "token_type"}
    out = {ours: Tensor((f"bert.embeddings.{name}_embeddings.weight",)) for ours, name in tables.items()}
    out |= scaled("norm_embedding", "bert.embeddings.LayerNorm")
    for i, ours in enumerate(model.mlps()):
        theirs = f"bert.encoder.layer.{i}"
        for name in ("query", "key", "value"):
            out |= linear(f"{ours}/attention/{name}", f"{theirs}.attention.self.{name}")
        out |= linear(f"{ours}/attention/out", f"{theirs}.attention.output.dense")
        out |= scaled(f"{ours}/norm_attention", f"{theirs}.attention.output.LayerNorm")
        out |= linear(f"{ours}/mlp/wi", f"{theirs}.intermediate.dense")
        out |= linear(f"{ours}/mlp/wo", f"{theirs}.output.dense")
        out |= scaled(f"{ours}/norm_mlp", f"{theirs}.output.LayerNorm")
    out |= linear("head", "cls.predictions.transform.dense")
    out |= scaled("norm_head", "cls.predictions.transform.LayerNorm")
    if model.next_sentence:
        out |= linear("pooler", "bert.pooler.dense") | linear("next_sentence", "cls.seq_relationship")
    return out | {"head_bias": Tensor(("cls.predictions.bias",))}


def open_llama(path: str | Path) -> Opened:
    """A Llama that `transformers` wrote. Raises ConfigError as `HuggingFace` and `llama_config` do."""
    reader = HuggingFace(path)
    model, classes = llama_config(reader.config)
    check_layers(reader.shapes(), model.layers)
    ignored = r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq" + (r"|lm_head\.weight" if model.tied else "")
    return Opened(reader, model, classes, llama_tensors(model), re.compile(ignored).fullmatch)


def llama_config(config: Mapping[str, Any]) -> tuple[LlamaConfig, int]:
    """(settings, rows of the embedding) of a Llama's config.json.

    Raises:
      ConfigError: it is of another model, or has what Llamas here have not: biases, or rotations that are stretched.
    """
    _of(config, "llama")
    _expect(config, {"attention_bias": False, "mlp_bias": False})
    # transformers 5 has all of it in one entry; before, the base stood apart.
    rotations = value_of(config, "rope_parameters", dict, value_of(config, "rope_scaling", dict, {}))
    kind = rotations.get("rope_type", rotations.get("type", "default"))
    if kind != "default":
        raise ConfigError(f'config.json: rotations of the kind "{kind}" are stretched, and those of the model here not')
    number, size = (functools.partial(value_of, config, kind=kind) for kind in (float, int))
    activation = value_of(config, "hidden_act", str, "silu")
    model = model_of(
        lambda: LlamaConfig(
            mlp=_mlp(size("intermediate_size"), activation, gated=True, use_bias=False),
            d_model=size("hidden_size"),
            layers=size("num_hidden_layers"),
            heads=size("num_attention_heads"),
            kv_heads=size("num_key_value_heads", default=None),
            head_dim=size("head_dim", default=None),
            theta=value_of(rotations, "rope_theta", float, number("rope_theta", default=10_000.0)),
            epsilon=number("rms_norm_eps", default=1e-6),
            tied=value_of(config, "tie_word_embeddings", bool, False),
        )
    )
    return model, size("vocab_size")


def llama_tensors(model: LlamaConfig) -> dict[str, Tensor]:
    """The tensors of a Llama's parameters, by path; `wi` is their gate_proj, which the activation follows."""
    matrix = lambda ours, theirs: {f"{ours}/kernel": Tensor((f"{theirs}.weight",), MATRIX)}
    out = {"embedding": Tensor(("model.embed_tokens.weight",)), "norm/scale": Tensor(("model.norm.weight",))}
    if not model.tied:
        out |= matrix("head", "lm_head")
    for i, ours in enumerate(model.mlps()):
        theirs = f"model.layers.{i}"
        out[f"{ours}/norm_attention/scale"] = Tensor((f"{theirs}.input_layernorm.weight",))
        out[f"{ours}/norm_mlp/scale"] = Tensor((f"{theirs}.post_attention_layernorm.weight",))
        for name in ("query", "key", "value", "out"):
            out |= matrix(f"{ours}/attention/{name}", f"{theirs}.self_attn.{name[0]}_proj")
        for name, proj in {"wi": "gate", "wi_gate": "up", "wo": "down"}.items():
            out |= matrix(f"{ours}/mlp/{name}", f"{theirs}.mlp.{proj}_proj")
    return out


def _of(config: Mapping[str, Any], kind: str) -> None:
    if config.get("model_type") != kind:
        raise ConfigError(f'--model: {kind}, but the checkpoint is a "{config.get("model_type")}"')


def _expect(config: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Raises ConfigError if config.json says otherwise; what it does not say is as expected."""
    for key, value in settings.items():
        if config.get(key, value) != value:
            raise ConfigError(f"config.json: {key} {config[key]} is not the {value} of the model here")


def _mlp(d_ff: int, activation: str, **settings: Any) -> MLPConfig:
    name = lookup(_ACTIVATIONS, activation, "activation of config.json")
    return MLPConfig(d_ff=d_ff, sparsifier=SPARSIFIERS[name](), init="gpt2", **settings)


def _rate(config: Mapping[str, Any], *names: str) -> float:
    """The one rate of dropout. Raises ConfigError if there are several."""
    rates = {value_of(config, name, float, 0.1) for name in names}
    if len(rates) > 1:
        listed = ", ".join(f"{name} {config.get(name, 0.1)}" for name in names)
        raise ConfigError(f"config.json: {listed} differ, and the model here has one rate of dropout")
    return rates.pop()
