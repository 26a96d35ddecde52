"""Writes the page of a run, or of several side by side, from their files alone: runs nothing.

python -m launch.report --workdir=W[,V,...] --out=F.html
"""

from pathlib import Path

from absl import flags

from launch import cli
from sparsity import run as run_lib
from sparsity.config import ConfigError
from sparsity.studies import report
from sparsity.writer import write_text

_WORKDIR = flags.DEFINE_list(
    "workdir", None, "directories of runs, ended or not; of a study's: W/runs/*", required=True
)
_OUT = flags.DEFINE_string("out", None, "the page, one self-contained HTML file", required=True)


def page() -> int:
    """One page."""
    workdirs = [run_lib.Workdir(path) for path in _WORKDIR.value]
    for files in workdirs:
        files.saved_config()  # or it holds no run, which is said
    out = Path(_OUT.value)
    if not out.parent.is_dir():
        raise ConfigError(f"--out: no directory {out.parent}")
    write_text(out, report.runs_page(workdirs))
    print(f"report: {out}")
    return cli.DONE


if __name__ == "__main__":
    cli.main(page)
