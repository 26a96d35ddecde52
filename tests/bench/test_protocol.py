"""The arithmetic of the benchmark's protocol, and that every suite runs; never its times."""

import json

import numpy as np
import pytest

from sparsity.bench import SUITES, protocol, top_k


class Clock:
    """Time that moves by what the arms say they cost."""

    now = 0.0

    def __call__(self):
        return self.now


def test_arms_are_interleaved_and_timed_apart():
    clock, order = Clock(), []

    def arm(name, cost):
        def run():
            order.append(name)
            clock.now += cost
            return np.zeros(())

        return run

    seconds = protocol.interleave({"a": arm("a", 2.0), "b": arm("b", 3.0)}, 4, clock)
    assert order == ["a", "b"] * 5  # one round of warming up
    assert seconds == {"a": [2.0] * 4, "b": [3.0] * 4}


def test_ratio_is_the_median_of_the_ratios_of_a_round():
    base = np.array([1.0, 2.0, 4.0, 8.0, 1.0])  # the machine slows down eightfold: the ratio does not
    r = protocol.ratio(list(base * [1.5, 1.5, 1.5, 1.5, 3.0]), list(base))
    assert r.median == 1.5
    assert r.low == 1.5
    assert r.high == 3.0
    assert r.best == 1.5


def test_ratio_covers_the_truth():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        base = rng.uniform(1, 2, 30)
        r = protocol.ratio(list(base * np.exp(rng.normal(0.1, 0.2, 30))), list(base), resamples=400)
        covered += r.low <= np.exp(0.1) <= r.high
    assert covered >= 180


def test_ratio_refuses_arms_of_different_runs():
    with pytest.raises(ValueError, match="arms of 2 and 1 rounds"):
        protocol.ratio([1.0, 2.0], [1.0])


def test_a_record_says_whether_the_bar_holds_and_the_machine_was_steady(monkeypatch):
    read = iter([10.0, 7.0])
    monkeypatch.setattr(protocol, "stream_read", lambda size: next(read))
    bars = (protocol.Bar("a", "b", 1e9, 1.0), protocol.Bar("a", "b"))
    case = protocol.Case("c", "rows", {"a": lambda: np.zeros(()), "b": lambda: np.zeros(())}, bars, {"kept": 3})
    record = protocol.measure(case, rounds=3)
    assert not record["steady"]
    assert [bar["holds"] for bar in record["bars"]] == [True, None]
    assert all(len(s) == 3 for s in record["seconds"].values())
    json.dumps(record)
    assert "unsteady" in protocol.table([record])


def test_what_is_not_sound_is_measured_again_and_says_so(monkeypatch):
    steady, lost = iter([False, True, True, False]), iter([0.1, -0.1, 0.1, 0.1])

    def measured(case, rounds, size):
        record = {"steady": next(steady), "rates": {"more": {"ms": 1.0}}}
        return record | {"seconds": {"more": [0.1, next(lost)]}}

    monkeypatch.setattr(protocol, "_measured", measured)
    case = protocol.Case("c", "rows", {"more": None}, (), {})
    record = protocol.measure(case, tries=3)  # the machine drifts, a slope is lost, all is well
    assert record["tries"] == 3
    assert protocol.sound(record)
    assert not protocol.sound(protocol.measure(case))


def test_a_case_may_have_fewer_rounds_than_are_asked_for():
    case = protocol.Case("c", "rows", {"a": lambda: np.zeros(())}, (), {}, rounds=2)
    of = lambda rounds: len(protocol.measure(case, rounds, 1 << 16)["seconds"]["a"])
    assert [of(1), of(5)] == [1, 2]


def test_rates_and_the_share_of_the_bound_by_hand():
    moved = {"sparse": 5e8, "dense": 1e9}
    seconds = {"sparse": [0.1, 0.4, 0.1], "dense": [0.1, 0.1, 0.2]}
    found = protocol.rates(seconds, moved, stream=20.0)
    assert found["sparse"] == pytest.approx({"ms": 100, "bytes": 5e8, "GB_per_s": 5, "share_of_stream": 0.25})
    bar = protocol.Bar("sparse", "dense", 0.9)
    assert protocol.of_bound(bar, protocol.Ratio(0.8, 0.7, 0.9, 0.6), moved) == {"bound": 0.5, "share_of_bound": 0.625}
    assert protocol.of_bound(bar, protocol.Ratio(0.8, 0.7, 0.9, 0.6), {"dense": 1e9}) == {}
    arms = {name: lambda: np.zeros(()) for name in moved}
    record = protocol.measure(protocol.Case("c", "r", arms, (bar,), {}, moved=moved), 1, 1 << 16)
    assert record["bars"][0]["bound"] == 0.5
    assert "| 0.900 |  | 0.500 |" in protocol.table([record])


def test_machine_names_versions():
    assert {"jax", "jaxlib"} <= set(protocol.machine()["versions"])


def test_stream_read_is_positive():
    assert protocol.stream_read(1 << 16) > 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:approx top-k.* is an exact search")
@pytest.mark.parametrize("suite", SUITES)
def test_every_suite_runs(suite):
    for case in SUITES[suite](smoke=True):
        record = protocol.measure(case, 1, 1 << 16)
        assert len(record["bars"]) == len(case.bars)
        del case


def test_an_mlp_case_compiles_six_products_and_keeps_k():
    case = top_k._mlp("gaussian", 64, 32, 256, 16)
    assert set(case.facts["matrix_products"].values()) == {6}
    assert case.facts["exact"]["kept_min"] == case.facts["exact"]["kept_max"] == 16
    assert case.facts["exact"]["recall"] == case.facts["scatter"]["recall"] == 1.0
