"""Runs some of whose gradients are not finite."""

import os
import signal

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from sparsity.config import config_hash, to_dict
from sparsity.data.pipeline import train_batches
from sparsity.run import Workdir, execution, last_state, run, run_config
from sparsity.train.guard import Preempted
from sparsity.train.state import TrainState
from sparsity.writer import read_metrics
from tests.run.runs import Quiet, digest

BAD = (1, 4)


@pytest.fixture
def config(tiny_config, monkeypatch):
    """A run of seven steps; the images of steps 1 and 4 hold a NaN."""

    def poisoned(*args, **named):
        *_, start = args
        for step, batch in enumerate(train_batches(*args, **named), start):
            if step in BAD:
                batch = batch | {"image": batch["image"].copy()}
                batch["image"][3] = np.nan
            yield batch

    monkeypatch.setattr(execution, "train_batches", poisoned)
    tiny_config.steps, tiny_config.evals.names = 7, ()
    tiny_config.every.record = tiny_config.every.eval = 100
    tiny_config.model = ConfigDict({"name": "mlp", "widths": (8,), "sparsifier": {"name": "relu"}})
    tiny_config.guard = {"skips": 2}
    return tiny_config


class Heard(Quiet):
    """Remembers what it is told, and has the run stopped when `last` steps are done."""

    def __init__(self, last=None):
        super().__init__()
        self.said, self.last = [], last

    def say(self, text):
        self.said.append(text)

    def update(self, done):
        if done == self.last:
            os.kill(os.getpid(), signal.SIGTERM)


def _train(workdir):
    return [r for r in read_metrics(workdir / "metrics.jsonl") if r["kind"] == "train"]


def test_steps_that_are_not_finite_are_left_out_as_often_as_allowed_stopped_or_not(config, tmp_path):
    config = run_config(config)
    heard = Heard()
    outcome = run(config, tmp_path / "w", heard)
    assert (outcome.status, outcome.step) == ("finished", 7)
    steps = _train(tmp_path / "w")
    assert [r["skipped"] for r in steps] == [0, 1, 1, 1, 2, 2, 2]
    assert [np.isnan(r["loss"]) for r in steps] == [s in BAD for s in range(7)]
    assert [t for t in heard.said if "left out" in t] == [
        f"tiny: step {step} is left out, its loss or gradient is not finite ({n} of 2 times)"
        for step, n in ((1, 1), (4, 2))
    ]
    engine, state = last_state(Workdir(tmp_path / "w"))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(jax.device_get(state)))
    assert (int(state.step), int(state.guard.skipped)) == (7, 2)
    rates = [np.float32(engine.schedule(n)) for n in (0, 1, 1, 2, 3, 3, 4)]  # of as many updates as were made
    assert [r["learning_rate"] for r in steps] == pytest.approx(rates)
    started = engine.state_of(state.params, state.model_state)
    assert jax.tree.structure(started) == jax.tree.structure(engine.abstract)

    with pytest.raises(Preempted):
        run(config, tmp_path / "stopped", Heard(last=3))
    run(config, tmp_path / "stopped", Quiet())
    assert digest(tmp_path / "stopped") == digest(tmp_path / "w")
    same = lambda records: [str(r) for r in records]  # NaN is equal to itself there
    assert same(_train(tmp_path / "stopped")) == same(steps)


def test_one_step_too_many_ends_the_run_with_its_last_good_checkpoint(config, tmp_path):
    config.guard.skips = 1
    outcome = run(run_config(config), tmp_path, Heard())
    assert (outcome.status, outcome.step) == ("diverged", 4)
    assert [r["skipped"] for r in _train(tmp_path)] == [0, 1, 1, 1, 2]
    _, state = last_state(Workdir(tmp_path))
    assert (int(state.step), int(state.guard.skipped)) == (4, 1)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(jax.device_get(state)))
    again = run(run_config(config), tmp_path, Quiet())
    assert (again.status, again.step, again.resumed) == ("diverged", 4, True)


def test_without_a_guard_config_and_state_are_those_of_before_there_was_one(config):
    config = config.copy_and_resolve_references()
    config.guard = {"skips": 0}
    off = to_dict(run_config(config))
    assert "guard" not in off
    assert config_hash(run_config(config)) == config_hash(run_config(off))
    assert type(execution.Engine(run_config(off)).abstract) is TrainState
    config.guard = {"skips": 3, "spikes": {"window": 64}}
    on = to_dict(run_config(config))
    assert on["guard"] == {"skips": 3, "spikes": {"window": 64, "deviations": 6.0}}
    assert run_config(on) == run_config(config)
