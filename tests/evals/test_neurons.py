import math

import numpy as np
import pytest

from sparsity.evals.neurons import neurons
from sparsity.evals.units import units

# Two examples of two tokens of four units; fired 4, 0, 1 and 2 times of 4.
Z = np.array([[[1, -1, 1, -1], [1, -1, -1, -1]], [[2, -1, -1, 3], [2, 0, -1, 3]]], np.float32)


def test_firing_rates_are_shares_of_tokens_sorted_from_the_highest(make_subject, make_stats):
    result = neurons(make_subject(stats={"a": make_stats(Z)}))
    assert result.arrays["firing_rates"] == {"a": [1.0, 0.5, 0.25, 0.0]}


def test_dead_units_are_those_that_fired_on_no_token(make_subject, make_stats):
    alive = np.abs(Z) + 1
    overall, a, b = neurons(make_subject(stats={"a": make_stats(Z), "b": make_stats(alive)})).measures
    assert (a.name, a.value, a.n) == ("dead.a", 0.25, 4)
    assert a.se == pytest.approx(math.sqrt(0.25 * 0.75 / 4), rel=1e-15)
    assert (b.name, b.value, b.se, b.n) == ("dead.b", 0.0, 0.0, 4)
    assert (overall.name, overall.value, overall.n) == ("dead.mean", 0.125, 8)
    assert overall.se == pytest.approx(math.sqrt(0.125 * 0.875 / 8), rel=1e-15)


def test_the_mean_over_layers_weighs_units_alike(make_subject, make_stats):
    wide = np.concatenate([np.abs(Z) + 1] * 3, axis=-1)  # twelve live units beside one dead of four
    overall = neurons(make_subject(stats={"a": make_stats(Z), "b": make_stats(wide)})).measures[0]
    assert overall.value == 1 / 16


def test_the_definition_names_tokens_split_and_bound(make_subject, make_stats):
    z = np.tile(Z, (25, 1, 1))  # 100 tokens: 3 / 100
    (_, measure) = neurons(make_subject(stats={"a": make_stats(z)}, split="validation")).measures
    assert "none of the 100 tokens of the validation split" in measure.definition
    assert "under 0.03 of tokens at 95% confidence" in measure.definition


def test_layers_of_different_numbers_of_tokens_are_named_with_their_own(make_subject, make_stats):
    # A convolution with 8 positions and a matrix with 2, of 50 examples.
    stats = {"conv": make_stats(np.tile(Z, (25, 4, 1))), "dense": make_stats(np.tile(Z, (25, 1, 1)))}
    subject = make_subject(stats=stats)
    overall, conv, dense = (m.definition for m in neurons(subject).measures)
    assert "none of the 400 tokens" in conv
    assert "none of the 100 tokens" in dense
    assert "none of the 100 to 400 tokens" in overall
    assert "under 0.03 of tokens" in overall
    named = {m.name: m.definition for m in units(subject).measures}
    for name in ("never", "silent", "rare", "density", "z_mean", "flat"):
        assert "the 400 tokens of one epoch" in named[f"units.{name}.conv"]
        assert "the 100 tokens of one epoch" in named[f"units.{name}.dense"]


def test_the_bound_of_3_over_n_is_that_of_95_percent_confidence():
    # A unit that fires at rate 3/N stays silent on N independent tokens with probability near exp(-3) = 5%.
    silent = (1 - 3 / 1000) ** 1000
    assert silent == pytest.approx(0.05, abs=0.001)


def test_a_layer_with_nan_is_neither_dead_nor_alive(make_subject, make_stats):
    broken = Z.copy()
    broken[0, 0, 1] = np.nan
    result = neurons(make_subject(stats={"a": make_stats(broken), "b": make_stats(Z)}))
    overall, a, b = result.measures
    assert np.isnan([overall.value, a.value, a.se]).all()
    assert b.value == 0.25
    assert np.isnan(result.arrays["firing_rates"]["a"]).all()
    assert len(result.arrays["firing_rates"]["a"]) == 4


def test_a_model_without_records_has_no_measures(make_subject):
    result = neurons(make_subject())
    assert (result.measures, result.arrays) == ((), {"firing_rates": {}})
