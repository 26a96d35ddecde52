"""Restores a run's last checkpoint and evaluates it; without --set the numbers are those of training, bit for bit.

python -m launch.evaluate --workdir=W [--evals=accuracy,sparsity] [--set=split=validation] [--out=F.json]
python -m launch.evaluate --workdir=W --evals=generate --set=prompts=FILE [--set=temperature=0.8] [--set=top_p=0.9]
"""

import dataclasses
import json
from pathlib import Path

from absl import flags

from launch import cli
from sparsity import distributed
from sparsity import run as run_lib
from sparsity.config import ConfigError, lookup
from sparsity.evals import EVALS, TASKS
from sparsity.studies import report
from sparsity.writer import write_json

cli.define_processes()
_WORKDIR = flags.DEFINE_string("workdir", None, "directory of a run", required=True)
_EVALS = flags.DEFINE_list("evals", [], f"evaluators, by default the config's; there are: {', '.join(EVALS)}")
_SET = flags.DEFINE_multi_string("set", [], "key=value of the config's evals, such as batch=8; may be repeated")
_OUT = flags.DEFINE_string("out", None, "also write the measures to this JSON file")


def evaluate() -> int:
    """Prints the measures of the last checkpoint, and whether they equal the recorded ones."""
    files = run_lib.Workdir(_WORKDIR.value)
    saved = files.saved_config()
    config = run_lib.with_evals(saved, cli.settings(_SET.value)) if _SET.value else saved
    names = tuple(_EVALS.value) or config.evals.names
    for name in names:
        lookup(EVALS, name, "evaluator")
        if TASKS.get(name, config.model.task) != config.model.task:
            raise ConfigError(f"--evals: {name} scores {TASKS[name]}, the run's task is {config.model.task}")
    if _OUT.value and not Path(_OUT.value).parent.is_dir():
        raise ConfigError(f"--out: no directory {Path(_OUT.value).parent}")
    cli.say_device()
    engine, state = run_lib.last_state(files, config)
    result = run_lib.evaluate(engine.subject(state, config.evals.split), names)
    step, recorded = int(state.step), files.read_outcome()
    status = "unfinished" if recorded is None else recorded.status
    outcome = run_lib.Outcome(status, step, result.measures, result.arrays)
    cli.say(report.text_table({config.name: outcome}))
    generated = result.arrays["generated"] if "generate" in names else []
    for one in generated:
        cli.say(json.dumps(one, ensure_ascii=False))
    against = _against_record(recorded, outcome) if config == saved else f"with {', '.join(_SET.value)}"
    cli.say(f"checkpoint of step {step} of {config.steps}; {against}")
    if _OUT.value and distributed.first():
        record = {"step": step, "measures": [dataclasses.asdict(m) for m in result.measures]}
        write_json(Path(_OUT.value), record | ({"generated": generated} if "generate" in names else {}))
    return cli.DONE


def _against_record(recorded: run_lib.Outcome | None, now: run_lib.Outcome) -> str:
    """Says whether the measures equal, bit for bit, those recorded at the end of training."""
    if recorded is None or recorded.status != "finished" or recorded.step != now.step:
        return "no recorded evaluation of this step to compare with"
    then = {m.name: m for m in recorded.measures}
    differing = [m.name for m in now.measures if m != then.get(m.name, m)]
    if differing:
        return f"differs from the evaluation recorded at the end of training in: {', '.join(differing)}"
    return "equal, bit for bit, to the evaluation recorded at the end of training"


if __name__ == "__main__":
    cli.main(evaluate)
