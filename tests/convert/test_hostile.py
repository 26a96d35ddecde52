"""Checkpoints of bad faith: each is refused in a line, and nothing is allocated, run, or read outside of it."""

import itertools
import json
import re
import resource
import struct
import zipfile

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sparsity.config import ConfigError
from sparsity.convert import hf
from sparsity.convert.checkpoints import open_checkpoint
from tests.convert import images, texts
from tests.hostile import JSON, changed, refusal, with_value

WEIGHTS = "model.safetensors"
T5_CONFIG = {
    "model_type": "t5",
    "d_model": 8,
    "d_kv": 4,
    "d_ff": 12,
    "num_layers": 2,
    "num_decoder_layers": 1,
    "num_heads": 2,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "dropout_rate": 0.1,
    "layer_norm_epsilon": 1e-6,
    "feed_forward_proj": "relu",
    "tie_word_embeddings": True,
    "scale_decoder_outputs": True,
    "vocab_size": 384,
}
GPT2 = texts.CONFIGS["gpt2"] | {"activation_function": "gelu_new", "resid_pdrop": 0.1, "layer_norm_epsilon": 1e-5}
LLAMA = texts.CONFIGS["llama"] | {
    "hidden_act": "silu",
    "head_dim": 2,
    "rope_parameters": {"rope_type": "default", "rope_theta": 50.0},
    "tie_word_embeddings": False,
}
BERT = texts.CONFIGS["bert"] | {"hidden_act": "gelu", "hidden_dropout_prob": 0.1, "position_embedding_type": "absolute"}
TIMM = images.TIMM_CONFIG | {"pretrained_cfg": {"mean": [0.5, 0.5, 0.5]}}
DIRECTORIES = {  # of a format and a model: tensors, and the config.json beside them
    ("hf", "t5"): ({name: np.zeros((384, 8), np.float32) for name in ("shared.weight", "a", "b")}, T5_CONFIG),
    ("hf", "gpt2"): (texts.tensors_of("gpt2"), GPT2),
    ("hf", "bert"): (texts.tensors_of("bert"), BERT),
    ("hf", "llama"): (texts.tensors_of("llama"), LLAMA),
    ("hf", "vit"): (images.hf_vit(images.vit()), images.HF_CONFIG | {"hidden_dropout_prob": 0.0}),
    ("timm", "vit"): (images.timm_vit(images.vit()), TIMM),
    ("timm", "resnet"): (images.resnet("basic"), {"architecture": "resnet18", "model_args": {"act_layer": "relu"}}),
}


@pytest.mark.parametrize("kind", DIRECTORIES, ids="-".join)
def test_anything_in_the_place_of_any_value_of_a_config_json_is_taken_or_refused(kind, tmp_path):
    tensors, described = DIRECTORIES[kind]
    images.write_safetensors(tmp_path, tensors, described)
    open_checkpoint(*kind, tmp_path)
    lines = []
    for key, value in itertools.product(described, JSON):
        (tmp_path / "config.json").write_text(with_value(described, key, value))
        lines.append(refusal(lambda: open_checkpoint(*kind, tmp_path)))
    assert len(lines) == len(described) * len(JSON)
    assert sum(line is not None for line in lines) > len(lines) / 4
    for text in (b"", b"{", b"[]", b"3", b"\xff", b'"x"', b"null", b"[" * 100_000):
        (tmp_path / "config.json").write_bytes(text)
        assert "config.json" in refusal(lambda: open_checkpoint(*kind, tmp_path))


def test_sizes_that_are_only_claimed_are_refused_before_anything_is_made_of_them(tmp_path):
    tensors, described = DIRECTORIES["hf", "llama"]
    images.write_safetensors(tmp_path, tensors, described)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for key, message in {
        "num_hidden_layers": "config.json: has 1000000000 layers, and the checkpoint 21 tensors",
        "hidden_size": "checkpoint: d_model of its model would be 1000000000, and it has ",
        "intermediate_size": "checkpoint: d_ff of its model would be 1000000000, and it has ",
        "vocab_size": "checkpoint: classes of its model would be 1000000000, and it has ",
        "head_dim": "checkpoint: head_dim of its model would be 1000000000, and it has ",
    }.items():
        (tmp_path / "config.json").write_text(json.dumps(described | {key: 10**9}))
        with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
            open_checkpoint("hf", "llama", tmp_path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB


@pytest.fixture
def vit(tmp_path):
    """(its directory, its file of weights, their tensors) of Hugging Face."""
    path = images.write_safetensors(tmp_path / "vit", images.hf_vit(images.vit()), images.HF_CONFIG)
    return path, path / WEIGHTS, load_file(path / WEIGHTS)


def loaded(path, kind=("hf", "vit")):
    return images.variables_of(open_checkpoint(*kind, path))[1]["params"]


def header_of(file):
    data = file.read_bytes()
    end = 8 + struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8:end]), data[end:]


def with_header(file, header, data):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data)


NAME, OTHER = "classifier.weight", "classifier.bias"


def entry(**values):
    return lambda header, data: (header | {NAME: header[NAME] | values}, data)


def twice(header, data):
    again = json.dumps({NAME: header[NAME]})[1:-1]
    return f"{json.dumps(header)[:-1]}, {again}}}".encode(), data


HEADERS = {
    "cut short": (lambda h, d: (h, d[:-1]), "is no whole file of safetensors"),
    "longer": (lambda h, d: (h, d + b"\0"), "is no whole file of safetensors"),
    "overlapping": (entry(data_offsets=[0, 160]), "is no whole file of safetensors"),
    "out of range": (entry(data_offsets=[10**6, 10**6 + 160]), "is no whole file of safetensors"),
    "backwards": (entry(data_offsets=[160, 0]), "is no whole file of safetensors"),
    "negative": (entry(shape=[-5, -8]), "is no whole file of safetensors"),
    "huge": (entry(shape=[2**40, 2**40]), "is no whole file of safetensors"),
    "overflowing": (entry(shape=[2**62, 4, 2]), "is no whole file of safetensors"),
    "an unknown type": (entry(dtype="F99"), "is no whole file of safetensors"),
    "integers": (entry(dtype="I32"), f"{NAME} is of I32, and not of F64, F32, F16, BF16"),
    "a name twice": (twice, f"{NAME} is twice in the header of "),
    "no object": (lambda h, d: (b"[]", b""), "is no whole file of safetensors"),
    "nested": (lambda h, d: (b"[" * 10**5, b""), "is no whole file of safetensors"),
    "no text": (lambda h, d: (b"\xff\xfe{}", b""), "is no whole file of safetensors"),
    "a name of control": (
        lambda h, d: (h | {"\x1b[2J\n": h[NAME] | {"data_offsets": [0, 0], "shape": [0]}}, d),
        "nothing is made of its tensor \\x1b[2J\\n",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", HEADERS)
def test_a_header_that_lies_is_refused(kind, vit):
    path, file, _ = vit
    change, message = HEADERS[kind]
    with_header(file, *change(*header_of(file)))
    assert message in refusal(lambda: loaded(path))


@pytest.mark.parametrize("length", [0, 7, 10**6, 2**63, 2**64 - 1])
def test_a_header_longer_than_the_file_is_refused(length, vit):
    path, file, _ = vit
    file.write_bytes((struct.pack("<Q", length) + file.read_bytes()[8:])[: 7 if length == 7 else None])
    with pytest.raises(ConfigError, match="is no whole file of safetensors"):
        loaded(path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_refused_by_the_name_of_their_tensor(value, vit):
    path, file, tensors = vit
    tensors["vit.encoder.layer.1.output.dense.weight"][3, 5] = value
    save_file(tensors, file)
    text = "checkpoint: vit.encoder.layer.1.output.dense.weight has numbers that are not finite in float32"
    assert text in refusal(lambda: loaded(path))


def test_numbers_too_large_for_float32_are_refused_too(vit):
    path, file, tensors = vit
    save_file(tensors | {OTHER: np.full(5, 1e300)}, file)
    with pytest.raises(ConfigError, match=f"{OTHER} has numbers that are not finite in float32"):
        loaded(path)


def test_bytes_changed_anywhere_in_a_header_are_refused_or_name_something_else(vit):
    path, file, _ = vit
    whole = file.read_bytes()
    end = 8 + struct.unpack("<Q", whole[:8])[0]
    lines = []

    def read():
        found = hf.open_vit(path).reader
        for name, shape in found.shapes().items():
            found.read(name, tuple(slice(0, size) for size in shape))

    for data in changed(whole, 240, within=end):
        file.write_bytes(data)
        lines.append(refusal(read))
    assert len(lines) == 240
    assert sum(line is not None for line in lines) > 150


INDICES = {
    "no JSON": ("{", "is no JSON"),
    "a list": ("[]", "is no object of JSON, but list"),
    "no map": ("{}", "weight_map is not given"),
    "a list for a map": ('{"weight_map": ["a"]}', "weight_map should be dict, and is list"),
    "a number for a name": ('{"weight_map": {"a": 3}}', "has a in 3, which is not the name of a file beside it"),
    "above": ('{"weight_map": {"a": "../../etc/passwd"}}', "has a in '../../etc/passwd', which is not the name"),
    "elsewhere": ('{"weight_map": {"a": "/etc/passwd"}}', "has a in '/etc/passwd', which is not the name"),
    "itself": ('{"weight_map": {"a": "."}}', "has a in '.', which is not the name"),
    "its parent": ('{"weight_map": {"a": ".."}}', "which is not"),
    "nothing": ('{"weight_map": {"a": ""}}', "has a in '', which is not the name"),
    "a NUL": ('{"weight_map": {"a": "a\\u0000b"}}', "which is not the name of a file beside it"),
    "nested": ('{"weight_map": ' + "[" * 10**5, "is no JSON"),
    "nobody": ('{"weight_map": {}}', "there are no .safetensors in"),
    "missing": ('{"weight_map": {"a": "a.safetensors"}}', "names a.safetensors, which is not in"),
    "another": ('{"weight_map": {"a": "config.json"}}', "config.json is no whole file of safetensors"),
}


@pytest.mark.parametrize("kind", INDICES)
def test_an_index_that_names_what_it_should_not_is_refused(kind, vit):
    path, _, _ = vit
    text, message = INDICES[kind]
    (path / hf.INDEX).write_text(text)
    assert message in refusal(lambda: loaded(path))


def test_a_directory_in_the_place_of_weights_is_refused(vit):
    path, file, _ = vit
    file.unlink()
    file.mkdir()
    assert refusal(lambda: loaded(path)) == f"--path: {file} is no file"


def npz_of(path, members, compress=zipfile.ZIP_DEFLATED):
    """An .npz file of members that are bytes, by name."""
    with zipfile.ZipFile(path, "w", compress) as file:
        for name, data in members:
            file.writestr(name, data)
    return path


def npy(shape, data, descr="<f4"):
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


class Runs:
    """Unpickled, it would leave a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_an_npz_of_pickles_runs_nothing(tmp_path):
    np.savez(
        tmp_path / "a.npz", **images.big_vision(images.vit()), **{"params/more": np.array([Runs(tmp_path / "ran")])}
    )
    with pytest.raises(ConfigError, match="params/more is of object, and not of a floating-point type"):
        open_checkpoint("npz", "vit", tmp_path / "a.npz")
    assert not (tmp_path / "ran").exists()


def test_an_npz_that_expands_without_end_is_refused_by_what_it_declares(tmp_path, monkeypatch):
    bomb = npz_of(tmp_path / "bomb.npz", [("params/embedding/kernel.npy", npy((5000, 5000), bytes(10**8)))])
    assert bomb.stat().st_size < 200_000
    monkeypatch.setattr(zipfile.ZipFile, "open", pytest.fail)  # before anything of it is read
    with pytest.raises(ConfigError, match=r"bytes, and its arrays would have 100000128: weights have not$"):
        open_checkpoint("npz", "vit", bomb)


KERNEL = "embedding/kernel.npy"
ONE = npy((1,), b"0000")
MEMBERS = {
    "claimed": ([(KERNEL, npy((2**40, 2**20), b"0000"))], f"is no .npz file ({KERNEL} has 4 bytes, and shape"),
    "negative": ([(KERNEL, npy((-1, -1), b"0000"))], f"is no .npz file ({KERNEL} has 4 bytes, and shape (-1, -1)"),
    "twice": ([(KERNEL, ONE), (KERNEL.removesuffix(".npy"), ONE)], "embedding/kernel is in"),
    "above": ([(f"../../{KERNEL}", ONE)], "has no embedding/kernel"),
    "no array": ([(KERNEL, b"text")], "is no .npz file"),
    "no header": ([(KERNEL, b"\x93NUMPY\x01\x00\xff\xff(((")], "is no .npz file"),
    "a header of code": ([(KERNEL, npy("__import__('os').abort()", b""))], "is no .npz file"),
    "a nested header": ([(KERNEL, npy("(" * 4000, b""))], "is no .npz file"),
    "a version": ([(KERNEL, b"\x93NUMPY\x09\x09" + ONE[8:])], "is no .npz file"),
    "objects": ([(KERNEL, npy((1,), b"0000", "O"))], "embedding/kernel is of object"),
    "words": ([(KERNEL, npy((1,), b"0000", "<U1"))], "embedding/kernel is of <U1"),
}


@pytest.mark.parametrize("kind", MEMBERS)
def test_a_member_of_an_npz_that_lies_is_refused(kind, tmp_path):
    members, message = MEMBERS[kind]
    npz_of(tmp_path / "a.npz", members)
    assert message in refusal(lambda: open_checkpoint("npz", "vit", tmp_path / "a.npz"))
    assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]


@pytest.mark.parametrize("compress", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_bytes_changed_anywhere_in_an_npz_are_refused_or_read_as_they_were(compress, tmp_path):
    """A zip has a checksum of every member."""
    arrays = images.vit()
    write = np.savez if compress == zipfile.ZIP_STORED else np.savez_compressed
    write(tmp_path / "a.npz", **images.big_vision(arrays))
    whole, lines = (tmp_path / "a.npz").read_bytes(), []
    expected = {name.removeprefix("params/"): x for name, x in images.big_vision(arrays).items()}

    def read():
        reader = open_checkpoint("npz", "vit", tmp_path / "a.npz").reader
        for name in reader.shapes().keys() & expected.keys():
            np.testing.assert_array_equal(reader.read(name, (...,)), expected[name])

    for data in changed(whole, 120, seed=compress):
        (tmp_path / "a.npz").write_bytes(data)
        lines.append(refusal(read))
    assert len(lines) == 120
    assert sum(line is not None for line in lines) > 60
