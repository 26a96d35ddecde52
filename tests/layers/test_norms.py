import jax
import jax.numpy as jnp
import numpy as np

from sparsity.layers.norms import batch_norm, layer_norm

X = np.random.default_rng(0).normal(3, 2, (2, 3, 8)).astype(np.float32)


def reference(x, scale=1.0, bias=0.0):
    x = x.astype(np.float64)
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * scale + bias


def test_the_output_is_the_formula_over_the_last_axis():
    rng = np.random.default_rng(1)
    scale, bias = rng.normal(size=8).astype(np.float32), rng.normal(size=8).astype(np.float32)
    y = layer_norm("norm").apply({"params": {"scale": scale, "bias": bias}}, X)
    # Float32 means of numbers near 3: eps 1.2e-7 times 3, a few times over.
    np.testing.assert_allclose(y, reference(X, scale, bias), rtol=3e-6, atol=3e-6)


def test_the_epsilon_of_vit_shows_where_the_variance_is_small():
    x = np.array([[1e-3, -1e-3] * 4], np.float32)  # variance 1e-6: halved by eps 1e-6
    y = layer_norm("norm").apply({"params": {"scale": np.ones(8), "bias": np.zeros(8)}}, x)
    np.testing.assert_allclose(np.abs(y), np.sqrt(0.5), rtol=1e-6)


def test_another_epsilon_can_be_asked_for():
    x = np.array([[1e-3, -1e-3] * 4], np.float32)  # variance 1e-6, one of 4 parts beside 3e-6
    y = layer_norm("norm", epsilon=3e-6).apply({"params": {"scale": np.ones(8), "bias": np.zeros(8)}}, x)
    np.testing.assert_allclose(np.abs(y), 0.5, rtol=1e-6)


def test_a_fresh_layer_only_normalises_and_names_its_axis():
    y, variables = layer_norm("norm").init_with_output(jax.random.key(0), X)
    np.testing.assert_allclose(y, reference(X), rtol=3e-6, atol=3e-6)
    assert {name: p.names for name, p in variables["params"].items()} == {"scale": ("embed",), "bias": ("embed",)}


def test_computing_in_bfloat16_keeps_float32_parameters():
    y, variables = layer_norm("norm", "bfloat16").init_with_output(jax.random.key(0), X)
    assert y.dtype == jnp.bfloat16
    assert {p.dtype for p in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    # One rounding to eps 2^-8 of values up to 3.
    np.testing.assert_allclose(np.asarray(y, np.float64), reference(X), atol=3 * 2.0**-8)


def test_batch_norm_in_training_normalises_each_channel_over_the_batch_and_moves_its_running_statistics():
    rng = np.random.default_rng(1)
    params = {name: rng.normal(size=8).astype(np.float32) for name in ("scale", "bias")}
    running = {"mean": np.full(8, 2, np.float32), "var": np.full(8, 3, np.float32)}
    variables = {"params": params, "batch_stats": running}
    y, moved = batch_norm("norm", train=True).apply(variables, X, mutable=["batch_stats"])
    x = X.astype(np.float64)
    mean, variance = x.mean((0, 1)), x.var((0, 1))
    expected = (x - mean) / np.sqrt(variance + 1e-5) * params["scale"] + params["bias"]
    # The variance is a difference of squares: six numbers near 3.
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(moved["batch_stats"]["mean"], 0.9 * 2 + 0.1 * mean, rtol=1e-6)
    np.testing.assert_allclose(moved["batch_stats"]["var"], 0.9 * 3 + 0.1 * variance, rtol=1e-5)


def test_batch_norm_in_evaluation_goes_by_the_running_statistics():
    running = {"mean": np.full(8, 2, np.float32), "var": np.full(8, 3, np.float32)}
    params = {"scale": np.ones(8, np.float32), "bias": np.zeros(8, np.float32)}
    y = batch_norm("norm", train=False).apply({"params": params, "batch_stats": running}, X)
    np.testing.assert_allclose(y, (X - 2) / np.sqrt(3 + 1e-5), rtol=1e-5, atol=1e-6)


def test_a_fresh_batch_norm_names_its_axis():
    variables = batch_norm("norm", train=True).init(jax.random.key(0), X)
    assert {name: p.names for name, p in variables["params"].items()} == {"scale": ("mlp",), "bias": ("mlp",)}
