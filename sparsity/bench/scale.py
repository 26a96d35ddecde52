"""What a device holds and exchanges in a training step, against the number of devices: counted, nothing is timed.

The steps are compiled ahead of time for slices of TPU v5e that need not be there; libtpu is needed, from the extra
[tpu]. Every device has as many rows of the batch, whatever the slice.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from sparsity import recipes
from sparsity.bench.protocol import Case
from sparsity.config import ConfigError
from sparsity.run import Machine, RunConfig, StepPlan, plan_step, run_config
from sparsity.run.collectives import KINDS
from sparsity.run.topology import LOCAL

SLICES = ("v5e:2x4", "v5e:4x4", "v5e:4x8", "v5e:8x8", "v5e:8x16", "v5e:16x16")
MODEL_AXES = (1, 4)  # devices that split hidden units, heads and vocabulary
ROWS, K = 8, 64  # rows of the batch for each device, and units kept of T5-Base's 3,072
METHOD = "statistical"  # it exchanges five counts a layer; exact as many as its rows need, which no compiler knows


def scale_cases(smoke: bool) -> Iterator[Case]:
    """T5-Base with Top-k, 8 rows of 512 and 114 tokens a device, on 8 to 256 chips, the model whole and in four.

    Raises:
      ConfigError: libtpu is not installed.
    """
    for model in MODEL_AXES:
        for topology in (LOCAL,) if smoke else SLICES:
            machine = Machine.of(topology)
            if machine.compiler is None:
                raise ConfigError(f"--suite=scale: {machine.missing}")
            yield counted(plan_step(scaled(model, len(machine.devices), smoke), machine))


def scaled(model: int, devices: int, smoke: bool) -> RunConfig:
    """The run on `devices`, `model` of which share a copy of the network."""
    config = recipes.with_top_k(recipes.t5_c4("base"), K)
    config.model.mlp.sparsifier.method = METHOD
    model = math.gcd(model, devices)
    config.mesh = {"data": devices // model, "model": model}
    config.batch = config.evals.batch = ROWS * devices
    if smoke:
        config.data = {"name": "mock_spans", "length": 32, "classes": 384}
        config.model.update({"d_model": 32, "layers": 1, "decoder_layers": 1, "heads": 4, "head_dim": 8})
        config.model.mlp.d_ff = 4 * K
    return run_config(config)


def counted(plan: StepPlan) -> Case:
    """A case without arms: what the plan says of each device, in bytes."""
    totals = plan.exchanged
    facts: dict[str, Any] = {
        "devices": math.prod(plan.mesh.values()),
        "parameters": plan.parameter_bytes,
        "optimizer": plan.optimizer_bytes,
        "peak": plan.peak_bytes,
        "fits": plan.fits,
        "exchanged": None if totals is None else round(sum(t.bytes for t in totals)),
        "sent": None if totals is None else round(sum(t.sent for t in totals)),
        "exchanges": None if totals is None else sum(t.times for t in totals),
        "by kind": {kind: round(sum(t.bytes for t in totals or () if t.kind == kind)) for kind in KINDS},
        "mesh": dict(plan.mesh),
        "compiler": plan.machine.compiler,
        "seconds to compile": round(plan.program.seconds, 1),
    }
    mesh = ", ".join(f"{axis} {size}" for axis, size in plan.mesh.items() if size > 1)
    return Case(name=f"{plan.machine.name}, {mesh}", rows=plan.name, arms={}, bars=(), facts=facts)
