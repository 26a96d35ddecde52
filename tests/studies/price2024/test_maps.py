import csv
import io

import numpy as np
import pytest

from sparsity.studies import STUDIES
from sparsity.studies.judge import judge
from sparsity.studies.price2024 import maps as price2024
from sparsity.studies.runner import run_study
from sparsity.writer import Progress

MAPS = STUDIES["price2024/maps"]


def test_all_printed_numbers_of_table_2_follow_from_the_theory():
    rows = price2024.table_2()
    assert len(rows) == 33
    assert sum(row["printed"] for row in rows) == 33 + 27 + 33 + 33  # tau, m, V'', V'
    assert all(row["matches"] == row["printed"] for row in rows)
    several = [(r["activation"], r["s"]) for r in rows if ";" in r["fixed_points"]]
    assert several == [("CST_tau_m", 0.8), ("CST_tau_m", 0.85)]


def test_a_printed_number_that_is_off_is_noticed(tmp_path, monkeypatch):
    text = price2024.TABLE_2.read_text().replace("CReLU_tau_m,0.6,0.25,1.22,", "CReLU_tau_m,0.6,0.26,1.22,")
    (tmp_path / "t.csv").write_text(text)
    monkeypatch.setattr(price2024, "TABLE_2", tmp_path / "t.csv")
    effect = price2024.mismatches([])
    assert (effect.value, effect.n) == (1.0, 126)
    assert judge(price2024.CLAIMS[0], []).verdict == "contradicted"


@pytest.mark.parametrize("heading", MAPS.figures)
def test_every_figure_is_drawn_and_has_a_caption(heading):
    drawing = MAPS.figures[heading]({})
    lines = [line for axis in drawing.figure.axes for line in axis.lines]
    assert lines
    assert all(np.isfinite(np.asarray(line.get_ydata(), float)).all() for line in lines)
    assert MAPS.figures[heading].__doc__.startswith("Fig")


def test_the_map_of_a_clip_that_was_solved_for_has_its_slope_and_its_fixed_point():
    edge = price2024.quiet_solve(0.85, 0.7, two_sided=False)
    axis = price2024.variance_map(0.85, edge.m).figure.axes[0]
    lines = {line.get_label(): line for line in axis.lines}
    clipped = next(line for label, line in lines.items() if label.startswith("m = ") and "V' = 0.70" in label)
    unclipped = next(line for label, line in lines.items() if label.startswith("no clip: V' = 1.00"))
    q, v = clipped.get_data()
    assert np.interp(1.0, q, v) == pytest.approx(1, abs=1e-3)  # between points .01 apart
    assert np.interp(3.0, q, v) < 3 < np.interp(3.0, *unclipped.get_data())
    dots = [line.get_xdata() for line in axis.lines if line.get_linestyle() == "None"]
    assert any(np.allclose(x, 1.0) for x in dots)


def test_the_study_needs_no_runs_and_says_when_it_is_finished(tmp_path):
    first = run_study(MAPS, lambda scale: [], "embedded", tmp_path, Progress(io.StringIO()))
    assert "P10: reproduced" in first.text
    with open(tmp_path / "price2024" / "maps" / "results.csv") as file:
        assert len(list(csv.DictReader(file))) == 33
    again = run_study(MAPS, lambda scale: [], "embedded", tmp_path, Progress(io.StringIO()))
    assert "finished already" in again.text
