import errno
import itertools
import json
import os
from pathlib import Path

import pytest

from sparsity.config import to_dict
from sparsity.evals.result import Measure
from sparsity.run import Outcome, Workdir, WorkdirError, run, run_config, smoke
from sparsity.writer import MetricsWriter, write_json
from tests.hostile import JSON, changed, refusal, with_value
from tests.run.runs import Quiet, autoencoder


def test_an_outcome_survives_writing_and_reading(tmp_path):
    files = Workdir(tmp_path)
    files.write_outcome(Outcome("diverged", 7))
    assert files.read_outcome() == Outcome("diverged", 7, resumed=True)


def test_a_workdir_in_use_is_refused_naming_the_process(tmp_path, tiny_config):
    files = Workdir(tmp_path / "w")
    files.create()
    with files.claim(), pytest.raises(WorkdirError, match=rf"is being run by process {os.getpid()} on "):
        run(run_config(tiny_config), tmp_path / "w", Quiet())
    with files.claim():
        pass  # released


def test_an_unwritable_workdir_is_one_line(tmp_path, tiny_config):
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkdirError, match=r"cannot be written \(Not a directory\)"):
        run(run_config(tiny_config), tmp_path / "file" / "w", Quiet())
    with pytest.raises(WorkdirError, match="only local"):
        run(run_config(tiny_config), "gs://bucket/w", Quiet())


def test_a_workdir_that_can_only_be_read_is_one_line_and_stays_as_it_is(tmp_path, tiny_config, monkeypatch):
    files = made_with(run_config(tiny_config), tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.iterdir()}

    def touch(path):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(Path, "touch", touch)  # a mode binds no superuser
    with pytest.raises(WorkdirError, match=r"^workdir .*: cannot be written \(Read-only file system\)$"):
        run(run_config(tiny_config), files.path, Quiet())
    assert {p: p.read_bytes() for p in tmp_path.iterdir()} == before


def made_with(config, path):
    """A workdir as the run of `config` leaves it once it has begun."""
    files = Workdir(path)
    files.create()
    write_json(files.config, to_dict(config))
    return files


def test_a_workdir_of_another_config_is_refused_with_the_keys(tiny_config, tmp_path):
    made_with(run_config(tiny_config), tmp_path)
    tiny_config.model.mlp.d_ff, tiny_config.seed = 64, 3
    with pytest.raises(WorkdirError) as error:
        run(run_config(tiny_config), tmp_path, Quiet())
    text = str(error.value)
    assert "model.mlp.d_ff: 32 there, 64 asked for" in text
    assert "seed: 0 there, 3 asked for" in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"noise": {"name": "gaussian", "sigma": 0.2}}, "noise.sigma: 0.1 there, 0.2 asked for"),
        ({"noise": None}, "noise.name: 'gaussian' there, None asked for"),
        ({"penalty": None}, "penalty.name: 'l1' there, None asked for"),
        ({"penalty": {"name": "l2", "weight": 1e-3}}, "penalty.name: 'l1' there, 'l2' asked for"),
    ],
)
def test_a_workdir_made_with_other_noise_or_another_penalty_is_refused(tmp_path, change, message):
    made_with(run_config(autoencoder()), tmp_path)
    with pytest.raises(WorkdirError) as caught:
        run(run_config(autoencoder().to_dict() | change), tmp_path, Quiet())
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_whether_evaluations_are_noisy_may_change_on_resume(tmp_path):
    config = autoencoder()
    files = made_with(run_config(config), tmp_path)
    config.evals.noise = False
    files.refuse_other(run_config(config))


def test_a_real_run_is_not_resumed_from_a_smoke_run(tiny_config, tmp_path):
    config = run_config(tiny_config)
    made_with(smoke(config), tmp_path)
    with pytest.raises(WorkdirError, match=r"made with another config .*data\.name: 'mock' there, 'digits' asked for"):
        run(config, tmp_path, Quiet())


def test_a_run_that_ended_while_we_waited_for_the_claim_is_not_run_again(tiny_config, tmp_path, monkeypatch):
    config = run_config(tiny_config)
    made_with(config, tmp_path).write_outcome(Outcome("finished", config.steps))
    real, calls = Workdir.ended, []

    def first_too_early(self, config):
        calls.append(1)
        return None if len(calls) == 1 else real(self, config)

    monkeypatch.setattr(Workdir, "ended", first_too_early)
    assert run(config, tmp_path, Quiet()).resumed


OUTCOME = Outcome("finished", 7, (Measure("accuracy", 0.5, 0.1, 9, "share of them"),), {"reliability": {"count": [1]}})


def test_an_outcome_of_anything_is_one_or_refused_with_what_mends_it(tmp_path):
    files, lines = Workdir(tmp_path), []
    files.write_outcome(OUTCOME)
    whole = files.outcome.read_bytes()
    stored = json.loads(whole)

    def read():
        found = files.read_outcome()
        assert (type(found.step), type(found.arrays), found.resumed) == (int, dict, True)
        assert all(isinstance(m, Measure) and str(m) for m in found.measures)

    for key, value in itertools.product([*stored, "more"], JSON):
        files.outcome.write_text(with_value(stored, key, value))
        lines.append(refusal(read))
    for key, value in itertools.product(stored["measures"][0], JSON):
        files.outcome.write_text(with_value(stored, "measures", f"[{with_value(stored['measures'][0], key, value)}]"))
        lines.append(refusal(read))
    for data in changed(whole, 120):
        files.outcome.write_bytes(data)
        lines.append(refusal(read))
    assert sum(line is None for line in lines) < len(lines) / 2
    mend = "delete it, and the run is evaluated anew from its last checkpoint"
    assert all(line.startswith(f"{files.outcome}: ") and line.endswith(mend) for line in lines if line)


def test_a_config_of_anything_is_one_or_refused(tmp_path, tiny_config):
    config = run_config(tiny_config)
    files, lines = made_with(config, tmp_path), []
    whole, stored = files.config.read_bytes(), to_dict(config)
    for text in itertools.chain(
        (with_value(stored, key, value).encode() for key, value in itertools.product([*stored, "start"], JSON)),
        changed(whole, 120),
        (value.encode() for value in JSON),
    ):
        files.config.write_bytes(text)
        lines += [refusal(files.saved_config), refusal(lambda: files.refuse_other(config))]
    assert sum(line is None for line in lines) < len(lines) / 5
    assert all(str(tmp_path) in line for line in lines if line)


def test_checkpoints_without_a_config_are_nobodys(tmp_path, tiny_config):
    files = made_with(run_config(tiny_config), tmp_path)
    (files.checkpoints / "0").mkdir(parents=True)
    files.refuse_other(run_config(tiny_config))
    files.config.unlink()
    with pytest.raises(WorkdirError, match=r"has checkpoints, and no config\.json that says of what; use another"):
        run(run_config(tiny_config), tmp_path, Quiet())
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoints"]


def test_records_that_are_cut_short_are_named(tmp_path):
    files = Workdir(tmp_path)
    assert "cannot be read (No such file or directory)" in refusal(lambda: files.check_records(OUTCOME))
    writer = MetricsWriter(files.metrics)
    for step in range(7):
        writer.write("train", step, loss=1.0)
        writer.write("sparsity", step, layers={})
    writer.close()
    files.check_records(OUTCOME)
    files.check_records(Outcome("diverged", 9))
    whole = files.metrics.read_bytes()
    for size in (0, 40, len(whole) // 2, whole.rindex(b'"train"')):
        files.metrics.write_bytes(whole[:size])
        line = refusal(lambda: files.check_records(OUTCOME))
        assert f"{files.metrics}: has no record of the run's last step, 6: it was cut short" in line
