"""The gradient that a positive activation gets at initialisation (Li et al. 2022, Theorem 3.1).

The last layer is f = sum_i p_i v_i, p_i >= 0 the activations and v_i in R^K independent of each other, of p and of the
labels, with mean 0. The paper proves that E[dl/dp_i] > 0 where p_i > 0: descent makes what is active less so. Here are
the values. Those of cross-entropy hold for v_i ~ N(0, s^2 I), to which the paper's bound says nothing but the sign.
"""

from __future__ import annotations

import numpy as np

from sparsity.theory.gaussian import REACH

_STEP = 0.02  # of both quadratures: the trapezoidal rule is exact to rounding long before


def mse_gradient(p: np.ndarray, norm2: float) -> np.ndarray:
    """E[dl/dp_i] = p_i E||v_i||^2 of l = ||f - y||^2 / 2, y independent of V; `norm2` is E||v_i||^2.

    >>> mse_gradient(np.array([0.0, 2.0]), 0.5)
    array([0., 1.])
    """
    return np.asarray(p, np.float64) * norm2


def cross_entropy_gradient(p: np.ndarray, classes: int, variance: float) -> np.ndarray:
    """E[dl/dp_i] = p_i s^2 (1 - E sum_k pi_k^2), l = -log pi_y, pi = softmax(f), f ~ N(0, s^2 ||p||^2 I).

    Given f, v_i is p_i f / ||p||^2 on average, and E<pi - e_y, f> = s^2 ||p||^2 E tr(dpi/df) by Stein's lemma.

    Args:
      p: activations [F] of one example.
      classes: K.
      variance: s^2 of every entry of V.
    """
    p = np.asarray(p, np.float64)
    return p * variance * (1 - collision(variance * float(p @ p), classes))


def leading_cross_entropy_gradient(p: np.ndarray, classes: int, norm2: float) -> np.ndarray:
    """The same for small V, to leading order: p_i E||v_i||^2 (1 - 1/K) / K."""
    return np.asarray(p, np.float64) * norm2 * (1 - 1 / classes) / classes


def collision(q: float, classes: int) -> float:
    """E sum_k pi_k^2 of pi = softmax(f), f ~ N(0, q I) in K dimensions: the chance that two draws from pi agree.

    pi_k^2 = int_0^inf t e^{2 f_k} prod_j exp(-t e^{f_j}) dt, so that with t = e^u and y ~ N(0, q)
    the value is K int E[g(u + y)] E[exp(-e^{u + y})]^{K - 1} du, g(s) = e^{2 s - e^s}.

    Raises:
      ValueError: a negative variance, or no class.

    >>> round(collision(0.0, 10), 12), round(collision(1e4, 10), 2)
    (0.1, 0.98)
    """
    if not q >= 0 or classes < 1:
        raise ValueError(f"q, classes: must be at least 0 and 1, got {q} and {classes}")
    if q == 0:
        return 1 / classes
    reach = REACH * q**0.5
    step = min(_STEP, 10 * _STEP / q**0.5)  # g is as wide as 1 in y
    x = np.arange(-REACH, REACH + step, step)
    density = np.exp(-(x**2) / 2)
    density /= density.sum()
    # Below, e^{2 (u + y)} is all that is left; above, only y far below its mean counts.
    u = np.arange(-(25 + 0.5 * np.log(classes) + reach), reach + 5, _STEP * max(1.0, q**0.5))
    total = 0.0
    for part in np.array_split(u, max(len(u) // 256, 1)):  # a few MB at a time
        s = part[:, None] + q**0.5 * x
        e = np.exp(np.minimum(s, 700))
        inside = np.exp(np.minimum(2 * s - e, 1)) @ density
        rest = np.exp(-e) @ density
        with np.errstate(divide="ignore"):
            total += float((inside * np.exp((classes - 1) * np.log(rest))).sum())
    return classes * total * float(u[1] - u[0])
