"""Runs of a study, the one way to do several: expand, skip what is finished, gather, report."""

from __future__ import annotations

import dataclasses
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sparsity import config as config_lib
from sparsity import distributed
from sparsity.bench.measurement import LATENCY, LatencyConfig, latency_config, measure_latency
from sparsity.config import ConfigError
from sparsity.run import Outcome, RunConfig, Workdir, cost, directory_name, run, run_config, start_of
from sparsity.studies import draw, report
from sparsity.studies.draw import Drawing, Runs, RunView
from sparsity.studies.judge import Claim, Judgement, judge
from sparsity.studies.report import Row
from sparsity.writer import Progress, write_bytes, write_json, write_text

Config = RunConfig | LatencyConfig


@dataclasses.dataclass(frozen=True)
class Record:
    """One run of a study: its config, its files and how it ended."""

    config: Config
    files: Workdir
    outcome: Outcome


@dataclasses.dataclass(frozen=True)
class Study:
    """A question put to a set of runs.

    Attributes:
      name: its config is configs/<name>.py; its results go to W/<name>/.
      title, introduction: of the report, for someone who did not run it.
      findings: the sentences that answer the question, computed from the records.
      figures: by heading, each from the runs by name; the first is the study's figure.png.
      claims: what the paper claims, judged from the records.
      table: the records as the rows of results.csv and of the page's table, its docstring saying what the
        columns are; by default every measure of every run.
      draws_diverged: its figures take diverged runs too.
      series: numbers by step or layer that figures show, as the rows of series.csv.
    """

    name: str
    title: str
    introduction: str
    findings: Callable[[Sequence[Record]], list[str]]
    figures: Mapping[str, Callable[[Runs], Drawing]] = dataclasses.field(default_factory=lambda: draw.FIGURES)
    claims: tuple[Claim, ...] = ()
    table: Callable[[Sequence[Record]], list[Row]] | None = None
    series: Callable[[Sequence[Record]], list[Row]] | None = None
    draws_diverged: bool = False


@dataclasses.dataclass(frozen=True)
class Part:
    """Which runs of a sweep to do.

    Attributes:
      only: dotted config keys and the values asked for, as text; a run must match all.
      shard: (i, n): every n-th run from the i-th on, 0 <= i < n; runs that start from one another are one of these.
    """

    only: Mapping[str, str] = dataclasses.field(default_factory=dict)
    shard: tuple[int, int] = (0, 1)

    @classmethod
    def parse(cls, only: Sequence[str], shard: str) -> Part:
        """From flags: `["model.d_model=64"]` and "i/n". Raises ConfigError."""
        pairs = [pair.partition("=") for pair in only]
        for key, equals, _ in pairs:
            if not equals:
                raise ConfigError(f"--only: {key!r} is not key=value")
        found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", shard)
        if not found or not int(found[1]) < int(found[2]):
            raise ConfigError(f"--shard: expected i/n with i from 0 to n - 1, got {shard!r}")
        return cls({key: value for key, _, value in pairs}, (int(found[1]), int(found[2])))

    def of(self, configs: Sequence[Config]) -> list[Config]:
        """The runs chosen. Raises ConfigError for a key that no run has, or a choice of none."""
        flat = [config_lib.flatten(config_lib.to_dict(c)) for c in configs]
        known = {key for f in flat for key in f}
        for key in self.only:
            if key not in known:
                raise ConfigError(f'--only: no run has the key "{key}"{config_lib.nearest(key, known)}')
        chosen = [
            c for c, f in zip(configs, flat, strict=True) if all(str(f.get(k)) == v for k, v in self.only.items())
        ]
        if self.only and not chosen:
            raise ConfigError(f"--only: no run has {', '.join(f'{k}={v}' for k, v in self.only.items())}")
        families: dict[str, list[Config]] = {}
        for config in chosen:
            families.setdefault(directory_name(_first(config)), []).append(config)
        share = list(families.values())[self.shard[0] :: self.shard[1]]
        return [config for family in share for config in family]

    @property
    def whole(self) -> bool:
        """All runs: only then are a study's results written."""
        return not self.only and self.shard == (0, 1)


def _first(config: Config) -> Config:
    """The run that a run starts from, and that one, and so on to one that starts from none."""
    start = getattr(config, "start", None)
    return config if start is None else _first(start)


@dataclasses.dataclass(frozen=True)
class Results:
    """What a study leaves: the printed text and, if it is whole, the page."""

    text: str
    report: Path | None


def study(name: str, table: Mapping[str, Study]) -> Study:
    """The study called `name`. Raises ConfigError naming the nearest one."""
    return config_lib.lookup(table, name, "study")


def expand(sweep: Callable[[str], Sequence[Any]], scale: str) -> list[Config]:
    """The typed configs of a sweep, all checked before the first one runs; those of kind "latency" are measurements.

    Raises:
      ConfigError: a scale the sweep lacks, a bad config, or two runs of one name.
    """
    try:
        typed = lambda section: latency_config(section) if section.get("kind") == LATENCY else run_config(section)
        configs = [typed(section) for section in sweep(scale)]
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from error
    names = [c.name for c in configs]
    if len(set(names)) < len(names):
        raise ConfigError(f"the sweep gives two runs one name: {', '.join(sorted(names))}")
    return configs


def run_directory(workdir: Path, config: Config) -> Path:
    """W/runs/<name>-<config hash>: studies with a run in common share its directory."""
    return workdir / "runs" / directory_name(config)


def plan(
    configs: Sequence[Config],
    workdir: Path,
    directory: Callable[[Path, Any], Path] = run_directory,
    devices: list | int | None = None,
) -> str:
    """One line a run, as text: its `run.Cost`, and how it ended in its directory, or that it is to do. Runs nothing.

    Of measurements the cost is left out. `devices` are those that an `Engine` takes.

    Raises:
      WorkdirError: a directory belongs to another config.
    """
    rows = [("run", "parameters", "training FLOPs", "state", "status")]
    for config in configs:
        files = Workdir(directory(workdir, config))
        if isinstance(config, LatencyConfig):
            rows.append((config.name, "", "", "", "to do" if files.read_outcome() is None else "finished"))
            continue
        one, ended = cost(config, devices), files.ended(config)
        status = "to do" if ended is None else ended.status
        size = f"{one.state_bytes / 2**20:,.1f} MiB"
        rows.append((config.name, f"{one.parameters:,}", f"{one.training_flops:.3g}", size, status))
    return report.aligned(rows)


def plan_of_run(config: RunConfig, workdir: Path, devices: list | int | None = None) -> str:
    """`plan` of one run in `workdir`, after the runs that it starts from, and where those stand. Runs nothing.

    Those behind a run that has ended are left out: nothing reads them any more.

    Raises:
      WorkdirError: a directory belongs to another config.
    """
    configs, places = [config], [workdir]
    while configs[0].start is not None and Workdir(places[0]).read_outcome() is None:
        places.insert(0, start_of(Workdir(places[0]), configs[0]).path)
        configs.insert(0, configs[0].start)
    text = plan(configs, workdir, lambda _, one: places[configs.index(one)], devices)
    return "\n".join([text, *(f"starts from: {place}" for place in places[-2::-1])])


def views(configs: Sequence[Any], workdir: str | Path, progress: Progress | None = None) -> dict[str, RunView]:
    """Runs a few configs, as recipes make them, and gives what figures draw: a notebook's study.

    Raises:
      ConfigError: a bad config, or two runs of one name.
    """
    found = {}
    for config in expand(lambda _: configs, ""):
        files = Workdir(run_directory(Path(workdir), config))
        found[config.name] = RunView.of(files, run(config, files.path, progress))
    return found


def run_study(
    study: Study,
    sweep: Callable[[str], Sequence[Any]],
    scale: str,
    workdir: str | Path,
    progress: Progress,
    part: Part = Part(),
) -> Results:
    """Runs every run of the sweep that is not finished, then writes the study's results.

    They are W/<study>/results.csv, figure.png, figure.svg, claims.json and report/index.html. A
    diverged run is a result like any other. A part of a study writes no results of the study;
    nor is anything written when what stands there was made from the same runs, findings and claims.
    Several processes do each run together; the first one measures times, alone, and has the results.
    """
    workdir = Path(workdir)
    configs = part.of(expand(sweep, scale))
    records = []
    clock = _Clock([Workdir(run_directory(workdir, c)).read_outcome() is None for c in configs])
    for i, config in enumerate(configs):
        files = Workdir(run_directory(workdir, config))
        if len(configs) > 1 and clock.to_do[i] and distributed.first():
            progress.say(f"run {i + 1} of {len(configs)}: {config.name}{clock.left(i)}")
        do = measure_latency if isinstance(config, LatencyConfig) else run
        if do is measure_latency and not distributed.first():
            continue
        outcome = do(config, files.path, progress)
        if outcome.resumed and isinstance(config, RunConfig):
            files.check_records(outcome)  # before figures are drawn of them
        clock.done(i)
        if not distributed.first():
            continue
        # Hundreds of runs are read in the study's own table; `launch.train` makes the page of one when asked.
        if not study.table and outcome.status == "finished" and not files.report.exists():
            report.write_run_report(files, f"{_command(study, scale)} --only=name={config.name}")
        records.append(Record(config, files, outcome))
    if not distributed.first():
        return Results("", None)
    rows = study.table(records) if study.table else []
    text = report.text_rows(rows) if rows else report.text_table({r.config.name: r.outcome for r in records})
    if not part.whole:
        return Results(f"{text}\n\na part of the study: run it whole for its results", None)
    page = workdir / study.name / "report" / "index.html"
    findings = study.findings(records)
    judgements = [judge(claim, records) for claim in study.claims]
    text = "\n".join([text, "", *findings, *(f"{j.claim.id}: {j.verdict} ({j.claim.statement})" for j in judgements)])
    manifest = _manifest(study, records, rows, findings, judgements)
    if _standing(page) == manifest:
        return Results(f"{text}\n\n{study.name}: finished already; nothing to do.", page)
    _write(study, page, records, rows, findings, judgements, _command(study, scale))
    write_text(page.parents[1] / "study.json", manifest)  # last: it says that all is there
    return Results(text, page)


def _command(study: Study, scale: str) -> str:
    """What runs the study for a reader of its page, in a workdir of their own."""
    return f"python -m launch.reproduce --study={study.name} --scale={scale} --workdir=W"


class _Clock:
    """Time left of a study, from the mean duration of the runs it has done."""

    def __init__(self, to_do: list[bool]):
        self.to_do, self._seconds, self._began = to_do, [], time.monotonic()

    def done(self, i: int) -> None:
        """Run `i` has ended."""
        now = time.monotonic()
        if self.to_do[i]:
            self._seconds.append(now - self._began)
        self._began = now

    def left(self, i: int) -> str:
        """What to say of the time left before run `i` starts; nothing before the first."""
        if not self._seconds:
            return ""
        minutes = sum(self.to_do[i:]) * sum(self._seconds) / len(self._seconds) / 60
        return f" (about {minutes:.0f} min left)"


def _manifest(
    study: Study,
    records: Sequence[Record],
    rows: list[Row],
    findings: Sequence[str],
    judgements: Sequence[Judgement],
) -> str:
    """What a study's files were made from, as text: another sweep, outcome, table, caption or rule makes another."""
    said = [f.__doc__ for f in (study.table, study.series, *study.figures.values()) if f is not None]
    made_from = {
        "runs": [r.files.path.name for r in records],
        "findings": list(findings),
        "claims": [j.record() for j in judgements],
        "table": [dict(row) for row in rows],
        "captions": said,
    }
    return json.dumps(made_from, indent=1) + "\n"


def _standing(page: Path) -> str | None:
    """The manifest of the results on disk; None if there are none, or not all."""
    manifest = page.parents[1] / "study.json"
    return manifest.read_text(encoding="utf-8", errors="replace") if manifest.exists() and page.exists() else None


def _write(
    study: Study,
    page: Path,
    records: Sequence[Record],
    rows: list[Row],
    findings: Sequence[str],
    judgements: Sequence[Judgement],
    command: str,
) -> None:
    """Writes the study's files."""
    page.parent.mkdir(parents=True, exist_ok=True)
    folder = page.parents[1]
    outcomes = {r.config.name: r.outcome for r in records}
    write_text(folder / "results.csv", report.rows_csv(rows) if rows else report.results_csv(outcomes))
    if study.series:
        write_text(folder / "series.csv", report.rows_csv(study.series(records)))
    write_json(folder / "claims.json", [j.record() for j in judgements])
    runs = {r.config.name: RunView.of(r.files, r.outcome) for r in records}
    drawn = {n: view for n, view in runs.items() if study.draws_diverged or view.outcome.status == "finished"}
    figures = {
        heading: draw.Captioned.of(figure, drawn) for heading, figure in study.figures.items() if drawn or not runs
    }
    for first in list(figures.values())[:1]:
        write_bytes(folder / "figure.png", first.drawing.png())
        write_text(folder / "figure.svg", first.drawing.svg())
    table = report.Table.of(study.table, rows) if study.table else None
    said = report.Page(study.title, study.introduction, runs, figures, command, findings, judgements, table)
    write_text(page, report.render(said))
