import csv
import dataclasses
import io
import json
import math
import re

import hypothesis
import pytest
from hypothesis import strategies as st

from sparsity.config import ConfigError
from sparsity.studies import formats
from sparsity.studies.formats import Findings, escape_latex, escape_markdown
from sparsity.studies.paired import differences
from tests.studies.findings import checkpoint


@pytest.fixture
def findings():
    a = checkpoint("vit_a", {"accuracy": [1, 0, 1, 1]}, ece=(0.1, None))
    b = checkpoint("b|50%", {"accuracy": [1, 1, 1, 1]}, status="diverged", nll=(math.nan, math.nan), units={"nll": ""})
    c = checkpoint("c", {"accuracy": [1, 0, 1, 0]}, examples="others")
    return Findings((a, b, c), differences([a, b, c]), across=True)


@pytest.fixture
def rows():
    """Checkpoints of one run, the second of them damaged."""
    one, two = (checkpoint("a", {"accuracy": [1, 0, 1, 1]}, step=step) for step in (10, 20))
    return Findings((one, dataclasses.replace(two, result=None)))


def test_runs_stand_side_by_side_in_text_and_what_was_not_measured_is_no_zero(findings):
    assert formats.text(findings).splitlines() == [
        "measure           vit_a           b|50%              c",
        "status         finished     diverged(4)       finished",
        "accuracy  75.0 ± 50.0 %  100.0 ± 50.0 %  50.0 ± 50.0 %",
        "ece                10 %               -              -",
        "nll                   -       nan ± nan              -",
        "",
        "Differences paired over the same n examples ± the standard error of their mean; 1 point is 1 %. "
        "c is not paired with vit_a: they were evaluated on other examples (n = 4 and 4).",
        "less vit_a            b|50%  c",
        "accuracy    +25 ± 25 points  -",
        "n                         4  -",
    ]


def test_checkpoints_stand_in_rows_with_damaged_ones_named(rows):
    assert formats.by_checkpoint(rows.checkpoints) == [
        ["step", "accuracy"],
        ["10", "75.0 ± 50.0 %"],
        ["20 (damaged)", "-"],
    ]
    both = [*rows.checkpoints, checkpoint("b", ece=(0.1, None))]
    assert formats.by_checkpoint(both)[0] == ["run", "step", "accuracy", "ece"]
    assert formats.by_checkpoint(both)[-1] == ["b", "4", "-", "10 %"]


def test_markdown_is_a_table_whose_cells_are_escaped(findings):
    lines = formats.markdown(findings).splitlines()
    assert lines[2:5] == [
        r"| measure | vit\_a | b\|50% | c |",
        "| :-- | --: | --: | --: |",
        "| status | finished | diverged(4) | finished |",
    ]
    cells = [re.split(r"(?<!\\)\|", line) for line in lines if line.startswith("|")]
    assert {len(row) for row in cells} == {6, 5}  # of the tables of four and of three columns
    assert "| nll | - | nan ± nan | - |" in lines


def test_latex_is_a_table_whose_cells_are_escaped(findings):
    text = formats.latex(findings)
    assert r"measure & vit\_a & b\textbar{}50\% & c \\" in text
    assert r"accuracy & 75.0 $\pm$ 50.0 \% & 100.0 $\pm$ 50.0 \% & 50.0 $\pm$ 50.0 \% \\" in text
    assert r"nll & - & nan $\pm$ nan & - \\" in text
    assert text.count(r"\begin{tabular}{lrrr}") == text.count(r"\begin{tabular}{lrr}") == 1
    assert text.count("\\begin{") == text.count("\\end{") == 4


@hypothesis.given(st.text(alphabet=st.characters(codec="latin-1", exclude_categories=["Cc"]), max_size=12))
def test_what_is_escaped_is_read_back_as_it_was(cell):
    cell = " ".join(cell.split())
    shown = re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", escape_markdown(cell))  # CommonMark, "Backslash escapes"
    assert shown == cell
    assert not re.search(r"(?<!\\)(?:\\\\)*[|*_<`]", escape_markdown(cell))
    latex = escape_latex(cell)
    words = {"textbackslash": "\\", "textasciitilde": "~", "textasciicircum": "^", "textbar": "|"}
    words |= {"textless": "<", "textgreater": ">"}
    signs = {r"$\pm$": "±", r"$\times$": "×", "$-$": "-"}
    read = re.sub(
        r"\$[^$]*\$|\\([a-z]+)\{\}|\\([&%$#_{}])",
        lambda m: signs.get(m[0]) or words.get(m[1]) or m[2],
        latex,
    )
    assert read == cell
    bare = re.sub(r"\\([a-z]+\{\}|[&%$#_{}])|\$(\\pm|\\times|-)\$", "", latex)
    assert not set(bare) & set("&%$#_{}~^\\<>|")


def test_csv_has_every_number_in_full_and_nothing_where_there_is_none(findings, rows):
    read = list(csv.DictReader(io.StringIO(formats.to_csv(findings))))
    first = {"run": "vit_a", "less": "", "step": "4", "status": "finished", "measure": "accuracy", "value": "0.75"}
    assert read[0] == first | {"se": "0.5", "n": "4", "unit": "share", "definition": "what accuracy is"}
    assert (read[1]["measure"], read[1]["value"], read[1]["se"]) == ("ece", "0.1", "")
    pair, refused = read[-2:]
    assert (pair["run"], pair["less"], pair["status"], pair["value"], pair["n"]) == (
        "b|50%",
        "vit_a",
        "paired",
        "0.25",
        "4",
    )
    assert float(pair["se"]) == pytest.approx(0.25)
    assert (refused["status"], refused["value"], refused["se"]) == ("not paired", "", "")
    assert "other examples" in refused["definition"]
    damaged = list(csv.DictReader(io.StringIO(formats.to_csv(rows))))[-1]
    assert (damaged["step"], damaged["status"], damaged["value"]) == ("20", "damaged", "")


def test_json_of_one_checkpoint_is_its_record_and_of_more_a_list(findings, rows):
    one = json.loads(formats.to_json(Findings(findings.checkpoints[:1], (), across=True)))
    assert (one["run"], one["workdir"], one["step"], one["status"]) == ("vit_a", "runs/vit_a", 4, "finished")
    assert one["measures"][1] == {
        **{"name": "ece", "value": 0.1, "se": None, "n": 4},
        **{"definition": "what ece is", "unit": "share"},
    }
    many = json.loads(formats.to_json(findings))
    assert [record["run"] for record in many["checkpoints"]] == ["vit_a", "b|50%", "c"]
    pair, refused = many["differences"]
    assert pair["measures"][0]["interval"] == pytest.approx([0.25 - 0.7956, 0.25 + 0.7956], abs=1e-4)
    assert (refused["run"], refused["less"], refused["measures"]) == ("c", "vit_a", [])
    damaged = json.loads(formats.to_json(rows))["checkpoints"][1]
    assert (damaged["status"], damaged["measures"]) == ("damaged", None)


def test_the_ending_names_the_format_and_an_unknown_one_is_refused(findings, tmp_path):
    for ending, of in formats.FORMATS.items():
        formats.write(findings, tmp_path / f"f{ending}")
        assert (tmp_path / f"f{ending}").read_text() == of(findings)
    with pytest.raises(ConfigError, match=r"--out: f.txt ends in none of .json, .csv, .md, .tex"):
        formats.check_path(tmp_path / "f.txt")
    with pytest.raises(ConfigError, match="--out: no directory"):
        formats.check_path(tmp_path / "none" / "f.md")
