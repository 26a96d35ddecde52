import dataclasses
import math

import pytest

from launch.cli import load_study_config
from sparsity import recipes
from sparsity.run import Outcome
from sparsity.studies.draw import RunView
from sparsity.studies.judge import judge
from sparsity.studies.price2024 import table2
from sparsity.writer import read_metrics

pytestmark = pytest.mark.filterwarnings("ignore::sparsity.theory.edge_of_chaos.BifurcationWarning")
STUDY = table2.TABLE2
CLAIMS = {c.id: c for c in STUDY.claims}


def test_the_printed_table_has_all_rows():
    assert set(table2.printed()) == set(recipes.PRICE_ROWS)
    assert table2.printed()["crelu_0.85_0.5"]["dnn_acc_mean"] == 0.78


def test_a_row_stands_beside_the_paper_s(make):
    (row,) = [r for r in table2.table([make("st_0.5", 0, None), make("st_0.5", 1, 0.3)]) if r["row"] == "st_0.5"]
    assert (row["accuracy, paper"], row["difference"]) == (0.1, pytest.approx(0.1))
    assert row["best validation"] == pytest.approx(0.7)


def test_rows_that_were_not_trained_say_so(make):
    table = table2.table([make("relu", 0)])
    assert [r["row"] for r in table] == list(recipes.PRICE_ROWS)
    assert {r["n"] for r in table if r["row"] != "relu"} == {"not run"}
    assert "32 of the 33 rows of Table 2 were not run here." in table2.findings([make("relu", 1)])


# What each claim says of tables made up so: accuracies by row ("others": every other row), and the verdict.
VERDICTS = [
    ("P1.st_0.5", {"st_0.5": 0.1}, "reproduced"),
    ("P1.st_0.5", {"st_0.5": 0.9}, "contradicted"),
    ("P1.relu_tau_0.7", {"relu_tau_0.7": 0.3}, "contradicted"),
    ("P1.some", {"relu_tau_0.6": 0.7}, "reproduced"),
    ("P1.some", {"relu_tau_0.6": 0.9}, "contradicted"),
    ("P2", {}, "reproduced"),
    ("P2", {"cst_0.85_0.7": 0.85}, "contradicted"),  # one row of four is enough
    ("P3", {"cst_0.8_0.9": 0.1, "cst_0.85_0.9": 0.1}, "reproduced"),
    ("P3", {"cst_0.85_0.9": 0.1}, "contradicted"),  # one of two is not
    ("P5", {"crelu_0.85_0.5": 0.7, "cst_0.85_0.5": 0.8}, "reproduced"),
    ("P5", {"crelu_0.85_0.5": 0.7}, "contradicted"),
    ("P6", {}, "reproduced"),
    ("P6", {"crelu_0.85_0.7": 0.8}, "contradicted"),
    *((claim, {"relu": 0.1, "others": 0.1}, "not testable") for claim in CLAIMS),  # ReLU itself did not train
]


@pytest.mark.parametrize(("claim", "accuracies", "verdict"), VERDICTS)
def test_the_verdict_on_made_up_tables(make, claim, accuracies, verdict):
    rows = load_study_config("price2024/table2").ROWS["embedded"]
    other = accuracies.get("others", 0.9)
    # A thousandth by seed and row, so that no effect is without error.
    wobble = lambda row, seed: 0.001 * seed * (len(row) % 3 - 1)
    records = [make(r, seed, accuracies.get(r, other) + wobble(r, seed)) for r in rows for seed in range(3)]
    assert judge(CLAIMS[claim], records).verdict == verdict


def test_a_claim_without_its_rows_is_not_testable(make):
    judged = judge(CLAIMS["P2"], [make("relu", seed) for seed in range(3)])
    assert judged.verdict == "not testable"
    assert judged.measured.failed.startswith("no run of crelu_0.6_0.7")


def test_drift_is_from_the_row_s_own_target_and_of_a_diverged_run_undecided(make):
    rows = {"relu": 0.5, "crelu_0.6_0.7": 0.6, "crelu_0.7_0.7": 0.7, "crelu_0.85_0.7": 0.86, "cst_0.85_0.7": 0.85}
    records = [make(row, seed, zeros=zero) for row, zero in rows.items() for seed in range(3)]
    judged = judge(CLAIMS["P2.sparsity"], records)
    assert judged.measured.value == pytest.approx(0.01)
    assert judged.verdict == "reproduced"
    records[-1] = dataclasses.replace(records[-1], outcome=Outcome("diverged", 1))
    assert judge(CLAIMS["P2.sparsity"], records).verdict == "undecided"


def test_failing_is_ten_points_below_relu(make):
    records = [make("relu", seed, 0.9) for seed in range(3)]
    records += [make("cst_0.7_0.9", seed, (None, 0.79, 0.81)[seed]) for seed in range(3)]
    judged = judge(CLAIMS["P4.cst_0.7_0.9"], records)
    assert (judged.measured.value, judged.measured.n) == (pytest.approx(2 / 3), 3)
    assert judged.verdict == "undecided"
    assert judge(CLAIMS["P4.crelu_0.85_0.9"], records).verdict == "not testable"


def test_late_spikes_are_absolute_and_of_the_second_half_of_training(make):
    low, early, late = (1e-4,) * 7 + (1e-2,), (9.0,) * 4 + (0.1,) * 4, (0.1,) * 7 + (10.0,)
    small = [make("crelu_0.85_0.5", 0, losses=late), make("crelu_0.85_0.5", 1, losses=low)]
    other = [make("crelu_0.85_0.7", 0, losses=early), make("crelu_0.85_0.7", 1, losses=early)]
    judged = judge(CLAIMS["P5.spikes"], [make("relu", 0), make("relu", 1), *small, *other])
    assert judged.measured.value == pytest.approx((2.0 - 1.0) / 2)  # 10 and .01 against .1, in decades
    diverged = [make("relu", 2), make("crelu_0.85_0.5", 2, None), make("crelu_0.85_0.7", 2, losses=early)]
    assert judge(CLAIMS["P5.spikes"], diverged).measured.value == pytest.approx(39.0)


@pytest.mark.parametrize("heading", STUDY.figures)
def test_every_figure_is_drawn_of_runs_that_finished_and_that_diverged(heading, make):
    records = [make("relu", 0), make("relu_tau_0.7", 0, None, norms=((1.0, math.inf, 0.0),)), make("cst_0.85_0.9", 0)]
    views = {r.config.name: RunView(r.outcome, read_metrics(r.files.metrics), {}) for r in records}
    assert STUDY.figures[heading](views).png()
