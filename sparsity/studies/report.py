"""Tables and pages: a run's or a study's results for someone who did not run it."""

from __future__ import annotations

import csv
import dataclasses
import html
import inspect
import io
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sparsity.run import Outcome, Workdir
from sparsity.studies import draw
from sparsity.studies.draw import Captioned, RunView
from sparsity.studies.judge import Judgement
from sparsity.writer import write_text

Row = Mapping[str, Any]  # of a study's own table: column -> a number, a word, or None where there is none

_CSS = """
:root { color-scheme: light dark; --line: #8884; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { line-height: 1.2; } h2 { margin-top: 2.2rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .8rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
.claims td { white-space: normal; text-align: left; }
.wide { overflow-x: auto; } .definitions dt { font-weight: 600; } .definitions, figcaption { font-size: .9rem; }
figure { margin: 1rem 0; } figure svg { width: 100%; height: auto; background: #fff; border-radius: .4rem; }
pre { overflow-x: auto; font-size: .85rem; padding: .8rem; border: 1px solid var(--line); border-radius: .4rem; }
"""


@dataclasses.dataclass(frozen=True)
class Table:
    """A study's own table; the caption says what the columns are."""

    rows: Sequence[Row]
    caption: str

    @classmethod
    def of(cls, table: Callable[..., Any], rows: Sequence[Row]) -> Table:
        """The rows that `table` made, captioned by its docstring."""
        return cls(rows, inspect.cleandoc(table.__doc__))


def text_table(outcomes: Mapping[str, Outcome]) -> str:
    """Measures down, runs across, as aligned text; a diverged run says so in every row's place."""
    names = list(outcomes)
    by_run = {name: {m.name: str(m) for m in o.measures} for name, o in outcomes.items()}
    rows = [["measure", *names], ["status", *(_status(outcomes[n]) for n in names)]]
    rows += [[key, *(by_run[n].get(key, "-") for n in names)] for key in _keys(outcomes)]
    return aligned(rows)


def text_rows(rows: Sequence[Row]) -> str:
    """The rows of a study's own table as aligned text."""
    return aligned([list(rows[0]), *([_cell(v) for v in row.values()] for row in rows)])


def rows_csv(rows: Sequence[Row]) -> str:
    """The rows of a study's own table as CSV, in full precision; None is an empty cell."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as text columns, the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *rest in rows:
        cells = [first.ljust(widths[0]), *(c.rjust(w) for c, w in zip(rest, widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def write_run_report(files: Workdir) -> None:
    """Writes report/index.html of one finished run, from its files alone. Raises WorkdirError if they are cut short."""
    outcome = files.read_outcome()
    files.check_records(outcome)
    view = RunView.of(files, outcome)
    name = view.config["name"]
    introduction = "One training run: its final evaluation, its course, and its config."
    files.report.parent.mkdir(parents=True, exist_ok=True)
    shown = {h: f for h, f in draw.FIGURES.items() if h not in draw.ARRAYS or draw.ARRAYS[h] in view.outcome.arrays}
    figures = {heading: Captioned.of(figure, {name: view}) for heading, figure in shown.items()}
    write_text(files.report, results_page(name, introduction, [], {name: view}, figures))


def results_page(
    title: str,
    introduction: str,
    findings: Sequence[str],
    runs: Mapping[str, RunView],
    figures: Mapping[str, Captioned],
    judgements: Sequence[Judgement] = (),
    table: Table | None = None,
) -> str:
    """One self-contained HTML page: findings, verdicts, table, figures, definitions, configs."""
    outcomes = {name: view.outcome for name, view in runs.items()}
    parts = [f"<h1>{html.escape(title)}</h1>", f"<p>{html.escape(introduction)}</p>"]
    if findings:
        parts += ["<h2>Findings</h2><ul>", *(f"<li>{html.escape(f)}</li>" for f in findings), "</ul>"]
    if judgements:
        parts += ["<h2>Claims</h2>", _claims(judgements)]
    if table:
        parts += ["<h2>Results</h2>", f"<p>{html.escape(table.caption)}</p>", _html_rows(table.rows)]
    elif runs:
        parts += ["<h2>Results</h2>", "<p>Value ± standard error; what each is stands under Definitions.</p>"]
        parts.append(_html_table(outcomes))
    for heading, figure in figures.items():
        caption = f"<figcaption>{html.escape(figure.caption)}</figcaption>"
        parts += [f"<h2>{heading}</h2><figure>{figure.drawing.svg()}{caption}</figure>"]
    if runs and not table:
        parts += ["<h2>Definitions</h2>", _definitions(outcomes)]
    if runs:
        parts += ["<h2>Configs</h2>"]
    for name, view in runs.items():
        text = html.escape(json.dumps(view.config, indent=1))
        parts.append(f"<details><summary>{html.escape(name)}</summary><pre>{text}</pre></details>")
    head = (
        f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{html.escape(title)}</title>'
    )
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}<style>{_CSS}</style></head>\n<body>\n{body}\n</body></html>\n'
    )


def _html_table(outcomes: Mapping[str, Outcome]) -> str:
    cells = {name: {m.name: m for m in o.measures} for name, o in outcomes.items()}
    header = "".join(f"<th>{html.escape(n)}</th>" for n in outcomes)
    rows = [f"<tr><td>status</td>{''.join(f'<td>{_status(o)}</td>' for o in outcomes.values())}</tr>"]
    for key in _keys(outcomes):
        found = [cells[n].get(key) for n in outcomes]
        tds = "".join("<td>-</td>" if m is None else f'<td title="n = {m.n}">{html.escape(str(m))}</td>' for m in found)
        rows.append(f"<tr><td>{html.escape(key)}</td>{tds}</tr>")
    return f'<div class="wide"><table><tr><th>measure</th>{header}</tr>{"".join(rows)}</table></div>'


def _html_rows(rows: Sequence[Row]) -> str:
    header = "".join(f"<th>{html.escape(column)}</th>" for column in rows[0])
    cells = ("".join(f"<td>{html.escape(_cell(v))}</td>" for v in row.values()) for row in rows)
    body = "".join(f"<tr>{row}</tr>" for row in cells)
    return f'<div class="wide"><table><tr>{header}</tr>{body}</table></div>'


def _claims(judgements: Sequence[Judgement]) -> str:
    """The claims' verdicts, with the effect, its interval and n."""
    rows = []
    for j in judgements:
        interval = j.measured.interval()
        found = j.measured.failed or (f"{j.measured.value:.4g}" if j.measured.value is not None else "-")
        within = f" [{interval[0]:.4g}, {interval[1]:.4g}]" if interval else ""
        asked = f"{j.claim.side} {j.claim.threshold:g}"
        cells = (j.claim.id, j.claim.where, j.claim.statement, j.claim.effect, asked, found + within, str(j.measured.n))
        rows.append("".join(f"<td>{html.escape(c)}</td>" for c in cells) + f"<td><b>{j.verdict}</b></td>")
    header = "".join(
        f"<th>{h}</th>" for h in ("claim", "where", "statement", "effect", "claimed", "found [95%]", "n", "verdict")
    )
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f'<div class="wide"><table class="claims"><tr>{header}</tr>{body}</table></div>'


def results_csv(outcomes: Mapping[str, Outcome]) -> str:
    """One line a measure: run, status, step, measure, value, se, n, unit, definition."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(("run", "status", "step", "measure", "value", "se", "n", "unit", "definition"))
    for name, outcome in outcomes.items():
        ended = (name, outcome.status, outcome.step)
        if not outcome.measures:
            writer.writerow((*ended, "", "", "", "", "", ""))
        for m in outcome.measures:
            writer.writerow((*ended, m.name, m.value, "" if m.se is None else m.se, m.n, m.unit, m.definition))
    return buffer.getvalue()


def _definitions(outcomes: Mapping[str, Outcome]) -> str:
    """Each definition once, with the measures that share it and their n."""
    groups: dict[tuple[str, int], list[str]] = {}
    for outcome in outcomes.values():
        for m in outcome.measures:
            names = groups.setdefault((m.definition, m.n), [])
            if m.name not in names:
                names.append(m.name)
    items = (
        f"<dt>{html.escape(', '.join(names))}</dt><dd>{html.escape(text)}; n = {n:,}</dd>"
        for (text, n), names in groups.items()
    )
    return f'<dl class="definitions">{"".join(items)}</dl>'


def _keys(outcomes: Mapping[str, Outcome]) -> list[str]:
    """The names of all measures, in order of first appearance."""
    return list(dict.fromkeys(m.name for o in outcomes.values() for m in o.measures))


def _status(outcome: Outcome) -> str:
    return outcome.status if outcome.status == "finished" else f"{outcome.status}({outcome.step})"
