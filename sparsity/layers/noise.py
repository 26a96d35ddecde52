"""`Noise`: the one place in a network that adds noise to what it reads."""

from __future__ import annotations

import flax.linen as nn
import jax

from sparsity.layers.sparsify import Context
from sparsity.ops.noise import NoiseConfig

NOISE = "noise"  # the name of the random stream that noise is drawn from


class Noise(nn.Module):
    """x -> x with fresh noise where `ctx.noisy`, else x; also where there is no `noise`.

    The values are a function of (seed, step, microbatch, place in the network): the caller gives the stream `NOISE` a
    key of the first three. They do not depend on how x is sharded.

    >>> import jax.numpy as jnp
    >>> from sparsity.ops.noise import Gaussian
    >>> noise, x = Noise(Gaussian(sigma=0.5)), jnp.zeros((2, 3))
    >>> clean = noise.apply({}, x, Context())
    >>> noisy = noise.apply({}, x, Context(noisy=True), rngs={NOISE: jax.random.key(0)})
    >>> bool((clean == x).all()), bool((noisy == x).any())
    (True, False)
    """

    noise: NoiseConfig | None

    @nn.compact
    def __call__(self, x: jax.Array, ctx: Context) -> jax.Array:
        if self.noise is None or not ctx.noisy:
            return x
        return self.noise(x, self.make_rng(NOISE), ctx.step)
