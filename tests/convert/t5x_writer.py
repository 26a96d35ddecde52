"""T5X's format by hand, for tests: its names, its index and its zarr arrays, none of them from the code under test."""

import flax
import numpy as np
import tensorstore

HEADS_OF = {"attention": "attention", "self_attention": "attention", "encoder_decoder_attention": "cross"}
NORM_OF = {
    "pre_attention_layer_norm": "norm_attention",
    "pre_self_attention_layer_norm": "norm_attention",
    "pre_cross_attention_layer_norm": "norm_cross",
    "pre_mlp_layer_norm": "norm_mlp",
}
MLP_OF = {"wi": "wi", "wi_0": "wi", "wi_1": "wi_gate", "wo": "wo"}
LAYER = {
    "encoder": ("attention", "pre_attention_layer_norm", "pre_mlp_layer_norm"),
    "decoder": (
        "self_attention",
        "encoder_decoder_attention",
        "pre_self_attention_layer_norm",
        "pre_cross_attention_layer_norm",
        "pre_mlp_layer_norm",
    ),
}
GZIP = {"id": "gzip", "level": 1}
STATE = {"step": np.int32(1000), "param_states": {"gone": np.zeros(3, np.float32)}}


def tensors_of(config, params):
    """T5X's tensors of our parameters, by name."""
    out = {"target/token_embedder/embedding": params["embedding"]}
    if "head" in params:
        out["target/decoder/logits_dense/kernel"] = params["head"]["kernel"]
    for stack, parts in LAYER.items():
        ours = params[stack]
        out[f"target/{stack}/{stack}_norm/scale"] = ours["norm"]["scale"]
        out[f"target/{stack}/relpos_bias/rel_embedding"] = ours["bias"]["embedding"].T
        for i in range(config.depth(stack)):
            layer = f"target/{stack}/layers_{i}"
            for part in parts:
                if part in NORM_OF:
                    out[f"{layer}/{part}/scale"] = ours["layers"][NORM_OF[part]]["scale"][i]
                    continue
                for name in ("query", "key", "value", "out"):
                    out[f"{layer}/{part}/{name}/kernel"] = ours["layers"][HEADS_OF[part]][name]["kernel"][i]
            for name in ("wi_0", "wi_1", "wo") if config.mlp.gated else ("wi", "wo"):
                out[f"{layer}/mlp/{name}/kernel"] = ours["layers"]["mlp"][MLP_OF[name]]["kernel"][i]
    return {name: np.asarray(x) for name, x in out.items()}


def write_array(path, array, compressor=GZIP, parts=2):
    """A zarr array in as many parts along its first axis."""
    spec = {
        "driver": "zarr",
        "dtype": array.dtype.name,
        "kvstore": {"driver": "file", "path": str(path)},
        "metadata": {
            "compressor": compressor,
            "shape": array.shape,
            "chunks": [-(-array.shape[0] // parts), *array.shape[1:]],
        },
    }
    tensorstore.open(spec, create=True).result().write(array).result()


def spec_of(name, array):
    """As in indices since 2021-12, a disk's."""
    return {
        "driver": "zarr",
        "dtype": array.dtype.name,
        "kvstore": {"driver": "gfile", "path": name.replace("/", ".") + "/"},
        "metadata": {"compressor": GZIP, "shape": list(array.shape), "chunks": [*array.shape]},
    }


def bucket_spec_of(name, array):
    """As in those before, in a bucket."""
    return spec_of(name, array) | {
        "kvstore": {"driver": "gcs", "bucket": "t5x-dummy-bucket"},
        "path": name.replace("/", "."),
    }


def placeholder_of(name, array):
    """As Orbax writes for T5X."""
    return f"PLACEHOLDER://{name.replace('/', '.')}"


def write_index(path, leaves, orbax=False):
    path.mkdir(parents=True, exist_ok=True)
    tree = flax.traverse_util.unflatten_dict(leaves, sep="/")
    contents = {**tree, "state": STATE} if orbax else {"version": 3, "optimizer": {**tree, "state": STATE}}
    (path / "checkpoint").write_bytes(flax.serialization.msgpack_serialize(contents))


def write(path, tensors, leaf_of=spec_of, inline=("scale",), orbax=False, **settings):
    """The directory: tensors whose names end so in the index, others beside it. Returns what the index has."""
    leaves = {}
    for name, array in tensors.items():
        if name.endswith(inline):
            leaves[name] = array
        else:
            leaves[name] = leaf_of(name, array)
            write_array(path / name.replace("/", "."), array, **settings)
    write_index(path, leaves, orbax)
    return leaves
