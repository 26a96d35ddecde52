"""Evaluates checkpoints, and compares runs; without --set the numbers are those of training, bit for bit.

python -m launch.evaluate --workdir=W [--evals=accuracy,sparsity] [--set=split=validation] [--out=F.json]
python -m launch.evaluate --workdir=A,B                  side by side, with differences paired over the test examples
python -m launch.evaluate --workdir=W/runs               all runs there, side by side
python -m launch.evaluate --workdir=W --steps=all        a row for each checkpoint that is kept; or --steps=100,200
python -m launch.evaluate --workdir=W --follow           a row for each as training writes it, until the run has ended
python -m launch.evaluate --workdir=W --evals=generate --set=prompts=FILE [--set=temperature=0.8] [--set=top_p=0.9]
"""

import json

from absl import flags

from launch import cli
from sparsity import distributed
from sparsity.config import ConfigError
from sparsity.evals import EVALS
from sparsity.evals.firing import as_text
from sparsity.studies import evaluated, formats, paired
from sparsity.studies.report import aligned
from sparsity.writer import Progress

cli.define_processes()
_WORKDIR = flags.DEFINE_list("workdir", None, "directories of runs, or of many of them", required=True)
_EVALS = flags.DEFINE_list("evals", [], f"evaluators, by default the config's; there are: {', '.join(EVALS)}")
_SET = flags.DEFINE_multi_string("set", [], "key=value of the config's evals, such as batch=8; may be repeated")
_OUT = flags.DEFINE_string("out", None, f"write the tables to this file too, as it ends: {', '.join(formats.FORMATS)}")
_STEPS = flags.DEFINE_string("steps", None, "checkpoints: all that are kept, or steps such as 100,200; else the last")
_FOLLOW = flags.DEFINE_bool("follow", False, "wait for checkpoints until the run has ended, or Ctrl-C")
_POLL = flags.DEFINE_float("poll", 10.0, "seconds between looks of --follow", lower_bound=0.1)


def evaluate() -> int:
    """Prints the measures of checkpoints, and whether they equal the recorded ones."""
    given = evaluated.evaluations(_WORKDIR.value, _EVALS.value, cli.settings(_SET.value))
    steps = evaluated.parse_steps(_STEPS.value)
    if _OUT.value:
        formats.check_path(_OUT.value)
    cli.say_device()
    if _FOLLOW.value:
        if steps is not None or len(given) > 1:
            raise ConfigError("--follow: follows all checkpoints of one run, without --steps")
        return _follow(given[0])
    found, progress = [], Progress()
    for i, of in enumerate(given):
        if len(given) > 1 and distributed.first():
            progress.say(f"run {i + 1} of {len(given)}: {of.run}")
        found += evaluated.checkpoints_of(of, steps)
    across = steps is None or (steps != evaluated.ALL and len(steps) == 1)
    findings = formats.Findings(found, paired.differences(found) if across else (), across)
    cli.say(formats.text(findings))
    for one in found if across else ():
        for said in one.result.arrays.get("generated", ()):
            cli.say(json.dumps(said, ensure_ascii=False))
        if "firing" in one.result.arrays:
            cli.say(as_text(one.result.arrays["firing"]))
        cli.say(f"{one.of.run}: {one.remark()}" if len(found) > 1 else one.remark())
    if _OUT.value and distributed.first():
        formats.write(findings, _OUT.value)
    return cli.DONE


def _follow(of: evaluated.Evaluation) -> int:
    """A line for each checkpoint, and the file written anew."""
    found: list[evaluated.Evaluated] = []
    try:
        for one in evaluated.follow(of, _POLL.value):
            found.append(one)
            if _OUT.value:
                formats.write(formats.Findings(found), _OUT.value)
            lines = aligned(formats.by_checkpoint(found)).splitlines()
            print("\n".join(lines[-1:] if len(found) > 1 else lines), flush=True)
    except KeyboardInterrupt:
        print(f"{of.run}: followed no more, after {len(found)} checkpoints")
        return cli.DONE
    print(f"{of.run}: {found[-1].status if found else 'ended without a checkpoint'}")
    return cli.DONE


if __name__ == "__main__":
    cli.main(evaluate)
