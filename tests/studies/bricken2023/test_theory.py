import io

import numpy as np
import pytest

from sparsity.studies import STUDIES
from sparsity.studies.bricken2023 import theory
from sparsity.studies.judge import judge
from sparsity.studies.runner import run_study
from sparsity.writer import Progress

STUDY = STUDIES["bricken2023/theory"]
CLAIMS = {c.id: c for c in STUDY.claims}
HOLD = {"4", "16", "20", "21", "22", "26"}


def test_the_correct_values_are_those_of_the_samples():
    """Each within five standard errors: one in 1.7 million would miss by chance, and the seed is fixed."""
    for row in theory.table():
        assert abs(row["correct"] - row["Monte Carlo"]) < 5 * row["se"], row


def test_which_equations_hold_as_printed():
    numbers = {e.number: CLAIMS[f"Eq. {e.number}"] for e in theory.EQUATIONS if e.number[0].isdigit()}
    verdicts = {number: judge(claim, []).verdict for number, claim in numbers.items()}
    assert verdicts == {number: "reproduced" if number in HOLD else "contradicted" for number in numbers}
    texts = [judge(claim, []).verdict for id, claim in CLAIMS.items() if "text" in id]
    assert texts == ["contradicted"] * 3


@pytest.mark.parametrize(
    ("equation", "printed", "correct"),
    [("25", 0.0726, 0.00736), ("23", 0.179, 0.217), ("text before 21, flips", 0.0026, 0.0808)],
)
def test_the_first_examples_are_those_found_by_others(equation, printed, correct):
    first = next(row for row in theory.table() if row["equation"] == equation)
    assert (first["printed"], first["correct"]) == (pytest.approx(printed, rel=0.02), pytest.approx(correct, rel=0.01))


def test_the_conclusions_hold():
    conclusions = [claim for claim in STUDY.claims if claim.unit != "example"]
    assert len(conclusions) == 4
    assert {judge(claim, []).verdict for claim in conclusions} == {"reproduced"}
    assert {judge(claim, []).measured.n for claim in conclusions} == {100, 200, 201}


def test_an_equation_that_is_off_is_noticed(monkeypatch):
    rows = tuple(row | {"off": 6.0} if row["equation"] == "21" else row for row in theory.table())
    monkeypatch.setattr(theory, "_rows", lambda: rows)
    assert judge(CLAIMS["Eq. 21"], []).verdict == "contradicted"
    assert any(line.startswith("Not 21 ") for line in theory.findings())


@pytest.mark.parametrize("heading", STUDY.figures)
def test_every_figure_is_drawn_and_has_a_caption(heading):
    figure = STUDY.figures[heading]
    lines = [line for axis in figure({}).figure.axes for line in axis.lines]
    assert lines
    assert all(np.isfinite(np.asarray(line.get_ydata(), float)).all() for line in lines)
    assert figure.__doc__.startswith(("Fig", "App"))


def test_the_study_needs_no_runs(tmp_path):
    found = run_study(STUDY, lambda scale: [], "embedded", tmp_path, Progress(io.StringIO()))
    assert "Eq. 25: contradicted" in found.text
    assert found.report.exists()
