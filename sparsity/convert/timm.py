"""Checkpoints of timm and torchvision: safetensors, beside a config.json of timm's or alone."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparsity import recipes
from sparsity.config import ConfigError, lookup
from sparsity.convert.described import value_of
from sparsity.convert.hf import HuggingFace
from sparsity.convert.tensors import MATRIX, WINDOW, Opened, Tensor, depth_of, linear, norm, sizes_of
from sparsity.convert.vit import (
    NEW_HEAD,
    cls_tensor,
    grid_of,
    pixels_of,
    position_tensor,
    refuse,
    side_of,
    torch_patches,
    vit_settings,
)
from sparsity.models.resnet import EXPANSION, ResNetConfig
from sparsity.models.vit import ViTConfig
from sparsity.ops.sparsifiers import Gelu, GeluTanh, Relu

# Architectures of timm that are these models; of others some differ in what no tensor shows.
VITS = r"(?:vit|deit)_(tiny|small|base|large|huge|giant|gigantic)_patch\d+_(?:gap_)?\d+"
RESNETS = r"resnet\d+"
# Arguments that change nothing here, or that the tensors show.
HARMLESS = {"num_classes", "in_chans", "global_pool", "drop_rate", "drop_path_rate", "act_layer"}
VIT_HARMLESS = HARMLESS | {
    *("img_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "qkv_bias", "class_token", "fc_norm"),
    *("no_embed_class", "dynamic_img_size", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate"),
    *("weight_init", "fix_init"),
}
HEADS = {"tiny": 3, "small": 6, "base": 12, "large": 16, "huge": 16, "giant": 16, "gigantic": 16}
ACTIVATIONS = {"gelu": Gelu, "gelu_tanh": GeluTanh, "relu": Relu}
LACKING = {
    "fc_norm.": "its last norm behind the mean over tokens",
    "attn_pool.": "a head that pools by attention (map)",
    "dist_token": "a token of distillation",
    "reg_token": "register tokens",
    "norm_pre.": "a norm in front of its blocks",
    ".ls1.": "branches that are scaled (layer scale)",
    ".q_norm.": "queries that are normalised",
}


def open_vit(path: str | Path) -> Opened:
    """A ViT or DeiT of timm, with a class token, or with the mean over tokens behind the last norm.

    Without a config.json the activation is GELU, and the width says how many heads there are.

    Raises:
      ConfigError: as `HuggingFace` does; or the ViT has parts that this model lacks; or sizes cannot be a ViT's.
    """
    reader = HuggingFace(path)
    shapes, described = reader.shapes(), _described(reader, VITS, VIT_HARMLESS)
    refuse(shapes, LACKING)
    args, cls = _args(described), "cls_token" in shapes
    pool, expected = args.get("global_pool", described.get("global_pool")), "token" if cls else "avg"
    if pool not in (None, expected):
        token = "with" if cls else "without"
        raise ConfigError(f'config.json: global_pool "{pool}" {token} a class token is none that this model has')
    d_model, channels, *window = sizes_of(shapes, "patch_embed.proj.weight", 4)
    patch = side_of("patch_embed.proj.weight", *window)
    d_ff, _ = sizes_of(shapes, "blocks.0.mlp.fc1.weight", 2)
    side, own = grid_of(sizes_of(shapes, "pos_embed", 3)[1], cls)
    model = vit_settings(
        d_ff,
        lookup(ACTIVATIONS, value_of(args, "act_layer", str, "gelu"), "model_args.act_layer of config.json"),
        d_model=d_model,
        layers=depth_of(shapes, "blocks.", "."),
        heads=value_of(args, "num_heads", int, None) or _heads(described, d_model),
        patch=patch,
        pool="cls" if cls else "gap",
    )
    tensors = vit_tensors(model, "head.weight" in shapes, "blocks.0.attn.qkv.bias" in shapes, zeros=cls and not own)
    classes = sizes_of(shapes, "head.weight", 2)[0] if "head.weight" in shapes else None
    image = (side * patch, side * patch, channels)
    mean = value_of(described, "pretrained_cfg", dict, {}).get("mean")
    return Opened(reader, model, classes, tensors, lambda name: False, image=image, pixels=pixels_of(mean))


def _described(reader: HuggingFace, architectures: str, harmless: set[str]) -> Mapping[str, Any]:
    """Its config.json, if there is one. Raises ConfigError if that is of a model which this code has not."""
    if not (reader.path / "config.json").is_file():
        return {}
    described = reader.config
    architecture = value_of(described, "architecture", str, None)
    if architecture is None:
        raise ConfigError("config.json: names no architecture of timm; --source=hf reads those of transformers")
    if not re.fullmatch(architectures, architecture):
        raise ConfigError(f"config.json: {architecture} may differ from the model here where no tensor shows it")
    for name in _args(described):
        if name not in harmless:
            raise ConfigError(f"config.json: model_args.{name} is none that is understood here")
    return described


def _args(described: Mapping[str, Any]) -> Mapping[str, Any]:
    return value_of(described, "model_args", dict, {})


def _heads(described: Mapping[str, Any], d_model: int) -> int:
    """Heads of attention, which no tensor shows, by the name of the architecture or else by the width."""
    if described:
        return HEADS[re.fullmatch(VITS, described["architecture"])[1]]
    heads = {width: heads for width, _, heads, _ in recipes.VIT_SIZES.values()}
    if d_model not in heads:
        raise ConfigError(f"checkpoint: no known ViT is {d_model} wide; config.json needs model_args.num_heads")
    return heads[d_model]


def vit_tensors(config: ViTConfig, head: bool = True, bias: bool = True, zeros: bool = False) -> dict[str, Tensor]:
    """The tensors of a ViT's parameters, by path; query, key and value stand below one another in one.

    Args:
      config: of the ViT.
      head: it has one.
      bias: query, key and value have one.
      zeros: the class token has no position of its own.
    """
    out = {
        **torch_patches("patch_embed.proj", config.patch),
        "position": position_tensor("pos_embed", zeros),
        **norm("norm", "norm"),
        **(linear("head", "head") if head else NEW_HEAD),
    }
    if config.pool == "cls":
        out["cls"] = cls_tensor("cls_token")
    for i in range(config.layers):
        ours, theirs = f"block_{i}", f"blocks.{i}"
        for part, name in enumerate(("query", "key", "value")):
            qkv, path = f"{theirs}.attn.qkv", f"{ours}/attention/{name}"
            out[f"{path}/kernel"] = Tensor((f"{qkv}.weight",), MATRIX, part=(part, 3))
            out[f"{path}/bias"] = Tensor((f"{qkv}.bias",) if bias else (), part=(part, 3))
        out |= linear(f"{ours}/attention/out", f"{theirs}.attn.proj")
        out |= norm(f"{ours}/norm_attention", f"{theirs}.norm1") | norm(f"{ours}/norm_mlp", f"{theirs}.norm2")
        out |= linear(f"{ours}/mlp/wi", f"{theirs}.mlp.fc1") | linear(f"{ours}/mlp/wo", f"{theirs}.mlp.fc2")
    return out


def open_resnet(path: str | Path) -> Opened:
    """A ResNet of torchvision or timm, strides in the 3x3 convolutions, with its running means and variances.

    A stem of 3x3 is that for small images, stride 1 and no pooling: no tensor shows either.

    Raises:
      ConfigError: as `HuggingFace` does; or it is another kind of ResNet; or sizes cannot be a ResNet's.
    """
    reader = HuggingFace(path)
    shapes, args = reader.shapes(), _args(_described(reader, RESNETS, HARMLESS))
    for name, only in (("act_layer", "relu"), ("global_pool", "avg")):
        if args.get(name, only) != only:
            raise ConfigError(f'config.json: model_args.{name} "{args[name]}" is not the {only} of the model here')
    width, channels, side, _ = sizes_of(shapes, "conv1.weight", 4)
    stem = {7: "imagenet", 3: "small"}.get(side)
    if stem is None:
        raise ConfigError(f"checkpoint: conv1.weight has a window of {side} pixels, and stems here have 7 or 3")
    depths = (depth_of(shapes, f"layer{stage}.", ".conv1.weight") for stage in itertools.count(1))
    block = "bottleneck" if "layer1.0.conv3.weight" in shapes else "basic"
    try:
        model = ResNetConfig(Relu(), block, tuple(itertools.takewhile(bool, depths)), width, stem)
    except ValueError as error:
        raise ConfigError(f"checkpoint: {error}") from error
    tensors, statistics = resnet_tensors(model, "fc.weight" in shapes)
    classes = sizes_of(shapes, "fc.weight", 2)[0] if "fc.weight" in shapes else None
    pixels = 224 if stem == "imagenet" else 32
    counted = lambda name: name.endswith(".num_batches_tracked")  # the running statistics' weights do not depend on it
    return Opened(reader, model, classes, tensors, counted, statistics, (pixels, pixels, channels), "standardised")


def resnet_tensors(config: ResNetConfig, head: bool = True) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors of a ResNet's parameters, and of its running statistics, by path; `head`: it has one."""
    out, statistics = linear("head", "fc") if head else dict(NEW_HEAD), {}

    def convolution(ours, normalised, theirs, bn):
        out[f"{ours}/kernel"] = Tensor((f"{theirs}.weight",), WINDOW)
        out.update(norm(normalised, bn))
        for leaf in ("mean", "var"):
            statistics[f"batch_stats/{normalised}/{leaf}"] = Tensor((f"{bn}.running_{leaf}",))

    convolution("conv", "norm", "conv1", "bn1")
    blocks = [f"layer{stage}.{i}" for stage, n in enumerate(config.blocks, 1) for i in range(n)]
    channels = config.width
    for b, (theirs, (inside, stride)) in enumerate(zip(blocks, config.stages(), strict=True)):
        ours, outputs = f"block_{b}", inside * EXPANSION[config.block]
        for j in range(config.inner + 1):
            convolution(f"{ours}/conv_{j}", f"{ours}/norm_{j}", f"{theirs}.conv{j + 1}", f"{theirs}.bn{j + 1}")
        if stride > 1 or channels != outputs:
            shortcut = f"{theirs}.downsample"
            convolution(f"{ours}/shortcut", f"{ours}/norm_shortcut", f"{shortcut}.0", f"{shortcut}.1")
        channels = outputs
    return out, statistics
