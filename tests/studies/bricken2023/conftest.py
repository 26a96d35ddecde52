import json

import pytest

from launch.cli import load_study_config
from sparsity.evals.result import Measure
from sparsity.run import Outcome, Workdir
from sparsity.studies.runner import Record, expand

WEIGHTS = {"bias_mean": -0.5, "bias_std": 0.1, "norm_mean": 1.0, "norm_std": 0.1}


@pytest.fixture
def sweep(tmp_path):
    """sweep(study, measures, early=, weights=): a record of every embedded run of a study, made up.

    `measures(config)` are its final measures by name, `early(config)` the active share of all recorded steps, and
    `weights(config)` the summary of encoder weights at the last one.
    """

    def records(study, measures, early=lambda config: 0.5, weights=lambda config: WEIGHTS):
        out = []
        for config in expand(load_study_config(study).sweep, "embedded"):
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
