"""The .npz files of vision_transformer and big_vision, written by hand."""

import re

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from sparsity.config import ConfigError
from sparsity.convert import npz
from sparsity.layers.sparsify import Context
from sparsity.ops.sparsifiers import GeluTanh
from tests.convert import images


def opened(path, tensors):
    np.savez(path / "vit.npz", **tensors)
    return npz.open_vit(path / "vit.npz")


def optimised(tensors):
    """As big_vision once saved them, the optimizer's state beside them."""
    return {f"opt/target/{n.removeprefix('params/')}": x for n, x in tensors.items()} | {"opt/state/step": np.int64(3)}


GAP, TOK, LAYER = images.vit("gap"), images.vit(own=False), images.vit(representation=12)
FILES = {
    "vision_transformer": (images.vision_transformer(images.vit()), images.vit()),
    "vision_transformer, pre_logits": (images.vision_transformer(LAYER), LAYER),
    "big_vision, gap": (images.big_vision(GAP), GAP),
    "big_vision, gap, pre_logits": (
        images.big_vision(images.vit("gap", representation=8)),
        images.vit("gap", representation=8),
    ),
    "big_vision, tok": (images.big_vision(TOK, own=False), TOK),
    "big_vision, tok, scanned": (images.big_vision(TOK, own=False, scanned=True), TOK),
    "big_vision, gap, scanned": (images.big_vision(GAP, scanned=True), GAP),
    "big_vision, the class token's position": (
        images.big_vision(images.vit(), "Transformer/pos_embedding"),
        images.vit(),
    ),
    "big_vision, with its optimizer": (optimised(images.big_vision(GAP)), GAP),
}


@pytest.mark.parametrize("kind", FILES)
def test_settings_and_parameters_are_those_it_was_made_of(kind, tmp_path):
    tensors, arrays = FILES[kind]
    found = opened(tmp_path, tensors)
    model = found.model
    assert (found.classes, found.image) == (images.CLASSES, images.SHAPE)
    assert (model.d_model, model.layers, model.heads, model.patch, model.mlp.d_ff) == (8, 2, 2, 2, 12)
    assert (model.mlp.sparsifier, model.norm_epsilon, model.positions) == (GeluTanh(), 1e-6, "learned")
    assert model.pool == ("cls" if "cls" in arrays else "gap")
    images.assert_same(images.variables_of(found)[1]["params"], arrays)


@pytest.mark.parametrize("pool", ["cls", "gap"])
def test_positions_that_are_computed_fit_every_image(pool, tmp_path):
    arrays = images.vit(pool)
    del arrays["position"]
    found = opened(tmp_path, images.big_vision(arrays, position=None))
    assert (found.model.positions, found.model.pool, found.image) == ("sincos", pool, (224, 224, 3))
    images.assert_same(images.variables_of(found, shape=(6, 4, 3))[1]["params"], arrays)


def test_without_a_head_there_is_a_new_one(tmp_path):
    tensors = {n: x for n, x in images.big_vision(GAP).items() if "head" not in n}
    found = opened(tmp_path, tensors)
    assert found.classes is None
    params = images.variables_of(found, classes=7)[1]["params"]
    images.assert_same(params, GAP | {"head": {"kernel": np.zeros((8, 7)), "bias": np.zeros(7)}})


def test_bfloat16_which_numpy_writes_as_two_bytes_is_read_as_float32(tmp_path):
    half = {name: x.astype(ml_dtypes.bfloat16) for name, x in images.big_vision(GAP).items()}
    found = opened(tmp_path, {name: x.view("V2") for name, x in half.items()})
    kernel = images.variables_of(found)[1]["params"]["head"]["kernel"]
    np.testing.assert_array_equal(kernel, half["params/head/kernel"].astype(np.float32))


class MlpBlock(nn.Module):
    @nn.compact
    def __call__(self, x):
        h = nn.gelu(nn.Dense(images.FF)(x))
        return nn.Dense(x.shape[-1])(h)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        y = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(images.HEADS)(y, y)
        return x + MlpBlock()(nn.LayerNorm()(x)), None


class Encoder(nn.Module):
    scanned: bool

    @nn.compact
    def __call__(self, x):
        if self.scanned:
            over = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}, "length": images.LAYERS}
            x, _ = nn.scan(Block, **over)(name="encoderblock")(x, None)
        else:
            for i in range(images.LAYERS):
                x, _ = Block(name=f"encoderblock_{i}")(x, None)
        return nn.LayerNorm(name="encoder_norm")(x)


class OfFlax(nn.Module):
    """big_vision's ViT, of flax's own layers, which give the names."""

    scanned: bool
    tok: bool

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(images.D, (images.PATCH,) * 2, (images.PATCH,) * 2, "VALID", name="embedding")(x)
        x = x.reshape(len(x), -1, images.D)
        x = x + self.param("pos_embedding", nn.initializers.normal(0.5), (1, *x.shape[1:]))
        if self.tok:
            cls = self.param("cls", nn.initializers.normal(0.5), (1, 1, images.D))
            x = jnp.concatenate([jnp.tile(cls, (len(x), 1, 1)), x], axis=1)
        x = Encoder(self.scanned, name="Transformer")(x)
        x = x[:, 0] if self.tok else x.mean(1)
        return nn.Dense(images.CLASSES, name="head")(nn.tanh(nn.Dense(images.D, name="pre_logits")(x)))


@pytest.mark.parametrize(("scanned", "tok"), [(False, True), (True, False)])
def test_logits_are_those_of_flax_layers_under_their_own_names(scanned, tok, tmp_path):
    pictures = images.batch()
    module = OfFlax(scanned, tok)
    shapes = jax.eval_shape(module.init, jax.random.key(0), pictures)["params"]
    rng = np.random.default_rng(2)
    params = jax.tree.map(lambda s: (0.4 * rng.standard_normal(s.shape)).astype(np.float32), shapes)
    names = flax.traverse_util.flatten_dict(params, sep="/")
    expected = jax.jit(module.apply)({"params": params}, pictures)
    net, variables = images.variables_of(opened(tmp_path, {f"params/{name}": x for name, x in names.items()}))
    logits = jax.jit(lambda v, x: net.apply(v, x, Context()))(variables, pictures)
    assert np.ptp(expected) > 0.3
    np.testing.assert_allclose(logits, expected, atol=5e-6)


QUERY = "Transformer/encoderblock_1/MultiHeadDotProductAttention_1/query/kernel"
DAMAGE = {
    "missing": (lambda t: t.pop(QUERY), f"has no tensor {QUERY}, which block_1/attention/query/kernel is made of"),
    "shape": (lambda t: t.update({QUERY: t[QUERY].reshape(8, 8)}), f"{QUERY} has shape (8, 8), and block_1/attention"),
    "extra": (lambda t: t.update(more=t[QUERY]), "nothing is made of its tensor more, of shape (8, 2, 4)"),
    "map": (lambda t: t.update({"MAPHead_0/probe": t["cls"]}), "has a head that pools by attention (map) (MAPHead_0/p"),
    "hybrid": (lambda t: t.update({"conv_root/kernel": t["cls"]}), "has a ResNet in front of its blocks (a hybrid)"),
    "patches": (
        lambda t: t.update({"embedding/kernel": np.zeros((2, 4, 3, 8), np.float32)}),
        "embedding/kernel has patches of 2x4, and this model's are square",
    ),
    "numbers": (lambda t: t.update(step=np.arange(3)), "step is of int64, and not of a floating-point type"),
    "objects": (lambda t: t.update(more=np.array([None])), "more is of object, and not of a floating-point type"),
    "another": (lambda t: t.pop("embedding/kernel"), "has no embedding/kernel: it is no ViT of vision_transformer or"),
    "a layer": (
        lambda t: [t.pop(name) for name in list(t) if "encoderblock_0" in name],
        "has no tensor Transformer/encoderblock_0/MlpBlock_0/Dense_0/kernel, whose sizes are the model's",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_file_that_does_not_fit_is_refused_in_a_line(kind, tmp_path):
    tensors = images.vision_transformer(images.vit())
    change, message = DAMAGE[kind]
    change(tensors)
    with pytest.raises(ConfigError, match=re.escape(message)) as error:
        images.variables_of(opened(tmp_path, tensors))
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("contents", [None, b"", b"PK\x03\x04 and no more", b"text"])
def test_what_is_no_npz_file_is_refused(contents, tmp_path):
    file = tmp_path / "vit.npz"
    if contents is not None:
        file.write_bytes(contents)
    message = "there is no file" if contents is None else "is no .npz file"
    with pytest.raises(ConfigError, match=message):
        npz.open_vit(file)
