import dataclasses
import re
import types

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from sparsity import recipes, spmd
from sparsity.config import ConfigError, build
from sparsity.data.masked_text import MaskedText
from sparsity.data.span_corruption import SpanCorruption
from sparsity.data.text import Text
from sparsity.data.vocabularies import EOS, Bytes
from sparsity.evals.generate import generate, text_of
from sparsity.evals.result import EvalConfig, Subject
from sparsity.layers.mlp import MLPConfig
from sparsity.layers.sparsify import Context
from sparsity.models.bert import BERTConfig
from sparsity.models.gpt2 import GPT2Config
from sparsity.models.t5 import T5Config
from sparsity.ops.sparsifiers import Relu, TopK
from sparsity.run import Engine, run_config

GPT2 = GPT2Config(MLPConfig(8, Relu()), d_model=8, layers=1, heads=2, positions=12)
ANNEALED = dataclasses.replace(GPT2, mlp=MLPConfig(32, TopK(k=1, anneal=10)))
T5 = T5Config(mlp=MLPConfig(8, Relu(), use_bias=False), d_model=8, layers=1, heads=2, head_dim=4)


def subject_of(model, source, prompts, devices=1, **config):
    module = model.build(source.classes)
    zeros = [np.zeros((1, *source.inputs[name].shape), np.int32) for name in model.inputs]
    boxed = jax.eval_shape(module.init, jax.random.key(0), *zeros, Context())["params"]
    rng, mesh = np.random.default_rng(0), spmd.make_mesh(spmd.MeshConfig(devices, 1), jax.devices()[:devices])
    params = jax.tree.map(lambda p: rng.normal(0, 1, p.shape).astype(np.float32), flax.core.meta.unbox(boxed))
    return Subject(
        predict=None,
        source=source,
        load=None,
        model=model,
        params=jax.device_put(params, spmd.shardings(mesh, spmd.param_specs(boxed))),
        mesh=mesh,
        noise=None,
        config=EvalConfig(names=(), prompts=None if prompts is None else str(prompts), **config),
        seed=3,
    )


@pytest.fixture
def prompts(tmp_path):
    """(lines) -> the file that has them."""

    def write(*lines):
        (tmp_path / "prompts.txt").write_text("".join(f"{line}\n" for line in lines))
        return tmp_path / "prompts.txt"

    return write


def test_a_gpt_2_continues_each_line_of_the_file_as_whole_forward_passes_do(prompts):
    lines, step = ("ab", "a äc", "b"), 8  # of 10 over which k falls: 7 units of 32 are kept
    subject = subject_of(ANNEALED, Text(length=12), prompts(*lines), batch=2, devices=2, length=4)
    result = generate(dataclasses.replace(subject, step=step))
    module, found = ANNEALED.build(256), result.arrays["generated"]
    assert generate(subject).arrays["generated"] != found, "k that hardly matters shows nothing"
    apply = jax.jit(lambda x: module.apply({"params": subject.params}, x, Context(step=step)))
    assert [one["prompt"] for one in found] == list(lines)
    for line, one in zip(lines, found, strict=True):
        row = np.zeros((1, 12), np.int32)
        read = line.encode()
        row[0, : len(read)] = list(read)
        for t in range(len(read), len(read) + 4):
            row[0, t] = np.argmax(apply(row)[0, t - 1])
        said = row[0, len(read) : len(read) + 4]
        assert one["tokens"] == tuple(said)
        assert one["text"] == bytes(said.tolist()).decode(errors="replace")
    (tokens,) = result.measures  # bytes have no end
    assert (tokens.name, tokens.value, tokens.se, tokens.n) == ("generate.tokens", 4, 0, 3)
    assert "greedy, at most 4" in tokens.definition


def test_what_is_said_in_a_mode_of_inference_is_what_is_said_as_in_training(prompts):
    path, source = prompts("ab", "a äc"), Text(length=12)
    top_k = dataclasses.replace(GPT2, mlp=MLPConfig(32, TopK(k=4)))
    said = lambda model, **more: generate(subject_of(model, source, path, batch=1, length=4, **more))
    plain = said(top_k).arrays
    for mode in ("gather_out", "quantized_search", "dense"):
        found = said(top_k, mode=mode)
        assert found.arrays == plain
        assert f"greedy, mode {mode}, at most 4" in found.measures[0].definition
    assert said(top_k, mode="low_rank", rank=1, candidates=4).arrays != plain, "a search that misses units is in use"
    assert said(GPT2, mode="threshold", devices=2).arrays == said(GPT2).arrays
    with pytest.raises(ConfigError, match=r"^evals.mode: inference: LowRank of Relu: it keeps no number of units"):
        said(GPT2, mode="low_rank")
    with pytest.raises(ConfigError, match=r'^evals.mode: unknown mode of inference "gather".*gather_out'):
        said(GPT2, mode="gather")


def test_what_is_drawn_is_a_function_of_seed_and_line_whatever_the_batch(prompts):
    path, source = prompts("ab", "a", "ba"), Text(length=12)
    settings = {"length": 4, "temperature": 1.5, "top_p": 0.99}
    said = lambda **more: [
        g["tokens"] for g in generate(subject_of(GPT2, source, path, **settings | more)).arrays["generated"]
    ]
    first = said(batch=3)
    assert said(batch=2) == said(batch=4, devices=2, seed=3) == first  # the run's seed is 3
    large = dataclasses.replace(subject_of(GPT2, source, path, batch=3, **settings), seed=2**32 + 3)
    assert [g["tokens"] for g in generate(large).arrays["generated"]] == first
    assert said(batch=3, seed=4) != first


class Says:
    """A T5 that says the same after everything, and notes what it has read."""

    inputs = T5.inputs
    scan = False

    def __init__(self, *tokens):
        self.tokens, self.read, self.traced = jnp.array(tokens), [], 0

    def build(self, classes):
        return self

    def apply(self, variables, *args, method, mutable):
        place = 0
        if method == "start":
            self.traced += 1
            jax.debug.callback(lambda x, s: self.read.append((x, s)), args[0], args[1])
        else:
            place = args[2].place
        return jnp.broadcast_to(jax.nn.one_hot(self.tokens[place], 384), (len(args[1]), 384)), {"cache": jnp.zeros(())}

    def step(self):
        """So that it can."""


def test_sentinels_are_read_from_the_prompt_and_written_into_the_text(prompts):
    model, s = Says(383, 3 + ord("x"), 382, 3 + ord("y"), EOS), 383
    subject = subject_of(T5, SpanCorruption(length=16), prompts("a<extra_id_0>b <extra_id_1>", "ab"), length=6)
    result = generate(dataclasses.replace(subject, model=model))
    jax.effects_barrier()
    ((inputs, segments),) = model.read
    a, b, space = (3 + ord(x) for x in "ab ")
    np.testing.assert_array_equal(inputs, [[a, s, b, space, s - 1, EOS], [a, b, EOS, 0, 0, 0]])
    np.testing.assert_array_equal(segments, [[1] * 6, [1, 1, 1, 0, 0, 0]])
    for one in result.arrays["generated"]:
        assert one["tokens"] == (383, 3 + ord("x"), 382, 3 + ord("y"), EOS)
        assert one["text"] == "<extra_id_0>x<extra_id_1>y"
    assert {m.name: m.value for m in result.measures} == {"generate.tokens": 5, "generate.ended": 1}
    generate(dataclasses.replace(subject, model=model, step=9))
    assert model.traced == 1, "another evaluation of a run compiles nothing"


def test_a_t5_says_something(prompts):
    found = generate(subject_of(T5, SpanCorruption(length=16), prompts("for"), length=3)).arrays["generated"]
    assert 1 <= len(found[0]["tokens"]) <= 3


def test_of_bytes_that_are_sentinels_too_those_that_are_due_are_sentinels():
    byt5, text = Bytes(byt5=True), "ü".encode()  # 195, 188: tokens of the sentinels 60 and 67
    tokens = np.array([258, *(3 + b for b in text), 257, 3 + ord("a"), 258])
    assert text_of(tokens, byt5, spans=True) == "<extra_id_0>ü<extra_id_1>a\ufffd"
    assert (
        text_of(np.array([383, 381, 383, 3 + ord("a")]), Bytes(), spans=True) == "<extra_id_0><extra_id_2><extra_id_0>a"
    )
    assert text_of(tokens[:3], byt5, spans=False) == "\ufffdü"


GAPS = types.SimpleNamespace(classes=97, inputs=Text(length=12).inputs, vocabulary=Text.vocabulary)
BERT = BERTConfig(MLPConfig(8, Relu()), d_model=8, layers=1, heads=2, positions=12)
TEXT, SPANS = Text(length=12), SpanCorruption(length=16)
TOO_FEW = "positions: 12 are too few for sequences of 13 tokens"
REFUSED = {
    "no file": (GPT2, TEXT, None, r"evals\.prompts: generate needs a file with a prompt a line \(--set=prompts=FILE\)"),
    "empty": (GPT2, TEXT, ["a", " ", "b"], r"evals\.prompts: line 2 of \S+ is empty"),
    "none": (GPT2, TEXT, [], r"evals\.prompts: line 1 of \S+ is empty"),
    "long": (
        *(GPT2, TEXT, ["a", "abcdefghij"]),
        rf"evals\.prompts: line 2 has 10 tokens, and 4 may follow \(evals\.length\): {TOO_FEW}",
    ),
    "mock": (GPT2, TEXT.mock(), ["a"], r"evals\.names: .* text; MockText has no vocabulary to read it with"),
    "bert": (BERT, MaskedText(length=12), ["a"], r"evals\.names: .* gpt2, llama or t5; BERTConfig says no tokens"),
    "no such row": (GPT2, GAPS, ["A", "Aa"], r"evals\.prompts: line 2 has token 97, and the model's are 0\.\.96"),
    "sentinel": (
        *(T5, SPANS, ["<extra_id_0>", "a <extra_id_125>"]),
        r"evals\.prompts: line 2 has <extra_id_125>, and the last of the vocabulary is <extra_id_124>",
    ),
    "huge sentinel": (
        *(T5, SPANS, [f"<extra_id_{'9' * 5000}>"]),
        r"evals\.prompts: line 1 has <extra_id_999999999>, and the last of the vocabulary is <extra_id_124>",
    ),
    "a name too long": (GPT2, TEXT, 300 * "a", r"evals\.prompts: a+ is no path \(File name too long\)"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_continued_is_refused_in_one_clear_line(kind, prompts):
    model, source, lines, message = REFUSED[kind]
    file = prompts(*lines) if isinstance(lines, list) else lines
    subject = subject_of(model, source, file, length=4)
    with pytest.raises(ConfigError) as caught:
        generate(subject)
    assert re.fullmatch(message, str(caught.value))


def test_a_file_that_is_missing_or_no_text_is_named(prompts, tmp_path):
    with pytest.raises(ConfigError, match=r"^evals\.prompts: there is no file none\.txt$"):
        generate(subject_of(GPT2, Text(length=12), "none.txt"))
    (tmp_path / "image").write_bytes(b"a\xff")
    with pytest.raises(ConfigError, match=r"^evals\.prompts: \S+ is no UTF-8 \(invalid start byte at byte 1\)$"):
        generate(subject_of(GPT2, Text(length=12), tmp_path / "image"))


def test_a_run_that_ends_with_it_needs_its_prompts_before_it_begins():
    config = recipes.vit_digits()
    mlp = {"d_ff": 8, "sparsifier": {"name": "relu"}}
    model = {"name": "gpt2", "d_model": 8, "layers": 1, "heads": 2, "positions": 12, "mlp": mlp}
    config.model, config.data = ConfigDict(model), ConfigDict({"name": "text", "length": 12})
    config.evals.names = ("language", "generate")
    with pytest.raises(ConfigError, match=r"^evals\.prompts: generate needs a file"):
        Engine(run_config(config))


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"length": 0}, "config.length: must be at least 1, got 0"),
        ({"temperature": -1.0}, "config.temperature: must be at least 0, got -1.0"),
        ({"temperature": 1.0, "top_p": 0.0}, "config.top_p: must be in (0, 1], got 0.0"),
        ({"top_p": 0.9}, "config.top_p: at temperature 0 nothing is drawn; with 0.9 give a temperature, such as 1"),
        ({"seed": -1}, "config.seed: must be in [0, 2^32), got -1"),
    ],
)
def test_impossible_settings_are_refused_by_name(section, message):
    with pytest.raises(ConfigError) as caught:
        build(EvalConfig, {"names": ()} | section)
    assert str(caught.value) == message
