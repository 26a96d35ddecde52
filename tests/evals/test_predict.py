import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsity.evals.predict import make_predict
from sparsity.evals.sparsity import nonzero_fraction
from sparsity.layers.mlp import MLPConfig
from sparsity.layers.sparsify import Context
from sparsity.models.vit import ViTConfig
from sparsity.ops.sparsifiers import Relu
from sparsity.spmd import MeshConfig, make_mesh
from sparsity.train.losses import Losses, classification

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
