import functools
import re

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsity import spmd
from sparsity.data.vocabularies import EOS
from sparsity.decode.generate import make_generate, make_sample
from sparsity.decode.sampling import Sampling
from sparsity.decode.weights import unstacked
from sparsity.layers.mlp import MLPConfig
from sparsity.layers.sparsify import Context
from sparsity.models.gpt2 import GPT2Config
from sparsity.models.llama import LlamaConfig
from sparsity.models.t5 import T5Config
from sparsity.ops.sparsifiers import Relu, TopK

V, LENGTH = 40, 24
RNG = np.random.default_rng(0)
INPUTS = RNG.integers(2, V, (4, 12)).astype(np.int32)
SEGMENTS = np.ones_like(INPUTS)
SEGMENTS[1, 7:] = SEGMENTS[3, 1:] = 0  # of different lengths
LENGTHS = SEGMENTS.sum(1)


MODELS = {
    # Just as many positions as are read.
    "gpt2": GPT2Config(MLPConfig(32, Relu()), d_model=16, layers=2, heads=4, positions=12 + LENGTH - 1),
    "llama": LlamaConfig(
        mlp=MLPConfig(32, TopK(k=4, method="group"), gated=True, use_bias=False),
        d_model=16,
        layers=2,
        heads=4,
        kv_heads=2,
        theta=10.0,
    ),
    # Both versions of it are compared with torch in tests/convert/test_golden_t5.py.
    "t5": T5Config(
        mlp=MLPConfig(32, TopK(k=4), use_bias=False),
        d_model=16,
        layers=2,
        decoder_layers=3,
        heads=4,
        head_dim=8,
        without_skip=("decoder_1",),
    ),
}


def reads(config):
    return [np.ones((1, 12), np.int32) for _ in config.inputs]


@functools.cache
def parameters(config):
    """Random, with distances and positions of consequence: at the start they hardly matter."""
    shapes = jax.eval_shape(config.build(V).init, jax.random.key(0), *reads(config), Context())["params"]
    rng = np.random.default_rng(1)

    def draw(path, leaf):
        kernel = path[-1].key == "kernel"
        mean, size = (
            float(path[-1].key == "scale"),
            1.5 * leaf.shape[-2] ** -0.5 if kernel else 1.0 - 0.9 * (leaf.ndim == 1),
        )
        return jnp.asarray(rng.normal(mean, size, leaf.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, flax.core.meta.unbox(shapes))


@functools.cache
def without_cache(name):
    """What is said without an end, by whole forward passes, one a token; they are all of one length."""
    config = MODELS[name]
    module, params = config.build(V), parameters(config)
    tokens, every = np.zeros((4, LENGTH), np.int32), np.arange(4)
    if name == "t5":
        apply = jax.jit(lambda y: module.apply({"params": params}, INPUTS, y, SEGMENTS, jnp.ones_like(y), Context()))
        for t in range(LENGTH):
            said = np.pad(tokens[:, :-1], ((0, 0), (1, 0)))  # what comes later is hidden
            tokens[:, t] = np.argmax(apply(said)[:, t], -1)
        return tokens
    apply = jax.jit(lambda x: module.apply({"params": params}, x, Context()))
    rows = np.pad(INPUTS * SEGMENTS, ((0, 0), (0, LENGTH - 1)))
    for t in range(LENGTH):
        tokens[:, t] = np.argmax(apply(rows)[every, LENGTHS + t - 1], -1)
        if t + 1 < LENGTH:
            rows[every, LENGTHS + t] = tokens[:, t]
    return tokens


def ended(tokens, end):
    """Padding after the first `end` of each row."""
    after = np.cumsum(tokens == end, 1) - (tokens == end) > 0
    return np.where(after, 0, tokens)


@pytest.mark.parametrize("name", MODELS)
def test_cached_decoding_says_what_whole_forward_passes_do_up_to_the_end(name):
    config, free = MODELS[name], without_cache(name)
    assert len(np.unique(free)) > 5, "a network that repeats itself shows nothing"
    # One row says it before it has come to its limit, and one does not.
    end = next(token for token in free[:, 3] if 0 < (free[:, :-1] == token).any(1).sum() < 4)
    generate = make_generate(config.build(V), LENGTH, int(end))
    np.testing.assert_array_equal(generate(parameters(config), INPUTS, SEGMENTS), ended(free, end))
    # Other prompts of this shape, one of them none, are no other program.
    segments = SEGMENTS * np.array([[0], [1], [1], [1]], np.int32)
    again = generate(parameters(config), INPUTS, segments)
    np.testing.assert_array_equal(again, ended(free, end) * (np.arange(4) > 0)[:, None])
    assert generate._cache_size() == 1


@pytest.mark.parametrize("name", MODELS)
def test_a_prompt_alone_is_continued_as_in_a_batch_of_longer_ones(name):
    config, params = unstacked(MODELS[name], parameters(MODELS[name]))
    got = make_generate(config.build(V), LENGTH, end=None)(params, INPUTS[1:2, :7], SEGMENTS[1:2, :7])
    np.testing.assert_array_equal(got, without_cache(name)[1:2])


def test_each_step_has_the_logits_of_the_whole_pass():
    config = MODELS["t5"]
    params, module = parameters(config), config.build(V)
    targets = RNG.integers(2, V, (4, LENGTH)).astype(np.int32)
    said = np.pad(targets[:, :-1], ((0, 0), (1, 0)))
    apply = jax.jit(functools.partial(module.apply, mutable=["cache"]), static_argnames="method")
    whole, _ = apply({"params": params}, INPUTS, said, SEGMENTS, np.ones_like(said), Context())
    largest = np.abs(whole).max()  # 3.6: matrices are drawn larger than usual
    ctx = Context(slots=LENGTH)
    logits, kept = apply({"params": params}, INPUTS, SEGMENTS, ctx, method="start")
    for t in range(LENGTH):
        np.testing.assert_allclose(logits, whole[:, t], rtol=0, atol=1e-5 * largest)
        if t + 1 < LENGTH:
            at = ctx.replace(place=jnp.int32(t + 1))
            logits, kept = apply({"params": params, **kept}, said[:, t + 1], SEGMENTS, at, method="step")


def test_no_step_is_run_after_all_rows_have_ended():
    calls = []

    class Counting:
        """Says 5, then 1, which ends it."""

        def apply(self, variables, *args, method, mutable):
            token = 5 if method == "start" else EOS
            if method == "step":
                jax.debug.callback(lambda: calls.append(method))
            logits = jnp.zeros((len(INPUTS), V)).at[:, token].set(1)
            return logits, {"cache": jnp.zeros(())}

    got = make_generate(Counting(), LENGTH, EOS)({}, INPUTS, SEGMENTS)
    jax.effects_barrier()
    np.testing.assert_array_equal(got[:, :3], [[5, EOS, 0]] * len(INPUTS))
    assert len(calls) == 1


def on_mesh(config, compute, *more):
    """(what `compute` says on 4 x 2 devices, its program as it was lowered, and as it runs on one of them)."""
    mesh, module = spmd.make_mesh(spmd.MeshConfig(data=4, model=2)), config.build(V)
    boxed = jax.eval_shape(module.init, jax.random.key(0), *reads(config), Context())["params"]
    placed = jax.device_put(parameters(config), spmd.shardings(mesh, spmd.param_specs(boxed)))
    batch = spmd.place_batch(mesh, {"inputs": INPUTS, "segments": SEGMENTS})
    with jax.set_mesh(mesh):
        lowered = compute.lower(placed, batch["inputs"], batch["segments"], *more)
        compiled = lowered.compile()
        return compiled(placed, batch["inputs"], batch["segments"], *more), lowered.as_text(), compiled.as_text()


# A row and half of the heads a device: [layers of the scan,] rows, heads, slots, numbers of a head.
CACHES = {"llama": "f32[1,1,35,4]", "t5": "f32[3,1,2,24,8]"}


@pytest.mark.parametrize("name", CACHES)
def test_sharded_over_a_mesh_it_says_the_same_and_sorts_nothing(name):
    generate = make_generate(MODELS[name].build(V), LENGTH, end=None)
    got, lowered, compiled = on_mesh(MODELS[name], generate)
    np.testing.assert_array_equal(got, without_cache(name))
    loops = [line for line in compiled.splitlines() if " while(" in line]
    assert any(CACHES[name] in line for line in loops)
    assert not re.search(r"\b(stablehlo|chlo)\.(sort|top_k)", lowered)
    assert " sort(" not in compiled


def test_drawn_tokens_depend_neither_on_the_batch_nor_on_the_mesh():
    config, rows = MODELS["gpt2"], np.array([3, 0, 8, 5], np.int32)
    module, params = config.build(V), parameters(config)
    sample = make_sample(module, LENGTH, Sampling(0.9, 0.95), end=None)
    expected = np.asarray(sample(params, INPUTS, SEGMENTS, np.uint32(7), rows))
    assert (expected != sample(params, INPUTS, SEGMENTS, np.uint32(8), rows)).mean() > 0.5
    np.testing.assert_array_equal(
        sample(params, INPUTS[::-1], SEGMENTS[::-1], np.uint32(7), rows[::-1]), expected[::-1]
    )
    np.testing.assert_array_equal(
        sample(params, INPUTS[1:2, :7], SEGMENTS[1:2, :7], np.uint32(7), rows[1:2]), expected[1:2]
    )
    got, _, compiled = on_mesh(config, sample, np.uint32(7), rows)
    np.testing.assert_array_equal(got, expected)
    assert "f32[1,2,35,4]" in compiled


def test_a_step_without_a_cache_is_refused():
    for config in (MODELS["t5"], MODELS["gpt2"]):
        variables = {"params": parameters(config)}
        ctx = Context(slots=LENGTH, place=jnp.int32(1))
        with pytest.raises(ValueError, match="no cache"):
            config.build(V).apply(variables, INPUTS[:, 0], SEGMENTS, ctx, method="step", mutable=["cache"])


def test_no_targets_and_more_than_there_are_positions_for_are_refused():
    module = MODELS["gpt2"].build(V)
    for make in (make_generate, lambda module, length, end: make_sample(module, length, Sampling(), end)):
        with pytest.raises(ValueError, match="length"):
            make(module, 0, None)
    with pytest.raises(ValueError, match="positions: 35 are too few for sequences of 36 tokens"):
        make_generate(module, LENGTH + 1, None)(parameters(MODELS["gpt2"]), INPUTS, SEGMENTS)


@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_unstacking_what_is_unstacked_changes_nothing(name):
    once = unstacked(MODELS[name], parameters(MODELS[name]))
    again = unstacked(*once)
    assert again[0] == once[0]
    assert again[1] is once[1]
