import math

import pytest

from sparsity.studies.draw import RunView
from sparsity.studies.price2024 import depth100
from sparsity.writer import read_metrics

pytestmark = pytest.mark.filterwarnings("ignore::sparsity.theory.edge_of_chaos.BifurcationWarning")
STUDY = depth100.DEPTH100


def test_the_series_of_a_run_has_the_norm_of_every_layer_and_step(make):
    first, second = depth100.series([make("relu", 0, norms=((1.0, 2.0, 3.0), (4.0, 5.0, 6.0)), zeros=0.25)])
    assert [first[f"g{i}"] for i in (2, 3, 4)] == [1.0, 2.0, 3.0]
    assert (second["step"], second["g4"], second["zeros"], second["loss"]) == (1, 6.0, 0.25, 1.0)


@pytest.mark.parametrize("heading", STUDY.figures)
def test_every_figure_is_drawn_of_runs_that_finished_and_that_diverged(heading, make):
    records = [make("relu", 0), make("relu_tau_0.7", 0, None, norms=((1.0, math.inf, 0.0),)), make("cst_0.85_0.9", 0)]
    views = {r.config.name: RunView(r.outcome, read_metrics(r.files.metrics), {}) for r in records}
    assert STUDY.figures[heading](views).png()
