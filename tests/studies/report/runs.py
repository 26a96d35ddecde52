"""Runs that never ran: the files of a workdir, written by hand, with names that no page should believe."""

import math

import numpy as np

from sparsity.evals.result import Measure
from sparsity.layers.sparsify import HISTOGRAM_EDGES
from sparsity.run import Outcome, Workdir
from sparsity.writer import MetricsWriter, write_json

HOSTILE = "</script><script>boom()</script><!--<b>\"'&amp; x"
LAYERS = tuple(f"block_{i}" for i in range(10))
MEASURES = (
    Measure("accuracy", 0.925, 0.0125, 400, "share of the n test examples whose label is the largest logit"),
    Measure("nll", 10.5, 0.25, 400, "mean loss over n test examples", "nats"),
    Measure("nonzero.block_2", 0.25, 0.01, 400, f"share of units above 0, {HOSTILE}"),
    Measure("nonzero.block_10", 0.5, 0.01, 400, f"share of units above 0, {HOSTILE}"),
    Measure(f"{HOSTILE}.mean", math.inf, None, 1, "has no end", ""),
    Measure("ece", math.nan, None, 400, "of no bin", ""),
)


def write_run(path, name, seed=0, measures=MEASURES, ended=True):
    """The Workdir of a run of ten layers and 60 steps, written to `path`."""
    files = Workdir(path)
    files.create()
    write_json(files.config, {"name": name, "seed": seed, "model": {"d_model": 16, "says": HOSTILE}})
    writer, random = MetricsWriter(files.metrics), np.random.default_rng(seed)
    for step in range(60):
        writer.write("train", step, loss=10 / (step + 1), accuracy=step / 60)
        if step % 20:
            continue
        counts = random.integers(1, 99, (len(LAYERS), len(HISTOGRAM_EDGES) + 1)).tolist()
        shares = [0.5 / (i + step + 1) for i in range(len(LAYERS))]
        of_layers = [{"nonzero": x, "se": 0.01, "histogram": h} for x, h in zip(shares, counts, strict=True)]
        writer.write("sparsity", step, layers=dict(zip(LAYERS, of_layers, strict=True)))
        writer.write("validation", step, nll=9 / (step + 1), accuracy=step / 70)
    writer.close()
    if ended:
        rates = {layer: np.linspace(1, 0, 300).tolist() for layer in LAYERS}
        bins = {"count": [3, 5], "confidence": [0.4, 0.8], "accuracy": [0.3, 0.9]}
        files.write_outcome(Outcome("finished", 60, measures, {"firing_rates": rates, "reliability": bins}))
    return files
