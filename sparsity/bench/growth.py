"""How the time of a training step grows with what it is given: batch, length, d_ff, k and depth, each doubled twice.

A small T5 with Top-k on random tokens. A step does not grow faster than its matrix products do; with k, which none of
these depends on, it does not grow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from ml_collections import ConfigDict

from sparsity import recipes
from sparsity.bench.protocol import Bar, Case
from sparsity.bench.t5 import step_and_products
from sparsity.run import Engine, RunConfig, run_config

# A doubling may take this much more than the products grow by: arrays outgrow a cache, and the machine has neighbours.
ROOM = 1.25
DOUBLINGS = 2

# What is doubled: how to set it, and the size that the others stay at.
GROWN: dict[str, tuple[Callable[[ConfigDict, int], None], int]] = {
    "batch": (lambda config, n: config.update(batch=n), 8),
    "length": (lambda config, n: config.data.update(length=n), 128),
    "d_ff": (lambda config, n: config.model.mlp.update(d_ff=n), 1024),
    "k": (lambda config, n: config.model.mlp.sparsifier.update(k=n), 32),
    "layers": (lambda config, n: config.model.update(layers=n, decoder_layers=n), 2),
}


def growth_cases(smoke: bool) -> Iterator[Case]:
    """A case for each of `GROWN`: its steps, and the bars between each and the one half as large."""
    for what in GROWN:
        yield _case(what, smoke)


def sized(smoke: bool, **sizes: int) -> RunConfig:
    """The run with `sizes` in the place of its own, by the names of `GROWN`."""
    config = recipes.with_top_k(recipes.t5_text(), GROWN["k"][1])
    config.model.update({"d_model": 128, "heads": 4, "head_dim": 32})
    config.data = {"name": "mock_spans", "length": 128, "classes": 384}
    for what, (put, size) in GROWN.items():
        size = sizes.get(what, size)
        put(config, size // 4 if smoke and what != "layers" else size)
    if smoke:
        config.model.update({"d_model": 16, "head_dim": 4})
    return run_config(config)


def _case(what: str, smoke: bool) -> Case:
    smallest = GROWN[what][1]
    sizes = [smallest << i for i in range(DOUBLINGS + 1)]
    arms, flops = {}, {}
    for size in sizes:
        config = sized(smoke, **{what: size})
        rows = config.data.load("train")
        batch = {name: np.stack([rows[i % len(rows)][name] for i in range(config.batch)]) for name in rows[0]}
        name = f"{what} {size}"
        arms[name], products = step_and_products(Engine(config), batch)
        flops[name] = sum(product.flops * n for product, n in products.items())
    bars = [
        Bar(larger, smaller, ROOM * flops[larger] / flops[smaller], flops[larger] / flops[smaller])
        for smaller, larger in zip(arms, list(arms)[1:], strict=False)
    ]
    return Case(
        name=f"training step of a T5 with Top-k, by {what}",
        rows="random tokens",
        arms=arms,
        bars=tuple(bars),
        facts={"flops": flops, "room": ROOM, "others": {w: size for w, (_, size) in GROWN.items() if w != what}},
    )
