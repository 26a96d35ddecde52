import errno
import os
from pathlib import Path

import pytest

from sparsity.config import to_dict
from sparsity.run import Outcome, Workdir, WorkdirError, run, run_config, smoke
from sparsity.writer import write_json
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
