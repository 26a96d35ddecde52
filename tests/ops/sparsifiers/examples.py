"""An example of every entry of the table, and what mathematics says of it."""

import dataclasses
import math
from collections.abc import Callable

import numpy as np
from scipy.special import erf, expit, ndtr

from sparsity.ops.sparsifiers import SPARSIFIERS, Sparsifier

# All settings are multiples of 1/8, exact in bfloat16, and so is z - tau for z below 2.
TAU, M, W = 0.375, 1.25, 0.125


def top_k(act, k):
    """Row by row: act, then all but the k largest set to zero; ties to the lower index."""

    def reference(z):
        h = act(z)
        out = np.zeros_like(h)
        for row in np.ndindex(h.shape[:-1]):
            keep = np.argsort(-h[row], kind="stable")[:k]
            out[(*row, keep)] = h[(*row, keep)]
        return out

    return reference


def relu(z):
    return np.maximum(z, 0)


def smooth(z):
    """The mean of CReLU over [z - W, z + W]: the difference of its antiderivative there."""
    z = np.minimum(z, TAU + M + W)  # it is m from there on, and large squares would cancel
    integral = lambda z: (relu(z - TAU) ** 2 - relu(z - TAU - M) ** 2) / 2
    return (integral(z + W) - integral(z - W)) / (2 * W)


@dataclasses.dataclass(frozen=True)
class Example:
    """An entry's instance and what mathematics says of it.

    sparsifier: the instance; reference: its formula in numpy float64; kinks: where it is not
    differentiable, and the derivative it must have there; density: P(phi(z) != 0), z ~ N(0, q).
    """

    sparsifier: Sparsifier
    reference: Callable
    kinks: dict[float, float] = dataclasses.field(default_factory=dict)
    density: Callable | None = None


def example(name, reference, kinks=(), density=None, **settings):
    return Example(SPARSIFIERS[name](**settings), reference, dict.fromkeys(kinks, 0.0), density)


EXAMPLES = {
    "relu": example("relu", relu, (0.0,), lambda q: 0.5),
    "shifted_relu": example("shifted_relu", lambda z: relu(z - TAU), (TAU,), lambda q: ndtr(-TAU / q**0.5), tau=TAU),
    "soft_threshold": example(
        "soft_threshold",
        lambda z: np.sign(z) * relu(np.abs(z) - TAU),
        (-TAU, TAU),
        lambda q: 2 * ndtr(-TAU / q**0.5),
        tau=TAU,
    ),
    "clipped_relu": example(
        "clipped_relu",
        lambda z: np.minimum(relu(z - TAU), M),
        (TAU, TAU + M),
        lambda q: ndtr(-TAU / q**0.5),
        tau=TAU,
        m=M,
    ),
    "clipped_soft_threshold": example(
        "clipped_soft_threshold",
        lambda z: np.sign(z) * np.minimum(relu(np.abs(z) - TAU), M),
        (-TAU - M, -TAU, TAU, TAU + M),
        lambda q: 2 * ndtr(-TAU / q**0.5),
        tau=TAU,
        m=M,
    ),
    "smooth_clipped_relu": example(
        "smooth_clipped_relu", smooth, (), lambda q: ndtr(-(TAU - W) / q**0.5), width=W, tau=TAU, m=M
    ),
    "smooth_clipped_soft_threshold": example(
        "smooth_clipped_soft_threshold",
        lambda z: np.sign(z) * smooth(np.abs(z)),
        (),
        lambda q: 2 * ndtr(-(TAU - W) / q**0.5),
        width=W,
        tau=TAU,
        m=M,
    ),
    "jump_relu": example(
        "jump_relu", lambda z: np.where(z > TAU, z, 0), (TAU,), lambda q: ndtr(-TAU / q**0.5), theta=TAU
    ),
    "relu_squared": example("relu_squared", lambda z: relu(z) ** 2, (0.0,), lambda q: 0.5),
    "top_k": example("top_k", top_k(relu, 5), k=5),
    "gelu": example("gelu", lambda z: z * (1 + erf(z / math.sqrt(2))) / 2),
    "gelu_tanh": example("gelu_tanh", lambda z: z * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3))) / 2),
    "silu": example("silu", lambda z: z * expit(z)),
    "elu": example("elu", lambda z: np.where(z > 0, z, np.expm1(np.minimum(z, 0)))),
    "sigmoid": example("sigmoid", expit),
    "tanh": example("tanh", np.tanh),
    "sat": example("sat", lambda z: np.sign(z) * np.minimum(np.abs(z), 0.5), (-0.5, 0.5), lambda q: 1.0),
    "reflected_relu": example("reflected_relu", lambda z: relu(-z), (0.0,), lambda q: 0.5),
}

Z = np.random.default_rng(0).normal(0, 1.5, (16, 24))
