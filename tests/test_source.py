"""What no line of the code does, whatever is read: unpickle it, or run it."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "yaml"}
NAMES = {"eval", "exec", "compile", "__import__"}
LOADS = {("np", "load"), ("numpy", "load"), ("jnp", "load"), ("torch", "load")}


def test_nothing_that_is_read_can_run_code():
    """Arrays are read by `data.arrays`; that a config is a Python file, which runs, is said where it is given."""
    found, files = [], [*ROOT.glob("sparsity/**/*.py"), *ROOT.glob("launch/**/*.py")]
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name.split(".")[0] for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [(node.module or "").split(".")[0]]
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                names = sorted(NAMES & {node.func.id})
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                of = node.func.value.id if isinstance(node.func.value, ast.Name) else None
                names = ["load"] if (of, node.func.attr) in LOADS else []
            if any(
                keyword.arg == "allow_pickle" and getattr(keyword.value, "value", True)
                for keyword in getattr(node, "keywords", ())
            ):
                names = [*names, "allow_pickle"]
            found += [f"{file.name}: {name}" for name in names if name in MODULES | NAMES | {"load", "allow_pickle"}]
    assert len(files) > 150
    assert found == []
