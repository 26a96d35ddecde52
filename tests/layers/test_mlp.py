import dataclasses

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsity.config import ConfigError, build, to_dict
from sparsity.layers.mlp import MLPConfig, MLPFlops, SparseMLP, mlp_flops
from sparsity.layers.noise import NOISE
from sparsity.layers.sparsify import ACTIVATIONS, STATS, Context
from sparsity.ops.noise import Gaussian, LinearToZero
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
    y = jax.jit(lambda variables: mlp.apply(variables, X, Context()))(variables)
    np.testing.assert_allclose(y, reference(variables, phi, gated), rtol=2e-6, atol=5e-6)


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
    ctx, rngs = Context(record=True, **ctx), {"dropout": jax.random.key(3)}
    y, new = jax.jit(lambda variables: mlp.apply(variables, X, ctx, mutable=[STATS], rngs=rngs))(variables)
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
        ({"scale": 0.0}, "config.scale: must be positive, got 0.0"),
        ({"use_bias": False, "shared_bias": True}, "config.shared_bias: there is no bias to share (use_bias is off)"),
        ({"init": "troch"}, 'config.init: unknown choice "troch"; did you mean "torch"?'),
        ({"noise": {"name": "gausian"}}, 'config.noise.name: unknown name "gausian"; did you mean "gaussian"?'),
        ({"noise": {"name": "gaussian", "sigm": 1}}, 'config.noise.sigm: unknown key; did you mean "sigma"?'),
        ({"noise": {"name": "gaussian", "sigma": -1.0}}, "config.noise.sigma: must be at least 0, got -1.0"),
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


def test_the_later_settings_leave_the_hash_of_older_configs_alone():
    names = {"d_ff", "sparsifier", "gated", "use_bias", "dropout", "init"}
    assert to_dict(MLPConfig(8, Relu())).keys() == names
    assert to_dict(MLPConfig(8, Relu(), noise=Gaussian(1.0), scale=2.0)).keys() == names | {"noise", "scale"}


def handed_out(mlp, variables, x, key=0, **ctx):
    """Output, and the pre-activations [B, L, F] that are handed out."""
    y, new = mlp.apply(
        variables, x, Context(hand_out=True, **ctx), mutable=[ACTIVATIONS], rngs={NOISE: jax.random.key(key)}
    )
    return y, new[ACTIVATIONS]["sparsify"]["stats"].z


def test_noise_reaches_the_units_correlated_by_their_weights():
    """Gaussian of mean x W_i + b_i and covariance sigma^2 W_i^T W_i (Bricken et al. 2023, Eqs. 2 and 20)."""
    sigma, n, units = 0.7, 20_000, 4
    mlp = SparseMLP(MLPConfig(units, Relu(), noise=Gaussian(sigma)))
    variables = parameters(mlp)
    wi = np.asarray(variables["params"]["wi"]["kernel"], np.float64)
    _, z = handed_out(mlp, variables, jnp.tile(X[:1, :1], (n, 1, 1)), noisy=True)
    z = np.asarray(z, np.float64)[:, 0] - linear(variables["params"]["wi"], np.asarray(X, np.float64)[0, 0])
    # Five standard errors of the sample's means, and of its mean products.
    assert (np.abs(z.mean(0)) < 5 * z.std(0) / n**0.5).all()
    products = z[:, :, None] * z[:, None, :]
    expected = sigma**2 * wi.T @ wi
    errors = products.std(0) / n**0.5
    assert (np.abs(products.mean(0) - expected) < 5 * errors).all()
    # It is not that of independent noise at each unit: the covariances would be told apart from 0.
    assert np.abs(expected / errors)[~np.eye(units, dtype=bool)].max() > 50


def test_noise_is_on_in_noisy_contexts_only():
    clean, noisy = (SparseMLP(MLPConfig(F, Relu(), noise=noise)) for noise in (None, Gaussian(0.5)))
    variables = parameters(clean)
    assert jax.tree.map(jnp.shape, parameters(noisy)) == jax.tree.map(jnp.shape, variables)
    expected = clean.apply(variables, X, Context())
    np.testing.assert_array_equal(noisy.apply(variables, X, Context(train=True)), expected)
    np.testing.assert_array_equal(clean.apply(variables, X, Context(noisy=True)), expected)
    assert (handed_out(noisy, variables, X, noisy=True)[1] != handed_out(noisy, variables, X)[1]).all()


def test_noise_is_fresh_for_each_key_and_token_and_follows_its_schedule():
    mlp = SparseMLP(MLPConfig(F, Relu(), noise=Gaussian(0.5, schedule=LinearToZero(start=2, length=2))))
    variables = parameters(mlp)
    same = jnp.ones_like(X)
    z = lambda key, step: np.asarray(handed_out(mlp, variables, same, key, noisy=True, step=step)[1])
    np.testing.assert_array_equal(z(0, 1), z(0, 2))
    assert (z(0, 0) != z(1, 0)).all()
    assert len(np.unique(z(0, 0)[..., 0])) == B * L
    clean = np.asarray(handed_out(mlp, variables, same)[1])
    np.testing.assert_array_equal(z(0, 4), clean)
    # Half of the noise at step 3, to the rounding of numbers of size 3.
    np.testing.assert_allclose(z(0, 3) - clean, (z(0, 0) - clean) / 2, atol=2e-6)


def test_the_gate_reads_the_same_noisy_input():
    mlp = SparseMLP(MLPConfig(F, Gelu(), gated=True, noise=Gaussian(0.5)))
    variables = parameters(mlp)
    variables["params"]["wi_gate"] = variables["params"]["wi"]
    y, z = handed_out(mlp, variables, X, noisy=True)
    z = np.asarray(z, np.float64)
    # Two float32 products of 5 and 12 terms of size up to 100.
    np.testing.assert_allclose(y, linear(variables["params"]["wo"], Gelu()(z, np) * z), rtol=1e-5, atol=2e-4)


def test_a_shared_bias_is_one_number_for_all_units_and_zero_at_the_start():
    mlp = SparseMLP(MLPConfig(F, Relu(), shared_bias=True))
    variables = parameters(mlp)
    expected = {"wi": {"kernel": (D, F)}, "wo": {"kernel": (F, D), "bias": (D,)}, "shared_bias": ()}
    assert jax.tree.map(jnp.shape, variables) == {"params": expected}
    fresh = flax.core.meta.unbox(mlp.init(jax.random.key(0), X, Context()))["params"]
    assert float(fresh["shared_bias"]) == 0
    shared = float(variables["params"]["shared_bias"])
    assert shared != 0
    spread = jnp.full(F, shared)
    apart = {"params": variables["params"] | {"wi": variables["params"]["wi"] | {"bias": spread}}}
    np.testing.assert_array_equal(
        mlp.apply(variables, X, Context()), SparseMLP(MLPConfig(F, Relu())).apply(apart, X, Context())
    )


def test_the_gradient_of_a_shared_bias_is_the_sum_of_those_of_the_units():
    shared, apart = (SparseMLP(MLPConfig(F, Gelu(), shared_bias=one)) for one in (True, False))
    p = parameters(shared)["params"]
    rest = {name: p[name] for name in ("wi", "wo")}
    loss = lambda mlp, params: (mlp.apply({"params": params}, X, Context()) ** 2).sum()
    one = jax.grad(lambda b: loss(shared, rest | {"shared_bias": b}))(p["shared_bias"])
    many = jax.grad(lambda b: loss(apart, rest | {"wi": rest["wi"] | {"bias": b}}))(jnp.full(F, p["shared_bias"]))
    assert one.shape == ()
    np.testing.assert_allclose(one, np.asarray(many, np.float64).sum(), rtol=1e-5)


def test_sharing_the_bias_leaves_that_of_the_gate_alone():
    mlp = SparseMLP(MLPConfig(F, Relu(), gated=True, shared_bias=True))
    shapes = jax.tree.map(jnp.shape, parameters(mlp))["params"]
    assert shapes["wi"] == {"kernel": (D, F)}
    assert shapes["wi_gate"] == {"kernel": (D, F), "bias": (F,)}


@pytest.mark.parametrize(
    "settings",
    [
        {"sparsifier": Relu(), "init": "xavier", "gated": True},
        {"sparsifier": Relu(), "init": "torch"},
        {"sparsifier": ClippedRelu(sparsity=0.8, slope=0.7), "init": "edge_of_chaos"},
    ],
    ids=lambda settings: settings["init"],
)
def test_the_scale_is_a_factor_on_the_first_matrix_and_on_nothing_else(settings):
    def fresh(**scale):
        mlp = SparseMLP(MLPConfig(F, **settings | scale))
        return flax.core.meta.unbox(mlp.init(jax.random.key(0), X, Context()))["params"]

    plain, scaled = fresh(), fresh(scale=3.7)
    np.testing.assert_array_equal(scaled["wi"].pop("kernel"), np.float32(3.7) * plain["wi"].pop("kernel"))
    jax.tree.map(np.testing.assert_array_equal, scaled, plain)


def test_torchs_initialisation_is_uniform_within_one_over_the_root_of_the_fan_in():
    """`torch.nn.Linear`: kernel and bias from U(-1 / sqrt(fan_in), 1 / sqrt(fan_in))."""
    d_model, d_ff = 40, 300
    mlp = SparseMLP(MLPConfig(d_ff, Relu(), init="torch"))
    params = flax.core.meta.unbox(mlp.init(jax.random.key(0), jnp.zeros((1, 1, d_model)), Context()))["params"]
    for name, fan_in, biases in (("wi", d_model, d_ff), ("wo", d_ff, d_model)):
        for leaf, n in (("kernel", d_model * d_ff), ("bias", biases)):
            u = np.asarray(params[name][leaf], np.float64).ravel() * fan_in**0.5
            assert u.size == n
            assert np.abs(u).max() <= 1 + 1e-6
            # The largest of n misses 1 by more than 10 / n with probability exp(-10).
            assert np.abs(u).max() > 1 - 10 / n
            # Variance 1/3, its error sqrt((1/5 - 1/9) / n): five times that.
            assert abs((u**2).mean() - 1 / 3) < 5 * (4 / 45 / n) ** 0.5


@pytest.mark.parametrize("features", [None, 2])
def test_as_many_features_come_out_as_are_asked_for_or_else_went_in(features):
    mlp = SparseMLP(MLPConfig(F, Relu()), features=features)
    variables = parameters(mlp)
    assert mlp.apply(variables, X, Context()).shape == (B, L, features or D)
    assert variables["params"]["wo"]["kernel"].shape == (F, features or D)


def test_with_a_sparsifier_on_the_gate_too_the_product_is_what_is_counted():
    mlp = SparseMLP(MLPConfig(F, Relu(), gated=True, gate=SoftThreshold(0.5)))
    variables = parameters(mlp)
    y, stats = recorded(mlp, variables)
    p, x = variables["params"], np.asarray(X, np.float64)
    gate = linear(p["wi_gate"], x)
    h = np.maximum(linear(p["wi"], x), 0) * np.sign(gate) * np.maximum(np.abs(gate) - 0.5, 0)
    np.testing.assert_allclose(y, linear(p["wo"], h), rtol=2e-6, atol=5e-6)
    np.testing.assert_array_equal(stats.fired_F, (h != 0).sum((0, 1)))
    assert 0 < (h != 0).mean() < (linear(p["wi"], x) > 0).mean()


def test_a_sparsifier_on_the_gate_is_settled_and_refused_by_name():
    section = {"d_ff": 8, "sparsifier": {"name": "relu"}, "gated": True}
    assert to_dict(build(MLPConfig, section | {"gate": {"name": "relu"}}))["gate"] == {"name": "relu"}
    assert "gate" not in to_dict(build(MLPConfig, section))  # runs from before it keep their hash
    with pytest.raises(ConfigError, match=r"^config\.gate: an MLP that is not gated has none$"):
        build(MLPConfig, section | {"gated": False, "gate": {"name": "relu"}})
    with pytest.raises(ConfigError, match=r"^config\.gate\.k: 9 is more than the d_ff 8 units there are$"):
        build(MLPConfig, section | {"gate": {"name": "top_k", "k": 9}})
    config = build(MLPConfig, section | {"d_ff": 64, "gate": {"name": "top_k", "k": 8}})
    assert config.reduced(1).gate == TopK(k=4)
