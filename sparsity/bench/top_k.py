"""Top-k against `lax.top_k` and against ReLU: alone, in an MLP's forward and backward, in a training step."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sparsity.bench.protocol import Bar, Case
from sparsity.layers.mlp import MLPConfig
from sparsity.models.vit import ViTConfig
from sparsity.ops.sparsifiers import Relu, Sparsifier, TopK
from sparsity.ops.top_k import keep_top_k, kept_count
from sparsity.train.losses import classification
from sparsity.train.state import init_fn
from sparsity.train.step import Objective, gradients

ROWS = ("gaussian", "trained", "heavy_tailed", "bimodal", "few_positive")
PRODUCTS = 6  # z, y; and the gradients of x, h, W_in and W_out


def top_k_cases(smoke: bool) -> Iterator[Case]:
    """Selection at 3072 and 16384 units, the MLP of T5-base, and training steps."""
    tokens, d_model, widths, k = (64, 32, (256, 512), 16) if smoke else (1024, 768, (3072, 16384), 128)
    for width in widths:
        for rows in ROWS:
            yield _selection(rows, tokens, d_model, width, k, (1 / 3, 1 / 4) if width == widths[0] else (0.8, 2 / 3))
    for rows in ROWS:
        yield _mlp(rows, tokens, d_model, widths[0], k)
    for shape in (TINY,) if smoke else (VIT_S, QUICKSTART):
        yield _training_step(shape)


def scatter_top_k(h: jax.Array, k: int) -> jax.Array:
    """The usual Top-k: both outputs of `lax.top_k`, scattered into zeros [R, F]."""
    values, index = jax.lax.top_k(h, k)
    return jnp.zeros_like(h).at[jnp.arange(h.shape[0])[:, None], index].set(values)


def weights(rows: str, d_model: int, width: int, tokens: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Inputs x [tokens, D], W_in [D, F] and W_out [F, D] whose pre-activations x W_in are distributed as `rows`.

    gaussian: N(0, 1). heavy_tailed: units of random scale, Student t with 3 degrees of freedom
    over the units of a row. bimodal: one unit in ten around 3, the others around -1. few_positive:
    N(-2.5, 1), fewer positive entries than k. trained: a ReLU autoencoder of handwritten digits
    after 30 steps of Adam.
    """
    rng = np.random.default_rng(0)
    x, w_in = rng.normal(size=(tokens, d_model)), rng.normal(size=(d_model, width)) / np.sqrt(d_model)
    w_out = rng.normal(size=(width, d_model)) / np.sqrt(width)
    if rows == "heavy_tailed":
        w_in *= np.sqrt(3 / rng.chisquare(3, size=width))
    if rows == "bimodal":
        x[:, 0] = 1.0
        w_in = 0.3 * w_in
        w_in[0] = np.where(rng.random(width) < 0.1, 3.0, -1.0)
    if rows == "few_positive":
        x[:, 0], w_in[0] = 1.0, -2.5
    arrays = tuple(jnp.asarray(a, jnp.float32) for a in (x, w_in, w_out))
    return _trained(arrays) if rows == "trained" else arrays


def _trained(arrays):
    from sklearn.datasets import load_digits  # seconds to import: only where it is used

    x, w_in, w_out = arrays
    rng = np.random.default_rng(1)
    images = load_digits().images.reshape(-1, 64)
    images = (images - images.mean()) / images.std()
    projected = images @ rng.normal(size=(64, x.shape[1])) / 8
    x = jnp.asarray(projected[: x.shape[0]] + 0.1 * np.asarray(x), jnp.float32)
    tx = optax.adam(1e-3)

    def loss(params, batch):
        return jnp.mean((jax.nn.relu(batch @ params[0]) @ params[1] - batch) ** 2)

    @jax.jit
    def step(params, state, batch):
        updates, state = tx.update(jax.grad(loss)(params, batch), state)
        return optax.apply_updates(params, updates), state

    params, state = (w_in, w_out), tx.init((w_in, w_out))
    for i in range(30):
        params, state = step(params, state, x[(i % 4) :: 4])
    return x, *params


def _selection(rows: str, tokens: int, d_model: int, width: int, k: int, bar: tuple[float, float]) -> Case:
    x, w_in, _ = weights(rows, d_model, width, tokens)
    z = jax.jit(jnp.matmul)(x, w_in)
    arms = {"scatter": lambda h: scatter_top_k(h, k), "exact": lambda h: keep_top_k(h, k)}
    programs = {name: jax.jit(f) for name, f in arms.items()}
    reference = programs["scatter"](z)
    return Case(
        name=f"select {k} of [{tokens}, {width}]",
        rows=rows,
        arms={name: lambda f=f: f(z) for name, f in programs.items()},
        bars=(Bar("exact", "scatter", *bar),),
        facts={name: selection_facts(f(z), reference, z, k) for name, f in programs.items()},
    )


def selection_facts(h: jax.Array, reference: jax.Array, z: jax.Array, k: int) -> dict[str, float]:
    """Kept counts of `h` against k, and its recall of the nonzeros of `reference`, all [R, F]."""
    kept, full = np.asarray(kept_count(h)), np.asarray(kept_count(jnp.maximum(z, 0))) >= k
    hit = np.asarray(kept_count(jnp.where(h != 0, reference, 0))).sum()
    return {
        "kept_mean": float(kept.mean()),
        "kept_min": int(kept.min()),
        "kept_max": int(kept.max()),
        "rows_with_k_positives": float(full.mean()),
        "of_those_within_10_percent_of_k": float(np.mean(np.abs(kept[full] - k) <= 0.1 * k)) if full.any() else None,
        "recall": float(hit / max(np.asarray(kept_count(reference)).sum(), 1)),
    }


def _mlp(rows: str, tokens: int, d_model: int, width: int, k: int) -> Case:
    """Value and gradients of x, W_in and W_out of sum(g * act(x W_in) W_out)."""
    arrays = weights(rows, d_model, width, tokens)
    g = jnp.asarray(np.random.default_rng(2).normal(size=(tokens, d_model)), jnp.float32)
    arms = {
        "relu": Relu(),
        "exact": TopK(k=k),
        "statistical": TopK(k=k, method="statistical"),
        "scatter": lambda z: scatter_top_k(Relu()(z), k),
    }

    def program(act: Callable[[jax.Array], jax.Array]):
        loss = lambda x, w_in, w_out: jnp.sum(act(x @ w_in) @ w_out * g)
        return jax.jit(jax.value_and_grad(loss, (0, 1, 2))).lower(*arrays).compile()

    programs = {name: program(act) for name, act in arms.items()}
    z = jax.jit(jnp.matmul)(*arrays[:2])
    reference = jax.jit(arms["scatter"])(z)
    facts = {name: selection_facts(jax.jit(act)(z), reference, z, k) for name, act in arms.items()}
    products = {name: matrix_products(p.as_text()) for name, p in programs.items()}
    if set(products.values()) != {PRODUCTS}:
        raise AssertionError(f"forward and backward are {PRODUCTS} matrix products, compiled were {products}")
    return Case(
        name=f"MLP forward+backward [{tokens}, {d_model} x {width}]",
        rows=rows,
        arms={name: lambda p=p: p(*arrays) for name, p in programs.items()},
        bars=(Bar("exact", "relu", 1.15, 1.05), Bar("statistical", "relu", 1.07), Bar("scatter", "relu")),
        facts=facts | {"matrix_products": products},
    )


def matrix_products(text: str) -> int:
    """Matrix products in the text of a compiled program, as dots or as calls of a library."""
    return len(re.findall(r" dot\(|custom_call_target=\"[^\"]*(?:matmul|gemm|dot)", text, re.IGNORECASE))


@dataclasses.dataclass(frozen=True)
class _Step:
    """Shape of a training step: a ViT, and a batch of square images."""

    name: str
    d_model: int
    layers: int
    heads: int
    d_ff: int
    k: int
    patch: int
    side: int
    channels: int
    batch: int
    bar: tuple[float, float]


VIT_S = _Step("ViT-S/16", 384, 12, 6, 1536, 64, 16, 224, 3, 4, (1.10, 1.06))
# In steps per second: at least 0.85 of ReLU's, aim 0.92.
QUICKSTART = _Step("the quickstart's ViT", 64, 4, 4, 512, 64, 4, 8, 1, 128, (1 / 0.85, 1 / 0.92))
TINY = _Step("a tiny ViT", 32, 1, 2, 64, 8, 16, 32, 3, 2, (1.10, 1.06))


def _training_step(shape: _Step) -> Case:
    """One AdamW step of a ViT, forward, backward and update, on random images."""
    rng = np.random.default_rng(0)
    data = {
        "image": jnp.asarray(rng.normal(size=(shape.batch, shape.side, shape.side, shape.channels)), jnp.float32),
        "label": jnp.asarray(rng.integers(0, 10, shape.batch)),
    }
    tx = optax.adamw(1e-3)

    def arm(sparsifier: Sparsifier) -> Callable[[], object]:
        mlp = MLPConfig(d_ff=shape.d_ff, sparsifier=sparsifier)
        sizes = {"d_model": shape.d_model, "layers": shape.layers, "heads": shape.heads, "patch": shape.patch}
        settings = ViTConfig(mlp=mlp, pool="gap", **sizes)
        model = settings.build(classes=10)
        compute = gradients(Objective(model, settings, classification, seed=0), record=False)

        def train_step(state, data):
            (sums, _), grads, _, _ = compute(state, data)
            updates, opt_state = tx.update(grads, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
            return state.replace(step=state.step + 1, params=params, opt_state=opt_state), sums.loss

        compiled = jax.jit(train_step, donate_argnums=0)
        state = jax.jit(init_fn(model, tx, 0, (data["image"][:1],)))()

        def run():
            nonlocal state
            state, loss = compiled(state, data)
            return state, loss

        return run

    return Case(
        name=f"training step of {shape.name}, d_ff {shape.d_ff}, k {shape.k}, {shape.batch} images",
        rows="as trained by the rounds",
        arms={"relu": arm(Relu()), "exact": arm(TopK(k=shape.k))},
        bars=(Bar("exact", "relu", *shape.bar),),
        facts=dataclasses.asdict(shape),
    )
