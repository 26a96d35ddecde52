"""What was found of checkpoints, as text, and as files that others read: JSON, CSV, Markdown, LaTeX."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sparsity.config import ConfigError
from sparsity.studies.evaluated import Evaluated
from sparsity.studies.paired import Paired
from sparsity.studies.report import aligned
from sparsity.writer import write_text

NOTHING = "-"  # where nothing was measured


@dataclasses.dataclass(frozen=True)
class Findings:
    """What was found.

    Attributes:
      checkpoints: each evaluated.
      differences: of each from the first, example by example.
      across: they are of several runs, side by side; else there is a row for each.
    """

    checkpoints: Sequence[Evaluated]
    differences: Sequence[Paired] = ()
    across: bool = False


@dataclasses.dataclass(frozen=True)
class Grid:
    """A table for the eye: rows of cells, the first row what the columns are; and what is to be said of it."""

    rows: Sequence[Sequence[str]]
    caption: str


def grids(findings: Findings) -> list[Grid]:
    """The tables: measures down and runs across, or a checkpoint in each row; then the differences."""
    if findings.across:
        out = [Grid(_side_by_side(findings.checkpoints), "Value ± standard error.")]
    else:
        out = [Grid(by_checkpoint(findings.checkpoints), "Value ± standard error, a checkpoint in each row.")]
    return [*out, *([_differences(findings.differences)] if findings.differences else [])]


def _side_by_side(found: Sequence[Evaluated]) -> list[list[str]]:
    ended = [one.status if one.status == "finished" else f"{one.status}({one.step})" for one in found]
    rows = [["measure", *(one.of.run for one in found)], ["status", *ended]]
    cells = [_cells(one) for one in found]
    return rows + [[name, *(of.get(name, NOTHING) for of in cells)] for name in _names(found)]


def by_checkpoint(found: Sequence[Evaluated]) -> list[list[str]]:
    """The step, and every measure; the run too if there are several."""
    names, several = _names(found), len({one.of.run for one in found}) > 1
    rows = [["run", "step", *names] if several else ["step", *names]]
    for one in found:
        step = f"{one.step}" if one.result else f"{one.step} (damaged)"
        cells = _cells(one)
        rows.append([*([one.of.run] if several else []), step, *(cells.get(name, NOTHING) for name in names)])
    return rows


def _differences(found: Sequence[Paired]) -> Grid:
    names = list(dict.fromkeys(name for one in found for name in one.effects))
    rows = [[f"less {found[0].against}", *(one.run for one in found)]]
    rows += [[name, *(one.text(name) for one in found)] for name in names]
    sizes = [str(next(iter(one.effects.values())).n) if one.effects else NOTHING for one in found]
    said = ["Differences paired over the same n examples ± the standard error of their mean; 1 point is 1 %."]
    said += [f"{one.run} is not paired with {one.against}: {one.refused}." for one in found if one.refused]
    return Grid([*rows, ["n", *sizes]], " ".join(said))


def _cells(one: Evaluated) -> dict[str, str]:
    return {m.name: str(m) for m in one.result.measures} if one.result else {}


def _names(found: Sequence[Evaluated]) -> list[str]:
    """Of all measures, in order of first appearance."""
    return list(dict.fromkeys(m.name for one in found if one.result for m in one.result.measures))


def text(findings: Findings) -> str:
    """For a terminal."""
    first, *rest = grids(findings)
    return "\n".join([aligned(first.rows), *(f"\n{grid.caption}\n{aligned(grid.rows)}" for grid in rest)])


def markdown(findings: Findings) -> str:
    """Tables of GitHub's Markdown."""
    parts = []
    for grid in grids(findings):
        header, *rows = [[escape_markdown(cell) for cell in row] for row in grid.rows]
        rule = [":--", *["--:"] * (len(header) - 1)]
        lines = [f"| {' | '.join(row)} |" for row in (header, rule, *rows)]
        parts.append("\n".join([escape_markdown(grid.caption), "", *lines]))
    return "\n\n".join(parts) + "\n"


def latex(findings: Findings) -> str:
    """Tables of plain LaTeX, which no package is needed for."""
    parts = []
    for grid in grids(findings):
        header, *rows = [[escape_latex(cell) for cell in row] for row in grid.rows]
        line = lambda row: f"{' & '.join(row)} \\\\"
        parts += [
            *("\\begin{table}", "\\centering", f"\\caption{{{escape_latex(grid.caption)}}}"),
            *(f"\\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}", "\\hline", line(header), "\\hline"),
            *(*map(line, rows), "\\hline", "\\end{tabular}", "\\end{table}", ""),
        ]
    return "\n".join(parts)


def escape_markdown(cell: str) -> str:
    r"""`cell` as Markdown shows it.

    >>> print(escape_markdown("a|b *c* _d_"))
    a\|b \*c\* \_d\_
    """
    return re.sub(r"([\\`*_{}\[\]<>|~#&$!])", r"\\\1", " ".join(cell.split()))


_LATEX = {
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"},
    **{"±": r"$\pm$", "−": "$-$", "×": r"$\times$"},
}


def escape_latex(cell: str) -> str:
    r"""`cell` as LaTeX sets it; the sign of a negative number is a minus.

    >>> print(escape_latex("-1.5 ± 0.5 %"), escape_latex("a_b"))
    $-$1.5 $\pm$ 0.5 \% a\_b
    """
    cell = re.sub(r"^-(?=\d|inf)", "−", " ".join(cell.split()))
    return "".join(_LATEX.get(sign, sign) for sign in cell)


def to_csv(findings: Findings) -> str:
    """A line a measure, and one a difference, in full precision; what there is not is an empty cell."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(("run", "less", "step", "status", "measure", "value", "se", "n", "unit", "definition"))
    blank = lambda value: "" if value is None else value
    for one in findings.checkpoints:
        which = (one.of.run, "", one.step)
        if one.result is None:
            writer.writerow((*which, "damaged", "", "", "", "", "", ""))
            continue
        for m in one.result.measures:
            writer.writerow((*which, one.status, m.name, m.value, blank(m.se), m.n, m.unit, m.definition))
    for one in findings.differences:
        which = (one.run, one.against, "")
        if one.refused:
            writer.writerow((*which, "not paired", "", "", "", "", "", one.refused))
        for name, effect in one.effects.items():
            numbers = (effect.value, blank(effect.se), effect.n, one.units[name])
            writer.writerow((*which, "paired", name, *numbers, "mean difference over the same n examples"))
    return buffer.getvalue()


def to_json(findings: Findings) -> str:
    """Of one checkpoint `{run, workdir, step, status, measures}`, with `generated` if texts were; or lists of them."""
    found = [_record(one) for one in findings.checkpoints]
    if findings.across and len(found) == 1:
        value: dict[str, Any] = found[0]
    else:
        value = {"checkpoints": found, "differences": [_difference(one) for one in findings.differences]}
    return json.dumps(value, indent=1) + "\n"


def _record(one: Evaluated) -> dict[str, Any]:
    which = {"run": one.of.run, "workdir": str(one.of.files.path), "step": one.step}
    if one.result is None:
        return which | {"status": "damaged", "measures": None}
    measures = [dataclasses.asdict(m) for m in one.result.measures]
    generated = {"generated": one.result.arrays["generated"]} if "generated" in one.result.arrays else {}
    return which | {"status": one.status, "measures": measures} | generated


def _difference(one: Paired) -> dict[str, Any]:
    rows = [
        {"measure": name, "value": e.value, "se": e.se, "n": e.n, "interval": e.interval(), "unit": one.units[name]}
        for name, e in one.effects.items()
    ]
    return {"run": one.run, "less": one.against, "refused": one.refused, "measures": rows}


FORMATS: dict[str, Callable[[Findings], str]] = {
    ".json": to_json,
    ".csv": to_csv,
    ".md": markdown,
    ".tex": latex,
}


def check_path(path: str | Path) -> None:
    """Raises ConfigError unless `write` can write there: an ending of `FORMATS`, in a directory that is there."""
    path = Path(path)
    if path.suffix not in FORMATS:
        raise ConfigError(f"--out: {path.name} ends in none of {', '.join(FORMATS)}")
    if not path.parent.is_dir():
        raise ConfigError(f"--out: no directory {path.parent}")


def write(findings: Findings, path: str | Path) -> None:
    """Writes the findings whole or not at all, in the format that the ending of `path` names."""
    check_path(path)
    write_text(Path(path), FORMATS[Path(path).suffix](findings))
