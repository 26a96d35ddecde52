import jax.numpy as jnp
import numpy as np

from sparsity.train.losses import classification


def test_classification_by_hand():
    logits = jnp.array([[0.0, 0.0], [np.log(3.0), 0.0], [0.0, 5.0]])
    sums = classification(logits, {"label": jnp.array([0, 1, 1])})
    expected = np.log(2) + np.log(4) + np.log1p(np.exp(-5.0))
    np.testing.assert_allclose(sums.loss, expected, rtol=1e-6)
    assert (float(sums.correct), float(sums.count)) == (2.0, 3.0)  # a tie goes to the first class


def test_a_nan_logit_is_never_correct():
    sums = classification(jnp.array([[jnp.nan, 0.0]]), {"label": jnp.array([0])})
    assert float(sums.correct) == 0
    assert np.isnan(sums.loss)
