import math
from types import SimpleNamespace

import pytest

from sparsity.evals.result import Measure
from sparsity.run import Outcome
from sparsity.studies import records


def ended(**measures):
    found = tuple(Measure(name, value, None, 1, "") for name, value in measures.items())
    return SimpleNamespace(outcome=Outcome("finished", 1, found))


DIVERGED = SimpleNamespace(outcome=Outcome("diverged", 1))


def test_decades_of_what_is_not_positive_are_no_evidence():
    assert records.decades(1.0, 100.0) == pytest.approx(-2)
    assert math.isnan(records.decades(0.0, 1.0))
    assert math.isnan(records.decades(1.0, 0.0))
    assert math.isnan(records.decades(math.nan, 1.0))


def test_decades_are_each_value_s_over_its_own_base():
    found = records.decades_each([1.0, 0.5, 0.3], [0.1, 5.0, 0.0])
    assert found[:2] == pytest.approx([1, -1])
    assert math.isnan(found[2])
    with pytest.raises(ValueError, match="shorter"):
        records.decades_each([1.0, 2.0], [1.0])


def test_a_mean_is_over_runs_that_finished_and_empty_without_one():
    runs = {0: ended(accuracy=0.5), 1: DIVERGED, 2: ended(accuracy=0.7)}
    accuracy = lambda run: records.measured(run, "accuracy")
    assert records.finished(runs) == [runs[0], runs[2]]
    assert records.mean_over(records.finished(runs), accuracy) == pytest.approx(0.6)
    assert records.mean_over(list(runs.values()), accuracy) is None
    assert records.mean_over([], accuracy) is None


def test_a_measure_that_was_not_taken_is_no_number():
    assert records.measured(ended(accuracy=0.5), "accuracy") == 0.5
    assert math.isnan(records.measured(ended(accuracy=0.5), "nll"))
    assert math.isnan(records.measured(DIVERGED, "accuracy"))


def test_runs_are_dealt_by_arm_and_seed_in_their_order():
    grid = records.grid_by(lambda name: (name[0], int(name[1]), int(name[2])), {"b20": 1, "a10": 2, "b21": 3})
    assert grid == {("b", 2): {0: 1, 1: 3}, ("a", 1): {0: 2}}


def test_an_effect_across_groups_has_a_replicate_for_each_seed_that_all_have():
    less = lambda a, b: records.measured(a, "accuracy") - records.measured(b, "accuracy")
    one, other = {s: ended(accuracy=0.5 + s / 10) for s in range(4)}, {s: ended(accuracy=0.5) for s in (0, 1, 2, 5)}
    effect = records.across({"one": one, "other": other}, less)
    assert (effect.value, effect.n) == (pytest.approx(0.1), 3)
    assert records.across({"one": one, "other": {}}, less).failed == "no run of other"
    assert math.isnan(records.across({"one": one, "other": other | {1: DIVERGED}}, less).value)
    assert records.standard_error([1.0, 3.0]) == pytest.approx(1.0)
    assert records.standard_error([1.0]) is None
    assert records.standard_error([0.9804469273743017] * 3) == 0


def test_cells_without_a_value_are_empty():
    assert records.or_none(math.nan) is None
    assert records.or_none(0.0) == 0.0
    assert (records.percent(0.123), records.percent(None)) == ("12.3%", "no value")


def test_a_measure_of_each_layer_leaves_their_mean_out():
    run = ended(**{"nonzero.mean": 0.2, "nonzero.block_0": 0.1, "nonzero.block_1": 0.3, "dead.block_0": 0.9})
    assert records.each_layer(run).tolist() == [0.1, 0.3]
    assert records.each_layer(run, "dead.").tolist() == [0.9]
    assert math.isnan(*records.each_layer(DIVERGED))
