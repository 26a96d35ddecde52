import dataclasses
import functools

import jax
import numpy as np
import pytest

from sparsity.config import ConfigError
from sparsity.data.mock import MockText
from sparsity.data.span_corruption import MockSpans
from sparsity.decode.weights import prepared
from sparsity.evals.inference import inference, measures_of, modes_of, read
from sparsity.evals.result import EvalConfig
from sparsity.layers.attention import CACHE
from sparsity.layers.inference import DenseMask, GatherOut, LowRank, QuantizedSearch, Threshold
from sparsity.layers.inference.base import Alone
from sparsity.layers.mlp import MLPConfig
from sparsity.layers.sparsify import ACTIVATIONS, Context
from sparsity.models.gpt2 import GPT2Config
from sparsity.models.t5 import T5Config
from sparsity.models.vit import ViTConfig
from sparsity.ops.sparsifiers import Gelu, Relu, TopK
from tests.evals.languages import language_subject

K, C, RANK, F, D = 3, 7, 2, 24, 8
TEXT = MockText(length=6, classes=11)
GPT2 = GPT2Config(MLPConfig(F, TopK(k=K), predictor=RANK), d_model=D, layers=2, heads=2, positions=8)


@pytest.fixture(scope="module")
def gpt2():
    subject = language_subject(TEXT, GPT2, None, candidates=C, batch=12)  # the last batch is not full
    return subject, {m.name.removeprefix("inference."): m for m in inference(subject).measures}


def test_recall_and_what_is_needed_are_those_of_the_predictor_in_float64(gpt2):
    subject, found = gpt2
    arrays = TEXT.model_input(subject.split.arrays())
    model, ctx = subject.model.build(11), Context(hand_out=True)
    handed = jax.jit(lambda params, tokens: model.apply({"params": params}, tokens, ctx, mutable=[ACTIVATIONS])[1])
    new = handed(subject.params, arrays["tokens"])
    z = np.asarray(new[ACTIVATIONS]["block_0"]["mlp"]["sparsify"]["stats"].z, np.float64)
    mlp = subject.params["block_0"]["mlp"]
    low = np.linalg.pinv(np.asarray(mlp["wi"]["kernel"], np.float64))  # W_i has full rank D: z says what x was
    x = (z - mlp["wi"]["bias"]) @ low
    score = x @ mlp["predictor"]["read"] @ mlp["predictor"]["write"] + mlp["wi"]["bias"]
    kept = (z >= np.sort(z)[..., -K:][..., :1]) & (z > 0)
    place = (score[..., None, :] >= score[..., :, None]).sum(-1)  # 1 is the largest
    recall = np.where(kept.any(-1), (kept & (place <= C)).sum(-1) / np.maximum(kept.sum(-1), 1), 1)
    needed = np.where(kept, place, 0).max(-1)
    of = read(subject, Alone(LowRank(rank=RANK, candidates=C))).found["block_0/mlp/inference"]
    np.testing.assert_allclose(of.recall, recall, rtol=1e-6)
    np.testing.assert_array_equal(of.needed, needed)
    both = read(subject, Alone(LowRank(rank=RANK, candidates=C))).found
    assert found["low_rank.recall"].value == pytest.approx(np.mean([one.recall for one in both.values()]), rel=1e-6)
    assert found["low_rank.recall"].n == 16
    assert found["low_rank.needed_most"].value == max(one.needed.max() for one in both.values())


def test_exact_modes_say_what_training_does_and_blind_ones_do_not(gpt2):
    _, found = gpt2
    for mode in ("gather_out", "quantized_search_8"):
        assert found[f"{mode}.recall"].value == found[f"{mode}.agreement"].value == 1
        assert found[f"{mode}.rise"].value == pytest.approx(0, abs=1e-6)
    assert found["gather_out.certified"].value == 1
    assert found["low_rank.recall"].value < 0.9
    assert found["low_rank.agreement"].value < 1
    assert abs(found["low_rank.rise"].value) > 1e-3
    assert (found["gather_out.read"].value, found["low_rank.candidates"].value) == (K, C)


def test_bytes_are_those_of_the_matrices_by_hand(gpt2):
    _, found = gpt2
    assert found["gather_out.bytes"].value == pytest.approx((F + K) / (2 * F))
    assert found["low_rank.bytes"].value == pytest.approx((RANK * (D + F) + (C + K) * D) / (2 * D * F))
    assert found["quantized_search_8.bytes"].value == pytest.approx((D / 4 * F + 2 * F + (C + K) * D) / (2 * D * F))
    assert found["quantized_search_4.bytes"].value == pytest.approx((D / 8 * F + 2 * F + (C + K) * D) / (2 * D * F))


def test_a_decoded_token_is_computed_as_here():
    """One place after the other, with a cache, the logits are those that are read all at once."""
    subject = language_subject(TEXT, GPT2, None, candidates=C)
    mode = LowRank(rank=RANK, candidates=C)
    found = read(subject, Alone(mode))
    model, params = prepared(subject.model, jax.device_put(subject.params), mode)
    module, tokens = model.build(11), subject.split.arrays()["tokens"][:1]
    said, segments = [], np.ones((1, 1), np.int32)

    @functools.partial(jax.jit, static_argnames="method")
    def call(kept, tokens, method, **ctx):
        variables, ctx = {"params": params, **kept}, Context(slots=6, **ctx)
        return module.apply(variables, tokens, segments, ctx, method=method, mutable=[CACHE])

    logits, kept = call({}, tokens[:, :1], "start")
    for place in range(1, 6):
        said.append(int(logits.argmax(-1)[0]))
        logits, kept = call(kept, tokens[:, place], "step", place=place)
    assert [*said, int(logits.argmax(-1)[0])] == found.said[0].tolist()


def test_of_a_t5_padding_does_not_count_and_the_encoder_stays_as_it_is():
    source = MockSpans(length=16, classes=40)
    mlp = MLPConfig(F, TopK(k=K), use_bias=False)
    model = T5Config(mlp=mlp, d_model=D, layers=1, heads=2, head_dim=4)
    subject = language_subject(source, model, None, rank=1, candidates=K)
    mode = LowRank(rank=1, candidates=K)
    of, exact = read(subject, Alone(mode)), read(subject, DenseMask())
    measures = {m.name: m for m in measures_of("searched", mode, subject, of, exact)}
    assert of.found.keys() == {"decoder/layers_0/mlp/inference"}
    real = subject.split.arrays()["target_segments"] > 0
    np.testing.assert_array_equal(of.real, real)
    agreed = (of.said == exact.said) & real
    assert measures["inference.searched.agreement"].value == pytest.approx((agreed.sum(1) / real.sum(1)).mean())
    arrays = subject.source.model_input(subject.split.arrays())
    apply = jax.jit(lambda params, *inputs: model.build(40).apply({"params": params}, *inputs, Context()))
    logits = apply(subject.params, *(arrays[n] for n in model.inputs))
    nats = -np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), arrays["targets"][..., None], -1)[..., 0]
    np.testing.assert_allclose(exact.nats, nats, rtol=1e-4, atol=1e-5)


def test_modes_are_those_that_the_sparsifier_permits(monkeypatch):
    config = EvalConfig(names=())
    of = lambda sparsifier, **settings: modes_of(MLPConfig(F, sparsifier, **settings), 32, config)
    assert of(TopK(k=K)) == {
        "gather_out": GatherOut(),
        "low_rank": LowRank(rank=2, candidates=2 * K),
        "quantized_search_8": QuantizedSearch(candidates=2 * K, bits=8, fallback=False),
        "quantized_search_4": QuantizedSearch(candidates=2 * K, bits=4, fallback=False),
    }
    assert of(TopK(k=K), predictor=5)["low_rank"].rank == 5
    assert of(TopK(k=20))["low_rank"].candidates == F  # twice k would be more
    assert of(TopK(k=K, anneal=9)).keys() == of(TopK(k=K)).keys()
    assert of(TopK(k=K, method="statistical")) == {"gather_out": GatherOut()}
    assert of(Relu()) == {"threshold": Threshold(capacity=F)}
    assert of(Gelu()) == {}
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")  # whose approx_max_k does not sort all of so many units
    wide = modes_of(MLPConfig(65_536, TopK(k=128)), 1024, config)
    assert (wide["gather_out_approx"], wide["low_rank"].rank) == (GatherOut("approx"), 64)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (dataclasses.replace(GPT2, mlp=MLPConfig(F, Gelu())), "inference: Gelu permits no mode"),
        (
            ViTConfig(MLPConfig(F, Relu()), d_model=8, layers=1, heads=1, patch=2),
            "ViTConfig is not a model that decodes",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused(model, message):
    subject = dataclasses.replace(language_subject(TEXT, GPT2, None), model=model)
    with pytest.raises(ConfigError, match=message):
        inference(subject)
    with pytest.raises(ConfigError, match=r"evals\.candidates: 2 are fewer than the k 3 units"):
        modes_of(GPT2.mlp, 8, EvalConfig(names=(), candidates=2))
    with pytest.raises(ValueError, match="candidates: must be at least 0, got -1"):
        EvalConfig(names=(), candidates=-1)
