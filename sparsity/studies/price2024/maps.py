"""Price et al. 2024: the maps behind their figures and the theory columns of their Table 2.

Everything here is computed in float64 from `sparsity.theory`; no network is trained.
"""

from __future__ import annotations

import csv
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sparsity.studies import draw
from sparsity.studies.draw import Drawing, Runs
from sparsity.studies.judge import Claim, Effect
from sparsity.studies.runner import Record, Study
from sparsity.theory.edge_of_chaos import BifurcationWarning, EdgeOfChaos, at, solve, threshold, thresholded
from sparsity.theory.gaussian import Activation
from sparsity.theory.maps import MeanField

TABLE_2 = Path("configs/price2024/price_table2.csv")  # as printed; studies run from the repository's root
_TWO_SIDED = {"ReLU": False, "ST": True}


def quiet_solve(sparsity: float, slope: float | None = None, *, two_sided: bool, q: float = 1.0) -> EdgeOfChaos:
    """`solve` without the warning of further fixed points: here they are drawn, not trained."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BifurcationWarning)
        return solve(sparsity, slope, q, two_sided=two_sided)


def field_of(edge: EdgeOfChaos, *, two_sided: bool) -> MeanField:
    """The maps of an edge that `solve` found."""
    return MeanField(thresholded(edge.tau, edge.m, two_sided=two_sided), edge.sigma_w2, edge.sigma_b2)


def activations(_: Runs) -> Drawing:
    """Fig. 1: the four activations, tau = 1 and m = 1."""
    figure, axes = draw.panels(1, 2, sharey=True)
    z = np.linspace(-4, 4, 801)
    for axis, (name, two_sided) in zip(axes, _TWO_SIDED.items(), strict=True):
        for m, style in ((np.inf, "C0"), (1.0, "C1--")):
            clipped = "" if np.isinf(m) else "C"
            label = f"{clipped}{name} (tau = 1{', m = 1' if clipped else ''})"
            axis.plot(z, thresholded(1.0, m, two_sided=two_sided).phi(z), style, label=label)
        axis.set(xlabel="pre-activation z", ylabel="activation h")
        axis.legend()
    return draw.done(figure)


def variance_map(sparsity: float, m: float, *, two_sided: bool = False) -> Drawing:
    """The variance map of one clipped activation on the edge of chaos at q* = 1; dots: fixed points; dashed: no clip.

    Raises:
      ValueError: a sparsity or a clip that has no edge of chaos.
    """
    figure, axes = draw.panels(1, 1, height=3.6)
    axis, q, tau = axes[0], np.linspace(1e-3, 4, 400), threshold(sparsity, two_sided=two_sided)
    for clip, style in ((m, "C0-"), (np.inf, "C1--")):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", BifurcationWarning)  # they are drawn
            edge = at(thresholded(tau, clip, two_sided=two_sided))
        field = MeanField(thresholded(tau, clip, two_sided=two_sided), edge.sigma_w2, edge.sigma_b2)
        clipped = "no clip" if np.isinf(clip) else f"m = {clip:g}"
        label = f"{clipped}: V' = {edge.v1:.2f}, V'' = {edge.v2:.2f}, sigma_w^2 = {edge.sigma_w2:.1f}"
        axis.plot(q, field.variance(q), style, label=label)
        found = [point.q for point in edge.fixed_points if point.q > 0]
        axis.plot(found, found, f"{style[:2]}o", ms=5)
    axis.set_title(f"{'CST' if two_sided else 'CReLU'}, s = {sparsity:g}, tau = {tau:.2f}")
    return _variance_maps(figure, axes, q)


def unclipped_maps(_: Runs) -> Drawing:
    """Figs. 2 and 9: variance maps of shifted ReLU and soft threshold on the edge of chaos at q* = 1.

    Left: fixed tau, where both coincide exactly. Middle and right: fixed sparsity. V' = 1 and
    V'' > 0 at the fixed point: it attracts from below only.
    """
    figure, axes = draw.panels(1, 3, sharey=True)
    q = np.linspace(1e-3, 3, 300)
    for i, tau in enumerate((0.25, 0.5, 1.0)):
        for two_sided, style in ((False, "-"), (True, ":")):
            edge = at(thresholded(tau, two_sided=two_sided))
            field = MeanField(thresholded(tau, two_sided=two_sided), edge.sigma_w2, edge.sigma_b2)
            name = "ST" if two_sided else "ReLU"
            axes[0].plot(q, field.variance(q), style, color=f"C{i}", lw=3 if two_sided else 1.5, label=f"{name} {tau}")
    axes[0].set_title("fixed tau")
    for axis, (name, two_sided) in zip(axes[1:], _TWO_SIDED.items(), strict=True):
        for s in (0.5, 0.6, 0.7):
            axis.plot(
                q, field_of(quiet_solve(s, two_sided=two_sided), two_sided=two_sided).variance(q), label=f"s = {s}"
            )
        axis.set_title(f"{name}, fixed sparsity")
    return _variance_maps(figure, axes, q)


def slope_and_curvature(_: Runs) -> Drawing:
    """Fig. 3: V'(q*) and V''(q*) against the clip m, at q* = 1, for sparsities from 0.5 to 0.9."""
    figure, axes = draw.panels(2, 2, sharex=True)
    clips = np.linspace(0.02, 4, 200)
    for column, (name, two_sided) in enumerate(_TWO_SIDED.items()):
        for s in (0.5, 0.6, 0.7, 0.8, 0.85, 0.9):
            tau = threshold(s, two_sided=two_sided)
            slopes, curvatures = [], []
            for m in clips:
                activation = thresholded(tau, float(m), two_sided=two_sided)
                field = MeanField(activation, 1 / float(activation.slope_power(1.0, 2)), 0.0)
                slopes.append(float(field.variance_slope(1.0)))  # sigma_b^2 shifts V, not its slopes
                curvatures.append(float(field.variance_curvature(1.0)))
            axes[0, column].plot(clips, slopes, label=f"s = {s}")
            axes[1, column].plot(clips, curvatures, label=f"s = {s}")
        for level in (0.5, 0.6, 0.7, 0.8, 0.9):
            axes[0, column].axhline(level, color="k", ls=":", lw=0.6)
        axes[0, column].set(title=f"C{name}", ylabel="V'(q*)")
        axes[1, column].set(xlabel="clip m", ylabel="V''(q*)", ylim=(-1.5, 1.5))
    axes[0, 0].legend()
    return draw.done(figure)


def failing_maps(_: Runs) -> Drawing:
    """Fig. 4: maps at 85% sparsity with V'(q*) < 1 that still fail.

    CReLU at V' = 0.9 stays within .02 of the identity up to q = 1.4, where chi_1 is well above 1;
    CST at 0.9 has further fixed points (dots).
    """
    figure, axes = draw.panels(1, 2)
    q = np.linspace(1e-3, 6, 600)
    for axis, (name, two_sided), slopes in zip(axes, _TWO_SIDED.items(), ((0.7, 0.9), (0.7, 0.8, 0.9)), strict=True):
        for i, slope in enumerate(slopes):
            edge = quiet_solve(0.85, slope, two_sided=two_sided)
            field = field_of(edge, two_sided=two_sided)
            axis.plot(q, field.variance(q), color=f"C{i}", label=f"V'(q*) = {slope}, m = {edge.m:.2f}")
            found = [f.q for f in edge.fixed_points if f.q > 0]
            axis.plot(found, found, "o", color=f"C{i}", ms=4)
        axis.set_title(f"C{name}, s = 0.85")
    return _variance_maps(figure, axes, q)


def correlation_maps(_: Runs) -> Drawing:
    """Figs. 6 and 7: correlation maps R(rho) on the edge of chaos (solid) and on either side of it.

    sigma_w^2 is 0.9 or 1.1 of the edge's; sigma_b^2 keeps V(1) = 1 where it can, else no map is drawn.
    """
    figure, axes = draw.panels(2, 3, sharex=True, sharey=True)
    rho = np.linspace(0, 1, 41)
    for row, (name, two_sided) in zip(axes, _TWO_SIDED.items(), strict=True):
        for axis, tau in zip(row, (0.25, 0.5, 1.0), strict=True):
            activation = thresholded(tau, two_sided=two_sided)
            second = float(activation.power(1.0, 2))
            for factor, style in ((0.9, "--"), (1.0, "-"), (1.1, ":")):
                sigma_w2 = factor * at(activation).sigma_w2
                if sigma_w2 * second > 1:
                    continue
                field = MeanField(activation, sigma_w2, 1 - sigma_w2 * second)
                label = f"{factor} sigma_w^2"
                axis.plot(rho, [field.correlation(float(r), 1.0) for r in rho], f"C0{style}", label=label)
            axis.plot([0, 1], [0, 1], "k:", lw=0.8)
            axis.set_title(f"{name}, tau = {tau}")
        row[0].set_ylabel("R(rho)")
    for axis in axes[-1]:
        axis.set_xlabel("rho")
    axes[0, 0].legend()
    return draw.done(figure)


def edges(_: Runs) -> Drawing:
    """Fig. 8: the edge of chaos of shifted ReLU and soft threshold: sigma_b^2 against sigma_w^2 as q* runs.

    The dot is q* = 1. At the same tau ReLU's sigma_w^2 is twice ST's.
    """
    figure, axes = draw.panels(1, 2, sharey=True)
    for axis, (name, two_sided) in zip(axes, _TWO_SIDED.items(), strict=True):
        for i, tau in enumerate((0.25, 0.5, 1.0)):
            activation = thresholded(tau, two_sided=two_sided)
            along = [_edge_point(activation, q) for q in np.geomspace(0.2, 20, 120)]
            axis.plot(*np.transpose(along), color=f"C{i}", label=f"tau = {tau}")
            axis.plot(*_edge_point(activation, 1.0), "ko", ms=4)
        axis.set(title=name, xlabel="sigma_w^2", xlim=(0, 10), ylim=(0, 3))
    axes[0].set_ylabel("sigma_b^2")
    axes[0].legend()
    return draw.done(figure)


def clipped_maps(_: Runs) -> Drawing:
    """Figs. 10 and 11: variance maps of CReLU (solid) and CST (dotted) on the edge at q* = 1, tau across, m down."""
    figure, axes = draw.panels(3, 4, height=2.2, sharex=True, sharey=True)
    q = np.linspace(1e-3, 3, 200)
    for row, m in zip(axes, (1.0, 1.5, 2.0), strict=True):
        for axis, tau in zip(row, (0.0, 0.25, 0.5, 1.0), strict=True):
            for two_sided, style in ((False, "C0-"), (True, "C1:")):
                activation = thresholded(tau, m, two_sided=two_sided)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", BifurcationWarning)
                    edge = at(activation)
                axis.plot(q, MeanField(activation, edge.sigma_w2, edge.sigma_b2).variance(q), style)
            axis.plot(q, q, "k:", lw=0.8)
            axis.set_title(f"m = {m}, tau = {tau}")
        row[0].set_ylabel("V(q)")
    for axis in axes[-1]:
        axis.set_xlabel("q")
    return draw.done(figure)


def _edge_point(activation: Activation, q: float) -> tuple[float, float]:
    edge = at(activation, float(q))
    return edge.sigma_w2, edge.sigma_b2


def _variance_maps(figure: Any, axes: Any, q: np.ndarray) -> Drawing:
    for axis in axes:
        axis.plot(q, q, "k--", lw=0.8)
        axis.set(xlabel="q", ylim=(0, q[-1]))
        axis.legend()
    axes[0].set_ylabel("V(q)")
    return draw.done(figure)


def table_2(_: Sequence[Record] = ()) -> list[dict[str, Any]]:
    """Table 2's theory columns, ours beside the printed ones, one row a line of the table.

    tau and m are solved from s and V'; V'' is taken at m rounded to the two printed decimals, as
    the printed values are. `matches` counts the printed numbers (of `printed`) that agree to the
    last printed digit; V' of the printed m may differ by .002, what rounding m moves it by.
    """
    rows = []
    with open(TABLE_2, encoding="utf-8") as file:
        for printed in csv.DictReader(file):
            two_sided, clipped = "ST" in printed["activation"], printed["m"] != ""
            slope = float(printed["Vprime"]) if clipped else None
            edge = quiet_solve(float(printed["s"]), slope, two_sided=two_sided)
            m = float(printed["m"]) if clipped else np.inf
            rounded = thresholded(edge.tau, m, two_sided=two_sided)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", BifurcationWarning)
                shown = at(rounded)
            agree = [
                _agrees(edge.tau, printed["tau"]),
                _agrees(shown.v2, printed["Vsecond"]),
                abs(shown.v1 - float(printed["Vprime"])) <= 0.002,
                *([_agrees(edge.m, printed["m"])] if clipped else []),
            ]
            ours = {"tau": edge.tau, "m": edge.m if clipped else "", "Vprime": shown.v1, "Vsecond": shown.v2}
            fixed = "; ".join(f"{f.q:.4g}" for f in edge.fixed_points if f.q > 0)
            row = {"activation": printed["activation"], "s": float(printed["s"])}
            for key, value in ours.items():
                row |= {f"{key}_printed": printed[key], f"{key}_ours": value}
            rows.append(row | {"fixed_points": fixed, "printed": len(agree), "matches": sum(agree)})
    return rows


def _agrees(value: float, printed: str) -> bool:
    """Whether `value`, rounded to two decimals, is the printed number (which drops trailing zeros)."""
    return abs(round(value, 2) - float(printed)) < 1e-9


def mismatches(_: Sequence[Record]) -> Effect:
    """Printed numbers of Table 2's theory columns that ours do not agree with; n is how many there are."""
    rows = table_2()
    printed, matches = (sum(row[key] for row in rows) for key in ("printed", "matches"))
    return Effect(float(printed - matches), 0.0, printed, exact=True)


def overlap(_: Sequence[Record]) -> Effect:
    """Largest |V_ReLU(q) - V_ST(q)| over tau in {.25, .5, 1} and q in (0, 3], both on the edge at q* = 1."""
    q, gaps = np.linspace(0.01, 3, 300), []
    for tau in (0.25, 0.5, 1.0):
        maps = []
        for two_sided in (False, True):
            edge = at(thresholded(tau, two_sided=two_sided))
            maps.append(MeanField(thresholded(tau, two_sided=two_sided), edge.sigma_w2, edge.sigma_b2).variance(q))
        gaps.append(np.abs(maps[0] - maps[1]).max())
    return Effect(float(max(gaps)), 0.0, len(gaps), exact=True)


def near_identity(_: Sequence[Record]) -> Effect:
    """Largest |V(q) - q| over q in [1, 1.4] of CReLU .85/.9 and CST .7/.9: n counts the q."""
    q = np.linspace(1, 1.4, 41)
    fields = [
        field_of(quiet_solve(s, 0.9, two_sided=two_sided), two_sided=two_sided)
        for s, two_sided in ((0.85, False), (0.7, True))
    ]
    return Effect(float(max(np.abs(f.variance(q) - q).max() for f in fields)), 0.0, 2 * len(q), exact=True)


def findings(_: Sequence[Record]) -> list[str]:
    """What Table 2's theory says, in sentences; every figure is computed."""
    rows = table_2()
    several = [f"{r['activation']} s = {r['s']} V' = {r['Vprime_printed']} (q = {r['fixed_points']})"
               for r in rows if r["fixed_points"].count(";")]  # fmt: skip
    share = f"{sum(r['matches'] for r in rows)} of {sum(r['printed'] for r in rows)}"
    return [
        f"Table 2: {share} printed values of tau, m, V' and V'' agree with ours.",
        f"Rows with more than one fixed point, which a deep network may settle on: {'; '.join(several)}.",
    ]


CLAIMS = (
    Claim(
        id="P10",
        where="Table 2",
        statement="the printed tau, m, V' and V'' follow from the target sparsity and V'(q*)",
        effect="printed numbers that differ from ours in the last digit, count",
        unit="printed number",
        side="below",
        threshold=0.5,
        measure=mismatches,
    ),
    Claim(
        id="P10.overlap",
        where="Fig. 2",
        statement="at one tau the variance maps of ReLU_tau and ST_tau on the edge of chaos coincide exactly",
        effect="largest difference of the two maps",
        unit="tau",
        side="below",
        threshold=1e-9,
        measure=overlap,
    ),
    Claim(
        id="P4.map",
        where="Fig. 4a",
        statement="CReLU .85/.9 and CST .7/.9 have |V(q) - q| < .02 up to q about 1.4",
        effect="largest |V(q) - q| for q in [1, 1.4]",
        unit="q",
        side="below",
        threshold=0.02,
        measure=near_identity,
    ),
)

MAPS = Study(
    name="price2024/maps",
    title="Price et al. 2024: the maps",
    introduction=(
        "A wide random network with activation phi carries the variance q of its pre-activations from layer to layer "
        "by V(q) = sigma_w^2 E phi(sqrt(q) x)^2 + sigma_b^2, x a standard normal. Weights and biases on the edge of "
        "chaos hold q at q* and gradients at chi_1 = 1. Whether a sparse network can be trained then depends on the "
        "shape of V around q*: these are the paper's maps, computed in float64 from closed forms."
    ),
    figures={
        "Fig. 4": failing_maps,
        "Fig. 1": activations,
        "Figs. 2 and 9": unclipped_maps,
        "Fig. 3": slope_and_curvature,
        "Figs. 6 and 7": correlation_maps,
        "Fig. 8": edges,
        "Figs. 10 and 11": clipped_maps,
    },
    findings=findings,
    claims=CLAIMS,
    table=table_2,
)
