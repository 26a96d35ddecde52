import dataclasses

import jax
import numpy as np
import pytest

from sparsity.config import ConfigError
from sparsity.data.mock import MockText
from sparsity.data.span_corruption import MockSpans
from sparsity.evals.firing import (
    EXAMPLES,
    LEAST,
    OF_KIND,
    Counts,
    _at_random,
    _counted,
    _frequent,
    _named,
    as_text,
    firing,
    preferences,
)
from sparsity.layers.mlp import MLPConfig
from sparsity.layers.sparsify import ACTIVATIONS, Context
from sparsity.models.gpt2 import GPT2Config
from sparsity.models.t5 import T5Config
from sparsity.ops.sparsifiers import Relu, TopK
from tests.evals.languages import language_subject

TEXT = MockText(length=6, classes=11)
GPT2 = GPT2Config(MLPConfig(8, TopK(k=2)), d_model=8, layers=2, heads=2, positions=8)


def test_kinds_rates_lifts_and_the_strongest_tokens_are_those_of_a_plain_count():
    subject = language_subject(TEXT, GPT2, None, batch=12)  # the last batch is not full
    result = firing(subject)
    tokens = TEXT.model_input(subject.split.arrays())["tokens"]
    variables = {"params": subject.params}
    _, new = GPT2.build(11).apply(variables, tokens, Context(hand_out=True), mutable=[ACTIVATIONS])
    measures = {m.name: m for m in result.measures}
    for layer in ("block_0", "block_1"):
        h = np.abs(np.asarray(new[ACTIVATIONS][layer]["mlp"]["sparsify"]["stats"].h, np.float64))
        base = np.array([(tokens == token).mean() for token in range(11)])
        fired = np.stack([[((h[..., u] > 0) & (tokens == token)).sum() for token in range(11)] for u in range(8)])
        lift = np.where(
            fired >= OF_KIND, fired / np.maximum(fired.sum(1, keepdims=True), 1) / np.maximum(base, 1e-9), 0
        )
        chosen = np.flatnonzero((fired.sum(1) >= LEAST) & (lift.max(1) > 0))
        shown = [one for one in result.arrays["firing"] if one["layer"] == layer]
        assert sorted(one["unit"] for one in shown) == sorted(chosen)  # there are few: all are shown
        assert len(shown) >= 2
        assert measures[f"firing.share.{layer}"].n == len(shown)
        assert measures[f"firing.share.{layer}"].value == pytest.approx(np.mean([one["share"] for one in shown]))
        assert measures[f"firing.lift.{layer}"].value == pytest.approx(np.mean(lift.max(1)[chosen]))
        assert [one["lift"] for one in shown] == sorted((one["lift"] for one in shown), reverse=True)
        for one in shown:
            unit, kind = one["unit"], int(one["kind"].strip("<>"))
            # Of two kinds that it always fires on either may be the one.
            expected = [fired[unit, kind] / fired[unit].sum(), lift[unit].max(), (h[..., unit] > 0).mean()]
            np.testing.assert_allclose([one["share"], one["lift"], one["rate"]], expected, rtol=1e-6)
            assert lift[unit, kind] == pytest.approx(lift[unit].max())
            n, i = np.unravel_index(h[..., one["unit"]].argmax(), tokens.shape)
            words = [f"<{token}>" for token in tokens[n]]
            around = "".join(words[:i]) + f"[{words[i]}]" + "".join(words[i + 1 : i + 5])
            assert one["strongest"][0] == around
    assert len(as_text(result.arrays["firing"]).splitlines()) == 2 * len(result.arrays["firing"])


def test_units_that_fire_without_looking_are_no_more_choosy_than_their_yardstick():
    rng = np.random.default_rng(0)
    tokens = np.array([400, 300, 200, 100])
    fired = np.stack([rng.multivariate_hypergeometric(tokens, 120) for _ in range(400)], 1)
    chosen = fired.copy()
    chosen[:, :200] = np.array([[0], [0], [120], [0]])
    counts = lambda fired: Counts(fired, tokens, None, None, 1)
    null = _at_random(counts(fired), rng)
    assert (null.sum(0) == 120).all()
    lift = lambda fired: np.median([x[2] for x in preferences(fired, tokens).values()])
    # The median over 400 units of the largest of three lifts, each with a deviation of .07 to .2 over tokens.
    assert lift(null) == pytest.approx(lift(fired), abs=0.02)
    assert lift(chosen[:, :200]) == pytest.approx(5)


def test_a_t5s_decoder_is_named_by_its_own_tokens_and_padding_is_none():
    source = MockSpans(length=12, classes=8)
    model = T5Config(mlp=MLPConfig(8, Relu(), use_bias=False), d_model=8, layers=2, heads=2, head_dim=4)
    subject = language_subject(source, model, None, batch=8)
    arrays = {k: x[:EXAMPLES] for k, x in source.model_input(subject.split.arrays()).items()}
    arrays["input_segments"] = np.where(np.arange(12) < 9, arrays["input_segments"], 0)
    named = _named(subject, arrays)
    kinds = {name: _frequent(tokens) for name, tokens in named.items()}
    counted = _counted(subject, arrays, named, kinds)
    assert sorted(counted) == ["decoder_0", "decoder_1", "encoder_0", "encoder_1"]
    for layer, counts in counted.items():
        stream = "decoder_inputs" if layer.startswith("decoder") else "inputs"
        real = arrays["target_segments" if stream == "decoder_inputs" else "input_segments"] > 0
        expected = [(real & (arrays[stream] == kind)).sum() for kind in kinds[stream]]
        np.testing.assert_array_equal(counts.tokens_K[:-1], expected)
        assert counts.tokens_K[-1] == 0


def test_images_without_classes_are_refused():
    subject = language_subject(TEXT, GPT2, None)
    fake = dataclasses.replace(GPT2)
    object.__setattr__(fake, "inputs", ("image",))
    with pytest.raises(ConfigError, match=r"^evals.names: firing calls patches by the class of their image"):
        _named(dataclasses.replace(subject, model=fake), {"image": jax.numpy.zeros((1, 2, 2, 1))})
