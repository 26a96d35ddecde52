import dataclasses

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.stats import norm

from sparsity import spmd
from sparsity.config import ConfigError, build, one_of
from sparsity.layers.mlp import MLPConfig
from sparsity.layers.sparsify import Activated, Context, Sparsify
from sparsity.models.autoencoder import AutoencoderConfig
from sparsity.models.deep_cnn import DeepCNNConfig
from sparsity.models.deep_mlp import DeepMLPConfig
from sparsity.models.mlp import MLPClassifierConfig
from sparsity.models.vit import ViTConfig
from sparsity.ops.sparsifiers import Gelu, Relu, Sat, Tanh, TopK
from sparsity.train.losses import LOSSES, Losses
from sparsity.train.penalties import L1, L2, PENALTIES, Jacobian
from sparsity.train.state import TrainState
from sparsity.train.step import Objective, gradients, make_train_step

SHAPE, D, F = (2, 2, 1), 4, 5
RNG = np.random.default_rng(0)
IMAGES = jnp.asarray(RNG.normal(size=(6, *SHAPE)), jnp.float32)
BATCH = {"image": IMAGES, "label": jnp.asarray(RNG.integers(0, 3, 6), jnp.int32)}
STEP = jnp.int32(0)


def layer(h):
    """What a layer with activations `h` hands out; only Jacobian looks at its pre-activations."""
    return Activated(z=jnp.full(np.shape(h), jnp.nan), h=jnp.asarray(h, jnp.float32))


def randomised(config, seed=1):
    """Random parameters of every leaf, biases included."""
    shapes = flax.core.meta.unbox(jax.eval_shape(config.build(3).init, jax.random.key(0), IMAGES, Context()))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda p: jnp.asarray(rng.normal(0, 0.5, p.shape), p.dtype), shapes["params"])


def autoencoder(sparsifier, **mlp):
    return AutoencoderConfig(MLPConfig(F, sparsifier, **mlp))


def objective(config, penalty):
    return Objective(config.build(3), config, LOSSES[config.task], seed=0, penalty=penalty)


def penalised(config, params, penalty, record=False):
    """(total, (losses, penalty)), all sums, of the compiled objective on BATCH."""
    run = jax.jit(lambda p: objective(config, penalty)(p, {}, BATCH, STEP, STEP, record))
    total, ((sums, penalty), _, _) = run(params)
    return total, (sums, penalty)


def test_l1_and_l2_by_hand():
    """Two examples; one layer of single tokens, one of two tokens each: sums over units, means over tokens."""
    layers = {
        "a": layer([[1.0, -2.0, 0.0], [0.0, 0.5, 0.0]]),
        "b": layer([[[1.0, 0.0], [3.0, -2.0]], [[0.0, 0.0], [0.0, 4.0]]]),
    }
    # L1: 3 + (1 + 5) / 2 and 0.5 + 4 / 2. L2: 5 + (1 + 13) / 2 and 0.25 + 16 / 2.
    np.testing.assert_allclose(L1(0.5)(None, None, layers), [0.5 * 6, 0.5 * 2.5], rtol=1e-6)
    np.testing.assert_allclose(L2(0.5)(None, None, layers), [0.5 * 12, 0.5 * 8.25], rtol=1e-6)


@pytest.mark.parametrize("penalty", [L1(2.0), L2(2.0)])
@pytest.mark.parametrize("shape", [(4, 6), (4, 1, 6), (4, 3, 6), (4, 2, 3, 6)])
def test_all_axes_between_the_first_and_the_last_are_tokens(penalty, shape):
    h = np.random.default_rng(2).normal(size=shape).astype(np.float32)
    size = np.abs(h) if penalty == L1(2.0) else h**2
    expected = 2 * size.reshape(4, -1, 6).sum(-1).mean(-1)
    np.testing.assert_allclose(penalty(None, None, {"layer": layer(h)}), expected, rtol=1e-6)


def test_padding_counts_neither_in_the_sum_nor_in_the_mean():
    h = np.random.default_rng(3).normal(size=(3, 4, 5)).astype(np.float32)
    real = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]])
    padded = np.where(real[:, :, None] > 0, h, np.nan)
    got = L1(1.0)(None, None, {"layer": Activated(padded, jnp.asarray(padded), jnp.asarray(real))})
    expected = [np.abs(h[0]).sum(-1).mean(), np.abs(h[1, :2]).sum(-1).mean(), 0]
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_bfloat16_activations_are_summed_in_float32():
    h = jnp.ones((1, 1000), jnp.bfloat16)  # bfloat16 cannot count past 256
    got = L1(1.0)(None, None, {"layer": Activated(h, h)})
    assert got.dtype == jnp.float32
    assert float(got[0]) == 1000


def brute_force(config, params):
    """||dy / dx||_F^2 of each example, from the whole Jacobian of the module."""
    model = config.build(None)
    output = lambda image: model.apply({"params": params}, image[None], Context()).ravel()
    jacobians = jax.jit(jax.vmap(jax.jacobian(output)))(IMAGES)
    assert jacobians.shape == (6, D, *SHAPE)
    return (np.asarray(jacobians, np.float64) ** 2).reshape(6, -1).sum(-1)


def activated(config, params):
    z = IMAGES.reshape(6, 1, -1) @ params["hidden"]["wi"]["kernel"]
    _, bias = config.encoder(params)
    return {"hidden/sparsify": Activated(z + bias, config.mlp.sparsifier(z + bias))}


@pytest.mark.parametrize("bias", [{}, {"shared_bias": True}, {"use_bias": False}], ids=str)
@pytest.mark.parametrize("sparsifier", [Relu(), Gelu(), Tanh(), Sat()], ids=str)
def test_the_jacobian_penalty_is_the_norm_of_the_whole_jacobian(sparsifier, bias):
    config = autoencoder(sparsifier, **bias)
    params = randomised(config)
    got = Jacobian(0.7)(config, params, activated(config, params))
    expected = 0.49 * brute_force(config, params) / D
    assert len(np.unique(expected)) > 1  # it depends on the example
    np.testing.assert_allclose(got, expected, rtol=1e-5)


@pytest.mark.parametrize("sparsifier", [Relu(), Gelu()], ids=str)
def test_the_jacobian_penalty_in_training_is_that_of_the_model(sparsifier):
    config = autoencoder(sparsifier)
    params = randomised(config)
    total, (sums, penalty) = penalised(config, params, Jacobian(0.7))
    np.testing.assert_allclose(penalty, 0.49 * brute_force(config, params).sum() / D, rtol=1e-5)
    np.testing.assert_allclose(total, sums.loss + penalty, rtol=1e-6)


def test_the_jacobian_penalty_is_what_small_noise_adds_to_the_loss():
    """E (y(x + n) - x)^2 - (y(x) - x)^2, mean over outputs, exact where no ReLU changes its side (Bishop 1995)."""
    sigma, n = 1e-3, 40_000
    config = autoencoder(Relu())
    params = randomised(config)
    z = np.asarray(next(iter(activated(config, params).values())).z)[0, 0]
    assert np.abs(z).min() > 10 * sigma * np.linalg.norm(params["hidden"]["wi"]["kernel"], axis=0).max()
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params["hidden"])
    y = lambda x: np.maximum(x @ p["wi"]["kernel"] + p["wi"]["bias"], 0) @ p["wo"]["kernel"] + p["wo"]["bias"]
    clean = np.asarray(IMAGES, np.float64).reshape(6, -1)[:1]
    noise = sigma * np.random.default_rng(3).normal(size=(n, D))
    loss = lambda noise: ((y(clean + noise) - clean) ** 2).mean(1)
    added = (loss(noise) + loss(-noise)) / 2 - loss(0)  # a pair has no first order
    expected = float(Jacobian(sigma)(config, params, activated(config, params))[0])
    # Five standard errors, 5% of what is told.
    assert 5 * added.std() / n**0.5 < 0.05 * expected
    assert abs(added.mean() - expected) < 5 * added.std() / n**0.5


def norms(params, slope):
    """sum_b ||J_b||_F^2 of numpy float64 parameters, J_b = W_e diag(phi'(z_b)) W_d."""
    wi, wo = params["wi"]["kernel"], params["wo"]["kernel"]
    z = np.asarray(IMAGES, np.float64).reshape(6, -1) @ wi + params["wi"]["bias"]
    return sum(((wi * slope(one)) @ wo) ** 2 for one in z).sum()


@pytest.mark.parametrize(
    ("sparsifier", "slope"),
    [(Relu(), lambda z: z > 0), (Gelu(), lambda z: norm.cdf(z) + z * norm.pdf(z))],
    ids=["relu", "gelu"],
)
def test_the_gradient_of_the_jacobian_penalty_is_that_of_the_norm(sparsifier, slope):
    """Against central differences in float64, along a random direction of all parameters."""
    config = autoencoder(sparsifier)
    params, direction = randomised(config), randomised(config, seed=2)
    penalty = lambda p: Jacobian(1.0)(config, p, activated(config, p)).sum()
    gradient = jax.jit(jax.grad(penalty))(params)
    got = sum(jax.tree.leaves(jax.tree.map(lambda g, d: float((g * d).sum()), gradient, direction)))
    wide = lambda e: jax.tree.map(lambda p, d: np.float64(p) + e * np.float64(d), params["hidden"], direction["hidden"])
    expected = (norms(wide(1e-5), slope) - norms(wide(-1e-5), slope)) / D / 2e-5
    np.testing.assert_allclose(got, expected, rtol=2e-5)
    # Biases act on phi'(z) alone, which is constant where phi is straight.
    assert (np.abs(gradient["hidden"]["wi"]["bias"]).max() > 0) == (sparsifier == Gelu())


MODELS = {
    "autoencoder": autoencoder(Gelu()),
    "mlp": MLPClassifierConfig((4, 3), Gelu()),
    "vit": ViTConfig(MLPConfig(3, Gelu()), d_model=2, layers=2, heads=1, patch=1, pool="gap"),
    "deep_mlp": DeepMLPConfig(3, 3, Relu()),
    "deep_cnn": DeepCNNConfig(6, 3, Relu(), kernel=1),
}
KERNELS = {  # of the hidden layers
    "autoencoder": ["hidden/wi"],
    "mlp": ["dense_0", "dense_1"],
    "vit": ["block_0/mlp/wi", "block_1/mlp/wi"],
    "deep_mlp": ["input", "layers/dense"],
    "deep_cnn": ["input", "layers/conv"],
}


def captured(config, params):
    """h of every hidden layer [B, ..., F], as Flax itself captures it."""
    wanted = lambda module, _: isinstance(module, Sparsify)
    apply = lambda p: config.build(3).apply({"params": p}, IMAGES, Context(), capture_intermediates=wanted)
    return jax.tree.leaves(jax.jit(apply)(params)[1]["intermediates"])


@pytest.mark.parametrize("name", ["autoencoder", "mlp", "vit"])
def test_l1_of_a_model_is_that_of_all_its_hidden_layers(name):
    config = MODELS[name]
    params = randomised(config)
    _, (_, got) = penalised(config, params, L1(0.5))
    layers = captured(config, params)
    assert len(layers) == len(KERNELS[name])
    expected = sum(np.abs(np.asarray(h, np.float64)).reshape(6, -1, h.shape[-1]).sum(-1).mean(-1) for h in layers)
    np.testing.assert_allclose(got, 0.5 * expected.sum(), rtol=1e-5)


@pytest.mark.parametrize("depth", [1, 4])
def test_l1_counts_scanned_layers_too(depth):
    config = DeepMLPConfig(3, depth, Relu())
    params = randomised(config)
    h, expected = np.asarray(IMAGES, np.float64).reshape(6, -1), 0.0
    matrices = [params["input"], *({k: p[i] for k, p in params["layers"]["dense"].items()} for i in range(depth - 1))]
    for matrix in matrices:
        h = np.maximum(h @ np.asarray(matrix["kernel"], np.float64) + np.asarray(matrix["bias"]), 0)
        expected += np.abs(h).sum()
    _, (_, got) = penalised(config, params, L1(0.5))
    np.testing.assert_allclose(got, 0.5 * expected, rtol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_the_gradient_of_a_penalty_reaches_every_hidden_layer_and_no_head(name):
    config = MODELS[name]
    params = randomised(config)
    without_loss = lambda outputs, batch: Losses(0 * outputs.reshape(6, -1).sum(-1), None, jnp.ones(6))
    only = Objective(config.build(3), config, without_loss, seed=0, penalty=L2(1.0))
    gradient = jax.jit(jax.grad(lambda p: only(p, {}, BATCH, STEP, STEP, False)[0]))(params)
    flat = {"/".join(k): g for k, g in flax.traverse_util.flatten_dict(gradient).items()}
    for kernel in KERNELS[name]:
        g = np.asarray(flat[f"{kernel}/kernel"])
        assert (g != 0).any(tuple(range(int("layers" in kernel), g.ndim))).all(), kernel
    head = "hidden/wo/kernel" if name == "autoencoder" else "head/kernel"
    np.testing.assert_array_equal(flat[head], np.zeros_like(flat[head]))


def test_the_gradient_of_loss_and_l1_is_the_closed_form():
    """Of |h| = relu(z): weight sum_b x_b [z_b > 0], beside the gradient of the loss alone."""
    config = autoencoder(Relu())
    params = randomised(config)
    state = TrainState(STEP, params, (), {})
    gradient = lambda penalty: jax.jit(gradients(objective(config, penalty), record=False))(state, BATCH)[1]
    with_l1, without = gradient(L1(0.3)), gradient(None)
    x = np.asarray(IMAGES, np.float64).reshape(6, -1)
    on = np.asarray(activated(config, params)["hidden/sparsify"].z)[:, 0] > 0
    difference = jax.tree.map(lambda a, b: np.asarray(a, np.float64) - b, with_l1, without)["hidden"]
    np.testing.assert_allclose(difference["wi"]["kernel"], 0.3 * x.T @ on / 6, atol=2e-6)
    np.testing.assert_allclose(difference["wi"]["bias"], 0.3 * on.mean(0), atol=2e-6)
    np.testing.assert_allclose(difference["wo"]["kernel"], 0, atol=2e-6)


@pytest.mark.parametrize("penalty", [L1(0.3), L2(0.3), Jacobian(0.3)], ids=str)
def test_recording_changes_neither_penalty_nor_loss(penalty):
    config = autoencoder(Gelu())
    params = randomised(config)
    on, off = (penalised(config, params, penalty, record) for record in (True, False))
    # Another program: a sum may run in another order.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), on, off)


def test_microbatches_give_the_penalty_and_the_gradient_of_the_whole_batch():
    config = autoencoder(Gelu())
    state = TrainState(STEP, randomised(config), (), {})
    for penalty in (L1(0.3), Jacobian(0.3)):
        (whole, parts) = (
            jax.jit(gradients(objective(config, penalty), record=False, accumulate=n))(state, BATCH)[:2] for n in (1, 3)
        )
        # Float32 sums of six examples in another order.
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), parts, whole)


def test_a_penalty_weighs_an_example_by_its_items():
    """Padding, an example without items, costs nothing; one of three tokens costs three times its penalty."""
    config = autoencoder(Relu())
    params = randomised(config)
    counts = jnp.asarray([1.0, 1.0, 3.0, 0.0, 0.0, 1.0])
    loss = lambda outputs, batch: Losses(counts * 2.0, None, counts)
    counted = Objective(config.build(3), config, loss, seed=0, penalty=L1(0.5))
    total, ((sums, got), _, _) = jax.jit(lambda p: counted(p, {}, BATCH, STEP, STEP, False))(params)
    h = np.asarray(activated(config, params)["hidden/sparsify"].h, np.float64)[:, 0]
    np.testing.assert_allclose(got, 0.5 * (h.sum(-1) * np.asarray(counts)).sum(), rtol=1e-5)
    np.testing.assert_allclose(total, 2.0 * 6 + got, rtol=1e-6)
    assert float(sums.count) == 6


def test_a_step_reports_the_mean_penalty_beside_the_loss_and_trains_on_both():
    config = autoencoder(Relu())
    tx, mesh = optax.sgd(0.1), spmd.make_mesh(spmd.MeshConfig(data=1))
    reported = {}
    for penalty in (None, L1(0.3)):
        params = randomised(config)
        state = TrainState(jnp.int32(0), params, tx.init(params), {})
        step = make_train_step(gradients(objective(config, penalty), record=False), tx, lambda _: 0.1, mesh, None)
        new, metrics, _ = step(state, BATCH)
        reported[penalty] = metrics, jax.device_get(new.params)
    (plain, plain_params), (with_l1, l1_params) = reported.values()
    h = np.asarray(activated(config, randomised(config))["hidden/sparsify"].h, np.float64)
    assert plain.penalty is None
    np.testing.assert_allclose(with_l1.penalty, 0.3 * h.sum() / 6, rtol=1e-5)
    np.testing.assert_allclose(with_l1.loss, plain.loss, rtol=1e-6)
    bias = lambda params: params["hidden"]["wi"]["bias"]
    assert (bias(l1_params) < bias(plain_params)).any()


def test_the_jacobian_is_refused_in_one_line_where_it_is_not_defined():
    Jacobian(0.1).check(autoencoder(Gelu()))
    classifier = MLPClassifierConfig((4,), Relu())
    for model in (classifier, autoencoder(TopK(2)), autoencoder(Relu(), dropout=0.1)):
        with pytest.raises(ValueError, match=r"^penalty: jacobian is that of an autoencoder .*without dropout$"):
            Jacobian(0.1).check(model)
    for penalty in (L1(0.1), L2(0.1)):
        penalty.check(classifier)


@dataclasses.dataclass(frozen=True)
class Penalised:
    penalty: object = one_of(PENALTIES)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"name": "l3", "weight": 1.0}, 'config.penalty.name: unknown name "l3"; valid: jacobian, l1, l2'),
        ({"name": "jacobin", "sigma": 1.0}, 'config.penalty.name: unknown name "jacobin"; did you mean "jacobian"?'),
        ({"name": "l1"}, "config.penalty.weight: required, not given"),
        ({"name": "l1", "wieght": 1.0}, 'config.penalty.wieght: unknown key; did you mean "weight"?'),
        ({"name": "l1", "weight": float("nan")}, "config.penalty.weight: expected a finite number, got nan"),
        ({"name": "jacobian", "sigma": -1.0}, "config.penalty.sigma: must be at least 0, got -1.0"),
    ],
)
def test_impossible_settings_are_refused_by_name(section, message):
    with pytest.raises(ConfigError) as caught:
        build(Penalised, {"penalty": section})
    assert str(caught.value).startswith(message)
