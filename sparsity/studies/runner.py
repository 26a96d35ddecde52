"""Runs of a study, the one way to do several: expand, skip what is finished, gather, report."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sparsity import config as config_lib
from sparsity.config import ConfigError
from sparsity.run import Outcome, RunConfig, Workdir, run, run_config
from sparsity.studies import report
from sparsity.studies.draw import RunView
from sparsity.writer import Progress, write_text


@dataclasses.dataclass(frozen=True)
class Record:
    """One run of a study: its config, its files and how it ended."""

    config: RunConfig
    files: Workdir
    outcome: Outcome


@dataclasses.dataclass(frozen=True)
class Study:
    """A question put to a set of runs.

    Attributes:
      name: its config is configs/<name>.py; its results go to W/<name>/.
      title, introduction: of the report, for someone who did not run it.
      findings: the sentences that answer the question, computed from the records.
    """

    name: str
    title: str
    introduction: str
    findings: Callable[[Sequence[Record]], list[str]]


@dataclasses.dataclass(frozen=True)
class Results:
    """What a study leaves: the printed text and the page."""

    text: str
    report: Path


def study(name: str, table: Mapping[str, Study]) -> Study:
    """The study called `name`. Raises ConfigError naming the nearest one."""
    return config_lib.lookup(table, name, "study")


def expand(sweep: Callable[[str], Sequence[Any]], scale: str) -> list[RunConfig]:
    """The typed configs of a sweep, all checked before the first one runs.

    Raises:
      ConfigError: a scale the sweep lacks, a bad config, or two runs of one name.
    """
    try:
        configs = [run_config(section) for section in sweep(scale)]
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from error
    names = [c.name for c in configs]
    if len(set(names)) < len(names):
        raise ConfigError(f"the sweep gives two runs one name: {', '.join(sorted(names))}")
    return configs


def run_directory(workdir: Path, config: RunConfig) -> Path:
    """W/runs/<name>-<config hash>: studies with a run in common share its directory."""
    return workdir / "runs" / f"{config.name}-{config_lib.config_hash(config)}"


def run_study(
    study: Study, sweep: Callable[[str], Sequence[Any]], scale: str, workdir: str | Path, progress: Progress
) -> Results:
    """Runs every run of the sweep that is not finished, then writes W/<study>/report/index.html.

    A diverged run is a result like any other. When nothing was left to run and the report
    stands, nothing is written.
    """
    workdir = Path(workdir)
    records = []
    for config in expand(sweep, scale):
        files = Workdir(run_directory(workdir, config))
        outcome = run(config, files.path, progress)
        if outcome.status == "finished" and not files.report.exists():
            report.write_run_report(files)
        records.append(Record(config, files, outcome))
    page = workdir / study.name / "report" / "index.html"
    text = report.text_table({r.config.name: r.outcome for r in records})
    findings = study.findings(records)
    text = "\n".join([text, "", *findings])
    if all(r.outcome.resumed for r in records) and page.exists():
        return Results(f"{text}\n\n{study.name}: finished already; nothing to do.", page)
    page.parent.mkdir(parents=True, exist_ok=True)
    runs = {r.config.name: RunView.of(r.files, r.outcome) for r in records}
    write_text(page, report.study_page(study.title, study.introduction, findings, runs))
    return Results(text, page)
