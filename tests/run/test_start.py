"""Runs that start from where another one ends."""

import shutil

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from sparsity.checkpoint import Checkpoints
from sparsity.config import ConfigError
from sparsity.run import Engine, Outcome, Workdir, directory_name, last_state, run, run_config, smoke
from tests.run.runs import Quiet, network_measures


def _started(config):
    """A run of two steps, and one that goes on with another activation and another optimizer from where it ends."""
    config.steps, config.evals.names = 2, ("accuracy",)
    config.model = ConfigDict({"name": "mlp", "widths": (16,), "sparsifier": {"name": "silu"}})
    then = config.copy_and_resolve_references()
    then.name, then.start, then.steps, then.model.sparsifier.name = "then", config, 1, "relu"
    then.optimizer.rule = ConfigDict({"name": "sgd", "momentum": 0.9})
    return then


def test_a_run_starts_from_the_last_parameters_of_another_and_runs_that_first(tiny_config, tmp_path):
    then = run_config(_started(tiny_config))
    outcome = run(then, tmp_path / "w", Quiet())
    assert (outcome.status, outcome.step) == ("finished", 1)
    first = Workdir(tmp_path / directory_name(then.start))
    assert (first.saved_config(), first.read_outcome().step) == (then.start, 2)
    _, last = last_state(first)
    with Checkpoints(tmp_path / "w" / "checkpoints") as checkpoints:
        state = Engine(then).restore(checkpoints, 0)
    jax.tree.map(np.testing.assert_array_equal, state.params, last.params)
    assert (int(state.step), int(last.step)) == (0, 2)
    assert not any(np.any(x) for x in jax.tree.leaves(state.opt_state))
    again = run(then, tmp_path / "w", Quiet())
    assert (again.resumed, again.measures) == (True, outcome.measures)
    assert Workdir(tmp_path / "w").saved_config() == then
    # Killed after its last checkpoint, and the run that it started from is gone: it is not needed any more.
    shutil.rmtree(first.path)
    (tmp_path / "w" / "outcome.json").unlink()
    after = run(then, tmp_path / "w", Quiet())
    assert (after.resumed, network_measures(after)) == (False, network_measures(outcome))
    assert not first.path.exists()
    assert smoke(then).start == smoke(then.start)


def test_a_run_that_starts_from_one_that_diverged_has_diverged_at_step_0(tiny_config, tmp_path, monkeypatch):
    then = run_config(_started(tiny_config))
    first = Workdir(tmp_path / directory_name(then.start))
    first.create()
    first.write_outcome(Outcome("diverged", 1))
    (tmp_path / "w").mkdir()
    monkeypatch.chdir(tmp_path / "w")  # whose parent is not that of "."
    for resumed in (False, True):
        assert run(then, ".", Quiet()) == Outcome("diverged", 0, resumed=resumed)


def test_a_run_cannot_start_from_one_of_other_parameters(tiny_config, tmp_path):
    then = _started(tiny_config)
    then.start.model.widths = (8,)
    message = r"^config\.start: other parameters than here, dense_0/bias: \(8,\), here \(16,\)$"
    with pytest.raises(ConfigError, match=message):
        run(run_config(then), tmp_path, Quiet())
    assert not Workdir(tmp_path).config.exists()
