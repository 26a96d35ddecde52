import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
import pytest

from sparsity.data.mock import MockText
from sparsity.evals.quantiles import HALVINGS, least, quantiles
from sparsity.evals.result import EvalConfig
from sparsity.layers.mlp import MLPConfig
from sparsity.layers.sparsify import ACTIVATIONS, Context
from sparsity.layers.tail import LEAST_ACTIVATION
from sparsity.models.llama import LlamaConfig
from sparsity.ops.sparsifiers import Relu, Silu
from tests.evals.languages import language_subject, predict_of

SOURCE = MockText(length=6, classes=11)
LAYERS = ("block_0", "block_1")


@functools.cache
def network(sparsifier, gate):
    """(settings, predictions): those with other parameters are compiled once."""
    mlp = MLPConfig(32, sparsifier, gated=True, use_bias=False, init="gpt2", gate=gate)
    model = LlamaConfig(mlp=mlp, d_model=8, layers=2, heads=2)
    return model, predict_of(SOURCE, model)


def subject_of(sparsifier, gate=None, split="test", broken=False, shares=(0.5, 0.9)):
    return language_subject(SOURCE, *network(sparsifier, gate), broken, split=split, shares=shares)


def activations(subject, split):
    """|a| of every layer [tokens, units], by the module itself."""
    module = subject.model.build(SOURCE.classes)
    tokens = subject.load(split).arrays()["tokens"]
    _, out = module.apply({"params": subject.params}, tokens, Context(hand_out=True), mutable=[ACTIVATIONS])
    return {layer: np.abs(out[ACTIVATIONS][layer]["mlp"]["sparsify"]["stats"].h) for layer in LAYERS}


@pytest.fixture(scope="module")
def silu():
    subject = subject_of(Silu())
    return subject, {m.name: m for m in quantiles(subject).measures}


def test_thresholds_are_the_quantiles_of_another_split_before_the_product(silu):
    subject, found = silu
    for layer, size in activations(subject, "validation").items():
        for share in (0.5, 0.9):
            t = found[f"quantile_{100 * share:g}.threshold.{layer}"].value
            assert (size < t).mean() >= share
            # One of the sizes, to the last halving; which of two neighbours, float32's sum of shares may decide.
            below, above = np.sort(size, axis=None)[int(np.ceil(share * size.size)) - 1 :][:2]
            step = np.sqrt((size**2).mean() / (1 - share)) * 2.0**-HALVINGS
            assert below <= t <= above + 2 * step
    assert "16 validation examples" in found["quantile_50.threshold.block_0"].definition


def test_shares_and_the_rise_are_those_of_the_network_that_is_cut(silu):
    subject, found = silu
    arrays = subject.source.model_input(subject.split.arrays())
    t = {layer: found[f"quantile_90.threshold.{layer}"].value for layer in LAYERS}
    first = activations(subject, "test")["block_0"]  # nothing before it is cut
    assert found["quantile_90.block_0"].value == pytest.approx((first >= t["block_0"]).mean())
    assert found["quantile_90.mean"].value == pytest.approx(np.mean([found[f"quantile_90.{b}"].value for b in LAYERS]))
    # Held out, nearly the share that it was calibrated to: 3,072 activations a layer, not independent.
    assert found["quantile_90.mean"].value == pytest.approx(0.1, abs=0.05)
    assert found["quantile_50.mean"].value == pytest.approx(0.5, abs=0.1)
    whole, cut = subject.predict(arrays), subject.predict(arrays, least=least(subject.params, t), cut=True)
    rise = np.expm1((cut.losses.loss - whole.losses.loss).mean() / 6)
    assert found["quantile_90.rise"].value == pytest.approx(rise, rel=1e-4)


@dataclasses.dataclass(frozen=True)
class Cut(Silu):
    """SiLU, and 0 where that is small."""

    t: float = 0.3

    def __call__(self, z, xp=jnp):
        a = super().__call__(z, xp)
        return xp.where(xp.abs(a) < self.t, xp.zeros_like(a), a)


def test_what_is_cut_off_is_what_a_sparsifier_that_cuts_makes_zero(silu):
    subject, _ = silu
    arrays = subject.source.model_input(subject.split.arrays())
    cut = subject.predict(arrays, least=least(subject.params, dict.fromkeys(LAYERS, 0.3)), cut=True)
    np.testing.assert_allclose(cut.losses.loss, subject_of(Cut()).predict(arrays).losses.loss, rtol=1e-5)
    assert not np.allclose(cut.losses.loss, subject.predict(arrays).losses.loss, rtol=1e-2)


def test_of_zeros_enough_nothing_else_is_cut_and_nothing_is_lost():
    """ReLU on both branches: a quarter of the products is positive. Calibrated on the test split."""
    subject = subject_of(Relu(), gate=Relu(), split="validation", shares=(0.5,))
    found = {m.name: m for m in quantiles(subject).measures}
    nonzero = {layer: float(s.fraction_sum / s.examples) for layer, s in subject.clean.stats.items()}
    assert {layer: found[f"quantile_50.{layer}"].value for layer in LAYERS} == pytest.approx(nonzero, abs=1e-3)
    assert found["quantile_50.mean"].value < 0.4
    assert abs(found["quantile_50.rise"].value) < 1e-4
    assert "16 test examples" in found["quantile_50.rise"].definition


def test_layers_in_a_scan_have_each_their_own():
    mlp = {"wi": {}, "wo": {"kernel": np.zeros((2, 3, 4), np.float32)}}
    got = least({"encoder": {"layers": {"mlp": mlp}}}, {"encoder_0": 0.1, "encoder_1": 0.2})
    expected = np.float32([[0.1] * 3, [0.2] * 3])
    np.testing.assert_array_equal(got["encoder"]["layers"]["mlp"][LEAST_ACTIVATION], expected)


def test_a_network_without_a_number_has_no_sparsity():
    found = {m.name: m.value for m in quantiles(subject_of(Silu(), broken=True, shares=(0.5,))).measures}
    assert all(np.isnan(value) for value in found.values())


@pytest.mark.parametrize("shares", [(), (0.0,), (1.0,), (float("nan"),)])
def test_shares_that_mean_nothing_are_refused(shares):
    with pytest.raises(ValueError, match="shares: between 0 and 1 are needed"):
        EvalConfig(names=(), shares=shares)
