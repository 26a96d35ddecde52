import dataclasses

import jax
import numpy as np
import pytest

from sparsity.data.span_corruption import SpanCorruption
from sparsity.evals.result import EvalConfig
from sparsity.evals.thresholds import NONE, least, threshold, thresholds
from sparsity.layers.mlp import MLPConfig
from sparsity.layers.tail import LEAST
from sparsity.models.t5 import T5Config
from sparsity.ops.sparsifiers import GeluTanh, Relu
from tests.evals.languages import language_subject, predict_of


def config(sparsifier, gated, scan=True):
    mlp = MLPConfig(d_ff=32, sparsifier=sparsifier, gated=gated, use_bias=False, init="t5")
    return T5Config(mlp=mlp, d_model=16, layers=2, heads=2, head_dim=8, dropout=0.0, scan=scan)


@pytest.fixture(scope="module")
def source():
    return SpanCorruption(length=16).mock()


def subject_of(source, model, rises=(0.01,), broken=False):
    return language_subject(source, model, predict_of(source, model), broken, rises=rises)


@pytest.fixture(scope="module")
def gelu(source):
    subject = subject_of(source, config(GeluTanh(), gated=True), (0.001, 0.05))
    return subject, thresholds(subject)


def test_of_a_gelu_some_is_kept_and_perplexity_rises_by_no_more_than_was_allowed(gelu):
    _, result = gelu
    found = {m.name: m for m in result.measures}
    for name, rise in (("ppl_0.1", 0.001), ("ppl_5", 0.05)):
        assert 0 < found[f"{name}.mean"].value < 1
        assert found[f"{name}.rise"].value <= rise
        layers = [found[f"{name}.{stack}_{i}"].value for stack in ("encoder", "decoder") for i in (0, 1)]
        assert found[f"{name}.mean"].value == pytest.approx(np.mean(layers))
    assert found["ppl_5.mean"].value < found["ppl_0.1.mean"].value
    assert found["ppl_5.error"].value > found["ppl_0.1.error"].value


def test_the_thresholds_found_do_what_is_said_of_them_when_they_are_set(gelu):
    subject, result = gelu
    found = {m.name: m for m in result.measures}
    eps = {layer: found[f"ppl_5.eps.{layer}"].value for layer in ("encoder_0", "encoder_1", "decoder_0", "decoder_1")}
    arrays = subject.source.model_input(subject.split.arrays())
    whole, cut = (subject.predict(arrays, **s) for s in ({}, {"least": least(subject.params, eps), "cut": True}))
    nats = [float(p.losses.loss.sum() / p.losses.count.sum()) for p in (whole, cut)]
    assert np.exp(nats[1] - nats[0]) - 1 == pytest.approx(found["ppl_5.rise"].value, rel=1e-6)
    for layer, stats in cut.stats.items():
        assert found[f"ppl_5.{layer}"].value == pytest.approx(float(stats.kept_sum / stats.examples))
    # Every layer's output, alone, has the error that they share, to the grid's interpolation.
    few = {k: x[:64] for k, x in subject.source.model_input(subject.load("validation").arrays()).items()}
    for stats in subject.predict(few, least=least(subject.params, eps)).stats.values():
        assert float(stats.error_sum / stats.examples) == pytest.approx(found["ppl_5.error"].value, rel=0.02)


def test_curves_are_of_rising_thresholds_and_falling_shares(gelu):
    _, result = gelu
    assert list(result.arrays["tail"]) == ["decoder_0", "decoder_1", "encoder_0", "encoder_1"]
    for eps, errors, kept in result.arrays["tail"].values():
        assert (np.diff(eps) > 0).all()
        assert (np.diff(kept) <= 0).all()
        assert errors[0] < 0.01
        assert errors[-1] == pytest.approx(1)  # all is cut


def test_relu_keeps_no_more_than_its_nonzero_share_and_that_much_for_nothing(source):
    subject = subject_of(source, config(Relu(), gated=False))
    found = {m.name: m.value for m in thresholds(subject).measures}
    nonzero = {layer: float(s.fraction_sum / s.examples) for layer, s in subject.clean.stats.items()}
    assert all(found[f"ppl_1.{layer}"] < share for layer, share in nonzero.items())
    zeros = least(subject.params, dict.fromkeys(nonzero, NONE))
    cut = subject.predict(subject.source.model_input(subject.split.arrays()), least=zeros, cut=True)
    np.testing.assert_array_equal(cut.losses.loss, subject.clean.losses.loss)
    assert {layer: float(s.kept_sum / s.examples) for layer, s in cut.stats.items()} == pytest.approx(nonzero)


def test_layers_in_a_scan_and_apart_have_the_same_thresholds(gelu):
    stacked = gelu[0]
    names = ["encoder_0", "encoder_1", "decoder_0", "decoder_1"]
    eps = {name: 0.1 * (i + 1) for i, name in enumerate(names)}
    got = least(stacked.params, eps)
    for stack in ("encoder", "decoder"):
        kernels = stacked.params[stack]["layers"]["mlp"]["wo"]["kernel"]
        for i in range(2):
            expected = eps[f"{stack}_{i}"] / np.linalg.norm(kernels[i], axis=-1)
            np.testing.assert_allclose(got[stack]["layers"]["mlp"][LEAST][i], expected, rtol=1e-6)
    mlp = lambda stack, i: jax.tree.map(lambda p: p[i], stacked.params[stack]["layers"]["mlp"])
    apart = {s: {f"layers_{i}": {"mlp": mlp(s, i)} for i in range(2)} for s in ("encoder", "decoder")}
    eps = {name.replace("_", "/layers_"): value for name, value in eps.items()}
    np.testing.assert_array_equal(
        least(apart, eps)["decoder"]["layers_1"]["mlp"][LEAST], got["decoder"]["layers"]["mlp"][LEAST][1]
    )


def test_a_threshold_between_two_is_interpolated_and_beyond_them_taken():
    curve = np.array([[1.0, 2.0, 4.0, 8.0], [0.0, 0.01, 0.04, 0.03], [1.0, 0.5, 0.2, 0.1]])
    assert threshold(curve, 0.02) == pytest.approx(2 * 2**0.5)
    assert threshold(curve, 0.005) == 1.0  # the largest that makes no error
    assert threshold(curve, 0.9) == 8.0
    assert threshold(curve[:, 1:], 0.001) == NONE  # all of them make one


def test_a_unit_without_a_row_is_always_cut():
    mlp = {"wi": {}, "wo": {"kernel": np.array([[0.0, 0.0], [3.0, 4.0]], np.float32)}}
    got = least({"block_0": {"mlp": mlp}}, {"block_0": 1.0})["block_0"]["mlp"][LEAST]
    np.testing.assert_array_equal(got, np.float32([np.inf, 0.2]))


@pytest.mark.parametrize("rises", [(), (0.0,), (-0.1,), (float("nan"),), (float("inf"),)])
def test_rises_that_mean_nothing_are_refused(rises):
    with pytest.raises(ValueError, match="rises"):
        dataclasses.replace(EvalConfig(names=()), rises=rises)


def test_a_network_without_a_number_has_no_sparsity(source):
    subject = subject_of(source, config(Relu(), gated=False), broken=True)
    found = {m.name: m.value for m in thresholds(subject).measures}
    assert np.isnan(found["ppl_1.mean"])
    assert np.isnan(found["ppl_1.rise"])


def test_thresholds_are_needed_to_cut(gelu):
    subject, _ = gelu
    with pytest.raises(ValueError, match="no thresholds"):
        subject.predict(subject.source.model_input(subject.split.arrays()), cut=True)
