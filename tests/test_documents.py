"""CONTRIBUTING, CITATION, CHANGELOG and the pages of the API say what is so."""

import ast
import re
import tomllib
from pathlib import Path

import pytest
import yaml

from sparsity.bench import SUITES
from sparsity.data import SOURCES
from sparsity.evals import EVALS
from sparsity.models import MODELS
from sparsity.ops.sparsifiers import SPARSIFIERS
from sparsity.studies import STUDIES
from sparsity.writer import SINKS

ROOT = Path(__file__).parents[1]
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
TABLES = {"SPARSIFIERS": SPARSIFIERS, "MODELS": MODELS, "SOURCES": SOURCES, "EVALS": EVALS}
TABLES |= {"SUITES": SUITES, "STUDIES": STUDIES, "SINKS": SINKS}


def setup_arguments():
    """The keyword arguments of setup.py's call, those that are plain values."""
    (call,) = [n for n in ast.walk(ast.parse((ROOT / "setup.py").read_text())) if getattr(n, "keywords", None)][:1]
    return {k.arg: k.value.value for k in call.keywords if isinstance(k.value, ast.Constant)}


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "CHANGELOG.md", "docs/library.md"])
def test_every_path_that_a_document_names_exists(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    named = set(
        re.findall(r"`((?:sparsity|configs|launch|tests|colabs|docs|\.ci)/[\w./]*|\w+\.(?:md|toml|txt))`", text)
    )
    assert named
    mirrored = {path for path in named if re.search(r"(NAME|PAPER)", path)}  # what is to be added
    assert [path for path in named - mirrored if not (ROOT / path).exists()] == []


def test_the_marks_are_those_that_there_are():
    marks = {line.split(":")[0] for line in SETTINGS["tool"]["pytest"]["ini_options"]["markers"]}
    table = CONTRIBUTING.split("| mark ")[1].split("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)`", table, re.MULTILINE)) == marks


def test_the_order_of_imports_is_the_contracts():
    ((contract,),) = [SETTINGS["tool"]["importlinter"]["contracts"]]
    ranks = {
        name.strip().removeprefix("sparsity."): rank
        for rank, layer in enumerate(reversed(contract["layers"]))
        for name in re.split(r"[|:]", layer)
    }
    (block,) = re.findall(r"```\n(config.*?)```", CONTRIBUTING, re.DOTALL)
    said = re.findall(r"\w+", block)
    assert set(said) == set(ranks)
    assert [ranks[name] for name in said] == sorted(ranks.values())


def test_the_tables_are_called_what_it_calls_them():
    (listed,) = re.findall(r"plain tables \((.*?)\)", CONTRIBUTING, re.DOTALL)
    assert set(re.findall(r"`(\w+)`", listed)) == set(TABLES)
    assert all(isinstance(table, dict) for table in TABLES.values())


def test_the_citation_is_of_this_version_and_has_the_three_papers():
    citation, setup = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8")), setup_arguments()
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()  # what the format asks for
    assert (citation["version"], citation["license"]) == (setup["version"], setup["license"])
    papers = {(paper["authors"][0]["family-names"], paper["year"]) for paper in citation["references"]}
    assert papers == {("Li", 2022), ("Bricken", 2023), ("Price", 2024)}
    assert all({"type", "title", "authors"} <= paper.keys() for paper in citation["references"])
    assert f"({setup['version']})" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").split("\n## ")[1]


@pytest.mark.slow  # of `.ci/run full`, which has the extra
# pdoc looks for the names of an inherited annotation in the module that inherits it, and says so in vain.
@pytest.mark.filterwarnings("ignore:Error parsing type annotation:UserWarning")
def test_the_pages_of_the_api_build_without_a_warning(tmp_path):
    pdoc = pytest.importorskip("pdoc")
    pdoc.render.configure(docformat="google")
    pdoc.pdoc("sparsity", output_directory=tmp_path)
    modules = [path.relative_to(ROOT) for path in (ROOT / "sparsity").rglob("*.py")]
    pages = {str(m.parent if m.name == "__init__.py" else m.with_suffix("")) for m in modules}
    assert {str(p.relative_to(tmp_path).with_suffix("")) for p in tmp_path.rglob("*.html")} == pages | {"index"}
    page = (tmp_path / "sparsity/theory/edge_of_chaos.html").read_text(encoding="utf-8")
    assert re.search(r"<h6 id=\"raises[^\"]*\">Raises:</h6>", page)
    assert "sigma_w^2" in page
