"""Runs a study: every run that its config's sweep declares, then its table, figures and report.

python -m launch.reproduce --study=quickstart --workdir=W [--only=KEY=VALUE,...] [--shard=i/n] [--dry_run]
    [--restarts=N]
"""

from pathlib import Path

from absl import flags

from launch import cli, supervisor
from sparsity.studies import STUDIES, runner
from sparsity.writer import Progress

cli.define_processes()
_STUDY = flags.DEFINE_string("study", None, f"name of a study; there are: {', '.join(STUDIES)}", required=True)
_SCALE = flags.DEFINE_enum(
    "scale", "embedded", ["embedded", "paper"], "real data from installed packages, or the paper's"
)
_WORKDIR = flags.DEFINE_string("workdir", None, "directory for runs/ and the study's results", required=True)
_ONLY = flags.DEFINE_list("only", [], "run only the runs whose config has these KEY=VALUE; writes no study results")
_SHARD = flags.DEFINE_string("shard", "0/1", "i/n: run the i-th of n parts, i from 0; writes no study results")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "print the runs with parameters, FLOPs and memory; run nothing")
_RESTARTS = supervisor.define()


def reproduce() -> int:
    """Runs what is not finished and writes the study's results."""
    if _RESTARTS.value:
        progress = lambda: supervisor.steps_saved(_WORKDIR.value)
        return supervisor.supervise(supervisor.unsupervised(), _RESTARTS.value, progress)
    study = runner.study(_STUDY.value, STUDIES)
    sweep = cli.load_study_config(_STUDY.value).sweep
    part = runner.Part.parse(_ONLY.value, _SHARD.value)
    if _DRY_RUN.value:
        cli.say(runner.plan(part.of(runner.expand(sweep, _SCALE.value)), Path(_WORKDIR.value)))
        return cli.DONE
    cli.say_device()
    results = runner.run_study(study, sweep, _SCALE.value, _WORKDIR.value, Progress(), part)
    cli.say(results.text)
    if results.report:
        cli.say(f"report: {results.report}")
    return cli.DONE


if __name__ == "__main__":
    cli.main(reproduce)
