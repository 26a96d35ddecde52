"""What the tests of runs share: a quiet progress bar, digests and figures of runs, and a tiny autoencoder."""

import hashlib
import io

import jax
import numpy as np
from ml_collections import ConfigDict

from sparsity.checkpoint import Checkpoints
from sparsity.run import Engine, Workdir
from sparsity.writer import Progress


class Quiet(Progress):
    def __init__(self):
        super().__init__(io.StringIO())


def digest(workdir):
    """sha256 over the final parameters and optimizer state, and the step."""
    files = Workdir(workdir)
    with Checkpoints(files.checkpoints) as checkpoints:
        state = Engine(files.saved_config()).restore(checkpoints)
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(jax.device_get(state)):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


def network_measures(outcome):
    return {m.name: m for m in outcome.measures if m.name not in ("steps_per_second", "peak_memory_gib")}


def autoencoder():
    """An autoencoder of seconds, on patches of photographs, with every addition to plain training."""
    return ConfigDict(
        {
            "name": "tiny",
            "steps": 4,
            "batch": 16,
            "accumulate": 2,
            "seed": 0,
            "model": {
                "name": "autoencoder",
                "mlp": {
                    "d_ff": 24,
                    "sparsifier": {"name": "relu"},
                    "init": "torch",
                    "noise": {"name": "gaussian", "sigma": 0.05},
                },
            },
            "data": {"name": "photos", "patch": 4, "count": 70, "contrast": "zero_mean"},
            "noise": {
                "name": "gaussian",
                "sigma": 0.1,
                "schedule": {"name": "linear_to_zero", "start": 2, "length": 4},
            },
            "penalty": {"name": "l1", "weight": 1e-3},
            "optimizer": {
                "learning_rate": 1e-2,
                "rule": {"name": "adamw", "weight_decay": 0.0},
                "schedule": {"name": "constant", "warmup": 0},
                "grad_clip": 1.0,
            },
            "mesh": {"data": 1},
            "every": {"record": 2, "eval": 2, "checkpoint": 2, "speed": 2},
            "evals": {
                "names": ("reconstruction", "sparsity", "neurons", "units", "cost"),
                "batch": 16,
                "noise": True,
            },
        }
    )
