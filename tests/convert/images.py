"""Checkpoints of image models that numpy draws, by hand in the names of every format: none from the code under test.

What torch makes of them is in golden_images.json.
"""

import json
from pathlib import Path

import flax
import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from sparsity import spmd
from sparsity.convert.tensors import check_state, load
from sparsity.layers.sparsify import Context

FILE = Path(__file__).with_name("golden_images.json")
CLASSES, SHAPE = 5, (4, 4, 3)
D, HEADS, FF, LAYERS, PATCH, PATCHES = 8, 2, 12, 2, 2, 4
HF_CONFIG = {
    "model_type": "vit",
    "hidden_size": D,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": FF,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "image_size": 4,
    "patch_size": PATCH,
    "num_channels": 3,
    "qkv_bias": True,
}
TIMM_CONFIG = {
    "architecture": "vit_tiny_patch16_224",
    "num_classes": CLASSES,
    "global_pool": "token",
    "model_args": {"embed_dim": D, "num_heads": HEADS, "depth": LAYERS, "patch_size": PATCH, "img_size": 4},
}
WIDTH, STAGES, RESNET_SHAPE = 4, (1, 2), (20, 24, 3)


def golden(case):
    """The logits of torch for `batch`."""
    return np.array(json.loads(FILE.read_text())[case], np.float32)


def batch(shape=SHAPE):
    """Two images."""
    return np.random.default_rng(7).standard_normal((2, *shape)).astype(np.float32)


def vit(pool="cls", representation=None, own=True):
    """Arrays of a ViT, [inputs, outputs], by our paths. Inputs are small, so that an epsilon shows.

    `own`: the class token has a position.
    """
    rng = np.random.default_rng(0)
    draw = lambda *shape, size=1.0: (size * rng.standard_normal(shape)).astype(np.float32)
    around = lambda n: {"scale": 1 + draw(n, size=0.2), "bias": draw(n, size=0.2)}
    affine = lambda n, m: {"kernel": draw(n, m, size=n**-0.5), "bias": draw(m, size=0.3)}
    tokens = PATCHES + (pool == "cls")
    out = {"embed": {"kernel": draw(PATCH * PATCH * 3, D, size=6e-4), "bias": draw(D, size=2e-3)}}
    out["position"] = draw(tokens, D, size=2e-3)
    if pool == "cls":
        out["cls"] = draw(1, D, size=2e-3)
        if not own:
            out["position"][0] = 0
    for i in range(LAYERS):
        out[f"block_{i}"] = {
            "norm_attention": around(D),
            "attention": {name: affine(D, D) for name in ("query", "key", "value", "out")},
            "norm_mlp": around(D),
            "mlp": {"wi": affine(D, FF), "wo": affine(FF, D)},
        }
    out["norm"] = around(D)
    if representation is not None:
        out["representation"] = affine(D, representation)
    out["head"] = affine(representation or D, CLASSES)
    return out


def torch_linear(name, layer):
    return {f"{name}.weight": np.ascontiguousarray(layer["kernel"].T), f"{name}.bias": layer["bias"]}


def torch_norm(name, layer):
    return {f"{name}.weight": layer["scale"], f"{name}.bias": layer["bias"]}


def torch_patches(name, layer):
    window = layer["kernel"].reshape(PATCH, PATCH, 3, D)
    return {f"{name}.weight": np.ascontiguousarray(np.moveaxis(window, (3, 2), (0, 1))), f"{name}.bias": layer["bias"]}


def hf_vit(arrays, prefix="vit.", head=True):
    """As transformers names them."""
    out = {
        f"{prefix}embeddings.cls_token": arrays["cls"][None],
        f"{prefix}embeddings.position_embeddings": arrays["position"][None],
        **torch_patches(f"{prefix}embeddings.patch_embeddings.projection", arrays["embed"]),
        **torch_norm(f"{prefix}layernorm", arrays["norm"]),
    }
    for i in range(LAYERS):
        block, layer = arrays[f"block_{i}"], f"{prefix}encoder.layer.{i}"
        for name in ("query", "key", "value"):
            out |= torch_linear(f"{layer}.attention.attention.{name}", block["attention"][name])
        out |= torch_linear(f"{layer}.attention.output.dense", block["attention"]["out"])
        out |= torch_linear(f"{layer}.intermediate.dense", block["mlp"]["wi"])
        out |= torch_linear(f"{layer}.output.dense", block["mlp"]["wo"])
        out |= torch_norm(f"{layer}.layernorm_before", block["norm_attention"])
        out |= torch_norm(f"{layer}.layernorm_after", block["norm_mlp"])
    if "representation" in arrays:
        out |= torch_linear("pooler.dense", arrays["representation"])
    return out | (torch_linear("classifier", arrays["head"]) if head else {})


def timm_vit(arrays, own=True):
    """As timm names them."""
    position = arrays["position"] if own else arrays["position"][1:]
    out = {
        "pos_embed": position[None],
        **torch_patches("patch_embed.proj", arrays["embed"]),
        **torch_norm("norm", arrays["norm"]),
        **torch_linear("head", arrays["head"]),
    }
    if "cls" in arrays:
        out["cls_token"] = arrays["cls"][None]
    for i in range(LAYERS):
        block, layer = arrays[f"block_{i}"], f"blocks.{i}"
        three = [block["attention"][name] for name in ("query", "key", "value")]
        out[f"{layer}.attn.qkv.weight"] = np.concatenate([one["kernel"].T for one in three])
        out[f"{layer}.attn.qkv.bias"] = np.concatenate([one["bias"] for one in three])
        out |= torch_linear(f"{layer}.attn.proj", block["attention"]["out"])
        out |= torch_linear(f"{layer}.mlp.fc1", block["mlp"]["wi"])
        out |= torch_linear(f"{layer}.mlp.fc2", block["mlp"]["wo"])
        out |= torch_norm(f"{layer}.norm1", block["norm_attention"]) | torch_norm(f"{layer}.norm2", block["norm_mlp"])
    return out


def flax_vit(arrays, numbers, position, own=True):
    """As flax does for vision_transformer and big_vision, whose modules have other `numbers`."""
    before, attention, between, mlp = numbers
    out = {
        "embedding/kernel": arrays["embed"]["kernel"].reshape(PATCH, PATCH, 3, D),
        "embedding/bias": arrays["embed"]["bias"],
    }
    if position is not None:
        out[position] = (arrays["position"] if own else arrays["position"][1:])[None]
    if "cls" in arrays:
        out["cls"] = arrays["cls"][None]
    for i in range(LAYERS):
        block, layer = arrays[f"block_{i}"], f"Transformer/encoderblock_{i}"
        for leaf in ("scale", "bias"):
            out[f"{layer}/LayerNorm_{before}/{leaf}"] = block["norm_attention"][leaf]
            out[f"{layer}/LayerNorm_{between}/{leaf}"] = block["norm_mlp"][leaf]
        heads = f"{layer}/MultiHeadDotProductAttention_{attention}"
        for name in ("query", "key", "value"):
            out[f"{heads}/{name}/kernel"] = block["attention"][name]["kernel"].reshape(D, HEADS, D // HEADS)
            out[f"{heads}/{name}/bias"] = block["attention"][name]["bias"].reshape(HEADS, D // HEADS)
        out[f"{heads}/out/kernel"] = block["attention"]["out"]["kernel"].reshape(HEADS, D // HEADS, D)
        out[f"{heads}/out/bias"] = block["attention"]["out"]["bias"]
        for leaf in ("kernel", "bias"):
            out[f"{layer}/MlpBlock_{mlp}/Dense_0/{leaf}"] = block["mlp"]["wi"][leaf]
            out[f"{layer}/MlpBlock_{mlp}/Dense_1/{leaf}"] = block["mlp"]["wo"][leaf]
    for leaf in ("scale", "bias"):
        out[f"Transformer/encoder_norm/{leaf}"] = arrays["norm"][leaf]
    for ours, theirs in (("representation", "pre_logits"), ("head", "head")):
        for leaf in ("kernel", "bias") if ours in arrays else ():
            out[f"{theirs}/{leaf}"] = arrays[ours][leaf]
    return out


def vision_transformer(arrays):
    return flax_vit(arrays, (0, 1, 2, 3), "Transformer/posembed_input/pos_embedding")


def big_vision(arrays, position="pos_embedding", own=True, scanned=False):
    out = flax_vit(arrays, (0, 0, 1, 0), position, own)
    if scanned:
        first, *others = (f"Transformer/encoderblock_{i}/" for i in range(LAYERS))
        for name in [name for name in out if name.startswith(first)]:
            rest = [out.pop(other + name.removeprefix(first)) for other in others]
            out[f"Transformer/encoderblock/{name.removeprefix(first)}"] = np.stack([out.pop(name), *rest])
    return {f"params/{name}": array for name, array in out.items()}


def resnet(block):
    """torchvision's tensors of a ResNet of two stages, of one block and of two."""
    rng = np.random.default_rng(1)
    out = {}

    def convolution(name, bn, inputs, outputs, side):
        draw = rng.standard_normal((outputs, inputs, side, side)) / (inputs * side**2) ** 0.5
        out[f"{name}.weight"] = draw.astype(np.float32)
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            moved = 0.3 * rng.standard_normal(outputs) + (leaf in ("weight", "running_var"))
            out[f"{bn}.{leaf}"] = (np.abs(moved) if leaf == "running_var" else moved).astype(np.float32)
        out[f"{bn}.num_batches_tracked"] = np.int64(3)

    convolution("conv1", "bn1", 3, WIDTH, 7)
    channels = WIDTH
    for stage, blocks in enumerate(STAGES):
        for i in range(blocks):
            layer, inside = f"layer{stage + 1}.{i}", WIDTH * 2**stage
            outputs = inside * (4 if block == "bottleneck" else 1)
            sizes = {"basic": (3, 3), "bottleneck": (1, 3, 1)}[block]
            inputs = [channels] + [inside] * (len(sizes) - 1)
            for j, (side, n) in enumerate(zip(sizes, inputs, strict=True), 1):
                convolution(f"{layer}.conv{j}", f"{layer}.bn{j}", n, outputs if j == len(sizes) else inside, side)
            if channels != outputs or (stage and not i):
                convolution(f"{layer}.downsample.0", f"{layer}.downsample.1", channels, outputs, 1)
            channels = outputs
    out["fc.weight"] = (rng.standard_normal((CLASSES, channels)) * channels**-0.5).astype(np.float32)
    out["fc.bias"] = rng.standard_normal(CLASSES).astype(np.float32)
    return out


def write_safetensors(path, tensors, config=None):
    """A directory of them."""
    path.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: np.array(x, order="C") for name, x in tensors.items()}, path / "model.safetensors", {"format": "pt"}
    )
    if config is not None:
        (path / "config.json").write_text(json.dumps(config))
    return path


def abstract_of(found, mesh=None, classes=CLASSES, shape=None):
    """(module, abstract parameters and statistics) of what was found, on a mesh; by default on 2 x 4 devices."""
    module = found.model.build(found.classes or classes)
    image = jnp.zeros((1, *(shape or found.image)))
    boxed = jax.eval_shape(lambda: module.init(jax.random.key(0), image, Context()))
    shapes = flax.core.meta.unbox(boxed)
    made = spmd.make_mesh(mesh or spmd.MeshConfig(data=2, model=4))
    placed = {"params": spmd.shardings(made, spmd.param_specs(boxed["params"]))}
    everywhere = jax.sharding.NamedSharding(made, jax.sharding.PartitionSpec())
    placed |= jax.tree.map(lambda _: everywhere, {k: v for k, v in shapes.items() if k != "params"})
    return module, jax.tree.map(lambda s, p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=p), shapes, placed)


def variables_of(found, **settings):
    """(module, variables) of what was found."""
    module, abstract = abstract_of(found, **settings)
    params, state = abstract["params"], {k: v for k, v in abstract.items() if k != "params"}
    check_state(found, params, state)
    variables = {"params": load(found.tensors, params, found.reader), **load(found.statistics, state, found.reader)}
    return module, jax.device_get(variables)


def assert_same(found, expected):
    """To the bit."""
    found, expected = (flax.traverse_util.flatten_dict(tree, sep="/") for tree in (found, expected))
    assert set(found) == set(expected)
    for path, value in expected.items():
        same = np.asarray(value, np.float32)
        assert (found[path].dtype, found[path].shape, found[path].tobytes()) == (
            np.float32,
            same.shape,
            same.tobytes(),
        ), path
