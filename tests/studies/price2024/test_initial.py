import math

import pytest

from sparsity.studies.draw import RunView
from sparsity.studies.judge import judge
from sparsity.studies.price2024 import initial
from sparsity.writer import read_metrics

pytestmark = pytest.mark.filterwarnings("ignore::sparsity.theory.edge_of_chaos.BifurcationWarning")
STUDY = initial.INITIAL
CLAIMS = {c.id: c for c in STUDY.claims}


def test_leaving_the_fixed_point_is_judged_over_runs(make):
    inside, outside = (1.0, 1.9, 0.6, 1.0), (1.0, 1.0, 2.1, 1.0)
    records = [make(row, seed, q=inside) for row in ("crelu_0.6_0.5", "cst_0.7_0.7") for seed in range(3)]
    records += [make("cst_0.8_0.9", seed, q=outside) for seed in range(3)]
    assert judge(CLAIMS["P9"], records).verdict == "reproduced"
    assert judge(CLAIMS["P9.extra"], records).verdict == "reproduced"
    records += [make("crelu_0.7_0.5", seed, q=(1.0, math.nan, 1.0, 1.0)) for seed in range(3)]
    assert judge(CLAIMS["P9"], records).measured.value == pytest.approx(3 / 9)  # NaN does not stay


@pytest.mark.parametrize("heading", STUDY.figures)
def test_every_figure_is_drawn_of_runs_that_finished_and_that_diverged(heading, make):
    records = [make("relu", 0), make("relu_tau_0.7", 0, None, norms=((1.0, math.inf, 0.0),)), make("cst_0.85_0.9", 0)]
    views = {r.config.name: RunView(r.outcome, read_metrics(r.files.metrics), {}) for r in records}
    assert STUDY.figures[heading](views).png()
