"""Checkpoints of Hugging Face: safetensors, in one file or several, beside a config.json."""

from __future__ import annotations

import contextlib
import functools
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sparsity.config import ConfigError, lookup, path_of
from sparsity.convert.described import CONFIG, check_layers, check_names, model_of, pair_of, read_section, value_of
from sparsity.convert.tensors import MATRIX, Opened, Tensor, linear, norm, sizes_of, unload
from sparsity.convert.vit import NEW_HEAD, cls_tensor, pixels_of, position_tensor, side_of, torch_patches, vit_settings
from sparsity.layers.mlp import MLPConfig
from sparsity.models.t5 import DECODER, ENCODER, T5Config
from sparsity.models.vit import ViTConfig
from sparsity.ops.sparsifiers import Gelu, GeluTanh, Relu

INDEX = "model.safetensors.index.json"
DTYPES = ("F64", "F32", "F16", "BF16")  # of tensors that are read, as safetensors calls them
# "feed_forward_proj" of a T5's config.json -> (gated, its activation); the file calls it gelu and means gelu_new.
T5_MLPS = {"relu": (False, Relu), "gated-gelu": (True, GeluTanh)}
# "hidden_act" of a ViT's config.json -> its activation; of two names of one, the last is written.
VIT_ACTIVATIONS = {"gelu": Gelu, "gelu_new": GeluTanh, "gelu_pytorch_tanh": GeluTanh, "relu": Relu}
VIT_IGNORED = r"(vit\.)?embeddings\.mask_token|vit\.pooler\.dense\.(weight|bias)"  # read in other tasks alone


class HuggingFace:
    """The safetensors of a directory.

    Raises:
      ConfigError: there are none; one that the index names is missing or is not in the directory; one is cut short or
        damaged; or two of them have the same tensor.
    """

    def __init__(self, path: str | Path):
        self.path = path_of(path, "--path")
        try:
            import safetensors
        except ImportError as error:
            raise ConfigError("--source: safetensors need pip install -e '.[hf]'") from error
        index = self.path / INDEX
        files = _indexed(index) if index.is_file() else sorted(self.path.glob("*.safetensors"))
        if not files:
            raise ConfigError(f"--path: there are no .safetensors in {self.path}")
        self._opened = contextlib.ExitStack()
        self._file_of, first = {}, {}
        for file in files:
            if not file.is_file():
                named = f"{INDEX} names {file.name}, which is not in {self.path}"
                raise ConfigError(f"--path: {named if index.is_file() else f'{file} is no file'}")
            try:
                # Opened files are mapped into memory: what is not asked for is not read.
                found = self._opened.enter_context(safetensors.safe_open(file, "numpy"))
            except (safetensors.SafetensorError, OSError) as error:
                raise ConfigError(f"--path: {file} is no whole file of safetensors ({error})") from error
            check_names(file)
            for name in found.keys():  # noqa: SIM118
                if name in first:
                    raise ConfigError(f"--path: {name} is in {first[name]} and in {file.name}; leave one of them there")
                self._file_of[name], first[name] = found, file.name

    @functools.cached_property
    def config(self) -> Mapping[str, Any]:
        """Its config.json. Raises ConfigError if there is none, or it is no object of JSON."""
        return read_section(self.path / CONFIG)

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Of all tensors, by name."""
        return {name: tuple(file.get_slice(name).get_shape()) for name, file in self._file_of.items()}

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """A part of the tensor `name`. Raises ConfigError if it is not of floating-point numbers."""
        tensor = self._file_of[name].get_slice(name)
        if tensor.get_dtype() not in DTYPES:
            raise ConfigError(f"--path: {name} is of {tensor.get_dtype()}, and not of {', '.join(DTYPES)}")
        return tensor[index]

    def close(self) -> None:
        """Closes the files."""
        self._opened.close()


def _indexed(index: Path) -> list[Path]:
    """The files that an index names. Raises ConfigError if it names none, or one outside of its directory."""
    tensors = value_of(read_section(index), "weight_map", dict, where=INDEX)
    names = set()
    for tensor, name in tensors.items():
        # A checkpoint may come from anywhere: what it names outside of its directory is not opened.
        if (
            not isinstance(name, str)
            or not name
            or Path(name).name != name
            or not name.isprintable()
            or len(name) > 200
        ):
            raise ConfigError(
                f"--path: {INDEX} has {tensor} in {name!r:.80}, which is not the name of a file beside it"
            )
        names.add(name)
    return [index.parent / name for name in sorted(names)]


def open_t5(path: str | Path) -> Opened:
    """A T5 that `transformers` wrote. Raises ConfigError as `HuggingFace` and `t5_config` do."""
    reader = HuggingFace(path)
    model, classes = t5_config(reader.config)
    shapes = reader.shapes()
    check_layers(shapes, model.layers, model.depth(DECODER))
    head = "lm_head.weight" if "lm_head.weight" in shapes else "shared.weight"
    return Opened(reader, model, classes, t5_tensors(model, head), t5_ignored(model.tied).fullmatch)


def t5_config(config: Mapping[str, Any]) -> tuple[T5Config, int]:
    """(settings, rows of the embedding) of a T5's config.json: v1.0, v1.1, mT5, ByT5, FLAN.

    Raises:
      ConfigError: it is of another model, or has an activation or an epsilon that T5s do not have.
    """
    if config.get("model_type") not in ("t5", "mt5", "umt5"):
        raise ConfigError(f'--model: t5, but the checkpoint is a "{config.get("model_type")}"')
    if config["model_type"] == "umt5":
        raise ConfigError("--model: a umT5 has a table of distances in every layer, and this model one a stack")
    number, size, flag = (functools.partial(value_of, config, kind=kind) for kind in (float, int, bool))
    kind = value_of(config, "feed_forward_proj", str, "relu")
    gated, activation = lookup(T5_MLPS, kind, "feed_forward_proj of config.json")
    if config.get("layer_norm_epsilon", 1e-6) != 1e-6:
        raise ConfigError(f"config.json: layer_norm_epsilon {config['layer_norm_epsilon']} is not T5's 1e-6")
    dropout = number("dropout_rate", default=0.1)
    return model_of(
        lambda: T5Config(
            mlp=MLPConfig(
                d_ff=size("d_ff"),
                sparsifier=activation(),
                gated=gated,
                use_bias=False,
                dropout=dropout,
                init="t5",
                shared_dropout=True,
            ),
            d_model=size("d_model"),
            layers=size("num_layers"),
            decoder_layers=size("num_decoder_layers", default=None),
            heads=size("num_heads"),
            head_dim=size("d_kv"),
            buckets=size("relative_attention_num_buckets", default=32),
            max_distance=size("relative_attention_max_distance", default=128),
            tied=flag("scale_decoder_outputs", default=flag("tie_word_embeddings", default=True)),
            dropout=dropout,
        )
    ), size("vocab_size")


def t5_tensors(config: T5Config, head: str = "lm_head.weight") -> dict[str, Tensor]:
    """The tensors of a T5's parameters, by path.

    `head` makes the logits if the embedding does not: "shared.weight" in checkpoints of transformers 5, which tie both
    even where logits are not scaled, and then leave "lm_head.weight" out.
    """
    out = {"embedding": Tensor(("shared.weight",))}
    if not config.tied:
        out["head/kernel"] = Tensor((head,), order=MATRIX)
    for stack in (ENCODER, DECODER):
        out[f"{stack}/norm/scale"] = Tensor((f"{stack}.final_layer_norm.weight",))
        table = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        out[f"{stack}/bias/embedding"] = Tensor((table,))
        for path, name in _layer(stack == DECODER, config.mlp.gated).items():
            names = tuple(f"{stack}.block.{i}.layer.{name}.weight" for i in range(config.depth(stack)))
            out[f"{stack}/layers/{path}"] = Tensor(names, MATRIX if path.endswith("kernel") else None, stacked=True)
    return out


def _layer(decoder: bool, gated: bool) -> dict[str, str]:
    """Tensors of one layer by the path within it."""
    mlp = 2 if decoder else 1
    out = {"norm_attention/scale": "0.layer_norm", "norm_mlp/scale": f"{mlp}.layer_norm"}
    attentions = {"attention": "0.SelfAttention"}
    if decoder:
        out["norm_cross/scale"] = "1.layer_norm"
        attentions["cross"] = "1.EncDecAttention"
    for ours, theirs in attentions.items():
        for name in ("query", "key", "value", "out"):
            out[f"{ours}/{name}/kernel"] = f"{theirs}.{name[0]}"
    matrices = {"wi": "wi_0", "wi_gate": "wi_1", "wo": "wo"} if gated else {"wi": "wi", "wo": "wo"}
    return out | {f"mlp/{ours}/kernel": f"{mlp}.DenseReluDense.{theirs}" for ours, theirs in matrices.items()}


def t5_ignored(tied: bool) -> re.Pattern[str]:
    """Tensors that checkpoints of T5 hold twice, or that no version of it reads."""
    doubles = r"(encoder|decoder)\.embed_tokens\.weight"
    if tied:
        doubles += r"|lm_head\.weight"
    # In the oldest checkpoints; cross-attention has no distances.
    return re.compile(rf"{doubles}|decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight")


def write_t5(params: Any, config: T5Config, classes: int, path: str | Path) -> None:
    """A directory that `transformers` reads: `model.safetensors` and `config.json`.

    Raises:
      ConfigError: the directory exists and is not empty, or the MLP is none that a T5 of theirs has.
    """
    kinds = {(gated, activation): name for name, (gated, activation) in T5_MLPS.items()}
    kind = kinds.get((config.mlp.gated, type(config.mlp.sparsifier)))
    if kind is None or config.mlp.use_bias or config.without_skip:
        raise ConfigError("--model: transformers has T5s of ReLU or gated GELU (gelu_tanh) MLPs without biases only")
    described = {
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
        "d_model": config.d_model,
        "d_kv": config.head_dim,
        "d_ff": config.mlp.d_ff,
        "num_layers": config.layers,
        "num_decoder_layers": config.depth(DECODER),
        "num_heads": config.heads,
        "relative_attention_num_buckets": config.buckets,
        "relative_attention_max_distance": config.max_distance,
        "dropout_rate": config.dropout,
        "layer_norm_epsilon": 1e-6,
        "feed_forward_proj": kind,
        "tie_word_embeddings": config.tied,
        "vocab_size": classes,
        "decoder_start_token_id": 0,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "is_encoder_decoder": True,
    }
    _write(unload(t5_tensors(config), params), described, path)


def write(params: Any, model: Any, classes: int, shape: tuple[int, ...], path: str | Path) -> None:
    """A directory that `transformers` reads, of a T5 or a ViT, of `classes` and inputs of that shape.

    Raises:
      ConfigError: as `write_t5` and `write_vit` do; or it is another model.
    """
    if isinstance(model, T5Config):
        write_t5(params, model, classes, path)
    elif isinstance(model, ViTConfig):
        write_vit(params, model, classes, shape, path)
    else:
        raise ConfigError(f"--to: T5 and ViT can be written for transformers, and the model is {type(model).__name__}")


def _write(tensors: Iterable[tuple[str, np.ndarray]], described: Mapping[str, Any], path: str | Path) -> None:
    """A directory of both. Raises ConfigError if it exists and is not empty."""
    from safetensors.numpy import save_file

    path = path_of(path, "--path")
    try:
        path.mkdir(parents=True, exist_ok=True)
        if any(path.iterdir()):
            raise ConfigError(f"--path: {path} is not empty")
    except OSError as error:
        raise ConfigError(f"--path: {path} cannot be written ({error.strerror})") from error
    save_file(dict(tensors), path / "model.safetensors", {"format": "pt"})
    (path / "config.json").write_text(json.dumps(described, indent=2) + "\n")


def open_vit(path: str | Path) -> Opened:
    """A ViT that `transformers` wrote: a classifier, or a ViTModel, whose pooler, if any, is the layer before the head.

    Where query, key and value have no biases (`qkv_bias`), ours start at 0.

    Raises:
      ConfigError: as `HuggingFace` and `vit_config` do.
    """
    reader = HuggingFace(path)
    shapes = reader.shapes()
    prefix = "vit." if any(name.startswith("vit.") for name in shapes) else ""
    pooled = not prefix and "pooler.dense.weight" in shapes
    model, image = vit_config(reader.config, pooled)
    check_layers(shapes, model.layers)
    head = "classifier.weight" in shapes
    file = reader.path / "preprocessor_config.json"
    scale = pixels_of(read_section(file).get("image_mean")) if file.is_file() else None
    tensors = vit_tensors(model, prefix, head, value_of(reader.config, "qkv_bias", bool, True))
    classes = sizes_of(shapes, "classifier.weight", 2)[0] if head else None
    return Opened(reader, model, classes, tensors, re.compile(VIT_IGNORED).fullmatch, image=image, pixels=scale)


def vit_config(config: Mapping[str, Any], pooled: bool) -> tuple[ViTConfig, tuple[int, int, int]]:
    """(settings, shape of the images) of a ViT's config.json, with a pooler or without.

    Raises:
      ConfigError: it is of another model, or has an activation, patches or rates of dropout that ViTs here have not.
    """
    if config.get("model_type") != "vit":
        raise ConfigError(f'--model: vit, but the checkpoint is a "{config.get("model_type")}"')
    number, size, word = (functools.partial(value_of, config, kind=kind) for kind in (float, int, str))
    activation = lookup(VIT_ACTIVATIONS, word("hidden_act", default="gelu"), "hidden_act of config.json")
    if pooled and config.get("pooler_act", "tanh") != "tanh":
        raise ConfigError(f'config.json: pooler_act "{config["pooler_act"]}" is not the tanh of the model here')
    rates = [number(name, default=0.0) for name in ("hidden_dropout_prob", "attention_probs_dropout_prob")]
    if rates[0] != rates[1]:
        raise ConfigError(f"config.json: rates of dropout {rates[0]} and {rates[1]}, and the model here has one")
    d_model = size("hidden_size", default=768)
    model = vit_settings(
        size("intermediate_size", default=3072),
        activation,
        d_model=d_model,
        layers=size("num_hidden_layers", default=12),
        heads=size("num_attention_heads", default=12),
        patch=side_of("config.json", *pair_of(config, "patch_size", 16)),
        dropout=rates[0],
        representation=size("pooler_output_size", default=d_model) if pooled else None,
        norm_epsilon=number("layer_norm_eps", default=1e-12),
    )
    return model, (*pair_of(config, "image_size", 224), size("num_channels", default=3))


def vit_tensors(config: ViTConfig, prefix: str = "vit.", head: bool = True, qkv_bias: bool = True) -> dict[str, Tensor]:
    """The tensors of a ViT's parameters, by path.

    Args:
      config: of the ViT.
      prefix: of the names outside of the head, "" in a ViTModel's.
      head: it has one.
      qkv_bias: query, key and value have biases.
    """
    embeddings = f"{prefix}embeddings"
    out = {
        "cls": cls_tensor(f"{embeddings}.cls_token"),
        "position": position_tensor(f"{embeddings}.position_embeddings"),
        **torch_patches(f"{embeddings}.patch_embeddings.projection", config.patch),
        **norm("norm", f"{prefix}layernorm"),
        **(linear("head", "classifier") if head else NEW_HEAD),
    }
    if config.representation is not None:
        out |= linear("representation", f"{prefix}pooler.dense")
    for i in range(config.layers):
        ours, theirs = f"block_{i}", f"{prefix}encoder.layer.{i}"
        out |= norm(f"{ours}/norm_attention", f"{theirs}.layernorm_before")
        out |= norm(f"{ours}/norm_mlp", f"{theirs}.layernorm_after")
        for name in ("query", "key", "value"):
            out |= linear(f"{ours}/attention/{name}", f"{theirs}.attention.attention.{name}", qkv_bias)
        out |= linear(f"{ours}/attention/out", f"{theirs}.attention.output.dense")
        out |= linear(f"{ours}/mlp/wi", f"{theirs}.intermediate.dense")
        out |= linear(f"{ours}/mlp/wo", f"{theirs}.output.dense")
    return out


def write_vit(params: Any, config: ViTConfig, classes: int, image: tuple[int, int, int], path: str | Path) -> None:
    """A directory that `transformers` reads: `model.safetensors` and `config.json`.

    A head of zeros, as a new one is, is left out: then it is a ViTModel, and a layer in front of the head its pooler.

    Args:
      params: of the ViT.
      config: of the ViT.
      classes: of its head.
      image: shape of the images that it reads.
      path: of the directory.

    Raises:
      ConfigError: the directory exists and is not empty, or the ViT is none of theirs.
    """
    kinds = {activation: name for name, activation in VIT_ACTIVATIONS.items()}
    mlp, head = config.mlp, bool(np.any(params["head"]["kernel"]))
    if type(mlp.sparsifier) not in kinds or mlp.gated or mlp.shared_bias or not mlp.use_bias:
        raise ConfigError("--model: transformers has ViTs of ReLU, gelu or gelu_tanh MLPs with biases only")
    if config.pool != "cls" or config.positions != "learned" or (head and config.representation is not None):
        raise ConfigError("--model: transformers has ViTs of a class token, learned positions and a linear head only")
    tensors = vit_tensors(config, "vit." if head else "", head)
    if not head:
        params = {name: values for name, values in params.items() if name != "head"}
    described = {
        "architectures": ["ViTForImageClassification" if head else "ViTModel"],
        "model_type": "vit",
        "hidden_size": config.d_model,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": mlp.d_ff,
        "hidden_act": kinds[type(mlp.sparsifier)],
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.dropout,
        "layer_norm_eps": config.norm_epsilon,
        "image_size": image[0] if image[0] == image[1] else list(image[:2]),
        "patch_size": config.patch,
        "num_channels": image[2],
        "qkv_bias": True,
        "pooler_output_size": config.representation or config.d_model,
        "pooler_act": "tanh",
    }
    if head:  # their number is that of the names
        described["id2label"] = {str(i): f"LABEL_{i}" for i in range(classes)}
        described["label2id"] = {f"LABEL_{i}": i for i in range(classes)}
    _write(unload(tensors, params), described, path)
