"""Runs a study: every run that its config's sweep declares, then its table, figures and report.

python -m launch.reproduce --study=quickstart --workdir=W
"""

from absl import flags

from launch import cli
from sparsity.studies import STUDIES, runner
from sparsity.writer import Progress

_STUDY = flags.DEFINE_string("study", None, f"name of a study; there are: {', '.join(STUDIES)}", required=True)
_SCALE = flags.DEFINE_enum(
    "scale", "embedded", ["embedded", "paper"], "real data from installed packages, or the paper's"
)
_WORKDIR = flags.DEFINE_string("workdir", None, "directory for runs/ and the study's results", required=True)


def reproduce() -> int:
    """Runs what is not finished and writes the study's results."""
    study = runner.study(_STUDY.value, STUDIES)
    sweep = cli.load_study_config(_STUDY.value).sweep
    results = runner.run_study(study, sweep, _SCALE.value, _WORKDIR.value, Progress())
    print(results.text)
    print(f"report: {results.report}")
    return cli.DONE


if __name__ == "__main__":
    cli.main(reproduce)
