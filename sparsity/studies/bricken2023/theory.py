"""Bricken et al. 2023: what noise at the input costs a ReLU network, as printed and as it is; no network is trained.

z is a unit's pre-activation without noise, s = sigma ||w_e|| its deviation under noise, h = relu(z), and
eta = relu(z + s u) - relu(z), u ~ N(0, 1). The correct values are those of `sparsity.theory.noise_loss`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy.integrate import quad
from scipy.special import ndtr

from sparsity.studies import draw
from sparsity.studies.draw import Drawing, Runs
from sparsity.studies.judge import Claim, Effect
from sparsity.studies.runner import Record, Row, Study
from sparsity.theory.noise_loss import (
    cross_moment,
    flip_probability,
    jacobian_penalty,
    mean_shift,
    noise_loss,
    second_moment,
)

DRAWS = 200_000  # of every Monte Carlo value
AGREES = 5.0  # standard errors

ON = tuple({"z": z, "s": s} for z, s in ((0.7, 0.5), (2.0, 1.5), (0.1, 3.0)))
OFF = tuple({"z": -one["z"], "s": one["s"]} for one in ON)
# Two units j and k that feed one output with weights w; rho is the cosine of their encoder weights.
PAIRS = (
    {"z_j": 0.7, "s_j": 0.5, "z_k": -0.7, "s_k": 0.5, "rho": 0.6, "w_j": 2.0, "w_k": -1.0},
    {"z_j": 1.0, "s_j": 1.0, "z_k": 1.0, "s_k": 1.0, "rho": -0.9, "w_j": 0.5, "w_k": 0.5},
    {"z_j": -1.0, "s_j": 1.0, "z_k": -0.2, "s_k": 2.0, "rho": 0.9, "w_j": 1.0, "w_k": 3.0},
)
FAR_PAIRS = tuple(pair | {"z_j": 2.0, "s_j": 0.2, "z_k": 1.0, "s_k": 0.1} for pair in PAIRS)  # so little noise


def _relu(z):
    return np.maximum(z, 0.0)


def _integral(f: Callable[[float], float], low: float, s: float) -> float:
    """The integral of f(eps) N(eps; 0, s^2) from `low` to 12 s, where the density has ended."""
    density = lambda eps: np.exp(-0.5 * (eps / s) ** 2) / (s * np.sqrt(2 * np.pi))
    return quad(lambda eps: f(eps) * density(eps), low, 12 * s)[0]


def _printed_17(z_j, s_j, z_k, s_k, rho, w_j, w_k, r) -> float:
    margin = w_j * mean_shift(z_j, s_j) + w_k * mean_shift(z_k, s_k)
    sparsity = w_j * second_moment(z_j, s_j) + w_k * second_moment(z_k, s_k)
    return r**2 - 2 * r * margin + sparsity + 2 * w_j * w_k * cross_moment(z_j, s_j, z_k, s_k, rho)


def _squared_noise(z_j, s_j, z_k, s_k, rho, w_j, w_k) -> float:
    """E[(w_j eta_j + w_k eta_k)^2]."""
    alone = w_j**2 * second_moment(z_j, s_j) + w_k**2 * second_moment(z_k, s_k)
    return alone + 2 * w_j * w_k * cross_moment(z_j, s_j, z_k, s_k, rho)


def _loss(r, **pair) -> float:
    """E[(r - w_j eta_j - w_k eta_k)^2]."""
    margin = sum(pair[f"w_{i}"] * mean_shift(pair[f"z_{i}"], pair[f"s_{i}"]) for i in "jk")
    return r**2 - 2 * r * margin + _squared_noise(**pair)


def _slopes(z_j, s_j, z_k, s_k, w_j, w_k) -> tuple[float, float]:
    """The products w phi' s of both units: sigma times what each adds to the Jacobian, but for its direction."""
    return w_j * s_j * (z_j > 0), w_k * s_k * (z_k > 0)


def _jacobian(z_j, s_j, z_k, s_k, rho, w_j, w_k) -> float:
    """sigma^2 ||J||^2 of the two units."""
    j, k = _slopes(z_j, s_j, z_k, s_k, w_j, w_k)
    return j**2 + k**2 + 2 * rho * j * k


def _two(rng, z_j, s_j, z_k, s_k, rho, w_j, w_k, change) -> np.ndarray:
    """w_j c_j + w_k c_k of draws of the noise, c = change(z, noise)."""
    u, v = rng.normal(size=(2, DRAWS))
    v = rho * u + np.sqrt(1 - rho**2) * v
    return w_j * change(z_j, s_j * u) + w_k * change(z_k, s_k * v)


def _eta(z, noise) -> np.ndarray:
    return _relu(z + noise) - _relu(z)


def _one(f: Callable[[float, np.ndarray], np.ndarray]) -> Callable[..., np.ndarray]:
    """Draws of f(z, z~)."""
    return lambda rng, z, s: f(z, z + s * rng.normal(size=DRAWS))


@dataclasses.dataclass(frozen=True)
class Equation:
    """One printed equation.

    Attributes:
      number: as printed; "text" if it has none.
      where: of the paper.
      says: what it gives, and how.
      examples: arguments of all that follows.
      printed, correct: its value.
      draws: (rng, arguments) -> numbers whose mean is the quantity.
    """

    number: str
    where: str
    says: str
    examples: tuple[Mapping[str, float], ...]
    printed: Callable[..., float]
    correct: Callable[..., float]
    draws: Callable[..., np.ndarray]


EQUATIONS = (
    Equation(
        "4",
        "Sec. 3",
        "E[eta] is the integral of N(x; 0, s) (x - |z|) from |z|",
        OFF + ON,
        lambda z, s: _integral(lambda x: x - abs(z), abs(z), s),
        mean_shift,
        _one(lambda z, noisy: _relu(noisy) - _relu(z)),
    ),
    Equation(
        "16",
        "App. E; Eq. 5",
        "E[xi^2] = E[sum_j W_j^2 eta_j^2 + sum_{k != j} W_j W_k eta_j eta_k]",
        PAIRS,
        _squared_noise,
        _squared_noise,
        lambda rng, **pair: _two(rng, change=_eta, **pair) ** 2,
    ),
    Equation(
        "17",
        "App. E",
        "the loss, with W_j E[eta_j^2] as its second term",
        tuple(pair | {"r": r} for pair, r in zip(PAIRS, (0.0, 1.0, -1.0), strict=True)),
        _printed_17,
        _loss,
        lambda rng, r, **pair: (r - _two(rng, change=_eta, **pair)) ** 2,
    ),
    Equation(
        "20",
        "App. E",
        "the variance of the noisy pre-activation is sigma^2 ||w||^2 = s^2",
        OFF + ON,
        lambda z, s: s**2,
        lambda z, s: s**2,
        _one(lambda z, noisy: (noisy - z) ** 2),
    ),
    Equation(
        "text before 21, flips",
        "App. E",
        "a unit flips with probability CDF(-|z| / s^2)",
        OFF + ON,
        lambda z, s: ndtr(-abs(z) / s**2),
        flip_probability,
        _one(lambda z, noisy: (noisy > 0) != (z > 0)),
    ),
    Equation(
        "text before 21, mean",
        "App. E",
        "E[h~] is z plus the integral of Eq. 4",
        OFF + ON,
        lambda z, s: z + _integral(lambda x: x - abs(z), abs(z), s),
        lambda z, s: _relu(z) + mean_shift(z, s),
        _one(lambda z, noisy: _relu(noisy)),
    ),
    Equation(
        "21",
        "App. E",
        "E[h~] is h plus the closed form of that integral",
        OFF + ON,
        lambda z, s: _relu(z) + s * np.exp(-0.5 * (z / s) ** 2) / np.sqrt(2 * np.pi) - abs(z) * ndtr(-abs(z) / s),
        lambda z, s: _relu(z) + mean_shift(z, s),
        _one(lambda z, noisy: _relu(noisy)),
    ),
    Equation(
        "22",
        "App. E",
        "on: E[eta^2] is z^2 P(eps < -z) plus the integral of eps^2 from -z",
        ON,
        lambda z, s: z**2 * _integral(lambda eps: 1.0, z, s) + _integral(lambda eps: eps**2, -z, s),
        second_moment,
        _one(lambda z, noisy: (_relu(noisy) - z) ** 2),
    ),
    Equation(
        "23",
        "App. E",
        "on: the same, with z^2 CDF(-z / s^2)",
        ON,
        lambda z, s: z**2 * ndtr(-z / s**2) + _integral(lambda eps: eps**2, -z, s),
        second_moment,
        _one(lambda z, noisy: (_relu(noisy) - z) ** 2),
    ),
    Equation(
        "25",
        "App. E; Eq. 24",
        "off: E[eta^2] is the integral of eps^2 from |z|",
        OFF,
        lambda z, s: _integral(lambda eps: eps**2, abs(z), s),
        second_moment,
        _one(lambda z, noisy: _relu(noisy) ** 2),
    ),
    Equation(
        "26",
        "App. F",
        "for small noise it adds sigma^2 ||J||^2 to the loss",
        tuple(pair | {"r": 0.5} for pair in FAR_PAIRS),
        lambda r, **pair: r**2 + _jacobian(**pair),
        _loss,
        lambda rng, r, **pair: (r - _two(rng, change=_eta, **pair)) ** 2,
    ),
    Equation(
        "27",
        "App. F",
        "||J||^2 is the sum over units of squares: no cross terms",
        FAR_PAIRS,
        lambda rho, **pair: float(np.square(_slopes(**pair)).sum()),
        _jacobian,
        lambda rng, **pair: _two(rng, change=lambda z, noise: (z > 0) * noise, **pair) ** 2,
    ),
    Equation(
        "text, batches",
        "App. H.2",
        "the variance of the mean of b noises is sigma / sqrt(b)",
        tuple({"sigma": sigma, "b": b} for sigma, b in ((2.0, 16), (1.0, 9), (0.3, 4))),
        lambda sigma, b: sigma / b**0.5,
        lambda sigma, b: sigma**2 / b,
        lambda rng, sigma, b: (sigma * rng.normal(size=(b, DRAWS)).mean(0)) ** 2,
    ),
)


def table(_: Sequence[Record] = ()) -> list[Row]:
    """Every printed equation at every example: its value as printed, the correct one, and a Monte Carlo mean.

    z: pre-activation without noise, s = sigma ||w||: its deviation under noise; of two units j and k, rho is the cosine
    of their encoder weights, w their decoder weights, r the residual without noise. se: of the Monte Carlo mean of
    200,000 draws; off: |printed - Monte Carlo| / se.
    """
    return list(_rows())


@functools.cache
def _rows() -> tuple[Row, ...]:
    rng, rows = np.random.default_rng(0), []
    for equation in EQUATIONS:
        for example in equation.examples:
            sample = np.asarray(equation.draws(rng, **example), np.float64)
            mean, se = float(sample.mean()), float(sample.std(ddof=1)) / DRAWS**0.5
            printed, correct = float(equation.printed(**example)), float(equation.correct(**example))
            rows.append(
                {
                    "equation": equation.number,
                    "says": equation.says,
                    "at": ", ".join(f"{key} = {value:g}" for key, value in example.items()),
                    "printed": printed,
                    "correct": correct,
                    "printed / correct": printed / correct,
                    "Monte Carlo": mean,
                    "se": se,
                    "off": abs(printed - mean) / se,
                }
            )
    return tuple(rows)


def second_moments(_: Runs) -> Drawing:
    """Figs. 4 and 18: E[eta^2] / s^2 of a unit against z / s; dotted as printed in Eqs. 23 and 25, at s = .5.

    A unit that is on (z > 0) costs more than one that is as far off; far from its threshold, s^2 or nothing.
    """
    figure, axes = draw.panels(1, 1, height=3.2)
    s = 0.5
    printed = {e.number: e.printed for e in EQUATIONS}
    for z, number, color in ((s * np.linspace(-4, 0, 81), "25", "C0"), (s * np.linspace(0, 4, 81), "23", "C1")):
        label = "off" if number == "25" else "on"
        axes[0].plot(z / s, second_moment(z, s) / s**2, color=color, label=label)
        wrong = [printed[number](one, s) / s**2 for one in z]
        axes[0].plot(z / s, wrong, ":", color=color, label=f"Eq. {number}, as printed")
    axes[0].set(xlabel="z / s", ylabel="E[eta^2] / s^2", ylim=(0, None))
    axes[0].legend()
    return draw.done(figure)


def truncation(_: Runs) -> Drawing:
    """Figs. 4 and 17: a unit on (z = 1, left) and off (z = -1, right) under noise of s = 1.

    Top: the noisy pre-activation, z dotted. Middle: the noisy activation, the bar at 0 its probability of being 0; h
    dotted in black, E[h~] in blue, to the right of it. Bottom: what each noise adds to E[eta^2]; dotted as in Eq. 25.
    """
    figure, axes = draw.panels(3, 2, height=1.9, sharex=True, sharey="row")
    x = np.linspace(-4, 5, 901)
    density = lambda x: np.exp(-0.5 * x**2) / np.sqrt(2 * np.pi)
    for column, z in enumerate((1.0, -1.0)):
        h = max(z, 0.0)
        axes[0, column].plot(x, density(x - z))
        axes[0, column].axvline(z, color="k", ls=":")
        axes[1, column].plot(x[x > 0], density(x[x > 0] - z))
        axes[1, column].bar(0, ndtr(-z), width=0.12, color="C0", alpha=0.5)
        axes[1, column].axvline(h, color="k", ls=":")
        axes[1, column].axvline(h + mean_shift(z, 1.0), color="C0", ls=":")
        axes[2, column].plot(x, density(x - z) * (_relu(x) - h) ** 2)
        if z < 0:
            axes[2, column].plot(x[x > 0], density(x[x > 0] - z) * (x[x > 0] - z) ** 2, "C1:", label="Eq. 25")
            axes[2, column].legend()
        axes[0, column].set_title(f"{'on' if z > 0 else 'off'}: z = {z:g}")
        axes[2, column].set_xlabel("noisy pre-activation, activation")
    for row, label in enumerate(("density of z~", "density of h~", "p(eps) eta^2")):
        axes[row, 0].set_ylabel(label)
    return draw.done(figure)


def what_noise_costs(_: Runs) -> Drawing:
    """Fig. 1, in numbers: what a unit costs by where its pre-activation stands, z / s, in units of s and s^2.

    E[eta], the margin term's, is largest on the threshold; E[eta^2], the sparsity term's, rises from off to on. A unit
    that is off, and far on when it is on, costs least.
    """
    figure, axes = draw.panels(1, 1, height=3.2)
    t = np.linspace(-4, 4, 161)
    axes[0].plot(t, mean_shift(t, 1.0), label="E[eta] / s")
    axes[0].plot(t, second_moment(t, 1.0), label="E[eta^2] / s^2")
    axes[0].plot(t, flip_probability(t, 1.0), color="k", lw=0.8, label="probability of a flip")
    axes[0].set(xlabel="z / s", ylim=(0, None))
    axes[0].legend()
    return draw.done(figure)


def flips(_: Runs) -> Drawing:
    """App. E, before Eq. 21: the probability that noise flips a unit, and (dotted) the printed CDF(-|z| / s^2)."""
    figure, axes = draw.panels(1, 1, height=3.2)
    t = np.linspace(0, 4, 81)
    axes[0].plot(t, flip_probability(t, 1.0), color="k", label="Phi(-|z| / s)")
    for i, s in enumerate((0.5, 2.0)):
        axes[0].plot(t, ndtr(-t / s), ":", color=f"C{i}", label=f"as printed, s = {s:g}")
    axes[0].set(xlabel="|z| / s", ylabel="probability of a flip", yscale="log", ylim=(1e-5, 1))
    axes[0].legend()
    return draw.done(figure)


def cross_moments(_: Runs) -> Drawing:
    """App. E, #3: E[eta_j eta_k] of two units against the cosine of their encoder weights, s = 1.

    It grows with the cosine. Below 0 it is negative for two units that are on: its least is not at independence.
    """
    figure, axes = draw.panels(1, 1, height=3.2)
    rho = np.linspace(-1, 1, 201)
    for z_j, z_k in ((1.0, 1.0), (0.0, 0.0), (-1.0, -1.0), (1.0, -1.0)):
        axes[0].plot(rho, cross_moment(z_j, 1.0, z_k, 1.0, rho), label=f"z = {z_j:g} and {z_k:g}")
    axes[0].axhline(0, color="k", lw=0.6)
    axes[0].set(xlabel="cosine of encoder weights", ylabel="E[eta_j eta_k]")
    axes[0].legend()
    return draw.done(figure)


def first_order(_: Runs) -> Drawing:
    """App. F: what noise does to the output, E||y~ - y||^2 / sigma^2: exactly, to first order, and by Eq. 27.

    A random network of 10 inputs and outputs with tied weights, 20 units, 8 examples. First order holds until noise
    reaches the thresholds.
    """
    rng = np.random.default_rng(0)
    w_e, b_e, x = (rng.normal(size=size) for size in ((20, 10), (20,), (8, 10)))
    w_d = w_e.T
    slope = (x @ w_e.T + b_e > 0).astype(float)
    sigmas = np.geomspace(0.01, 10, 40)
    terms = [noise_loss(w_e, b_e, w_d, np.zeros(10), x, sigma) for sigma in sigmas]
    diagonal = (np.square(w_e).sum(1) * np.square(w_d).sum(0) * slope).sum(1).mean()
    figure, axes = draw.panels(1, 1, height=3.2)
    exact = np.array([t.sparsity + t.specialization for t in terms])
    axes[0].plot(sigmas, exact / sigmas**2, "k", label="exact")
    axes[0].axhline(jacobian_penalty(w_e, w_d, slope, 1.0).mean(), color="C0", label="Eq. 26, ||J||^2")
    axes[0].axhline(diagonal, color="C1", ls=":", label="Eq. 27, as printed")
    axes[0].set(xlabel="sigma", ylabel="E||y~ - y||^2 / sigma^2", xscale="log", ylim=(0, None))
    axes[0].legend()
    return draw.done(figure)


def findings(_: Sequence[Record] = ()) -> list[str]:
    """Which equations hold as printed, and by how much the others are off, in sentences."""
    by_number = {e.number: [r for r in _rows() if r["equation"] == e.number] for e in EQUATIONS}
    holds = [n for n, rows in by_number.items() if max(r["off"] for r in rows) < AGREES]
    out = [f"As printed, these hold within {AGREES:g} standard errors: {', '.join(holds)}."]
    for number, rows in by_number.items():
        if number not in holds:
            first = rows[0]
            value = f"{first['printed']:.3g} is printed for {first['correct']:.3g} at {first['at']}"
            out.append(f"Not {number} ({first['says']}): {value}; Monte Carlo {first['Monte Carlo']:.3g}.")
    opposed = float(cross_moment(1.0, 1.0, 1.0, 1.0, -1.0))
    out.append(
        f"Of two units at z = s the cross moment is {opposed:.2f} s^2 at cosine -1, below that at cosine 0: to "
        "minimise it is not to decorrelate the noise of units."
    )
    return out


def _holds(equation: Equation) -> Claim:
    def off(_: Sequence[Record]) -> Effect:
        values = [row["off"] for row in _rows() if row["equation"] == equation.number]
        return Effect(max(values), 0.0, len(values), exact=True)

    return Claim(
        id=f"Eq. {equation.number}" if equation.number[0].isdigit() else f"{equation.where}, {equation.number}",
        where=equation.where,
        statement=f"as printed: {equation.says}",
        effect="largest |printed - Monte Carlo| over the examples, standard errors",
        unit="example",
        side="below",
        threshold=AGREES,
        measure=off,
    )


def _least(values: np.ndarray) -> Effect:
    return Effect(float(values.min()), 0.0, values.size, exact=True)


T = np.linspace(0, 5, 101)  # |z| / s
CLAIMS = (
    *(_holds(equation) for equation in EQUATIONS),
    Claim(
        id="Eq. 4, sign",
        where="Sec. 3, App. E",
        statement="noise raises the mean activation: E[eta] is positive",
        effect="least E[eta] / s for z / s in [-5, 5]",
        unit="z / s",
        side="above",
        threshold=0.0,
        measure=lambda _: _least(mean_shift(np.concatenate([-T[:0:-1], T]), 1.0)),
    ),
    Claim(
        id="App. E, #1",
        where="App. E",
        statement="and the less, the farther the unit is from its threshold, on or off",
        effect="least fall of E[eta] / s per step of .05 away from the threshold, |z| / s up to 5",
        unit="z / s",
        side="above",
        threshold=0.0,
        measure=lambda _: _least(-np.diff(np.stack([mean_shift(T, 1.0), mean_shift(-T, 1.0)]))),
    ),
    Claim(
        id="App. E, #2, on",
        where="App. E; Sec. 3, observation 1",
        statement="a unit costs more on than off",
        effect="least E[eta^2] / s^2 of a unit on less that of one as far off, |z| / s in (0, 5]",
        unit="z / s",
        side="above",
        threshold=0.0,
        measure=lambda _: _least(second_moment(T[1:], 1.0) - second_moment(-T[1:], 1.0)),
    ),
    Claim(
        id="App. E, #2, off",
        where="App. E; Sec. 3, observation 2",
        statement="a unit that is off costs the less, the more negative its pre-activation",
        effect="least fall of E[eta^2] / s^2 per step of .05 away from the threshold, off, |z| / s up to 5",
        unit="z / s",
        side="above",
        threshold=0.0,
        measure=lambda _: _least(-np.diff(second_moment(-T, 1.0))),
    ),
)

THEORY = Study(
    name="bricken2023/theory",
    title="Bricken et al. 2023: the equations",
    introduction=(
        "Noise of deviation sigma at the input of y = W_d relu(W_e x + b_e) + b_d changes each unit's activation by "
        "eta. The paper derives what that adds to the squared error: a term in E[eta] (margin), one in E[eta^2] "
        "(sparsity), one in E[eta_j eta_k] (specialization). Each printed equation is held against a Monte Carlo "
        "sample and against closed forms that were derived anew; the conclusions are judged on the correct ones."
    ),
    findings=findings,
    figures={
        "Figs. 4 and 18": second_moments,
        "Figs. 4 and 17": truncation,
        "Fig. 1": what_noise_costs,
        "Probability of a flip": flips,
        "Specialization": cross_moments,
        "Small noise": first_order,
    },
    claims=CLAIMS,
    table=table,
)
