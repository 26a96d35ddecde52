"""Preparing text and training on it, as users do."""

import gzip
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch import cli
from sparsity.writer import read_metrics

ROOT = Path(__file__).parents[2]
CONFIG = """
from sparsity import recipes

def get_config(arg=""):
    config = recipes.t5_text(3)
    config.batch = 4
    config.data = {"name": "prepared_text", "path": arg, "length": 32, "evaluated": 16}
    config.model.update({"d_model": 16, "layers": 1, "decoder_layers": 1})
    config.model.mlp.d_ff = 32
    config.evals.update({"names": ("language", "units"), "split": "validation", "batch": 8})
    return config
"""


@pytest.fixture(scope="module")
def c4(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepare")
    (folder / "c4").mkdir()
    for name, n in (("c4-train.00000-of-00001", 40), ("c4-validation.00000-of-00001", 9)):
        with gzip.open(folder / "c4" / f"{name}.json.gz", "wt") as lines:
            for i in range(n):
                lines.write(json.dumps({"text": f"Document {i} of {name}. " * 5, "timestamp": "", "url": ""}) + "\n")
    # Whoever imports it learns of it.
    (folder / "trap" / "tensorflow").mkdir(parents=True)
    (folder / "trap" / "tensorflow" / "__init__.py").write_text('raise SystemExit("tensorflow was imported")')
    (folder / "config.py").write_text(CONFIG)
    return folder


@pytest.fixture(scope="module")
def prepared(launch_alone, c4):
    args = ("--corpus=json", f"--path={c4 / 'c4'}", f"--out={c4 / 'out'}", "--row=34")
    return c4 / "out", launch_alone("prepare", *args, PYTHONPATH=str(c4 / "trap"))


def test_c4_is_prepared_and_trained_on_without_tensorflow(launch_alone, prepared, c4, tmp_path):
    out, (code, printed, err) = prepared
    assert code == cli.DONE, err
    assert "train: 40 documents, 233 rows of 34 tokens, 28 tokens left over" in printed
    assert "validation: 9 documents, 58 rows of 34 tokens, 8 tokens left over" in printed
    assert "shard 2/2" in err
    run = (f"--config={c4 / 'config.py'}:{out}", f"--workdir={tmp_path / 'run'}")
    code, _, err = launch_alone("train", *run, PYTHONPATH=str(c4 / "trap"))
    assert code == cli.DONE, err
    records = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [r["step"] for r in records if r["kind"] == "train"] == [0, 1, 2]
    assert "of 16 of the 233 examples of the training split" in (tmp_path / "run" / "outcome.json").read_text()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--corpus=jsn"], 'prepare.corpus.name: unknown name "jsn"; did you mean "json"?'),
        (["--corpus=json", "--path=none"], "none: there is no file and no directory"),
        (["--corpus=files", "--path=x", "--field=y"], "prepare.corpus.field: unknown key; valid: path"),
        (["--corpus=json"], "prepare.corpus.path: required, not given"),
    ],
)
def test_a_mistake_is_one_line(launch, args, message, tmp_path):
    code, _, err = launch("prepare", *args, f"--out={tmp_path / 'out'}")
    assert (code, len(err.splitlines())) == (cli.BAD_INPUT, 1)
    assert message in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_a_stopped_preparation_says_how_to_go_on(launch, c4, tmp_path, workers):
    shutil.copytree(c4 / "c4", tmp_path / "c4")
    pipe = tmp_path / "c4" / "c4-train.00001-of-00002.json"
    os.mkfifo(pipe)
    command = ("--corpus=json", f"--path={tmp_path / 'c4'}", f"--out={tmp_path / 'out'}", "--row=34")
    command += (f"--workers={workers}",)
    writer = os.open(pipe, os.O_RDWR)  # a file whose end never comes
    process = subprocess.Popen(
        [sys.executable, "-m", "launch.prepare", *command], cwd=ROOT, text=True, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("out.partial/train*.tmp")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.terminate()
    _, err = process.communicate(timeout=120)
    os.close(writer)
    assert (process.returncode, err.splitlines()[-1]) == (
        cli.PREEMPTED,
        "interrupted; rerun the same command to resume",
    )
    assert not (tmp_path / "out").exists()
    pipe.unlink()
    pipe.write_text("")
    code, printed, err = launch("prepare", *command)
    assert code == cli.DONE, err
    assert "train: 40 documents" in printed
