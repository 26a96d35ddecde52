"""T5X's directories, made by hand of parameters that are known."""

import dataclasses
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import flax
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from sparsity import spmd
from sparsity.config import ConfigError
from sparsity.convert import t5x
from sparsity.convert.tensors import check, load
from sparsity.layers.mlp import MLPConfig
from sparsity.layers.sparsify import Context
from sparsity.models.t5 import T5Config
from sparsity.ops.sparsifiers import GeluTanh, Relu
from tests.convert import t5x_writer
from tests.hostile import changed, refusal

ROOT = Path(__file__).parents[2]
V = 40
MLP = MLPConfig(d_ff=24, sparsifier=Relu(), use_bias=False, dropout=0.1, init="t5", shared_dropout=True)
V1_0 = T5Config(mlp=MLP, d_model=16, layers=3, decoder_layers=2, heads=4, head_dim=3)
GATED = dataclasses.replace(MLP, gated=True, sparsifier=GeluTanh())
CONFIGS = {"v1.0": V1_0, "v1.1": dataclasses.replace(V1_0, mlp=GATED, tied=False)}
SPLIT = spmd.MeshConfig(data=2, model=4)
ONE = spmd.MeshConfig(data=1, model=1)


def module_and_shapes(config, classes):
    module = config.build(classes)
    zeros = [jnp.zeros((1, 4), jnp.int32)] * 4
    return module, jax.eval_shape(lambda: module.init(jax.random.key(0), *zeros, Context()))["params"]


def random_params(config):
    """All of them random, those that start at 1 too."""
    shapes = flax.core.meta.unbox(module_and_shapes(config, V)[1])
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: 0.3 * rng.standard_normal(s.shape, np.float32), shapes)


def loaded(path, mesh=SPLIT, reader=lambda r: r):
    """(what was found, its parameters), on a mesh."""
    found = t5x.open_t5(path)
    _, boxed = module_and_shapes(found.model, found.classes)
    placed = spmd.shardings(spmd.make_mesh(mesh), spmd.param_specs(boxed))
    shapes = flax.core.meta.unbox(boxed)
    abstract = jax.tree.map(lambda s, p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=p), shapes, placed)
    flat = {p: leaf.shape for p, leaf in flax.traverse_util.flatten_dict(shapes, sep="/").items()}
    check(found.tensors, flat, found.reader.shapes(), found.ignored)
    return found, load(found.tensors, abstract, reader(found.reader))


def assert_same(found, expected):
    found, expected = (flax.traverse_util.flatten_dict(tree, sep="/") for tree in (found, expected))
    assert set(found) == set(expected)
    for path, value in expected.items():
        assert (found[path].dtype, np.asarray(found[path]).tobytes()) == (np.float32, value.tobytes()), path


@pytest.fixture(scope="module", params=CONFIGS)
def network(request):
    config = CONFIGS[request.param]
    return config, random_params(config)


@pytest.fixture(scope="module")
def gated():
    """T5X's tensors of a v1.1, by name."""
    return t5x_writer.tensors_of(CONFIGS["v1.1"], random_params(CONFIGS["v1.1"]))


@pytest.fixture(scope="module")
def saved(gated, tmp_path_factory):
    """(its directory, what its index has): to be copied, not changed."""
    path = tmp_path_factory.mktemp("t5x") / "checkpoint_1000"
    return path, t5x_writer.write(path, gated)


def test_settings_parameters_and_logits_are_those_it_was_made_of(network, tmp_path):
    config, params = network
    t5x_writer.write(tmp_path, t5x_writer.tensors_of(config, params))
    found, again = loaded(tmp_path)
    assert (found.model, found.classes) == (config, V)
    assert_same(again, params)
    rng = np.random.default_rng(1)
    inputs, targets = (rng.integers(2, V, (2, n)).astype(np.int32) for n in (70, 20))
    batch = (inputs, targets, np.ones_like(inputs), np.ones_like(targets))
    logits = jax.jit(lambda module, p: module.apply({"params": p}, *batch, Context()), static_argnums=0)
    expected = logits(config.build(V), params)
    assert np.ptp(expected) > 0.5
    np.testing.assert_array_equal(logits(found.model.build(found.classes), jax.device_get(again)), expected)


FORMS = {
    "specifications": {},
    "all in the index": {"inline": ("",)},
    "nothing in the index": {"inline": ("none",)},
    "a bucket, 2021": {"leaf_of": t5x_writer.bucket_spec_of},
    "placeholders": {"leaf_of": t5x_writer.placeholder_of, "orbax": True},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_every_form_of_the_index_and_both_types_are_read_as_float32(form, dtype, gated, tmp_path):
    stored = {name: x.astype(dtype) for name, x in gated.items()}
    path = tmp_path / "state" if form == "placeholders" else tmp_path
    t5x_writer.write(path, stored, **FORMS[form])
    _, params = loaded(tmp_path, ONE)
    expected = {name: x.astype(np.float32) for name, x in stored.items()}
    again = t5x_writer.tensors_of(CONFIGS["v1.1"], jax.device_get(params))
    assert_same(again, expected)


class Recorder:
    """A reader that keeps what was asked for."""

    def __init__(self, reader):
        self.reader, self.sizes = reader, []

    def read(self, name, index):
        part = self.reader.read(name, index)
        self.sizes.append((name, part.size))
        return part


def test_a_device_reads_its_part_and_the_optimizer_is_not_read(gated, tmp_path):
    leaves = t5x_writer.write(tmp_path, gated)
    # The state's arrays are not even there.
    gone = {"state/param_states/gone": t5x_writer.spec_of("state/param_states/gone", np.zeros((3, 4)))}
    t5x_writer.write_index(tmp_path, leaves | gone, orbax=True)
    recorders = []
    loaded(tmp_path, SPLIT, lambda reader: recorders.append(Recorder(reader)) or recorders[0])
    sizes = recorders[0].sizes
    assert {name for name, _ in sizes} == set(gated)
    whole = {name for name, size in sizes if size == gated[name].size}
    assert {name.rsplit("/", 1)[1] for name in whole} <= {"scale", "rel_embedding"}
    for name, x in gated.items():
        if name.endswith("mlp/wi_0/kernel"):
            assert {size for n, size in sizes if n == name} == {x.size // 4}


MEMORY = """
import gc, re, sys
import flax, jax, jax.numpy as jnp
from sparsity.convert import t5x
from sparsity.convert.tensors import load
from sparsity.layers.sparsify import Context

def status(key):
    return int(re.search(key + r":\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024

found = t5x.open_t5(sys.argv[1])
zeros = [jnp.zeros((1, 4), jnp.int32)] * 4
init = lambda: found.model.build(found.classes).init(jax.random.key(0), *zeros, Context())
device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
shapes = flax.core.meta.unbox(jax.eval_shape(init)["params"])
abstract = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=device), shapes)
load(found.tensors, abstract, found.reader)  # programs, threads and buffers are made once
gc.collect()
open("/proc/self/clear_refs", "w").write("5")  # the peak from here
before = status("VmRSS")
params = jax.block_until_ready(load(found.tensors, abstract, found.reader))
print(status("VmHWM") - before, sum(x.nbytes for x in jax.tree.leaves(params)))
"""


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the peak of memory is Linux's")
def test_memory_is_the_checkpoint_and_less_than_one_and_a_third_tensors(tmp_path):
    """Every array is one part, as a single host writes it: it has to be decoded whole."""
    mlp = dataclasses.replace(MLP, d_ff=8192)
    config = dataclasses.replace(V1_0, mlp=mlp, d_model=512, layers=2, heads=4, head_dim=8)
    tensors = t5x_writer.tensors_of(config, random_params(config))
    t5x_writer.write(tmp_path, tensors, parts=1, compressor=None)
    largest = max(x.nbytes for x in tensors.values())
    assert largest == 512 * 8192 * 4
    # What is freed goes back to the system at once, or the allocator's reserve would be measured.
    env = dict(os.environ, MALLOC_MMAP_THRESHOLD_="100000", XLA_FLAGS="", PYTHONPATH=str(ROOT))
    command = [sys.executable, "-c", MEMORY, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=env, text=True, capture_output=True, timeout=240, check=True)
    peak, checkpoint = map(int, done.stdout.split())
    assert checkpoint == sum(x.nbytes for x in tensors.values())
    assert checkpoint * 0.9 < peak < checkpoint + 1.3 * largest


WI = "target/encoder/layers_1/mlp/wi_0/kernel"
QUERY = "target/encoder/layers_0/attention/query/kernel"
TABLE = "target/encoder/relpos_bias/rel_embedding"
FILE = WI.replace("/", ".")


def without(leaves, *names):
    return {name: leaf for name, leaf in leaves.items() if name not in names}


def at(where):
    return lambda leaves: leaves | {WI: leaves[WI] | {"kvstore": {"driver": "file", "path": where}}}


INDICES = {
    "missing": (lambda x: without(x, WI), f"has no tensor {WI}, which encoder/layers/mlp/wi/kernel is made of"),
    "missing, of the sizes": (lambda x: without(x, TABLE), f"has no tensor {TABLE}, whose sizes are the model's"),
    "extra": (lambda x: x | {"target/more": x[QUERY]}, "nothing is made of its tensor target/more, of shape (16, 12)"),
    "shape": (lambda x: x | {WI: np.zeros((24, 16), np.float32)}, f"{WI} has shape (24, 16), and"),
    "shape, of the sizes": (lambda x: x | {TABLE: np.zeros(32, np.float32)}, f"{TABLE} has shape (32,)"),
    "heads": (lambda x: x | {TABLE: np.zeros((5, 32), np.float32)}, "queries of 12 numbers cannot be of 5 heads"),
    "no heads": (lambda x: x | {TABLE: np.zeros((0, 32), np.float32)}, "queries of 12 numbers cannot be of 0 heads"),
    "buckets": (lambda x: x | {TABLE: np.zeros((4, 30), np.float32)}, "buckets: must be a multiple of 4, got 30"),
    "a layer": (
        lambda x: without(x, *(n for n in x if n.startswith("target/encoder/layers_1/"))),
        "has 2 layers, and none of them is target/encoder/layers_1",
    ),
    "integers": (lambda x: x | {WI: np.zeros((16, 24), np.uint16)}, f"{WI} is of uint16"),
    "a number": (lambda x: x | {WI: 3.0}, f"the index does not say where {WI} is"),
    "no path": (lambda x: x | {WI: x[WI] | {"kvstore": {"driver": "file"}}}, f"does not say where {WI} is"),
    "a URL": (lambda x: x | {WI: x[WI] | {"kvstore": "file:///etc/"}}, f"does not say where {WI} is"),
    "a path of a number": (at(3), f"the index does not say where {WI} is"),
    "a path with a line's end": (at("a\nb"), f"the index does not say where {WI} is"),
    "a name with a line's end": (lambda x: x | {"target/a\nb": x[QUERY]}, "has a tensor of the name 'target/a\\nb'"),
    "above": (at(f"../checkpoint_1000/../{FILE}"), f"at ../checkpoint_1000/../{FILE}, which is not inside"),
    "elsewhere": (at("/etc"), "at /etc, which is not inside"),
    "a placeholder above": (lambda x: x | {WI: "PLACEHOLDER://../other"}, "at ../other, which is not inside"),
    "itself": (at("."), "at ., which is not inside"),
    "a path too long": (at(300 * "a"), f"the index has {WI} at {80 * 'a'}, which is no place ("),
    "nowhere": (at("nowhere"), f"{WI} is missing, there is no zarr array nowhere in"),
    "scanned": (
        lambda x: x | {"target/encoder/encoder/mlp/wi/kernel": x[QUERY]},
        "T5X's scanned T5s have a table of distances in every layer",
    ),
}


@pytest.mark.parametrize("kind", INDICES)
def test_an_index_of_something_else_is_refused_by_the_name_of_the_tensor(kind, saved, tmp_path):
    path, leaves = saved
    change, message = INDICES[kind]
    copy = tmp_path / "checkpoint_1000"
    shutil.copytree(path, copy)
    t5x_writer.write_index(copy, change(leaves))
    with pytest.raises(ConfigError, match=re.escape(message)) as error:
        loaded(copy, ONE)
    assert len(str(error.value).splitlines()) == 1


def without_part(path):
    (path / FILE / "0.0").unlink()


def shortened(path):
    (path / FILE / "1.0").write_bytes((path / FILE / "1.0").read_bytes()[:20])


def outside(path):
    shutil.move(path / FILE, path.parent / "elsewhere")
    (path / FILE).symlink_to(path.parent / "elsewhere")


def claiming(**claims):
    """Its description says other sizes than there are parts of."""

    def change(path):
        said = json.loads((path / FILE / ".zarray").read_text())
        (path / FILE / ".zarray").write_text(json.dumps(said | claims))

    return change


def in_a_circle(path):
    shutil.rmtree(path / FILE)
    (path / FILE).symlink_to(path / FILE)


FILES = {
    "links in a circle": (in_a_circle, f"the index has {WI} at {FILE}/, which is no place ("),
    "a huge shape": (claiming(shape=[2**40, 2**20], chunks=[2**30, 2**20]), "and its arrays would have"),
    "huge parts": (claiming(chunks=[2**30, 2**20]), f"{WI} of shape (16, 24) has parts of ("),
    "a shape of words": (claiming(shape=["a", "b"]), f"{WI} cannot be read: "),
    "another compressor": (claiming(compressor={"id": "none such"}), f"{WI} cannot be read: "),
    "objects": (claiming(dtype="|O"), f"{WI} cannot be read: "),
    "an array": (lambda p: shutil.rmtree(p / FILE), f"{WI} is missing, there is no zarr array {FILE}/ in"),
    "a part": (without_part, f"{WI} cannot be read: NOT_FOUND: chunk {{0, 0}} stored at"),
    "half a part": (shortened, f"{WI} cannot be read: "),
    "its description": (lambda p: (p / FILE / ".zarray").write_text("{"), f"{WI} cannot be read: "),
    "a link out of it": (outside, "which is not inside"),
    "the index": (lambda p: (p / "checkpoint").unlink(), 'there is no file "checkpoint" in'),
    "the directory above": (lambda p: shutil.move(p, p / ".." / "moved") and p.mkdir(), 'no file "checkpoint"'),
    "no msgpack": (lambda p: (p / "checkpoint").write_text('model_checkpoint_path: "a"'), "is no index of T5X"),
    "a pickle": (lambda p: (p / "checkpoint").write_bytes(pickle.dumps({"target": {}})), "is no index of T5X"),
    "half an index": (lambda p: (p / "checkpoint").write_bytes(b"\x82\xa7version\x03"), "is no index of T5X"),
    "no network": (lambda p: t5x_writer.write_index(p, {"other": np.zeros(3)}), "is no index of T5X"),
    "no tensors": (lambda p: t5x_writer.write_index(p, {"target/more": np.zeros(3)}), "has no tensor target/token_emb"),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_damaged_directory_is_refused_in_a_line(kind, saved, tmp_path):
    change, message = FILES[kind]
    copy = tmp_path / "checkpoint_1000"
    shutil.copytree(saved[0], copy)
    change(copy)
    with pytest.raises(ConfigError, match=re.escape(message)) as error:
        loaded(copy, ONE)
    assert len(str(error.value).splitlines()) == 1
    assert "tensorstore_spec" not in str(error.value)


def test_bytes_changed_anywhere_in_an_index_are_refused_or_name_what_is_there(saved, tmp_path):
    copy, lines = tmp_path / "checkpoint_1000", []
    shutil.copytree(saved[0], copy)
    for data in changed((copy / "checkpoint").read_bytes(), 60):
        (copy / "checkpoint").write_bytes(data)
        lines.append(refusal(lambda: t5x.open_t5(copy)))
    assert len(lines) == 60
    assert sum(line is not None for line in lines) > 30
    assert all(str(copy) in line or "target/" in line for line in lines if line)


def test_above_a_checkpoint_its_name_is_given(saved):
    with pytest.raises(ConfigError, match=r"; there is in checkpoint_1000$"):
        t5x.open_t5(saved[0].parent)


def test_an_index_makes_no_objects():
    """An array of objects would be unpickled."""
    import msgpack

    array = msgpack.packb(([1], "O", pickle.dumps([print])), use_bin_type=True)
    contents = {"target": {"a": msgpack.ExtType(1, array)}}
    with pytest.raises(ValueError, match="OBJECT"):
        flax.serialization.msgpack_restore(msgpack.packb(contents))
