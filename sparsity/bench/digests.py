"""What digests cost a run: those of its whole state, computed by each save, against the steps between two saves."""

from __future__ import annotations

from collections.abc import Iterator

import jax

from sparsity import recipes
from sparsity.bench.protocol import Bar, Case
from sparsity.bench.t5 import step_and_products, timed_run
from sparsity.checkpoint import digests
from sparsity.data.pipeline import train_batches
from sparsity.run import Engine, RunConfig, run_config

SHARE = 0.02  # of the time between two saves


def digests_cases(smoke: bool) -> Iterator[Case]:
    """The quickstart's ViT; T5-small on 8 rows of 512 and 114 tokens, where its recipe has 256 and slower steps."""
    vit = recipes.vit_digits()
    vit.mesh.data = 1
    if smoke:
        vit.model.layers, vit.model.mlp.d_ff = 1, 32
    yield _case(run_config(vit))
    yield _case(timed_run("small", smoke))


def _case(config: RunConfig) -> Case:
    """A save's digests / one step, which is to stay below `SHARE` times the steps between two saves."""
    engine, between = Engine(config), config.every.checkpoint
    step, _ = step_and_products(engine, next(train_batches(config.data, config.batch, config.seed, 0)))
    with jax.set_mesh(engine.mesh):
        state, _ = engine.new_state()
    return Case(
        name=f"digests of {config.name}, saved every {between} steps of {config.batch} examples",
        rows="a new state",
        arms={"digests": lambda: digests(state), "step": step},
        bars=(Bar("digests", "step", SHARE * between),),
        facts={
            "bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(state)),
            "steps between saves": between,
            "share of the time between saves, at most": SHARE,
        },
    )
