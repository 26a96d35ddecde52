"""One set of tests that walks the whole table: every entry needs an example here."""

import dataclasses
import json
import math
import typing
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf, expit, ndtr

from sparsity.config import ConfigError, build, to_dict
from sparsity.ops.sparsifiers import SPARSIFIERS, Sparsifier, TopK
from sparsity.theory.edge_of_chaos import BifurcationWarning
from sparsity.theory.gaussian import quadrature

# All settings are multiples of 1/8, exact in bfloat16, and so is z - tau for z below 2.
TAU, M, W = 0.375, 1.25, 0.125


def top_k(act, k):
    """Row by row: act, then all but the k largest set to zero; ties to the lower index."""

    def reference(z):
        h = act(z)
        out = np.zeros_like(h)
        for row in np.ndindex(h.shape[:-1]):
            keep = np.argsort(-h[row], kind="stable")[:k]
            out[(*row, keep)] = h[(*row, keep)]
        return out

    return reference


def relu(z):
    return np.maximum(z, 0)


def smooth(z):
    """The mean of CReLU over [z - W, z + W]: the difference of its antiderivative there."""
    z = np.minimum(z, TAU + M + W)  # it is m from there on, and large squares would cancel
    integral = lambda z: (relu(z - TAU) ** 2 - relu(z - TAU - M) ** 2) / 2
    return (integral(z + W) - integral(z - W)) / (2 * W)


@dataclasses.dataclass(frozen=True)
class Example:
    """An entry's instance and what mathematics says of it.

    sparsifier: the instance; reference: its formula in numpy float64; kinks: where it is not
    differentiable, and the derivative it must have there; density: P(phi(z) != 0), z ~ N(0, q).
    """

    sparsifier: Sparsifier
    reference: Callable
    kinks: dict[float, float] = dataclasses.field(default_factory=dict)
    density: Callable | None = None


def example(name, reference, kinks=(), density=None, **settings):
    return Example(SPARSIFIERS[name](**settings), reference, dict.fromkeys(kinks, 0.0), density)


EXAMPLES = {
    "relu": example("relu", relu, (0.0,), lambda q: 0.5),
    "shifted_relu": example("shifted_relu", lambda z: relu(z - TAU), (TAU,), lambda q: ndtr(-TAU / q**0.5), tau=TAU),
    "soft_threshold": example(
        "soft_threshold",
        lambda z: np.sign(z) * relu(np.abs(z) - TAU),
        (-TAU, TAU),
        lambda q: 2 * ndtr(-TAU / q**0.5),
        tau=TAU,
    ),
    "clipped_relu": example(
        "clipped_relu",
        lambda z: np.minimum(relu(z - TAU), M),
        (TAU, TAU + M),
        lambda q: ndtr(-TAU / q**0.5),
        tau=TAU,
        m=M,
    ),
    "clipped_soft_threshold": example(
        "clipped_soft_threshold",
        lambda z: np.sign(z) * np.minimum(relu(np.abs(z) - TAU), M),
        (-TAU - M, -TAU, TAU, TAU + M),
        lambda q: 2 * ndtr(-TAU / q**0.5),
        tau=TAU,
        m=M,
    ),
    "smooth_clipped_relu": example(
        "smooth_clipped_relu", smooth, (), lambda q: ndtr(-(TAU - W) / q**0.5), width=W, tau=TAU, m=M
    ),
    "smooth_clipped_soft_threshold": example(
        "smooth_clipped_soft_threshold",
        lambda z: np.sign(z) * smooth(np.abs(z)),
        (),
        lambda q: 2 * ndtr(-(TAU - W) / q**0.5),
        width=W,
        tau=TAU,
        m=M,
    ),
    "top_k": example("top_k", top_k(relu, 5), k=5),
    "gelu": example("gelu", lambda z: z * (1 + erf(z / math.sqrt(2))) / 2),
    "gelu_tanh": example("gelu_tanh", lambda z: z * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3))) / 2),
    "elu": example("elu", lambda z: np.where(z > 0, z, np.expm1(np.minimum(z, 0)))),
    "sigmoid": example("sigmoid", expit),
    "tanh": example("tanh", np.tanh),
    "sat": example("sat", lambda z: np.sign(z) * np.minimum(np.abs(z), 0.5), (-0.5, 0.5), lambda q: 1.0),
    "reflected_relu": example("reflected_relu", lambda z: relu(-z), (0.0,), lambda q: 0.5),
}

# An entry without an example fails every one of these tests with a KeyError of its name.
entries = pytest.mark.parametrize("name", SPARSIFIERS)
variances = pytest.mark.parametrize("q", [0.3, 1.0, 2.5])

Z = np.random.default_rng(0).normal(0, 1.5, (16, 24))


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


def test_the_entries_of_straight_pieces_have_closed_forms_and_only_top_k_has_no_moments():
    smooth_ones = {"gelu", "gelu_tanh", "elu", "sigmoid", "tanh"}
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


def test_top_k_gives_no_derivative_to_the_units_it_drops_nor_at_the_kink_of_relu():
    z = jnp.asarray([3.0, 1.0, 2.0, 1.0, -1.0, 0.0])
    grad = jax.grad(lambda z: (jnp.arange(1.0, 7.0) * SPARSIFIERS["top_k"](k=3)(z)).sum())
    np.testing.assert_array_equal(grad(z), [1, 2, 3, 0, 0, 0])  # of the tie at 1.0, the lower index
    np.testing.assert_array_equal(grad(-z), [0, 0, 0, 0, 5, 0])  # one positive unit, and relu'(0) = 0


@entries
def test_values_and_derivatives_of_large_pre_activations_are_finite(name):
    sparsifier = EXAMPLES[name].sparsifier
    z = jnp.asarray([-1e4, -100.0, 100.0, 1e4] + 6 * [0.5])
    assert jnp.isfinite(sparsifier(z)).all()
    assert jnp.isfinite(jax.grad(lambda z: sparsifier(z).sum())(z)).all()


IMPOSSIBLE = {
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


TARGETS = {
    "shifted_relu": {"sparsity": 0.7},
    "soft_threshold": {"sparsity": 0.7},
    "clipped_relu": {"sparsity": 0.7, "slope": 0.5},
    "clipped_soft_threshold": {"sparsity": 0.7, "slope": 0.5},
    "smooth_clipped_relu": {"sparsity": 0.7, "slope": 0.5, "width": 0.2},
    "smooth_clipped_soft_threshold": {"sparsity": 0.7, "slope": 0.5, "width": 0.2},
}
targeted = pytest.mark.parametrize("name", TARGETS)


def test_every_entry_that_takes_a_sparsity_is_among_the_targets():
    assert set(TARGETS) == {
        n for n, cls in SPARSIFIERS.items() if "sparsity" in {f.name for f in dataclasses.fields(cls)}
    }


@targeted
@pytest.mark.parametrize("q", [1.0, 4.0])
def test_targets_are_met(name, q):
    """The density is 1 - sparsity, and V'(q) = E[phi^2 He_2] / (2 q E phi'^2) is the slope asked for."""
    sparsifier = build(SPARSIFIERS[name], TARGETS[name] | {"q": q})
    assert sparsifier.moments(q).density == pytest.approx(0.3, abs=1e-9)  # tau has ten decimals
    activation = sparsifier.activation()
    slope = float(activation.power(q, 2, hermite=2) / (2 * q * activation.slope_power(q, 2)))
    # The slope of a smooth entry is a central difference, good to 1e-9.
    assert slope == pytest.approx(TARGETS[name].get("slope", 1.0), abs=1e-8)


@targeted
def test_a_resolved_entry_survives_being_written_out_and_read_back(name):
    sparsifier = build(SPARSIFIERS[name], TARGETS[name])
    written = json.loads(json.dumps(to_dict(sparsifier)))
    assert written["q"] == 1.0
    assert isinstance(written["tau"], float)
    assert build(SPARSIFIERS[name], written) == sparsifier


@targeted
def test_direct_settings_that_contradict_the_targets_are_refused(name):
    with pytest.raises(ValueError, match=r"^tau: 0.1 is not the .* that sparsity.* and q ask for; give tau"):
        SPARSIFIERS[name](**TARGETS[name], tau=0.1)


MISTAKES = [
    ("clipped_relu", {}, "config.tau: missing; give tau and m, or sparsity and slope"),
    ("clipped_relu", {"tau": 1.0}, "config.m: missing; give tau and m, or sparsity and slope"),
    ("clipped_relu", {"sparsity": 0.8}, "config.slope: missing; give tau and m, or sparsity and slope"),
    ("clipped_relu", {"slope": 0.8}, "config.sparsity: missing; give tau and m, or sparsity and slope"),
    ("clipped_relu", {"tau": 1.0, "m": 1.0, "q": 2.0}, "config.q: belongs to sparsity and slope; tau is given"),
    (
        "clipped_relu",
        {"sparsity": 0.4, "slope": 0.5},
        "config.sparsity: a one-sided threshold tau >= 0 reaches [0.5, 1)",
    ),
    (
        "clipped_relu",
        {"sparsity": 0.8, "slope": 1.0},
        "config.slope: V'(q*) of a clipped activation is in (0, 1), got 1.0",
    ),
    ("clipped_relu", {"sparsity": 0.8, "slope": 0.5, "q": 0.0}, "config.q: a variance must be positive, got 0.0"),
    ("shifted_relu", {}, "config.tau: missing; give tau, or sparsity"),
    ("shifted_relu", {"sparsity": 0.3}, "config.sparsity: a one-sided threshold tau >= 0 reaches [0.5, 1), got 0.3"),
    ("soft_threshold", {"sparsity": -0.1}, "config.sparsity: a two-sided threshold tau >= 0 reaches [0, 1), got -0.1"),
    ("clipped_soft_threshold", {"sparsity": 1.0, "slope": 0.5}, "config.sparsity: a two-sided threshold"),
    (
        "smooth_clipped_relu",
        {"width": 0.3, "tau": 1.0, "m": 0.5},
        "config.width: must be at most m / 2 = 0.25, got 0.3",
    ),
    ("smooth_clipped_relu", {"width": 1.0, "sparsity": 0.8, "slope": 0.1}, "config.slope: V'(q*) in (1.411, 1.456"),
    ("smooth_clipped_soft_threshold", {"width": 0.3, "tau": 0.2, "m": 1.0}, "config.width: must be at most tau = 0.2"),
]


@pytest.mark.parametrize(("name", "section", "message"), MISTAKES, ids=[m for _, _, m in MISTAKES])
def test_a_mistake_in_the_settings_is_refused_in_one_line_with_the_feasible_range(name, section, message):
    with pytest.raises(ConfigError) as caught:
        build(SPARSIFIERS[name], section)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_a_slope_above_the_bifurcation_warns_with_all_fixed_points_and_proceeds():
    with pytest.warns(BifurcationWarning, match=r"q = 1 \(stable.*q = 1.399 \(unstable.*q = 3.474 \(stable"):
        sparsifier = SPARSIFIERS["clipped_soft_threshold"](sparsity=0.8, slope=0.9)
    assert (round(sparsifier.tau, 2), round(sparsifier.m, 2)) == (1.28, 1.61)


def test_a_smooth_entry_has_a_continuous_derivative_and_tends_to_the_kinked_one():
    z = jnp.linspace(-3, 3, 20_001)
    for smoothed, kinked in (("smooth_clipped_relu", "clipped_relu"), ("smooth_clipped_soft_threshold",) * 2):
        sparsifier = EXAMPLES[smoothed].sparsifier
        slopes = jax.vmap(jax.grad(sparsifier))(z)
        # phi'' is at most 1 / (2 W), and float32 adds some 1e-6.
        assert float(jnp.abs(jnp.diff(slopes)).max()) < 3e-4 / (2 * W) * 1.01 + 1e-5
        if kinked != smoothed:
            gap = dataclasses.replace(sparsifier, width=1e-3)(z) - EXAMPLES[kinked].sparsifier(z)
            assert float(jnp.abs(gap).max()) < 1e-3 / 4 + 1e-6  # largest at the kinks: width / 4


def test_a_threshold_of_zero_is_allowed_and_is_relu_or_the_identity():
    z = jnp.asarray(Z)
    np.testing.assert_array_equal(SPARSIFIERS["shifted_relu"](tau=0.0)(z), SPARSIFIERS["relu"]()(z))
    np.testing.assert_array_equal(SPARSIFIERS["soft_threshold"](tau=0.0)(z), z)


def test_top_k_refuses_more_units_than_the_layer_has():
    SPARSIFIERS["top_k"](k=4).check_width(4)
    with pytest.raises(ValueError, match=r"^k: 5 is more than the d_ff 4 units there are$"):
        SPARSIFIERS["top_k"](k=5).check_width(4)


@entries
def test_an_entry_is_a_hashable_value_so_that_it_can_be_static_under_jit(name):
    sparsifier = EXAMPLES[name].sparsifier
    twin = dataclasses.replace(sparsifier)
    assert twin == sparsifier
    assert hash(twin) == hash(sparsifier)


def test_a_top_k_over_an_unknown_activation_is_refused_when_built():
    with pytest.raises(ConfigError, match='act: unknown choice "glu"; did you mean "gelu"'):
        build(SPARSIFIERS["top_k"], {"k": 1, "act": "glu"})


def test_a_sigmoid_far_below_zero_is_small_and_not_zero():
    assert (np.asarray(SPARSIFIERS["sigmoid"]()(jnp.array([-20.0, -80.0]))) > 0).all()


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


@pytest.mark.parametrize("name", sorted(set(SPARSIFIERS) - {"top_k"}))
def test_an_elementwise_entry_is_the_same_at_every_width(name):
    sparsifier = EXAMPLES[name].sparsifier
    assert sparsifier.resized(512, 32) is sparsifier


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
        h, slope = run(step)
        np.testing.assert_allclose(h, fixed(z), rtol=3e-7, atol=3e-7)
        np.testing.assert_allclose(slope, jax.grad(lambda z, f=fixed: (weight * f(z)).sum())(z), rtol=1e-6, atol=1e-6)
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


@entries
def test_an_entry_is_the_same_at_all_steps_unless_it_is_annealed(name):
    sparsifier = EXAMPLES[name].sparsifier
    assert sparsifier.at(0) is sparsifier.at(1000) is sparsifier


def test_a_resized_top_k_keeps_its_annealing():
    assert TopK(k=8, anneal=100).resized(64, 16) == TopK(k=2, anneal=100)
