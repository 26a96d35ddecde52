"""Checkpoints of T5s that numpy draws, and a batch: what torch makes of them is in golden_t5.json."""

import json
import zlib
from pathlib import Path

import flax
import jax
import jax.numpy as jnp
import numpy as np

from sparsity.convert import hf
from sparsity.convert.tensors import load
from sparsity.layers.sparsify import Context

FILE = Path(__file__).with_name("golden_t5.json")
V, LENGTH, TARGETS, GENERATED = 60, 150, 12, 64
SIZES = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4}
CASES = {
    "v1.0": {"model_type": "t5", "vocab_size": V, "feed_forward_proj": "relu", "tie_word_embeddings": True, **SIZES},
    "v1.1": {
        "model_type": "t5",
        "vocab_size": V,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
        **SIZES,
    },
}


def golden(case):
    """What torch makes of the case's checkpoint."""
    return json.loads(FILE.read_text())[case]


def batch(classes=V, length=LENGTH, targets=TARGETS, padding=30):
    """Random tokens; the second row ends in padding."""
    rng = np.random.default_rng(0)
    inputs, targets = (rng.integers(2, classes, (2, n)).astype(np.int32) for n in (length, targets))
    inputs[1, length - padding :] = 0
    return {
        "inputs": inputs,
        "decoder_inputs": np.pad(targets[:, :-1], ((0, 0), (1, 0))),
        "input_segments": (inputs > 0).astype(np.int32),
        "target_segments": np.ones_like(targets),
        "targets": targets,
    }


def model(case):
    """(settings, module, shapes of its parameters) of ours."""
    config, classes = hf.t5_config(CASES[case])
    module = config.build(classes)
    zeros = [jnp.zeros((1, 4), jnp.int32)] * 4
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *zeros, Context()))["params"]
    return config, module, flax.core.meta.unbox(shapes)


def checkpoint(case):
    """The tensors, by the name that transformers gives them."""
    config, _, shapes = model(case)
    flat = flax.traverse_util.flatten_dict(shapes, sep="/")
    out = {}
    for path, tensor in hf.t5_tensors(config).items():
        for name in tensor.names:
            rng = np.random.default_rng(zlib.crc32(name.encode()))
            shape = tensor.shape(flat[path].shape)
            values = rng.standard_normal(shape)
            if path.endswith("scale"):
                values = 1 + 0.1 * values
            elif path.endswith("kernel"):  # [outputs, inputs]
                values = values * shape[1] ** -0.5 * (4 * config.head_dim**-0.5 if "query" in path else 1)
            elif "bias" in path:
                values = 2 * values
            elif path == "embedding":  # small beside what layers add: else a tied network repeats what it reads
                values = 0.1 * values
            out[name] = values.astype(np.float32)
    return out


class Tensors:
    """A checkpoint in memory."""

    def __init__(self, tensors):
        self.tensors = tensors

    def shapes(self):
        return {name: tensor.shape for name, tensor in self.tensors.items()}

    def read(self, name, index):
        return self.tensors[name][index]


def parameters(case):
    """Ours, of the case's checkpoint."""
    config, _, shapes = model(case)
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=one), shapes)
    return load(hf.t5_tensors(config), abstract, Tensors(checkpoint(case)))
