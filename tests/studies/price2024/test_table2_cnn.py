import math

import pytest

from launch.cli import load_study_config
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


VERDICTS = [
    ("P7.keeps", {"crelu_0.7_0.7": 0.8}, "contradicted"),
    ("P7.keeps", {}, "reproduced"),
    ("P7.loses", dict.fromkeys(table2_cnn.CRELU[1:], 0.85), "reproduced"),
    ("P7.loses", {"crelu_0.85_0.5": 0.85}, "undecided"),
    ("P7.unclipped", {"relu_tau_0.6": 0.5}, "contradicted"),
    ("P7.unclipped", {}, "reproduced"),
    ("P1.cnn", {"relu_tau_0.7": 0.1}, "reproduced"),
    ("P1.cnn", {}, "contradicted"),
    ("P3.cnn", {"cst_0.8_0.9": 0.3, "cst_0.85_0.9": 0.3}, "reproduced"),
    ("P3.cnn", {"cst_0.8_0.9": 0.3}, "contradicted"),
    *((claim, {"relu": 0.1}, "not testable") for claim in CLAIMS),
]


@pytest.mark.parametrize(("claim", "accuracies", "verdict"), VERDICTS)
def test_the_verdict_on_made_up_tables(make, claim, accuracies, verdict):
    rows = load_study_config("price2024/table2_cnn").ROWS["embedded"]
    wobble = lambda row, seed: 0.001 * (seed - 1) * (len(row) % 3 - 1)
    records = [make(r, seed, accuracies.get(r, 0.9) + wobble(r, seed)) for r in rows for seed in range(3)]
    assert judge(CLAIMS[claim], records).verdict == verdict


def test_training_in_every_cell_is_judged_by_the_worst(make):
    rows = {"relu": 0.9} | dict.fromkeys(table2_cnn.CRELU, 0.88) | {"crelu_0.85_0.5": 0.75}
    records = [make(row, seed, value) for row, value in rows.items() for seed in range(3)]
    judged = judge(CLAIMS["P7"], records)
    assert judged.measured.value == pytest.approx(-0.15)
    assert judged.verdict == "contradicted"


@pytest.mark.parametrize("heading", STUDY.figures)
def test_every_figure_is_drawn_of_runs_that_finished_and_that_diverged(heading, make):
    records = [make("relu", 0), make("relu_tau_0.7", 0, None, norms=((1.0, math.inf, 0.0),)), make("cst_0.85_0.9", 0)]
    views = {r.config.name: RunView(r.outcome, read_metrics(r.files.metrics), {}) for r in records}
    assert STUDY.figures[heading](views).png()
