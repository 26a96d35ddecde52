"""The step on 8 devices, however they are arranged, is the step on one device, Top-k included."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsity import recipes, spmd
from sparsity.data.pipeline import train_batches
from sparsity.layers.sparsify import Context
from sparsity.ops import top_k
from sparsity.run import Engine, run_config
from sparsity.train.losses import LOSSES
from sparsity.train.step import Objective, gradients

MESHES = {
    "single": spmd.MeshConfig(1, 1),
    "fsdp": spmd.MeshConfig(2, 2, fsdp=2),
    "sequence": spmd.MeshConfig(2, 2, sequence=2),
}


@pytest.fixture(autouse=True)
def everything_is_large(monkeypatch):
    """`fsdp` splits small parameters too."""
    monkeypatch.setattr(spmd, "LARGE", 1)


def _engine(mesh, dtype="float32"):
    config = recipes.with_top_k(recipes.vit_digits(), k=64)
    config.steps, config.model.layers = 40, 2
    config = run_config(config)
    return Engine(dataclasses.replace(config, mesh=MESHES[mesh], model=dataclasses.replace(config.model, dtype=dtype)))


def _batches(config, n):
    batches = train_batches(config.data, config.batch, config.seed, 0)
    return [next(batches) for _ in range(n)]


@pytest.fixture(scope="module")
def reference():
    """Host copies of the single-device states before steps 0, 10 and 20, and the batches."""
    engine = _engine("single")
    batches = _batches(engine.config, 21)
    state, placed = engine.new_state()
    step, states = engine.step(placed, record=False), {}
    with jax.set_mesh(engine.mesh):
        for i in range(21):
            if i % 10 == 0:
                states[i] = jax.device_get(state)
            state, _, _ = step(state, spmd.place_batch(engine.mesh, batches[i]))
    return states, batches


def _compute(engine, state, batch):
    """Loss, gradients and every block's kept set, from one state on one mesh."""
    config = engine.config
    fn = gradients(Objective(engine.model, config.model, LOSSES[config.model.task], config.seed), record=False)

    def compute(state, batch):
        capture = lambda module, _: module.name in ("sparsify", "wi")
        variables = {"params": state.params}
        _, found = engine.model.apply(variables, batch["image"], Context(), capture_intermediates=capture)
        hidden = {k: (v["mlp"]["wi"]["__call__"][0], v["mlp"]["sparsify"]["__call__"][0] > 0)
                  for k, v in found["intermediates"].items()}  # fmt: skip
        return fn(state, batch), hidden

    with jax.set_mesh(engine.mesh):
        state, batch = jax.device_put(state, engine.placed), spmd.place_batch(engine.mesh, batch)
        compiled = jax.jit(compute)
        ((sums, _), grads, _, _), kept = found = compiled(state, batch)
        again = compiled(state, batch)
    # On the same devices the same to the bit: no sum of theirs goes by who comes first.
    jax.tree.map(np.testing.assert_array_equal, *jax.device_get((found, again)))
    return float(sums.loss / sums.count), jax.device_get(grads), jax.device_get(kept)


@pytest.mark.parametrize("step", [*(pytest.param(i, marks=pytest.mark.slow) for i in (0, 10)), 20])
def test_loss_and_gradients_from_one_state_agree_across_meshes(reference, step):
    states, batches = reference
    out = {name: _compute(_engine(name), states[step], batches[step]) for name in MESHES}
    loss_1, grads_1, kept_1 = out.pop("single")
    for loss_8, grads_8, kept_8 in out.values():
        _agree((loss_1, grads_1), (loss_8, grads_8))
        _keep_the_same(kept_1, kept_8)


def _agree(one, eight):
    """Losses within 1e-6 and gradients within 1e-5, relative."""
    (loss_1, grads_1), (loss_8, grads_8) = one, eight
    assert abs(loss_1 - loss_8) <= 1e-6 * abs(loss_1)
    total = np.sqrt(sum(float((g**2).sum()) for g in jax.tree.leaves(grads_1)))
    for (path, g1), g8 in zip(jax.tree_util.tree_leaves_with_path(grads_1), jax.tree.leaves(grads_8), strict=True):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        # The softmax does not see a bias of the keys: its true gradient is zero, so rounding is
        # all there is, and only its size against the whole gradient means anything.
        scale = total if name.endswith("key/bias") else np.linalg.norm(g1)
        assert np.linalg.norm(g1 - g8) <= 1e-5 * scale, name


def _keep_the_same(kept_1, kept_8):
    for layer, (z1, mask_1) in kept_1.items():
        z8, mask_8 = kept_8[layer]
        np.testing.assert_allclose(z1, z8, atol=2e-5)
        rows, units = np.nonzero((mask_1 != mask_8).reshape(-1, mask_1.shape[-1]))
        z = z1.reshape(-1, z1.shape[-1])
        kth = np.sort(z, axis=-1)[:, -64]
        # Where the kept sets differ, the unit ties with the threshold within rounding.
        assert (np.abs(z[rows, units] - np.maximum(kth[rows], 0)) <= 2e-5).all(), layer


def test_loss_and_gradients_of_t5_agree_across_meshes():
    config = recipes.t5_text()
    config.batch, config.data.length, config.model.mlp.d_ff = 8, 32, 64
    config, out, placed, state = run_config(config), {}, {}, None
    batch, loss = _batches(config, 1)[0], LOSSES[config.model.task]
    for name in ("single", "fsdp", "sequence"):
        engine = Engine(dataclasses.replace(config, mesh=MESHES[name]))
        state = engine.new_state()[0] if state is None else jax.device_put(jax.device_get(state), engine.placed)
        compute = jax.jit(gradients(Objective(engine.model, config.model, loss, seed=0, z_loss=1e-4), record=False))
        with jax.set_mesh(engine.mesh):
            (sums, _), grads, _, _ = compute(state, spmd.place_batch(engine.mesh, batch))
        out[name] = float(sums.loss / sums.count), jax.device_get(grads)
        placed[name] = jax.tree.map(lambda p: p.addressable_shards[0].data.size / p.size, state.params)
    for name in ("fsdp", "sequence"):
        _agree(out["single"], out[name])
    wi = {name: shares["encoder"]["layers"]["mlp"]["wi"]["kernel"] for name, shares in placed.items()}
    assert wi == {"single": 1, "fsdp": 1 / 4, "sequence": 1 / 2}


@pytest.mark.slow
def test_the_float64_loss_curves_of_20_steps_agree_across_meshes():
    curves = {}
    with jax.enable_x64(True):
        for name in ("single", "fsdp"):
            engine = _engine(name, "float64")
            state, placed = engine.new_state()
            state = jax.tree.map(lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x, state)
            step, curve = engine.step(placed, record=False), []
            with jax.set_mesh(engine.mesh):
                for batch in _batches(engine.config, 20):
                    batch = {"image": batch["image"].astype(np.float64), "label": batch["label"]}
                    state, metrics, _ = step(state, spmd.place_batch(engine.mesh, batch))
                    curve.append(float(metrics.loss))
            curves[name] = np.array(curve)
            assert metrics.loss.dtype == jnp.float64
    assert curves["single"][-1] < curves["single"][0]
    np.testing.assert_allclose(curves["single"], curves["fsdp"], rtol=1e-9)


def test_top_k_is_exact_over_a_sharded_hidden_dimension():
    rng = np.random.default_rng(0)
    h = np.round(rng.normal(size=(8, 3, 64)), 1).astype(np.float32)  # rounded: many ties
    mesh = spmd.make_mesh(spmd.MeshConfig(4, 2))
    with jax.set_mesh(mesh):
        placed = jax.device_put(h, jax.NamedSharding(mesh, jax.P("data", None, "model")))
        out = jax.jit(top_k.keep_top_k, static_argnums=1)(placed, 10)
    values, index = jax.lax.top_k(h, 10)
    expected = np.zeros_like(h)
    np.put_along_axis(expected, np.asarray(index), np.asarray(values), -1)
    np.testing.assert_array_equal(out, expected)
