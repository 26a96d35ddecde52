"""Training steps of Bricken et al. 2023's autoencoder: against the matrix products they must do, and grouped by sigma.

A step must do five products of 2 B D F FLOPs: z = x W_e, y = h W_d, and the gradients of W_d, h and W_e; the sixth of
the usual 6 N B, the gradient of the image, is nobody's. How fast this machine multiplies is measured beside the step,
in matrices of the same sizes and dtype, so that a step's share of that rate is the ratio of the two times. Which layout
of the factors is the fastest depends on the machine: the promise is made against both. (Counted as 6 N B the share
would be 6/5 of it.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparsity import recipes, spmd
from sparsity.bench.protocol import Bar, Case
from sparsity.bench.seeds import WORTH, grouping_arms
from sparsity.bench.top_k import matrix_products
from sparsity.ops.noise import gaussian
from sparsity.run import Engine, RunConfig, run_config
from sparsity.train.losses import reconstruction
from sparsity.train.state import init_fn
from sparsity.train.step import Objective, gradients

SHARE = 0.6  # of the machine's rate of products, that a whole step is to reach
PRODUCTS = 5
SIGMAS = (0.1, 0.3, 0.8, 1.5, 3.0, 10.0)


def train_cases(smoke: bool) -> Iterator[Case]:
    """A step of 10,000 units on 1,024 images of CIFAR10's size; steps of 400 units on patches at six sigmas."""
    whole = recipes.autoencoder_cifar10(64 if smoke else 10_000)
    if smoke:
        whole.batch = 16
    whole.mesh.data = 1
    yield _step_case(run_config(recipes.with_noise(whole, 0.8)))
    yield _grouped_case(run_config(recipes.autoencoder_photos(32 if smoke else 400)))


def draw(config: RunConfig) -> dict[str, np.ndarray]:
    """A batch of uniform images, as the model of `config` reads them."""
    shape = (config.batch, *config.input_shape)
    return {"image": np.random.default_rng(0).random(shape, np.float32)}


def flops(config: RunConfig) -> float:
    """FLOPs that a step of an autoencoder must do: `PRODUCTS` products, a multiply-add is 2."""
    return PRODUCTS * 2.0 * config.batch * math.prod(config.input_shape) * config.model.mlp.d_ff


def _step_case(config: RunConfig) -> Case:
    """The step that a run takes, noise, clipping, Adam and metrics included."""
    run, text = step(config)
    arms = {"step": run, "products": products(config), "products as in the step": products_of_the_step(config)}
    inputs, units = math.prod(config.input_shape), config.model.mlp.d_ff
    return Case(
        name=f"training step of an autoencoder, {inputs} x {units}, {config.batch} images",
        rows="as trained by the rounds",
        arms=arms,
        bars=tuple(Bar("step", base, 1 / SHARE) for base in arms if base != "step"),
        facts={
            "inputs": inputs,
            "units": units,
            "batch": config.batch,
            "flops": flops(config),
            "flops as 6 N B": flops(config) * 6 / PRODUCTS,
            "matrix products": matrix_products(text),
            "share of the products' rate, if at most": SHARE,
        },
    )


def step(config: RunConfig) -> tuple[Callable[[], Any], str]:
    """Runs the compiled training step of a run of `config` once more; and the text of the program."""
    engine = Engine(config)
    with jax.set_mesh(engine.mesh):
        state, placed = engine.new_state()
        batch = spmd.place_batch(engine.mesh, draw(config))
        compiled = engine.step(placed, record=False).lower(state, batch).compile()

    def run():
        nonlocal state
        with jax.set_mesh(engine.mesh):
            state, metrics, _ = compiled(state, batch)
        return state, metrics

    return run, compiled.as_text()


def _operands(config: RunConfig) -> dict[str, jax.Array]:
    """Arrays as a step multiplies them: x and the gradient of y [B, D], h and the gradient of z [B, F], both W."""
    inputs, units = math.prod(config.input_shape), config.model.mlp.d_ff
    shapes = {"x": (config.batch, inputs), "dy": (config.batch, inputs)}
    shapes |= {"h": (config.batch, units), "dz": (config.batch, units), "w_e": (inputs, units), "w_d": (units, inputs)}
    keys = jax.random.split(jax.random.key(0), len(shapes))
    return {
        name: jax.random.normal(key, shape) / math.sqrt(shape[1])
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


def products(config: RunConfig) -> Callable[[], Any]:
    """The five products of a step of factors as they lie in memory: none is transposed."""
    a = _operands(config)
    a |= jax.jit(lambda a: {f"{name}_T": a[name].T for name in ("w_d", "h", "x")})(a)
    pairs = (("x", "w_e"), ("h", "w_d"), ("dy", "w_d_T"), ("h_T", "dy"), ("x_T", "dz"))
    program = jax.jit(lambda a: [a[left] @ a[right] for left, right in pairs])
    return lambda: program(a)


def products_of_the_step(config: RunConfig) -> Callable[[], Any]:
    """The same with the factors of gradients transposed as they are in the step."""
    a = _operands(config)
    program = jax.jit(lambda x, dy, h, dz, w_e, w_d: (x @ w_e, h @ w_d, dy @ w_d.T, h.T @ dy, x.T @ dz))
    return lambda: program(**a)


def _grouped_case(config: RunConfig) -> Case:
    """One step at each sigma, same seed and same images, as a study's runs: one program for all, or one after another.

    In both, sigma is an argument of the program. Under `vmap` the images and the noise before its scaling are the same
    for all and computed once; the weights are not.
    """
    model, (tx, _) = config.model.build(None), config.optimizer.build(config.steps)
    data = {name: jnp.asarray(values) for name, values in draw(config).items()}
    scale = recipes.noise_scale(recipes.autoencoder_photos())
    sigmas = jnp.asarray(SIGMAS, jnp.float32) * scale

    def compute(state, sigma):
        noise = lambda x, key, step: gaussian(x, key, sigma)
        return gradients(Objective(model, config.model, reconstruction, config.seed, noise), record=False)(state, data)

    new = jax.jit(init_fn(model, tx, config.seed, (data["image"][:1],)))
    inputs, units = math.prod(config.input_shape), config.model.mlp.d_ff
    return Case(
        name=f"training step at {len(SIGMAS)} sigmas, autoencoder {inputs} x {units}, {config.batch} images",
        rows="as trained by the rounds",
        arms=grouping_arms(compute, tx, [new() for _ in SIGMAS], sigmas),
        bars=(Bar("vmapped", "one by one", aim=WORTH),),
        facts={"inputs": inputs, "units": units, "batch": config.batch, "sigmas": SIGMAS, "grouped if at most": WORTH},
    )
