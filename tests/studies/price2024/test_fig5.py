import math

import pytest

from sparsity.studies.draw import RunView
from sparsity.studies.judge import judge
from sparsity.studies.price2024 import fig5
from sparsity.studies.price2024.runs import FLOAT32_END
from sparsity.writer import read_metrics

pytestmark = pytest.mark.filterwarnings("ignore::sparsity.theory.edge_of_chaos.BifurcationWarning")
STUDY = fig5.FIG5
CLAIMS = {c.id: c for c in STUDY.claims}


def test_fig5_takes_norms_that_are_not_finite_for_the_end_of_float32(make):
    steps = ((100.0, 10.0, 1.0), (1e3, 10.0, 1.0), (1e5, math.inf, 1.0))
    (row,) = fig5.table([make("crelu_0.85_0.9", 0, None, norms=steps)])
    assert row["growth, step 1"] == pytest.approx(2.0)
    assert row["largest, step 1"] == pytest.approx(2.0)
    assert row["largest, step 3"] == FLOAT32_END
    assert row["status"] == "diverged"


def test_an_explosion_is_judged_against_the_first_step(make):
    steps = ((2.0, 10.0**0.5, 1.0), (1e3, 10.0, 1.0), (1e6, 1e2, 1.0))
    relu = ((1.0, 1.0, 1.0), (10.0, 1.0, 1.0))
    records = [make("cst_0.85_0.8", seed, norms=steps) for seed in range(3)]
    records += [make("relu", seed, norms=relu) for seed in range(3)]
    assert judge(CLAIMS["P8.b"], records).measured.value == pytest.approx(0.5)
    assert judge(CLAIMS["P8.b15"], records).measured.value == pytest.approx(5.5 - 1.0)  # less ReLU's decade


@pytest.mark.parametrize("heading", STUDY.figures)
def test_every_figure_is_drawn_of_runs_that_finished_and_that_diverged(heading, make):
    records = [make("relu", 0), make("relu_tau_0.7", 0, None, norms=((1.0, math.inf, 0.0),)), make("cst_0.85_0.9", 0)]
    views = {r.config.name: RunView(r.outcome, read_metrics(r.files.metrics), {}) for r in records}
    assert STUDY.figures[heading](views).png()
