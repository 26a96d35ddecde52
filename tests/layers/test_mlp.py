import dataclasses

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsity.config import ConfigError, build
from sparsity.layers.mlp import MLPConfig, MLPFlops, SparseMLP, mlp_flops
from sparsity.layers.sparsify import STATS, Context
from sparsity.ops.sparsifiers import ClippedRelu, Gelu, Relu, SoftThreshold, TopK

B, L, D, F = 3, 4, 5, 12
X = jnp.asarray(np.random.default_rng(0).normal(size=(B, L, D)), jnp.float32)


def parameters(mlp, seed=1):
    """Random parameters of every leaf, biases included (they start at zero)."""
    shapes = flax.core.meta.unbox(jax.eval_shape(mlp.init, jax.random.key(0), X, Context()))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda p: jnp.asarray(rng.normal(0, 0.5, p.shape), p.dtype), shapes)


def linear(params, x):
    return x @ np.asarray(params["kernel"], np.float64) + np.asarray(params.get("bias", 0.0), np.float64)


def reference(variables, sparsifier, gated):
    """y = Sparsify(x W_i + b_i) [* (x W_gate + b_gate)] W_o + b_o in numpy float64."""
    p, x = variables["params"], np.asarray(X, np.float64)
    h = sparsifier(linear(p["wi"], x))
    if gated:
        h = h * linear(p["wi_gate"], x)
    return linear(p["wo"], h)


def top_2(z):
    h = np.maximum(z, 0)
    return np.where(h >= np.sort(h, -1)[..., -2:-1], h, 0)


CASES = {
    "relu": (Relu(), lambda z: np.maximum(z, 0)),
    "soft_threshold": (SoftThreshold(0.5), lambda z: np.sign(z) * np.maximum(np.abs(z) - 0.5, 0)),
    "top_k": (TopK(2), top_2),
}


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_the_output_is_the_formula(case, gated, use_bias):
    sparsifier, phi = CASES[case]
    mlp = SparseMLP(MLPConfig(F, sparsifier, gated=gated, use_bias=use_bias))
    variables = parameters(mlp)
    # Two float32 matrix products of 5 and 12 terms of size up to 10.
    np.testing.assert_allclose(
        mlp.apply(variables, X, Context()), reference(variables, phi, gated), rtol=2e-6, atol=5e-6
    )


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("gated", [True, False])
def test_the_parameters_are_the_documented_ones(gated, use_bias):
    shapes = jax.tree.map(jnp.shape, parameters(SparseMLP(MLPConfig(F, Relu(), gated=gated, use_bias=use_bias))))
    expected = {"wi": {"kernel": (D, F), "bias": (F,)}, "wo": {"kernel": (F, D), "bias": (D,)}}
    if gated:
        expected["wi_gate"] = {"kernel": (D, F), "bias": (F,)}
    if not use_bias:
        expected = {name: {"kernel": layer["kernel"]} for name, layer in expected.items()}
    assert shapes == {"params": expected}


def test_the_hidden_axis_alone_is_named_for_the_model_axis_of_the_mesh():
    mlp = SparseMLP(MLPConfig(F, Relu(), gated=True))
    boxed = mlp.init(jax.random.key(0), X, Context())["params"]
    names = {layer: {p: boxed[layer][p].names for p in boxed[layer]} for layer in boxed}
    into = {"kernel": ("embed", "mlp"), "bias": ("mlp",)}
    assert names == {"wi": into, "wi_gate": into, "wo": {"kernel": ("mlp", "embed"), "bias": ("embed",)}}


def recorded(mlp, variables, **ctx):
    y, new = mlp.apply(variables, X, Context(record=True, **ctx), mutable=[STATS], rngs={"dropout": jax.random.key(3)})
    return y, new[STATS]["sparsify"]["stats"]


def test_nonzeros_are_counted_before_dropout():
    mlp = SparseMLP(MLPConfig(F, Relu(), dropout=0.9))
    variables = parameters(mlp)
    dropped, in_training = recorded(mlp, variables, train=True)
    kept, in_evaluation = recorded(mlp, variables, train=False)
    jax.tree.map(np.testing.assert_array_equal, in_training, in_evaluation)
    assert not np.allclose(dropped, kept)


def test_nonzeros_of_a_gated_mlp_are_those_of_the_sparsifier():
    mlp = SparseMLP(MLPConfig(F, Relu(), gated=True))
    variables = parameters(mlp)
    closed = variables["params"]["wi_gate"]
    variables["params"]["wi_gate"] = jax.tree.map(jnp.zeros_like, closed)  # h itself is zero everywhere
    _, stats = recorded(mlp, variables)
    z = linear(variables["params"]["wi"], np.asarray(X, np.float64))
    np.testing.assert_array_equal(stats.fired_F, (z > 0).sum((0, 1)))


def test_recording_leaves_the_output_as_it_is():
    mlp = SparseMLP(MLPConfig(F, TopK(3)))
    variables = parameters(mlp)
    y, _ = recorded(mlp, variables)
    np.testing.assert_array_equal(y, mlp.apply(variables, X, Context()))


def test_dropout_acts_on_the_activations_in_training_only():
    mlp = SparseMLP(MLPConfig(F, Relu(), dropout=0.5))
    variables = parameters(mlp)
    # With W_o = 1 at one unit and zero elsewhere the output shows that unit: dropped, or scaled by 1 / (1 - 0.5).
    variables["params"]["wo"] = {"kernel": jnp.zeros((F, D)).at[4, 0].set(1.0), "bias": jnp.zeros(D)}
    unit = np.maximum(linear(variables["params"]["wi"], np.asarray(X, np.float64))[..., 4], 0)
    y = mlp.apply(variables, X, Context(train=True), rngs={"dropout": jax.random.key(0)})[..., 0]
    dropped = np.asarray(y) == 0
    np.testing.assert_allclose(np.asarray(y)[~dropped], 2 * unit[~dropped], rtol=2e-6)
    assert 0 < (dropped & (unit > 0)).sum() < (unit > 0).sum()
    np.testing.assert_allclose(mlp.apply(variables, X, Context())[..., 0], unit, rtol=2e-6, atol=1e-6)


def test_bfloat16_computes_in_bfloat16_and_keeps_float32_parameters():
    mlp = SparseMLP(MLPConfig(F, Relu()), dtype="bfloat16")
    variables = parameters(mlp)
    assert {p.dtype for p in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    y = mlp.apply(variables, X, Context())
    assert y.dtype == jnp.bfloat16
    expected = reference(variables, lambda z: np.maximum(z, 0), gated=False)
    # eps 2^-8 on inputs, weights and activations of sums of 12 terms of size up to 2.
    np.testing.assert_allclose(np.asarray(y, np.float64), expected, atol=12 * 2 * 2.0**-8)


def test_a_nan_input_reaches_the_output_of_its_token_alone():
    mlp = SparseMLP(MLPConfig(F, TopK(2)))
    y = mlp.apply(parameters(mlp), X.at[1, 2, 0].set(jnp.nan), Context())
    expected = np.zeros((B, L, D), bool)
    expected[1, 2] = True
    np.testing.assert_array_equal(np.isnan(y), expected)


def test_flops_of_the_sizes_of_t5_base_by_hand():
    config = MLPConfig(3072, Relu())
    # 2 * 768 * 3072 = 4,718,592 a matrix; 64 of 3072 units: 2 * 768 * 64 = 98,304.
    assert mlp_flops(config, 768, 1.0) == MLPFlops(4_718_592, 4_718_592, 4_718_592)
    assert mlp_flops(config, 768, 64 / 3072) == MLPFlops(4_718_592, 4_718_592, 98_304)
    assert mlp_flops(config, 768, 0.0).second_sparse == 0


def test_a_gated_mlp_has_two_first_matrices():
    assert mlp_flops(MLPConfig(100, Relu(), gated=True), 10, 0.25) == MLPFlops(4000, 2000, 500)


@pytest.mark.parametrize("density", [float("nan"), -0.01, 1.01, float("inf")])
def test_flops_of_a_density_that_is_no_share_are_refused(density):
    with pytest.raises(ValueError, match=r"^density: must be in \[0, 1\]"):
        mlp_flops(MLPConfig(8, Relu()), 4, density)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"d_ff": 0}, "config.d_ff: must be at least 1, got 0"),
        ({"dropout": 1.0}, "config.dropout: must be in [0, 1), got 1.0"),
        ({"dropout": -0.1}, "config.dropout: must be in [0, 1), got -0.1"),
        ({"sparsifier": {"name": "top_k", "k": 9}}, "config.sparsifier.k: 9 is more than the d_ff 8 units there are"),
    ],
)
def test_impossible_settings_are_refused_by_name(section, message):
    with pytest.raises(ConfigError) as caught:
        build(MLPConfig, {"d_ff": 8, "sparsifier": {"name": "relu"}} | section)
    assert str(caught.value) == message


def test_the_sparsifier_is_chosen_by_name():
    assert build(MLPConfig, {"d_ff": 8, "sparsifier": {"name": "gelu"}}) == MLPConfig(8, Gelu())


def test_on_the_edge_of_chaos_the_target_sparsity_holds_at_the_start_and_the_output_has_variance_one():
    sparsifier = ClippedRelu(sparsity=0.85, slope=0.7)
    mlp = SparseMLP(MLPConfig(d_ff=2048, sparsifier=sparsifier, init="edge_of_chaos"))
    x = jax.random.normal(jax.random.key(0), (16, 32, 256))
    x = x / jnp.sqrt(jnp.mean(x**2, -1, keepdims=True))  # what a layer norm hands over
    variables = mlp.init(jax.random.key(1), x, Context())
    y, recorded = mlp.apply(variables, x, Context(record=True), mutable=[STATS])
    stats = recorded[STATS]["sparsify"]["stats"]
    # 2,048 units of random weights: the variance and the share of zeros of one draw are good to 1 / sqrt(2048) = 2 %.
    np.testing.assert_allclose(1 - stats.fraction_sum / stats.examples, 0.85, atol=0.02)
    np.testing.assert_allclose(stats.variance_sum / stats.examples, 1.0, rtol=0.05)
    # 256 outputs share their 256 biases: good to sqrt(2 / 256) = 9 %, three times that.
    np.testing.assert_allclose(jnp.mean(y**2), 1.0, rtol=0.27)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gated": True}, "init: there is no edge of chaos of a gated MLP"),
        ({"use_bias": False}, "init: this sparsifier's edge of chaos needs biases of variance"),
        ({"sparsifier": TopK(k=2)}, "sparsifier: TopK acts on a whole token"),
        ({"sparsifier": TopK(k=2), "use_bias": False}, "sparsifier: TopK acts on a whole token"),
    ],
)
def test_an_edge_of_chaos_that_does_not_exist_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        MLPConfig(**({"d_ff": 8, "sparsifier": ClippedRelu(sparsity=0.85, slope=0.7)} | settings), init="edge_of_chaos")


def test_a_reduced_mlp_is_narrow_and_the_same_else():
    mlp = MLPConfig(3072, TopK(k=384, method="statistical"), gated=True, use_bias=False, dropout=0.1)
    assert mlp.reduced(1) == dataclasses.replace(mlp, d_ff=32, sparsifier=TopK(k=4, method="statistical"))
    assert mlp.reduced(3) == dataclasses.replace(mlp, d_ff=33, sparsifier=TopK(k=4, method="statistical"))
    narrow = MLPConfig(12, TopK(k=5))
    assert narrow.reduced(1) == narrow
