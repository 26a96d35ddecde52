import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsity.layers.attention import SelfAttention, _scores
from sparsity.layers.sparsify import Context

B, L, D = 2, 5, 12
X = jnp.asarray(np.random.default_rng(0).normal(size=(B, L, D)), jnp.float32)


def parameters(module):
    """Random parameters of every leaf, biases included (they start at zero)."""
    shapes = flax.core.meta.unbox(jax.eval_shape(module.init, jax.random.key(0), X, Context()))
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda p: jnp.asarray(rng.normal(0, 0.5, p.shape), p.dtype), shapes)


def linear(params, x):
    return x @ np.asarray(params["kernel"], np.float64) + np.asarray(params.get("bias", 0.0), np.float64)


def reference(variables, heads, causal=False):
    """softmax(Q K^T / sqrt(d_head)) V and an output projection, head by head, in numpy float64."""
    p, x = variables["params"], np.asarray(X, np.float64)
    q, k, v = (linear(p[name], x) for name in ("query", "key", "value"))
    size = D // heads
    out = np.empty_like(q)
    for b in range(B):
        for h in range(heads):
            part = (b, slice(None), slice(h * size, (h + 1) * size))
            scores = q[part] @ k[part].T / np.sqrt(size)
            if causal:
                scores[np.triu_indices(L, 1)] = -np.inf
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            out[part] = weights / weights.sum(-1, keepdims=True) @ v[part]
    return linear(p["out"], out)


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("heads", [1, 3, 12])
def test_the_output_is_the_formula(heads, use_bias):
    module = SelfAttention(heads, use_bias=use_bias)
    variables = parameters(module)
    # Scores reach 20, so float32 leaves 2e-6 in an exponent, times values of size 5.
    np.testing.assert_allclose(module.apply(variables, X, Context()), reference(variables, heads), rtol=1e-5, atol=3e-5)


def test_causal_attention_is_the_formula_over_a_token_and_those_before_it():
    module = SelfAttention(3, causal=True)
    variables = parameters(module)
    expected = reference(variables, 3, causal=True)
    np.testing.assert_allclose(module.apply(variables, X, Context()), expected, rtol=1e-5, atol=3e-5)


def test_the_output_of_causal_attention_has_no_slope_in_later_tokens():
    module = SelfAttention(3, causal=True)
    variables = parameters(module)
    outputs = lambda x: module.apply(variables, x[None], Context())[0].sum(-1)
    slope_LxLxD = np.asarray(jax.jacrev(outputs)(X[0]))
    np.testing.assert_array_equal((slope_LxLxD != 0).any(-1), np.tril(np.ones((L, L), bool)))


def test_scores_that_overflow_leave_causal_attention_finite():
    module = SelfAttention(1, causal=True, dtype="bfloat16")
    y = module.apply(parameters(module), 1e4 * X, Context())
    assert np.isfinite(np.asarray(y, np.float32)).all()


def test_the_initialisers_are_those_asked_for():
    constant = jax.nn.initializers.constant
    module = SelfAttention(3, kernel_init=constant(2.0), out_init=constant(3.0))
    params = flax.core.meta.unbox(module.init(jax.random.key(0), X, Context()))["params"]
    kernels = {name: float(layer["kernel"].min()) for name, layer in params.items()}
    assert kernels == {"query": 2, "key": 2, "value": 2, "out": 3}


def test_the_parameters_are_four_square_matrices_split_over_heads():
    boxed = SelfAttention(3).init(jax.random.key(0), X, Context())["params"]
    shapes = jax.tree.map(jnp.shape, flax.core.meta.unbox(boxed))
    assert shapes == {name: {"kernel": (D, D), "bias": (D,)} for name in ("query", "key", "value", "out")}
    names = {layer: tuple(boxed[layer][p].names for p in ("kernel", "bias")) for layer in boxed}
    into, out = (("embed", "heads"), ("heads",)), (("heads", "embed"), ("embed",))
    assert names == {"query": into, "key": into, "value": into, "out": out}


def test_a_permutation_of_the_tokens_permutes_the_output():
    module, order = SelfAttention(3), np.array([3, 0, 4, 1, 2])
    variables = parameters(module)
    y = module.apply(variables, X, Context())
    np.testing.assert_allclose(module.apply(variables, X[:, order], Context()), y[:, order], rtol=1e-5, atol=1e-5)


def test_examples_do_not_see_each_other():
    module = SelfAttention(3)
    variables = parameters(module)
    slope = jax.grad(lambda x: module.apply(variables, x, Context())[0].sum())(X)
    assert (np.abs(slope[0]) > 0).all()
    np.testing.assert_array_equal(slope[1], 0)


def test_equal_keys_average_the_values():
    module = SelfAttention(3)
    variables = parameters(module)
    variables["params"]["key"] = jax.tree.map(jnp.zeros_like, variables["params"]["key"])
    p = variables["params"]
    mean = linear(p["value"], np.asarray(X, np.float64)).mean(1, keepdims=True)
    expected = np.broadcast_to(linear(p["out"], mean), X.shape)
    np.testing.assert_allclose(module.apply(variables, X, Context()), expected, rtol=1e-5, atol=1e-5)


def test_dropout_acts_in_training_only():
    module = SelfAttention(3, dropout=0.5)
    variables = parameters(module)
    np.testing.assert_array_equal(
        module.apply(variables, X, Context()), SelfAttention(3).apply(variables, X, Context())
    )
    train = lambda seed: module.apply(variables, X, Context(train=True), rngs={"dropout": jax.random.key(seed)})
    np.testing.assert_array_equal(train(0), train(0))
    assert not np.allclose(train(0), train(1))


def test_bfloat16_keeps_scores_and_softmax_in_float32():
    module = SelfAttention(3, dtype="bfloat16")
    variables = parameters(module)
    y = module.apply(variables, X, Context())
    assert y.dtype == jnp.bfloat16
    lowered = jax.jit(lambda x: module.apply(variables, x, Context())).lower(X).as_text()
    exponentials = [line for line in lowered.splitlines() if "stablehlo.exponential" in line]
    assert len(exponentials) == 1
    assert f"tensor<{B}x3x{L}x{L}xf32>" in exponentials[0]


def test_training_multiplies_queries_and_keys_as_it_always_has_and_one_query_heads_first():
    """Another order of axes rounds otherwise, and what studies have recorded would not be repeated to the bit."""
    k = jnp.ones((2, 4, 5, 3))
    plain = lambda q, k: jnp.einsum("bqhd,bhkd->bhqk", q, k, preferred_element_type=jnp.float32)
    first = lambda q, k: plain_first(q.swapaxes(1, 2), k)
    plain_first = lambda q, k: jnp.einsum("bhqd,bhkd->bhqk", q, k, preferred_element_type=jnp.float32)
    program = lambda f, length: str(jax.make_jaxpr(f)(jnp.ones((2, length, 4, 3)), k))
    assert program(_scores, 2) == program(plain, 2) != program(first, 2)
    assert program(_scores, 1) == program(first, 1) != program(plain, 1)
