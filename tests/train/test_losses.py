import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from sparsity.models import MODELS
from sparsity.models.bert import Pretraining
from sparsity.train import losses

LOSSES = {name: jax.jit(loss) for name, loss in losses.LOSSES.items()}
classification, language, reconstruction = (LOSSES[n] for n in ("classification", "language", "reconstruction"))


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


def test_the_next_sentence_has_a_loss_of_its_own():
    tokens, sentences = jnp.log(jnp.array([[[0.5, 0.5]], [[0.1, 0.9]]])), jnp.log(jnp.array([[0.25, 0.75], [0.4, 0.6]]))
    batch = {"targets": jnp.array([[0], [1]]), "next_sentence": jnp.array([1, 0])}
    losses = language(Pretraining(tokens, sentences), batch)
    np.testing.assert_allclose(losses.loss, -np.log([0.5, 0.9]), rtol=1e-5)
    np.testing.assert_allclose(losses.sentence_loss, -np.log([0.75, 0.4]), rtol=1e-5)
    np.testing.assert_array_equal(losses.sentence_correct, [1, 0])
    assert language(tokens, batch).sentence_loss is None


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_is_of_single_examples(name):
    """An example's loss does not depend on the others: the whole batch gives what its parts give."""
    rng = np.random.default_rng(0)
    outputs = jnp.asarray(rng.normal(size={"classification": (5, 3), "language": (5, 4, 3)}.get(name, (5, 2, 2, 1))))
    batch = {
        "image": jnp.asarray(rng.normal(size=(5, 2, 2, 1)), jnp.float32),
        "label": jnp.asarray(rng.integers(0, 3, 5)),
        "targets": jnp.asarray(rng.integers(0, 3, (5, 4))),
    }
    whole = LOSSES[name](outputs, batch)
    assert whole.loss.shape == whole.count.shape == (5,)
    for i in range(5):
        one = LOSSES[name](outputs[i : i + 1], {key: x[i : i + 1] for key, x in batch.items()})
        np.testing.assert_allclose(one.loss[0], whole.loss[i], rtol=1e-6)
        assert one.correct is whole.correct is None or float(one.correct[0]) == float(whole.correct[i])


def test_language_is_numpys_cross_entropy():
    rng = np.random.default_rng(0)
    logits, targets = rng.normal(0, 3, (5, 7, 11)).astype(np.float32), rng.integers(0, 11, (5, 7))
    losses = language(jnp.asarray(logits), {"targets": jnp.asarray(targets)})
    nats = -np.take_along_axis(log_softmax(logits.astype(np.float64), -1), targets[..., None], -1)[..., 0]
    np.testing.assert_allclose(losses.loss, nats.sum(1), rtol=1e-5)
    np.testing.assert_array_equal(losses.correct, (logits.argmax(-1) == targets).sum(1))


def test_nan_in_an_image_or_token_is_nan_in_the_loss_of_its_own_example():
    images = jnp.ones((2, 2, 2, 1))
    broken = reconstruction(images.at[1, 0, 0, 0].set(jnp.nan), {"image": images})
    np.testing.assert_array_equal(np.isnan(broken.loss), [False, True])
    broken = language(jnp.zeros((2, 2, 3)).at[0, 1, 2].set(jnp.nan), {"targets": jnp.zeros((2, 2), jnp.int32)})
    np.testing.assert_array_equal(np.isnan(broken.loss), [True, False])
    np.testing.assert_array_equal(broken.correct, [1, 2])


def test_tokens_of_padding_do_not_count_not_even_their_nan():
    rng = np.random.default_rng(0)
    logits, targets = rng.normal(size=(2, 4, 3)).astype(np.float32), rng.integers(0, 3, (2, 4))
    padded = logits.copy()
    padded[0, 2:] = np.nan
    segments = np.array([[1, 2, 0, 0], [1, 1, 1, 1]])
    got = language(jnp.asarray(padded), {"targets": targets, "target_segments": segments})
    short = language(jnp.asarray(logits[:1, :2]), {"targets": targets[:1, :2]})
    whole = language(jnp.asarray(logits[1:]), {"targets": targets[1:]})
    for field in ("loss", "correct", "count", "squared_z"):
        expected = np.concatenate([getattr(short, field), getattr(whole, field)])
        np.testing.assert_allclose(getattr(got, field), expected, rtol=1e-6, err_msg=field)
    z = np.log(np.exp(logits[1].astype(np.float64)).sum(-1)) ** 2
    np.testing.assert_allclose(got.squared_z[1], z.sum(), rtol=1e-6)


def test_the_task_of_every_model_has_a_loss():
    assert {model.task for model in MODELS.values()} <= LOSSES.keys()
