"""One of several processes that restore a checkpoint and take a step from it; see test_distributed."""

import dataclasses

import jax
import numpy as np
from absl import flags

from launch import cli
from sparsity import distributed, spmd
from sparsity.checkpoint import Checkpoints
from sparsity.data.pipeline import train_batches
from sparsity.run import Engine, Workdir
from sparsity.spmd import MeshConfig
from sparsity.train.losses import LOSSES
from sparsity.train.step import Objective, gradients

cli.define_processes()
_WORKDIR = flags.DEFINE_string("workdir", None, "a run")
_OUT = flags.DEFINE_string("out", None, "a file for arrays")
_MESH = flags.DEFINE_string("mesh", None, "DATAxMODEL")


def step():
    """Writes, in the first process, the parameters, loss, gradients and logits: arrays by name."""
    files = Workdir(_WORKDIR.value)
    data, model = map(int, _MESH.value.split("x"))
    config = dataclasses.replace(files.saved_config(), mesh=MeshConfig(data=data, model=model))
    engine = Engine(config)
    with Checkpoints(files.checkpoints, read_only=True) as checkpoints:
        state = engine.restore(checkpoints)
    rows = spmd.rows_of_process(engine.mesh, config.batch)
    batch = next(train_batches(config.data, config.batch, config.seed, int(state.step), rows=rows))
    compute = jax.jit(gradients(Objective(engine.model, config.model, LOSSES[config.model.task], config.seed), False))
    with jax.set_mesh(engine.mesh):
        (losses, _), grads, _, _ = compute(state, spmd.place_batch(engine.mesh, batch))
    found = {"loss": losses.loss / losses.count, "params": state.params, "grads": grads}
    found = spmd.fetch(found) | {"logits": engine.subject(state, "validation").clean.logits, "rows": len(rows)}
    if distributed.first():
        leaves = jax.tree_util.tree_leaves_with_path(found)
        np.savez(_OUT.value, **{jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves})
    return cli.DONE


if __name__ == "__main__":
    cli.main(step)
