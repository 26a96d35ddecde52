"""ViTs and ResNets of timm and torchvision, written by hand; test_peer_images.py compares them with torch's."""

import re

import flax
import numpy as np
import pytest

from sparsity.config import ConfigError
from sparsity.convert import timm
from sparsity.ops.sparsifiers import Gelu, GeluTanh, Relu
from tests.convert import images

GAP = images.TIMM_CONFIG | {"architecture": "vit_base_patch16_gap_224", "global_pool": "avg"}


def with_args(config=images.TIMM_CONFIG, **changes):
    return config | {"model_args": config["model_args"] | changes}


@pytest.mark.parametrize(("pool", "config"), [("cls", images.TIMM_CONFIG), ("gap", GAP)])
def test_settings_and_parameters_of_a_vit_are_those_it_was_made_of(pool, config, tmp_path):
    arrays = images.vit(pool)
    found = timm.open_vit(images.write_safetensors(tmp_path, images.timm_vit(arrays), config))
    model = found.model
    assert (found.classes, found.image) == (images.CLASSES, images.SHAPE)
    assert (model.d_model, model.layers, model.heads, model.patch, model.mlp.d_ff) == (8, 2, 2, 2, 12)
    assert (model.mlp.sparsifier, model.norm_epsilon, model.pool) == (Gelu(), 1e-6, pool)
    images.assert_same(images.variables_of(found)[1]["params"], arrays)


def test_a_class_token_without_a_position_of_its_own_has_zeros(tmp_path):
    arrays = images.vit(own=False)
    config = with_args(no_embed_class=True)
    found = timm.open_vit(images.write_safetensors(tmp_path, images.timm_vit(arrays, own=False), config))
    images.assert_same(images.variables_of(found)[1]["params"], arrays)


def test_biases_and_a_head_that_are_not_there_are_zeros(tmp_path):
    arrays = images.vit()
    tensors = {n: x for n, x in images.timm_vit(arrays).items() if "qkv.bias" not in n and "head" not in n}
    for i in range(images.LAYERS):
        for name in ("query", "key", "value"):
            arrays[f"block_{i}"]["attention"][name]["bias"] = np.zeros(8)
    arrays["head"] = {"kernel": np.zeros((8, 7)), "bias": np.zeros(7)}
    found = timm.open_vit(images.write_safetensors(tmp_path, tensors, with_args(qkv_bias=False)))
    assert found.classes is None
    images.assert_same(images.variables_of(found, classes=7)[1]["params"], arrays)


def wide(d_model):
    """Names and shapes of a ViT of that width, of one block."""
    zeros = lambda *shape: np.zeros(shape, np.float32)
    return {
        "cls_token": zeros(1, 1, d_model),
        "pos_embed": zeros(1, 5, d_model),
        "patch_embed.proj.weight": zeros(d_model, 3, 2, 2),
        "blocks.0.mlp.fc1.weight": zeros(16, d_model),
    }


@pytest.mark.parametrize(("d_model", "heads"), [(192, 3), (384, 6), (768, 12), (1024, 16)])
def test_without_a_description_the_width_says_how_many_heads_there_are(d_model, heads, tmp_path):
    assert timm.open_vit(images.write_safetensors(tmp_path, wide(d_model))).model.heads == heads


def test_the_architecture_says_how_many_heads_there_are_and_the_arguments_which_activation(tmp_path):
    described = {"architecture": "deit_small_patch16_224", "model_args": {"act_layer": "gelu_tanh"}}
    model = timm.open_vit(images.write_safetensors(tmp_path, wide(768), described)).model
    assert (model.heads, model.mlp.sparsifier) == (6, GeluTanh())


QKV = "blocks.1.attn.qkv.weight"
VITS = {
    "missing": (lambda t: t.pop(QKV), {}, f"has no tensor {QKV}, which block_1/attention/query/kernel is made of"),
    "shape": (lambda t: t.update({QKV: t[QKV][:16]}), {}, f"{QKV} has shape (16, 8), and block_1/attention/query/ker"),
    "extra": (lambda t: t.update(more=t[QKV]), {}, "nothing is made of its tensor more, of shape (24, 8)"),
    "no positions": (lambda t: t.pop("pos_embed"), {}, "has no tensor pos_embed, whose sizes are the model's"),
    "positions": (
        lambda t: t.update(pos_embed=np.zeros((1, 7, 8), np.float32)),
        {},
        "7 positions are not those of a square of patches",
    ),
    "patches": (
        lambda t: t.update({"patch_embed.proj.weight": np.zeros((8, 3, 2, 4), np.float32)}),
        {},
        "patch_embed.proj.weight has patches of 2x4, and this model's are square",
    ),
    "a layer": (
        lambda t: [t.pop(name) for name in list(t) if name.startswith("blocks.0.attn") or "blocks.0.norm" in name],
        {},
        "has no tensor blocks.0.attn.qkv.weight",
    ),
    "fc_norm": (lambda t: t.update({"fc_norm.weight": t["norm.weight"]}), {}, "has its last norm behind the mean"),
    "map": (lambda t: t.update({"attn_pool.latent": t["cls_token"]}), {}, "has a head that pools by attention (map)"),
    "distilled": (lambda t: t.update(dist_token=t["cls_token"]), {}, "has a token of distillation (dist_token)"),
    "registers": (lambda t: t.update(reg_token=t["cls_token"]), {}, "has register tokens (reg_token)"),
    "scaled": (lambda t: t.update({"blocks.0.ls1.gamma": t["norm.bias"]}), {}, "branches that are scaled"),
    "the mean beside a class token": (lambda t: t, {"global_pool": "avg"}, 'global_pool "avg" with a class token'),
    "architecture": (
        lambda t: t,
        {"architecture": "vit_base_patch16_siglip_gap_224"},
        "siglip_gap_224 may differ from",
    ),
    "not timm's": (lambda t: t, {"architecture": None}, "names no architecture of timm; --source=hf reads those of"),
    "activation": (lambda t: t, with_args(act_layer="silu"), 'unknown model_args.act_layer of config.json "silu"'),
    "argument": (lambda t: t, with_args(norm_layer="rmsnorm"), "model_args.norm_layer is none that is understood here"),
    "heads": (lambda t: t, with_args(num_heads=3), "heads: 3 does not divide d_model 8"),
}


@pytest.mark.parametrize("kind", VITS)
def test_a_vit_that_does_not_fit_is_refused_in_a_line(kind, tmp_path):
    tensors = images.timm_vit(images.vit())
    change, config, message = VITS[kind]
    change(tensors)
    path = images.write_safetensors(tmp_path, tensors, images.TIMM_CONFIG | config)
    with pytest.raises(ConfigError, match=re.escape(message)) as error:
        images.variables_of(timm.open_vit(path))
    assert len(str(error.value).splitlines()) == 1


def test_an_unknown_width_alone_is_refused(tmp_path):
    path = images.write_safetensors(tmp_path, images.timm_vit(images.vit()))
    with pytest.raises(ConfigError, match=r"no known ViT is 8 wide; config\.json needs model_args.num_heads"):
        timm.open_vit(path)


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_settings_parameters_and_statistics_of_a_resnet_are_those_it_was_made_of(block, tmp_path):
    tensors = images.resnet(block)
    found = timm.open_resnet(images.write_safetensors(tmp_path, tensors))
    model = found.model
    assert (model.block, model.blocks, model.width, model.stem) == (block, (1, 2), 4, "imagenet")
    assert (model.sparsifier, found.classes, found.image) == (Relu(), images.CLASSES, (224, 224, 3))
    _, variables = images.variables_of(found)
    window = lambda name: tensors[f"{name}.weight"].transpose(2, 3, 1, 0)
    params, statistics = variables["params"], variables["batch_stats"]
    last = {"basic": 2, "bottleneck": 3}[block]
    expected = {
        "conv/kernel": window("conv1"),
        "block_0/conv_1/kernel": window("layer1.0.conv2"),
        "block_1/conv_0/kernel": window("layer2.0.conv1"),
        "block_1/shortcut/kernel": window("layer2.0.downsample.0"),
        "block_1/norm_shortcut/scale": tensors["layer2.0.downsample.1.weight"],
        f"block_2/norm_{last - 1}/bias": tensors[f"layer2.1.bn{last}.bias"],
        "head/kernel": tensors["fc.weight"].T,
        "head/bias": tensors["fc.bias"],
    }
    flat = flax.traverse_util.flatten_dict(params, sep="/")
    images.assert_same({path: flat[path] for path in expected}, expected)
    images.assert_same(statistics["norm"], {"mean": tensors["bn1.running_mean"], "var": tensors["bn1.running_var"]})
    shortcut = statistics["block_1"]["norm_shortcut"]
    np.testing.assert_array_equal(shortcut["var"], tensors["layer2.0.downsample.1.running_var"])
    # Nothing but the counters is left out, and nothing is read twice.
    numbers = {name: x.size for name, x in tensors.items() if not name.endswith("num_batches_tracked")}
    assert found.names == set(numbers)
    made = [*flat.values(), *flax.traverse_util.flatten_dict(statistics).values()]
    assert sum(x.size for x in made) == sum(numbers.values())


BN = "layer2.0.bn1.running_var"
RESNETS = {
    "missing": (lambda t: t.pop(BN), None, f"has no tensor {BN}, which batch_stats/block_1/norm_0/var is made of"),
    "shape": (
        lambda t: t.update({BN: t[BN][:3]}),
        None,
        f"{BN} has shape (3,), and batch_stats/block_1/norm_0/var nee",
    ),
    "extra": (
        lambda t: t.update({"layer2.0.se.fc1.weight": t[BN]}),
        None,
        "nothing is made of its tensor layer2.0.se.",
    ),
    "grouped": (
        lambda t: t.update({"layer1.0.conv2.weight": t["layer1.0.conv2.weight"][:, :1]}),
        None,
        "layer1.0.conv2.weight has shape (4, 1, 3, 3), and block_0/conv_1/kernel needs (4, 4, 3, 3)",
    ),
    "a deep stem": (lambda t: t.pop("conv1.weight"), None, "has no tensor conv1.weight, whose sizes are the model's"),
    "stem": (
        lambda t: t.update({"conv1.weight": t["conv1.weight"][:, :, :5, :5]}),
        None,
        "conv1.weight has a window of 5 pixels, and stems here have 7 or 3",
    ),
    "no blocks": (
        lambda t: [t.pop(name) for name in list(t) if name.startswith("layer")],
        None,
        "blocks: at least one of each stage, got ()",
    ),
    "architecture": (lambda t: t, {"architecture": "resnetaa50"}, "resnetaa50 may differ from the model here"),
    "activation": (
        lambda t: t,
        {"architecture": "resnet50", "model_args": {"act_layer": "silu"}},
        'model_args.act_layer "silu" is not the relu of the model here',
    ),
}


@pytest.mark.parametrize("kind", RESNETS)
def test_a_resnet_that_does_not_fit_is_refused_in_a_line(kind, tmp_path):
    tensors = images.resnet("bottleneck")
    change, config, message = RESNETS[kind]
    change(tensors)
    path = images.write_safetensors(tmp_path, tensors, config)
    with pytest.raises(ConfigError, match=re.escape(message)) as error:
        images.variables_of(timm.open_resnet(path))
    assert len(str(error.value).splitlines()) == 1
