"""Trains and evaluates one run. Rerunning the same command resumes it, or says that it is finished.

python -m launch.train --config=configs/quickstart.py:top_k [--config.seed=1 ...] --workdir=W [--smoke] [--dry_run]
"""

from pathlib import Path

from absl import flags

from launch import cli
from sparsity import run as run_lib
from sparsity.studies import report, runner
from sparsity.writer import Progress

cli.define_config()
_WORKDIR = flags.DEFINE_string("workdir", None, "directory of the run; made if missing", required=True)
_SMOKE = flags.DEFINE_bool("smoke", False, "2 steps of the config on noise, model and batch small: tests that it works")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "print parameters, FLOPs, memory and directory; run nothing")


def train() -> int:
    """One run and its report."""
    config = run_lib.run_config(flags.FLAGS.config, cli.overrides())
    if _SMOKE.value:
        config = run_lib.smoke(config)
        print(f"{config.name}: 2 steps on noise at reduced width; its figures say nothing about the network")
    if _DRY_RUN.value:
        workdir = Path(_WORKDIR.value)
        print(runner.plan_of_run(config, workdir))
        print(f"directory: {workdir}; as a run of a study: {runner.run_directory(Path('W'), config)}")
        return cli.DONE
    outcome = run_lib.run(config, _WORKDIR.value, Progress())
    files = run_lib.Workdir(_WORKDIR.value)
    if outcome.status == "diverged":
        already = " already" if outcome.resumed else ""
        print(f"{config.name}: diverged{already} at step {outcome.step}; the last good checkpoint is kept")
        return cli.DIVERGED
    if outcome.resumed and files.report.exists():
        print(f"{config.name}: finished already ({outcome.step} steps); nothing to do. Report: {files.report}")
        return cli.DONE
    report.write_run_report(files, cli.command())
    print(report.text_table({config.name: outcome}))
    print(f"report: {files.report}")
    return cli.DONE


if __name__ == "__main__":
    cli.main(train)
