"""Li et al. 2022, Theorem 3.1: the gradient of activations at initialisation, measured, and over the first steps."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
from scipy.special import softmax

from sparsity.data.digits import Digits
from sparsity.studies import draw
from sparsity.studies.draw import Drawing, Runs
from sparsity.studies.judge import Claim, Effect
from sparsity.studies.runner import Record, Row, Study
from sparsity.theory.first_gradient import cross_entropy_gradient, leading_cross_entropy_gradient, mse_gradient

UNITS, CLASSES, EXAMPLES, DRAWS, SEEDS = 512, 10, 64, 400, 5
SCALES = (0.1, 1.0, 3.0)  # of the last layer's deviation, over 1 / sqrt(UNITS)
STEPS, RATE = 200, 0.1


def _network(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inputs [n, 64], one-hot labels [n, K] and the first layer's weights [64, F], He et al.'s, of a seed."""
    source, rng = Digits(shift=0), np.random.default_rng(seed)
    split = source.load("train")
    chosen = rng.permutation(len(split))[:EXAMPLES]
    x = source.normalise(split.images[chosen]).reshape(EXAMPLES, -1).astype(np.float64)
    return x, np.eye(CLASSES)[split.labels[chosen]], rng.normal(0, math.sqrt(2 / x.shape[1]), (x.shape[1], UNITS))


def _slope(loss: str, f: np.ndarray, y: np.ndarray) -> np.ndarray:
    """dl/df [n, K]."""
    return f - y if loss == "mse" else softmax(f, -1) - y


@functools.cache
def measured(loss: str, scale: float, seed: int) -> tuple[float, float, float, float]:
    """Of one network, its last layer drawn `DRAWS` times: means over examples of sum_i p_i dl/dp_i.

    Measured, as the closed form has it, to leading order, and the share of units that are active on some example whose
    mean gradient over draws and the examples that they are active on is positive.
    """
    x, y, w = _network(seed)
    p, rng, deviation = np.maximum(x @ w, 0), np.random.default_rng((seed, 1)), scale / math.sqrt(UNITS)
    total, of_unit = 0.0, np.zeros(UNITS)
    for _ in range(DRAWS):
        v = rng.normal(0, deviation, (UNITS, CLASSES))
        gradient = _slope(loss, p @ v, y) @ v.T * (p > 0)
        total += float((p * gradient).sum(1).mean()) / DRAWS
        of_unit += gradient.sum(0) / DRAWS
    norm2 = CLASSES * deviation**2
    if loss == "mse":
        exact = leading = [mse_gradient(row, norm2) for row in p]
    else:
        exact = [cross_entropy_gradient(row, CLASSES, deviation**2) for row in p]
        leading = [leading_cross_entropy_gradient(row, CLASSES, norm2) for row in p]
    weighted = lambda rows: float((p * np.array(rows)).sum(1).mean())
    active = (p > 0).any(0)
    return total, weighted(exact), weighted(leading), float((of_unit[active] > 0).mean())


@functools.cache
def first_steps(seed: int) -> np.ndarray:
    """Mean over examples of sum_i p_i dl/dp_i [STEPS], cross-entropy, while both layers are trained by SGD."""
    x, y, w = _network(seed)
    v = np.random.default_rng((seed, 2)).normal(0, 1 / math.sqrt(UNITS), (UNITS, CLASSES))
    out = np.empty(STEPS)
    for step in range(STEPS):
        p = np.maximum(x @ w, 0)
        slope = _slope("ce", p @ v, y)
        gradient = slope @ v.T * (p > 0)
        out[step] = (p * gradient).sum(1).mean()
        v, w = v - RATE * p.T @ slope / len(x), w - RATE * x.T @ gradient / len(x)
    return out


def table(records: Sequence[Record] = ()) -> list[Row]:
    """Means over n networks of sum_i p_i dl/dp_i, mean over examples and over draws of the last layer.

    weights: deviation of the last layer's, over 1 / sqrt(units). measured (se: over networks), exact: the closed form
    (cross-entropy's is not in the paper), leading: for small weights. positive: share of active units whose mean
    gradient is positive.
    """
    rows = []
    for loss in ("mse", "ce"):
        for scale in SCALES:
            found = np.array([measured(loss, scale, seed) for seed in range(SEEDS)])
            mean, se = found.mean(0), float(found[:, 0].std(ddof=1) / math.sqrt(SEEDS))
            rows.append(
                {
                    "loss": {"mse": "squared error", "ce": "cross-entropy"}[loss],
                    "weights": scale,
                    "n": SEEDS,
                    "measured": float(mean[0]),
                    "se": se,
                    "exact": float(mean[1]),
                    "leading": float(mean[2]),
                    "positive": float(mean[3]),
                }
            )
    return rows


def ratios(runs: Runs) -> Drawing:
    """Theorem 3.1: the measured mean gradient over its closed form (left) and over the leading order (right).

    By the size of the last layer's weights; dots are networks.
    """
    figure, axes = draw.panels(1, 2, sharey=True)
    for axis, (title, i) in zip(axes, {"closed form": 1, "leading order": 2}.items(), strict=True):
        for loss, color in (("mse", "C0"), ("ce", "C3")):
            for scale in SCALES:
                values = [measured(loss, scale, seed) for seed in range(SEEDS)]
                label = {"mse": "squared error", "ce": "cross-entropy"}[loss] if scale == SCALES[0] else None
                axis.plot(
                    [scale] * SEEDS, [v[0] / v[i] for v in values], "o", color=color, ms=4, alpha=0.6, label=label
                )
        axis.axhline(1, color="k", lw=0.8)
        axis.set(title=f"measured over {title}", xscale="log", xlabel="weights of the last layer (1 / sqrt(units))")
    axes[0].legend()
    return draw.done(figure)


def sign_by_step(runs: Runs) -> Drawing:
    """Mean over examples of sum_i p_i dl/dp_i, cross-entropy, over the first steps of SGD; lines are networks.

    Where it is below 0 descent makes active units more active.
    """
    figure, axes = draw.panels(1, 1)
    for seed in range(SEEDS):
        axes[0].plot(np.arange(STEPS) + 1, first_steps(seed), color="C3", lw=1, alpha=0.7)
    axes[0].axhline(0, color="k", lw=0.8)
    axes[0].set(xlabel="step", xscale="log", ylabel="mean of sum p dl/dp")
    return draw.done(figure)


def positive_steps(seed: int) -> int:
    """Steps from the first on at which the gradient is positive without a break."""
    negative = np.flatnonzero(first_steps(seed) <= 0)
    return int(negative[0]) if len(negative) else STEPS


def findings(records: Sequence[Record] = ()) -> list[str]:
    """How far the closed forms are off, and how long the sign holds."""
    rows = table()
    worst = max(rows, key=lambda row: abs(row["measured"] / row["exact"] - 1))
    steps = [positive_steps(seed) for seed in range(SEEDS)]
    return [
        f"Measured over closed form is farthest from 1 for {worst['loss']} at weights {worst['weights']:g}: "
        f"{worst['measured'] / worst['exact']:.3f}.",
        f"Training by SGD, cross-entropy's gradient stays positive for {min(steps)} to {max(steps)} steps.",
    ]


def _of_networks(value) -> Effect:
    return Effect.of([value(seed) for seed in range(SEEDS)])


def _ratio(loss: str, scale: float, i: int):
    def measure(records) -> Effect:
        return _of_networks(lambda seed: abs(measured(loss, scale, seed)[0] / measured(loss, scale, seed)[i] - 1))

    return measure


CLAIMS = (
    Claim(
        "L17.mse",
        "Theorem 3.1, Eq. 5",
        "with squared error the mean gradient of an activation is p_i E||v_i||^2",
        "|measured over that, less 1|, weights 1 / sqrt(units)",
        "network",
        "below",
        0.05,
        _ratio("mse", 1.0, 1),
        headline=False,
    ),
    Claim(
        "L17.ce",
        "Theorem 3.1, Eq. 6",
        "with cross-entropy it is positive",
        "sum over units of p_i times the mean gradient, mean over examples, weights 1 / sqrt(units)",
        "network",
        "above",
        0.0,
        lambda records: _of_networks(lambda seed: measured("ce", 1.0, seed)[0]),
    ),
    Claim(
        "L17.leading",
        "beyond: small weights",
        "and for small weights p_i E||v_i||^2 (1 - 1/K) / K",
        "|measured over that, less 1|, weights a tenth of 1 / sqrt(units)",
        "network",
        "below",
        0.2,
        _ratio("ce", 0.1, 2),
    ),
    Claim(
        "L17.exact",
        "beyond: any Gaussian weights",
        "and in general p_i s^2 (1 - E sum pi_k^2)",
        "|measured over that, less 1|, weights three times 1 / sqrt(units)",
        "network",
        "below",
        0.05,
        _ratio("ce", 3.0, 1),
    ),
)

THEOREM = Study(
    name="li2022/theorem",
    title="Li et al. 2022, Theorem 3.1: at initialisation descent makes activations smaller",
    introduction=(
        "One ReLU layer reads digits, and the layer after it is drawn anew many times. The paper proves that the "
        "gradient of a positive activation is positive on average over these draws, for squared error and "
        "cross-entropy; here it is measured, next to its value in closed form, and followed over the first steps."
    ),
    findings=findings,
    figures={"Measured and in closed form": ratios, "The first steps": sign_by_step},
    claims=CLAIMS,
    table=table,
)
