"""Noise: random functions x -> x + noise of an array, and schedules of its size (Bricken et al. 2023).

Two tables. `NOISES` makes an entry usable by name in front of any MLP and at the input of a model;
`NOISE_SCHEDULES` says how its size changes with the step. To add one, write a frozen dataclass with
`__call__` and put it in its table: the tests walk both.

A noise is a pure function of (x, key, step), fresh for every key, elementwise and independent between
entries, and never clamped: pixels leave [0, 1], as in the authors' code. JAX's random bits do not depend
on how an array is sharded, so neither do the values. Zero size returns x itself, exactly. Numbers are
drawn in float32 or wider, whatever the dtype of x, which the result has.

>>> noise = Gaussian(sigma=0.8, schedule=LinearToZero(start=100, length=50))
>>> x = jnp.ones((2, 3))
>>> bool(jnp.array_equal(noise(x, jax.random.key(0), step=150), x))
True
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from sparsity.config import one_of

# Beyond this rate a count is drawn from its normal limit: a Poisson's skewness is below 1/64 there, and
# exact sampling would compare float32 logarithms of size 4e4, then lose what is left of their digits.
COUNTED = 4096.0


def gaussian(x: jax.Array, key: jax.Array, sigma: ArrayLike) -> jax.Array:
    """The sum x + sigma n, n ~ N(0, 1) (Bricken et al. 2023, Eq. 2): `sigma` is the noise's standard deviation."""
    return _add(x, sigma * jax.random.normal(key, x.shape, _precise(x)))


def laplace(x: jax.Array, key: jax.Array, sigma: ArrayLike) -> jax.Array:
    """The sum x + sigma l, l ~ Laplace(0, 1) (Bricken et al. 2023, Fig. 21).

    `sigma` is the distribution's scale b, as in the authors' code: the standard deviation is sqrt(2) sigma.
    """
    return _add(x, sigma * jax.random.laplace(key, x.shape, _precise(x)))


def salt_and_pepper(x: jax.Array, key: jax.Array, probability: ArrayLike, low: float, high: float) -> jax.Array:
    """Each entry of `x`, with `probability`, is replaced by `low` or `high` with equal odds.

    Replaced entries have no gradient. The probability holds to 2^-23, the grain of a float32 uniform.
    """
    u = jax.random.uniform(key, x.shape, _precise(x))
    replaced = jnp.where(u < probability / 2, low, high).astype(x.dtype)
    return jnp.where(u < probability, replaced, x)


def poisson(x: jax.Array, key: jax.Array, sigma: ArrayLike) -> jax.Array:
    """Shot noise: x as a count of quanta of size sigma^2, sign(x) sigma^2 Poisson(|x| / sigma^2).

    Mean x and variance sigma^2 |x|: the rate is 1 / sigma^2 quanta per unit of x, so that `sigma` is the
    standard deviation at |x| = 1, and a zero stays one. (The authors' code has a "poisson" too, in no
    figure of the paper.) The gradient is that of x alone: the noise's dependence on x is not followed.
    """
    few_key, many_key = jax.random.split(key)
    size = jnp.abs(jax.lax.stop_gradient(x).astype(_precise(x)))
    rate = size / sigma**2
    few = rate < COUNTED  # neither NaN nor 0 / 0, which the sampler would not leave again
    count = jax.random.poisson(few_key, jnp.where(few, rate, 0.0), dtype=jnp.int32)
    many = sigma * jnp.sqrt(size) * jax.random.normal(many_key, x.shape, size.dtype)
    noise = jnp.sign(x) * jnp.where(few, sigma**2 * count - size, many)
    return _add(x, jax.lax.stop_gradient(noise))


def _precise(x: jax.Array):
    return jnp.promote_types(x.dtype, jnp.float32)


def _add(x: jax.Array, noise: jax.Array) -> jax.Array:
    return (x + noise).astype(x.dtype)


@dataclasses.dataclass(frozen=True)
class NoiseSchedule:
    """Base of all schedules: a factor in [0, 1] on the noise's size, a pure function of the step."""

    def __call__(self, step, xp=jnp):
        """The factor at `step`, updates done before this one: an integer or an array of them, traced or not."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Constant(NoiseSchedule):
    """1 at every step."""

    def __call__(self, step, xp=jnp):
        return xp.ones(np.shape(step), xp.float32)


def _check_step(field: str, value: int, least: int = 0) -> None:
    """Raises ValueError unless `value` is a number of steps, which are counted in 32 bits, from `least` on."""
    if value < least:
        raise ValueError(f"{field}: must be at least {least}, got {value}")
    if value >= 1 << 31:
        raise ValueError(f"{field}: must be below 2^31, got {value}")


@dataclasses.dataclass(frozen=True)
class LinearToZero(NoiseSchedule):
    """1 up to step `start`, then 1 - (step - start) / length, and 0 from start + length on.

    "Annealed" in Bricken et al. 2023, Figs. 8 and 31: their code has start = length = 800 epochs.
    """

    start: int
    length: int

    def __post_init__(self):
        _check_step("start", self.start)
        _check_step("length", self.length, 1)

    def __call__(self, step, xp=jnp):
        return xp.clip(1 - (step - self.start) / self.length, 0, 1)


@dataclasses.dataclass(frozen=True)
class Geometric(NoiseSchedule):
    """1 up to step `start`, then end^((step - start) / length): halved in equal times, until it is `end`.

    From start + length on it is 0, or stays at `end` if `kept`. Not in Bricken et al. 2023: an annealing that spends
    as long between .1 and .01 of the noise as between 1 and .1.
    """

    start: int
    length: int
    end: float
    kept: bool = False

    def __post_init__(self):
        _check_step("start", self.start)
        _check_step("length", self.length, 1)
        if not 0 < self.end < 1:
            raise ValueError(f"end: must be in (0, 1), got {self.end}")

    def __call__(self, step, xp=jnp):
        gone = xp.clip((step - self.start) / self.length, 0, 1)
        return xp.where(gone < 1, self.end**gone, self.end if self.kept else 0.0)


@dataclasses.dataclass(frozen=True)
class RemovedAt(NoiseSchedule):
    """1 before `step`, 0 from it on (Bricken et al. 2023, Table 1)."""

    step: int

    def __post_init__(self):
        _check_step("step", self.step)

    def __call__(self, step, xp=jnp):
        return xp.where(step < self.step, 1.0, 0.0)


NOISE_SCHEDULES: dict[str, type[NoiseSchedule]] = {
    "constant": Constant,
    "linear_to_zero": LinearToZero,
    "geometric": Geometric,
    "removed_at": RemovedAt,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoiseConfig:
    """Base of all noises: from x, a key and the step to x with noise.

    Attributes:
      schedule: the factor on the noise's size (on the probability of salt and pepper), by step.
    """

    schedule: NoiseSchedule = one_of(NOISE_SCHEDULES, Constant())

    def __call__(self, x: jax.Array, key: jax.Array, step: ArrayLike) -> jax.Array:
        """`x` with fresh noise, of the same shape and dtype; `step` may be traced."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class _Sized(NoiseConfig):
    sigma: float

    def __post_init__(self):
        if self.sigma < 0:
            raise ValueError(f"sigma: must be at least 0, got {self.sigma}")


@dataclasses.dataclass(frozen=True)
class Gaussian(_Sized):
    """x + sigma N(0, 1), see `gaussian`; sigma, the standard deviation, in the units of x."""

    def __call__(self, x, key, step):
        return gaussian(x, key, self.sigma * self.schedule(step))


@dataclasses.dataclass(frozen=True)
class Laplace(_Sized):
    """x + Laplace noise of scale sigma, in the units of x: standard deviation sqrt(2) sigma, see `laplace`."""

    def __call__(self, x, key, step):
        return laplace(x, key, self.sigma * self.schedule(step))


@dataclasses.dataclass(frozen=True)
class SaltAndPepper(NoiseConfig):
    """Each entry is set to `low` or `high` with `probability`, see `salt_and_pepper`.

    The paper (Fig. 24, "multiplicative") gives neither probabilities nor values; 0 and 1 end its pixels' range.
    """

    probability: float
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self):
        if not 0 <= self.probability <= 1:
            raise ValueError(f"probability: must be in [0, 1], got {self.probability}")

    def __call__(self, x, key, step):
        return salt_and_pepper(x, key, self.probability * self.schedule(step), self.low, self.high)


@dataclasses.dataclass(frozen=True)
class Poisson(_Sized):
    """Shot noise in quanta of sigma^2 (sigma^2 in the units of x): variance sigma^2 |x|, see `poisson`."""

    def __call__(self, x, key, step):
        return poisson(x, key, self.sigma * self.schedule(step))


NOISES: dict[str, type[NoiseConfig]] = {
    "gaussian": Gaussian,
    "laplace": Laplace,
    "salt_and_pepper": SaltAndPepper,
    "poisson": Poisson,
}
