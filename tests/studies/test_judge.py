import json
import math

import numpy as np
import pytest

from sparsity.studies.judge import Claim, Effect, judge


def claim(side="above", threshold=0.0, **kwargs):
    return Claim("X1", "Table 1", "it helps", "difference, points", "seed", side, threshold, Effect.of, **kwargs)


# (side, replicates, verdict): t(2) has 95% quantile 4.303, so three replicates need a mean
# beyond 4.303 / sqrt(3) = 2.48 standard deviations from the threshold.
CASES = [
    ("above", [1.0, 1.1, 1.2], "reproduced"),
    ("above", [-1.0, -1.1, -1.2], "contradicted"),
    ("above", [-0.1, 1.0, 2.0], "undecided"),
    ("below", [-1.0, -1.1, -1.2], "reproduced"),
    ("below", [1.0, 1.1, 1.2], "contradicted"),
    ("above", [0.0, 0.0, 0.0], "undecided"),  # on the threshold is on neither side
    ("above", [2.47, 1.47, 3.47], "undecided"),  # 2.47 deviations: just short
    ("above", [2.49, 1.49, 3.49], "reproduced"),  # 2.49: just enough
    ("above", [5.0, 5.1], "not testable"),  # two replicates are too few
    ("above", [], "not testable"),
    ("above", [1.0, 1.1, math.nan], "undecided"),  # NaN is no evidence
]


@pytest.mark.parametrize(("side", "replicates", "verdict"), CASES)
def test_verdicts_follow_from_the_interval(side, replicates, verdict):
    assert judge(claim(side), replicates).verdict == verdict


def test_a_failed_precondition_is_not_testable_and_says_why():
    unmet = Claim("X2", "", "", "", "seed", "above", 0.0, lambda _: Effect.untestable("the baseline did not train"))
    judgement = judge(unmet, None)
    assert judgement.verdict == "not testable"
    assert judgement.record()["failed"] == "the baseline did not train"


def test_an_exact_effect_needs_no_error_but_enough_checks():
    for n, verdict in ((33, "reproduced"), (2, "not testable")):
        exact = Claim("X3", "", "", "", "row", "below", 0.01, lambda _, n=n: Effect(0.004, 0.0, n, exact=True))
        assert judge(exact, None).verdict == verdict


def test_the_interval_is_students():
    values = np.random.default_rng(0).normal(size=5)
    low, high = Effect.of(values).interval()
    half = 2.7764451 * values.std(ddof=1) / math.sqrt(5)  # t(4), from a printed table
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), rel=1e-7)


def test_the_record_is_json_with_everything_a_reader_needs():
    record = json.loads(json.dumps(judge(claim(headline=True), [1.0, 1.1, 1.2]).record()))
    assert record.keys() >= {
        "id",
        "where",
        "statement",
        "effect",
        "threshold",
        "value",
        "se",
        "n",
        "verdict",
        "headline",
    }


def test_a_share_has_the_exact_interval_even_where_all_agree():
    all_of_five = Effect.of_share([True] * 5)
    assert (all_of_five.value, all_of_five.n) == (1.0, 5)
    # P(5 of 5) = p^5 = .025 at p = .478 (Clopper and Pearson 1934).
    assert all_of_five.interval() == (pytest.approx(0.025 ** (1 / 5)), 1.0)
    assert Effect.of_share([False] * 5).interval() == (0.0, pytest.approx(1 - 0.025 ** (1 / 5)))
    low, high = Effect.of_share([True, True, False, False]).interval()
    assert (low, high) == (pytest.approx(0.0676, abs=1e-4), pytest.approx(0.9324, abs=1e-4))  # tabled


def test_an_effect_that_is_not_finite_is_written_as_null_with_the_reason():
    record = judge(claim(), [1.0, 1.1, math.inf]).record()
    assert record["value"] is record["se"] is record["interval"] is None
    assert record["failed"].startswith("the effect is")
    json.dumps(record, allow_nan=False)
