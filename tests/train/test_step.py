import dataclasses
import functools
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sparsity import recipes, spmd
from sparsity.data.span_corruption import Rows
from sparsity.layers.dense import named
from sparsity.layers.mlp import MLPConfig
from sparsity.layers.noise import Noise
from sparsity.layers.sparsify import Context
from sparsity.models.autoencoder import AutoencoderConfig
from sparsity.models.bert import Pretraining
from sparsity.ops.noise import Gaussian, LinearToZero
from sparsity.ops.sparsifiers import Gelu, TopK
from sparsity.run import Engine, run_config
from sparsity.train.losses import LOSSES, Losses, reconstruction
from sparsity.train.state import TrainState, init_state
from sparsity.train.step import Objective, gradients, kernel_norms, make_train_step, weight_summary


def _batch(n=32, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.normal(size=(n, 8, 8, 1)).astype(np.float32),
        "label": rng.integers(0, 10, n).astype(np.int32),
    }


def _objective(engine):
    cfg = engine.config
    return Objective(engine.model, cfg.model, LOSSES[cfg.model.task], cfg.seed)


def _with_head(engine):
    """A state whose head is not zero, so that gradients reach every leaf."""
    state, _ = engine.new_state()
    head = state.params["head"]
    kernel = 0.01 * jax.random.normal(jax.random.key(2), head["kernel"].shape)
    kernel = jax.device_put(kernel, head["kernel"].sharding)
    return state.replace(params=state.params | {"head": head | {"kernel": kernel}})


class Constant(nn.Module):
    """The same logits of BERT's two tasks whatever is read."""

    @nn.compact
    def __call__(self, tokens, ctx):
        token, sentence = (self.param(name, nn.initializers.zeros, (n,)) for name, n in (("token", 3), ("sentence", 2)))
        return Pretraining(jnp.broadcast_to(token, (*tokens.shape, 3)), jnp.broadcast_to(sentence, (len(tokens), 2)))


def test_the_means_of_berts_two_tasks_are_added_however_a_batch_is_split():
    params = {"token": jnp.log(jnp.array([0.5, 0.3, 0.2])), "sentence": jnp.log(jnp.array([0.8, 0.2]))}
    selected = jnp.tile(jnp.array([0, 1, 1]), (4, 1))
    batch = {"tokens": jnp.zeros((4, 3), jnp.int32), "targets": jnp.array([[0, 0, 1]] * 4), "target_segments": selected}
    batch["next_sentence"] = jnp.array([0, 0, 0, 1])
    objective = Objective(Constant(), types.SimpleNamespace(inputs=("tokens",)), LOSSES["language"], 0)
    state = TrainState(jnp.int32(0), params, None, {})
    out = [jax.jit(gradients(objective, record=False, accumulate=n))(state, batch) for n in (1, 2)]
    for (sums, penalty), grads, _, _ in out:
        assert float(sums.loss / sums.count) == pytest.approx(-np.log([0.5, 0.3]).mean(), rel=1e-5)
        assert float(penalty / sums.count) == pytest.approx(-np.log([0.8, 0.8, 0.8, 0.2]).mean(), rel=1e-5)
        # Softmax less the share of each label.
        np.testing.assert_allclose(grads["token"], [0.5 - 0.5, 0.3 - 0.5, 0.2], atol=1e-6)
        np.testing.assert_allclose(grads["sentence"], [0.8 - 0.75, 0.2 - 0.25], atol=1e-6)


def test_accumulated_microbatches_give_the_full_batch_gradient_and_statistics(tiny_config):
    engine = Engine(run_config(tiny_config))
    state = _with_head(engine)
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
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(stats), jax.tree.leaves(stats_4), strict=True):
        # Powers of pre-activations cancel: a sum of 128 terms, many of size 10, is good to 1e-4.
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-4 * ("power" in jax.tree_util.keystr(path)))


def test_dropout_is_a_function_of_seed_and_step(tiny_config):
    tiny_config.model.dropout = 0.5
    engine, losses = Engine(run_config(tiny_config)), {}
    state, batch = _with_head(engine), spmd.place_batch(engine.mesh, _batch())
    for seed in (0, 1):
        compute = gradients(dataclasses.replace(_objective(engine), seed=seed), record=False)
        fn = jax.jit(lambda state, batch, compute=compute: compute(state, batch)[0])
        with jax.set_mesh(engine.mesh):
            for step in (5, 5, 6):
                sums, _ = fn(state.replace(step=jnp.int32(step)), batch)
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


def test_the_state_is_donated_and_a_second_call_does_not_recompile(tiny_config, monkeypatch):
    monkeypatch.setattr(spmd, "LARGE", 1)
    tiny_config.mesh = {"data": 1, "fsdp": 2, "sequence": 2, "model": 2}
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


class Echo(nn.Module):
    """Hands back its input times a parameter that starts at 1, with noise of its own in between."""

    noise: Gaussian | None = None

    @nn.compact
    def __call__(self, images, ctx):
        return Noise(self.noise, name="noise")(images, ctx) * self.param("factor", named(nn.initializers.ones), ())


READS_IMAGES = types.SimpleNamespace(inputs=("image",))
IMAGES = np.random.default_rng(1).normal(size=(8, 16, 16, 1)).astype(np.float32)
ONE = {"factor": jnp.float32(1)}


def echoed(inner=None, seed=0, **settings):
    """The compiled (images, step, microbatch) -> Losses summed, of an Echo whose loss shows the noise alone."""
    objective = Objective(Echo(inner), READS_IMAGES, reconstruction, seed, **settings)
    run = lambda images, step, micro: objective(ONE, {}, {"image": images}, step, micro, False)[1][0][0]
    compiled = jax.jit(run)
    return lambda images=IMAGES, step=0, micro=0: compiled(images, jnp.int32(step), jnp.int32(micro))


def test_the_model_reads_the_noisy_images_and_the_loss_compares_with_the_clean_ones():
    """The loss of an echo is then the mean square of the noise, sigma^2; that of noisy targets would be 0."""
    n = IMAGES.size
    assert float(echoed()().loss) == 0
    for settings, variance in (
        ({"noise": Gaussian(0.5)}, 0.25),
        ({"inner": Gaussian(0.3)}, 0.09),
        ({"noise": Gaussian(0.5), "inner": Gaussian(0.3)}, 0.34),  # independent: the variances add
    ):
        sums = echoed(**settings)()
        # The mean of n squares of N(0, v) has the standard error v sqrt(2 / n): five times that.
        assert float(sums.loss / sums.count) == pytest.approx(variance, rel=5 * (2 / n) ** 0.5)
        assert float(sums.count) == 8


@pytest.mark.parametrize("place", ["noise", "inner"])
def test_noise_is_a_function_of_seed_step_and_microbatch(place):
    losses = {}
    for seed in (0, 1):
        noisy = echoed(seed=seed, **{place: Gaussian(0.5)})
        for step, micro in ((5, 0), (5, 1), (6, 0)):
            first, again = (float(noisy(step=step, micro=micro).loss) for _ in range(2))
            assert first == again
            losses[seed, step, micro] = first
    assert len(set(losses.values())) == 6


@pytest.mark.parametrize("place", ["noise", "inner"])
def test_schedules_of_noise_follow_the_step_of_training(place):
    noisy = echoed(**{place: Gaussian(0.5, schedule=LinearToZero(10, 4))})
    loss = lambda step: float(noisy(step=step).loss) / 8
    # Sizes 0.5, 0.25 and 0; five standard errors again.
    for step, size in ((10, 0.5), (12, 0.25)):
        assert loss(step) == pytest.approx(size**2, rel=5 * (2 / IMAGES.size) ** 0.5)
    assert loss(14) == loss(1000) == 0


@pytest.mark.parametrize("place", ["noise", "inner"])
def test_each_microbatch_has_noise_of_its_own(place):
    inner, outer = (Gaussian(0.5) if place == name else None for name in ("inner", "noise"))
    objective = Objective(Echo(inner), READS_IMAGES, reconstruction, 0, outer)
    state = TrainState(jnp.int32(3), ONE, (), {})
    same = np.tile(IMAGES[:1], (4, 1, 1, 1))
    (sums, _), _, _, _ = jax.jit(gradients(objective, record=False, accumulate=2))(state, {"image": same})
    one, other = (float(echoed(inner, noise=outer)(same[:2], 3, micro).loss) for micro in (0, 1))
    assert one != other
    np.testing.assert_allclose(sums.loss, one + other, rtol=1e-6)


NOISY = AutoencoderConfig(MLPConfig(16, Gelu(), noise=Gaussian(0.3), shared_bias=True))
TOP_K = AutoencoderConfig(MLPConfig(16, TopK(k=4, anneal=8), noise=Gaussian(0.3)))


@pytest.mark.parametrize("config", [NOISY, TOP_K], ids=["gelu", "top_k"])
def test_loss_and_gradient_under_noise_agree_across_meshes(config):
    out = []
    batch = {"image": IMAGES[:, :3, :2]}
    for shape in ((1, 1), (4, 2)):
        mesh, model = spmd.make_mesh(spmd.MeshConfig(*shape)), config.build(None)
        state, _ = init_state(model, optax.sgd(0.1), mesh, 0, (batch["image"][:1],))
        compute = gradients(Objective(model, config, reconstruction, 0, Gaussian(0.5)), False, accumulate=2)
        with jax.set_mesh(mesh):
            step = jax.device_put(jnp.int32(5), spmd.replicated(mesh))
            (sums, _), grads, _, _ = jax.jit(compute)(state.replace(step=step), spmd.place_batch(mesh, batch))
        out.append((float(sums.loss), jax.device_get(grads)))
    (loss_1, grads_1), (loss_8, grads_8) = out
    # The noise is the same; products and sums run in another order.
    assert loss_8 == pytest.approx(loss_1, rel=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), grads_8, grads_1)


def test_top_k_keeps_as_many_units_as_its_annealing_says_at_each_step_of_training():
    model, mesh = TOP_K.build(None), spmd.make_mesh(spmd.MeshConfig(data=1))
    images = IMAGES[:, :3, :2]
    state, _ = init_state(model, optax.sgd(0.1), mesh, 0, (images[:1],))
    hidden = state.params["hidden"]
    lifted = hidden | {"wi": hidden["wi"] | {"bias": jnp.full(16, 10.0)}}  # all units are positive
    compute = jax.jit(gradients(Objective(model, TOP_K, reconstruction, 0), record=True))
    for step, kept in ((0, 16), (1, 14), (4, 10), (8, 4), (100, 4)):
        *_, stats = compute(TrainState(jnp.int32(step), {"hidden": lifted}, (), {}), {"image": images})
        assert float(stats["hidden"]["sparsify"]["stats"].fired_F.sum()) == 8 * kept


def test_the_summary_of_weights_by_hand():
    """Columns of W_i are units: norms 5 and 13, mean 9, deviation 4; biases -1 and 3, mean 1, deviation 2."""
    params = {
        "hidden": {
            "wi": {"kernel": jnp.asarray([[3.0, 5.0], [4.0, -12.0]]), "bias": jnp.asarray([-1.0, 3.0])},
            "wo": {"kernel": jnp.asarray([[2.0]])},
            "shared_bias": jnp.float32(-0.5),
            "norm": {"scale": jnp.ones(3)},
        }
    }
    assert jax.tree.map(float, weight_summary(params)) == {
        "hidden/wi": {"norm_mean": 9.0, "norm_std": 4.0, "bias_mean": 1.0, "bias_std": 2.0},
        "hidden/wo": {"norm_mean": 2.0, "norm_std": 0.0},
        "hidden": {"bias_mean": -0.5, "bias_std": 0.0},
    }


def test_the_summary_keeps_scanned_layers_apart_and_takes_norms_over_the_windows_of_convolutions():
    rng = np.random.default_rng(0)
    stacked, bias = rng.normal(size=(5, 3, 4)), rng.normal(size=(5, 4))
    windows = rng.normal(size=(3, 3, 2, 4))
    params = {"layers": {"dense": {"kernel": stacked, "bias": bias}}, "conv": {"kernel": windows}}
    got = weight_summary(jax.tree.map(lambda p: jnp.asarray(p, jnp.float32), params))
    norms = np.linalg.norm(stacked, axis=1)
    expected = {
        "norm_mean": norms.mean(1),
        "norm_std": norms.std(1),
        "bias_mean": bias.mean(1),
        "bias_std": bias.std(1),
    }
    assert got.keys() == {"layers/dense", "conv"}
    for name, value in expected.items():
        np.testing.assert_allclose(got["layers/dense"][name], value, rtol=1e-5, atol=1e-6)
    norms = np.linalg.norm(windows.reshape(18, 4), axis=0)
    np.testing.assert_allclose([*got["conv"].values()], [norms.mean(), norms.std()], rtol=1e-5)


def test_a_recording_step_hands_out_the_weights_before_its_update():
    model, mesh, tx = NOISY.build(None), spmd.make_mesh(spmd.MeshConfig(data=1)), optax.sgd(1.0)
    images = IMAGES[:, :3, :2]
    state, placed = init_state(model, tx, mesh, 0, (images[:1],))
    before = jax.device_get(state.params["hidden"])
    compute = gradients(Objective(model, NOISY, reconstruction, 0, Gaussian(0.5)), record=True)
    step = make_train_step(compute, tx, lambda _: 1.0, mesh, placed)
    with jax.set_mesh(mesh):
        new, metrics, record = step(state, spmd.place_batch(mesh, {"image": images}))
    assert metrics.accuracy is None
    assert metrics.penalty is None
    norms = np.linalg.norm(before["wi"]["kernel"], axis=0)
    np.testing.assert_allclose(record.weights["hidden/wi"]["norm_mean"], norms.mean(), rtol=1e-6)
    assert float(record.weights["hidden"]["bias_mean"]) == 0
    assert float(new.params["hidden"]["shared_bias"]) != 0


@functools.cache
def packed_t5():
    """The engine of a narrow T5 on packed documents of unequal length, a batch of it with much padding, and a state."""
    config = recipes.t5_text()
    config.data, config.batch = {"name": "span_corruption", "length": 32}, 8
    config.model.update({"d_model": 16, "heads": 2, "head_dim": 8})
    config.model.mlp.d_ff = 32
    engine = Engine(run_config(config))
    rng, source = np.random.default_rng(0), engine.config.data
    words = [rng.integers(3, 259, n).astype(np.int32) for n in (34, 3, 20, 9, 30, 5, 33, 12)]
    rows = Rows(source, [(text,) for text in words], seed=5)
    return engine, rows.arrays(), engine.new_state()[0]


def test_z_loss_weighs_real_tokens_alike_whatever_the_microbatches():
    engine, batch, state = packed_t5()
    assert (batch["target_segments"] == 0).mean() > 0.3
    out = {}
    with jax.set_mesh(engine.mesh):
        for accumulate in (1, 4):
            cfg = engine.config
            objective = Objective(engine.model, cfg.model, LOSSES["language"], cfg.seed, z_loss=0.5)
            out[accumulate] = jax.jit(gradients(objective, record=False, accumulate=accumulate))(state, batch)
        forward = jax.jit(lambda params, *inputs: engine.model.apply({"params": params}, *inputs, Context()))
        logits = forward(state.params, *(batch[n] for n in cfg.model.inputs))
    (sums, penalty), grads, *_ = out[1]
    real = batch["target_segments"] > 0
    z = np.log(np.exp(np.asarray(logits, np.float64)).sum(-1)) ** 2
    assert sums.count == real.sum()
    assert float(penalty) == pytest.approx(0.5 * z[real].sum(), rel=1e-5)
    (sums_4, penalty_4), grads_4, *_ = out[4]
    assert float(sums_4.loss) == pytest.approx(float(sums.loss), rel=1e-6)
    assert float(penalty_4) == pytest.approx(float(penalty), rel=1e-6)
    scale = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(grads))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6 * scale), grads, grads_4)


def test_padding_does_not_change_the_gradient():
    engine, batch, state = packed_t5()
    compute = jax.jit(gradients(_objective(engine), record=False))
    garbage = {
        n: np.where(batch[s] == 0, 77, batch[n])
        for n, s in (
            ("inputs", "input_segments"),
            ("decoder_inputs", "target_segments"),
            ("targets", "target_segments"),
        )
    }
    with jax.set_mesh(engine.mesh):
        grads, other = compute(state, batch)[1], compute(state, batch | garbage)[1]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), grads, other)
