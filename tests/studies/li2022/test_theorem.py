import io

import numpy as np
import pytest

from sparsity.studies.judge import judge
from sparsity.studies.li2022 import theorem
from sparsity.studies.runner import run_study
from sparsity.writer import Progress

CLAIMS = {c.id: c for c in theorem.THEOREM.claims}


@pytest.fixture(scope="module", autouse=True)
def small():
    """Fewer examples and networks: seconds."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"EXAMPLES": 16, "SEEDS": 3, "STEPS": 30}.items():
            patch.setattr(theorem, name, value)
        for cached in (theorem.measured, theorem.first_steps):
            cached.cache_clear()
        yield
    for cached in (theorem.measured, theorem.first_steps):
        cached.cache_clear()


def test_the_closed_forms_are_what_is_measured():
    for row in theorem.table():
        # A network's own last layers are 400 draws; their spread is what the standard error over networks has too.
        assert row["measured"] == pytest.approx(row["exact"], rel=0.15), row
    rows = {(row["loss"], row["weights"]): row for row in theorem.table()}
    assert rows["squared error", 1.0]["exact"] == rows["squared error", 1.0]["leading"]
    small, large = rows["cross-entropy", 0.1], rows["cross-entropy", 3.0]
    assert small["exact"] == pytest.approx(small["leading"], rel=0.01)
    assert large["exact"] < 0.8 * large["leading"]


def test_a_network_is_measured_as_finite_differences_say():
    """sum p dl/dp is the derivative of the loss with all activations scaled together."""
    x, y, w = theorem._network(0)
    v = np.random.default_rng(5).normal(0, 0.1, (theorem.UNITS, theorem.CLASSES))
    p = np.maximum(x @ w, 0)
    loss = lambda a: float(np.mean([np.log(np.exp(f).sum()) - f @ t for f, t in zip(a * p @ v, y, strict=True)]))
    numeric = (loss(1 + 1e-6) - loss(1 - 1e-6)) / 2e-6
    gradient = theorem._slope("ce", p @ v, y) @ v.T * (p > 0)
    assert (p * gradient).sum(1).mean() == pytest.approx(numeric, rel=1e-6)


def test_a_gradient_of_the_other_sign_contradicts(monkeypatch):
    monkeypatch.setattr(theorem, "measured", lambda loss, scale, seed: (-1.0 - 0.1 * seed, 1.0, 1.0, 0.0))
    verdicts = {id: judge(claim, []).verdict for id, claim in CLAIMS.items()}
    assert verdicts == dict.fromkeys(CLAIMS, "contradicted")


def test_training_ends_the_positive_sign():
    steps = theorem.first_steps(0)
    assert steps.shape == (30,)
    assert theorem.positive_steps(0) < 30
    assert steps[-1] < 0  # logits have grown towards the labels


def test_figures_and_the_page_are_made_without_runs(tmp_path):
    found = run_study(theorem.THEOREM, lambda scale: [], "embedded", tmp_path, Progress(io.StringIO()))
    assert found.report.exists()
    assert "Training by SGD, cross-entropy's gradient stays positive for" in found.text
    for figure in theorem.THEOREM.figures.values():
        lines = [line for axis in figure({}).figure.axes for line in axis.lines]
        assert all(np.isfinite(np.asarray(line.get_ydata(), float)).all() for line in lines)
