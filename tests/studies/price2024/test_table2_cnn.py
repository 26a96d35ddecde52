import math

import pytest

from sparsity.studies.draw import RunView
from sparsity.studies.judge import judge
from sparsity.studies.price2024 import table2_cnn
from sparsity.writer import read_metrics

pytestmark = pytest.mark.filterwarnings("ignore::sparsity.theory.edge_of_chaos.BifurcationWarning")
STUDY = table2_cnn.TABLE2_CNN
CLAIMS = {c.id: c for c in STUDY.claims}


def test_it_is_held_against_the_paper_s_cnn(make):
    rows = {r["row"]: r for r in table2_cnn.table([make("cst_0.8_0.9", 0, 0.5)])}
    assert rows["cst_0.8_0.9"]["difference"] == pytest.approx(0.5 - 0.31)
    assert rows["relu"]["accuracy, paper"] == 0.70


def test_training_in_every_cell_is_judged_by_the_worst(make):
    rows = {"relu": 0.9, "crelu_0.7_0.7": 0.9, "crelu_0.85_0.7": 0.85, "crelu_0.85_0.9": 0.75}
    records = [make(row, seed, value) for row, value in rows.items() for seed in range(3)]
    judged = judge(CLAIMS["P7"], records)
    assert judged.measured.value == pytest.approx(-0.15)
    assert judged.verdict == "contradicted"


@pytest.mark.parametrize("heading", STUDY.figures)
def test_every_figure_is_drawn_of_runs_that_finished_and_that_diverged(heading, make):
    records = [make("relu", 0), make("relu_tau_0.7", 0, None, norms=((1.0, math.inf, 0.0),)), make("cst_0.85_0.9", 0)]
    views = {r.config.name: RunView(r.outcome, read_metrics(r.files.metrics), {}) for r in records}
    assert STUDY.figures[heading](views).png()
