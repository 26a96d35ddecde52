"""Training that is killed, stopped and restarted ends as if nothing had happened."""

import os
import re
import signal
import time

import numpy as np
import pytest

from launch import cli
from sparsity.checkpoint import Checkpoints
from sparsity.writer import read_metrics
from tests.run.runs import digest

LATER = ("save", "step", "start")


def command(workdir, steps):
    """A run of `steps` steps, each of milliseconds, that saves every third."""
    settings = {
        "steps": steps,
        "batch": 32,
        "model.d_model": 16,
        "model.layers": 1,
        "model.mlp.d_ff": 32,
        "model.mlp.sparsifier.k": 4,
        "every.checkpoint": 3,
        "every.record": 7,
        "every.eval": 10,
        "evals.names": "('accuracy',)",
    }
    given = [f"--config.{key}={value}" for key, value in settings.items()]
    return ["train", "--config=configs/quickstart.py:top_k", *given, f"--workdir={workdir}"]


def records(workdir):
    """All that was written of training but for its speed, in order."""
    return [r for r in read_metrics(workdir / "metrics.jsonl") if r["kind"] != "speed"]


def wait_for(moment, workdir, rng):
    """Returns at a random time of the start of a process, of its steps, or of one of its saves."""
    metrics, saves = workdir / "metrics.jsonl", workdir / "checkpoints"
    stamp = lambda: metrics.stat().st_mtime_ns if metrics.exists() else 0
    begun = lambda: {(p.name, p.inode()) for p in os.scandir(saves) if "tmp" in p.name} if saves.exists() else set()
    deadline, before, changes, wanted = time.monotonic() + 200, stamp(), 0, int(rng.integers(2, 8))
    left = begun()  # by one that was killed before
    if moment == "start":
        time.sleep(rng.uniform(0, 1))
        return
    while time.monotonic() < deadline:
        if moment == "step":
            before, changes = (now, changes + 1) if (now := stamp()) != before else (before, changes)
            if changes >= wanted:
                return
        elif begun() - left:
            time.sleep(rng.uniform(0, 0.02))
            return
        time.sleep(0.001)
    raise AssertionError(f"no {moment}")


def reached(launch, workdir, moment, rng, steps):
    """The process of a launcher that was started, at a moment."""
    process = launch.start(*command(workdir, steps))
    try:
        wait_for(moment, workdir, rng)
    except AssertionError:
        os.kill(process, signal.SIGKILL)
        launch.wait()
        raise
    return process


def killed(launch, workdir, moment, rng, steps):
    """The exit code of a launcher that is killed at a moment."""
    os.kill(reached(launch, workdir, moment, rng, steps), signal.SIGKILL)
    return launch.wait()[0]


def stopped(launch, workdir, moment, rng, steps):
    """Stops a launcher by SIGTERM: it says at which step, exits with its code, and that step is saved."""
    process = reached(launch, workdir, moment, rng, steps)
    began = time.monotonic()
    os.kill(process, signal.SIGTERM)
    code, _, err = launch.wait()
    assert (code, time.monotonic() - began < 10) == (cli.PREEMPTED, True), err
    step = int(re.search(r"stopped after step (\d+); rerun the same command to resume", err)[1])
    with Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
        assert checkpoints.latest() == step


@pytest.fixture(scope="module")
def whole(launch, tmp_path_factory):
    """whole(steps): digest and records of a run that was left alone."""
    done = {}

    def of(steps):
        if steps not in done:
            workdir = tmp_path_factory.mktemp("whole")
            assert launch(*command(workdir, steps))[0] == cli.DONE
            done[steps] = digest(workdir), records(workdir)
        return done[steps]

    return of


@pytest.mark.parametrize(
    ("steps", "kills"), [(24, 3), pytest.param(150, 25, marks=pytest.mark.slow)], ids=["3 kills", "25 kills"]
)
def test_killed_and_stopped_at_random_moments_it_ends_in_the_uninterrupted_result(
    launch, whole, tmp_path, steps, kills
):
    """The same parameters and optimizer state, to the bit, and every record once."""
    rng = np.random.default_rng(0)
    for n in range(kills):
        assert killed(launch, tmp_path, LATER[n % 3], rng, steps) == -signal.SIGKILL
    stopped(launch, tmp_path, "step", rng, steps)
    code, _, err = launch(*command(tmp_path, steps))
    assert code == cli.DONE, err
    assert digest(tmp_path) == whole(steps)[0]
    assert records(tmp_path) == whole(steps)[1]
    assert [r["step"] for r in records(tmp_path) if r["kind"] == "train"] == list(range(steps))


@pytest.mark.slow
def test_a_supervised_run_is_resumed_when_it_is_killed_and_stopped_by_sigterm(launch, whole, tmp_path):
    rng, steps = np.random.default_rng(1), 150
    process = launch.start(*command(tmp_path, steps), "--restarts=1")
    for number in (signal.SIGKILL, signal.SIGTERM):
        wait_for("step", tmp_path, rng)
        held = int(re.match(r"process (\d+) on ", (tmp_path / "lock").read_text())[1])
        os.kill(held if number == signal.SIGKILL else process, number)
    code, _, err = launch.wait()
    assert code == cli.PREEMPTED, err
    assert re.search(r"^died \(SIGKILL\) at step \d+; run again \(1 of 1 times\)$", err, re.MULTILINE)
    assert launch(*command(tmp_path, steps))[0] == cli.DONE
    assert digest(tmp_path) == whole(steps)[0]
