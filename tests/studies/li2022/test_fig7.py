import numpy as np
import pytest

from sparsity.bench.measurement import LATENCY, LatencyConfig
from sparsity.bench.protocol import Bar, of_bound, ratio
from sparsity.evals.result import Measure
from sparsity.run import Outcome, Workdir, directory_name
from sparsity.studies import runner
from sparsity.studies.draw import RunView
from sparsity.studies.li2022.fig7 import FIG7, SIZES, findings, reduction_by_k, table
from sparsity.studies.runner import Part, Record, plan, run_study
from sparsity.writer import Progress
from tests.studies.li2022.conftest import configs

STUDY = "li2022/fig7"
PAPERS = {
    size: {k: gain * (1 if k <= 128 else 0.5) for k in (32, 64, 128, 256, 512)}
    for size, gain in zip(SIZES, (0.01, 0.03, 0.06, 0.1), strict=True)
}


@pytest.fixture
def records(tmp_path):
    """records(less, recall, rise): of every run, as it might have ended; `less[size][k]` is the time saved."""

    def of(less=PAPERS, recall=0.97, rise=0.002, spread=0.01, steady=True):
        out, rng = [], np.random.default_rng(0)
        for config in configs(STUDY):
            if isinstance(config, LatencyConfig):
                arms = config.ways(3072)
                saved = {arm: 0.0 if arm == "dense" else less[config.size][int(arm[1:].split(",")[0])] for arm in arms}
                noise = 1 + spread * rng.uniform(-1, 1, (len(arms), config.rounds))
                seconds = {arm: ((1 - gain) * n).tolist() for (arm, gain), n in zip(saved.items(), noise, strict=True)}
                moved = {arm: 0.75 if arm != "dense" else 1.0 for arm in arms}
                bars = []
                for arm in arms:
                    if arm != "dense":
                        found = ratio(seconds[arm], seconds["dense"])
                        bars.append({"arm": arm, **vars(found), **of_bound(Bar(arm, "dense"), found, moved)})
                facts = {"backend": "cpu", "layers": 4, "of": 24, "more": 8}
                facts["partial_reduce"] = {arm: False for arm in arms if arm != "dense"}
                record = {
                    "bars": bars,
                    "seconds": seconds,
                    "steady": steady,
                    "facts": facts,
                    "rates": {arm: {"ms": 800.0} for arm in arms},
                }
                ended = Outcome("finished", config.rounds, (), {LATENCY: record})
            else:
                values = {"recall": recall + 0.001 * config.seed, "rise": rise, "agreement": 0.99, "bytes": 0.2}
                measures = [Measure(f"inference.low_rank.{k}", v, None, 100, "") for k, v in values.items()]
                ended = Outcome("finished", config.steps, tuple(measures))
            out.append(Record(config, Workdir(tmp_path / config.name), ended))
        return out

    return of


def test_the_papers_numbers_reproduce(records, verdicts):
    assert set(verdicts(FIG7, records()).values()) == {"reproduced"}


def test_the_opposite_contradicts(records, verdicts):
    other = {size: {k: -0.1 + 1e-4 * k - 0.05 * i for k in (32, 64, 128, 256, 512)} for i, size in enumerate(SIZES)}
    found = verdicts(FIG7, records(other, recall=0.8, rise=0.05))
    assert set(found.values()) == {"contradicted"}


def test_rounds_that_differ_by_more_than_models_leave_it_undecided(records, verdicts):
    same = {size: dict.fromkeys((32, 64, 128, 256, 512), 0.05) for size in SIZES}
    found = verdicts(FIG7, records(same, spread=0.2))
    assert {found[f"L7.{claim}"] for claim in ("size", "11b", "k")} == {"undecided"}


def test_of_a_machine_that_was_not_steady_nothing_is_said(records, verdicts):
    found = verdicts(FIG7, records(steady=False))
    assert {found[f"L7.{claim}"] for claim in ("size", "11b", "k")} == {"not testable"}
    assert not table(records(steady=False))[0]["sound"]


def test_without_the_largest_nothing_is_said_of_it(records, verdicts):
    some = [r for r in records() if r.config.name != "latency_11b"]
    found = verdicts(FIG7, some)
    assert {found[f"L7.{claim}"] for claim in ("size", "11b", "k")} == {"not testable"}
    assert found["L7.predictor"] == "reproduced"


def test_the_table_has_latencies_and_then_the_trained_networks_modes(records):
    found = records()
    rows = table(found)
    (row,) = (r for r in rows if r["of"] == "T5 11b" and r["arm"] == "k128, recall 0.95")
    assert row["low"] < row["less"] < row["high"]
    assert row["less"] == pytest.approx(0.1, abs=0.01)
    assert (row["ms"], row["bound"], row["reduced"], row["recall"]) == (100.0, 0.25, False, None)
    assert rows[-1]["of"] == "low_rank"
    assert (rows[-1]["n"], rows[-1]["arm"]) == (3, "k16")
    assert rows[-1]["recall"] == pytest.approx(0.971)
    assert len({tuple(r) for r in rows}) == 1
    said = findings(found)
    assert len(said) == 5
    assert "T5 11b, 4 of 24 decoder layers, on cpu: with k = 128 a greedy token takes 10." in said[3]
    assert "an exact search here" in said[3]
    runs = {r.config.name: RunView(r.outcome, [], {}) for r in found}
    assert reduction_by_k(runs).png().startswith(b"\x89PNG")


def test_a_sweep_s_measurements_are_run_planned_and_sharded_as_its_runs_are(monkeypatch, tmp_path, records):
    outcomes = {r.config.name: r.outcome for r in records()}
    did = []

    def do(config, path, progress):
        did.append((config.name, path.name))
        return outcomes[config.name]

    monkeypatch.setattr(runner, "run", do)
    monkeypatch.setattr(runner, "measure_latency", do)
    sweep = configs(STUDY)
    text = plan(sweep[:1], tmp_path)
    assert "latency_base" in text
    assert "to do" in text
    monkeypatch.setattr(runner, "expand", lambda *_: sweep)
    run_study(FIG7, None, "embedded", tmp_path, Progress(), Part(shard=(1, 2)))
    assert [name for name, _ in did] == [config.name for config in sweep[1::2]]
    assert did[0][1] == directory_name(sweep[1])
    assert sweep[0].kind == "latency"
    assert Part({"size": "11b"}).of(sweep) == [sweep[3]]
