import dataclasses
import math

import pytest

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


def table(make, accuracies):
    """Records of every row of P2 and of ReLU for three seeds."""
    return [
        make(row, seed, value + 0.001 * seed * (row != "relu"))
        for row, value in accuracies.items()
        for seed in range(3)
    ]


@pytest.mark.parametrize(("clipped", "verdict"), [(0.9, "reproduced"), (0.86, "contradicted"), (0.879, "undecided")])
def test_clipped_rows_are_judged_against_relu_of_the_same_seed(make, clipped, verdict):
    records = table(make, {"relu": 0.9} | dict.fromkeys(table2.TRAINED_AT_7, clipped))
    judged = judge(CLAIMS["P2"], records)
    assert judged.measured.n == 3
    assert judged.measured.value == pytest.approx(clipped + 0.001 - 0.9)
    assert judged.verdict == verdict


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
    records += [make("crelu_0.85_0.9", seed, 0.2) for seed in range(3)]
    records += [make("cst_0.7_0.9", seed, None if seed else 0.85) for seed in range(3)]
    judged = judge(CLAIMS["P4"], records)
    assert judged.measured.value == pytest.approx((0.5 + 1 + 1) / 3)


def test_late_spikes_are_of_the_second_half_of_training(make):
    calm, early, late = (0.1,) * 8, (9.0, 9.0, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1), (0.1,) * 7 + (10.0,)
    small = [make("crelu_0.85_0.5", 0, losses=late), make("crelu_0.85_0.5", 1, losses=calm)]
    other = [make("crelu_0.85_0.7", 0, losses=early), make("crelu_0.85_0.7", 1, losses=early)]
    judged = judge(CLAIMS["P5.spikes"], [make("relu", 0), make("relu", 1), *small, *other])
    assert judged.measured.value == pytest.approx(1.0)  # (2 + 0) / 2 decades


@pytest.mark.parametrize("heading", STUDY.figures)
def test_every_figure_is_drawn_of_runs_that_finished_and_that_diverged(heading, make):
    records = [make("relu", 0), make("relu_tau_0.7", 0, None, norms=((1.0, math.inf, 0.0),)), make("cst_0.85_0.9", 0)]
    views = {r.config.name: RunView(r.outcome, read_metrics(r.files.metrics), {}) for r in records}
    assert STUDY.figures[heading](views).png()
