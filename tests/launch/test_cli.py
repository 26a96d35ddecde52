"""What launchers say of themselves and of the machine."""

import types

import pytest

from launch import cli
from sparsity.bench import SUITES
from sparsity.convert import checkpoints
from sparsity.data import SOURCES
from sparsity.data.corpora import CORPORA
from sparsity.data.randomised import LABELLED
from sparsity.evals import EVALS
from sparsity.models import MODELS
from sparsity.ops.sparsifiers import SPARSIFIERS
from sparsity.studies import STUDIES
from sparsity.writer import SINKS

NAMES = {
    "train": (MODELS, SPARSIFIERS, SOURCES, EVALS, SINKS),
    "evaluate": (EVALS,),
    "reproduce": (STUDIES,),
    "benchmark": (SUITES,),
    "convert": (checkpoints.SOURCES, checkpoints.MODELS, LABELLED),
    "prepare": (CORPORA,),
}


@pytest.mark.parametrize("launcher", NAMES)
def test_help_lists_the_names_that_there_are(launch, launcher):
    code, out, err = launch(launcher, "--help")
    assert code == cli.DONE, err
    words = {word.strip(",;:.()") for word in out.split()}
    assert [name for table in NAMES[launcher] for name in table if name not in words] == []
    assert max(map(len, out.splitlines())) <= 130


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """machine(files of /dev, platforms asked for, the one that JAX found): what is said of it."""

    def say(capsys, files=(), platforms=None, backend="cpu"):
        for name in files:
            (tmp_path / name).touch()
        config = types.SimpleNamespace(jax_platforms=platforms)
        monkeypatch.setattr(cli, "jax", types.SimpleNamespace(config=config, default_backend=lambda: backend))
        monkeypatch.setattr(cli, "_DEV", tmp_path)
        cli.say_device.__wrapped__()
        out, err = capsys.readouterr()
        assert not out
        return err

    return say


def test_that_cpus_compute_is_said_in_a_line_unless_it_was_asked_for(machine, capsys):
    said = machine(capsys)
    assert said.startswith("JAX sees no accelerator: computing on ")
    assert said.count("\n") == 1
    assert machine(capsys, platforms="cpu") == machine(capsys, platforms="cuda,cpu") == ""
    assert machine(capsys, backend="gpu") == ""


@pytest.mark.parametrize(("file", "device", "extra"), [("nvidia0", "GPU", "cuda"), ("accel0", "TPU", "tpu")])
def test_an_accelerator_that_jax_does_not_see_is_named_with_its_extra(machine, capsys, file, device, extra):
    said = machine(capsys, files=[file, "nvidiactl"])
    assert said.startswith(
        f"JAX does not see the {device} of this machine (pip install -e '.[{extra}]'): computing on "
    )
    assert said.count("\n") == 1


def test_it_is_said_once_a_process(machine, capsys):
    machine(capsys)
    cli.say_device.cache_clear()
    cli.say_device()
    cli.say_device()
    assert capsys.readouterr().err.count("\n") == 1
