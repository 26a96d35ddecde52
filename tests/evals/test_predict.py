import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsity.config import ConfigError
from sparsity.data.pipeline import Lazy, Stream
from sparsity.evals.predict import make_predict
from sparsity.evals.sparsity import nonzero_fraction
from sparsity.layers.mlp import MLPConfig
from sparsity.layers.sparsify import Context
from sparsity.models.autoencoder import AutoencoderConfig
from sparsity.models.vit import ViTConfig
from sparsity.ops.noise import Gaussian, LinearToZero
from sparsity.ops.sparsifiers import Relu, TopK
from sparsity.spmd import MeshConfig, make_mesh
from sparsity.train.losses import Losses, classification, reconstruction

N, CLASSES = 10, 3
RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(N, 4, 4, 1)).astype(np.float32)
LABELS = RNG.integers(0, CLASSES, N).astype(np.int32)
CONFIG = ViTConfig(MLPConfig(8, Relu()), d_model=4, layers=2, heads=2, patch=2, pool="gap")
MODEL = CONFIG.build(CLASSES)
ARRAYS = {"image": IMAGES, "label": LABELS}


def predictor(mesh, batch, module=MODEL, **settings):
    return make_predict(module, ("image",), classification, mesh, batch, **settings)


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(), jax.devices()[:1])


@pytest.fixture(scope="module")
def variables():
    shapes = flax.core.meta.unbox(jax.eval_shape(MODEL.init, jax.random.key(0), IMAGES, Context()))
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda p: jnp.asarray(rng.normal(0, 0.5, p.shape), p.dtype), shapes)


@pytest.fixture(scope="module")
def whole(mesh, variables):
    return predictor(mesh, N)(variables, ARRAYS)


def test_the_logits_are_those_of_the_model_in_the_order_of_the_examples(whole, variables):
    expected = jax.jit(lambda v, x: MODEL.apply(v, x, Context()))(variables, IMAGES)
    assert whole.logits.shape == (N, CLASSES)
    np.testing.assert_allclose(whole.logits, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(whole.labels, LABELS)


@pytest.mark.parametrize("batch", [4, 5, 16])
def test_neither_the_batch_nor_its_padding_changes_anything(batch, mesh, variables, whole):
    got = predictor(mesh, batch)(variables, ARRAYS)
    # Another batch size is another program: float32 rounding.
    np.testing.assert_allclose(got.logits, whole.logits, rtol=1e-5, atol=1e-5)
    assert list(got.stats) == list(whole.stats) == list(CONFIG.mlps())
    for name, stats in got.stats.items():
        assert float(stats.examples) == N
        assert float(stats.tokens) == N * 4
        assert float(stats.histogram.sum()) == N * 4 * 8
        np.testing.assert_array_equal(stats.fired_F, whole.stats[name].fired_F)
        np.testing.assert_allclose(nonzero_fraction(stats), nonzero_fraction(whole.stats[name]), rtol=1e-5)


class Asked(Lazy):
    """The examples, which are noted as they are asked for."""

    image_shape, labels = IMAGES.shape[1:], LABELS

    def __init__(self):
        self.most_at_once = 0

    def take(self, indices):
        self.most_at_once = max(self.most_at_once, len(indices))
        return {"image": IMAGES[indices], "label": LABELS[indices]}

    def model_input(self, arrays):
        return arrays


def test_a_stream_is_predicted_as_what_is_in_memory_a_batch_at_a_time(mesh, variables, whole):
    predict, asked = predictor(mesh, 4), Asked()
    got, expected = predict(variables, Stream(asked, asked)), predict(variables, ARRAYS)
    np.testing.assert_array_equal(got.logits, expected.logits)
    np.testing.assert_array_equal(got.correct, whole.correct)
    jax.tree.map(np.testing.assert_array_equal, got.stats, expected.stats)
    assert (got.arrays.keys(), asked.most_at_once) == ({"label"}, 4)
    np.testing.assert_array_equal(expected.images, IMAGES)
    with pytest.raises(ConfigError, match=r"needs all images at once; data\.evaluated can make them fewer"):
        _ = got.images


def test_a_nan_image_is_nan_in_its_own_logits_and_in_every_layers_fraction(mesh, variables, whole):
    images = IMAGES.copy()
    images[7, 0, 0, 0] = np.nan
    got = predictor(mesh, 4)(variables, {"image": images, "label": LABELS})
    np.testing.assert_array_equal(np.isnan(got.logits).any(-1), np.arange(N) == 7)
    assert all(np.isnan(stats.fraction_sum) for stats in got.stats.values())
    assert not any(np.isnan(stats.fraction_sum) for stats in whole.stats.values())


def test_one_program_serves_every_number_of_examples(mesh, variables):
    traces = []

    class Counted(type(MODEL)):
        def __call__(self, images, ctx):
            traces.append(images.shape)
            return super().__call__(images, ctx)

    predict = predictor(mesh, 4, module=Counted(CONFIG, CLASSES))
    for n in (10, 4, 3):
        assert len(predict(variables, {k: x[:n] for k, x in ARRAYS.items()}).logits) == n
    assert traces == [(4, 4, 4, 1)]


def test_predictions_without_labels_have_none(mesh, variables, whole):
    unscored = lambda outputs, part: Losses(outputs[:, 0], None, outputs[:, 0])
    got = make_predict(MODEL, ("image",), unscored, mesh, N)(variables, {"image": IMAGES})
    assert got.labels is None
    np.testing.assert_array_equal(got.logits, whole.logits)


def test_single_losses_are_handed_out_without_padding(mesh, variables, whole):
    got = predictor(mesh, 4)(variables, ARRAYS)
    expected = classification(jnp.asarray(whole.logits), {"label": LABELS})
    np.testing.assert_allclose(got.losses.loss, expected.loss, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(got.losses.correct, whole.correct)
    np.testing.assert_array_equal(got.losses.count, np.ones(N))


def test_outputs_that_are_not_kept_leave_losses_and_statistics(mesh, variables, whole):
    got = predictor(mesh, N, keep_outputs=False)(variables, ARRAYS)
    assert got.outputs is None
    np.testing.assert_allclose(got.losses.loss, whole.losses.loss, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), got.stats, whole.stats)


# An autoencoder that hands its (positive) pixels through: what comes out shows the noise.
AUTOENCODER = AutoencoderConfig(MLPConfig(16, Relu()))
IDENTITY = {"kernel": jnp.eye(16), "bias": jnp.zeros(16)}
THROUGH = {"params": {"hidden": {"wi": IDENTITY, "wo": IDENTITY}}}
PIXELS = {"image": np.full((N, 4, 4, 1), 10, np.float32)}


def noisy_predictor(mesh, batch=4, inner=None, **settings):
    module = AutoencoderConfig(MLPConfig(16, Relu(), noise=inner)).build(None)
    return make_predict(module, ("image",), reconstruction, mesh, batch, **settings)


@pytest.mark.parametrize("place", ["noise", "inner"])
def test_noise_is_on_where_it_is_asked_for_and_the_loss_compares_with_the_clean_image(mesh, place):
    predict = noisy_predictor(mesh, **{place: Gaussian(0.5)})
    clean = predict(THROUGH, PIXELS)
    np.testing.assert_array_equal(clean.outputs, PIXELS["image"])
    np.testing.assert_array_equal(clean.losses.loss, np.zeros(N))
    noisy = predict(THROUGH, PIXELS, noisy=True)
    noise = noisy.outputs - PIXELS["image"]
    assert len(np.unique(noise)) > 0.99 * noise.size  # fresh for each pixel, example and batch
    np.testing.assert_allclose(noisy.losses.loss, (noise**2).mean((1, 2, 3)), rtol=1e-5)
    # The mean of 160 squares of N(0, 1/4) has the standard error sqrt(2 / 160) / 4: five times that.
    assert noisy.losses.loss.mean() == pytest.approx(0.25, rel=5 * (2 / 160) ** 0.5)


def test_the_noise_of_a_prediction_is_a_function_of_seed_step_and_batch(mesh):
    predict, other = (noisy_predictor(mesh, noise=Gaussian(0.5), seed=seed) for seed in (0, 1))
    one = predict(THROUGH, PIXELS, noisy=True, step=3)
    np.testing.assert_array_equal(one.outputs, predict(THROUGH, PIXELS, noisy=True, step=3).outputs)
    np.testing.assert_array_equal(one.outputs, predict(THROUGH, PIXELS, True, 3).outputs)
    assert (one.outputs != predict(THROUGH, PIXELS, noisy=True, step=4).outputs).all()
    assert (one.outputs != other(THROUGH, PIXELS, noisy=True, step=3).outputs).all()
    # Fewer examples: the same first batch, and a padded last one.
    few = predict(THROUGH, {"image": PIXELS["image"][:6]}, noisy=True, step=3)
    np.testing.assert_array_equal(few.outputs, one.outputs[:6])


def test_the_size_of_the_noise_is_that_of_the_step(mesh):
    predict = noisy_predictor(mesh, noise=Gaussian(0.5, schedule=LinearToZero(10, 4)))
    outputs = lambda step: predict(THROUGH, PIXELS, noisy=True, step=step).outputs
    np.testing.assert_array_equal(outputs(14), PIXELS["image"])
    # 160 draws of deviation 0.25, good to 1 / sqrt(320): five times that.
    assert (outputs(12) - 10).std() == pytest.approx(0.25, rel=5 / 320**0.5)


def test_units_kept_go_by_the_step_too(mesh):
    module = AutoencoderConfig(MLPConfig(16, TopK(k=4, anneal=8))).build(None)
    predict = make_predict(module, ("image",), reconstruction, mesh, N)
    for step, kept in ((0, 16), (4, 10), (8, 4)):
        assert (predict(THROUGH, PIXELS, step=step).outputs != 0).sum() == N * kept


def test_noisy_predictions_are_the_same_on_a_mesh_of_eight(mesh):
    settings = {"batch": 8, "noise": Gaussian(0.5), "inner": Gaussian(0.3)}
    one, eight = (noisy_predictor(m, **settings) for m in (mesh, make_mesh(MeshConfig(4, 2))))
    expected, got = (predict(THROUGH, PIXELS, noisy=True) for predict in (one, eight))
    np.testing.assert_allclose(got.outputs, expected.outputs, rtol=1e-6)
    assert (expected.outputs != PIXELS["image"]).all()
