"""The loss that Gaussian input noise adds to a ReLU network of one hidden layer (Bricken et al. 2023).

The network is y = W_d relu(W_e (x + eps) + b_e) + b_d with eps ~ N(0, sigma^2 I). Unit j has the
pre-activation z_j without noise and z_j + s_j u_j with it: s_j = sigma ||w_e,j|| is a standard
deviation, u_j ~ N(0, 1), and E[u_j u_k] = rho_jk is the cosine of the rows of W_e. What the noise
does to its activation is eta_j = relu(z_j + s_j u_j) - relu(z_j).

Everything here rests on one split. With t = |z| / s and e = +1 for a unit that is off (z <= 0), -1
for one that is on,

    eta = [z > 0] s u + s (e u - t)_+ :

a unit that is on passes the noise, and either kind adds what crosses its threshold. So all moments
are those of (x - t)_+, x ~ N(0, 1): closed forms in the normal density pdf, its integral Phi and,
for pairs, Owen's T. App. E and F of the paper print several of them wrongly; each function says
which. No jax here: numpy and scipy, float64.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy.special import ndtr, owens_t

# Beyond 40 deviations pdf and Phi are 0 in float64.
_FAR = 40.0


def mean_shift(z, s):
    """E[eta] = s pdf(z/s) - |z| Phi(-|z|/s) for either sign of z; at least 0; elementwise.

    Bricken et al. 2023, Eq. 21, which is right. The sentence before it adds the integral to z; it
    belongs to relu(z). Eq. 4 gives N() the standard deviation, Eq. 20 the variance.

    Args:
      z: pre-activations without noise.
      s: their standard deviations under noise, in units of z; 0 is allowed: no noise.

    Raises:
      ValueError: s is negative.

    >>> round(float(mean_shift(-0.7, 2.0)), 4)
    0.4963
    """
    _, s, t = _standardise(z, s)
    return s * _shift(t)


def second_moment(z, s):
    """E[eta^2]; on and off units differ by s^2 (1 - 2 Phi(-|z|/s)) >= 0; elementwise.

    Off (z <= 0):  (z^2 + s^2) Phi(-|z|/s) - |z| s pdf(z/s), towards 0 far from the threshold.
    On (z > 0):    z^2 Phi(-z/s) + s^2 (Phi(z/s) - (z/s) pdf(z/s)), towards s^2.

    Bricken et al. 2023, Eqs. 22 to 25, corrected. Off, they print the integral of eps^2 from |z|
    where it must be (eps - |z|)^2: at z = -0.7, s = 0.5 that is 0.0726, ten times too much. On,
    Eq. 22 is right, and Eq. 23 has Phi(-z/s^2) for Phi(-z/s): 0.179 for 0.217 at z = 0.7, s = 0.5.
    Their conclusion, that a unit costs more on than off, is stronger for it.

    Args:
      z: pre-activations without noise.
      s: their standard deviations under noise, in units of z; 0 is allowed.

    Raises:
      ValueError: s is negative.

    >>> [round(float(second_moment(z, 0.5)), 5) for z in (-0.7, 0.7)]
    [0.00736, 0.21698]
    """
    z, s, t = _standardise(z, s)
    return s**2 * (np.where(z > 0, 1 - 2 * ndtr(-t), 0.0) + _square(t))


def flip_probability(z, s):
    """Phi(-|z|/s): how often noise turns an off unit on, or an on unit off; elementwise.

    Bricken et al. 2023, App. E, print CDF(-|z| / s^2), which has the wrong units: 0.0026 at z = 0.7,
    s = 0.5. Without noise (s = 0) nothing flips.

    Raises:
      ValueError: s is negative.

    >>> round(float(flip_probability(0.7, 0.5)), 4)
    0.0808
    """
    return ndtr(-_standardise(z, s)[2])


def on_probability(z, s):
    """Phi(z/s), how often a unit is on under noise, in [0, 1]; elementwise. Without noise: [z > 0].

    Raises:
      ValueError: s is negative.

    >>> round(float(on_probability(-0.7, 0.5)), 4)
    0.0808
    """
    z, _, t = _standardise(z, s)
    return ndtr(np.where(z > 0, t, -t))


def cross_moment(z_j, s_j, z_k, s_k, rho):
    """E[eta_j eta_k] of two units whose noises have correlation `rho`; elementwise, with broadcasting.

    With r = e_j e_k rho, f = Phi(-t) the flip and p = Phi(z/s) the on probabilities:

        E[eta_j eta_k] = s_j s_k (rho p_j p_k - r f_j f_k + M(t_j, t_k, r)),
        M(h, k, r) = E[(x - h)_+ (y - k)_+]
                   = (r + h k) L - k pdf(h) Phi(-a) - h pdf(k) Phi(-b) + q pdf(h) pdf(a),

    x and y standard normal of correlation r, L = P(x > h, y > k), q = sqrt(1 - r^2),
    a = (k - r h) / q, b = (h - r k) / q. Own derivation; Bricken et al. 2023, App. E, have no formula.

    As dM/dr = L and dL/dr is a density,

        E[eta_j eta_k] = E[eta_j] E[eta_k] + rho s_j s_k p_j p_k + rest,

    where rest >= 0 is of order rho^2. Two on units with opposed weights have a negative moment: to
    minimise it is not to decorrelate them, as the paper takes it.

    The error is some 1e-15 s_j s_k, and for t up to 8 below 1e-8 of sqrt(E[eta_j^2] E[eta_k^2]).

    Args:
      z_j, z_k: pre-activations without noise.
      s_j, s_k: their standard deviations under noise, in units of z; 0 is allowed.
      rho: cosine between the encoder weights of the two units, in [-1, 1].

    Raises:
      ValueError: s_j or s_k is negative, or rho is outside [-1, 1].

    >>> cross_moment(1.0, 1.0, 1.0, 1.0, np.array([-0.9, 0.0, 0.5, 0.9])).round(3).tolist()
    [-0.614, 0.007, 0.369, 0.677]
    """
    z_j, s_j, t_j = _standardise(z_j, s_j, "s_j")
    z_k, s_k, t_k = _standardise(z_k, s_k, "s_k")
    rho = np.asarray(rho, np.float64)
    if not np.all(np.abs(rho) <= 1):
        raise ValueError(f"rho: a correlation must be in [-1, 1], got one of size {np.abs(rho).max()}")
    sign = np.where((z_j > 0) == (z_k > 0), 1.0, -1.0)
    linear = on_probability(z_j, s_j) * on_probability(z_k, s_k) - sign * ndtr(-t_j) * ndtr(-t_k)
    return s_j * s_k * (rho * linear + _product(t_j, t_k, sign * rho))


@dataclasses.dataclass(frozen=True)
class NoiseLoss:
    """The expected loss under noise, in the terms of Bricken et al. 2023, Eq. 17; in units of x^2.

    Each is summed over outputs and averaged over examples; r is the noise-free residual x - y.

    Attributes:
      clean: sum_i r_i^2, the loss without noise.
      margin: -2 sum_ij r_i W_d,ij E[eta_j]; either sign.
      sparsity: sum_ij W_d,ij^2 E[eta_j^2]; at least 0.
      specialization: sum_i sum_{j != k} W_d,ij W_d,ik E[eta_j eta_k]; either sign, but with
        `sparsity` it is E||y~ - y||^2, at least 0.
    """

    clean: float
    margin: float
    sparsity: float
    specialization: float

    @property
    def total(self) -> float:
        """E||x - y~||^2, the expected loss under noise."""
        return self.clean + self.margin + self.sparsity + self.specialization


def noise_loss(w_e, b_e, w_d, b_d, x, sigma: float) -> NoiseLoss:
    """The clean loss and the three terms that noise adds, exactly (Bricken et al. 2023, Eqs. 3, 5, 17).

    Eq. 17 lacks the square of W_d in the second term, which Eqs. 5 and 16 have: with one hidden unit,
    W_d = 2 and no residual, the noise costs 4 E[eta^2], not 2 E[eta^2].

    The specialization term takes every pair of units for every example: 30 examples of 400 units are
    some 3 s on one core. Time grows as examples * hidden^2, memory as hidden^2.

    Args:
      w_e: encoder weights [hidden, inputs].
      b_e: encoder biases [hidden].
      w_d: decoder weights [inputs, hidden].
      b_d: decoder biases [inputs].
      x: inputs, which are the targets too [examples, inputs].
      sigma: standard deviation of the noise, in units of x.

    Raises:
      ValueError: an empty array, shapes that do not fit, or sigma negative or infinite.

    >>> noise_loss([[1.0]], [0.0], [[2.0]], [0.0], [[0.0]], sigma=0.5)
    NoiseLoss(clean=0.0, margin=0.0, sparsity=0.5, specialization=0.0)
    """
    w_e, b_e, w_d, b_d, x = _fitting(
        w_e=(w_e, ("hidden", "inputs")),
        b_e=(b_e, ("hidden",)),
        w_d=(w_d, ("inputs", "hidden")),
        b_d=(b_d, ("inputs",)),
        x=(x, ("examples", "inputs")),
    )
    _check_sigma(sigma)
    norm = np.linalg.norm(w_e, axis=1)
    direction = w_e / np.where(norm > 0, norm, 1.0)[:, None]
    cosine = np.clip(direction @ direction.T, -1.0, 1.0)
    s, z = sigma * norm, x @ w_e.T + b_e
    residual = x - np.maximum(z, 0.0) @ w_d.T - b_d
    overlap = w_d.T @ w_d
    margin = -2 * (residual * (mean_shift(z, s) @ w_d.T)).sum(1)
    sparsity = second_moment(z, s) @ np.diag(overlap)
    j, k = np.triu_indices(len(s), 1)
    rho, weight = cosine[j, k], 2 * overlap[j, k]
    specialization = [weight @ cross_moment(at[j], s[j], at[k], s[k], rho) for at in z]
    return NoiseLoss(*(float(np.mean(term)) for term in ((residual**2).sum(1), margin, sparsity, specialization)))


def jacobian_penalty(w_e, w_d, slope, sigma: float):
    """sigma^2 ||J||_F^2 of each example, J = W_d diag(phi') W_e: what small noise adds to the loss.

    Computed as sigma^2 phi'^T ((W_e W_e^T) o (W_d^T W_d)) phi', o the elementwise product, for any
    phi. Bricken et al. 2023, Eq. 26, in whose text x~ = x + J eps should be y~ = y + J eps.

    Eq. 27 squares before it sums over hidden units, which leaves only the diagonal of the matrix:
    of two units with W_e = W_d = 1, J = 2 and ||J||_F^2 = 4, it makes 2. The diagonal is what
    `NoiseLoss.sparsity` becomes for small noise, the rest is what `specialization` becomes.

    Args:
      w_e: encoder weights [hidden, inputs].
      w_d: decoder weights [outputs, hidden].
      slope: phi' at the noise-free pre-activations [examples, hidden].
      sigma: standard deviation of the noise, in units of the input.

    Returns:
      [examples], in units of the output squared.

    Raises:
      ValueError: an empty array, shapes that do not fit, or sigma negative or infinite.

    >>> jacobian_penalty([[1.0], [1.0]], [[1.0, 1.0]], [[1.0, 1.0], [1.0, 0.0]], sigma=0.1).round(6).tolist()
    [0.04, 0.01]
    """
    w_e, w_d, slope = _fitting(
        w_e=(w_e, ("hidden", "inputs")), w_d=(w_d, ("outputs", "hidden")), slope=(slope, ("examples", "hidden"))
    )
    _check_sigma(sigma)
    return sigma**2 * ((slope @ ((w_e @ w_e.T) * (w_d.T @ w_d))) * slope).sum(1)


def _standardise(z, s, name: str = "s"):
    """z, s and t = |z| / s in [0, 40], as arrays; without noise (s = 0) t is 40."""
    z, s = np.asarray(z, np.float64), np.asarray(s, np.float64)
    if not np.all(s >= 0):
        raise ValueError(f"{name}: a standard deviation must be at least 0, got {s.min()}")
    return z, s, np.where(s > 0, np.minimum(np.abs(z), _FAR * s) / np.where(s > 0, s, 1.0), _FAR)


def _pdf(x):
    return np.exp(-0.5 * x * x) / np.sqrt(2 * np.pi)


def _shift(t):
    """E[(x - t)_+], x ~ N(0, 1)."""
    return _pdf(t) - t * ndtr(-t)


def _square(t):
    """E[(x - t)_+^2], x ~ N(0, 1)."""
    return (1 + t * t) * ndtr(-t) - t * _pdf(t)


def _product(h, k, r):
    """M(h, k, r) of `cross_moment`, for h, k in [0, 40]; never below 0."""
    # The floors keep a, b, a / h and b / k at their limits for r = +-1 and h = k = 0.
    h, k = np.maximum(h, 1e-300), np.maximum(k, 1e-300)
    q = np.maximum(np.sqrt((1 - r) * (1 + r)), 1e-20)
    # k - r h and h - r k, written so that nothing cancels as r -> 1.
    a = np.where(r > 0, (k - h) + (1 - r) * h, k - r * h) / q
    b = np.where(r > 0, (h - k) + (1 - r) * k, h - r * k) / q
    both = _wedge(h, a) + _wedge(k, b)
    found = (r + h * k) * both - k * _pdf(h) * ndtr(-a) - h * _pdf(k) * ndtr(-b) + q * _pdf(h) * _pdf(a)
    return np.maximum(found, 0.0)


def _wedge(h, a):
    """P(x > h, y > x a / h) of independent standard normals x and y, h > 0."""
    above, beyond = ndtr(-h), ndtr(-np.abs(a))
    far = np.maximum(h, np.abs(a))
    owen = owens_t(far, np.minimum(h, np.abs(a)) / far)
    # T is subtracted from the smaller of the two tails, or far from 0 its rounding would be all that is left.
    steep = np.where(np.abs(a) > h, beyond * (above - 0.5) + owen, above / 2 - owen)
    return np.where(a < 0, above - steep, steep)


def _fitting(**named) -> list[np.ndarray]:
    """The arrays in float64. Each comes with the names of its axes; a name has one length, at least 1."""
    lengths, arrays = {}, []
    for name, (array, axes) in named.items():
        array = np.asarray(array, np.float64)
        known = ", ".join(f"{axis} = {lengths[axis]}" for axis in axes if axis in lengths)
        here = dict(zip(axes, array.shape, strict=False))
        clash = any(lengths.get(axis, n) != n for axis, n in here.items())
        if array.ndim != len(axes) or 0 in array.shape or clash:
            shape = f"[{', '.join(axes)}]" + (f" with {known}" if known else "")
            raise ValueError(f"{name}: the shape must be {shape}, got {list(array.shape)}")
        lengths |= here
        arrays.append(array)
    return arrays


def _check_sigma(sigma: float) -> None:
    if not 0 <= sigma < np.inf:
        raise ValueError(f"sigma: a standard deviation must be at least 0 and finite, got {sigma}")
