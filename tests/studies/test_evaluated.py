import shutil

import pytest

from sparsity import recipes
from sparsity.checkpoint import CheckpointError
from sparsity.config import ConfigError
from sparsity.run import Workdir, run, run_config, saved_steps
from sparsity.studies.evaluated import ALL, checkpoints_of, evaluations, follow, parse_steps
from sparsity.studies.paired import differences
from tests.run.runs import Quiet


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A directory with a run of 4 steps, and its checkpoints of steps 2 and 4."""
    config = recipes.vit_digits()
    config.name, config.steps, config.batch = "tiny", 4, 32
    config.mesh.data = 1
    config.model.d_model, config.model.layers, config.model.heads, config.model.mlp.d_ff = 16, 1, 2, 32
    config.every.record, config.every.eval, config.every.checkpoint, config.every.speed = 4, 4, 2, 4
    config.evals.names = ("accuracy", "sparsity")
    folder = tmp_path_factory.mktemp("runs")
    run(run_config(config), folder / "tiny", Quiet())
    return folder


@pytest.fixture
def copied(trained, tmp_path):
    """Copies of the run, each to be changed."""

    def copy(name, *without):
        shutil.copytree(trained / "tiny", tmp_path / name)
        for path in without:
            shutil.rmtree(tmp_path / name / path) if "/" in path else (tmp_path / name / path).unlink()
        return tmp_path / name

    return copy


def values(one):
    return {m.name: m.value for m in one.result.measures}


def test_the_last_checkpoint_and_all_of_them_have_the_measures_of_training(trained):
    (of,) = evaluations([trained / "tiny"])
    (last,) = checkpoints_of(of)
    assert (last.of.run, last.step, last.status) == ("tiny", 4, "finished")
    assert last.remark() == (
        "checkpoint of step 4 of 4; equal, bit for bit, to the evaluation recorded at the end of training"
    )
    first, second = checkpoints_of(of, ALL)
    assert (first.step, second.step) == (2, 4)
    assert values(second) == values(last) != values(first)
    assert first.remark().endswith("no recorded evaluation of this step to compare with")
    (one,) = checkpoints_of(of, (2,))
    assert values(one) == values(first)
    same, other = differences([last, second, first])
    assert same.effects["nll"].value == same.effects["nll"].se == 0
    assert other.effects["nll"].value == pytest.approx(values(first)["nll"] - values(last)["nll"], abs=1e-12)
    assert other.effects["nll"].n == 358


def test_runs_of_a_directory_are_found_and_named_apart_and_on_other_examples_not_paired(copied, tmp_path):
    b, a = copied("b"), copied("a")
    (tmp_path / "c").mkdir()  # no run
    shutil.copytree(a, tmp_path / "d")
    shutil.rmtree(tmp_path / "d" / "checkpoints")  # nothing to evaluate
    found = evaluations([tmp_path], ["accuracy"])
    assert [of.run for of in found] == [str(a), str(b)]
    others = evaluations([b], ["accuracy"], {"split": "validation"})
    assert others[0].run == "tiny"
    (one,), (other,) = checkpoints_of(found[0]), checkpoints_of(others[0])
    assert other.remark() == "checkpoint of step 4 of 4; with split=validation"
    assert differences([one, other])[0].refused.startswith("they were evaluated on other examples (n = 179 and 358)")
    with pytest.raises(ConfigError, match=r"--workdir: .*/b is named twice"):
        evaluations([b, tmp_path])


def test_a_damaged_checkpoint_is_named_and_has_no_numbers(copied):
    workdir, said = copied("w"), []
    for file in (workdir / "checkpoints" / "2").rglob("*"):
        if file.is_file() and file.stat().st_size > 100:
            file.write_bytes(file.read_bytes()[:50])
    (of,) = evaluations([workdir], ["accuracy"])
    damaged, sound = checkpoints_of(of, ALL, said.append)
    assert (damaged.step, damaged.result, sound.step) == (2, None, 4)
    assert len(said) == 1
    assert "2" in said[0]
    assert "damaged" in said[0]
    with pytest.raises(CheckpointError, match="damaged"):
        list(checkpoints_of(of, (2,), said.append))
    with pytest.raises(ConfigError, match="no checkpoint of step 3"):
        list(checkpoints_of(of, (3,)))
    assert saved_steps(Workdir(workdir)) == [2, 4]  # nothing was set aside


def test_checkpoints_are_followed_as_they_are_written_until_the_run_has_ended(copied, trained):
    workdir, said = copied("w", "outcome.json", "checkpoints/2", "checkpoints/4"), []
    source = trained / "tiny"
    happens = [
        lambda: shutil.copytree(source / "checkpoints" / "2", workdir / "checkpoints" / "2"),
        lambda: None,
        lambda: (
            shutil.copytree(source / "checkpoints" / "4", workdir / "checkpoints" / "4"),
            shutil.copy(source / "outcome.json", workdir),
        ),
    ]
    slept = []

    def sleep(seconds):
        slept.append(seconds)
        happens.pop(0)()

    (of,) = evaluations([workdir], ["accuracy"])
    found = list(follow(of, 3.0, sleep, said.append))
    assert [(one.step, one.status) for one in found] == [(2, "unfinished"), (4, "finished")]
    assert (slept, said, happens) == ([3.0] * 3, [], [])
    assert values(found[1])["accuracy"] == values(next(iter(checkpoints_of(of))))["accuracy"]


def test_a_checkpoint_that_is_gone_before_its_turn_is_passed_over(copied, monkeypatch):
    workdir, said = copied("w"), []
    (of,) = evaluations([workdir], ["accuracy"])
    found = []
    for one in follow(of, sleep=lambda _: None, say=said.append):
        found.append(one.step)
        shutil.rmtree(workdir / "checkpoints" / "4", ignore_errors=True)  # while that of step 2 was evaluated
    assert found == [2]
    assert said == ["tiny: the checkpoint of step 4 was removed before it could be evaluated"]


def test_what_cannot_be_evaluated_is_one_line(copied, tmp_path):
    workdir = copied("w", "checkpoints/2", "checkpoints/4")
    cases = [
        (lambda: evaluations([tmp_path / "none"]), "holds no run"),
        (lambda: evaluations([workdir], ["acuracy"]), 'did you mean "accuracy"'),
        (lambda: evaluations([workdir], ["language"]), "language scores language, the run's task is classification"),
        (lambda: list(checkpoints_of(evaluations([workdir])[0])), "holds no checkpoint"),
        (lambda: list(checkpoints_of(evaluations([workdir])[0], ALL)), "holds no checkpoint"),
    ]
    for call, message in cases:
        with pytest.raises(ConfigError, match=message):
            call()
    assert parse_steps("200,100,200") == (100, 200)
    assert (parse_steps("all"), parse_steps(None)) == (ALL, None)
    for text in ("", "1,", "-1", "last", "1.5"):
        with pytest.raises(ConfigError, match="--steps: expected all, or steps"):
            parse_steps(text)
