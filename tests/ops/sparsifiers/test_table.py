"""One set of tests that walks the whole table: every entry needs an example."""

import dataclasses
import math
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsity.ops.sparsifiers import SPARSIFIERS
from sparsity.theory.gaussian import quadrature
from tests.ops.sparsifiers.examples import EXAMPLES, Z

# An entry without an example fails every one of these tests with a KeyError of its name.
entries = pytest.mark.parametrize("name", SPARSIFIERS)
variances = pytest.mark.parametrize("q", [0.3, 1.0, 2.5])


def away_from_kinks(z, kinks, distance=1e-3):
    """`z` with the values near a kink moved off it."""
    for kink in kinks:
        z = np.where(np.abs(z - kink) < distance, kink + 3 * distance, z)
    return z


ELEMENTWISE = [name for name, cls in SPARSIFIERS.items() if cls.elementwise]
STRAIGHT = [name for name in ELEMENTWISE if EXAMPLES[name].sparsifier.pieces() is not None]


def test_every_entry_of_the_table_has_an_example_of_its_own_type():
    assert {name: type(e.sparsifier) for name, e in EXAMPLES.items()} == SPARSIFIERS


@entries
def test_the_jax_form_is_the_formula(name):
    e = EXAMPLES[name]
    with jax.enable_x64(True):
        got = e.sparsifier(jnp.asarray(Z))
        assert got.dtype == jnp.float64
        # A few ulp of the special functions; XLA's erf, tanh and expm1 differ from scipy's by that.
        np.testing.assert_allclose(got, e.reference(Z), rtol=1e-13, atol=1e-15)
    z = Z.astype(np.float32)
    got = e.sparsifier(jnp.asarray(z))
    assert got.dtype == jnp.float32
    # Float32: eps 1.2e-7, with |z| < 8 and gelu's (1 + erf) cancelling for negative z.
    np.testing.assert_allclose(got, e.reference(z.astype(np.float64)), rtol=1e-6, atol=5e-7)


@entries
def test_the_numpy_float64_form_is_the_jax_form(name):
    sparsifier = EXAMPLES[name].sparsifier
    if not sparsifier.elementwise:
        with pytest.raises(ValueError, match="no numpy form"):
            sparsifier(Z, np)
        return
    got = sparsifier(Z, np)
    assert isinstance(got, np.ndarray)
    assert got.dtype == np.float64
    with jax.enable_x64(True):
        np.testing.assert_allclose(got, sparsifier(jnp.asarray(Z)), rtol=1e-13, atol=1e-15)


@entries
def test_jit_changes_nothing(name):
    sparsifier, z = EXAMPLES[name].sparsifier, jnp.asarray(Z, jnp.float32)
    plain, compiled = sparsifier(z), jax.jit(sparsifier)(z)
    np.testing.assert_array_equal(plain == 0, compiled == 0)
    # Fusion may contract a multiply and an add: one rounding of float32 saved.
    np.testing.assert_allclose(compiled, plain, rtol=3e-7, atol=3e-7)


@entries
def test_any_leading_shape_gives_the_same_numbers(name):
    sparsifier, z = EXAMPLES[name].sparsifier, jnp.asarray(Z, jnp.float32)
    np.testing.assert_array_equal(sparsifier(z.reshape(2, 2, 4, 24)).reshape(z.shape), sparsifier(z))
    np.testing.assert_array_equal(sparsifier(z[3]), sparsifier(z)[3])


@entries
def test_bfloat16_stays_bfloat16_and_is_the_rounded_formula(name):
    e, z = EXAMPLES[name], jnp.asarray(Z, jnp.bfloat16)
    got = e.sparsifier(z)
    assert got.dtype == jnp.bfloat16
    exact = e.reference(np.asarray(z, np.float64))
    # eps is 2^-8; up to four roundings of numbers of size max(1, |z|) on the way.
    np.testing.assert_array_less(np.abs(np.asarray(got, np.float64) - exact), 2.0**-6 * np.maximum(1, np.abs(z)))
    if e.sparsifier.zeros:
        np.testing.assert_array_equal(np.asarray(got) != 0, exact != 0)


@entries
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_nan_passes_through_and_touches_nothing_else(name, dtype):
    e = EXAMPLES[name]
    z = Z.copy()
    z[1, 2] = z[5, 0] = np.nan
    got = np.asarray(e.sparsifier(jnp.asarray(z, dtype)), np.float32)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(z))
    untouched = [i for i in range(len(z)) if i not in (1, 5)]
    clean = np.asarray(e.sparsifier(jnp.asarray(Z, dtype)), np.float32)
    np.testing.assert_array_equal(got[untouched], clean[untouched])
    if e.sparsifier.elementwise:
        np.testing.assert_array_equal(np.isnan(e.sparsifier(z, np)), np.isnan(z))
        np.testing.assert_array_equal(got[~np.isnan(z)], clean[~np.isnan(z)])


@pytest.mark.parametrize("name", [name for name, cls in SPARSIFIERS.items() if cls.zeros and cls.elementwise])
def test_the_density_of_a_large_sample_is_the_declared_one(name):
    e, q = EXAMPLES[name], 1.7
    expected, moments = e.density(q), e.sparsifier.moments(q)
    assert moments.density == pytest.approx(expected, rel=1e-14)
    n = 400_000
    h = e.sparsifier(jnp.asarray(np.random.default_rng(1).normal(0, q**0.5, n), jnp.float32))
    # Five binomial standard errors.
    assert abs(float(jnp.mean(h != 0)) - expected) < 5 * math.sqrt(expected * (1 - expected) / n)


def test_the_entries_of_straight_pieces_have_closed_forms_and_only_top_k_has_no_moments():
    smooth_ones = {"gelu", "gelu_tanh", "silu", "elu", "sigmoid", "tanh", "relu_squared"}
    smooth_ones |= {"smooth_clipped_relu", "smooth_clipped_soft_threshold"}
    assert set(STRAIGHT) == set(ELEMENTWISE) - smooth_ones
    assert {name for name, e in EXAMPLES.items() if e.sparsifier.moments(1.0) is None} == {"top_k"}
    with pytest.raises(ValueError, match=r"^TopK acts on a whole token"):
        EXAMPLES["top_k"].sparsifier.activation()


@variances
@pytest.mark.parametrize("name", STRAIGHT)
def test_closed_form_moments_equal_quadrature(name, q):
    e = EXAMPLES[name]
    expected = quadrature(e.reference, q, breaks=tuple(e.kinks))
    got = e.sparsifier.moments(q)
    # Quadrature is exact to 1e-12 between kinks; its slope is a central difference, to 1e-9.
    for field in ("density", "mean", "second", "slope"):
        np.testing.assert_allclose(getattr(got, field), getattr(expected, field), rtol=1e-8, atol=1e-9, err_msg=field)


@variances
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_moments_equal_monte_carlo(name, q):
    sparsifier, moments = EXAMPLES[name].sparsifier, EXAMPLES[name].sparsifier.moments(q)
    z = jnp.asarray(np.random.default_rng(2).normal(0, q**0.5, 200_000), jnp.float32)
    h, slope = (np.asarray(x, np.float64) for x in jax.jvp(sparsifier, (z,), (jnp.ones_like(z),)))
    samples = {"density": h != 0, "mean": h, "second": h**2, "slope": slope**2}
    if not sparsifier.zeros:
        del samples["density"]  # float32 rounds the far tail of gelu to 0
    for field, sample in samples.items():
        # Five standard errors; 1e-6 for float32 where the sample does not vary (a density of 1).
        tolerance = 5 * sample.std() / math.sqrt(z.size) + 1e-6
        assert abs(sample.mean() - getattr(moments, field)) < tolerance, field


@entries
def test_the_derivative_equals_central_differences_away_from_kinks(name):
    e, step = EXAMPLES[name], 1e-6
    z = away_from_kinks(Z, e.kinks)
    if not e.sparsifier.elementwise:  # no step may swap the ranks of two units
        assert np.diff(np.sort(z, axis=-1), axis=-1).min() > 10 * step
        assert np.abs(z).min() > 10 * step
    direction = np.random.default_rng(3).normal(size=z.shape)
    with jax.enable_x64(True):
        # In reverse: Top-k's mask has no forward-mode rule. Every Jacobian here is diagonal.
        slope = jax.grad(lambda z: (jnp.asarray(direction) * e.sparsifier(z)).sum())(jnp.asarray(z))
    difference = (e.reference(z + step * direction) - e.reference(z - step * direction)) / (2 * step)
    # Truncation step^2 and rounding 1e-16 |z| / step, with |direction| up to 4.
    np.testing.assert_allclose(slope, difference, rtol=1e-8, atol=3e-9)


KINKS = [(name, kink, slope) for name, e in EXAMPLES.items() for kink, slope in e.kinks.items()]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(("name", "kink", "slope"), KINKS)
def test_the_derivative_at_a_kink_is_that_of_the_flat_side(name, kink, slope, dtype):
    assert jax.grad(EXAMPLES[name].sparsifier)(jnp.asarray(kink, dtype)) == slope


@entries
def test_values_and_derivatives_of_large_pre_activations_are_finite(name):
    sparsifier = EXAMPLES[name].sparsifier
    z = jnp.asarray([-1e4, -100.0, 100.0, 1e4] + 6 * [0.5])
    assert jnp.isfinite(sparsifier(z)).all()
    assert jnp.isfinite(jax.grad(lambda z: sparsifier(z).sum())(z)).all()


IMPOSSIBLE = {
    "theta": (-0.1, -math.inf, math.nan),
    "tau": (-0.1, -math.inf, math.nan),
    "m": (0.0, -1.0, math.nan),
    "width": (0.0, -1.0, math.nan),
    "k": (0, -1),
    "steps": (-1,),
    "recall_target": (0.0, 1.5, math.nan),
    "anneal": (-1,),
}


SETTINGS = [(name, f.name) for name, cls in SPARSIFIERS.items() for f in dataclasses.fields(cls)]
REFUSED = [(name, field, value) for name, field in SETTINGS for value in IMPOSSIBLE.get(field, ())]


@pytest.mark.parametrize(("name", "field", "value"), REFUSED)
def test_an_impossible_setting_is_refused_by_name(name, field, value):
    with pytest.raises(ValueError, match=rf"^{field}: .*got {value}$"):
        dataclasses.replace(EXAMPLES[name].sparsifier, **{field: value})


@entries
def test_every_number_among_the_settings_has_impossible_values_to_refuse(name):
    hints = typing.get_type_hints(SPARSIFIERS[name])
    numbers = {f.name for f in dataclasses.fields(SPARSIFIERS[name]) if hints[f.name] in (int, float)}
    assert numbers <= IMPOSSIBLE.keys()


@entries
def test_an_entry_is_a_hashable_value_so_that_it_can_be_static_under_jit(name):
    sparsifier = EXAMPLES[name].sparsifier
    twin = dataclasses.replace(sparsifier)
    assert twin == sparsifier
    assert hash(twin) == hash(sparsifier)


def test_a_sigmoid_far_below_zero_is_small_and_not_zero():
    assert (np.asarray(SPARSIFIERS["sigmoid"]()(jnp.array([-20.0, -80.0]))) > 0).all()


@pytest.mark.parametrize("name", sorted(set(SPARSIFIERS) - {"top_k"}))
def test_an_elementwise_entry_is_the_same_at_every_width(name):
    sparsifier = EXAMPLES[name].sparsifier
    assert sparsifier.resized(512, 32) is sparsifier


@entries
def test_an_entry_is_the_same_at_all_steps_unless_it_is_annealed(name):
    sparsifier = EXAMPLES[name].sparsifier
    assert sparsifier.at(0) is sparsifier.at(1000) is sparsifier
