import dataclasses
import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
import types

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from sparsity import recipes
from sparsity.checkpoint import Checkpoints
from sparsity.config import ConfigError, config_hash, differences, to_dict
from sparsity.evals import EVALS, TASKS
from sparsity.layers.sparsify import HISTOGRAM_EDGES
from sparsity.ops.noise import Gaussian
from sparsity.ops.sparsifiers import Relu
from sparsity.run import (
    VALIDATION,
    Engine,
    Outcome,
    Workdir,
    WorkdirError,
    directory_name,
    evaluate,
    last_state,
    run,
    run_config,
    smoke,
    with_evals,
)
from sparsity.studies import report
from sparsity.train.guard import Preempted
from sparsity.writer import Progress, read_metrics

SPARSIFIER = "model.mlp.sparsifier"
WITHOUT_ERROR = [["units", kind] for kind in ("above_0", "spread", "entropy", "flat")]
NOT_OF_A_CLASSIFIER = (
    *("reconstruction", "language", "receptive_fields"),
    *("exemplars", "noise_covariance", "noise_terms", "thresholds", "quantiles"),
)


class Quiet(Progress):
    def __init__(self):
        super().__init__(io.StringIO())


def _digest(workdir):
    """sha256 over the final parameters and optimizer state, and the step."""
    files = Workdir(workdir)
    with Checkpoints(files.checkpoints) as checkpoints:
        state = Engine(files.saved_config()).restore(checkpoints)
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(jax.device_get(state)):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


def _network_measures(outcome):
    return {m.name: m for m in outcome.measures if m.name not in ("steps_per_second", "peak_memory_gib")}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished tiny run, shared by the tests that only look at one."""
    config = recipes.vit_digits()
    config.name, config.steps, config.batch, config.mesh.data = "tiny", 6, 32, 1
    config.model.d_model, config.model.layers, config.model.heads, config.model.mlp.d_ff = 16, 2, 2, 32
    config.every.record, config.every.eval, config.every.checkpoint, config.every.speed = 3, 3, 2, 2
    config.evals.names = tuple(name for name in EVALS if name not in NOT_OF_A_CLASSIFIER)
    config.evals.during = ("calibration",)
    workdir = tmp_path_factory.mktemp("finished") / "w"
    return config, workdir, run(run_config(config), workdir, Quiet())


def test_evaluators_of_the_validation_split_may_run_during_training_too(finished):
    _, workdir, _ = finished
    lines = [line for line in read_metrics(workdir / "metrics.jsonl") if line["kind"] == "validation"]
    assert len(lines) >= 2
    for line in lines:
        assert {"accuracy", "nonzero.mean", "dead.mean", "ece", "ece_adaptive", "brier"} <= line.keys()


DEEP = {
    "deep_mlp": {"width": 16, "depth": 5, "sparsifier": {"name": "clipped_relu", "sparsity": 0.7, "slope": 0.6}},
    "deep_cnn": {"channels": 4, "depth": 3, "sparsifier": {"name": "soft_threshold", "sparsity": 0.5}},
}


@pytest.mark.parametrize("name", DEEP)
def test_a_deep_network_is_trained_evaluated_and_resumed_like_any_other(name, tiny_config, tmp_path):
    config = tiny_config
    config.model = ConfigDict({"name": name} | DEEP[name])
    config.optimizer = ConfigDict({"learning_rate": 1e-2, "rule": {"name": "sgd"}, "grad_clip": None})
    config.steps = 3
    outcome = run(run_config(config), tmp_path, Quiet())
    found = _network_measures(outcome)
    layers = Workdir(tmp_path).saved_config().model.layers()
    assert [m for m in found if m.startswith("nonzero.")] == ["nonzero.mean", *(f"nonzero.{n}" for n in layers)]
    assert found["flops.model.sparse"].value < found["flops.model.dense"].value
    assert list(read_metrics(tmp_path / "metrics.jsonl")[1]["layers"]) == list(layers)
    config.steps = 4
    assert run(run_config(config), tmp_path, Quiet()).step == 4


def test_a_language_model_is_trained_on_text_evaluated_and_reported(tiny_config, tmp_path):
    config = tiny_config
    noise = {"name": "gaussian", "sigma": 0.5, "schedule": {"name": "removed_at", "step": 1}}
    mlp = {"d_ff": 16, "init": "gpt2", "sparsifier": {"name": "relu"}, "noise": noise}
    config.model = ConfigDict({"name": "gpt2", "d_model": 8, "layers": 1, "heads": 2, "positions": 32, "mlp": mlp})
    config.data = ConfigDict({"name": "text", "length": 32, "stride": 256})
    config.steps, config.every.record, config.every.eval = 2, 1, 1
    config.evals.names = ("language", "sparsity", "neurons", "units", "cost")
    outcome = run(run_config(config), tmp_path, Quiet())
    found = _network_measures(outcome)
    # After one update it knows no more than how often a byte comes, at best: 4 nats; at worst all are as likely.
    assert 4 < found["nll"].value < np.log(256) + 0.01
    assert found["perplexity"].value == pytest.approx(np.exp(found["nll"].value))
    assert 0 <= found["accuracy"].value < 0.25
    assert found["flops.model.sparse"].value < found["flops.model.dense"].value
    examples = len(Workdir(tmp_path).saved_config().data.load("test"))
    assert found["nll"].n == found["nonzero.block_0"].n == examples
    assert f"over the {32 * examples} tokens of n test examples" in found["nll"].definition
    validation = [r for r in read_metrics(tmp_path / "metrics.jsonl") if r["kind"] == "validation"]
    assert [r["step"] for r in validation] == [0, 1]
    assert {"nll", "accuracy", "nonzero.block_0", "dead.mean"} <= validation[-1].keys()
    report.write_run_report(Workdir(tmp_path))
    assert "perplexity" in Workdir(tmp_path).report.read_text()


def test_a_smoke_run_of_a_language_model_needs_no_text(tiny_config, tmp_path):
    mlp = {"d_ff": 64, "sparsifier": {"name": "relu"}}
    model = {"name": "gpt2", "d_model": 64, "layers": 3, "heads": 8, "positions": 16, "mlp": mlp}
    data = {"name": "wikitext", "path": str(tmp_path / "nothing"), "length": 16}
    config = tiny_config.to_dict() | {"model": model, "data": data, "evals": {"names": ("language",)}}
    small = smoke(run_config(config))
    assert run_config(to_dict(small)) == small
    outcome = run(small, tmp_path / "w", Quiet())
    # 256 equally likely tokens cannot be guessed.
    assert _network_measures(outcome)["nll"].value > np.log(256) - 0.1
    with pytest.raises(ConfigError, match=r"^data: no wiki\.train\.raw, wiki\.valid\.raw, wiki\.test\.raw in "):
        run(run_config(config), tmp_path / "real", Quiet())


def test_a_bert_learns_and_is_measured_by_both_of_its_tasks(tmp_path):
    plain = recipes.bert_text()
    plain.model.layers, plain.evals.names = 1, ("language",)
    config = run_config(recipes.with_next_sentence(plain))
    changed = differences(to_dict(run_config(plain)), to_dict(config))
    assert set(changed) == {"name", "model.next_sentence", "data.next_sentence"}
    outcome = run(smoke(config), tmp_path, Quiet())
    found = _network_measures(outcome)
    assert found["next_sentence.nll"].value == pytest.approx(np.log(2), abs=0.05)
    assert found["next_sentence.accuracy"].n == found["nll"].n == 16
    train = [line for line in read_metrics(tmp_path / "metrics.jsonl") if line["kind"] == "train"]
    assert [line["penalty"] for line in train] == pytest.approx([np.log(2)] * 2, abs=0.05)
    assert run_config(to_dict(smoke(config))) == smoke(config)


def test_a_run_finishes_with_every_record_once(finished):
    _, workdir, outcome = finished
    assert (outcome.status, outcome.step, outcome.resumed) == ("finished", 6, False)
    records = read_metrics(workdir / "metrics.jsonl")
    by_kind = {}
    for record in records:
        by_kind.setdefault(record["kind"], []).append(record["step"])
    assert by_kind["train"] == [0, 1, 2, 3, 4, 5]
    assert by_kind["sparsity"] == [0, 3, 5]  # every 3, and the last step
    assert by_kind["validation"] == [0, 3]
    validated = next(r for r in records if r["kind"] == "validation")
    assert {m for m in validated if m.startswith("dead.")} == {"dead.mean", "dead.block_0", "dead.block_1"}
    first = next(r for r in records if r["kind"] == "sparsity")
    assert set(first["layers"]) == {"block_0", "block_1"}
    for layer in first["layers"].values():
        assert 0.3 < layer["nonzero"] < 0.7  # near one half at initialisation
        assert layer["n"] == 32
        assert sum(layer["histogram"]) == 32 * 4 * 32  # examples x tokens x units
        inner, width = np.array(layer["histogram"][1:-1]), HISTOGRAM_EDGES[1] - HISTOGRAM_EDGES[0]
        assert inner.sum() == 32 * 4 * 32  # no tails, so that the bins' centres are half a bin off at most
        assert layer["mean"] == pytest.approx(inner @ (HISTOGRAM_EDGES[:-1] + width / 2) / inner.sum(), abs=width / 2)
        assert layer["mean"] ** 2 < layer["q"]


def test_every_measure_has_a_definition_and_an_error_or_is_exact(finished):
    _, _, outcome = finished
    exact = {"flops.second_layer.dense", "flops.model.dense", "parameters", "peak_memory_gib"}
    for m in outcome.measures:
        assert m.definition
        assert m.n >= 1
        # One window of a run this short has no error, nor have shares whose squares are not summed.
        if m.name != "steps_per_second" and m.name.split(".")[:2] not in WITHOUT_ERROR:
            assert (m.se is None) == (m.name in exact), m.name


def test_a_finished_run_says_so_and_changes_nothing(finished):
    config, workdir, outcome = finished
    before = {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()}
    again = run(run_config(config), workdir, Quiet())
    assert again.resumed
    assert _network_measures(again) == _network_measures(outcome)
    assert {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()} == before


def test_evaluating_the_checkpoint_gives_the_recorded_numbers_bit_for_bit(finished):
    config, workdir, outcome = finished
    files = Workdir(workdir)
    engine = Engine(files.saved_config())
    with Checkpoints(files.checkpoints) as checkpoints:
        state = engine.restore(checkpoints)
    result = evaluate(engine.subject(state, "test"), tuple(config.evals.names))
    assert {m.name: m for m in result.measures} == _network_measures(outcome)
    assert json.loads(json.dumps(result.arrays)) == json.loads(json.dumps(outcome.arrays))


def test_the_same_config_gives_the_same_parameters_and_another_seed_others(finished, tmp_path):
    config, workdir, _ = finished
    run(run_config(config), tmp_path / "same", Quiet())
    assert _digest(tmp_path / "same") == _digest(workdir)
    other = config.copy_and_resolve_references()
    other.seed = 1
    run(run_config(other), tmp_path / "other", Quiet())
    assert _digest(tmp_path / "other") != _digest(workdir)


def test_a_stopped_run_resumes_to_the_uninterrupted_result(finished, tmp_path):
    config, workdir, outcome = finished

    class StopAt3(Quiet):
        def update(self, done):
            if done == 3:
                os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Preempted):
        run(run_config(config), tmp_path / "w", StopAt3())
    assert Workdir(tmp_path / "w").read_outcome() is None
    resumed = run(run_config(config), tmp_path / "w", Quiet())
    assert _digest(tmp_path / "w") == _digest(workdir)
    assert _network_measures(resumed) == _network_measures(outcome)
    steps = [r["step"] for r in read_metrics(tmp_path / "w" / "metrics.jsonl") if r["kind"] == "train"]
    assert steps == [0, 1, 2, 3, 4, 5]


@pytest.mark.slow
def test_killed_at_random_moments_it_still_ends_in_the_uninterrupted_result(tmp_path):
    """kill -9 three times, once per phase of a short run, then finish."""
    script = (
        "import sys, tests.conftest; from sparsity import recipes; from sparsity.run import run, run_config\n"
        "c = recipes.vit_digits(); c.name = 'k'; c.steps = 60; c.batch = 32; c.mesh.data = 1\n"
        "c.model.d_model, c.model.layers, c.model.heads, c.model.mlp.d_ff = 16, 1, 2, 32\n"
        "c.every.record, c.every.eval, c.every.checkpoint = 10, 20, 5; c.evals.names = ('accuracy',)\n"
        "run(run_config(c), sys.argv[1])\n"
    )

    def start(workdir):
        null = subprocess.DEVNULL
        return subprocess.Popen([sys.executable, "-c", script, str(workdir)], stdout=null, stderr=null)

    assert start(tmp_path / "whole").wait(120) == 0
    rng = np.random.default_rng(0)
    for _ in range(3):
        process = start(tmp_path / "killed")
        deadline = time.monotonic() + 120
        want = len(read_metrics(tmp_path / "killed" / "metrics.jsonl")) + int(rng.integers(3, 15))
        while len(read_metrics(tmp_path / "killed" / "metrics.jsonl")) < want and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.kill()
        process.wait()
    assert start(tmp_path / "killed").wait(120) == 0
    assert _digest(tmp_path / "killed") == _digest(tmp_path / "whole")
    steps = [r["step"] for r in read_metrics(tmp_path / "killed" / "metrics.jsonl") if r["kind"] == "train"]
    assert steps == list(range(60))


def test_divergence_is_recorded_terminal_and_leaves_a_good_checkpoint(tmp_path, tiny_config):
    tiny_config.steps = 60
    tiny_config.optimizer.learning_rate = 1e30
    tiny_config.optimizer.schedule = {"name": "constant", "warmup": 0}
    outcome = run(run_config(tiny_config), tmp_path / "w", Quiet())
    assert outcome.status == "diverged"
    last = read_metrics(tmp_path / "w" / "metrics.jsonl")[-1]
    assert (last["kind"], last["step"]) == ("train", outcome.step)
    with Checkpoints(tmp_path / "w" / "checkpoints") as checkpoints:
        assert checkpoints.latest() <= outcome.step
        state = Engine(run_config(tiny_config)).restore(checkpoints)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(jax.device_get(state)))
    again = run(run_config(tiny_config), tmp_path / "w", Quiet())
    assert (again.status, again.step, again.resumed) == ("diverged", outcome.step, True)


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
    assert smoke(then).start == smoke(then.start)


def test_a_run_that_starts_from_one_that_diverged_has_diverged_at_step_0(tiny_config, tmp_path):
    then = run_config(_started(tiny_config))
    first = Workdir(tmp_path / directory_name(then.start))
    first.create()
    first.write_outcome(Outcome("diverged", 1))
    for resumed in (False, True):
        assert run(then, tmp_path / "w", Quiet()) == Outcome("diverged", 0, resumed=resumed)


def test_a_run_cannot_start_from_one_of_other_parameters(tiny_config, tmp_path):
    then = _started(tiny_config)
    then.start.model.widths = (8,)
    message = r"^config\.start: other parameters than here, dense_0/bias: \(8,\), here \(16,\)$"
    with pytest.raises(ConfigError, match=message):
        run(run_config(then), tmp_path, Quiet())
    assert not Workdir(tmp_path).config.exists()


def test_a_workdir_of_another_config_is_refused_with_the_keys(finished):
    config, workdir, _ = finished
    other = config.copy_and_resolve_references()
    other.model.mlp.d_ff, other.seed = 64, 3
    with pytest.raises(WorkdirError) as error:
        run(run_config(other), workdir, Quiet())
    text = str(error.value)
    assert "model.mlp.d_ff: 32 there, 64 asked for" in text
    assert "seed: 0 there, 3 asked for" in text
    assert "\n" not in text


def test_intervals_and_evals_may_change_on_resume_but_steps_only_without_a_horizon(tiny_config, tmp_path):
    run(run_config(tiny_config), tmp_path / "cosine", Quiet())
    tiny_config.every.record, tiny_config.keep = 2, 5
    assert run(run_config(tiny_config), tmp_path / "cosine", Quiet()).resumed
    tiny_config.steps = 8
    with pytest.raises(WorkdirError, match=r"steps: 6 there, 8 asked for"):
        run(run_config(tiny_config), tmp_path / "cosine", Quiet())

    tiny_config.steps = 4
    tiny_config.optimizer.schedule = {"name": "constant", "warmup": 2}
    run(run_config(tiny_config), tmp_path / "constant", Quiet())
    tiny_config.steps = 6
    longer = run(run_config(tiny_config), tmp_path / "constant", Quiet())
    assert (longer.step, longer.resumed) == (6, False)
    assert Workdir(tmp_path / "constant").saved_config().steps == 6
    run(run_config(tiny_config), tmp_path / "at_once", Quiet())
    assert _digest(tmp_path / "constant") == _digest(tmp_path / "at_once")


def test_other_evaluators_on_a_finished_run_evaluate_it_anew_and_train_nothing(tiny_config, tmp_path):
    tiny_config.evals.names = ("accuracy",)
    run(run_config(tiny_config), tmp_path / "w", Quiet())
    digest, metrics = _digest(tmp_path / "w"), (tmp_path / "w" / "metrics.jsonl").read_bytes()
    tiny_config.evals.names = ("accuracy", "calibration")
    again = run(run_config(tiny_config), tmp_path / "w", Quiet())
    assert not again.resumed
    assert "ece" in {m.name for m in again.measures}
    assert Workdir(tmp_path / "w").saved_config().evals.names == ("accuracy", "calibration")
    assert (_digest(tmp_path / "w"), (tmp_path / "w" / "metrics.jsonl").read_bytes()) == (digest, metrics)
    assert run(run_config(tiny_config), tmp_path / "w", Quiet()).resumed


def test_a_run_that_ended_while_we_waited_for_the_claim_is_not_run_again(tiny_config, tmp_path, monkeypatch):
    run(run_config(tiny_config), tmp_path / "w", Quiet())
    real, calls = Workdir.ended, []

    def first_too_early(self, config):
        calls.append(1)
        return None if len(calls) == 1 else real(self, config)

    monkeypatch.setattr(Workdir, "ended", first_too_early)
    assert run(run_config(tiny_config), tmp_path / "w", Quiet()).resumed


def test_choosing_another_sparsifier_by_name_drops_the_settings_of_the_former(tiny_config):
    config = recipes.with_top_k(tiny_config, 4)
    config.model.mlp.sparsifier.name = "relu"
    with pytest.raises(ConfigError, match=r"sparsifier\.\w+: unknown key; there are none"):
        run_config(config)
    chosen = [f"{SPARSIFIER}.name"]
    assert run_config(config, chosen).model.mlp.sparsifier == Relu()
    with pytest.raises(ConfigError, match=r"sparsifier\.k: unknown key"):  # but not one the user set too
        run_config(config, [*chosen, f"{SPARSIFIER}.k"])


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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({SPARSIFIER: {"name": "top_k", "k": 33}}, f"config.{SPARSIFIER}.k: 33 is more than the d_ff 32"),
        ({SPARSIFIER: {"name": "shifted_relu", "tau": -1.0}}, f"config.{SPARSIFIER}.tau: must be at least 0"),
        ({f"{SPARSIFIER}.name": "rel"}, f'config.{SPARSIFIER}.name: unknown name "rel"; did you mean "relu"?'),
        ({"model.heads": 3}, "config.model.heads: 3 does not divide d_model 16"),
        ({"model.patch": 3}, "config.model.patch: 3 does not divide the image's 8x8 pixels"),
        ({"model.pool": "max"}, 'config.model.pool: unknown choice "max"; '),
        ({"evals.names": ("acuracy",)}, 'config.evals.names: unknown evaluator "acuracy"; did you mean "accuracy"?'),
        ({"evals.during": ("calibratio",)}, 'config.evals.during: unknown evaluator "calibratio"; did you mean'),
        ({"evals.during": ("language",)}, "config.evals.during: language scores language, and the model's task is"),
        ({"accumulate": 5}, "config.accumulate: 5 does not divide the batch 32"),
        ({"steps": 0}, "config.steps: must be at least 1"),
        ({"name": "a/b"}, "config.name: letters, digits"),
        ({"data.name": "digit"}, 'config.data.name: unknown name "digit"; did you mean "digits"?'),
        ({"noise": {"name": "gausian", "sigma": 1.0}},
         'config.noise.name: unknown name "gausian"; did you mean "gaussian"?'),
        ({"noise": {"name": "gaussian", "sgma": 1.0}}, 'config.noise.sgma: unknown key; did you mean "sigma"?'),
        ({"noise": {"sigma": 1.0}}, "config.noise: expected a section with a name; valid: gaussian, laplace, "),
        ({"noise": {"name": "gaussian", "sigma": 1.0, "schedule": {"name": "linear_to_zer"}}},
         'config.noise.schedule.name: unknown name "linear_to_zer"; did you mean "linear_to_zero"?'),
        ({"model.mlp.noise": {"name": "poison", "sigma": 1.0}},
         'config.model.mlp.noise.name: unknown name "poison"; did you mean "poisson"?'),
        ({"penalty": {"name": "l_1", "weight": 1.0}}, 'config.penalty.name: unknown name "l_1"; did you mean "l1"?'),
        ({"penalty": {"name": "jacobian", "sigma": 1.0}}, "config.penalty: jacobian is that of an autoencoder"),
        ({"z_loss": 1e-4}, "config.z_loss: must be at least 0, and 0 but for language models, got 0.0001"),
        ({"data": {"name": "photos"}}, "config.data: Photos has no labels, and the model is a classifier"),
        ({"evals.names": ("reconstruction",)},
         "config.evals.names: reconstruction scores reconstruction, and the model's task is classification"),
    ],
)  # fmt: skip
def test_impossible_configs_are_refused_before_anything_is_built(tiny_config, change, message):
    section = tiny_config.to_dict()
    for dotted, value in change.items():
        *parents, key = dotted.split(".")
        node = section
        for parent in parents:
            node = node[parent]
        node[key] = value
    with pytest.raises(ConfigError) as error:
        run_config(section)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_every_top_level_key_mistyped_is_refused_with_the_nearest(tiny_config):
    for key in to_dict(run_config(tiny_config)):
        section = tiny_config.to_dict()
        section[key + "x"] = section.pop(key)
        with pytest.raises(ConfigError, match=rf'config.{key}x: unknown key; did you mean "{key}"\?'):
            run_config(section)


def test_an_outcome_survives_writing_and_reading(tmp_path):
    files = Workdir(tmp_path)
    files.write_outcome(Outcome("diverged", 7))
    assert files.read_outcome() == Outcome("diverged", 7, resumed=True)


def test_a_smoke_run_differs_from_the_real_one_in_size_and_data_alone():
    real = recipes.with_top_k(recipes.vit_digits(), 64)
    real.steps, real.accumulate, real.optimizer.schedule.name, real.mesh.data = 10**6, 4, "linear", 2
    real = run_config(real)
    small = smoke(real)
    changed = {key: new for key, (_, new) in differences(to_dict(real), to_dict(small)).items()}
    assert changed == {
        "name": "vit_digits_top_64_smoke",
        "steps": 2,
        "batch": 32,  # 8 in each of 4 microbatches
        "data.name": "mock",
        "data.shift": None,
        "data.image_shape": [8, 8, 1],
        "data.classes": 10,
        "evals.batch": 8,
        "model.d_model": 16,
        "model.heads": 2,
        "model.layers": 2,
        "model.mlp.d_ff": 32,
        "model.mlp.sparsifier.k": 4,
        **{f"every.{key}": 1 for key in ("record", "eval", "checkpoint", "speed")},
    }
    assert run_config(to_dict(small)) == small


@pytest.mark.parametrize(("data", "model"), [(-1, 1), (3, 1), (1, 3), (-1, 4)])
def test_a_smoke_run_fits_the_mesh_of_the_real_one(data, model, tiny_config):
    tiny_config.mesh.data, tiny_config.mesh.model = data, model
    tiny_config.model.mlp.d_ff, tiny_config.model.heads, tiny_config.model.d_model = 3072, 12, 768
    small = smoke(run_config(tiny_config))
    engine = Engine(small)  # refuses what the devices do not divide
    assert small.batch % engine.mesh.shape["data"] == small.evals.batch % engine.mesh.shape["data"] == 0
    assert engine.mesh.shape["model"] == model


def test_a_smoke_run_on_more_devices_than_there_are_is_refused(tiny_config):
    tiny_config.mesh.data = 64
    with pytest.raises(ConfigError, match=r"^config\.mesh: data 64 x model 1 does not fit 8 devices$"):
        smoke(run_config(tiny_config))


def test_a_real_run_is_not_resumed_from_a_smoke_run(tiny_config, tmp_path):
    config = run_config(tiny_config)
    assert run(smoke(config), tmp_path, Quiet()).step == 2
    with pytest.raises(WorkdirError, match=r"made with another config .*data\.name: 'mock' there, 'digits' asked for"):
        run(config, tmp_path, Quiet())


def test_the_devices_of_an_engine_can_be_given(tiny_config):
    tiny_config.mesh.data = -1
    engine = Engine(run_config(tiny_config), jax.devices()[:2])
    assert engine.mesh.devices.ravel().tolist() == jax.devices()[:2]
    assert {s.mesh for s in jax.tree.leaves(engine.placed)} == {engine.mesh}


def _autoencoder():
    """An autoencoder of seconds, on patches of photographs, with every addition to plain training."""
    return ConfigDict(
        {
            "name": "tiny",
            "steps": 4,
            "batch": 16,
            "accumulate": 2,
            "seed": 0,
            "model": {
                "name": "autoencoder",
                "mlp": {
                    "d_ff": 24,
                    "sparsifier": {"name": "relu"},
                    "init": "torch",
                    "noise": {"name": "gaussian", "sigma": 0.05},
                },
            },
            "data": {"name": "photos", "patch": 4, "count": 70, "contrast": "zero_mean"},
            "noise": {
                "name": "gaussian",
                "sigma": 0.1,
                "schedule": {"name": "linear_to_zero", "start": 2, "length": 4},
            },
            "penalty": {"name": "l1", "weight": 1e-3},
            "optimizer": {
                "learning_rate": 1e-2,
                "rule": {"name": "adamw", "weight_decay": 0.0},
                "schedule": {"name": "constant", "warmup": 0},
                "grad_clip": 1.0,
            },
            "mesh": {"data": 1},
            "every": {"record": 2, "eval": 2, "checkpoint": 2, "speed": 2},
            "evals": {
                "names": ("reconstruction", "sparsity", "neurons", "units", "cost"),
                "batch": 16,
                "noise": True,
            },
        }
    )


@pytest.fixture(scope="module")
def denoised(tmp_path_factory):
    """A finished run of the tiny autoencoder, shared by the tests that only look at one."""
    workdir = tmp_path_factory.mktemp("denoised") / "w"
    return workdir, run(run_config(_autoencoder()), workdir, Quiet())


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
    found = _network_measures(outcome)
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

    config = run_config(_autoencoder())
    with pytest.raises(Preempted):
        run(config, tmp_path / "w", StopAt3())
    resumed = run(config, tmp_path / "w", Quiet())
    assert _digest(tmp_path / "w") == _digest(workdir)
    assert _network_measures(resumed) == _network_measures(outcome)
    assert run(config, tmp_path / "w", Quiet()).resumed
    timeless = lambda path: [r for r in read_metrics(path / "metrics.jsonl") if r["kind"] != "speed"]
    assert timeless(tmp_path / "w") == timeless(workdir)


def test_the_noise_of_a_run_reaches_its_loss_and_its_evaluation(denoised, tmp_path):
    """With the same parameters at step 0, noise makes another loss, and another validation if `evals.noise`."""
    workdir, _ = denoised
    noisy = read_metrics(workdir / "metrics.jsonl")
    first = lambda records, kind: next(r for r in records if r["kind"] == kind)
    config = _autoencoder()
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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"noise": {"name": "gaussian", "sigma": 0.2}}, "noise.sigma: 0.1 there, 0.2 asked for"),
        ({"noise": None}, "noise.name: 'gaussian' there, None asked for"),
        ({"penalty": None}, "penalty.name: 'l1' there, None asked for"),
        ({"penalty": {"name": "l2", "weight": 1e-3}}, "penalty.name: 'l1' there, 'l2' asked for"),
    ],
)
def test_a_workdir_made_with_other_noise_or_another_penalty_is_refused(denoised, change, message):
    workdir, _ = denoised
    with pytest.raises(WorkdirError) as caught:
        run(run_config(_autoencoder().to_dict() | change), workdir, Quiet())
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_whether_evaluations_are_noisy_may_change_on_resume(denoised):
    workdir, _ = denoised
    config = _autoencoder()
    config.evals.noise = False
    Workdir(workdir).refuse_other(run_config(config))


def test_a_smoke_run_of_an_autoencoder_keeps_noise_penalty_and_evaluators(tmp_path):
    config = _autoencoder()
    config.model.mlp.d_ff = 10_000
    real = run_config(config)
    small = smoke(real)
    assert (small.noise, small.penalty, small.accumulate) == (real.noise, real.penalty, 2)
    assert small.model.mlp == dataclasses.replace(real.model.mlp, d_ff=32)
    assert (small.data.image_shape, small.data.classes) == ((4, 4, 1), None)
    outcome = run(small, tmp_path, Quiet())
    assert (outcome.status, outcome.step) == ("finished", 2)
    assert {"mse", "units.rare.hidden"} <= set(_network_measures(outcome))


def test_noise_on_numbers_of_tokens_is_refused(tiny_config):
    config = run_config(tiny_config)
    tokens = {"tokens": jax.ShapeDtypeStruct((5,), np.int32)}
    reads_tokens = types.SimpleNamespace(inputs=("tokens",), task="language", check_input=lambda shape: None)
    changes = {
        "model": reads_tokens,
        "data": types.SimpleNamespace(inputs=tokens, classes=7),
        "evals": dataclasses.replace(config.evals, names=("language",)),
    }
    assert dataclasses.replace(config, **changes).input_shape == (5,)
    with pytest.raises(ValueError, match=r"^noise: the model reads tokens, which takes none; see the MLP's own noise$"):
        dataclasses.replace(config, **changes, noise=Gaussian(0.1))


def test_data_without_what_the_model_reads_is_refused(tiny_config):
    reads_tokens = types.SimpleNamespace(inputs=("tokens",), task="language")
    tiny_config.evals.names = ()
    config = run_config(tiny_config)
    with pytest.raises(ValueError, match=r"^data: Digits has no tokens for the model to read, only image$"):
        dataclasses.replace(config, model=reads_tokens)


@pytest.mark.parametrize("name", ["accuracy", "calibration", "robustness", "language"])
def test_evaluators_that_score_another_task_are_refused_before_anything_is_trained(name):
    config = _autoencoder()
    config.evals.names = ("sparsity", name)
    with pytest.raises(ConfigError, match=rf"^config\.evals\.names: {name} scores .* task is reconstruction$"):
        run_config(config)


def test_every_task_has_an_evaluator_that_scores_it_in_training():
    assert {TASKS[name]: name for name in VALIDATION.values()} == VALIDATION
    assert TASKS.keys() <= EVALS.keys()


def test_configs_of_before_there_was_noise_keep_their_hash():
    """Their workdirs are named after it. The hashes are those of revision cad51f3."""
    config = recipes.vit_digits()
    assert config_hash(run_config(config)) == "3a309afb3b"
    assert config_hash(run_config(recipes.with_top_k(config, 64))) == "fd263a9cc8"
    noisy = config.copy_and_resolve_references()
    noisy.noise = ConfigDict({"name": "gaussian", "sigma": 0.1})
    assert config_hash(run_config(noisy)) != "3a309afb3b"


def test_settings_of_the_evaluation_are_given_as_text(tiny_config):
    config = run_config(tiny_config)
    changed = with_evals(config, {"split": "validation", "rises": "(0.01, 0.05)", "dead_size": "1e-3"})
    assert (changed.evals.split, changed.evals.rises, changed.evals.dead_size) == ("validation", (0.01, 0.05), 1e-3)
    assert dataclasses.replace(changed, evals=config.evals) == config


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("spilt", "test", 'config.evals.spilt: unknown key; did you mean "split"?'),
        ("batch", "0", "config.evals.batch: must be at least 1, got 0"),
        ("names", "('acuracy',)", 'unknown evaluator "acuracy"; did you mean "accuracy"?'),
    ],
)
def test_a_setting_of_the_evaluation_that_cannot_be_is_refused(tiny_config, key, value, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        with_evals(run_config(tiny_config), {key: value})
