"""Where every model's parameters, optimizer slots and activations lie on a mesh of four axes; nothing is compiled."""

import re
from collections import Counter

import flax
import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import PartitionSpec as P

from sparsity import spmd
from sparsity.layers.mlp import MLPConfig
from sparsity.layers.noise import NOISE
from sparsity.layers.sparsify import Context
from sparsity.models import MODELS
from sparsity.models.alexnet import AlexNetConfig
from sparsity.models.autoencoder import AutoencoderConfig
from sparsity.models.bert import BERTConfig
from sparsity.models.convmixer import ConvMixerConfig
from sparsity.models.deep_cnn import DeepCNNConfig
from sparsity.models.deep_mlp import DeepMLPConfig
from sparsity.models.gpt2 import GPT2Config
from sparsity.models.llama import LlamaConfig
from sparsity.models.mixer import MixerConfig
from sparsity.models.mlp import MLPClassifierConfig
from sparsity.models.resnet import ResNetConfig
from sparsity.models.t5 import T5Config
from sparsity.models.vit import ViTConfig
from sparsity.ops.sparsifiers import Relu, TopK

TOP_K = MLPConfig(32, TopK(k=8))
BARE = MLPConfig(32, TopK(k=8), gated=True, use_bias=False)
CONFIGS = {
    "vit": ViTConfig(TOP_K, d_model=16, layers=1, heads=2, patch=2, pool="gap", representation=16),
    "mixer": MixerConfig(TOP_K, MLPConfig(16, TopK(k=8)), d_model=16, layers=1, patch=2),
    "gpt2": GPT2Config(MLPConfig(32, TopK(k=8), predictor=4), d_model=16, layers=1, heads=2, positions=16),
    "llama": LlamaConfig(mlp=BARE, d_model=16, layers=1, heads=4, kv_heads=2),
    "bert": BERTConfig(TOP_K, d_model=16, layers=1, heads=2, positions=16, next_sentence=True),
    "t5": T5Config(mlp=BARE, d_model=16, layers=2, heads=2, head_dim=8, tied=False),
    "deep_mlp": DeepMLPConfig(width=16, depth=3, sparsifier=Relu()),
    "deep_cnn": DeepCNNConfig(channels=8, depth=3, sparsifier=Relu()),
    "mlp": MLPClassifierConfig((16, 8), Relu()),
    "autoencoder": AutoencoderConfig(MLPConfig(32, Relu())),
    "resnet": ResNetConfig(Relu(), blocks=(1, 1), width=8, stem="small"),
    "alexnet": AlexNetConfig(Relu(), channels=(8, 8, 8, 8, 8), widths=(16, 16), stride=1),
    "convmixer": ConvMixerConfig(hidden=8, depth=1, sparsifier=Relu(), kernel=3, patch=2),
}

IMAGE = jax.ShapeDtypeStruct((8, 8, 8, 4), jnp.float32)
TOKENS, TARGETS = (jax.ShapeDtypeStruct((8, length), jnp.int32) for length in (16, 8))
INPUTS = {
    "gpt2": (TOKENS,),
    "llama": (TOKENS,),
    "bert": (TOKENS, TOKENS),
    "t5": (TOKENS, TARGETS, TOKENS, TARGETS),
}

# Of parameters, by the end of their path; scanned ones have an axis more in front.
IN, OUT, UNITS, WIDTH = P("fsdp", "model"), P("model", "fsdp"), P(("model", "fsdp")), P("fsdp")
MAPS = P(None, None, "fsdp", "model")  # of a convolution
HEAD = {"head/kernel": P("fsdp", None), "head/bias": P(None)}  # classes are not split
PATCHES = {"embed/kernel": P(None, "fsdp"), "embed/bias": WIDTH}
NORMS = {r"norm\w*/(scale|bias)": WIDTH}
BATCH_NORMS = {r"norm\w*/(scale|bias)": UNITS}
ATTENTION = {
    "(query|key|value)/kernel": IN,
    "(query|key|value)/bias": P("model"),
    "out/kernel": OUT,
    "out/bias": WIDTH,
}
MLP = {"wi(_gate)?/kernel": IN, "wi/bias": UNITS, "wo/kernel": OUT, "wo/bias": WIDTH}
TABLES = {"embedding": OUT, "position": P(None, "fsdp")}
PARAMETERS = {
    "vit": PATCHES | NORMS | ATTENTION | MLP | {
        "position": P(None, "fsdp"),
        "representation/kernel": IN,
        "representation/bias": UNITS,
        "head/kernel": P(("model", "fsdp"), None),
        "head/bias": P(None),
    },
    "mixer": PATCHES | NORMS | MLP | HEAD,
    "gpt2": TABLES | NORMS | ATTENTION | MLP | {"predictor/read": P("fsdp", None), "predictor/write": P(None, *UNITS)},
    "llama": TABLES | NORMS | ATTENTION | MLP | {"head/kernel": IN},
    "bert": TABLES | NORMS | ATTENTION | MLP | {
        "type": P(None, "fsdp"),
        "(head|pooler|next_sentence)/kernel": P("fsdp", None),
        "(head|pooler|next_sentence)/bias": P(None),
        "head_bias": P("model"),
    },
    "t5": NORMS | ATTENTION | MLP | {"(?<!bias/)embedding": OUT, "bias/embedding": P(None, "model"), "head/kernel": IN},
    "deep_mlp": HEAD | {"(input|dense)/kernel": IN, "(input|dense)/bias": UNITS},
    "deep_cnn": HEAD | {"(input|conv)/kernel": MAPS, "(input|conv)/bias": UNITS},
    "mlp": HEAD | {r"dense_\d/kernel": IN, r"dense_\d/bias": UNITS},
    "autoencoder": MLP,
    "resnet": HEAD | BATCH_NORMS | {r"conv(_\d)?/kernel|shortcut/kernel": MAPS},
    "alexnet": HEAD | {"conv/kernel": MAPS, "dense/kernel": IN, "(conv|dense)/bias": UNITS},
    "convmixer": HEAD | BATCH_NORMS | {
        r"(embed|pointwise_\d)/dense/kernel": IN,
        "conv/kernel": P(None, None, None, ("model", "fsdp")),
        "(conv|dense)/bias": UNITS,
    },
}  # fmt: skip

# How often each sharding stands in a forward pass: of what blocks read and write, of hidden units (and logits), of
# queries, of keys and values, of maps [B, height, width, F], and of [B, F].
STREAM = '[{"data", "fsdp"}, {"sequence"}, {}]'
HIDDEN = '[{"data", "fsdp"}, {"sequence"}, {"model"}]'
QUERY = '[{"data", "fsdp"}, {"sequence"}, {"model"}, {}]'
KEY = '[{"data", "fsdp"}, {}, {"model"}, {}]'
MAP = '[{"data", "fsdp"}, {"sequence"}, {}, {"model"}]'
FLAT = '[{"data", "fsdp"}, {"model"}]'
ACTIVATIONS = {
    "vit": {STREAM: 3, QUERY: 1, KEY: 2, HIDDEN: 1},
    "mixer": {STREAM: 3, HIDDEN: 2},
    "gpt2": {STREAM: 3, QUERY: 1, KEY: 2, HIDDEN: 2},
    "llama": {STREAM: 3, QUERY: 1, KEY: 2, HIDDEN: 2},
    "bert": {STREAM: 3, QUERY: 1, KEY: 2, HIDDEN: 2},
    "t5": {STREAM: 9, QUERY: 3, KEY: 6, HIDDEN: 3},
    "deep_mlp": {FLAT: 2},
    "deep_cnn": {MAP: 2},
    "mlp": {FLAT: 2},
    "autoencoder": {'[{"data", "fsdp"}, {}, {}]': 1, '[{"data", "fsdp"}, {}, {"model"}]': 1},  # one token an image
    "resnet": {MAP: 4},
    "alexnet": {MAP: 5, FLAT: 2},
    "convmixer": {MAP: 3},
}
RANKED = dict.fromkeys(("vit", "gpt2", "llama", "bert"), 1) | {"mixer": 2, "t5": 2}  # layers of Top-k over tokens


def by_path(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda leaf: isinstance(leaf, P))
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def expected(name, path):
    (found,) = {spec for end, spec in PARAMETERS[name].items() if re.fullmatch(f"(.*/)?({end})", path)} or {None}
    return P(None, *found) if "layers/" in path else found


def test_every_model_has_its_table():
    assert MODELS.keys() == CONFIGS.keys() == PARAMETERS.keys() == ACTIVATIONS.keys()
    assert {name: type(config) for name, config in CONFIGS.items()} == MODELS


@pytest.mark.parametrize("name", MODELS)
def test_parameters_slots_and_activations_lie_as_the_tables_say(name, monkeypatch):
    monkeypatch.setattr(spmd, "LARGE", 1)
    module, inputs = CONFIGS[name].build(12), INPUTS.get(name, (IMAGE,))
    boxed = jax.eval_shape(module.init, jax.random.key(0), *inputs, Context())
    variables = flax.core.meta.unbox(boxed)
    params, specs = variables["params"], spmd.param_specs(boxed["params"])
    mesh = spmd.make_mesh(spmd.MeshConfig(data=1, fsdp=2, sequence=2, model=2))
    spmd.check_divisible(params, specs, mesh)
    wanted = {path: expected(name, path) for path in by_path(params)}
    assert by_path(specs) == wanted

    moments = jax.eval_shape(optax.adam(1e-3).init, params)
    slots = by_path(spmd.optimizer_specs(moments, params, specs))
    assert slots == {"0/count": P()} | {f"0/{m}/{path}": spec for m in ("mu", "nu") for path, spec in wanted.items()}

    def forward(variables, *inputs):
        ctx, rngs = Context(train=True, noisy=True), {"dropout": jax.random.key(1), NOISE: jax.random.key(2)}
        return module.apply(variables, *inputs, ctx, rngs=rngs, mutable=True)[0]

    with jax.set_mesh(mesh):
        text = jax.jit(forward).lower(variables, *inputs).as_text()
    assert Counter(re.findall(r"sdy\.sharding_constraint %\S+ <@mesh, (\[.*?\])>", text)) == ACTIVATIONS[name]
    # Top-k counts on each shard: none is gathered in front of it.
    shards = re.findall(r"sdy\.manual_computation\(.*?\) in_shardings=\[(.*?)\] out_shardings", text)
    assert [one.count(HIDDEN) for one in shards] == [1] * RANKED.get(name, 0)


def test_factored_slots_of_scanned_layers_keep_the_axes_that_remain(monkeypatch):
    """T5's wi is [layers 2, embed 16, mlp 32]: v_row has lost the 32, v_col the 16."""
    monkeypatch.setattr(spmd, "LARGE", 1)
    boxed = jax.eval_shape(CONFIGS["t5"].build(12).init, jax.random.key(0), *INPUTS["t5"], Context())["params"]
    params = flax.core.meta.unbox(boxed)
    slots = jax.eval_shape(optax.adafactor(1e-3, min_dim_size_to_factor=4).init, params)
    specs = by_path(spmd.optimizer_specs(slots, params, spmd.param_specs(boxed)))
    found = {path: spec for path, spec in specs.items() if path.endswith("encoder/layers/mlp/wi/kernel")}
    (row,) = (spec for path, spec in found.items() if "v_row" in path)
    (column,) = (spec for path, spec in found.items() if "v_col" in path)
    assert (row, column) == (P(None, "fsdp"), P(None, "model"))
