"""Price et al. 2024, Table 1 and App. F: thresholds, slopes of the maps, and the spectrum of the Jacobian.

Their printed formulas stand here as they print them (signs restored, see `jacobian_variance`), and are held
against the maps of `sparsity.theory`, their numerical derivatives, and products of random layers.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
from scipy.special import erfinv, ndtr, ndtri

from sparsity.studies import draw
from sparsity.studies.draw import Drawing, Runs
from sparsity.studies.judge import Claim, Effect
from sparsity.studies.price2024.maps import field_of, quiet_solve
from sparsity.studies.runner import Record, Row, Study
from sparsity.theory.edge_of_chaos import EdgeOfChaos
from sparsity.theory.gaussian import piecewise_linear, threshold_pieces

WIDTH, DEPTH, NETWORKS = 1200, 6, 5
FIXED_POINTS = (0.5, 1.0, 2.0)
SPARSITIES = {"ReLU_tau": (0.5, 0.6, 0.7, 0.85), "ST_tau": (0.3, 0.5, 0.7, 0.85)}
CLIPPED_SLOPE = 0.7


def printed_threshold(activation: str, s: float, q: float) -> float:
    """tau(s, q*) of Table 1: sqrt(q*) Phi^-1(s) for ReLU_tau, sqrt(2 q*) erfinv(s) for ST_tau."""
    return math.sqrt(q) * float(ndtri(s)) if activation == "ReLU_tau" else math.sqrt(2 * q) * float(erfinv(s))


def printed_slope(activation: str, sigma_w2: float, tau: float, q: float) -> float:
    """V'(q) = chi_1 of Table 1: sigma_w^2 Phi(-tau / sqrt(q)), twice that for ST_tau."""
    return (1 if activation == "ReLU_tau" else 2) * sigma_w2 * float(ndtr(-tau / math.sqrt(q)))


def printed_curvature(activation: str, sigma_w2: float, tau: float, q: float) -> float:
    """V''(q) of Table 1: sigma_w^2 tau exp(-tau^2 / 2q) / (2 sqrt(2 pi) q^1.5), twice that for ST_tau."""
    one = sigma_w2 * tau * math.exp(-(tau**2) / (2 * q)) / (2 * math.sqrt(2 * math.pi) * q**1.5)
    return one if activation == "ReLU_tau" else 2 * one


def jacobian_variance(sigma_w2: float, depth: int) -> float:
    """App. F: variance of the squared singular values of the Jacobian of `depth` Gaussian layers on the edge of chaos.

    L sigma_w^2: for slopes 0 and 1, mu_1 = mu_2 = 1 / sigma_w^2; L / (1 - s) without a clip, which
    grows with depth for every threshold, so that there is no dynamical isometry.
    """
    return depth * sigma_w2


def simulated_jacobian(edge: EdgeOfChaos, two_sided: bool, seed: int) -> tuple[float, float]:
    """Mean and relative variance of the squared singular values of a random network's Jacobian over `DEPTH` layers.

    Width `WIDTH`, float64, from a pre-activation drawn from N(0, q*). tr J J^T and tr (J J^T)^2 give both. The
    variance is over mean^2: the mean itself, 1 in the limit, wanders at finite width as q_l does.
    """
    rng = np.random.default_rng(seed)
    activation = field_of(edge, two_sided=two_sided).activation
    z, jacobian = rng.normal(0, math.sqrt(edge.q), WIDTH), np.eye(WIDTH)
    for _ in range(DEPTH):
        w = rng.normal(0, math.sqrt(edge.sigma_w2 / WIDTH), (WIDTH, WIDTH))
        jacobian = (w * activation.slope(z)) @ jacobian
        z = w @ activation.phi(z) + rng.normal(0, math.sqrt(edge.sigma_b2), WIDTH)
    squared = jacobian @ jacobian.T
    mean = float(np.trace(squared)) / WIDTH
    return mean, float((squared**2).sum()) / WIDTH / mean**2 - 1


def _zeros(tau: float, q: float, two_sided: bool) -> float:
    """P(phi(z) = 0) under N(0, q)."""
    return 1 - float(piecewise_linear(threshold_pieces(tau, two_sided=two_sided), q).density)


@functools.cache
def table_1() -> tuple[Row, ...]:
    """Rows of `table`, computed once."""
    rows = []
    for activation, sparsities in SPARSITIES.items():
        two_sided = activation == "ST_tau"
        for s in sparsities:
            for q in FIXED_POINTS:
                edge = quiet_solve(s, two_sided=two_sided, q=q)
                field = field_of(edge, two_sided=two_sided)
                step = 1e-3 * q
                around = [float(field.variance(q + k * step)) for k in (-1, 0, 1)]
                rows.append(
                    {
                        "activation": activation,
                        "s": s,
                        "q*": q,
                        "tau, printed": printed_threshold(activation, s, q),
                        "zeros at tau, printed": _zeros(printed_threshold(activation, s, q), q, two_sided),
                        "sigma_w^2": edge.sigma_w2,
                        "V', printed": printed_slope(activation, edge.sigma_w2, edge.tau, q),
                        "V', differences": (around[2] - around[0]) / (2 * step),
                        "V'', printed": printed_curvature(activation, edge.sigma_w2, edge.tau, q),
                        "V'', differences": (around[2] - 2 * around[1] + around[0]) / step**2,
                        "R'(1)": float(field.correlation_slope(1.0, q)),
                    }
                )
    return tuple(rows)


def table(_: Sequence[Record]) -> list[Row]:
    """Table 1 on the edge of chaos: the paper's formulas against the map itself.

    tau for a target sparsity s at the fixed point q*, and the share of zeros that it gives; sigma_w^2 = 1 / (1 - s),
    whatever q*; V' and V'' at q*, as printed and by central differences of V; R'(1), the slope of the correlation
    map, by quadrature.
    """
    return list(table_1())


def _edges() -> list[tuple[str, float, bool, EdgeOfChaos]]:
    """(name, s, two-sided, edge) of the Jacobians compared: both activations, unclipped and clipped."""
    out = []
    for name, two_sided in (("ReLU_tau", False), ("ST_tau", True)):
        for s in (0.5, 0.7, 0.85):
            out.append((name, s, two_sided, quiet_solve(s, two_sided=two_sided)))
            out.append((f"C{name}", s, two_sided, quiet_solve(s, CLIPPED_SLOPE, two_sided=two_sided)))
    return out


@functools.cache
def jacobians() -> tuple[Row, ...]:
    """Predicted and simulated spectrum of the Jacobian, a row an activation, over `NETWORKS` networks."""
    rows = []
    for name, s, two_sided, edge in _edges():
        found = np.array([simulated_jacobian(edge, two_sided, seed) for seed in range(NETWORKS)])
        se = found.std(0, ddof=1) / math.sqrt(NETWORKS)
        rows.append(
            {
                "activation": name,
                "s": s,
                "depth": DEPTH,
                "width": WIDTH,
                "n": NETWORKS,
                "mean": float(found[:, 0].mean()),
                "mean, se": float(se[0]),
                "variance, predicted": jacobian_variance(edge.sigma_w2, DEPTH),
                "variance": float(found[:, 1].mean()),
                "variance, se": float(se[1]),
            }
        )
    return tuple(rows)


def jacobian_spread(_: Runs) -> Drawing:
    """App. F: variance over mean^2 of the Jacobian's squared singular values, predicted (bar) and simulated (±1 SE)."""
    figure, axes = draw.panels(1, 2)
    rows = jacobians()
    for axis, clipped in zip(axes, (False, True), strict=True):
        chosen = [r for r in rows if r["activation"].startswith("C") == clipped]
        for i, row in enumerate(chosen):
            axis.errorbar(i, row["variance"], row["variance, se"], fmt="o", color="C0", ms=4)
            axis.plot(i, row["variance, predicted"], "_", color="k", ms=14)
        axis.set_xticks(range(len(chosen)), [f"{r['activation']}\ns = {r['s']}" for r in chosen], fontsize=7)
        axis.set_ylim(0)
    axes[0].set_ylabel("variance of squared singular values")
    return draw.done(figure)


def thresholds(_: Runs) -> Drawing:
    """Table 1 and App. F: threshold tau against target sparsity s at three fixed points q*."""
    figure, axes = draw.panels(1, 2, sharey=True)
    for axis, (name, start) in zip(axes, (("ReLU_tau", 0.5), ("ST_tau", 0.0)), strict=True):
        s = np.linspace(start, 0.97, 100)
        for q in FIXED_POINTS:
            axis.plot(s, [printed_threshold(name, float(x), q) for x in s], label=f"q* = {q:g}")
        axis.set(title=name, xlabel="target sparsity s", ylabel="tau")
    axes[0].legend()
    return draw.done(figure)


def findings(_: Sequence[Record]) -> list[str]:
    """How far formulas and simulation are apart."""
    worst = max(jacobians(), key=lambda r: abs(r["variance"] / r["variance, predicted"] - 1))
    return [
        f"Table 1's formulas agree with the maps within {disagreement([]).value:.1e} (relative).",
        f"Jacobian, width {WIDTH}, depth {DEPTH}: simulated over predicted variance is farthest from 1 for "
        f"{worst['activation']} at s = {worst['s']}: {worst['variance'] / worst['variance, predicted']:.3f}.",
    ]


def disagreement(_: Sequence[Record]) -> Effect:
    """Largest relative difference between a printed formula and its counterpart (absolute where that is 0)."""
    pairs = [
        (row[a], row[b])
        for row in table_1()
        for a, b in (
            ("V', differences", "V', printed"),
            ("V'', differences", "V'', printed"),
            ("R'(1)", "V', printed"),
        )
    ]
    pairs += [(row["sigma_w^2"], 1 / (1 - row["s"])) for row in table_1()]
    pairs += [(row["zeros at tau, printed"], row["s"]) for row in table_1()]
    return Effect(max(abs(a - b) / (abs(b) or 1.0) for a, b in pairs), 0.0, len(pairs), exact=True)


def isometry(_: Sequence[Record]) -> Effect:
    """Mean of |simulated over predicted variance - 1| over the clipped activations; n counts them.

    The unclipped ones are left out: their fixed point is unstable, so at finite width they leave it (they are drawn).
    """
    clipped = [r for r in jacobians() if r["activation"].startswith("C")]
    return Effect.of([abs(r["variance"] / r["variance, predicted"] - 1) for r in clipped])


TABLE1 = Study(
    name="price2024/table1",
    title="Price et al. 2024, Table 1 and App. F",
    introduction=(
        "What the paper prints for shifted ReLU and soft threshold on the edge of chaos: the threshold that gives a "
        "target sparsity, slope and curvature of the variance map, the slope of the correlation map, and how far the "
        "singular values of the input-output Jacobian spread, which grows with depth for every sparse activation."
    ),
    findings=findings,
    figures={"App. F": jacobian_spread, "Thresholds": thresholds},
    claims=(
        Claim(
            id="P10.table1",
            where="Table 1",
            statement="tau, V', V'', chi_1 = R'(1) and sigma_w^2 = 1 / (1 - s) are as printed, whatever q*",
            effect="largest relative difference between a printed formula and the map's own value",
            unit="printed formula and parameters",
            side="below",
            threshold=1e-4,  # what the central differences themselves are good to
            measure=disagreement,
        ),
        Claim(
            id="P10.jacobian",
            where="App. F",
            statement="the variance of the Jacobian's squared singular values is L sigma_w^2 when clipped",
            effect="|simulated / predicted variance over mean^2 - 1|, mean over clipped activations",
            unit="activation",
            side="below",
            threshold=0.1,  # finite width: corrections of order L / N beside the sampling of 5 networks
            measure=isometry,
        ),
    ),
    table=table,
)
