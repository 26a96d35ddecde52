"""Workdirs as former versions left them: they are restored and resumed for ever.

Each of tests/fixtures/workdirs was written by the code of its time, of a run of two steps, with the sha256 of its
parameters, optimizer state and step beside it; a format that changes gets another one. They are never written anew.
"""

import shutil
from pathlib import Path

import pytest

from sparsity.checkpoint import Checkpoints
from sparsity.run import Workdir, run, run_config
from sparsity.writer import read_json, read_metrics
from tests.run.runs import Quiet, digest

FORMATS = Path(__file__).parents[1] / "fixtures" / "workdirs"


class Heard(Quiet):
    said = ()

    def say(self, message):
        self.said += (message,)


@pytest.mark.parametrize("name", sorted(p.name for p in FORMATS.iterdir()))
def test_a_workdir_of_a_former_version_is_restored_to_the_bit_and_resumed(name, tmp_path):
    workdir, heard = tmp_path / "w", Heard()
    shutil.copytree(FORMATS / name, workdir)
    assert digest(workdir) == (workdir / "sha256").read_text().strip()
    config = Workdir(workdir).saved_config()
    assert run(config, workdir, heard).resumed
    longer = run(run_config(read_json(workdir / "config.json") | {"steps": 3}), workdir, heard)
    assert (longer.status, longer.step, longer.resumed) == ("finished", 3, False)
    assert [r["step"] for r in read_metrics(workdir / "metrics.jsonl") if r["kind"] == "train"] == [0, 1, 2]
    assert heard.said == ()
    with Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
        assert checkpoints.latest() == 3
