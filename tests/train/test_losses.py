import jax.numpy as jnp
import numpy as np

from sparsity.train.losses import classification, language, reconstruction


def test_classification_by_hand():
    logits = jnp.array([[0.0, 0.0], [np.log(3.0), 0.0], [0.0, 5.0]])
    losses = classification(logits, {"label": jnp.array([0, 1, 1])})
    np.testing.assert_allclose(losses.loss, [np.log(2), np.log(4), np.log1p(np.exp(-5.0))], rtol=2e-5)
    np.testing.assert_array_equal(losses.correct, [1, 0, 1])  # a tie goes to the first class
    np.testing.assert_array_equal(losses.count, [1, 1, 1])


def test_a_nan_logit_is_never_correct():
    losses = classification(jnp.array([[jnp.nan, 0.0]]), {"label": jnp.array([0])})
    assert float(losses.correct[0]) == 0
    assert np.isnan(losses.loss[0])


def test_reconstruction_is_the_mean_over_pixels_of_each_example():
    images = np.arange(24, dtype=np.float32).reshape(2, 2, 2, 3)
    outputs = images + np.float32([1, 2]).reshape(2, 1, 1, 1)
    losses = reconstruction(jnp.asarray(outputs), {"image": jnp.asarray(images)})
    np.testing.assert_allclose(losses.loss, [1, 4], rtol=1e-6)
    np.testing.assert_array_equal(losses.count, [1, 1])
    assert losses.correct is None


def test_language_sums_over_the_tokens_of_each_example():
    logits = jnp.log(jnp.array([[[0.5, 0.5], [0.25, 0.75]], [[0.9, 0.1], [0.2, 0.8]]]))
    losses = language(logits, {"targets": jnp.array([[0, 1], [0, 0]])})
    np.testing.assert_allclose(losses.loss, -np.log([0.5 * 0.75, 0.9 * 0.2]), rtol=1e-5)
    np.testing.assert_array_equal(losses.correct, [2, 1])
    np.testing.assert_array_equal(losses.count, [2, 2])
