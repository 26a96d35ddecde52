"""Results as text and CSV."""

from __future__ import annotations

import csv
import dataclasses
import inspect
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sparsity.run import Outcome

Row = Mapping[str, Any]  # of a study's own table: column -> a number, a word, or None where there is none


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
    rows = [["measure", *names], ["status", *(status(outcomes[n]) for n in names)]]
    rows += [[key, *(by_run[n].get(key, "-") for n in names)] for key in measure_names(outcomes)]
    return aligned(rows)


def text_rows(rows: Sequence[Row]) -> str:
    """The rows of a study's own table as aligned text."""
    return aligned([list(rows[0]), *([cell(v) for v in row.values()] for row in rows)])


def rows_csv(rows: Sequence[Row]) -> str:
    """The rows of a study's own table as CSV, in full precision; None is an empty cell."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


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


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as text columns, the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *rest in rows:
        cells = [first.ljust(widths[0]), *(c.rjust(w) for c, w in zip(rest, widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def cell(value: Any) -> str:
    """A value of a study's own table as it is read: four digits of a fraction, nothing where there is none."""
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def measure_names(outcomes: Mapping[str, Outcome]) -> list[str]:
    """The names of all measures, in order of first appearance."""
    return list(dict.fromkeys(m.name for o in outcomes.values() for m in o.measures))


def status(outcome: Outcome) -> str:
    """How a run ended: finished, or the other status with its step."""
    return outcome.status if outcome.status == "finished" else f"{outcome.status}({outcome.step})"
