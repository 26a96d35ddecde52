"""What noise does to the units of one hidden layer, injected into a trained network (Bricken et al. 2023, App. E)."""

from __future__ import annotations

import numpy as np

from sparsity import spmd
from sparsity.config import ConfigError
from sparsity.evals.result import Measure, Result, Subject, mean_and_se
from sparsity.theory.noise_loss import noise_loss

LEVELS = (0.2, 0.4, 1.2, 3.2, 6.0, 12.0)  # injected sigma / std(data): the paper's .05 to 3 on pixels of std .25
QUERIES, DRAWS = 10, 100
TERMS_OF = 10  # examples that the exact loss terms are taken over: their cost grows with the square of the units


def noise_covariance(subject: Subject) -> Result:
    """E[eta_j eta_k], mean over pairs of units j != k, queries and noise draws, at each injected level (Fig. 19).

    eta = h(x + eps) - h(x), eps ~ N(0, sigma^2): over all pairs, (sum eta)^2 - sum eta^2 over m (m - 1).
    """
    kernel, bias, phi = _first_layer(subject)
    queries = subject.clean.images[:QUERIES].astype(np.float64)
    x = queries.reshape(len(queries), -1)
    clean = phi(x @ kernel + bias)
    rng, std = np.random.default_rng(subject.seed), subject.source.std
    measures = []
    for level in LEVELS:
        eps = level * std * rng.normal(size=(DRAWS, *x.shape))
        eta = phi((x + eps) @ kernel + bias) - clean
        m = eta.shape[-1]
        pairs = (eta.sum(-1) ** 2 - (eta**2).sum(-1)) / (m * (m - 1))
        text = (
            f"mean over pairs of units, {DRAWS} draws and n queries of eta_j eta_k, eta = h(x + eps) - h(x), "
            f"eps of deviation {level:g} std(data)"
        )
        measures.append(Measure(f"covariance.{level:g}", *mean_and_se(pairs.mean(0)), len(x), text, ""))
    return Result(tuple(measures))


def noise_terms(subject: Subject) -> Result:
    """The three implicit loss terms of training's noise, exactly, beside the clean loss (Bricken et al. 2023, Eq. 17).

    Raises:
      ConfigError: not a ReLU autoencoder trained with Gaussian noise.
    """
    sigma = getattr(subject.noise, "sigma", None)
    is_relu = type(getattr(subject.model, "phi", None)).__name__ == "Relu"
    if subject.model.task != "reconstruction" or not is_relu or type(subject.noise).__name__ != "Gaussian":
        raise ConfigError("evals.names: noise_terms are those of a ReLU autoencoder under Gaussian noise")
    kernel, bias, _ = _first_layer(subject)
    out = {name: value.astype(np.float64) for name, value in spmd.fetch(subject.params["hidden"]["wo"]).items()}
    x = subject.clean.images[:TERMS_OF].reshape(TERMS_OF, -1).astype(np.float64)
    bias = np.broadcast_to(bias, kernel.shape[1])
    terms = noise_loss(kernel.T, bias, out["kernel"].T, out["bias"], x, sigma)
    names = {
        "clean": "squared error without noise",
        "margin": "what E[eta] adds",
        "sparsity": "what E[eta_j^2] adds",
        "specialization": "what E[eta_j eta_k], j != k, adds",
    }
    text = f"under noise of sigma {sigma:g}, mean over outputs and {len(x)} examples"
    values = {name: float(np.mean(getattr(terms, name))) / x.shape[1] for name in names}
    return Result(
        tuple(Measure(f"terms.{k}", values[k], None, len(x), f"{what} {text}", "") for k, what in names.items())
    )


def _first_layer(subject: Subject):
    """Weights [inputs, F], biases [F] or [] and phi of the units that read the image. Raises ConfigError."""
    if not hasattr(subject.model, "encoder") or not subject.model.phi.elementwise:
        raise ConfigError("evals.names: there is no first layer of units that act one by one, which noise could reach")
    kernel, bias = (x.astype(np.float64) for x in spmd.fetch(subject.model.encoder(subject.params)))
    return kernel, bias, lambda z: subject.model.phi(z, np)
