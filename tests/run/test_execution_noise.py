"""Runs of an autoencoder, with noise, a penalty and microbatches: every addition to plain training."""

import dataclasses
import os
import signal

import numpy as np
import pytest

from sparsity.run import run, run_config, smoke
from sparsity.train.guard import Preempted
from sparsity.writer import read_metrics
from tests.run.runs import Quiet, autoencoder, digest, network_measures


@pytest.fixture(scope="module")
def denoised(tmp_path_factory):
    """A finished run of the tiny autoencoder, shared by the tests that only look at one."""
    workdir = tmp_path_factory.mktemp("denoised") / "w"
    return workdir, run(run_config(autoencoder()), workdir, Quiet())


def test_an_autoencoder_with_noise_and_a_penalty_finishes_with_its_records(denoised):
    workdir, outcome = denoised
    assert (outcome.status, outcome.step) == ("finished", 4)
    by_kind = {}
    for record in read_metrics(workdir / "metrics.jsonl"):
        by_kind.setdefault(record["kind"], []).append(record)
    assert [r["step"] for r in by_kind["train"]] == [0, 1, 2, 3]
    for record in by_kind["train"]:
        assert set(record) == {"kind", "step", "loss", "penalty", "grad_norm", "learning_rate"}
        assert record["penalty"] > 0
    for kind in ("sparsity", "gradients", "weights"):
        assert [r["step"] for r in by_kind[kind]] == [0, 2, 3]
    (layer,) = by_kind["sparsity"][0]["layers"].values()
    assert layer["n"] == 16
    assert layer["nonzero"] >= layer["above"][0] >= layer["above"][1] > 0
    modules = by_kind["weights"][0]["modules"]
    assert set(modules) == set(by_kind["gradients"][0]["norms"]) == {"hidden/wi", "hidden/wo"}
    assert all(np.isfinite(list(one.values())).all() and len(one) == 4 for one in modules.values())
    # U(+-1 / sqrt(16)) has the variance 1 / 48: 16 weights of a unit have a norm of about sqrt(1 / 3) = 0.58.
    assert modules["hidden/wi"]["norm_mean"] == pytest.approx(3**-0.5, rel=0.1)
    assert {"mse", "explained", "nonzero.mean", "dead.mean"} <= set(by_kind["validation"][0])


def test_an_autoencoder_is_measured_by_what_it_was_asked_for(denoised):
    _, outcome = denoised
    found = network_measures(outcome)
    assert {"mse", "explained", "nonzero.hidden", "units.silent.hidden", "units.z_skewness.hidden"} <= set(found)
    assert found["mse"].n == 20  # two 7ths of 70
    assert found["units.density.hidden"].n == 70  # one epoch of the training split
    assert all(m.definition and np.isfinite(m.value) for m in found.values())
    assert "accuracy" not in found
    assert np.shape(outcome.arrays["examples"]["outputs"]) == (10, 4, 4, 1)


def test_a_stopped_noisy_run_resumes_to_the_uninterrupted_result(denoised, tmp_path):
    workdir, outcome = denoised

    class StopAt3(Quiet):
        def update(self, done):
            if done == 3:
                os.kill(os.getpid(), signal.SIGTERM)

    config = run_config(autoencoder())
    with pytest.raises(Preempted):
        run(config, tmp_path / "w", StopAt3())
    resumed = run(config, tmp_path / "w", Quiet())
    assert digest(tmp_path / "w") == digest(workdir)
    assert network_measures(resumed) == network_measures(outcome)
    assert run(config, tmp_path / "w", Quiet()).resumed
    timeless = lambda path: [r for r in read_metrics(path / "metrics.jsonl") if r["kind"] != "speed"]
    assert timeless(tmp_path / "w") == timeless(workdir)


def test_the_noise_of_a_run_reaches_its_loss_and_its_evaluation(denoised, tmp_path):
    """With the same parameters at step 0, noise makes another loss, and another validation if `evals.noise`."""
    workdir, _ = denoised
    noisy = read_metrics(workdir / "metrics.jsonl")
    first = lambda records, kind: next(r for r in records if r["kind"] == kind)
    config = autoencoder()
    config.steps, config.evals.noise, config.evals.names = 1, False, ("reconstruction",)
    run(run_config(config), tmp_path / "clean_eval", Quiet())
    clean_eval = read_metrics(tmp_path / "clean_eval" / "metrics.jsonl")
    assert first(clean_eval, "train") == first(noisy, "train")
    assert first(clean_eval, "validation")["mse"] != first(noisy, "validation")["mse"]
    config.noise, config.model.mlp.noise = None, None
    run(run_config(config), tmp_path / "clean", Quiet())
    clean = read_metrics(tmp_path / "clean" / "metrics.jsonl")
    assert first(clean, "train")["loss"] != first(noisy, "train")["loss"]
    assert first(clean, "validation") == first(clean_eval, "validation")


def test_a_smoke_run_of_an_autoencoder_keeps_noise_penalty_and_evaluators(tmp_path):
    config = autoencoder()
    config.model.mlp.d_ff = 10_000
    real = run_config(config)
    small = smoke(real)
    assert (small.noise, small.penalty, small.accumulate) == (real.noise, real.penalty, 2)
    assert small.model.mlp == dataclasses.replace(real.model.mlp, d_ff=32)
    assert (small.data.image_shape, small.data.classes) == ((4, 4, 1), None)
    outcome = run(small, tmp_path, Quiet())
    assert (outcome.status, outcome.step) == ("finished", 2)
    assert {"mse", "units.rare.hidden"} <= set(network_measures(outcome))
