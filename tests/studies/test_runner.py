import csv
import io

import jax
import pytest

from sparsity import recipes
from sparsity.config import ConfigError
from sparsity.run import Engine, Outcome, Workdir, directory_name
from sparsity.studies import STUDIES, runner
from sparsity.studies.runner import Part, expand, plan, plan_of_run, run_study
from sparsity.writer import Progress


@pytest.fixture
def sweep(tiny_config):
    tiny_config.model.layers, tiny_config.evals.names = 1, ("accuracy", "sparsity", "cost")
    top = recipes.with_top_k(tiny_config, 4)
    return lambda scale: [tiny_config, top]


def test_a_study_runs_everything_once_and_then_says_finished(tmp_path, sweep):
    for config in sweep("embedded"):
        config.model.layers = 2
        config.evals.names = ("accuracy", "calibration", "robustness", "sparsity", "neurons", "cost")
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
    views = runner.views(sweep("embedded"), tmp_path, Progress(io.StringIO()))  # a notebook's: the runs are there
    assert list(views) == ["tiny", "tiny_top_4"]
    assert all(view.outcome.resumed and view.records("sparsity") for view in views.values())
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()} == before
    records = next(tmp_path.glob("runs/tiny_top_4-*/metrics.jsonl"))
    records.write_bytes(records.read_bytes()[:500])
    with pytest.raises(ConfigError, match=rf"^{records}: has no record of the run's last step, 5: it was cut short;"):
        run_study(STUDIES["quickstart"], sweep, "embedded", tmp_path, Progress(io.StringIO()))


def test_the_time_left_is_that_of_the_runs_still_to_do(monkeypatch):
    now = iter([0.0, 120.0, 121.0, 241.0])
    monkeypatch.setattr(runner.time, "monotonic", lambda: next(now))
    clock = runner._Clock([True, False, True, True, True])
    assert clock.left(0) == ""
    clock.done(0)  # two minutes
    assert clock.left(1) == clock.left(2) == " (about 6 min left)"
    clock.done(1)  # it was there already
    clock.done(2)
    assert clock.left(3) == " (about 4 min left)"


def test_another_sweep_makes_another_page(tmp_path, sweep):
    study, quiet = STUDIES["quickstart"], Progress(io.StringIO())
    assert "tiny_top_4" in run_study(study, sweep, "embedded", tmp_path, quiet).report.read_text()
    fewer = run_study(study, lambda scale: sweep(scale)[:1], "embedded", tmp_path, quiet)
    assert "finished already" not in fewer.text
    assert "tiny_top_4" not in fewer.report.read_text()


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


def test_a_part_runs_its_runs_and_writes_no_results(tmp_path, sweep):
    quiet = Progress(io.StringIO())
    study = STUDIES["quickstart"]
    part = run_study(study, sweep, "embedded", tmp_path, quiet, Part.parse([], "1/2"))
    assert [p.name.rsplit("-", 1)[0] for p in (tmp_path / "runs").iterdir()] == ["tiny_top_4"]
    assert part.report is None
    assert not (tmp_path / "quickstart").exists()
    run_study(study, sweep, "embedded", tmp_path, quiet, Part.parse(["model.mlp.sparsifier.name=relu"], "0/1"))
    assert not (tmp_path / "quickstart").exists()
    whole = run_study(study, sweep, "embedded", tmp_path, quiet)  # nothing left to run, all to write
    names = {str(p.relative_to(tmp_path / "quickstart")) for p in (tmp_path / "quickstart").rglob("*") if p.is_file()}
    assert names == {"results.csv", "figure.png", "figure.svg", "claims.json", "study.json", "report/index.html"}
    assert whole.report.exists()
    with open(tmp_path / "quickstart" / "results.csv") as file:
        rows = list(csv.DictReader(file))
    assert {r["run"] for r in rows} == {"tiny", "tiny_top_4"}
    (row,) = [r for r in rows if r["run"] == "tiny_top_4" and r["measure"] == "nonzero.mean"]
    assert 0 < float(row["value"]) <= 4 / 32  # k of d_ff


def test_runs_that_start_from_one_another_are_in_one_part(tiny_config):
    def run_of(seed, *arms):
        config = tiny_config.copy_and_resolve_references()
        config.name, config.seed = "_".join([f"seed{seed}", *arms]), seed
        if arms:
            config.start = run_of(seed, *arms[:-1])
        return config

    arms = ((), ("a",), ("b",), ("a", "c"))  # c starts where a ends
    configs = expand(lambda scale: [run_of(seed, *arm) for arm in arms for seed in range(3)], "embedded")
    parts = [Part.parse([], f"{i}/2").of(configs) for i in range(2)]
    assert [{c.seed for c in part} for part in parts] == [{0, 2}, {1}]
    assert sum(map(len, parts)) == len(configs)


def test_a_part_that_matches_nothing_is_refused(tmp_path, sweep):
    configs = expand(sweep, "embedded")
    for only, shard, message in (
        (["model.d_modl=16"], "0/1", 'no run has the key "model.d_modl"; did you mean "model.d_model"?'),
        (["model.d_model=17"], "0/1", "no run has model.d_model=17"),
        (["model.d_model"], "0/1", "'model.d_model' is not key=value"),
        ([], "2/2", "expected i/n with i from 0 to n - 1, got '2/2'"),
        ([], "half", "expected i/n"),
    ):
        with pytest.raises(ConfigError) as error:
            Part.parse(only, shard).of(configs)
        assert message in str(error.value)


def test_the_plan_counts_and_runs_nothing(tmp_path, sweep):
    configs = expand(sweep, "embedded")
    lines = plan(configs, tmp_path).splitlines()
    assert len(lines) == 3
    state, _ = Engine(configs[0]).new_state()
    parameters = sum(p.size for p in jax.tree.leaves(state.params))
    forward = configs[0].model.flops((8, 8, 1), 10) * 4  # per token, 4 tokens
    assert f"{parameters:,}" in lines[1]
    assert f"{3 * forward * 32 * 6:.3g}" in lines[1]
    assert lines[1].endswith("to do")
    assert lines[1].split()[-4] == f"{sum(x.nbytes for x in jax.tree.leaves(state)) / 2**20:.1f}"
    assert not any(tmp_path.iterdir())


def test_the_plan_of_a_run_has_those_that_it_starts_from(tmp_path, sweep):
    first, then = sweep("embedded")
    then.start = first
    then = expand(lambda scale: [then], "embedded")[0]
    beside = tmp_path / directory_name(then.start)
    beside.mkdir()
    Workdir(beside).write_outcome(Outcome("diverged", 1))
    _, *rows, where = plan_of_run(then, tmp_path / "w").splitlines()
    assert [(row.split()[0], row.split("MiB")[1].strip()) for row in rows] == [
        ("tiny", "diverged"),
        ("tiny_top_4", "to do"),
    ]
    assert where == f"starts from: {beside}"
    assert not (tmp_path / "w").exists()
