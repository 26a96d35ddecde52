import dataclasses

import flax
import jax
import numpy as np
import pytest

from sparsity.layers.mlp import MLPConfig
from sparsity.layers.sparsify import Context
from sparsity.models.bert import BERTConfig
from sparsity.models.gpt2 import GPT2Config
from sparsity.models.llama import LlamaConfig
from sparsity.models.t5 import T5Config
from sparsity.models.vit import ViTConfig
from sparsity.ops.sparsifiers import Relu

RNG = np.random.default_rng(0)
MLP = MLPConfig(16, Relu())
BARE = MLPConfig(16, Relu(), gated=True, use_bias=False)
IMAGES, TOKENS = RNG.normal(size=(2, 4, 4, 1)).astype(np.float32), RNG.integers(0, 9, (2, 4)).astype(np.int32)
ONES = np.ones_like(TOKENS)
MODELS = {
    "vit": (ViTConfig(MLP, d_model=8, layers=1, heads=2, patch=2, dropout=0.1), (IMAGES,)),
    "bert": (BERTConfig(MLP, d_model=8, layers=1, heads=2, positions=4), (TOKENS,)),
    "gpt2": (GPT2Config(MLP, d_model=8, layers=1, heads=2, positions=4, dropout=0.1), (TOKENS,)),
    "llama": (LlamaConfig(mlp=BARE, d_model=8, layers=1, heads=2), (TOKENS,)),
    "t5": (T5Config(mlp=BARE, d_model=8, layers=1, heads=2, head_dim=4), (TOKENS, TOKENS, ONES, ONES)),
}


@pytest.mark.parametrize("name", MODELS)
def test_what_is_computed_again_is_the_same_and_stands_in_the_program(name):
    config, inputs = MODELS[name]
    module = config.build(9)
    boxed = jax.eval_shape(module.init, jax.random.key(0), *inputs, Context())["params"]
    params = jax.tree.map(lambda p: RNG.normal(0, 0.3, p.shape).astype(np.float32), flax.core.meta.unbox(boxed))

    def loss(params, remat):
        module = dataclasses.replace(config, remat=remat).build(9)
        ctx, rngs = Context(train=True), {"dropout": jax.random.key(1)}
        return (module.apply({"params": params}, *inputs, ctx, rngs=rngs) ** 2).mean()

    lowered = {
        remat: jax.jit(jax.value_and_grad(lambda params, remat=remat: loss(params, remat))).lower(params)
        for remat in ("none", "dots", "full")
    }
    # "dots" keeps products with weights and computes attention's again, "full" both.
    products = {remat: one.as_text().count("stablehlo.dot_general") for remat, one in lowered.items()}
    assert products["none"] < products["dots"] < products["full"]
    compiled = {remat: lowered[remat].compile() for remat in ("none", "dots" if name == "vit" else "full")}
    before, after = (one.as_text().count(" dot(") for one in compiled.values())
    assert before < after
    (value, gradient), (value_again, gradient_again) = (one(params) for one in compiled.values())
    np.testing.assert_allclose(value_again, value, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), gradient_again, gradient)
