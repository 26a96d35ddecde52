import io

import pytest

from sparsity import recipes
from sparsity.config import ConfigError
from sparsity.studies import STUDIES
from sparsity.studies.runner import expand, run_study
from sparsity.writer import Progress


@pytest.fixture
def sweep(tiny_config):
    top = recipes.with_top_k(tiny_config, 4)
    names = ("accuracy", "calibration", "robustness", "sparsity", "neurons", "cost")
    tiny_config.evals.names = top.evals.names = names
    return lambda scale: [tiny_config, top]


def test_a_study_runs_everything_once_and_then_says_finished(tmp_path, sweep):
    first = run_study(STUDIES["quickstart"], sweep, "embedded", tmp_path, Progress(io.StringIO()))
    runs = sorted(p.name.rsplit("-", 1)[0] for p in (tmp_path / "runs").iterdir())
    assert runs == ["tiny", "tiny_top_4"]
    page = first.report.read_text()
    assert first.report == tmp_path / "quickstart" / "report" / "index.html"
    assert page.count("<svg") == 5
    for word in ("tiny_top_4", "expected calibration error", "n = 358", "robustness.shot.5", "nonzero.block_1"):
        assert word in page
    assert "one seed each" in first.text
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    again = run_study(STUDIES["quickstart"], sweep, "embedded", tmp_path, Progress(io.StringIO()))
    assert "finished already" in again.text
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()} == before


def test_a_diverged_run_is_a_result(tmp_path, sweep):
    def half_diverging(scale):
        relu, top = sweep(scale)
        relu.optimizer.learning_rate = 1e30
        relu.optimizer.schedule = {"name": "constant", "warmup": 0}
        return [relu, top]

    results = run_study(STUDIES["quickstart"], half_diverging, "embedded", tmp_path, Progress(io.StringIO()))
    assert "tiny: diverged at step" in results.text
    assert "diverged(" in results.report.read_text()


def test_two_runs_of_one_name_are_refused(tiny_config):
    with pytest.raises(ConfigError, match="two runs one name"):
        expand(lambda scale: [tiny_config, tiny_config], "embedded")


def test_every_config_is_checked_before_the_first_run(tiny_config):
    bad = tiny_config.copy_and_resolve_references()
    bad.name, bad.model.heads = "bad", 3
    with pytest.raises(ConfigError, match="heads"):
        expand(lambda scale: [tiny_config, bad], "embedded")
