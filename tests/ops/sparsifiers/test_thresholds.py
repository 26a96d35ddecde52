import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsity.config import ConfigError, build, to_dict
from sparsity.layers.initializers import edge_of
from sparsity.ops.sparsifiers import SPARSIFIERS
from sparsity.theory.edge_of_chaos import BifurcationWarning
from tests.ops.sparsifiers.examples import EXAMPLES, W, Z

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


def test_a_jump_has_no_edge_of_chaos_and_squares_do():
    with pytest.raises(ValueError, match=r"^q: the activation jumps at 0\.5: no weight variance gives chi_1 = 1$"):
        edge_of(SPARSIFIERS["jump_relu"](theta=0.5), 1.0)
    # E (2 z)^2 = 2 q and E z^4 = 3 q^2 / 2 over z > 0: weights of variance 1/2, biases of 1/4; q = 1/3 is fixed too.
    with pytest.warns(BifurcationWarning, match="q = 0.3333"):
        edge = edge_of(SPARSIFIERS["relu_squared"](), 1.0)
    assert (edge.sigma_w2, edge.sigma_b2, edge.v1) == pytest.approx((0.5, 0.25, 1.5), rel=1e-8)


def test_a_jump_relu_at_zero_is_relu():
    np.testing.assert_array_equal(SPARSIFIERS["jump_relu"](theta=0.0)(Z, np), SPARSIFIERS["relu"]()(Z, np))
