import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsity.config import ConfigError, build, to_dict
from sparsity.ops.sparsifiers import SPARSIFIERS, TopK
from tests.ops.sparsifiers.examples import EXAMPLES, Z, top_k


def test_the_density_of_top_k_is_k_or_the_number_of_positive_units():
    z = Z.copy()
    z[0] = -1.0
    z[1, 3:] = -1.0
    z[1, :3] = 1.0
    got = np.asarray(EXAMPLES["top_k"].sparsifier(jnp.asarray(z)) != 0).sum(-1)
    np.testing.assert_array_equal(got, np.minimum(5, (z > 0).sum(-1)))
    assert got[:2].tolist() == [0, 3]


def test_top_k_over_gelu_ranks_the_values_of_gelu():
    z, gelu = Z[:, :8], EXAMPLES["gelu"].reference
    with jax.enable_x64(True):
        got = SPARSIFIERS["top_k"](k=6, act="gelu")(jnp.asarray(z))
    # With 6 of 8 kept, negative values of gelu, which falls and rises there, are ranked too.
    assert (np.asarray(got) < 0).any()
    np.testing.assert_allclose(got, top_k(gelu, 6)(z), rtol=1e-13, atol=1e-15)


def test_top_k_gives_no_derivative_to_the_units_it_drops_nor_at_the_kink_of_relu():
    z = jnp.asarray([3.0, 1.0, 2.0, 1.0, -1.0, 0.0])
    grad = jax.grad(lambda z: (jnp.arange(1.0, 7.0) * SPARSIFIERS["top_k"](k=3)(z)).sum())
    np.testing.assert_array_equal(grad(z), [1, 2, 3, 0, 0, 0])  # of the tie at 1.0, the lower index
    np.testing.assert_array_equal(grad(-z), [0, 0, 0, 0, 5, 0])  # one positive unit, and relu'(0) = 0


def test_top_k_refuses_more_units_than_the_layer_has():
    SPARSIFIERS["top_k"](k=4).check_width(4)
    with pytest.raises(ValueError, match=r"^k: 5 is more than the d_ff 4 units there are$"):
        SPARSIFIERS["top_k"](k=5).check_width(4)


def test_a_top_k_over_an_unknown_activation_is_refused_when_built():
    with pytest.raises(ConfigError, match='act: unknown choice "glu"; did you mean "gelu"'):
        build(SPARSIFIERS["top_k"], {"k": 1, "act": "glu"})


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (TopK(k=64), 4),  # of 512: one in eight
        (TopK(k=1, act="gelu"), 1),  # never none
        (TopK(k=512, method="statistical"), 32),
        (TopK(k=128, method="group"), 8),
        (TopK(k=256 - 64, method="group"), 8),  # 12 in proportion: the largest divisor of 32 below it
    ],
    ids=str,
)
def test_a_resized_top_k_keeps_its_share(entry, expected):
    resized = entry.resized(512, 32)
    assert resized == dataclasses.replace(entry, k=expected)
    resized.check_width(32)


def annealed(units, k, anneal, step):
    """The authors' code, in exact whole numbers: int(units - (units - k) step / anneal), not below k."""
    return max(units - -(-(units - k) * step // anneal), k)


def test_annealing_top_k_by_hand():
    """10 units down to 3 in 4 steps: 10, 8.25, 6.5, 4.75 and 3, rounded down."""
    entry = TopK(k=3, anneal=4)
    assert [int(entry.kept(step, 10)) for step in (0, 1, 2, 3, 4, 5, 10**6)] == [10, 8, 6, 4, 3, 3, 3]
    z = jnp.arange(1.0, 11.0)
    for step, kept in ((0, 10), (2, 6), (4, 3), (9, 3)):
        np.testing.assert_array_equal(entry.at(step)(z), jnp.where(z > 10 - kept, z, 0))
    np.testing.assert_array_equal(entry(z), jnp.where(z > 7, z, 0))  # without a step, as after all of them


@pytest.mark.parametrize(
    ("units", "k", "anneal"),
    [(10, 3, 7), (1000, 17, 997), (10_000, 10, 49_000), (10_000, 10, 1_000_000), (65_536, 1, 10**9), (5, 5, 3)],
)
def test_annealing_is_exact_whatever_the_sizes(units, k, anneal):
    """Where the line passes through whole numbers, float32 would round some of them down by one."""
    steps = np.unique(np.linspace(0, 1.1 * anneal, 3000).astype(int))
    whole = np.arange(units - k + 1)[:: max((units - k) // 3000, 1)] * anneal // max(units - k, 1)
    steps = np.unique(np.concatenate([steps, whole, whole + 1, anneal + np.arange(-2, 3)]).clip(0))
    got = jax.jit(lambda step: TopK(k=k, anneal=anneal).kept(step, units))(jnp.asarray(steps, jnp.int32))
    np.testing.assert_array_equal(got, [annealed(units, k, anneal, int(step)) for step in steps])
    assert got.min() == k
    assert got.max() == units


@pytest.mark.parametrize("method", ["exact", "statistical"])
@pytest.mark.parametrize("act", ["relu", "gelu"])
def test_annealed_top_k_and_its_gradient_are_those_of_the_units_kept_at_the_step(act, method):
    entry, z = TopK(k=4, act=act, method=method, anneal=10), jnp.asarray(Z, jnp.float32)
    weight = jnp.asarray(np.random.default_rng(4).normal(size=z.shape), jnp.float32)

    @jax.jit
    def run(step):  # k is traced
        apply = lambda z: (weight * entry.at(step)(z)).sum()
        return entry.at(step)(z), jax.grad(apply)(z)

    for step in (0, 3, 10, 11):
        fixed = TopK(k=annealed(24, 4, 10, step), act=act, method=method)
        expected = jax.jit(lambda z, f=fixed: (f(z), jax.grad(lambda z: (weight * f(z)).sum())(z)))(z)
        for got, want, rounding in zip(run(step), expected, (3e-7, 1e-6), strict=True):
            np.testing.assert_allclose(got, want, rtol=rounding, atol=rounding)
    np.testing.assert_allclose(run(0)[0], SPARSIFIERS[act]()(z), rtol=3e-7, atol=3e-7)  # all of them


@pytest.mark.parametrize("method", ["approx", "group"])
def test_annealing_is_refused_where_k_cannot_change(method):
    TopK(k=4, method=method)
    with pytest.raises(ConfigError, match=rf"^config\.anneal: method {method} needs its k when compiling$"):
        build(TopK, {"k": 4, "method": method, "anneal": 10})


def test_without_annealing_nothing_depends_on_the_step_and_no_hash_changes():
    entry = TopK(k=5)
    assert entry.at(3) is entry
    assert int(entry.kept(0, 24)) == 5
    assert to_dict(entry) == {"k": 5, "act": "relu", "method": "exact", "steps": entry.steps, "recall_target": 0.95}
    assert to_dict(TopK(k=5, anneal=7)) == to_dict(entry) | {"anneal": 7}
    assert build(TopK, to_dict(TopK(k=5, anneal=7))) == TopK(k=5, anneal=7)


def test_a_resized_top_k_keeps_its_annealing():
    assert TopK(k=8, anneal=100).resized(64, 16) == TopK(k=2, anneal=100)
