"""What a token costs: arms that compute MLPs, or a whole greedy step of a T5, in a mode of inference, and their bytes.

Weights are random: times do not depend on them, but what a low rank finds does.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np

from sparsity import recipes
from sparsity.bench.protocol import STREAM_BYTES
from sparsity.decode.generate import make_generate
from sparsity.decode.weights import prepared, unstacked
from sparsity.layers.inference import Inference
from sparsity.layers.mlp import MLPConfig, SparseMLP
from sparsity.layers.sparsify import Context
from sparsity.models.t5 import DECODER, ENCODER, T5Config
from sparsity.ops.sparse_matmul import TOKENS
from sparsity.ops.sparsifiers import Sparsifier
from sparsity.run.config import run_config

Run = Callable[[], Any]
FLOAT = 4  # bytes of a weight in float32
INPUTS = 512  # tokens that are read
WORKING_SET = STREAM_BYTES + STREAM_BYTES // 2  # that an arm goes through, several times the last-level cache
MEMORY = 0.6  # of the machine's, that a case may take


@dataclasses.dataclass(frozen=True)
class Way:
    """A sparsifier, as the network is trained with it, and the mode in which its MLPs are computed."""

    sparsifier: Sparsifier
    mode: Inference

    def of(self, d_ff: int) -> MLPConfig:
        """The MLP of T5 v1.0: no gate, no biases."""
        return MLPConfig(d_ff, self.sparsifier, use_bias=False, init="t5")


class MLPs:
    """As many random MLPs of one shape as no cache holds, one after the other, with an input that is new in every call.

    No cache holds them read whole; rows alone might stay in one, were it not for the arms in between that are read
    whole. All of it is float32.

    Args:
      smoke: two of them, whatever their size.
    """

    def __init__(self, d_model: int, d_ff: int, smoke: bool = False):
        self.d_model, self.d_ff = d_model, d_ff
        self.layers = 2 if smoke else -(-WORKING_SET // (2 * FLOAT * d_model * d_ff))
        rng = np.random.default_rng(0)
        normal = lambda *shape: rng.standard_normal(shape, np.float32) / np.float32(shape[0] ** 0.5)
        self.params = [
            {"wi": {"kernel": normal(d_model, d_ff)}, "wo": {"kernel": normal(d_ff, d_model)}}
            for _ in range(self.layers)
        ]
        self.inputs = [_normalised(jnp.asarray(normal(1, 1, d_model))) for _ in range(64)]
        self._laid_out: dict[tuple[Any, ...], Any] = {}

    def run(self, way: Way) -> tuple[Run, float, dict[str, float]]:
        """What computes all of them for one token, the bytes that it reads, and what it does with few tokens.

        Each reads what the one before it wrote, normalised, so that no two are computed at once.
        """
        config, mode = way.of(self.d_ff), way.mode
        if _layout(mode) not in self._laid_out:
            lay_out = lambda params: mode.lay_out(params, config, "float32") if mode.lays_out else params
            self._laid_out[_layout(mode)] = jax.tree.map(jnp.asarray, [lay_out(params) for params in self.params])
        weights = self._laid_out[_layout(mode)]
        module = SparseMLP(dataclasses.replace(config, inference=mode))
        bytes_read = mode.bytes_read(config, self.d_model, FLOAT, active_units(way.sparsifier, self.d_ff))
        quality = self._quality(way, weights[0])
        if getattr(mode, "fallback", False):  # tokens without a proof read W_i whole
            bytes_read += (1 - quality["certified"]) * FLOAT * self.d_model * self.d_ff
        run = self._chained(lambda layer, x: module.apply({"params": layer}, x, Context()), weights)
        return run, self.layers * bytes_read, quality

    def dense(self, wi: str, wo: str) -> tuple[Run, float]:
        """ReLU MLPs whose matrices lie in memory as these axes say: wi "df" (as Flax has it) or "fd", wo "fd" or "df".

        So many layouts of the dense product there are; a sparse one has to be compared with the fastest.
        """
        turned = lambda kernel, axes, flax: jnp.asarray(kernel if axes == flax else kernel.T)
        weights = [(turned(p["wi"]["kernel"], wi, "df"), turned(p["wo"]["kernel"], wo, "fd")) for p in self.params]

        product = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)  # as the modes'

        def apply(layer, x):
            return product(f"blf,{wo}->bld", jnp.maximum(product(f"bld,{wi}->blf", x, layer[0]), 0), layer[1])

        return self._chained(apply, weights), self.layers * 2.0 * FLOAT * self.d_model * self.d_ff

    def _chained(self, apply: Callable[[Any, jax.Array], jax.Array], weights: Sequence[Any]) -> Run:
        @jax.jit
        def program(weights, x):
            for layer in weights:
                x = _normalised(x + apply(layer, x))
            return x

        inputs = itertools.cycle(self.inputs)
        return lambda: program(weights, next(inputs))

    def _quality(self, way: Way, weights: Any) -> dict[str, float]:
        """Means over few tokens of what the first MLP finds, and how far its output is from the training path's."""
        config, x_TxD = way.of(self.d_ff), jnp.concatenate(self.inputs[:TOKENS])[:, 0]
        exact_TxD = SparseMLP(config).apply({"params": self.params[0]}, x_TxD[None], Context())[0]
        if not way.mode.lays_out:
            return {"recall": 1.0, "certified": 1.0, "candidates": float(self.d_ff), "needed": float(self.d_ff)}

        @jax.jit
        def program(weights, x_TxD):
            return [f(weights, x_TxD, config, "float32") for f in (way.mode, way.mode.diagnose)]

        y_TxD, found = program(weights, x_TxD)
        mean = lambda x: float(np.mean(x))
        return {
            "recall": mean(found.recall),
            "certified": mean(found.certified),
            "candidates": mean(found.candidates),
            "needed": float(np.max(found.needed)),
            "error": float(jnp.linalg.norm(y_TxD - exact_TxD) / jnp.linalg.norm(exact_TxD)),
        }


def active_units(sparsifier: Sparsifier, d_ff: int) -> float:
    """Units that are not zero, of pre-activations N(0, 1): what Top-k keeps, or the sparsifier's density says."""
    return getattr(sparsifier, "k", None) or sparsifier.moments(1.0).density * d_ff


def _normalised(x: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6)


class GreedySteps:
    """Greedy decoding of one row by a T5 with random weights, in several ways, always of the same inputs.

    Args:
      config: any sparsifier: each way has its own. Its decoder has as many layers as memory holds in all ways together.
      inputs: tokens that are read.
      tokens: that are said by the shorter and by the longer of two arms; a token's time is the slope between them.
    """

    def __init__(self, config: T5Config, classes: int, inputs: int, tokens: tuple[int, int], ways: Mapping[str, Way]):
        self.classes, self.tokens, self.ways = classes, tokens, ways
        self.itemsize = jnp.dtype(config.dtype).itemsize
        layers = layers_that_fit(config, classes, len({_layout(way.mode) for way in ways.values()}), self.itemsize)
        self.config = dataclasses.replace(config, decoder_layers=layers)
        self.inputs = np.random.default_rng(0).integers(2, classes, (1, inputs)).astype(np.int32)
        self.segments = np.ones_like(self.inputs)

    def arms(self) -> dict[str, Run]:
        """Both arms of each way, called "dense, 32" and so on."""
        module = self.config.build(self.classes)
        read = (self.inputs, self.inputs, self.segments, self.segments)
        init = jax.jit(lambda: module.init(jax.random.key(0), *read, Context())["params"])
        # The stacked parameters are gone when others are laid out.
        config, params = unstacked(self.config, flax.core.meta.unbox(init()))
        params = jax.tree.map(lambda x: x.astype(config.dtype), params)
        out, laid_out = {}, {}
        for name, way in self.ways.items():
            one = dataclasses.replace(config, mlp=dataclasses.replace(config.mlp, sparsifier=way.sparsifier))
            if _layout(way.mode) not in laid_out:
                laid_out[_layout(way.mode)] = prepared(one, params, way.mode)[1]
            one, weights = prepared(one, {}, way.mode)[0], laid_out[_layout(way.mode)]
            for n in self.tokens:
                generate = make_generate(one.build(self.classes), n, end=None)
                out[f"{name}, {n}"] = functools.partial(generate, weights, self.inputs, self.segments)
        return out

    @property
    def slopes(self) -> dict[str, tuple[str, str]]:
        """The tokens that the longer arm of each way says more, as `Case` has them."""
        return slopes(self.ways, self.tokens)

    def moved(self) -> dict[str, float]:
        """Bytes that they read: weights, and keys and values of the inputs; those of earlier targets are left out."""
        cfg, size, more = self.config, self.itemsize, self.tokens[1] - self.tokens[0]
        inner = cfg.heads * cfg.head_dim
        attention = 6 * cfg.d_model * inner + 2 * self.inputs.shape[1] * inner
        out = {}
        for name, way in self.ways.items():
            active = active_units(way.sparsifier, cfg.mlp.d_ff)
            mlp = way.mode.bytes_read(way.of(cfg.mlp.d_ff), cfg.d_model, size, active)
            layers = cfg.depth(DECODER) * (size * attention + mlp)
            out[name] = more * (layers + size * cfg.d_model * self.classes)
        return out


def slopes(names: Iterable[str], tokens: tuple[int, int]) -> dict[str, tuple[str, str]]:
    """By name, its longer and its shorter arm, as `Case.slopes` has them."""
    return {name: (f"{name}, {tokens[1]}", f"{name}, {tokens[0]}") for name in names}


def _layout(mode: Inference) -> tuple[Any, ...]:
    """What the weights of a mode depend on: modes that differ in other settings share them."""
    return (type(mode), *(getattr(mode, name, None) for name in ("rank", "bits")))


def layers_that_fit(config: T5Config, classes: int, layouts: int, itemsize: int = FLOAT) -> int:
    """Layers of the decoder, at most the config's own and at least one, of which memory holds so many layouts.

    Largest is what is there while stacks are taken apart, all of it twice in float32, or at the end.
    """
    attention = 4 * config.d_model * config.heads * config.head_dim
    mlp = 2 * config.d_model * config.mlp.d_ff
    rest = config.depth(ENCODER) * (attention + mlp) + config.d_model * classes
    apart = (MEMORY * memory() - 2 * FLOAT * rest) / (2 * FLOAT * (2 * attention + mlp))
    at_the_end = (MEMORY * memory() - itemsize * rest) / (itemsize * (2 * attention + (1 + layouts) * mlp))
    return int(np.clip(min(apart, at_the_end), 1, config.depth(DECODER)))


def memory() -> int:
    """Bytes of the device's memory, or of the host's where that is the device."""
    stats = jax.devices()[0].memory_stats() if jax.default_backend() != "cpu" else None
    return stats["bytes_limit"] if stats else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def t5_of(size: str, smoke: bool) -> tuple[T5Config, int]:
    """T5 of this size and the size of its vocabulary; of one other than base, one layer of the encoder.

    It is in float32 on CPUs, which have no product of bfloat16, and in bfloat16 elsewhere.
    """
    config = recipes.t5_c4(size)
    config.mesh.data = 1
    config.model.dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    config.data = {"name": "mock_spans", "length": INPUTS, "classes": 32_128}
    if smoke:
        config.model.update({"d_model": 32, "layers": 2, "decoder_layers": 2, "heads": 2, "head_dim": 8})
        config.model.mlp.d_ff, config.data.classes = 64, 384
    run = run_config(config)
    model = dataclasses.replace(run.model, decoder_layers=run.model.depth("decoder"))
    return (model if size == "base" else dataclasses.replace(model, layers=1)), run.data.classes
