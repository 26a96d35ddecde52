"""Networks of finite width: how far layer variances wander, and how often gradients explode.

Setting and symbols are those of `maps`; delta_l is the gradient of a scalar with respect to the
pre-activations z_l = u_l + b_l of layer l, u_{l+1} = W phi(z_l), and delta_L is isotropic. One
input is followed through one random network.

Forward, the units of layer l+1 are independent N(0, v_{l+1}) given layer l, with
v_{l+1} = sigma_b^2 + (sigma_w^2 / N) sum_i phi(z_i)^2: a Markov chain in one number, of mean V(v_l)
and variance S(v_l) / N, S = sigma_w^4 Var phi^2. Its step is taken as a gamma law of that mean and
variance above sigma_b^2: at width 300 failures are as frequent as under the exact law of the sum
within 1% of their frequency, and within 3% with a Gaussian.

Backward, |delta_l|^2 / |delta_{l+1}|^2 has, given v_l, three parts:

  noise      sigma_w^2 / N times a sum of N terms phi'(z_i)^2 e_i^2, e_i ~ N(0, 1): mean chi_1(v_l);
             its logarithm is taken as Gaussian, with the mean and variance of the logarithm of a
             gamma of k = N E[phi'^2]^2 / (3 E phi'^4 - E[phi'^2]^2).
  coupling   the same z_i make that sum and v_{l+1}: its logarithm moves by beta (v_{l+1} - V(v_l)),
             beta(v_l) the slope of their regression.
  reuse      backward goes through the weights that made u_{l+1}. Given the forward pass, h = phi(z_l),
             W^T delta = P r + h (u_{l+1} . delta) / |h|^2, r Gaussian and independent, P the
             projection off h. What is aligned with u therefore has a gain of its own: with
             g_l = |delta_l|^2, s = v - sigma_b^2 and a_l = (u_l . delta_l)^2 / s_l, in the mean,

                 g_l = chi_1 ((1 - o) g_{l+1} + o a_{l+1}),    a_l = (t - R) g_{l+1} + R a_{l+1},

             o = E[phi'^2 phi^2] / (N E phi^2 E phi'^2), R = s V'^2 / (sigma_w^2 E phi^2),
             t = sigma_w^2 E[u^2 phi'^2] / s, and a_L = g_L. Followed upwards from layer k by the row
             vector (1, 0), of which a share rho is aligned after some layers, the next one multiplies
             by (1 - rho) chi_1 + rho t and leaves the share
             ((1 - rho) chi_1 o + rho R) / ((1 - rho) chi_1 + rho t).
             The share is about o / (1 - V'^2) at rest: a map close to the identity remembers, on the way back,
             what the loss gains from a larger variance. Nothing of it is left for ReLU (t = chi_1).
             Without reuse rare failures are predicted two to three times too rare at width 300.

Own derivation, checked by simulation. float64 and deterministic: only `sample_growth` samples.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np
from scipy import fft
from scipy.optimize import brentq
from scipy.special import digamma, gammaln, ndtr, polygamma

from sparsity.theory.edge_of_chaos import clip, threshold, thresholded
from sparsity.theory.gaussian import nodes
from sparsity.theory.maps import MeanField

# A squared gradient that grows by more than this between two layers counts as exploded: with one learning rate
# for all layers, a step that is right for the one is 30 times too long for the other. Chosen with Price et al.'s
# Table 2 in sight (width 300, depth 100): their clipped rows that fail reach it in three networks of ten and more,
# those that train in one of six or fewer.
RATIO = 1e3
TOLERATED = 0.2  # share of failing networks: one of the paper's five seeds

_REACH = 6.0  # standard deviations of a step that the grid of variances must hold
_STEP = 0.8  # spacing of that grid, in standard deviations of a step
_BIN = 0.14  # width of a bin of log gradient growth
_RANGE = (1e-3, 1e2)  # variances followed, in units of q; the lower one is above sigma_b^2


@dataclasses.dataclass(frozen=True)
class _Chain:
    """The chain on a grid: `start` is the node of q, row i of `step` the law of v_{l+1} given v_l = `v[i]`.

    `mean` and `variance` are those of the noise's logarithm given v_l, row i of `coupling` what it moves by for each
    v_{l+1}; `o`, `carried` and `aligned` are the o, R / chi_1 and t / chi_1 of reuse.
    """

    v: np.ndarray
    start: int
    step: np.ndarray
    mean: np.ndarray
    variance: np.ndarray
    coupling: np.ndarray
    o: np.ndarray
    carried: np.ndarray
    aligned: np.ndarray

    def reuse(self, share: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(log growth beyond chi_1, the next share) from the aligned share [nodes, ...] on the way up."""
        o, carried, aligned = (x.reshape(-1, *[1] * (share.ndim - 1)) for x in (self.o, self.carried, self.aligned))
        growth = 1 - share + share * aligned
        after = np.clip(((1 - share) * o + share * carried) / growth, 0.0, 1.0)
        return np.log(growth), after


@dataclasses.dataclass(frozen=True)
class FiniteWidth:
    """Random networks of one width whose first layer has the variance q exactly.

    Attributes:
      field: activation, weights and biases.
      width: units N of every layer.
      q: variance v_1 of the first layer's pre-activations.

    Raises:
      ValueError: width below 1 or q not positive; in every method, depth below 1.

    >>> from sparsity.theory.edge_of_chaos import solve
    >>> wide, narrow = (FiniteWidth(stable_field(0.85, 0.7), width) for width in (1000, 100))
    >>> wide.failure(100) < 0.001, narrow.failure(100) > 0.01
    (True, True)
    """

    field: MeanField
    width: int
    q: float = 1.0

    def __post_init__(self):
        if self.width < 1 or not (self.q > 0 and math.isfinite(self.q)):
            raise ValueError(f"width must be at least 1 and q positive, got {self.width} and {self.q}")

    def failure(self, depth: int, ratio: float = RATIO) -> float:
        """P(max over layers k < l <= L of |delta_k|^2 / |delta_l|^2 > ratio): that gradients explode.

        With c_1 = 0, c_{l+1} = max(0, c_l + the logarithm of layer l's growth), that is
        P(max_l c_l > log ratio): one recursion for the joint law of (v_l, c_l), stopped where c passes; of the aligned
        share it carries the mean at each (v, c). Vanishing gradients are no failure here, see `log_growth`.

        Raises:
          ValueError: ratio not above 1.
        """
        if not ratio > 1:
            raise ValueError(f"ratio: must be above 1, got {ratio}")
        chain = self._chain(depth)
        bins = math.ceil(math.log(ratio) / _BIN)
        bin_ = math.log(ratio) / (bins - 0.5)  # the last bin's upper edge is log ratio
        kernel, size = _kernel(chain.mean, chain.variance, bins, bin_)
        steps = _coupled(chain.step, chain.coupling / bin_)
        # The mass of (v, c), and its product with the mean share at each (v, c).
        state, failed = np.zeros((2, len(chain.v), bins)), 0.0
        state[0, chain.start, 0] = 1.0
        for _ in range(depth - 1):
            mass = state[0]
            share = np.clip(np.divide(state[1], mass, out=np.zeros_like(mass), where=mass > 1e-15), 0.0, 1.0)
            gain, share = chain.reuse(share)
            state, over = _shifted(np.stack([mass, mass * share]), gain / bin_)
            moved = fft.irfft(fft.rfft(state, size) * kernel, size)[:, :, : 3 * bins]  # column j: j - bins bins
            moved = sum(step.T @ _rolled(moved, k) for k, step in steps)
            failed += over + moved[0, :, 2 * bins :].sum()
            moved[0, :, bins] += moved[0, :, :bins].sum(1)  # a new start, where nothing is shared yet
            state = moved[:, :, bins : 2 * bins]
        return float(np.clip(failed, 0.0, 1.0))

    def log_growth(self, depth: int) -> float:
        """E log(|delta_1|^2 / |delta_L|^2): negative where gradients typically vanish towards the input.

        Even with chi_1 = 1 the logarithm loses half the variance of G a layer.
        """
        chain = self._chain(depth)
        total, share = 0.0, np.zeros(len(chain.v))
        for law in self._laws(chain, depth)[:-1]:
            gain, after = chain.reuse(share)
            total += float(law @ (chain.mean + gain))
            up = chain.step.T @ (law * after)
            there = chain.step.T @ law
            share = np.divide(up, there, out=np.zeros_like(up), where=there > 1e-15)
        return total

    def variances(self, depth: int) -> tuple[np.ndarray, np.ndarray]:
        """The law of v_L: values and their probabilities."""
        chain = self._chain(depth)
        return chain.v, self._laws(chain, depth)[-1]

    def _laws(self, chain: _Chain, depth: int) -> list[np.ndarray]:
        laws = [np.eye(len(chain.v))[chain.start]]
        for _ in range(depth - 1):
            laws.append(chain.step.T @ laws[-1])
        return laws

    def _chain(self, depth: int) -> _Chain:
        if depth < 1:
            raise ValueError(f"depth: must be at least 1, got {depth}")
        return _chain(self, depth)


@functools.lru_cache(maxsize=4)
def _chain(net: FiniteWidth, depth: int) -> _Chain:
    field = net.field
    v, weight, start = _grid(net, depth)
    second, fourth, slope2, slope4, both, z2 = _moments(field, v)
    mean, variance = field.sigma_w2 * second, field.sigma_w2**2 * (fourth - second**2) / net.width
    chi = field.sigma_w2 * slope2

    # A gamma above sigma_b^2; on a grid finer than its deviation the sum over nodes is the integral.
    shape, x = (mean**2 / variance)[:, None], (v - field.sigma_b2)[None, :]
    scaled = shape * x / mean[:, None]
    step = np.exp(shape * np.log(scaled) - scaled - gammaln(shape)) / x * weight
    step /= step.sum(1, keepdims=True)

    count = net.width * slope2**2 / (3 * slope4 - slope2**2)
    log_mean, log_variance = np.log(chi) + digamma(count) - np.log(count), polygamma(1, count)

    beta = field.sigma_w2**2 * (both - slope2 * second) / net.width / (chi * variance)
    coupling = beta[:, None] * (v[None, :] - field.variance(v)[:, None])
    log_variance = np.maximum(log_variance - beta**2 * variance, 0.5 * log_variance)

    s = v - field.sigma_b2
    carried = s * field.variance_slope(v) ** 2 / mean
    aligned = field.sigma_w2 * (z2 * s / v + field.sigma_b2 * slope2) / v
    o = both / (net.width * second * slope2)
    return _Chain(v, start, step, log_mean, log_variance, coupling, np.minimum(o, 1.0), carried / chi, aligned / chi)


def _grid(net: FiniteWidth, depth: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Nodes, weights of a sum over nodes as an integral, and the node of q.

    Nodes are `_STEP` standard deviations of a step apart, over what is reached in `depth` steps of `_REACH` each.
    """
    field, q = net.field, net.q
    floor = field.sigma_b2 + _RANGE[0] * max(q - field.sigma_b2, _RANGE[0] * q)
    coarse = np.geomspace(floor, _RANGE[1] * q, 1500)
    second = field.activation.power(coarse, 2)
    spread = field.sigma_w2 * np.sqrt(np.maximum(field.activation.power(coarse, 4) - second**2, 0) / net.width)
    spread = np.maximum(spread, 1e-4 * coarse)
    mean = field.sigma_w2 * second + field.sigma_b2
    ends = []
    for sign in (-1, 1):
        envelope, at = mean + sign * _REACH * spread, q
        for _ in range(depth):
            at = sign * max(sign * at, sign * float(np.interp(at, coarse, envelope)))
        ends.append(float(np.clip(at, coarse[0], coarse[-1])))
    # y = integral of dv / deviation: uniform steps in y.
    y = np.concatenate([[0.0], np.cumsum(np.diff(coarse) / 2 * (1 / spread[1:] + 1 / spread[:-1]))])
    low, middle, high = (float(np.interp(at, coarse, y)) for at in (ends[0], q, ends[1]))
    below, above = (math.ceil(max(side, _STEP) / _STEP) for side in (middle - low, high - middle))
    at = middle + _STEP * np.arange(-below, above + 1)
    at = at[(at >= 0) & (at <= y[-1])]
    v = np.interp(at, y, coarse)
    start = int(np.argmin(np.abs(at - middle)))
    v[start] = q
    return v, np.interp(v, coarse, spread) * _STEP, start


def _moments(field: MeanField, v: np.ndarray) -> np.ndarray:
    """E of phi^2, phi^4, phi'^2, phi'^4, phi'^2 phi^2 and z^2 phi'^2 at each v [6, len(v)]."""
    phi, slope = field.activation.phi, field.activation.slope
    out = []
    for root in np.sqrt(v):
        x, w = nodes([b / root for b in field.activation.breaks], 60)
        z = root * x
        h2, d2 = phi(z) ** 2, slope(z) ** 2
        out.append(np.stack([h2, h2**2, d2, d2**2, d2 * h2, d2 * z * z]) @ w)
    return np.transpose(out)


def _thirds(by: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights of the bins before, at and after, that move a cell `by` bins without widening it."""
    return (by**2 - by) / 2, 1 - by**2, (by**2 + by) / 2


def _coupled(step: np.ndarray, by: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """`step` in parts that move by k bins each: (k, part), so that from node i to j it moves `by[i, j]` bins."""
    whole = np.rint(by)
    shares = _thirds(by - whole)
    parts = {}
    # Where a step has no mass its shift says nothing.
    for k in np.unique(whole[step > 1e-12]).astype(int):
        for side, share in zip((-1, 0, 1), shares, strict=True):
            parts[k + side] = parts.get(k + side, 0.0) + np.where(whole == k, step * share, 0.0)
    return list(parts.items())


def _rolled(state: np.ndarray, k: int) -> np.ndarray:
    """`state` moved by k bins along the last axis, zeros moved in and the first and last bins kept inside."""
    out = np.zeros_like(state)
    if k > 0:
        out[..., k:] = state[..., :-k]
        out[..., -1] += state[..., -k:].sum(-1)
    elif k < 0:
        out[..., :k] = state[..., -k:]
        out[..., 0] += state[..., :-k].sum(-1)
    else:
        out[...] = state
    return out


def _shifted(state: np.ndarray, by: np.ndarray) -> tuple[np.ndarray, float]:
    """`state` [2, nodes, bins] with each cell moved `by` bins [nodes, bins], and the mass beyond the last one.

    Three bins share a cell so that mean and variance are right; what falls below the first stays in it.
    """
    _, rows, bins = state.shape
    whole = np.rint(by)
    part = by - whole
    target = np.arange(bins) + whole.astype(int)
    row = np.arange(rows)[:, None] * (bins + 1)
    out = np.zeros((2, rows * (bins + 1)))
    for k, weight in zip((-1, 0, 1), _thirds(part), strict=True):
        index = (row + np.clip(target + k, 0, bins)).ravel()
        for i in range(2):
            out[i] += np.bincount(index, (state[i] * weight).ravel(), minlength=out.shape[1])
    out = out.reshape(2, rows, bins + 1)
    return out[:, :, :bins], float(out[0, :, bins].sum())


def _kernel(mean: np.ndarray, variance: np.ndarray, bins: int, bin_: float) -> tuple[np.ndarray, int]:
    """Fourier transforms, row by row, of Gaussian laws on bins -`bins` to `bins` - 1, tails included."""
    # Rounding to bins adds bin^2 / 12 to the variance (Sheppard): taken off beforehand.
    deviation = np.sqrt(np.maximum(variance - bin_**2 / 12, 0.02 * bin_**2))
    edges = bin_ * (np.arange(-bins + 1, bins) - 0.5)
    below = ndtr((edges - mean[:, None]) / deviation[:, None])
    ends = np.zeros((len(mean), 1)), np.ones((len(mean), 1))
    size = fft.next_fast_len(3 * bins, real=True)
    return fft.rfft(np.diff(np.concatenate([ends[0], below, ends[1]], axis=1), axis=1), size), size


def sample_growth(field: MeanField, width: int, depth: int, networks: int, rng, q: float = 1.0) -> np.ndarray:
    """Log of max over layers k < l of |delta_k|^2 / |delta_l|^2 in random networks, 0 where none grows [networks].

    The exact law of networks of `width` without their weights: given the forward pass, W of layer l+1 is
    u_{l+1} h^T / |h|^2 plus an independent Gaussian matrix off h, and backward meets each W once. A network then
    costs N L normal numbers instead of N^2 L.
    """
    out, batch = [], max(1, 300_000 // (width * depth))  # small arrays stay in the cache
    for begin in range(0, networks, batch):
        out.append(_sample(field, width, depth, min(batch, networks - begin), rng, q))
    return np.concatenate(out)


def _sample(field: MeanField, width: int, depth: int, networks: int, rng, q: float) -> np.ndarray:
    phi, slope = field.activation.phi, field.activation.slope
    square = lambda x: np.einsum("ij,ij->i", x, x)[:, None]
    normal = lambda: rng.normal(size=(networks, width))
    z, layers = math.sqrt(q) * normal(), []
    for _ in range(depth - 1):
        h = phi(z)
        u = np.sqrt(field.sigma_w2 / width * square(h)) * normal()
        layers.append((slope(z), h, u))
        z = u + math.sqrt(field.sigma_b2) * normal()
    delta = normal()
    size = np.log(square(delta))
    least, worst = size, np.zeros_like(size)
    for d, h, u in reversed(layers):
        r = np.sqrt(field.sigma_w2 / width * square(delta)) * normal()
        along = np.einsum("ij,ij->i", u, delta) - np.einsum("ij,ij->i", h, r)
        delta = d * (r + h * (along[:, None] / np.maximum(square(h), 1e-300)))
        size = np.log(np.maximum(square(delta), 1e-300))
        least, worst = np.minimum(least, size), np.maximum(worst, size - least)
    return worst[:, 0]


@dataclasses.dataclass(frozen=True)
class StableClip:
    """The largest clip that serves: its slope V'(q*), the clip m, both None if none serves, and P(failure) there."""

    slope: float | None
    m: float | None
    failure: float | None


def stable_field(sparsity: float, slope: float, q: float = 1.0, *, two_sided: bool = False) -> MeanField:
    """The clipped activation of `solve(sparsity, slope, q)` with its weights, without a search for fixed points."""
    tau = threshold(sparsity, q, two_sided=two_sided)
    m = clip(lambda m: thresholded(tau, m, two_sided=two_sided), slope, q)
    activation = thresholded(tau, m, two_sided=two_sided)
    sigma_w2 = 1 / float(activation.slope_power(q, 2))
    return MeanField(activation, sigma_w2, max(q - sigma_w2 * float(activation.power(q, 2)), 0.0))


def largest_clip(
    sparsity: float,
    width: int,
    depth: int,
    *,
    two_sided: bool = False,
    tolerated: float = TOLERATED,
    ratio: float = RATIO,
) -> StableClip:
    """The largest V'(q*), and its m at q* = 1, with `failure(depth, ratio)` <= `tolerated`; V' to 1e-3.

    Failure is not monotone in V': the smallest clips keep so few units in their linear part that backward noise alone
    explodes. So V' is lowered from 0.995 until a slope serves, and the last step is halved (Brent).

    Raises:
      ValueError: tolerated outside (0, 1), or a sparsity, width, depth or ratio out of range.
    """
    if not 0 < tolerated < 1:
        raise ValueError(f"tolerated: must be in (0, 1), got {tolerated}")

    @functools.cache
    def excess(slope):
        field = stable_field(sparsity, slope, two_sided=two_sided)
        # Logarithms, so that Brent's straight lines fit; none of an impossible failure.
        return math.log(max(FiniteWidth(field, width).failure(depth, ratio), 1e-9) / tolerated)

    above = None
    for slope in (0.995, 0.98, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1):
        if excess(slope) <= 0:
            found = slope if above is None else float(brentq(excess, slope, above, xtol=1e-3))
            found = found if excess(found) <= 0 else max(slope, found - 1e-3)
            m = stable_field(sparsity, found, two_sided=two_sided).activation.phi(np.array([1e9]))[0]
            return StableClip(found, float(m), tolerated * math.exp(excess(found)))
        above = slope
    return StableClip(None, None, None)
