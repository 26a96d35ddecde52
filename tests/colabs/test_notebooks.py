"""Every notebook runs from top to bottom; without Jupyter here, with nbmake under the mark."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[2] / "colabs").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_one_figure_is_stored_and_no_other_output(path):
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    assert all(cell["execution_count"] is None for cell in cells)
    (output,) = [output for cell in cells for output in cell["outputs"]]
    assert output["output_type"] == "display_data"
    assert set(output["data"]) == {"image/png"}
    assert len(output["data"]["image/png"]) < 200_000


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:approx top-k.* is an exact search")  # decode_speed shows just that
@pytest.mark.usefixtures("optimized")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_the_cells_run_in_order(path):
    namespace = {"__name__": "__main__"}
    shown = []
    for cell in json.loads(path.read_text())["cells"]:
        if cell["cell_type"] != "code":
            continue
        body = ast.parse("".join(cell["source"]))
        last = body.body.pop() if body.body and isinstance(body.body[-1], ast.Expr) else None
        exec(compile(body, path.name, "exec"), namespace)
        if last is not None:  # what Jupyter would display
            shown.append(eval(compile(ast.Expression(last.value), path.name, "eval"), namespace))
    assert sum(hasattr(value, "_repr_html_") for value in shown) >= 1


@pytest.mark.notebook
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_jupyter_runs_it(path):
    command = [sys.executable, "-m", "pytest", "-q", "-o", "addopts=", "-p", "no:warnings", "--nbmake", str(path)]
    done = subprocess.run(command, cwd=path.parents[1], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
