"""One self-contained page of a run, of several compared, or of a study."""

from __future__ import annotations

import base64
import dataclasses
import functools
import hashlib
import html
import json
import math
import string
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any, NamedTuple

from sparsity.config import flatten
from sparsity.run import Outcome, Workdir
from sparsity.studies import draw
from sparsity.studies.draw import Captioned, RunView
from sparsity.studies.judge import Judgement
from sparsity.studies.report.figure import Inline, inline, variables
from sparsity.studies.report.tables import Table, cell, measure_names, status
from sparsity.writer import read_json, read_metrics, write_text

# Runs a config.json again, wherever it came from.
_AGAIN = (
    'python -c "from pathlib import Path; from sparsity.run import run, run_config; '
    "from sparsity.writer import read_json; run(run_config(read_json(Path('config.json'))), 'W')\""
)


@dataclasses.dataclass(frozen=True)
class Page:
    """What a page says.

    Attributes:
      title, introduction: for someone who did not run it.
      runs: by name.
      figures: by heading.
      command: the line for a shell that makes its results again.
      findings: the sentences that answer a study's question.
      judgements: a study's verdicts.
      table: a study's own, in the place of every measure of every run.
    """

    title: str
    introduction: str
    runs: Mapping[str, RunView]
    figures: Mapping[str, Captioned]
    command: str
    findings: Sequence[str] = ()
    judgements: Sequence[Judgement] = ()
    table: Table | None = None


def write_run_report(files: Workdir, command: str | None = None) -> None:
    """Writes report/index.html of one run, from its files alone; `command` is what made it, if that is known."""
    files.report.parent.mkdir(parents=True, exist_ok=True)
    write_text(files.report, runs_page([files], command))


def runs_page(workdirs: Sequence[Workdir], command: str | None = None) -> str:
    """The page of a run, or of several side by side, from their files alone; a run may not have ended.

    They are called by their configs' names, or by their workdirs where two have one name.
    """
    names = [read_json(files.config)["name"] for files in workdirs]
    if len(set(names)) < len(names):
        names = [str(files.path) for files in workdirs]
    runs = {name: _view(files) for name, files in zip(names, workdirs, strict=True)}
    introduction = "One training run: its final evaluation, its course, and its config."
    again = f"# the config above, saved as config.json\n{_AGAIN}"
    if len(runs) > 1:
        introduction = (
            f"{len(runs)} training runs side by side: their configs' differences, final evaluations and courses."
        )
        again = f"# each of the configs above, saved as config.json, in a workdir W of its own\n{_AGAIN}"
    figures = {heading: Captioned.of(figure, runs) for heading, figure in draw.drawable(runs).items()}
    return render(Page(", ".join(runs), introduction, runs, figures, command or again))


def _view(files: Workdir) -> RunView:
    """The view of a run, ended or not. Raises WorkdirError if its records are cut short."""
    ended = files.read_outcome()
    if ended is not None:
        files.check_records(ended)
    last = max((record["step"] for record in read_metrics(files.metrics)), default=0) if ended is None else 0
    return RunView.of(files, ended or Outcome("unfinished", last))


def render(page: Page) -> str:
    """The page as HTML: it fetches nothing, runs no script but its own, and is the same text for the same results."""
    figures = {h: inline(f.drawing, f"f{i}", h) for i, (h, f) in enumerate(page.figures.items())}
    of_figures = ((h, _figure(i, h, figures[h], page.figures[h].caption)) for i, h in enumerate(figures))
    sections = [
        ("Findings", _listed(page.findings)),
        ("Claims", _claims(page.judgements)),
        ("Runs", _runs(page.runs)),
        ("Results", _results(page)),
        *of_figures,
        ("Definitions", "" if page.table else _definitions(page.runs)),
        ("Config" if len(page.runs) == 1 else "Configs", _configs(page.runs)),
        ("Command", _code(page.command)),
    ]
    sections = [(_text(heading), body) for heading, body in sections if body]
    links = (f'<a href="#s{i}">{heading}</a>' for i, (heading, _) in enumerate(sections))
    bodies = (f'<section id="s{i}">\n<h2>{h}</h2>\n{body}\n</section>' for i, (h, body) in enumerate(sections))
    colours = frozenset().union(*(f.colours for f in figures.values()))
    light, dark = (f":root {{ {variables(colours, scheme)} }}" for scheme in ("light", "dark"))
    script = _asset("script.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return string.Template(_asset("page.html")).substitute(
        policy=f"default-src 'none'; base-uri 'none'; form-action 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'",
        title=_text(page.title),
        introduction=_text(page.introduction),
        style=f"{light}\n@media (prefers-color-scheme: dark) {{ {dark} }}\n{_asset('style.css')}",
        contents=" ".join(links),
        sections="\n".join(bodies),
        # In a script element only "<" can end it, or begin a comment.
        figures=json.dumps([f.panels for f in figures.values()], separators=(",", ":")).replace("<", "\\u003c"),
        script=script,
    )


@functools.cache
def _asset(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


_text = html.escape


def _listed(sentences: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{_text(s)}</li>' for s in sentences)}</ul>" if sentences else ""


class _Cell(NamedTuple):
    """A cell of a table: its HTML, and the number that it is sorted by, if that is not its text."""

    html: str
    value: float | None = None

    def element(self, tag: str) -> str:
        """The cell as <td>, or as the header of its row."""
        number = "" if self.value is None or math.isnan(self.value) else repr(float(self.value))
        value = f' data-value="{number.replace("inf", "Infinity")}"' if number else ""  # JavaScript's word
        return f"<{tag}{value}>{self.html}</{tag.split()[0]}>"


def _value(value: Any) -> _Cell:
    """The cell of a plain value."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return _Cell(_text(cell(value)), value if number else None)


def _table(label: str, columns: Sequence[str], rows: Sequence[Sequence[_Cell]], kind: str = "") -> str:
    """A table that sorts by its columns, in a box of its own that scrolls; the first cell of a row names it."""
    head = "".join(f'<th scope="col"><button type="button">{_text(c)}</button></th>' for c in columns)
    tags = ('th scope="row"', *("td" for _ in columns[1:]))
    cells = (zip(row, tags, strict=True) for row in rows)
    body = "\n".join(f"<tr>{''.join(one.element(tag) for one, tag in row)}</tr>" for row in cells)
    table = f'<table class="{kind}">\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>'
    return f'<div class="wide" tabindex="0" role="region" aria-label="{_text(label)}">\n{table}\n</div>'


def _claims(judgements: Sequence[Judgement]) -> str:
    """The claims' verdicts, with the effect, its interval and n."""
    rows = []
    for j in judgements:
        interval = j.measured.interval()
        found = j.measured.failed or (f"{j.measured.value:.4g}" if j.measured.value is not None else "-")
        within = f" [{interval[0]:.4g}, {interval[1]:.4g}]" if interval else ""
        words = (j.claim.id, j.claim.where, j.claim.statement, j.claim.effect, f"{j.claim.side} {j.claim.threshold:g}")
        numbers = (_Cell(_text(found + within), j.measured.value), _value(j.measured.n))
        rows.append([*map(_value, words), *numbers, _Cell(f"<strong>{j.verdict}</strong>")])
    columns = ("claim", "where", "statement", "effect", "claimed", "found [95%]", "n", "verdict")
    return _table("Claims", columns, rows, "claims") if rows else ""


def _runs(runs: Mapping[str, RunView]) -> str:
    """How several runs ended, and the keys in which their configs differ."""
    if len(runs) < 2:
        return "".join(f"<p>{_text(n)}: {status(v.outcome)}, step {v.outcome.step:,}.</p>" for n, v in runs.items())
    configs = {name: flatten(view.config) for name, view in runs.items()}
    keys = dict.fromkeys(key for config in configs.values() for key in config)
    differing = [k for k in keys if k != "name" and len({json.dumps(c.get(k)) for c in configs.values()}) > 1]
    rows = [
        [_value(name), _value(status(view.outcome)), *(_value(configs[name].get(key)) for key in differing)]
        for name, view in runs.items()
    ]
    return _table("Runs", ("run", "status", *differing), rows)


def _results(page: Page) -> str:
    """A study's own table, or every measure of every run."""
    if page.table:
        rows = [[_value(value) for value in row.values()] for row in page.table.rows]
        return f'<p class="note">{_text(page.table.caption)}</p>\n{_table("Results", list(page.table.rows[0]), rows)}'
    if not page.runs:
        return ""
    outcomes = {name: view.outcome for name, view in page.runs.items()}
    places = {name: i for i, (names, _) in enumerate(_defined(outcomes)) for name in names}
    found = {name: {m.name: m for m in o.measures} for name, o in outcomes.items()}
    rows = []
    for key in measure_names(outcomes):
        term = f'<a class="term" href="#d{places[key]}" aria-describedby="d{places[key]}">{_text(key)}</a>'
        of_runs = (found[name].get(key) for name in outcomes)
        rows.append([_Cell(term), *(_Cell("-") if m is None else _Cell(_text(str(m)), m.value) for m in of_runs)])
    note = "Value ± standard error; each measure links to its definition."
    return f'<p class="note">{note}</p>\n{_table("Results", ("measure", *outcomes), rows)}' if rows else ""


def _defined(outcomes: Mapping[str, Outcome]) -> list[tuple[list[str], str]]:
    """Each definition once: (the measures that share it, its words and n); of runs that differ in it, each one's."""
    of_measure: dict[str, dict[str, None]] = {}
    for outcome in outcomes.values():
        for m in outcome.measures:
            of_measure.setdefault(m.name, {})[f"{m.definition}; n = {m.n:,}"] = None
    groups: dict[str, list[str]] = {}
    for name, words in of_measure.items():
        groups.setdefault("; in another run: ".join(words), []).append(name)
    return [(names, words) for words, names in groups.items()]


def _definitions(runs: Mapping[str, RunView]) -> str:
    outcomes = {name: view.outcome for name, view in runs.items()}
    items = (
        f'<dt>{_text(", ".join(names))}</dt>\n<dd id="d{i}">{_text(words)}</dd>'
        for i, (names, words) in enumerate(_defined(outcomes))
    )
    listed = "\n".join(items)
    return f"<dl>\n{listed}\n</dl>" if listed else ""


def _figure(index: int, heading: str, figure: Inline, caption: str) -> str:
    reading = ": a pointer or the arrow keys read its curves" if figure.panels else ""
    box = f'class="wide plot" id="plot-{index}" tabindex="0" role="group" aria-label="{_text(heading)}{reading}"'
    return (
        f"<figure>\n<div {box}>{figure.svg}</div>\n"
        f'<figcaption id="f{index}-caption">{_text(caption)}</figcaption>\n</figure>'
    )


def _configs(runs: Mapping[str, RunView]) -> str:
    """Every run's config as JSON; that of a single one stands open."""
    shown = " open" if len(runs) == 1 else ""
    return "\n".join(
        f"<details{shown}><summary>{_text(name)}</summary>{_code(json.dumps(view.config, indent=1))}</details>"
        for name, view in runs.items()
    )


def _code(text: str) -> str:
    """Text to copy."""
    return f'<div class="code"><pre tabindex="0">{_text(text)}</pre></div>'
