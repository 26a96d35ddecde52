"""A training step and a decoded token of dense T5s, against their own matrix products and against torch.

The products are those of the traced program, forward and backward, each run by itself in its own shape as often as the
step does it. Torch's implementation is that of `transformers`, from the extra [peer]; without it its arms are missing.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import optax

from sparsity import recipes, spmd
from sparsity.bench import torch_t5
from sparsity.bench.latency import GreedySteps, Way, slopes
from sparsity.bench.protocol import Bar, Case
from sparsity.layers.inference import DenseMask
from sparsity.run import Engine, RunConfig, run_config

SHARE, AIM = 0.65, 0.8  # of the rate of its own products, that a whole step is to reach
DECODE = 1 / 1.5  # of torch's time for a token
INPUTS, TOKENS = 512, (32, 160)  # tokens read, and said by the shorter and by the longer arm


def t5_cases(smoke: bool) -> Iterator[Case]:
    """T5-small's training step on 8 rows of 512 and 114 tokens, and T5-base's greedy decoding of one row of 512."""
    yield _step_case(timed_run("small", smoke))
    yield _decode_case(timed_run("base", smoke), (2, 4) if smoke else TOKENS)


def timed_run(size: str, smoke: bool) -> RunConfig:
    """A T5 of T5X's recipe in float32 on 8 rows of random tokens; with `smoke`, of toy size."""
    config = recipes.t5_c4(size)
    config.batch, config.mesh.data, config.model.dtype = 8, 1, "float32"
    # Of T5's size, read from no file.
    config.data = {"name": "mock_spans", "length": INPUTS, "classes": 32_128}
    if smoke:
        config.model.update({"d_model": 32, "layers": 2, "decoder_layers": 2, "heads": 2, "head_dim": 8})
        config.model.mlp.d_ff, config.data.length, config.data.classes = 64, 32, 384
    return run_config(config)


# The training step.


@dataclasses.dataclass(frozen=True)
class Product:
    """A matrix product as `jax.lax.dot_general` names it."""

    left: tuple[int, ...]
    right: tuple[int, ...]
    dimensions: tuple
    dtype: str

    @property
    def flops(self) -> float:
        """A multiply-add is 2."""
        (_, contracted), (_, batched) = self.dimensions
        free = math.prod(n for i, n in enumerate(self.right) if i not in (*contracted, *batched))
        return 2.0 * math.prod(self.left) * free


def products_of(jaxpr: Any, times: int = 1) -> collections.Counter[Product]:
    """The products of a traced program and how often each is done; those of a scan's body once for each step of it."""
    out: collections.Counter[Product] = collections.Counter()
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            left, right = (v.aval for v in eqn.invars)
            freeze = lambda pairs: tuple(tuple(tuple(map(int, axes)) for axes in pair) for pair in pairs)
            dimensions = freeze(eqn.params["dimension_numbers"])
            out[Product(left.shape, right.shape, dimensions, str(left.dtype))] += times
        inner = times * eqn.params.get("length", 1) if eqn.primitive.name == "scan" else times
        for value in eqn.params.values():
            for one in value if isinstance(value, tuple | list) else (value,):
                if hasattr(one, "eqns") or hasattr(one, "jaxpr"):
                    out += products_of(getattr(one, "jaxpr", one), inner)
    return out


def _step_case(config: RunConfig) -> Case:
    engine, plain = Engine(config), Engine(_without_dropout(config))
    rows = config.data.load("train")
    batch = {name: np.stack([rows[i][name] for i in range(config.batch)]) for name in rows[0]}
    step, products = step_and_products(engine, batch)
    arms = {
        "step": step,
        "products": _products_alone(products),
        "step without dropout": step_and_products(plain, batch)[0],
        "optimizer": _update(engine),
    }
    # The profile: shares of a step that are not its products, and what of them dropout and the optimizer are.
    bars = [Bar("step", "products", 1 / SHARE, 1 / AIM), *(Bar(x, "step") for x in ("rest", "dropout", "optimizer"))]
    if torch_t5.available():
        arms["torch"] = torch_t5.train_step(config, batch)
        bars.append(Bar("step", "torch"))
    return Case(
        name=f"training step of T5, d_model {config.model.d_model}, {config.batch} rows of {config.input_shape[:2]}",
        rows="random tokens",
        arms=arms,
        bars=tuple(bars),
        facts={
            "matrix products": sum(products.values()),
            "flops": sum(product.flops * n for product, n in products.items()),
            "share of the products' rate, if at most": SHARE,
        },
        slopes={"rest": ("step", "products"), "dropout": ("step", "step without dropout")},
    )


def _without_dropout(config: RunConfig) -> RunConfig:
    model = config.model
    mlp = dataclasses.replace(model.mlp, dropout=0.0)
    return dataclasses.replace(config, model=dataclasses.replace(model, dropout=0.0, mlp=mlp))


def step_and_products(
    engine: Engine, batch: dict[str, np.ndarray]
) -> tuple[Callable[[], Any], collections.Counter[Product]]:
    """A step, which trains on with every call, the first of which compiles it; and its products."""
    with jax.set_mesh(engine.mesh):
        state, placed = engine.new_state()
        batch = spmd.place_batch(engine.mesh, batch)
        program = engine.step(placed, record=False)
        products = products_of(program.trace(state, batch).jaxpr.jaxpr)

    def step():
        nonlocal state
        with jax.set_mesh(engine.mesh):
            state, metrics, _ = program(state, batch)
        return state, metrics

    return step, products


def _update(engine: Engine) -> Callable[[], Any]:
    """The optimizer's part of a step, on gradients that are the parameters themselves."""

    def update(params, slots):
        updates, slots = engine.tx.update(params, slots, params)
        return optax.apply_updates(params, updates), slots

    with jax.set_mesh(engine.mesh):
        state, _ = engine.new_state()
        compiled = jax.jit(update, donate_argnums=(0, 1)).lower(state.params, state.opt_state).compile()
    kept = (state.params, state.opt_state)

    def once():
        nonlocal kept
        with jax.set_mesh(engine.mesh):
            kept = compiled(*kept)
        return kept

    return once


def _products_alone(products: collections.Counter[Product]) -> Callable[[], Any]:
    runs = []
    for i, (product, times) in enumerate(products.items()):
        keys = jax.random.split(jax.random.key(i))
        shapes = (product.left, product.right)
        pair = [jax.random.normal(k, s, product.dtype) for k, s in zip(keys, shapes, strict=True)]
        dot = functools.partial(jax.lax.dot_general, dimension_numbers=product.dimensions)
        runs.append((jax.jit(dot), pair, times))
    return lambda: [dot(*pair) for dot, pair, times in runs for _ in range(times)]


# Decoding.


def _decode_case(config: RunConfig, tokens: tuple[int, int]) -> Case:
    model, classes, length = config.model, config.data.classes, config.data.length
    steps = GreedySteps(model, classes, length, tokens, {"ours": Way(model.mlp.sparsifier, DenseMask())})
    arms, compared, bars = steps.arms(), steps.slopes, []
    if torch_t5.available():
        arms |= torch_t5.greedy(steps.config, classes, steps.inputs, tokens)
        compared |= slopes(["torch"], tokens)
        bars.append(Bar("ours", "torch", DECODE))
    return Case(
        name=f"{tokens[1] - tokens[0]} greedy tokens of T5, d_model {model.d_model}, after {length} inputs",
        rows="random weights",
        arms=arms,
        bars=tuple(bars),
        facts={"tokens": tokens[1] - tokens[0]},
        slopes=compared,
        moved=steps.moved(),
    )
