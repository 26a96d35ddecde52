import functools
import json

import pytest

from launch.cli import load_study_config
from sparsity import recipes
from sparsity.evals.result import Measure
from sparsity.run import Outcome, Workdir, run_config
from sparsity.studies.runner import Record, expand

LAYERS = 4


@functools.cache
def config_of(row, seed):
    return run_config(recipes.with_price_row(recipes.deep_mlp_digits(depth=LAYERS), row, seed))


@functools.cache
def configs(study):
    return expand(load_study_config(study).sweep, "embedded")


@pytest.fixture
def make(tmp_path):
    """make(row, seed, accuracy=..., zeros=..., q=..., norms=..., losses=...): a run that ended so; None diverged."""

    def record(
        row, seed, accuracy=0.9, zeros=0.5, q=(1.0,) * LAYERS, norms=((1.0,) * (LAYERS - 1),), losses=(1.0,) * 8
    ):
        config = config_of(row, seed)
        files = Workdir(tmp_path / config.name)
        files.path.mkdir()
        lines = [{"kind": "train", "step": i, "loss": loss, "accuracy": 0.5} for i, loss in enumerate(losses)]
        lines += [
            {"kind": "validation", "step": 0, "accuracy": 0.1},
            {"kind": "validation", "step": 4, "accuracy": 0.7},
        ]
        names = ("first", *(f"layers_{i}" for i in range(LAYERS - 1)))
        layers = {name: {"nonzero": 1 - zeros, "q": value} for name, value in zip(names, q, strict=True)}
        for step, norm in enumerate(norms):
            lines.append({"kind": "sparsity", "step": step, "layers": layers})
            lines.append(
                {"kind": "gradients", "step": step, "norms": {"head": 1.0, "input": 1.0, "layers/dense": list(norm)}}
            )
        files.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
        if accuracy is None:
            return Record(config, files, Outcome("diverged", 3))
        measures = (Measure("accuracy", accuracy, 0.01, 358, ""), Measure("nonzero.mean", 1 - zeros, 0.0, 358, ""))
        return Record(config, files, Outcome("finished", 8, measures))

    return record


@pytest.fixture
def sweep(tmp_path):
    """sweep(study, accuracy): a record of every embedded run of a study, of test accuracy `accuracy(run name)`."""

    def records(study, accuracy):
        out = []
        for config in configs(study):
            files = Workdir(tmp_path / config.name)
            files.path.mkdir()
            files.metrics.write_text('{"kind": "sparsity", "step": 0, "layers": {"a": {"nonzero": 0.25}}}\n')
            values = {"accuracy": accuracy(config.name), "nonzero.mean": 0.15, "dead.mean": 0.0}
            measures = tuple(Measure(key, value, 0.01, 358, "") for key, value in values.items())
            out.append(Record(config, files, Outcome("finished", 9, measures)))
        return out

    return records


@pytest.fixture
def better(sweep):
    """better(study, marked): the sweep at accuracy .9, .91 + .001 seed where names end with `marked` of the seed."""

    def records(study, marked):
        gains = {marked.format(seed): 0.01 + 0.001 * seed for seed in range(3)}
        return sweep(study, lambda name: 0.9 + next((g for end, g in gains.items() if name.endswith(end)), 0.0))

    return records
