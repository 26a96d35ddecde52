import math

import pytest

from sparsity.studies.draw import RunView
from sparsity.studies.judge import judge
from sparsity.studies.price2024 import initial
from sparsity.studies.price2024.runs import EXTRA_FIXED_POINTS
from sparsity.writer import read_metrics

pytestmark = pytest.mark.filterwarnings("ignore::sparsity.theory.edge_of_chaos.BifurcationWarning")
STUDY = initial.INITIAL
CLAIMS = {c.id: c for c in STUDY.claims}


def test_rows_of_one_seed_are_one_replicate(make):
    inside, outside = (1.0, 1.9, 0.6, 1.0), (1.0, 1.0, 2.1, 1.0)
    rows = ("crelu_0.6_0.5", "cst_0.7_0.7", "cst_0.7_0.5")
    records = [make(row, seed, q=outside if seed == 0 else inside) for row in rows for seed in range(3)]
    judged = judge(CLAIMS["P9"], records)
    assert (judged.measured.value, judged.measured.n) == (pytest.approx(1 / 3), 3)
    assert judged.verdict == "undecided"  # all that leave share a seed
    broken = [make("crelu_0.7_0.5", seed, q=(1.0, math.nan, 1.0, 1.0)) for seed in range(3)]
    assert judge(CLAIMS["P9"], broken).measured.value == 1.0  # NaN does not stay


def test_divergence_is_against_relu_of_the_same_seed(make):
    records = [make("relu", seed, q=(1.0, 1.0, 1.0, 10.0)) for seed in range(3)]
    records += [make("st_0.5", seed, q=(1.0, 1.0, 1.0, math.inf)) for seed in range(3)]
    records += [make("relu_tau_0.6", seed, q=(1.0, 1.0, 1.0, 1e2 + seed)) for seed in range(3)]
    assert judge(CLAIMS["P9.unclipped"], records).measured.value == pytest.approx((38 + 2) / 2 - 1, abs=0.01)


def test_the_further_fixed_point_is_passed_or_not(make):
    for last, verdict in ((3.0, "reproduced"), (1.3, "contradicted")):
        records = [make(row, seed, q=(1.0, 1.0, 1.0, last + 0.001 * seed + 0.01 * (row == "cst_0.85_0.9")))
                   for row in EXTRA_FIXED_POINTS for seed in range(3)]  # fmt: skip
        assert judge(CLAIMS["P9.extra"], records).verdict == verdict
        for record in records:
            record.files.metrics.unlink()
            record.files.path.rmdir()


@pytest.mark.parametrize("heading", STUDY.figures)
def test_every_figure_is_drawn_of_runs_that_finished_and_that_diverged(heading, make):
    records = [make("relu", 0), make("relu_tau_0.7", 0, None, norms=((1.0, math.inf, 0.0),)), make("cst_0.85_0.9", 0)]
    views = {r.config.name: RunView(r.outcome, read_metrics(r.files.metrics), {}) for r in records}
    assert STUDY.figures[heading](views).png()
