"""Pages as a parser reads them; as a browser shows them: `test_browser.py`."""

import base64
import dataclasses
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from sparsity.run import Workdir
from sparsity.studies import draw, report
from sparsity.studies.judge import Claim, Effect, judge
from sparsity.studies.report import figure
from tests.studies.report.runs import HOSTILE, LAYERS, MEASURES, write_run

VOID = {"meta", "br", "img", "link", "input", "hr"}
ROOT = Path(report.__file__).parent


class Tree(HTMLParser):
    """Elements in order as (tag, attributes, text inside); fails on tags that do not nest."""

    def __init__(self, page):
        super().__init__()
        self.elements, self._open = [], []
        self.feed(page)
        self.close()
        assert self._open == [], "these are never closed"

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs), f"<{tag}> has an attribute twice"
        self.elements.append([tag, dict(attrs), ""])
        if tag not in VOID:
            self._open.append(self.elements[-1])

    def handle_startendtag(self, tag, attrs):
        self.elements.append([tag, dict(attrs), ""])

    def handle_endtag(self, tag):
        assert self._open.pop()[0] == tag

    def handle_data(self, data):
        for element in self._open:
            element[2] += data

    def handle_comment(self, data):
        raise AssertionError(f"a comment: {data}")

    def all(self, *tags):
        return [(attrs, text) for tag, attrs, text in self.elements if tag in tags]

    def table(self, label):
        """The cells of a table, row by row, as (tag, sorted by, text)."""
        at = next(i for i, (_, attrs, _) in enumerate(self.elements) if attrs.get("aria-label") == label)
        rows = []
        for tag, attrs, text in self.elements[at + 2 :]:
            if tag in ("section", "div"):
                break
            if tag == "tr":
                rows.append([])
            if tag in ("th", "td"):
                rows[-1].append((tag, attrs.get("data-value"), text))
        return rows


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """The page of one run, and what is in it."""
    files = write_run(tmp_path_factory.mktemp("one") / "w", HOSTILE)
    page = report.runs_page([files], f"python -m launch.train --config={HOSTILE} --workdir=W")
    return files, page, Tree(page)


def test_the_page_is_whole(one):
    _, page, tree = one
    assert page.startswith("<!doctype html>")
    assert tree.all("html")[0][0] == {"lang": "en"}
    ids = [attrs["id"] for _, attrs, _ in tree.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    pointed = {v.removeprefix("#") for _, attrs, _ in tree.elements for k, v in attrs.items() if k == "href"}
    pointed |= {attrs["aria-describedby"] for _, attrs, _ in tree.elements if "aria-describedby" in attrs}
    assert pointed <= set(ids)
    headings = [tag for tag, _, _ in tree.elements if re.fullmatch("h[1-6]", tag)]
    assert headings == ["h1"] + ["h2"] * (len(headings) - 1)
    sections = [text for _, text in tree.all("h2")]
    assert sections == ["Runs", "Results", *draw.FIGURES, "Definitions", "Config", "Command"]
    assert [text for attrs, text in tree.all("a") if attrs["href"].startswith("#s")] == sections
    pictures = tree.all("svg")
    assert [attrs["aria-label"] for attrs, _ in pictures] == list(draw.FIGURES)
    assert all(attrs["role"] == "img" for attrs, _ in pictures)
    assert all(text for _, text in tree.all("figcaption"))


def test_it_fetches_nothing_and_runs_its_own_script_alone(one):
    _, page, tree = one
    assert "://" not in page
    assert not {"link", "img", "iframe", "object", "base", "form"} & {tag for tag, _, _ in tree.elements}
    assert all("src" not in attrs and not any(k.startswith("on") for k in attrs) for _, attrs, _ in tree.elements)
    policy = next(attrs["content"] for attrs, _ in tree.all("meta") if "http-equiv" in attrs)
    (_, data), (_, script) = tree.all("script")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert script == (ROOT / "script.js").read_text()
    assert len(json.loads(data)) == len(draw.FIGURES)


def test_names_and_words_are_text_whatever_they_are(one):
    files, page, tree = one
    assert len(tree.all("script")) == page.count("</script>") == 2
    assert not tree.all("b")
    assert tree.all("title")[0][1] == tree.all("h1")[0][1] == HOSTILE
    panels = json.loads(tree.all("script")[0][1])
    training = next(p for heading, p in zip(draw.FIGURES, panels, strict=True) if heading == "Training")
    assert [c["name"] for c in training[0]["curves"]] == [f"{HOSTILE}, training", f"{HOSTILE}, validation"]
    config, command = (text for _, text in tree.all("pre"))
    assert json.loads(config) == json.loads(files.config.read_text())
    assert command == f"python -m launch.train --config={HOSTILE} --workdir=W"


def test_every_measure_has_its_definition_and_n_and_leads_there(one):
    _, _, tree = one
    said = {attrs["id"]: text for attrs, text in tree.all("dd")}
    terms = {text: attrs for attrs, text in tree.all("a") if attrs.get("class") == "term"}
    assert list(terms) == [m.name for m in MEASURES]
    for m in MEASURES:
        place = terms[m.name]["aria-describedby"]
        assert terms[m.name]["href"] == f"#{place}"
        assert said[place] == f"{m.definition}; n = {m.n:,}"
    assert len(said) == len(MEASURES) - 1  # two share one


def test_tables_sort_by_numbers(one):
    _, _, tree = one
    head, *rows = tree.table("Results")
    assert [text for _, _, text in head] == ["measure", HOSTILE]
    assert len(tree.all("button")) == 2  # one a column
    assert [row[0][::2] for row in rows] == [("th", m.name) for m in MEASURES]
    assert [row[1][1] for row in rows] == ["0.925", "10.5", "0.25", "0.5", "Infinity", None]
    assert rows[0][1][2] == "92.5 ± 1.2 %"


def test_the_same_files_give_the_same_page(one):
    files, page, _ = one
    assert report.runs_page([files], f"python -m launch.train --config={HOSTILE} --workdir=W") == page


def test_without_a_command_the_config_is_run(one, monkeypatch, tmp_path):
    files, _, _ = one
    command = Tree(report.runs_page([files])).all("pre")[-1][1].splitlines()[-1]
    script = re.fullmatch(r'python -c "(.*)"', command)[1]
    found = []
    monkeypatch.setattr("sparsity.run.run_config", lambda config: config)
    monkeypatch.setattr("sparsity.run.run", lambda config, workdir: found.append((config, workdir)))
    monkeypatch.chdir(files.path)
    exec(script, {})
    assert found == [(json.loads(files.config.read_text()), "W")]


def test_runs_are_compared_by_what_differs(tmp_path):
    fewer = MEASURES[:2]
    workdirs = [write_run(tmp_path / f"{i}", f"run_{i}", i, measures=fewer if i else MEASURES) for i in range(3)]
    workdirs.append(write_run(tmp_path / "3", "run_3", 3, ended=False))
    tree = Tree(report.runs_page(workdirs))
    head, *rows = tree.table("Runs")
    assert [text for _, _, text in head] == ["run", "status", "seed"]
    assert [tuple(text for _, _, text in row) for row in rows] == [
        *((f"run_{i}", "finished", str(i)) for i in range(3)),
        ("run_3", "unfinished(59)", "3"),
    ]
    (nonzero,) = [row for row in tree.table("Results") if row[0][2] == "nonzero.block_2"]
    assert [text for _, _, text in nonzero[1:]] == ["25.0 ± 1.0 %", "-", "-", "-"]
    # The one that has not ended has no final evaluation to draw.
    assert [attrs["aria-label"] for attrs, _ in tree.all("svg")] == [
        "Nonzero activations",
        "Training",
        "Pre-activations",
    ]
    assert len(tree.all("details")) == 4
    nonzero, training, _ = json.loads(tree.all("script")[0][1])
    assert [len(panel["curves"]) for panel in nonzero] == [len(LAYERS)] * 4
    assert [curve["name"] for curve in nonzero[0]["curves"]] == [f"run_0, {layer}" for layer in LAYERS]
    assert len(training[0]["curves"]) == 8


def test_runs_of_one_name_are_called_by_their_workdirs(tmp_path):
    workdirs = [write_run(tmp_path / name, "same") for name in "ab"]
    head, *_ = Tree(report.runs_page(workdirs)).table("Results")
    assert [text for _, _, text in head] == ["measure", str(tmp_path / "a"), str(tmp_path / "b")]


def test_a_definition_that_differs_between_runs_is_given_of_each(tmp_path):
    ours = MEASURES[0]
    other = dataclasses.replace(ours, n=1200)
    workdirs = [write_run(tmp_path / f"{m.n}", f"of_{m.n}", measures=(m,)) for m in (ours, other)]
    (words,) = (text for _, text in Tree(report.runs_page(workdirs)).all("dd"))
    assert words == f"{ours.definition}; n = 400; in another run: {ours.definition}; n = 1,200"


def test_a_study_has_its_verdicts_and_its_own_table():
    claim = Claim("P2", HOSTILE, "s", "e", "seed", "above", 0.0, lambda records: Effect(0.5, 0.1, 3))
    rows = [{"arm": HOSTILE, "loss": 1 / 3, "left out": None}]
    table = report.Table(rows, "Columns: arm, loss.")
    page = report.Page("t", "i", {}, {}, "command", ("found",), (judge(claim, ()),), table)
    tree = Tree(report.render(page))
    assert [text for _, text in tree.all("h2")] == ["Findings", "Claims", "Results", "Command"]
    _, verdict = tree.table("Claims")
    assert [text for _, _, text in verdict][:5] == ["P2", HOSTILE, "s", "e", "above 0"]
    assert [value for _, value, _ in verdict][5:] == ["0.5", "3.0", None]
    assert verdict[-1][2] == judge(claim, ()).verdict
    _, row = tree.table("Results")
    assert row == [("th", None, HOSTILE), ("td", repr(1 / 3), "0.3333"), ("td", None, "")]


def test_words_can_be_read_on_either_paper():
    sheet = (ROOT / "style.css").read_text()
    schemes = sheet.split("@media (prefers-color-scheme: dark)")
    for block, paper in zip(schemes, figure.PAPERS.values(), strict=True):
        for name in ("ink", "muted", "link"):
            colour = re.search(rf"--{name}: (#[0-9a-f]{{6}});", block)[1]
            assert figure.contrast(colour, paper) >= 4.5  # WCAG 2.1, 1.4.3


def test_the_package_is_installed_with_the_parts_of_the_page():
    setup = (ROOT.parents[2] / "setup.py").read_text()
    (listed,) = re.findall(r'"sparsity\.studies\.report": (\[.*?\])', setup)
    assert {f"*{path.suffix}" for path in ROOT.iterdir() if path.suffix not in (".py", "")} == set(json.loads(listed))


def test_a_run_without_records_has_a_page_too(tmp_path):
    files = Workdir(tmp_path)
    files.create()
    files.config.write_text('{"name": "bare"}')
    tree = Tree(report.runs_page([files]))
    assert [text for _, text in tree.all("h2")] == ["Runs", "Config", "Command"]
