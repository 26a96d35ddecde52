import functools
import itertools
import json

import numpy as np
import pytest

from launch.cli import load_study_config
from sparsity.config import to_dict
from sparsity.data.corruptions import CORRUPTIONS, SEVERITIES
from sparsity.evals.result import Measure
from sparsity.run import Outcome, Workdir
from sparsity.studies.draw import RunView
from sparsity.studies.judge import judge
from sparsity.studies.li2022 import table1
from sparsity.studies.li2022.table1 import TABLE_1, arm_and_seed, fall, findings, papers_k, table
from sparsity.studies.records import named
from sparsity.studies.runner import Record, expand
from sparsity.writer import read_metrics

CURVE = np.array([0.1, 0.5, 0.7, 0.8, 0.8, 0.8])


@functools.cache
def configs():
    return expand(load_study_config("li2022/table1").sweep, "embedded")


@pytest.fixture
def ended(tmp_path):
    """ended(how, broken=()): a record of every run; `how(k, noise, seed)` gives what differs from a plain end."""
    calls = itertools.count()

    def records(how, broken=()):
        folder, out = tmp_path / str(next(calls)), []
        for config in configs():
            k, noise, seed = arm_and_seed(config.name)
            got = {"accuracy": 0.9, "corrupted": 0.6, "steep": 0.0, "ece": 0.05, "curve": CURVE} | how(k, noise, seed)
            lines = [{"kind": "train", "step": i, "loss": 1.0, "accuracy": 0.99} for i in range(6)]
            for i, accuracy in enumerate(got["curve"]):
                ece = got.get("eces", [0.3, 0.1, 0.02, 0.03, 0.04, 0.05])[i]
                lines.append({"kind": "validation", "step": i, "accuracy": float(accuracy), "ece": ece})
            files = Workdir(folder / config.name)
            files.path.mkdir(parents=True)
            files.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
            if config.name in broken:
                out.append(Record(config, files, Outcome("diverged", 1)))
                continue
            values = {"accuracy": got["accuracy"], "ece": got["ece"], "nonzero.mean": 0.2}
            for name in CORRUPTIONS:
                values[f"robustness.{name}"] = got["corrupted"]
                for s in SEVERITIES:
                    values[f"robustness.{name}.{s}"] = got["corrupted"] - (0.1 - got["steep"]) * (s - 3)
            measures = tuple(Measure(name, value, 0.01, 358, "") for name, value in values.items())
            out.append(Record(config, files, Outcome("finished", 2000, measures)))
        return out

    return records


def as_in_the_paper(k, noise, seed):
    """Gains of Table 1, a little different from seed to seed."""
    wobble = 1e-4 * seed
    if k is None:
        falling = np.array([0.1, 0.5, 0.7, 0.6, 0.5, 0.4]) if noise == 0.8 else CURVE
        return {"accuracy": {0.0: 0.9, 0.4: 0.7, 0.8: 0.4}[noise] + wobble, "curve": falling, "ece": 0.08 + wobble}
    better = {"corrupted": 0.63 + 2 * wobble, "steep": 0.01 + wobble, "ece": 0.04 + 1e-3 * k + wobble / 2}
    return better | {"accuracy": {0.0: 0.9, 0.4: 0.75, 0.8: 0.5}[noise] + 2 * wobble}


def verdicts(records):
    return {c.id: judge(c, records).verdict for c in TABLE_1.claims}


def views(records):
    return {r.config.name: RunView(r.outcome, read_metrics(r.files.metrics), to_dict(r.config)) for r in records}


def test_the_papers_k_is_that_of_the_nearest_share(ended):
    records = ended(as_in_the_paper)
    assert papers_k(named(records)) == papers_k(views(records)) == 21  # 512 / 24 = 21.3
    assert papers_k({}) is None
    assert len(records) == 40


def test_networks_as_the_paper_says_reproduce_every_claim(ended):
    assert set(verdicts(ended(as_in_the_paper)).values()) == {"reproduced"}


def opposite(k, noise, seed):
    """Top-k is worse at everything; the dense network rises to the end, and its calibration with it."""
    wobble, dense = 1e-4 * seed, k is None
    ends = {"eces": [0.3, 0.1, 0.08, 0.07, 0.06, 0.05]} if dense else {}
    if dense:
        return ends | {"accuracy": 0.9 + wobble, "ece": 0.05 + wobble}
    falling = np.array([0.1, 0.8, 0.8, 0.8, 0.5, 0.4 - wobble])
    worse = {"accuracy": 0.8 + 2 * wobble, "corrupted": 0.5 + wobble, "steep": -0.02 - wobble, "curve": falling}
    return worse | {"ece": 0.2 - 1e-3 * k + wobble / 2}


def test_networks_of_the_opposite_kind_contradict_every_claim(ended):
    found = verdicts(ended(opposite))
    assert found.pop("L10.late") == "undecided"  # it ends at its best, exactly
    assert found == dict.fromkeys(found, "contradicted")


def test_networks_that_have_not_learnt_are_not_judged(ended):
    found = {c.id: judge(c, ended(lambda k, noise, seed: {"accuracy": 0.2})) for c in TABLE_1.claims}
    gaps = [j for id, j in found.items() if id not in ("L8.peak", "L10.late", "L10.smaller")]
    assert {j.verdict for j in gaps} == {"not testable"}
    assert "has not learnt" in gaps[0].measured.failed


def test_without_runs_nothing_can_be_judged():
    assert set(verdicts([]).values()) == {"not testable"}


def test_a_seed_that_diverged_is_no_evidence_and_no_row(ended):
    records = ended(as_in_the_paper, broken=("vit_digits_k21_noise0.8_seed2",))
    rows = {(r["k"], r["noise"]): r for r in table(records)}
    assert rows[21, 0.8]["n"] == 4
    found = verdicts(records)
    assert (found["L8.80"], found["L8.40"]) == ("undecided", "reproduced")


def test_the_table_stands_beside_the_papers(ended):
    rows = {(r["k"], r["noise"]): r for r in table(ended(as_in_the_paper))}
    assert list(rows) == [(None, 0.0), (11, 0.0), (21, 0.0), (43, 0.0), (None, 0.4), (21, 0.4), (None, 0.8), (21, 0.8)]
    assert rows[None, 0.8]["accuracy, paper"] == 0.2535
    assert rows[21, 0.8]["accuracy, paper"] == 0.3080
    assert rows[11, 0.0]["accuracy, paper"] is None
    assert [rows[k, 0.0]["shot, paper"] for k in (None, 21)] == [0.3856, 0.4068]
    assert [rows[k, 0.0]["ece, paper"] for k in (None, 21)] == [0.0842, 0.0748]
    assert rows[21, 0.8]["gaussian, paper"] is None
    assert rows[21, 0.8]["accuracy"] == pytest.approx(0.5 + 4e-4)
    assert rows[None, 0.8]["fall"] == pytest.approx(0.6 - 0.5)
    assert rows[None, 0.0]["train"] == pytest.approx(0.99)


def test_a_fall_is_of_means_over_three_validations(ended):
    dense = next(r for r in ended(as_in_the_paper) if r.config.name == "vit_digits_noise0.8_seed0")
    assert fall(dense) == pytest.approx(np.mean([0.5, 0.7, 0.6]) - np.mean([0.6, 0.5, 0.4]))


def test_findings_have_the_papers_gain(ended):
    said = findings(ended(as_in_the_paper))
    assert len(said) == 3
    assert said[2].startswith("80% of the labels noisy: k = 21 +10.02 points of test accuracy (the paper +5.45)")


def test_figures_show_noise_severity_and_calibration(ended):
    runs = views(ended(as_in_the_paper))
    figures = {title: figure(runs).figure for title, figure in TABLE_1.figures.items()}
    clean, _, noisy = figures["Label noise"].axes
    assert {line.get_label() for line in clean.lines if line.get_lw() == 2} == {"dense", "k = 21"}
    np.testing.assert_allclose(noisy.lines[1].get_ydata(), [10, 50, 70, 60, 50, 40])
    gaussian = figures["Corruption"].axes[0]
    assert [line.get_label() for line in gaussian.lines] == ["dense", "k = 11", "k = 21", "k = 43"]
    assert (np.diff(gaussian.lines[0].get_ydata()) < 0).all()
    (calibration,) = figures["Calibration"].axes
    np.testing.assert_allclose(calibration.lines[0].get_ydata(), [30, 10, 2, 3, 4, 5])


def test_claims_of_the_paper_name_its_tables():
    assert {c.id.split(".")[0] for c in table1.CLAIMS} == {"L8", "L9", "L10"}
    assert all("Table 1" in c.where or "Fig." in c.where for c in table1.CLAIMS)
