import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sparsity import spmd
from sparsity.run import Engine, run_config
from sparsity.train.losses import LOSSES, Losses
from sparsity.train.state import TrainState
from sparsity.train.step import Objective, gradients, kernel_norms, make_train_step


def _batch(n=32, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.normal(size=(n, 8, 8, 1)).astype(np.float32),
        "label": rng.integers(0, 10, n).astype(np.int32),
    }


def _objective(engine):
    cfg = engine.config
    return Objective(engine.model, cfg.model, LOSSES[cfg.model.task], cfg.seed)


def _trained_a_little(engine):
    """A state whose head is not zero any more, so that gradients reach every leaf."""
    state, placed = engine.new_state()
    step = engine.step(placed, record=False)
    with jax.set_mesh(engine.mesh):
        for seed in range(3):
            state, _, _ = step(state, spmd.place_batch(engine.mesh, _batch(seed=seed)))
    return state


def test_accumulated_microbatches_give_the_full_batch_gradient_and_statistics(tiny_config):
    engine = Engine(run_config(tiny_config))
    state = _trained_a_little(engine)
    batch = spmd.place_batch(engine.mesh, _batch(seed=9))
    out = []
    with jax.set_mesh(engine.mesh):
        for accumulate in (1, 4):
            fn = gradients(_objective(engine), record=True, accumulate=accumulate)
            out.append(jax.jit(fn)(state, batch))
    ((sums, _), grads, _, stats), ((sums_4, _), grads_4, _, stats_4) = out
    np.testing.assert_allclose(sums.loss, sums_4.loss, rtol=1e-6)
    assert sums.count == sums_4.count == 32
    total = np.sqrt(sum(float((g**2).sum()) for g in jax.tree.leaves(grads)))
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(grads_4), strict=True):
        # Sums in another order: relative to the whole gradient, since key biases have none.
        assert np.linalg.norm(a - b) <= 1e-6 * total
    # Sums of signed numbers, up to 1,500 of them, in another order.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-4), stats, stats_4)


def test_dropout_is_a_function_of_seed_and_step(tiny_config):
    tiny_config.model.dropout = 0.5
    losses = {}
    for seed in (0, 1):
        tiny_config.seed = seed
        engine = Engine(run_config(tiny_config))
        state = _trained_a_little(engine)
        batch = spmd.place_batch(engine.mesh, _batch())
        fn = jax.jit(gradients(_objective(engine), record=False))
        with jax.set_mesh(engine.mesh):
            for step in (5, 5, 6):
                sums, _ = fn(state.replace(step=jnp.int32(step)), batch)[0]
                losses.setdefault((seed, step), []).append(float(sums.loss))
    assert losses[0, 5][0] == losses[0, 5][1]
    assert len({v[0] for v in losses.values()}) == 4  # other seed or other step: other loss


@pytest.mark.parametrize("record", [False, True])
def test_recording_does_not_change_the_update(tiny_config, record):
    engine = Engine(run_config(tiny_config))
    state, placed = engine.new_state()
    with jax.set_mesh(engine.mesh):
        batch = spmd.place_batch(engine.mesh, _batch())
        state, metrics, out = engine.step(placed, record)(state, batch)
    assert (set(out.sparsity) if record else out) == ({"block_0", "block_1"} if record else None)
    # log 10 at a zero head, whatever is recorded.
    np.testing.assert_allclose(metrics.loss, np.log(10), rtol=1e-6)
    assert int(state.step) == 1


def test_the_state_is_donated_and_a_second_call_does_not_recompile(tiny_config):
    engine = Engine(run_config(tiny_config))
    state, placed = engine.new_state()
    step = engine.step(placed, record=False)
    with jax.set_mesh(engine.mesh):
        for _ in range(3):
            old = state
            state, _, _ = step(state, spmd.place_batch(engine.mesh, _batch()))
            assert all(x.is_deleted() for x in jax.tree.leaves(old))
    assert step._cache_size() == 1


def test_a_nan_anywhere_is_reported_as_not_finite(tiny_config):
    engine = Engine(run_config(tiny_config))
    bad = _batch()
    bad["image"][3, 0, 0, 0] = np.nan
    for batch, expected in ((_batch(), True), (bad, False)):
        state, placed = engine.new_state()
        with jax.set_mesh(engine.mesh):
            _, metrics, _ = engine.step(placed, record=False)(state, spmd.place_batch(engine.mesh, batch))
        assert bool(metrics.finite) is expected


@pytest.mark.parametrize(("gradient", "finite"), [(1.0, True), (1e25, True), (np.inf, False), (np.nan, False)])
def test_only_gradients_that_are_not_finite_are_called_so(gradient, finite):
    """The square of 1e25 is no float32 any more: the norm is infinite, the gradient is not."""
    compute = lambda state, batch: (
        (Losses(jnp.float32(1), jnp.float32(1), jnp.float32(1)), None),
        {"w": jnp.full(3, gradient)},
        {},
        {},
    )
    tx, mesh = optax.sgd(1.0), spmd.make_mesh(spmd.MeshConfig(data=1))
    params = {"w": jnp.ones(3)}
    state = TrainState(jnp.int32(0), params, tx.init(params), {})
    _, metrics, _ = make_train_step(compute, tx, lambda step: 1.0, mesh, None)(state, {})
    assert bool(metrics.finite) is finite
    assert bool(jnp.isfinite(metrics.grad_norm)) is (gradient == 1)


def test_kernel_norms_name_every_kernel_and_keep_scanned_layers_apart():
    rng = np.random.default_rng(0)
    grads = {
        "head": {"kernel": rng.normal(size=(3, 2)).astype(np.float32), "bias": np.ones(2, np.float32)},
        "layers": {"dense": {"kernel": rng.normal(size=(5, 3, 3)).astype(np.float32)}},
    }
    norms = kernel_norms(jax.tree.map(jnp.asarray, grads))
    assert set(norms) == {"head", "layers/dense"}
    np.testing.assert_allclose(norms["head"], np.linalg.norm(grads["head"]["kernel"]), rtol=1e-6)
    by_hand = [np.linalg.norm(g) for g in grads["layers"]["dense"]["kernel"]]
    np.testing.assert_allclose(norms["layers/dense"], by_hand, rtol=1e-6)


@pytest.mark.parametrize("scale", [1e25, 1e-25, 0.0])
def test_kernel_norms_whose_squares_leave_float32(scale):
    norms = kernel_norms({"head": {"kernel": jnp.full((2, 2), scale, jnp.float32)}})
    np.testing.assert_allclose(norms["head"], 2 * np.float32(scale), rtol=1e-6)
