import functools
import itertools
import json

import numpy as np
import pytest

from launch.cli import load_study_config
from sparsity.config import to_dict
from sparsity.evals.result import Measure
from sparsity.run import Outcome, Workdir
from sparsity.studies.bricken2023.runs import variant_sigma_seed
from sparsity.studies.draw import RunView
from sparsity.studies.runner import Record, expand
from sparsity.writer import read_metrics

FIELDS = {"fields.fields": np.eye(16).reshape(16, 4, 4, 1).tolist(), "fields.activity": list(range(16))}
WEIGHTS = {"bias_mean": -0.5, "bias_std": 0.1, "norm_mean": 1.0, "norm_std": 0.1}


@pytest.fixture
def sweep(tmp_path):
    """sweep(study, measures, early=, weights=): a record of every embedded run of a study, made up.

    `measures(config)` are its final measures by name, `early(config)` the active share of all recorded steps, and
    `weights(config)` the summary of encoder weights at the last one.
    """

    def records(study, measures, early=lambda config: 0.5, weights=lambda config: WEIGHTS):
        out = []
        for config in configs(study):
            files = Workdir(tmp_path / config.name)
            files.path.mkdir()
            layers = {"hidden": {"nonzero": early(config), "histogram": [1] * 66}}
            lines = []
            for step in range(20):
                lines.append({"kind": "train", "step": step, "loss": 1.0})
                lines.append({"kind": "sparsity", "step": step, "layers": layers})
                lines.append({"kind": "weights", "step": step, "modules": {"hidden/wi": weights(config)}})
            files.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
            found = tuple(Measure(name, value, 0.01, 100, "") for name, value in measures(config).items())
            out.append(Record(config, files, Outcome("finished", 20, found)))
        return out

    return records


@functools.cache
def configs(study):
    return expand(load_study_config(study).sweep, "embedded")


@pytest.fixture
def made(tmp_path):
    """made(study, measures, lines): a record of every embedded run of a study, as it might have ended.

    `measures` and `lines` map a run's variant, sigma and seed to its final measures by name (None: it diverged) and to
    the lines of its metrics.jsonl.
    """
    calls = itertools.count()

    def records(study, measures, lines=lambda *run: ()):
        folder = tmp_path / str(next(calls))
        out = []
        for config in configs(study):
            run = variant_sigma_seed(config.name)
            files = Workdir(folder / config.name)
            files.path.mkdir(parents=True)
            files.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines(*run)))
            if (values := measures(*run)) is None:
                out.append(Record(config, files, Outcome("diverged", 1)))
                continue
            final = tuple(Measure(name, value, 0.01, 400, "") for name, value in values.items())
            out.append(Record(config, files, Outcome("finished", config.steps, final, FIELDS)))
        return out

    return records


@pytest.fixture
def ended(tmp_path):
    """ended(study, how): a record of every embedded run of a study, as it might have ended.

    `how` maps a run's config to its final measures by name (None: it diverged) and the lines of its metrics.jsonl.
    """
    calls = itertools.count()

    def records(study, how):
        folder, out = tmp_path / str(next(calls)), []
        for config in configs(study):
            measures, lines = how(config)
            files = Workdir(folder / config.name)
            files.path.mkdir(parents=True)
            files.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
            values = tuple(Measure(name, value, 0.01, 400, "") for name, value in (measures or {}).items())
            outcome = Outcome("diverged", 1) if measures is None else Outcome("finished", config.steps, values, FIELDS)
            out.append(Record(config, files, outcome))
        return out

    return records


@pytest.fixture
def views():
    """views(records): what figures are drawn of."""
    return lambda records: {
        r.config.name: RunView(r.outcome, read_metrics(r.files.metrics), to_dict(r.config)) for r in records
    }
