import functools
import itertools
import json

import numpy as np
import pytest

from launch.cli import load_study_config
from sparsity.config import to_dict
from sparsity.data.corruptions import CORRUPTIONS
from sparsity.evals.result import Measure
from sparsity.run import Outcome, Workdir
from sparsity.studies.draw import RunView
from sparsity.studies.li2022.runs import STACKS, arm_and_seed
from sparsity.studies.li2022.vits import arm_of
from sparsity.studies.runner import Record, expand
from sparsity.writer import read_metrics

STEPS = np.arange(0, 1000, 50)


@functools.cache
def configs(study):
    return expand(load_study_config(study).sweep, "embedded")


@pytest.fixture
def ended(tmp_path):
    """ended(study, share, accuracy=..., rates=..., broken=()): a record of every embedded run, as it might have ended.

    `share(arm, layer, t)` is the share of nonzeros of a layer ("encoder_0") at time t in [0, 1]; that at 1 is the
    held-out one too. `accuracy(arm, seed)` is held out, and .01 more on training batches. `rates(arm)` are the firing
    rates of the first encoder layer. Runs whose name is in `broken` diverged.
    """

    def records(study, share, accuracy=lambda arm, seed: 0.5 + 0.001 * seed, rates=lambda arm: [0.05], broken=()):
        out = []
        for config in configs(study):
            arm, seed = arm_and_seed(config.name)
            names = [f"{stack}_{i}" for stack in sorted(STACKS) for i in range(arm.layers)]
            lines = [
                {"kind": "train", "step": i, "loss": 1.0, "accuracy": accuracy(arm, seed) + 0.01} for i in range(40)
            ]
            for step in STEPS:
                layers = {n: {"nonzero": share(arm, n, step / STEPS[-1]) + 1e-4 * seed} for n in names}
                lines.append({"kind": "sparsity", "step": int(step), "layers": layers})
            files = Workdir(tmp_path / config.name)
            files.path.mkdir(parents=True)
            files.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
            if config.name in broken:
                out.append(Record(config, files, Outcome("diverged", 1)))
                continue
            last = {f"nonzero.{n}": share(arm, n, 1.0) + 1e-4 * seed for n in names}
            values = {"accuracy": accuracy(arm, seed), "nonzero.mean": float(np.mean(list(last.values()))), **last}
            measures = tuple(Measure(name, value, 0.001, 100, "") for name, value in values.items())
            arrays = {"firing_rates": {"encoder_0": list(rates(arm))}}
            out.append(Record(config, files, Outcome("finished", 1000, measures, arrays)))
        return out

    return records


@pytest.fixture
def measured_only(tmp_path):
    """measured_only(study, how, broken=()): a record of every embedded run with the final measures `how(config)`.

    There is nothing on disk: for studies that read no metrics. Runs whose name is in `broken` diverged.
    """

    def records(study, how, broken=()):
        out = []
        for config in configs(study):
            measures = tuple(Measure(name, value, 0.001, 100, "") for name, value in how(config).items())
            ended = Outcome("finished", config.steps, measures)
            ended = Outcome("diverged", 1) if config.name in broken else ended
            out.append(Record(config, Workdir(tmp_path / config.name), ended))
        return out

    return records


@pytest.fixture
def views():
    """views(records): what figures are drawn of."""
    return lambda records: {
        r.config.name: RunView(r.outcome, read_metrics(r.files.metrics), to_dict(r.config)) for r in records
    }


@pytest.fixture
def verdicts():
    """verdicts(study, records): claim -> verdict."""
    from sparsity.studies.judge import judge

    return lambda study, records: {c.id: judge(c, records).verdict for c in study.claims}


@pytest.fixture
def vits_ended(tmp_path):
    """vits_ended(study, how, broken=()): a record of every embedded run of a study of ViTs, as it might have ended.

    `how(arm, seed)` gives what differs from a plain end: `share(i, t)`, the share of nonzeros of layer i on training
    batches at time t in [0, 1], `held_out(i)`, that on test images, accuracies and the calibration error. Runs whose
    name is in `broken` diverged.
    """
    calls = itertools.count()

    def records(study, how, broken=()):
        folder, out = tmp_path / str(next(calls)), []
        for config in configs(study):
            files = Workdir(folder / config.name)
            arm = arm_of(Record(config, files, Outcome("unfinished", 0)))
            got = {"share": lambda i, t: 0.5 - 0.3 * t, "accuracy": 0.9, "train": 0.99, "corrupted": 0.6, "ece": 0.05}
            got |= how(arm, config.seed)
            layers = range(arm.layers)
            lines = [{"kind": "train", "step": i, "loss": 1.0, "accuracy": got["train"]} for i in range(20)]
            for step in STEPS:
                shares = {f"block_{i}": {"nonzero": got["share"](i, step / STEPS[-1])} for i in layers}
                lines.append({"kind": "sparsity", "step": int(step), "layers": shares})
            files.path.mkdir(parents=True)
            files.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
            if config.name in broken:
                out.append(Record(config, files, Outcome("diverged", 1)))
                continue
            held_out = got.get("held_out", lambda i, share=got["share"]: share(i, 1.0))
            values = {f"nonzero.block_{i}": held_out(i) for i in layers}
            values |= {"nonzero.mean": float(np.mean(list(values.values()))), "accuracy": got["accuracy"]}
            values |= {f"robustness.{name}": got["corrupted"] for name in ("mean", *CORRUPTIONS)} | {"ece": got["ece"]}
            measures = tuple(Measure(name, value, 0.01, 358, "") for name, value in values.items())
            out.append(Record(config, files, Outcome("finished", 2000, measures)))
        return out

    return records


@pytest.fixture
def ends(tmp_path):
    """ends(study, how, broken=()): a record of every embedded run, as it might have ended; `how(config)` says how.

    It gives `share(layer, t)`, of nonzeros at time t in [0, 1], that at 1 being the held-out one too, and may give
    `accuracy`, held out, `train(t)` and `loss(t)`, on training batches, and `z(layer, t)`, mean pre-activations. Shares
    and accuracies are a little higher from seed to seed. Runs whose name is in `broken` diverged.
    """

    def records(study, how, broken=()):
        out = []
        for config in configs(study):
            got = {"accuracy": 0.9, "train": lambda t: 0.95, "loss": lambda t: 0.1} | how(config)
            wobble = 1e-4 * config.seed
            names = list(config.model.mlps() if hasattr(config.model, "mlps") else config.model.layers())
            share = lambda layer, t, got=got, wobble=wobble: got["share"](layer, t) + wobble
            lines = []
            for i in range(41):
                step, t = min(round(i * config.steps / 40), config.steps - 1), i / 40
                measured = {"loss": got["loss"](t), "accuracy": got["train"](t) + wobble}
                lines.append({"kind": "train", "step": step} | measured)
                layers = {n: {"nonzero": share(n, t)} for n in names}
                for n in names if "z" in got else ():
                    layers[n] |= {"mean": got["z"](n, t), "histogram": histogram_of_mean(got["z"](n, t))}
                lines.append({"kind": "sparsity", "step": step, "layers": layers})
            files = Workdir(tmp_path / study / config.name)
            files.path.mkdir(parents=True)
            files.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
            if config.name in broken:
                out.append(Record(config, files, Outcome("diverged", 1)))
                continue
            values = {"accuracy": got["accuracy"] + wobble} | {f"nonzero.{n}": share(n, 1.0) for n in names}
            measures = tuple(Measure(name, value, 0.001, 100, "") for name, value in values.items())
            out.append(Record(config, files, Outcome("finished", config.steps, measures)))
        return out

    return records


def histogram_of_mean(z):
    """1,000 pre-activations in the two bins around z, the mean of whose centres is z: bin 0 is below -8, 65 above 8."""
    place = (z + 8.125) / 0.25
    counts = np.zeros(66)
    counts[int(place)], counts[int(place) + 1] = 1000 * (1 - place % 1), 1000 * (place % 1)
    return counts.tolist()
