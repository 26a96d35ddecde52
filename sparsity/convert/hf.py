"""Checkpoints of Hugging Face: safetensors, in one file or several, beside a config.json."""

from __future__ import annotations

import contextlib
import functools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sparsity.config import ConfigError, lookup
from sparsity.convert.tensors import Opened, Tensor, unload
from sparsity.layers.mlp import MLPConfig
from sparsity.models.t5 import DECODER, ENCODER, T5Config
from sparsity.ops.sparsifiers import GeluTanh, Relu

INDEX = "model.safetensors.index.json"
# "feed_forward_proj" of a T5's config.json -> (gated, its activation); the file calls it gelu and means gelu_new.
T5_MLPS = {"relu": (False, Relu), "gated-gelu": (True, GeluTanh)}


class HuggingFace:
    """The safetensors of a directory.

    Raises:
      ConfigError: there are none, or one that the index names is missing.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path).expanduser()
        try:
            import safetensors
        except ImportError as error:
            raise ConfigError("--source=hf: safetensors need pip install -e '.[hf]'") from error
        index = self.path / INDEX
        files = sorted(self.path.glob("*.safetensors"))
        if index.is_file():
            files = [self.path / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
        if not files:
            raise ConfigError(f"--path: there are no .safetensors in {self.path}")
        for file in files:
            if not file.is_file():
                raise ConfigError(f"--path: {INDEX} names {file.name}, which is not in {self.path}")
        self._opened = contextlib.ExitStack()
        # Opened files are mapped into memory: what is not asked for is not read.
        opened = [self._opened.enter_context(safetensors.safe_open(file, "numpy")) for file in files]
        self._file_of = {name: file for file in opened for name in file.keys()}  # noqa: SIM118

    @functools.cached_property
    def config(self) -> Mapping[str, Any]:
        """Its config.json. Raises ConfigError if there is none."""
        file = self.path / "config.json"
        if not file.is_file():
            raise ConfigError(f"--path: there is no config.json in {self.path}")
        return json.loads(file.read_text())

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Of all tensors, by name."""
        return {name: tuple(file.get_slice(name).get_shape()) for name, file in self._file_of.items()}

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """A part of the tensor `name`."""
        return self._file_of[name].get_slice(name)[index]

    def dtypes(self) -> Mapping[str, str]:
        """Of all tensors, by name, as safetensors call them: "F32", "BF16"."""
        return {name: file.get_slice(name).get_dtype() for name, file in self._file_of.items()}

    def close(self) -> None:
        """Closes the files."""
        self._opened.close()


def open_t5(path: str | Path) -> Opened:
    """A T5 that `transformers` wrote. Raises ConfigError as `HuggingFace` and `t5_config` do."""
    reader = HuggingFace(path)
    model, classes = t5_config(reader.config)
    head = "lm_head.weight" if "lm_head.weight" in reader.shapes() else "shared.weight"
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
    gated, activation = lookup(T5_MLPS, config.get("feed_forward_proj", "relu"), "feed_forward_proj of config.json")
    if config.get("layer_norm_epsilon", 1e-6) != 1e-6:
        raise ConfigError(f"config.json: layer_norm_epsilon {config['layer_norm_epsilon']} is not T5's 1e-6")
    dropout = config.get("dropout_rate", 0.1)
    mlp = MLPConfig(
        d_ff=config["d_ff"],
        sparsifier=activation(),
        gated=gated,
        use_bias=False,
        dropout=dropout,
        init="t5",
        shared_dropout=True,
    )
    return T5Config(
        mlp=mlp,
        d_model=config["d_model"],
        layers=config["num_layers"],
        decoder_layers=config.get("num_decoder_layers"),
        heads=config["num_heads"],
        head_dim=config["d_kv"],
        buckets=config.get("relative_attention_num_buckets", 32),
        max_distance=config.get("relative_attention_max_distance", 128),
        tied=config.get("scale_decoder_outputs", config.get("tie_word_embeddings", True)),
        dropout=dropout,
    ), config["vocab_size"]


def t5_tensors(config: T5Config, head: str = "lm_head.weight") -> dict[str, Tensor]:
    """The tensors of a T5's parameters, by path.

    `head` makes the logits if the embedding does not: "shared.weight" in checkpoints of transformers 5, which tie both
    even where logits are not scaled, and then leave "lm_head.weight" out.
    """
    out = {"embedding": Tensor(("shared.weight",))}
    if not config.tied:
        out["head/kernel"] = Tensor((head,), transposed=True)
    for stack in (ENCODER, DECODER):
        out[f"{stack}/norm/scale"] = Tensor((f"{stack}.final_layer_norm.weight",))
        table = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        out[f"{stack}/bias/embedding"] = Tensor((table,))
        for path, name in _layer(stack == DECODER, config.mlp.gated).items():
            names = tuple(f"{stack}.block.{i}.layer.{name}.weight" for i in range(config.depth(stack)))
            out[f"{stack}/layers/{path}"] = Tensor(names, transposed=path.endswith("kernel"), stacked=True)
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
    from safetensors.numpy import save_file

    kinds = {(gated, activation): name for name, (gated, activation) in T5_MLPS.items()}
    kind = kinds.get((config.mlp.gated, type(config.mlp.sparsifier)))
    if kind is None or config.mlp.use_bias or config.without_skip:
        raise ConfigError("--model: transformers has T5s of ReLU or gated GELU (gelu_tanh) MLPs without biases only")
    path = Path(path).expanduser()
    if path.exists() and any(path.iterdir()):
        raise ConfigError(f"--out: {path} is not empty")
    path.mkdir(parents=True, exist_ok=True)
    save_file(dict(unload(t5_tensors(config), params)), path / "model.safetensors", {"format": "pt"})
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
    (path / "config.json").write_text(json.dumps(described, indent=2) + "\n")
