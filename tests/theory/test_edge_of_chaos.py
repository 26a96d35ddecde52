import csv
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
from scipy.special import ndtri

from sparsity.theory import edge_of_chaos
from sparsity.theory.edge_of_chaos import BifurcationWarning, at, bifurcation, clip, solve, threshold, thresholded
from sparsity.theory.gaussian import Activation
from sparsity.theory.maps import MeanField

TABLES = Path(__file__).parents[2] / "configs" / "price2024"


def read(name):
    with open(TABLES / name) as file:
        return list(csv.DictReader(file))


PRINTED, COMPUTED = read("price_table2.csv"), read("price_table2_computed.csv")
BISTABLE = {("CST_tau_m", "0.8", "0.9"), ("CST_tau_m", "0.85", "0.9")}


def two_sided(row):
    return row["activation"].startswith(("ST", "CST"))


def solved(row, slope):
    """The solver's answer for a row of Table 2; the two rows above their bifurcation must warn."""
    target = float(row[slope]) if row["m"] else None
    if (row["activation"], row["s"], row[slope]) in BISTABLE:
        with pytest.warns(BifurcationWarning):
            return solve(float(row["s"]), target, two_sided=two_sided(row))
    return solve(float(row["s"]), target, two_sided=two_sided(row))


def name_of(row):
    return " ".join(list(row.values())[:5])


def printed(value, text):
    """`value` rounds to the printed `text`."""
    return abs(value - float(text)) <= 0.5 * 10.0**-2 + 1e-9


def test_the_tables_hold_the_33_rows_of_the_paper():
    assert len(PRINTED) == len(COMPUTED) == 33
    assert sum(bool(r["m"]) for r in PRINTED) == 27


@pytest.mark.parametrize("row", PRINTED, ids=name_of)
def test_a_row_of_table_2_is_reproduced_to_its_printed_digits(row):
    found = solved(row, "Vprime")
    assert printed(found.tau, row["tau"])
    m = math.inf
    if row["m"]:
        assert printed(found.m, row["m"])
        m = round(found.m, 2)  # the paper's V'' are those of its printed m
        assert m == float(row["m"])
        assert abs(at_m(found.tau, m, row).v1 - float(row["Vprime"])) < 0.002
    assert printed(at_m(found.tau, m, row).v2, row["Vsecond"])


def at_m(tau, m, row):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BifurcationWarning)
        return at(thresholded(tau, m, two_sided=two_sided(row)))


@pytest.mark.parametrize("row", COMPUTED, ids=name_of)
def test_the_full_precision_of_every_row_is_that_of_the_independent_computation(row):
    found = solved(row, "Vprime_target")
    half = 0.51e-6
    for field, column in (
        ("tau", "tau"),
        ("sigma_w2", "sigma_w2"),
        ("sigma_b2", "sigma_b2"),
        ("v2", "Vsecond_exact_m"),
    ):
        assert abs(getattr(found, field) - float(row[column])) < half, field
    assert abs(found.v1 - float(row["Vprime_target"])) < 1e-12
    if row["m"]:
        assert abs(found.m - float(row["m"])) < half
        assert abs(at_m(found.tau, round(found.m, 2), row).v2 - float(row["Vsecond_rounded_m"])) < half
        points = [p.q for p in found.fixed_points]
        np.testing.assert_allclose(points, [float(q) for q in row["fixed_points"].split()], atol=0.51e-4)
        assert [p.stability for p in found.fixed_points] == ["stable", "unstable", "stable"][: len(points)]
    else:
        (only,) = found.fixed_points
        assert only.stability == ("neutral" if row["fixed_points"] == "all q" else "tangent")


@pytest.mark.parametrize("s", [0.1, 0.5, 0.7, 0.85])
@pytest.mark.parametrize("slope", [0.3, 0.7])
def test_a_clipped_soft_threshold_has_the_variance_map_of_a_clipped_relu_of_half_the_density(s, slope):
    two, one = solve(s, slope, two_sided=True), solve((1 + s) / 2, slope)
    assert (two.tau, two.m) == pytest.approx((one.tau, one.m), rel=1e-12)
    assert two.sigma_w2 == pytest.approx(one.sigma_w2 / 2, rel=1e-12)
    assert two.sigma_b2 == pytest.approx(one.sigma_b2, rel=1e-11)
    q = np.geomspace(0.01, 100, 50)
    maps = [
        MeanField(thresholded(f.tau, f.m, two_sided=sides), f.sigma_w2, f.sigma_b2).variance(q)
        for f, sides in ((two, True), (one, False))
    ]
    np.testing.assert_allclose(*maps, rtol=1e-11)


@pytest.mark.parametrize("sides", [False, True])
@pytest.mark.parametrize("slope", [None, 0.5, 0.85])
@pytest.mark.parametrize("q", [0.3, 4.0])
def test_everything_scales_with_q(q, slope, sides):
    one, other = solve(0.7, slope, two_sided=sides), solve(0.7, slope, q, two_sided=sides)
    root = math.sqrt(q)
    assert (other.tau, other.m) == pytest.approx((root * one.tau, root * one.m), rel=1e-12)
    assert other.sigma_w2 == pytest.approx(one.sigma_w2, rel=1e-12)
    assert (other.sigma_b2, other.v1, other.v2) == pytest.approx((q * one.sigma_b2, one.v1, one.v2 / q), rel=1e-10)
    assert [p.q for p in other.fixed_points] == pytest.approx([q * p.q for p in one.fixed_points], rel=1e-6)
    grid = np.geomspace(0.1, 10, 20)
    maps = [MeanField(thresholded(f.tau, f.m, two_sided=sides), f.sigma_w2, f.sigma_b2).variance for f in (one, other)]
    np.testing.assert_allclose(maps[1](q * grid), q * maps[0](grid), rtol=1e-12)


@pytest.mark.parametrize("sides", [False, True])
@pytest.mark.parametrize("slope", [None, 0.2, 0.9])
@pytest.mark.parametrize("q", [0.5, 1.0, 2.0])
def test_the_answer_is_on_the_edge_of_chaos_with_the_sparsity_asked_for(q, slope, sides):
    found = solve(0.6, slope, q, two_sided=sides)
    activation = thresholded(found.tau, found.m, two_sided=sides)
    field = MeanField(activation, found.sigma_w2, found.sigma_b2)
    assert field.variance(q) == pytest.approx(q, rel=1e-13)
    assert field.chi_1(q) == pytest.approx(1, rel=1e-13)
    assert field.variance_slope(q) == pytest.approx(slope or 1.0, rel=1e-11)
    assert activation.share_above(q, 0.0) == pytest.approx(0.4, abs=1e-8)


# Where V first has a second fixed point, by an independent computation.
THRESHOLDS = [
    (s, False, v) for s, v in ((0.6, 0.993), (0.7, 0.978), (0.8, 0.947), (0.85, 0.921), (0.9, 0.876), (0.95, 0.785))
]
THRESHOLDS += [
    (s, True, v) for s, v in ((0.5, 0.965), (0.6, 0.947), (0.7, 0.921), (0.8, 0.876), (0.85, 0.84), (0.9, 0.785))
]


@pytest.mark.parametrize(("s", "sides", "expected"), THRESHOLDS)
def test_the_bifurcation_is_where_a_second_fixed_point_appears(s, sides, expected):
    critical = bifurcation(s, two_sided=sides)
    assert round(critical, 3) == expected
    assert len(solve(s, critical - 1e-3, two_sided=sides).fixed_points) == 1
    with pytest.warns(BifurcationWarning, match=r"several fixed points: q = 1 \(stable"):
        assert len(solve(s, critical + 1e-3, two_sided=sides).fixed_points) == 3


def test_a_clipped_relu_without_a_shift_never_bifurcates():
    assert bifurcation(0.5) == 1.0
    assert bifurcation(0.0, two_sided=True) == 1.0


def test_the_warning_comes_every_time_though_answers_are_kept():
    for _ in range(2):
        with pytest.warns(BifurcationWarning):
            solve(0.85, 0.9, two_sided=True)


@pytest.mark.parametrize("s", [0.5, 0.75, 0.999])
def test_thresholds_are_gaussian_quantiles(s):
    assert threshold(s, 4.0) == pytest.approx(2 * ndtri(s))
    assert threshold(s, 4.0, two_sided=True) == pytest.approx(2 * ndtri((1 + s) / 2))


def test_he_initialisation_is_the_edge_of_chaos_of_relu():
    found = at(thresholded(0.0), 2.5)
    assert (found.sigma_w2, found.sigma_b2) == (2.0, 0.0)
    assert (found.v1, found.v2) == (pytest.approx(1.0), pytest.approx(0, abs=1e-15))


def test_the_clip_of_any_family_meets_its_slope():
    family = lambda m: Activation(lambda z: m * np.tanh(z / m))
    m = clip(family, 0.5)
    assert at(family(m)).v1 == pytest.approx(0.5, abs=1e-7)


REFUSED = [
    (lambda: solve(0.49, 0.5), r"^sparsity: a one-sided threshold tau >= 0 reaches \[0.5, 1\), got 0.49$"),
    (lambda: solve(1.0), r"^sparsity: a one-sided threshold tau >= 0 reaches \[0.5, 1\), got 1.0$"),
    (lambda: solve(math.nan), r"^sparsity: a one-sided"),
    (lambda: solve(-0.01, two_sided=True), r"^sparsity: a two-sided threshold tau >= 0 reaches \[0, 1\), got -0.01$"),
    (lambda: solve(0.8, 0.0), r"^slope: V'\(q\*\) of a clipped activation is in \(0, 1\), got 0.0$"),
    (lambda: solve(0.8, 1.0), r"^slope: V'\(q\*\) of a clipped activation is in \(0, 1\), got 1.0$"),
    (lambda: solve(0.8, math.nan), r"^slope: "),
    (lambda: solve(0.8, 1e-9), r"^slope: V'\(q\*\) in \(.*, 1\) is within reach of m in \[0.0001, 40\], got 1e-09$"),
    (lambda: solve(0.8, 0.5, q=0.0), r"^q: a variance must be positive, got 0.0$"),
    (lambda: solve(0.8, 0.5, q=math.inf), r"^q: a variance must be positive, got inf$"),
    (lambda: thresholded(0.5, 0.0), r"^m: the clip must be positive, got 0.0$"),
    (lambda: thresholded(0.5, -1.0), r"^m: the clip must be positive, got -1.0$"),
    (lambda: thresholded(-0.5), r"^tau: must be at least 0, got -0.5$"),
    (lambda: at(Activation(lambda z: 0 * z + 1)), r"^q: the activation is flat under N\(0, 1\)"),
    (lambda: at(Activation(lambda z: 1 / (1 + np.exp(-z)))), r"^q: .* need a negative bias variance, -5.5"),
    (lambda: Activation(lambda z: np.tanh(z.astype(np.float32))), r"^phi: must return float64, got float32; write it"),
    (lambda: bifurcation(0.3), r"^sparsity: "),
]


@pytest.mark.parametrize(("call", "message"), REFUSED, ids=[m for _, m in REFUSED])
def test_an_infeasible_target_is_refused_with_the_feasible_range(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_smallest_clip_is_still_solved_and_v1_grows_with_m():
    slopes = [at(thresholded(1.0, m)).v1 for m in (0.01, 0.1, 0.5, 1.0, 1.5)]
    assert slopes == sorted(slopes)
    assert edge_of_chaos.solve(0.85, 0.001).v1 == pytest.approx(0.001, abs=1e-9)
