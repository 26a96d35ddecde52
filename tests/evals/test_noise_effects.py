import dataclasses

import numpy as np
import pytest

from sparsity.config import ConfigError
from sparsity.evals.noise_effects import DRAWS, LEVELS, noise_covariance, noise_terms
from sparsity.layers.mlp import MLPConfig
from sparsity.models.autoencoder import AutoencoderConfig
from sparsity.ops.noise import Gaussian, Laplace
from sparsity.ops.sparsifiers import Relu, TopK
from sparsity.theory.noise_loss import cross_moment, noise_loss

PIXELS, UNITS = 16, 3  # of conftest's images
RELU, TRAINED_WITH = Relu(), Gaussian(sigma=0.3)


@pytest.fixture
def subject(make_subject):
    """A made-up autoencoder of three units, trained under noise of sigma .3."""

    def make(sparsifier=RELU, noise=TRAINED_WITH):
        rng = np.random.default_rng(0)
        params = {
            "hidden": {
                "wi": {"kernel": rng.normal(size=(PIXELS, UNITS)), "bias": rng.normal(size=UNITS)},
                "wo": {"kernel": rng.normal(size=(UNITS, PIXELS)), "bias": rng.normal(size=PIXELS)},
            }
        }
        images = rng.random((12, 4, 4, 1), np.float32)
        made = make_subject(labels=np.zeros(len(images)), images=images)
        return dataclasses.replace(
            made, model=AutoencoderConfig(MLPConfig(UNITS, sparsifier)), params=params, noise=noise
        )

    return make


def test_the_covariance_is_the_closed_forms_mean_over_pairs(subject):
    """Of ten queries and a hundred draws, against the exact moments of a rectified bivariate normal."""
    one = subject()
    measures = {m.name: m for m in noise_covariance(one).measures}
    w, b = one.params["hidden"]["wi"]["kernel"], one.params["hidden"]["wi"]["bias"]
    norm = np.linalg.norm(w, axis=0)
    x = one.clean.arrays["image"][:10].reshape(10, -1).astype(np.float64)
    z = x @ w + b
    cosine = (w.T @ w) / np.outer(norm, norm)
    j, k = np.triu_indices(UNITS, 1)
    for level in LEVELS:
        s = level * norm
        exact = np.mean([cross_moment(at[j], s[j], at[k], s[k], cosine[j, k]).mean() for at in z])
        # eta_j eta_k deviates by less than 4 s^2 here: five standard errors over the draws, which queries share.
        bound = 5 * 4 * np.max(s) ** 2 / np.sqrt(DRAWS)
        assert measures[f"covariance.{level:g}"].value == pytest.approx(exact, abs=bound)
        assert measures[f"covariance.{level:g}"].n == 10


def test_the_terms_are_the_theorys_in_units_of_the_training_loss(subject):
    one = subject()
    hidden = one.params["hidden"]
    x = one.clean.arrays["image"][:10].reshape(10, -1).astype(np.float64)
    weights = (hidden["wi"]["kernel"].T, hidden["wi"]["bias"], hidden["wo"]["kernel"].T, hidden["wo"]["bias"])
    exact = noise_loss(*weights, x, 0.3)
    found = {m.name: m.value for m in noise_terms(one).measures}
    for name in ("clean", "margin", "sparsity", "specialization"):
        assert found[f"terms.{name}"] == pytest.approx(getattr(exact, name) / PIXELS, rel=1e-12)


def test_what_they_are_not_defined_for_is_refused(subject, make_subject):
    for wrong in (subject(noise=Laplace(sigma=0.3)), subject(noise=None), subject(TopK(2))):
        with pytest.raises(ConfigError, match=r"^evals\.names: noise_terms are those of a ReLU autoencoder"):
            noise_terms(wrong)
    for wrong in (subject(TopK(2)), make_subject()):
        with pytest.raises(ConfigError, match=r"^evals\.names: there is no first layer of units"):
            noise_covariance(wrong)
