import dataclasses

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsity import spmd
from sparsity.data.vocabularies import EOS
from sparsity.decode.generate import make_generate
from sparsity.decode.weights import unstacked
from sparsity.layers.mlp import MLPConfig
from sparsity.layers.sparsify import Context
from sparsity.models.t5 import T5Config
from sparsity.ops.sparsifiers import GeluTanh, Relu, TopK

V, LENGTH = 40, 24
RNG = np.random.default_rng(0)
INPUTS = RNG.integers(2, V, (4, 12)).astype(np.int32)
SEGMENTS = np.ones_like(INPUTS)
SEGMENTS[1, 7:] = 0  # of different lengths


def t5(sparsifier=None, gated=False, **changes):
    mlp = MLPConfig(d_ff=32, sparsifier=sparsifier or Relu(), gated=gated, use_bias=False, init="t5")
    sizes = {"d_model": 16, "layers": 2, "decoder_layers": 3, "heads": 4, "head_dim": 8}
    return T5Config(mlp=mlp, **sizes | changes)


def parameters(config):
    """Random, with distances of consequence: at the start they hardly matter."""
    module = config.build(V)
    init = jax.jit(lambda key: module.init(key, INPUTS, INPUTS, SEGMENTS, SEGMENTS, Context()))
    params = init(jax.random.key(1))["params"]
    params = flax.core.meta.unbox(params)
    for stack in ("encoder", "decoder"):
        params[stack]["bias"]["embedding"] = 3 * jnp.asarray(RNG.standard_normal((32, 4)), jnp.float32)
    return params


def without_cache(config, params, length, end=EOS):
    """The same tokens by whole forward passes, one a token."""
    module, rows = config.build(V), len(INPUTS)
    apply = jax.jit(lambda y: module.apply({"params": params}, INPUTS, y, SEGMENTS, jnp.ones_like(y), Context()))
    tokens, ended = np.zeros((rows, length), np.int32), np.zeros(rows, bool)
    for t in range(length):
        # Always of one length, what comes later is hidden: one program.
        said = np.pad(tokens[:, :-1], ((0, 0), (1, 0)))
        tokens[:, t] = np.where(ended, 0, np.argmax(apply(said)[:, t], -1))
        ended |= tokens[:, t] == end
    return tokens


MODELS = {
    "v1.0": t5(),
    "v1.1": t5(GeluTanh(), gated=True, tied=False),
    "top_k": t5(TopK(k=4), tied=False),
    "without_skip": t5(without_skip=("decoder_1",)),
}


@pytest.mark.parametrize("name", MODELS)
def test_cached_decoding_says_what_whole_forward_passes_do(name):
    config = MODELS[name]
    params = parameters(config)
    expected = without_cache(config, params, LENGTH, end=None)
    got = make_generate(config.build(V), LENGTH, end=None)(params, INPUTS, SEGMENTS)
    np.testing.assert_array_equal(got, expected)
    assert len(np.unique(expected)) > 5, "a network that repeats itself shows nothing"
    single, unstacked_params = unstacked(config, params)
    again = make_generate(single.build(V), LENGTH, end=None)(unstacked_params, INPUTS, SEGMENTS)
    np.testing.assert_array_equal(again, expected)


def test_each_step_has_the_logits_of_the_whole_pass():
    config = t5()
    params, module = parameters(config), config.build(V)
    targets = RNG.integers(2, V, (4, LENGTH)).astype(np.int32)
    said = np.pad(targets[:, :-1], ((0, 0), (1, 0)))
    whole = module.apply({"params": params}, INPUTS, said, SEGMENTS, np.ones_like(said), Context())
    ctx = Context(slots=LENGTH)
    keep = {"mutable": ["cache"]}
    logits, kept = module.apply({"params": params}, INPUTS, SEGMENTS, ctx, method="start", **keep)

    @jax.jit
    def step(cache, said, place):
        variables, at = {"params": params, "cache": cache}, ctx.replace(place=place)
        return module.apply(variables, said, SEGMENTS, at, method="step", **keep)

    for t in range(LENGTH):
        np.testing.assert_allclose(logits, whole[:, t], rtol=1e-5, atol=1e-5)
        if t + 1 < LENGTH:
            logits, kept = step(kept["cache"], said[:, t + 1], jnp.int32(t + 1))


def test_a_row_is_padding_after_its_end_and_the_loop_stops_with_the_last_row():
    config = t5()
    params = parameters(config)
    free = np.asarray(make_generate(config.build(V), LENGTH, end=None)(params, INPUTS, SEGMENTS))
    end = int(free[0, 3])  # the first row's end comes at its fourth token at the latest
    got = np.asarray(make_generate(config.build(V), LENGTH, end)(params, INPUTS, SEGMENTS))
    np.testing.assert_array_equal(got, without_cache(config, params, LENGTH, end))
    for row, unended in zip(got, free, strict=True):
        stop = int(np.argmax(unended == end)) + 1 if end in unended else LENGTH
        np.testing.assert_array_equal(row[:stop], unended[:stop])
        assert not row[stop:].any()
    assert not got[0, 4:].any()


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

    got = make_generate(Counting(), LENGTH)({}, INPUTS, SEGMENTS)
    jax.effects_barrier()
    np.testing.assert_array_equal(got[:, :3], [[5, EOS, 0]] * len(INPUTS))
    assert len(calls) == 1


def test_sharded_over_a_mesh_it_says_the_same():
    config = t5()
    params = parameters(config)
    generate = make_generate(config.build(V), LENGTH, end=None)
    alone = generate(params, INPUTS, SEGMENTS)
    mesh = spmd.make_mesh(spmd.MeshConfig(data=2, model=4))
    module = config.build(V)
    boxed = jax.eval_shape(lambda: module.init(jax.random.key(0), INPUTS, INPUTS, SEGMENTS, SEGMENTS, Context()))
    placed = jax.device_put(params, spmd.shardings(mesh, spmd.param_specs(boxed["params"])))
    batch = spmd.place_batch(mesh, {"inputs": INPUTS, "segments": SEGMENTS})
    with jax.set_mesh(mesh):
        compiled = generate.lower(placed, batch["inputs"], batch["segments"]).compile()
        got = compiled(placed, batch["inputs"], batch["segments"])
    np.testing.assert_array_equal(got, alone)
    # The cache lies on the mesh: 2 of 4 rows and 1 of 4 heads a device.
    assert "f32[3,2,1,24,8]" in compiled.as_text()


def test_a_step_without_a_cache_is_refused():
    config = t5()
    params, ctx = parameters(config), Context(slots=LENGTH, place=jnp.int32(1))
    with pytest.raises(ValueError, match="no cache"):
        config.build(V).apply({"params": params}, INPUTS[:, 0], SEGMENTS, ctx, method="step", mutable=["cache"])


def test_no_targets_are_refused():
    with pytest.raises(ValueError, match="length"):
        make_generate(t5().build(V), 0)


def test_unstacking_what_is_unstacked_changes_nothing():
    config = dataclasses.replace(t5(), scan=False)
    assert unstacked(config, {"a": 1}) == (config, {"a": 1})
