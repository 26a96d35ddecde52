import dataclasses

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsity import recipes
from sparsity.config import build
from sparsity.decode.weights import unstacked
from sparsity.evals.sparsity import by_layer
from sparsity.layers.attention import RelativeBias, buckets_of
from sparsity.layers.mlp import MLPConfig
from sparsity.layers.sparsify import STATS, Context
from sparsity.models.t5 import T5Config
from sparsity.ops.sparsifiers import GeluTanh, Relu

V, RNG, CLEAN = 50, np.random.default_rng(0), Context()


def t5(**changes):
    of_mlp = {"d_ff": 32, "sparsifier": Relu(), "use_bias": False, "init": "t5"} | changes.pop("of_mlp", {})
    mlp = MLPConfig(**of_mlp)
    return T5Config(
        **{"mlp": mlp, "d_model": 16, "layers": 3, "decoder_layers": 2, "heads": 4, "head_dim": 8} | changes
    )


def tokens(*shape):
    return RNG.integers(2, V, shape).astype(np.int32)


def ones(*shape):
    return np.ones(shape, np.int32)


INPUTS = (tokens(2, 12), tokens(2, 6), ones(2, 12), ones(2, 6))


def parameters(config, seed=0, classes=V):
    module = config.build(classes)
    variables = jax.jit(lambda key: module.init(key, *INPUTS, Context()))(jax.random.key(seed))
    return flax.core.meta.unbox(variables)["params"]


def logits(config, params, inputs=INPUTS, ctx=CLEAN, **settings):
    module = config.build(V)
    return jax.jit(lambda params, inputs: module.apply({"params": params}, *inputs, ctx, **settings))(params, inputs)


# Published (v1.0), and counted on transformers' model of these sizes, its logits untied (v1.1 and ByT5).
PUBLISHED = {
    "small": (32_128, 60.5e6),
    "base": (32_128, 222.9e6),
    "large": (32_128, 737.7e6),
    "3b": (32_128, 2.85e9),
    "11b": (32_128, 11.3e9),
    "v1.1-small": (32_128, 76.96e6),
    "v1.1-base": (32_128, 247.6e6),
    "v1.1-large": (32_128, 783.2e6),
    "v1.1-xl": (32_128, 2.85e9),
    "v1.1-xxl": (32_128, 11.1e9),
    "byt5-small": (384, 299.6e6),
}


@pytest.mark.parametrize("size", PUBLISHED)
def test_parameter_counts_are_the_published_ones(size):
    rows, published = PUBLISHED[size]
    config = build(T5Config, {k: v for k, v in recipes.t5_model(size).items() if k != "name"})
    shapes = jax.eval_shape(lambda: config.build(rows).init(jax.random.key(0), *INPUTS, Context()))["params"]
    count = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(flax.core.meta.unbox(shapes)))
    assert count == pytest.approx(published, rel=5e-3)


def test_layers_are_stacked_and_one_is_compiled():
    def size(layers):
        config = t5(layers=layers, decoder_layers=layers)
        module = config.build(V)
        shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *INPUTS, Context()))
        apply = lambda variables: module.apply(variables, *INPUTS, Context())
        return len(jax.jit(apply).lower(flax.core.meta.unbox(shapes)).as_text())

    assert size(12) < 1.02 * size(2)


@pytest.mark.parametrize("changes", [{}, {"without_skip": ("encoder_1", "decoder_0")}])
def test_stacked_layers_compute_what_single_ones_do(changes):
    config = t5(**changes)
    params = parameters(config)
    np.testing.assert_allclose(logits(config, params), logits(*unstacked(config, params)), rtol=1e-5, atol=1e-5)


def test_texts_that_share_a_row_do_not_see_each_other():
    config = t5()
    params = parameters(config)
    a, b = (tokens(1, 5), tokens(1, 3)), (tokens(1, 6), tokens(1, 2))
    alone = [logits(config, params, (x, y, ones(*x.shape), ones(*y.shape))) for x, y in (a, b)]
    pad = np.zeros((1, 1), np.int32)
    inputs, targets = np.concatenate([a[0], b[0], pad], 1), np.concatenate([a[1], b[1], pad], 1)
    segments = np.array([[1] * 5 + [2] * 6 + [0]], np.int32), np.array([[1] * 3 + [2] * 2 + [0]], np.int32)
    packed = logits(config, params, (inputs, targets, *segments))
    np.testing.assert_allclose(packed[:, :3], alone[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(packed[:, 3:5], alone[1], rtol=1e-5, atol=1e-5)
    assert np.isfinite(packed).all()  # of padding too: its gradient would be NaN else


def test_targets_do_not_see_later_ones():
    config = t5()
    params, (x, y, *segments) = parameters(config), INPUTS
    changed = y.copy()
    changed[:, 4:] = tokens(2, 2)
    before, after = logits(config, params), logits(config, params, (x, changed, *segments))
    np.testing.assert_array_equal(before[:, :4], after[:, :4])
    assert (before[:, 4:] != after[:, 4:]).any()


def recorded(config, params, inputs=INPUTS):
    _, sown = logits(config, params, inputs, Context(record=True), mutable=[STATS])
    return by_layer(sown[STATS])


def test_records_are_named_by_stack_and_count_real_tokens_alone():
    config = t5()
    params = parameters(config)
    assert set(recorded(config, params)) == set(config.mlps())
    padded = [np.pad(x, ((0, 0), (0, 5))) for x in INPUTS]
    plain, other = recorded(config, params), recorded(config, params, padded)
    for name in config.mlps():
        assert other[name].tokens == plain[name].tokens == 2 * (12 if "encoder" in name else 6)
        np.testing.assert_allclose(other[name].fraction_sum, plain[name].fraction_sum, rtol=1e-6)
        np.testing.assert_array_equal(other[name].fired_F, plain[name].fired_F)


def test_a_layer_without_its_skip_passes_on_its_mlp_alone():
    config = t5(without_skip=("encoder_1",), layers=2)
    params = parameters(config)
    silent = jax.tree_util.tree_map_with_path(
        lambda path, x: x.at[1].set(0) if "encoder" in str(path) and "'wo'" in str(path) else x, params
    )
    _, kept = logits(config, silent, mutable=["intermediates"])
    x = kept["intermediates"]["encoder"]["layers"]["x"]
    assert (x[0] != 0).all()
    assert (x[1] == 0).all()


def test_dropout_is_the_same_for_all_tokens_of_an_example():
    config = t5(dropout=0.5, of_mlp={"dropout": 0.5, "shared_dropout": True})
    params = parameters(config)
    row = np.repeat(tokens(2, 1), 12, 1)  # without positions equal tokens are told apart by nothing but dropout
    flat = jax.tree_util.tree_map_with_path(lambda path, x: 0 * x if "bias" in str(path) else x, params)
    module = config.build(V)
    rngs = {"dropout": jax.random.key(0)}
    encode = lambda flat: module.apply(
        {"params": flat}, row, ones(2, 12), Context(train=True), rngs=rngs, method="encode"
    )
    memory = jax.jit(encode)(flat)
    np.testing.assert_allclose(memory, jnp.broadcast_to(memory[:, :1], memory.shape), rtol=1e-5, atol=1e-5)
    assert (memory[0] != memory[1]).any()
    assert (memory == 0).any()


# Of `T5Attention._relative_position_bucket` in transformers, 32 buckets up to distance 128.
BUCKETS = {
    True: {
        0: 0,
        1: 17,
        7: 23,
        8: 24,
        16: 26,
        64: 30,
        127: 31,
        500: 31,
        -1: 1,
        -8: 8,
        -15: 9,
        -16: 10,
        -90: 14,
        -128: 15,
    },
    False: {0: 0, 5: 0, -1: 1, -15: 15, -16: 16, -20: 17, -32: 21, -64: 26, -113: 31, -127: 31, -500: 31},
}


@pytest.mark.parametrize("both", BUCKETS)
def test_buckets_of_distances_are_t5s(both):
    distances, expected = np.array([*BUCKETS[both]]), [*BUCKETS[both].values()]
    np.testing.assert_array_equal(buckets_of(distances, 32, 128, both), expected)


@pytest.mark.parametrize("both", [True, False])
@pytest.mark.parametrize(("queries", "keys"), [(5, 5), (4, 9), (7, 3), (1, 6)])
def test_the_bias_is_that_of_the_distance(both, queries, keys):
    module = RelativeBias(3, 8, 12, both)
    table = flax.core.meta.unbox(module.init(jax.random.key(0), queries, keys))
    bias = module.apply(table, queries, keys)
    distances = np.arange(keys) - np.arange(queries)[:, None]
    expected = np.asarray(table["params"]["embedding"])[buckets_of(distances, 8, 12, both)]
    np.testing.assert_array_equal(bias[0], np.moveaxis(expected, -1, 0))


def test_the_gradient_of_the_bias_scatters_no_entry_for_each_pair_of_tokens():
    module = RelativeBias(3, 8, 12, both=True)
    table = flax.core.meta.unbox(module.init(jax.random.key(0), 64, 64))
    text = lambda bias: jax.jit(jax.grad(lambda table: bias(table).sum())).lower(table).as_text()
    pairs = "tensor<64x64x1xi32>"  # of the indices
    place = np.arange(64)
    index = buckets_of(place - place[:, None], 8, 12, both=True)
    assert pairs in text(lambda table: table["params"]["embedding"][index])  # the plain way has them
    assert pairs not in text(lambda table: module.apply(table, 64, 64))


@pytest.mark.parametrize("of_mlp", [{}, {"gated": True, "sparsifier": GeluTanh()}])
def test_flops_are_those_of_the_products_that_xla_counts(of_mlp):
    config = t5(of_mlp={"d_ff": 256, **of_mlp}, scan=False, tied=False, d_model=64, heads=4, head_dim=16)
    inputs = (tokens(1, 64), tokens(1, 32), ones(1, 64), ones(1, 32))
    params = jax.jit(lambda key: config.build(V).init(key, *inputs, Context()))(jax.random.key(0))
    counted = jax.jit(lambda p: config.build(V).apply(p, *inputs, Context())).lower(params).cost_analysis()["flops"]
    shape = (64, 32, 64, 32)
    ours = config.flops(shape, V) * config.tokens(shape)
    assert ours < counted < 1.08 * ours  # the rest is norms, softmax and what else is no product
    density = dict.fromkeys(config.mlps(), 0.25)
    saved = sum(config.skippable_flops(shape, V).values()) * 0.75
    assert config.flops(shape, V, density) == pytest.approx(config.flops(shape, V) - saved)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"without_skip": ("encoder_3",)}, 'without_skip: no layer "encoder_3"; did you mean "encoder_'),
        ({"heads": 0}, "heads: must be at least 1"),
        ({"decoder_layers": 0}, "decoder_layers: must be at least 1"),
        ({"buckets": 6}, "buckets: must be a multiple of 4"),
        ({"max_distance": 16}, "max_distance: must be above 16"),
        ({"dropout": 1.0}, "dropout: must be in"),
    ],
)
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        t5(**changes)


def test_a_reduced_t5_is_small_and_of_the_same_kind():
    big = build(T5Config, {k: v for k, v in recipes.t5_model("v1.1-xxl").items() if k != "name"})
    small = dataclasses.replace(big, without_skip=("encoder_1", "encoder_6")).reduced(4)
    assert (small.d_model, small.layers, small.decoder_layers, small.heads, small.head_dim) == (16, 2, 2, 4, 8)
    assert (small.mlp.gated, small.mlp.d_ff, small.tied, small.without_skip) == (True, 32, False, ("encoder_1",))
    assert t5(layers=1, decoder_layers=1, heads=2).reduced(1).layers == 1


def test_bfloat16_computes_in_it_and_makes_float32_logits():
    config = t5(dtype="bfloat16")
    params = parameters(config)
    half, full = logits(config, params), logits(dataclasses.replace(config, dtype="float32"), params)
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, full, atol=0.05 * float(jnp.abs(full).max()))
