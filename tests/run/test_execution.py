import gc
import json
import os
import signal
import sys
import types

import jax
import numpy as np
import pytest

from sparsity import recipes, writer
from sparsity.checkpoint import Checkpoints
from sparsity.evals import EVALS
from sparsity.layers.sparsify import HISTOGRAM_EDGES
from sparsity.run import Engine, Workdir, WorkdirError, evaluate, run, run_config
from sparsity.train.guard import Preempted
from sparsity.writer import read_metrics, scalars
from tests.run.runs import Quiet, digest, network_measures

WITHOUT_ERROR = [["units", kind] for kind in ("above_0", "spread", "entropy", "flat")]
NOT_OF_A_CLASSIFIER = (
    *("reconstruction", "language", "receptive_fields"),
    *("exemplars", "noise_covariance", "noise_terms", "thresholds", "quantiles", "generate", "inference"),
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished tiny run, shared by the tests that only look at one."""
    config = recipes.vit_digits()
    config.name, config.steps, config.batch, config.mesh.data = "tiny", 6, 32, 1
    config.model.d_model, config.model.layers, config.model.heads, config.model.mlp.d_ff = 16, 2, 2, 32
    config.every.record, config.every.eval, config.every.checkpoint, config.every.speed = 3, 3, 2, 2
    config.evals.names = tuple(name for name in EVALS if name not in NOT_OF_A_CLASSIFIER)
    config.evals.during, config.evals.imposed_k = ("calibration",), (8, 32)
    workdir = tmp_path_factory.mktemp("finished") / "w"
    return config, workdir, run(run_config(config), workdir, Quiet())


def test_evaluators_of_the_validation_split_may_run_during_training_too(finished):
    _, workdir, _ = finished
    lines = [line for line in read_metrics(workdir / "metrics.jsonl") if line["kind"] == "validation"]
    assert len(lines) >= 2
    for line in lines:
        assert {"accuracy", "nonzero.mean", "dead.mean", "ece", "ece_adaptive", "brier"} <= line.keys()


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
    assert network_measures(again) == network_measures(outcome)
    assert {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()} == before


def test_evaluating_the_checkpoint_gives_the_recorded_numbers_bit_for_bit(finished):
    config, workdir, outcome = finished
    files = Workdir(workdir)
    engine = Engine(files.saved_config())
    with Checkpoints(files.checkpoints) as checkpoints:
        state = engine.restore(checkpoints)
    result = evaluate(engine.subject(state, "test"), tuple(config.evals.names))
    assert {m.name: m for m in result.measures} == network_measures(outcome)
    assert json.loads(json.dumps(result.arrays)) == json.loads(json.dumps(outcome.arrays))


def test_the_same_config_gives_the_same_parameters_and_another_seed_others(finished, tmp_path):
    config, workdir, _ = finished
    same, other = config.copy_and_resolve_references(), config.copy_and_resolve_references()
    same.evals.names = ()  # they measure what there is
    run(run_config(same), tmp_path / "same", Quiet())
    assert digest(tmp_path / "same") == digest(workdir)
    other.seed = 1
    kernels = [Engine(run_config(c)).new_state()[0].params["embed"]["kernel"] for c in (config, other)]
    assert not np.any(kernels[0] == kernels[1])


class StopAt3(Quiet):
    def update(self, done):
        if done == 3:
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_stopped_run_resumes_to_the_uninterrupted_result_watched_or_not(finished, tmp_path, monkeypatch):
    config, workdir, outcome = finished
    told = []
    sink = types.SimpleNamespace(write=lambda step, values: told.append((step, values)), close=lambda: None)
    monkeypatch.setitem(writer.SINKS, "tensorboard", lambda directory, name, config: told.clear() or sink)
    monkeypatch.setitem(sys.modules, "tensorboardX", types.SimpleNamespace(SummaryWriter=None))
    with pytest.raises(Preempted):
        run(run_config(config), tmp_path / "w", StopAt3(), ["tensorboard"])
    assert told
    assert Workdir(tmp_path / "w").read_outcome() is None
    resumed = run(run_config(config), tmp_path / "w", Quiet(), ["tensorboard"])
    assert digest(tmp_path / "w") == digest(workdir)
    assert network_measures(resumed) == network_measures(outcome)
    steps = [r["step"] for r in read_metrics(tmp_path / "w" / "metrics.jsonl") if r["kind"] == "train"]
    assert steps == [0, 1, 2, 3, 4, 5]
    records = read_metrics(tmp_path / "w" / "metrics.jsonl")
    expected = [(r["step"], scalars(r)) for r in records]
    assert told == expected
    told.append("of the run before")
    assert run(run_config(config), tmp_path / "w", Quiet(), ["tensorboard"]).resumed
    assert told == expected


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of the restore that fails
def test_a_run_whose_last_checkpoint_is_damaged_resumes_from_the_one_before_it(finished, tmp_path):
    config, workdir, _ = finished
    with pytest.raises(Preempted):
        run(run_config(config), tmp_path / "w", StopAt3())
    directory = tmp_path / "w" / "checkpoints"
    before, last = sorted(int(p.name) for p in directory.iterdir() if p.name.isdigit())[-2:]
    for file in (directory / str(last) / "state").rglob("d/*"):
        data = file.read_bytes()
        file.write_bytes(data[: len(data) // 4] + bytes(len(data) // 4) + data[len(data) // 4 * 2 :])

    with open(tmp_path / "w" / "metrics.jsonl", "ab") as lines:
        lines.write(b'{"kind": "tr\xff\n')

    class Heard(Quiet):
        said = ()

        def say(self, text):
            self.said += (text,)

    heard = Heard()
    run(run_config(config), tmp_path / "w", heard)
    assert f"{tmp_path / 'w' / 'metrics.jsonl'}: 1 damaged lines are left out" in heard.said
    assert any(f"{last} is damaged (" in text and f"; {before} is used" in text for text in heard.said)
    assert digest(tmp_path / "w") == digest(workdir)
    steps = [r["step"] for r in read_metrics(tmp_path / "w" / "metrics.jsonl") if r["kind"] == "train"]
    assert steps == [0, 1, 2, 3, 4, 5]
    assert (directory / f"damaged-{last}").exists()
    gc.collect()  # what the restore that failed left


def test_divergence_is_recorded_terminal_and_leaves_a_good_checkpoint(tmp_path, tiny_config):
    tiny_config.steps, tiny_config.model.layers = 60, 1
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


def test_intervals_and_evals_may_change_on_resume_but_steps_only_without_a_horizon(finished, tiny_config, tmp_path):
    config, workdir, _ = finished
    other = config.copy_and_resolve_references()
    other.every.record, other.keep = 2, 5
    assert run(run_config(other), workdir, Quiet()).resumed
    other.steps = 8
    with pytest.raises(WorkdirError, match=r"steps: 6 there, 8 asked for"):
        run(run_config(other), workdir, Quiet())

    tiny_config.model.layers, tiny_config.every.record, tiny_config.evals.names = 1, 1, ("accuracy",)
    tiny_config.steps = 4
    tiny_config.optimizer.schedule = {"name": "constant", "warmup": 2}
    run(run_config(tiny_config), tmp_path / "constant", Quiet())
    tiny_config.steps = 6
    longer = run(run_config(tiny_config), tmp_path / "constant", Quiet())
    assert (longer.step, longer.resumed) == (6, False)
    assert Workdir(tmp_path / "constant").saved_config().steps == 6
    run(run_config(tiny_config), tmp_path / "at_once", Quiet())
    assert digest(tmp_path / "constant") == digest(tmp_path / "at_once")


def test_other_evaluators_on_a_finished_run_evaluate_it_anew_and_train_nothing(tiny_config, tmp_path):
    tiny_config.model.layers, tiny_config.evals.names = 1, ("accuracy",)
    run(run_config(tiny_config), tmp_path / "w", Quiet())
    before = digest(tmp_path / "w"), (tmp_path / "w" / "metrics.jsonl").read_bytes()
    tiny_config.evals.names = ("accuracy", "calibration")
    again = run(run_config(tiny_config), tmp_path / "w", Quiet())
    assert not again.resumed
    assert "ece" in {m.name for m in again.measures}
    assert Workdir(tmp_path / "w").saved_config().evals.names == ("accuracy", "calibration")
    assert (digest(tmp_path / "w"), (tmp_path / "w" / "metrics.jsonl").read_bytes()) == before
    assert run(run_config(tiny_config), tmp_path / "w", Quiet()).resumed
