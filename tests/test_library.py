"""docs/library.md: every block is run as it stands, is short, and prints what the page says."""

import contextlib
import io
import re
import sys
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from sparsity import recipes
from sparsity.checkpoint import Checkpoints
from sparsity.config import to_dict
from sparsity.ops.sparsifiers import SPARSIFIERS
from sparsity.run import Engine, Workdir, run_config
from sparsity.writer import write_json

PAGE = (Path(__file__).parents[1] / "docs/library.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```python\n(.*?)^```(?:\n\n```text\n(.*?)^```)?", re.MULTILINE | re.DOTALL)
SECTIONS = {part.split("\n", 1)[0]: BLOCK.findall(part) for part in PAGE.split("\n## ")[1:]}
FILE = re.compile(r"# (\w+\.py)\n")


def t5(workdir):
    """A workdir of a small T5 with Top-k, as it starts."""
    section = recipes.t5_text()
    section.model.update({"d_model": 16, "layers": 1, "decoder_layers": 1, "heads": 2, "head_dim": 8})
    section.model.mlp.d_ff = 32
    section.model.mlp.sparsifier = ConfigDict({"name": "top_k", "k": 4})
    section.evals.length = 4
    config, files = run_config(section), Workdir(workdir)
    files.create()
    with Checkpoints(files.checkpoints) as checkpoints:
        checkpoints.save(0, Engine(config).new_state()[0], {"config": to_dict(config)})
    write_json(files.config, to_dict(config))


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A directory to run in, which modules are imported from; what the page adds to tables is taken out again."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    modules, sparsifiers = set(sys.modules), dict(SPARSIFIERS)
    yield tmp_path
    for name in set(sys.modules) - modules:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]
    SPARSIFIERS.clear()
    SPARSIFIERS.update(sparsifiers)


@pytest.mark.parametrize("section", SECTIONS)
def test_the_blocks_of_a_section_run_and_print_what_stands_there(section, place):
    if "runs/t5" in "".join(code for code, _ in SECTIONS[section]):
        t5(place / "runs/t5")
    namespace = {"__name__": "__main__"}
    for code, printed in SECTIONS[section]:
        if file := FILE.match(code):
            (place / file[1]).write_text(code)
            continue
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile(code, f"library.md, {section}", "exec"), namespace)
        assert out.getvalue() == printed or (not printed and ("print(" not in code or out.getvalue().strip()))
        lines = [line for line in code.splitlines() if line.strip() and not re.match(r"(from|import) ", line)]
        assert len(lines) <= 5, "no more than five lines beside imports"
