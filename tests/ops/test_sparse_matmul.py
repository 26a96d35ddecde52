"""The gathered product against NumPy in float64, where it falls back, and what it compiles to."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from sparsity.ops import sparse_matmul
from sparsity.ops.sparse_matmul import active_units, gathered_matmul, rows_dot, weighted_rows, whole

F, D = 131, 40  # no multiple of the rows of a step
product = jax.jit(gathered_matmul, static_argnums=2)


def arrays(active, lead=(), seed=0):
    """`h` [*lead, F] whose rows are nonzero in `active` units between them, each in two units of three, and W."""
    rng = np.random.default_rng(seed)
    rows = int(np.prod(lead))
    h = np.zeros((rows, F))
    units = rng.choice(F, active, replace=False)
    h[:, units] = rng.normal(size=(rows, active)) * (rng.random((rows, active)) < (1 if rows == 1 else 2 / 3))
    h[np.arange(active) % rows, units] = 1.5
    assert (h != 0).any(0).sum() == active
    return jnp.asarray(h.reshape(*lead, F), jnp.float32), jnp.asarray(rng.normal(size=(F, D)), jnp.float32)


def exact(h, w):
    return np.asarray(h, np.float64) @ np.asarray(w, np.float64)


@pytest.mark.parametrize("lead", [(), (1,), (8,), (2, 3)], ids=str)
@pytest.mark.parametrize("active", [0, 1, 19, 20, 21, F])
def test_it_is_the_product_below_at_and_above_the_capacity(active, lead):
    h, w = arrays(active, lead)
    y = product(h, w, 20)
    assert y.shape == (*lead, D)
    np.testing.assert_allclose(y, exact(h, w), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(product(h, w, F), exact(h, w), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("active", [0, 1, 20])
def test_other_backends_gather_and_multiply(active):
    h, w = arrays(active, (3,))
    y = jax.jit(sparse_matmul._by_take, static_argnums=3)(h, w, jnp.any(h != 0, 0), 20)
    np.testing.assert_allclose(y, exact(h, w), rtol=1e-5, atol=1e-5)


def test_indices_are_those_of_the_active_units_then_harmless_ones():
    active = np.random.default_rng(0).random(F) < 0.2
    index, count = jax.jit(sparse_matmul._indices, static_argnums=1)(jnp.asarray(active), 60)
    assert count == active.sum()
    np.testing.assert_array_equal(index[:count], np.flatnonzero(active))
    assert not np.append(active, False)[index[count:]].any()


def test_rows_that_meet_only_zeros_are_not_read_unless_there_are_too_many():
    h, w = arrays(20)
    unused = np.flatnonzero(np.asarray(h) == 0)[5]
    broken = w.at[unused].set(jnp.nan)
    np.testing.assert_allclose(product(h, broken, 20), exact(h, w), rtol=1e-5, atol=1e-5)
    assert np.isnan(product(h, broken, 19)).all()  # one unit too many: the dense product


@pytest.mark.parametrize("capacity", [20, 1])
def test_nan_is_not_sparse_and_stays_in_its_row(capacity):
    h, w = arrays(10, (4,))
    h = h.at[2, 7].set(jnp.nan)
    y = np.asarray(product(h, w, capacity))
    assert np.isnan(y[2]).all()
    np.testing.assert_allclose(np.delete(y, 2, 0), exact(np.delete(h, 2, 0), w), rtol=1e-5, atol=1e-5)


def test_bfloat16_sums_in_float32():
    h, w = (x.astype(jnp.bfloat16) for x in arrays(100, (2,)))
    y = product(h, w, 100)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(y, np.float64), exact(h, w), rtol=2**-8, atol=1e-5)


def test_float64():
    with jax.enable_x64(True):
        h, w = (jnp.asarray(np.asarray(x, np.float64)) for x in arrays(20, (2,)))
        np.testing.assert_allclose(gathered_matmul(h, w, 20), exact(h, w), rtol=1e-13, atol=1e-13)


def test_vmap_is_right_too():
    h, w = arrays(30, (5,))
    y = jax.jit(jax.vmap(lambda h: gathered_matmul(h, w, 20)))(h)
    np.testing.assert_allclose(y, exact(h, w), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("capacity", [20, 10])
def test_a_sharded_batch_is_right_too(capacity):
    mesh = jax.make_mesh((4, 2), ("data", "model"), (AxisType.Auto,) * 2)
    h, w = arrays(20, (8,))
    with jax.set_mesh(mesh):
        placed = jax.device_put(h, NamedSharding(mesh, P("data"))), jax.device_put(w, NamedSharding(mesh, P()))
        np.testing.assert_allclose(product(*placed, capacity), exact(h, w), rtol=1e-5, atol=1e-5)


def test_there_is_no_gradient():
    h, w = arrays(20)
    with pytest.raises(ValueError, match="Reverse-mode differentiation does not work"):
        jax.grad(lambda h: gathered_matmul(h, w, 20).sum())(h)


@pytest.mark.parametrize(
    ("shape_h", "shape_w", "capacity", "match"),
    [
        ((4,), (5, 2), 1, r"h \[..., F\] and w \[F, D\] are needed, got shapes \(4,\) and \(5, 2\)"),
        ((), (5, 2), 1, "got shapes"),
        ((2, 4), (3, 4, 2), 1, "got shapes"),
        ((4,), (4, 2), 5, "capacity: must be a whole number in 1..4, the units of h, got 5"),
        ((4,), (4, 2), 0, "got 0"),
        ((4,), (4, 2), 1.5, "got 1.5"),
    ],
)
def test_refuses_in_one_line(shape_h, shape_w, capacity, match):
    with pytest.raises(ValueError, match=match) as error:
        gathered_matmul(jnp.ones(shape_h), jnp.ones(shape_w), capacity)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("batch", [1, 8])
def test_nothing_of_the_size_of_w_is_copied_and_nothing_is_sorted(batch, as_users):
    h, w = jnp.ones((batch, 256)), jnp.ones((256, 384))
    text = product.lower(h, w, 64).compile(as_users).as_text()
    assert re.search(r"f32\[256,384\]\S* parameter\(", text)  # the shape is written as expected
    made = re.findall(r"= f32\[(?:256,384|384,256|64,384|68,384)\]\S* (?!parameter|get-tuple-element)(\S+)\(", text)
    assert made == []
    assert " sort(" not in text


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_accelerators_get_a_gather_and_no_sort(platform):
    text = product.trace(jnp.ones((2, 256)), jnp.ones((256, 384)), 64).lower(lowering_platforms=(platform,)).as_text()
    assert re.search(r"stablehlo.gather.*tensor<64x384xf32>", text)
    assert not re.search(r"\b(stablehlo|chlo)\.(sort|top_k|while)", text)


def test_whole_products_of_float32_are_rounded_to_fewer_bits_on_no_device():
    eqns = jax.make_jaxpr(whole)(jnp.ones((1, 3)), jnp.ones((2, 3))).eqns
    (dot,) = (eqn for eqn in eqns if eqn.primitive.name == "dot_general")
    assert set(dot.params["precision"]) == {jax.lax.Precision.HIGHEST}


@pytest.mark.parametrize("tokens", [1, 3, 12])
def test_rows_of_each_tokens_own(tokens):
    rng = np.random.default_rng(0)
    x, w = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((tokens, D), (F, D)))
    index = jnp.asarray(np.stack([rng.choice(F, 9, replace=False) for _ in range(tokens)]), jnp.int32)
    h = jnp.asarray(rng.normal(size=(tokens, 9)), jnp.float32)
    z, y = jax.jit(lambda: (rows_dot(x, w, index), weighted_rows(h, index, w)))()
    rows = np.asarray(w, np.float64)[np.asarray(index)]
    np.testing.assert_allclose(z, np.einsum("td,tkd->tk", x, rows), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(y, np.einsum("tk,tkd->td", h, rows), rtol=1e-5, atol=1e-5)


def test_active_units_come_first_and_the_rest_is_harmless():
    h, _ = arrays(12, (3,))
    active = np.flatnonzero((np.asarray(h) != 0).any(0))
    for capacity in (5, 12, 20):
        index = np.asarray(jax.jit(active_units, static_argnums=1)(h, capacity))
        assert index.shape == (capacity,)
        np.testing.assert_array_equal(index[:12], active[:capacity])
        assert not set(index[12:]) & set(active)
