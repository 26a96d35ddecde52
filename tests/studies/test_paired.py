import math

import numpy as np
import pytest
from scipy.stats import ttest_rel

from sparsity.evals.result import ByExample
from sparsity.studies.paired import difference, differences, paired
from tests.studies.findings import checkpoint

RNG = np.random.default_rng(0)


def test_a_difference_by_hand():
    """Differences 1, 0, 0, 1: mean 1/2, variance 1/3, se sqrt(1/12)."""
    found = difference(ByExample(np.array([1, 1, 0, 1])), ByExample(np.array([0, 1, 0, 0])))
    assert (found.value, found.n) == (0.5, 4)
    assert found.se == pytest.approx(math.sqrt(1 / 12), rel=1e-15)


def test_without_counts_it_is_the_paired_t_test():
    b = RNG.normal(size=200)
    a = b + RNG.normal(0.1, 0.3, 200)
    found, test = difference(ByExample(a), ByExample(b)), ttest_rel(a, b)
    assert found.value / found.se == pytest.approx(test.statistic, rel=1e-12)
    low, high = test.confidence_interval()
    assert found.interval() == pytest.approx((low, high), rel=1e-9)
    # Unpaired it would be far wider: the networks share what is hard about an example.
    assert found.se < 0.5 * math.sqrt(a.var() / 200 + b.var() / 200)


def test_with_counts_it_has_the_error_that_repetition_shows():
    """Of ratios of sums. The spread over 400 data sets is itself good to 1 / sqrt(800) = 3.5%: four times that."""
    values, errors = [], []
    for _ in range(400):
        counts = RNG.integers(1, 20, 100)
        b = RNG.gamma(counts * RNG.uniform(0.5, 1.5, 100))
        a = b + counts * RNG.normal(0.1, 0.2, 100)
        found = difference(ByExample(a, counts), ByExample(b, counts))
        assert found.value == pytest.approx(a.sum() / counts.sum() - b.sum() / counts.sum())
        values.append(found.value)
        errors.append(found.se)
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.14)


def test_equal_networks_differ_by_exactly_nothing_and_nan_is_no_number():
    same = ByExample(RNG.random(9), RNG.integers(1, 5, 9))
    assert (difference(same, same).value, difference(same, same).se) == (0, 0)
    one = difference(ByExample(np.array([2.0])), ByExample(np.array([1.0])))
    assert (one.value, one.se, one.interval()) == (1, None, None)
    for value in (math.nan, math.inf):
        broken = difference(ByExample(np.array([1.0, value])), ByExample(np.array([1.0, value])))
        assert math.isnan(broken.value)
        assert math.isnan(broken.se)


def test_other_examples_are_refused():
    with pytest.raises(ValueError, match="n = 2 and 3"):
        difference(ByExample(np.ones(2)), ByExample(np.ones(3)))
    with pytest.raises(ValueError, match="other counts"):
        difference(ByExample(np.ones(2), np.array([1, 2])), ByExample(np.ones(2)))


def test_runs_are_paired_in_what_both_have_by_example():
    a = checkpoint("a", {"accuracy": [1, 1, 0, 1], "nll": [0.0, 1, 2, 3]}, units={"nll": "nats"}, ece=(0.1, None))
    b = checkpoint("b", {"accuracy": [0, 1, 0, 0], "brier": [0.1, 0, 0, 0]}, ece=(0.2, None))
    first, second = differences([b, a, b])
    assert (first.run, first.against, list(first.effects), first.refused) == ("a", "b", ["accuracy"], None)
    assert first.text("accuracy") == "+50 ± 29 points"
    assert first.text("nll") == first.text("ece") == "-"
    assert second.text("accuracy") == "+0.00 ± 0.00 points"
    assert paired(b, a).text("accuracy") == "-50 ± 29 points"
    c = checkpoint("c", {"nll": [1.0, 2, 3, 5]}, units={"nll": "nats"})
    assert paired(c, a).text("nll") == "+1.25 ± 0.25 nats"


def test_runs_with_other_examples_or_with_nothing_to_pair_are_not_paired_and_say_so():
    a, b = checkpoint("a", {"accuracy": [1, 0]}), checkpoint("b", {"accuracy": [1, 0]}, examples="others")
    assert "they were evaluated on other examples (n = 2 and 2)" in paired(b, a).refused
    assert not paired(b, a).effects
    for other in (checkpoint("c", ece=(0.1, 0.1)), checkpoint("d", {"mse": [1.0, 2.0]})):
        assert paired(other, a).refused == "no measure of both is known example by example"
        assert paired(other, a).text("accuracy") == "-"
