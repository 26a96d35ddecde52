"""Trains and evaluates one run. Rerunning the same command resumes it, or says that it is finished.

python -m launch.train --config=configs/quickstart.py:top_k [--config.seed=1 ...] --workdir=W [--smoke] [--restarts=N]
python -m launch.train --config=configs/li2022/t5_top_k.py:paper/11b/128 --workdir=W --dry_run [--topology=v4:4x4x4]
python -m launch.train ... --coordinator=HOST:PORT --processes=N --process=I  # in each of N processes; found on a TPU
    slice, under SLURM and Open MPI
"""

from pathlib import Path

from absl import flags

from launch import cli, supervisor
from sparsity import distributed
from sparsity import run as run_lib
from sparsity.config import ConfigError
from sparsity.data import SOURCES
from sparsity.evals import EVALS
from sparsity.models import MODELS
from sparsity.ops.sparsifiers import SPARSIFIERS
from sparsity.run import topology
from sparsity.studies import report, runner
from sparsity.writer import SINKS, Progress

cli.define_config()
cli.define_processes()
_WORKDIR = flags.DEFINE_string("workdir", None, "directory of the run; made if missing", required=True)
_SMOKE = flags.DEFINE_bool("smoke", False, "2 steps of the config on noise, model and batch small: tests that it works")
_SINKS = flags.DEFINE_list("sinks", [], f"where metrics.jsonl is shown too; there are: {', '.join(SINKS)}")
_DRY_RUN = flags.DEFINE_bool(
    "dry_run", False, "print parameters, FLOPs, memory, what devices exchange, and the directory"
)
_TOPOLOGY = flags.DEFINE_string("topology", None, f"of --dry_run: compile the step for these devices: {topology.FORMS}")
_RESTARTS = supervisor.define()


def train() -> int:
    """One run and its report."""
    if _RESTARTS.value:
        progress = lambda: supervisor.steps_saved(_WORKDIR.value)
        return supervisor.supervise(supervisor.unsupervised(), _RESTARTS.value, progress)
    config = run_lib.run_config(flags.FLAGS.config, cli.overrides())
    if _SMOKE.value:
        config = run_lib.smoke(config)
        cli.say(f"{config.name}: 2 steps on noise at reduced width; its figures say nothing about the network")
    if _TOPOLOGY.value is not None and not _DRY_RUN.value:
        raise ConfigError("--topology: it is of --dry_run; a run takes the devices that are there")
    if _DRY_RUN.value:
        workdir = Path(_WORKDIR.value)
        machine = run_lib.Machine.of(_TOPOLOGY.value)
        cli.say(runner.plan_of_run(config, workdir, machine.devices))
        cli.say(run_lib.plan_step(config, machine).text())
        cli.say(f"directory: {workdir}; as a run of a study: {runner.run_directory(Path('W'), config)}")
        return cli.DONE
    cli.say_device()
    outcome = run_lib.run(config, _WORKDIR.value, Progress(), _SINKS.value)
    if not distributed.first():
        return cli.DIVERGED if outcome.status == "diverged" else cli.DONE
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
    cli.main(train, cli.listing(models=MODELS, sparsifiers=SPARSIFIERS, sources=SOURCES, evaluators=EVALS))
