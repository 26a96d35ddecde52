"""Image models of torch, whose implementations are the reference: transformers, timm and torchvision."""

import json
import tempfile
from pathlib import Path

import jax
import numpy as np
import pytest

from sparsity.convert import hf, timm
from sparsity.layers.sparsify import Context
from tests.convert import images

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
theirs = pytest.importorskip("timm")
torchvision = pytest.importorskip("torchvision")
pytestmark = pytest.mark.peer

F = torch.nn.functional


def moved(module, seed=0):
    """Every parameter and running statistic at random, those too that start at 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, x in [*module.named_parameters(), *module.named_buffers()]:
            if name.endswith("num_batches_tracked"):
                continue
            fan_in = x[0].numel() if x.dim() > 1 else 1
            noise = torch.randn(x.shape, generator=generator) * (fan_in**-0.5 if x.dim() > 1 else 0.2)
            norm = x.dim() == 1 and (name.endswith("running_var") or (name.endswith("weight")))
            x.copy_(noise.abs() + 0.5 if norm else noise)
    return module.eval()


def logits_of(module, pictures):
    with torch.no_grad():
        out = module(torch.tensor(np.ascontiguousarray(pictures.transpose(0, 3, 1, 2))))
    return (out.logits if hasattr(out, "logits") else out).numpy()


def assert_logits(found, module, pictures):
    """Ours are torch's."""
    net, variables = images.variables_of(found)
    ours = jax.jit(lambda v, x: net.apply(v, x, Context()))(variables, pictures)
    expected = logits_of(module, pictures)
    assert np.ptp(expected) > 0.3
    # Float32 throughout, sums in another order through up to 50 layers.
    assert np.abs(ours - expected).max() < 2e-5 * np.abs(expected).max()
    return variables


def saved(path, module, config=None):
    return images.write_safetensors(path, {n: x.numpy() for n, x in module.state_dict().items()}, config)


@pytest.mark.parametrize("act", ["gelu", "gelu_pytorch_tanh", "relu"])
def test_a_vit_of_transformers_there_and_back(act, tmp_path):
    sizes = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 96}
    config = transformers.ViTConfig(image_size=32, patch_size=8, hidden_act=act, num_labels=7, **sizes)
    module = moved(transformers.ViTForImageClassification(config))
    module.save_pretrained(tmp_path / "hf")
    pictures = images.batch((32, 32, 3))
    found = hf.open_vit(tmp_path / "hf")
    variables = assert_logits(found, module, pictures)
    hf.write_vit(variables["params"], found.model, found.classes, found.image, tmp_path / "back")
    from safetensors.numpy import load_file

    there, back = (load_file(tmp_path / name / "model.safetensors") for name in ("hf", "back"))
    assert {name: x.tobytes() for name, x in back.items()} == {name: x.tobytes() for name, x in there.items()}
    again = transformers.ViTForImageClassification.from_pretrained(tmp_path / "back").eval()
    np.testing.assert_array_equal(logits_of(again, pictures), logits_of(module, pictures))


def test_a_vit_model_of_transformers_there_and_back(tmp_path):
    """What it pools is what our head reads."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    module = moved(transformers.ViTModel(transformers.ViTConfig(image_size=8, patch_size=4, **sizes)))
    module.save_pretrained(tmp_path / "hf")
    found = hf.open_vit(tmp_path / "hf")
    net, variables = images.variables_of(found, classes=16)
    pictures = images.batch((8, 8, 3))
    eye = {"kernel": np.eye(16, dtype=np.float32), "bias": np.zeros(16, np.float32)}
    ours = net.apply({"params": variables["params"] | {"head": eye}}, pictures, Context())
    with torch.no_grad():
        expected = module(torch.tensor(pictures.transpose(0, 3, 1, 2).copy())).pooler_output.numpy()
    np.testing.assert_allclose(ours, expected, atol=2e-5)
    hf.write_vit(variables["params"], found.model, 16, found.image, tmp_path / "back")
    again = dict(transformers.ViTModel.from_pretrained(tmp_path / "back").named_parameters())
    for name, one in module.named_parameters():
        assert torch.equal(one, again[name]), name


ARGS = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "num_heads": 4, "depth": 3, "num_classes": 7}
TIMM = {
    "token": ("vit_tiny_patch16_224", {}),
    "the mean": ("vit_base_patch16_gap_224", {}),
    "no position of the class token": ("vit_tiny_patch16_224", {"no_embed_class": True}),
    "no biases": ("vit_tiny_patch16_224", {"qkv_bias": False}),
    "tanh": ("deit_tiny_patch16_224", {"act_layer": "gelu_tanh"}),
}


@pytest.mark.parametrize("kind", TIMM)
def test_a_vit_of_timm(kind, tmp_path):
    architecture, more = TIMM[kind]
    args = ARGS | more
    module = moved(theirs.create_model(architecture, **args))
    from timm.models._hub import save_config_for_hf

    path = saved(tmp_path / "timm", module)
    save_config_for_hf(module, path / "config.json", model_args=args)
    assert_logits(timm.open_vit(path), module, images.batch((32, 32, 3)))


@pytest.mark.parametrize("depth", [18, 50])
def test_a_resnet_of_torchvision_is_timms_and_ours(depth, tmp_path):
    module = moved(getattr(torchvision.models, f"resnet{depth}")(num_classes=7))
    found = timm.open_resnet(saved(tmp_path / "torchvision", module))
    assert found.model.blocks == {18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}[depth]
    pictures = images.batch((64, 96, 3))
    assert_logits(found, module, pictures)
    of_timm = theirs.create_model(f"resnet{depth}", num_classes=7).eval()
    of_timm.load_state_dict(module.state_dict())
    np.testing.assert_allclose(logits_of(of_timm, pictures), logits_of(module, pictures), rtol=1e-4, atol=1e-4)


def resnet_of(tensors, block, x):
    """The logits of a small ResNet, written out over torch's functions: torchvision's are 64 channels wide."""
    t = {name: torch.tensor(np.array(x)) for name, x in tensors.items()}

    def convolution(x, name, bn, stride=1):
        kernel = t[f"{name}.weight"]
        x = F.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2)
        return F.batch_norm(x, *(t[f"{bn}.{leaf}"] for leaf in ("running_mean", "running_var", "weight", "bias")))

    x = F.max_pool2d(torch.relu(convolution(x, "conv1", "bn1", 2)), 3, 2, 1)
    last = {"basic": 2, "bottleneck": 3}[block]
    for stage, blocks in enumerate(images.STAGES):
        for i in range(blocks):
            layer, h, stride = f"layer{stage + 1}.{i}", x, 2 if stage and not i else 1
            for j in range(1, last + 1):
                strided = stride if j == last - 1 else 1
                h = convolution(h, f"{layer}.conv{j}", f"{layer}.bn{j}", strided)
                h = torch.relu(h) if j < last else h
            if f"{layer}.downsample.0.weight" in t:
                x = convolution(x, f"{layer}.downsample.0", f"{layer}.downsample.1", stride)
            x = torch.relu(h + x)
    return F.linear(x.mean((2, 3)), t["fc.weight"], t["fc.bias"])


def golden_values():
    """What golden_images.json has."""
    names = {"id2label": {str(i): str(i) for i in range(images.CLASSES)}}
    out, pictures = {}, torch.tensor(images.batch().transpose(0, 3, 1, 2).copy())

    def loaded(module, tensors):
        module.load_state_dict({name: torch.tensor(x) for name, x in tensors.items()})
        return module.eval()

    with torch.no_grad():
        with tempfile.TemporaryDirectory() as path:
            images.write_safetensors(Path(path), images.hf_vit(images.vit()), images.HF_CONFIG | names)
            module = transformers.ViTForImageClassification.from_pretrained(path).eval()
        out["hf"] = module(pictures).logits
        for pool, classy in (("cls", {}), ("gap", {"class_token": False, "global_pool": "avg", "fc_norm": False})):
            args = images.TIMM_CONFIG["model_args"] | {"mlp_ratio": images.FF / images.D} | classy
            module = theirs.create_model("vit_tiny_patch16_224", num_classes=images.CLASSES, **args)
            out[f"timm {pool}"] = loaded(module, images.timm_vit(images.vit(pool)))(pictures)
        pictures = torch.tensor(images.batch(images.RESNET_SHAPE).transpose(0, 3, 1, 2).copy())
        for block in ("basic", "bottleneck"):
            out[f"resnet {block}"] = resnet_of(images.resnet(block), block, pictures)
    digits = lambda row: [float(f"{v:.8g}") for v in row]
    return {case: [digits(row) for row in logits.numpy()] for case, logits in out.items()}


def test_golden_values_are_those_of_torch():
    """To make the file anew: python -m tests.convert.test_peer_images."""
    found = golden_values()
    expected = json.loads(images.FILE.read_text())
    assert set(found) == set(expected)
    for case, logits in found.items():
        np.testing.assert_allclose(logits, expected[case], rtol=2e-5, atol=1e-6)


if __name__ == "__main__":
    images.FILE.write_text(json.dumps(golden_values(), indent=1) + "\n")
