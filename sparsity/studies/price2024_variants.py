"""Beyond Price et al. 2024: smooth kinks, a larger fixed point, and the edge of chaos in a Transformer, trained.

No paper claims these; each study asks a question, and the "claim" judged is the hopeful answer.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import numpy as np

from sparsity.studies.judge import Claim, Effect
from sparsity.studies.price2024_runs import (
    accuracy,
    accuracy_by_row,
    by_row,
    loss_by_row,
    measured,
    over_seeds,
    sparsity,
    table_findings,
    zeros_at_start,
)
from sparsity.studies.runner import Record, Row, Study
from sparsity.theory.maps import MeanField


def _summary(runs: Sequence[Record]) -> Row:
    """Accuracy over seeds (a diverged run counts as chance) and zeros of the others."""
    values = [accuracy(r) for r in runs]
    kept = [s for s in map(sparsity, runs) if not math.isnan(s)]
    n = len(values)
    std = float(np.std(values, ddof=1)) if n > 1 else None
    return {
        "n": n,
        "diverged": sum(r.outcome.status == "diverged" for r in runs),
        "accuracy": float(np.mean(values)),
        "std": std,
        "se": None if std is None else std / math.sqrt(n),
        "zeros": float(np.mean(kept)) if kept else None,
    }


def summary_findings(table: Callable[[Sequence[Record]], list[Row]]) -> Callable[[Sequence[Record]], list[str]]:
    """The rows of `table`, in sentences."""

    def findings(records: Sequence[Record]) -> list[str]:
        return [
            f"{r['row']}: test accuracy {100 * r['accuracy']:.1f} ± {100 * (r['se'] or math.nan):.1f}% (n = {r['n']})"
            + (f", zeros {100 * r['zeros']:.1f}%" if r["zeros"] is not None else "")
            + (f"; {r['diverged']} diverged" if r["diverged"] else "")
            + "."
            for r in table(records)
        ]

    return findings


def _gap(runs: list[Record], _: Record) -> float:
    return accuracy(runs[0]) - accuracy(runs[1])


def _pair(first: str, second: str, value: Callable[[list[Record], Record], float] = _gap) -> Callable[..., Effect]:
    """The effect by seed of the row `first` against the row `second`."""
    return functools.partial(over_seeds, rows=(first, second), value=value)


# Smooth kinks.

NEARLY = 0.01  # |h| up to this counts as zero in the column "nearly zero"


def table_smooth(records: Sequence[Record]) -> list[Row]:
    """Sharp and smooth activations at one sparsity and V'(q*).

    w: half-width of the rounded kinks (0: sharp). tau, m, V'' of the variance map and the expected shares of zeros and
    of |h| <= .01 (nearly zero) are theory, under N(0, 1). Then the trained networks: mean, standard deviation and
    standard error of test accuracy over n seeds, and their share of exact zeros on the test split.
    """
    rows = []
    for row, runs in by_row(records).items():
        config = next(iter(runs.values())).config.model
        entry, edge = config.sparsifier, config.edge
        activation = entry.activation()
        field = MeanField(activation, edge.sigma_w2, edge.sigma_b2)
        theory = {
            "w": getattr(entry, "width", 0.0),
            "tau": getattr(entry, "tau", 0.0),
            "m": getattr(entry, "m", None),
            "V''": float(field.variance_curvature(1.0)),
            "expected zeros": 1 - float(entry.moments(1.0).density),
            "nearly zero": 1 - float(activation.share_above(1.0, NEARLY)),
        }
        rows.append({"row": row} | theory | _summary(list(runs.values())))
    return rows


SMOOTH = Study(
    name="price2024/smooth",
    title="Beyond Price et al. 2024: clipped activations with smooth kinks",
    introduction=(
        "CReLU and CST at 85% sparsity and V' = .7, with every kink replaced by a parabola over w to either side. The "
        "zeros stay exact; threshold and clip move so that sparsity and V' are those of the sharp activation."
    ),
    findings=table_findings,
    figures={"Accuracy and sparsity": accuracy_by_row, "Training loss": loss_by_row},
    claims=tuple(
        Claim(
            id=f"smooth.{kind}",
            where="Sec. 5 (open question)",
            statement=f"{kind} with smooth kinks (w = .25) trains as well as with sharp ones",
            effect="test accuracy of the smooth activation less that of the sharp one",
            unit="seed",
            side="above",
            threshold=-0.02,
            measure=_pair(f"{kind}_0.85_0.7_smooth_0.25", f"{kind}_0.85_0.7"),
        )
        for kind in ("crelu", "cst")
    ),
    table=table_smooth,
)


# A larger fixed point.


def table_large_q(records: Sequence[Record]) -> list[Row]:
    """Test accuracy (mean, standard deviation and error over n seeds; a diverged run counts as chance) and zeros.

    A row is a network (dnn or cnn), an activation, and the arm: none is q* = 1; q4, q_logits4, q_input4 and q_clip4 are
    those of the config's docstring.
    """
    out: dict[str, list[Record]] = {}
    for record in records:
        network = record.config.name.split("_")[0]
        ((row, _),) = by_row([record]).items()
        out.setdefault(f"{network} {row}", []).append(record)
    return [{"row": row} | _summary(runs) for row, runs in out.items()]


def _dnn(measure: Callable[..., Effect]) -> Callable[[Sequence[Record]], Effect]:
    """`measure` of the deep MLPs alone: the CNN's rows have the same names."""
    return lambda records: measure([r for r in records if r.config.name.startswith("dnn")])


LARGE_Q = Study(
    name="price2024/large_q",
    title="Beyond Price et al. 2024: a larger fixed point q*",
    introduction=(
        "CReLU networks at 85 to 95% sparsity, V' = .7, with pre-activations of variance 1 and of variance 4. When "
        "threshold, clip, biases and input all scale with sqrt(q*), the network at initialisation is the same one with "
        "hidden layers and logits multiplied; what else a larger q* does is what training makes of the larger logits "
        "and of biases that learn at a smaller relative rate. Three controls take these apart."
    ),
    findings=summary_findings(table_large_q),
    figures={"Training loss": loss_by_row},
    claims=(
        Claim(
            id="large_q.helps",
            where="Dent & Tanner 2026 (follow-up)",
            statement="at s = .9 the deep MLP trains better with q* = 4 than with q* = 1",
            effect="test accuracy with q* = 4 less that with q* = 1",
            unit="seed",
            side="above",
            threshold=0.0,
            measure=_dnn(_pair("crelu_0.9_0.7_q4", "crelu_0.9_0.7")),
        ),
        Claim(
            id="large_q.logits",
            where="this repository",
            statement="and does so through its larger logits: with these divided by sqrt(q*) nothing is gained",
            effect="test accuracy with q* = 4 and logits divided by 2 less that with q* = 1",
            unit="seed",
            side="below",
            threshold=0.02,
            measure=_dnn(_pair("crelu_0.9_0.7_q_logits4", "crelu_0.9_0.7")),
        ),
    ),
    table=table_large_q,
)


# The edge of chaos in a Transformer.


def table_residual(records: Sequence[Record]) -> list[Row]:
    """A ViT's activation and the initialisation of its MLPs, against test accuracy and zeros over n seeds.

    zeros, start: share of zeros on the first training batch, mean over layers and seeds; zeros: on the test split after
    training; dead: units that are nonzero on no test token.
    """
    rows = []
    for row, runs in by_row(records).items():
        members = list(runs.values())
        start = float(np.mean([zeros_at_start(r) for r in members]))
        dead = float(np.mean([measured(r, "dead.mean") for r in members]))
        rows.append({"row": row, "zeros, start": start} | _summary(members) | {"dead": dead})
    return rows


RESIDUAL = Study(
    name="price2024/residual",
    title="Beyond Price et al. 2024: the edge of chaos in a Transformer",
    introduction=(
        "The quickstart's ViT with ReLU, CReLU and CST (85% zeros, V' = .7) in its MLPs. With Xavier's initialisation "
        "pre-activations start with a variance well below 1, so that thresholds made for 1 leave few units on; with "
        "the edge-of-chaos initialisation the target sparsity holds from the first step."
    ),
    findings=summary_findings(table_residual),
    claims=tuple(
        Claim(
            id=f"residual.{kind}",
            where="Sec. 5 (open question)",
            statement=f"edge-of-chaos initialisation raises the accuracy of a ViT with {kind}",
            effect="test accuracy with edge-of-chaos initialisation less that with Xavier's",
            unit="seed",
            side="above",
            threshold=0.0,
            measure=lambda records, row=row: Effect.of(
                [
                    accuracy(by_row(records)[f"{row}_edge_of_chaos"][seed]) - accuracy(xavier)
                    for seed, xavier in by_row(records)[f"{row}_xavier"].items()
                ]
            ),
        )
        for kind, row in (("CReLU .85/.7", "crelu_0.85_0.7"), ("CST .85/.7", "cst_0.85_0.7"))
    ),
    figures={"Training loss": loss_by_row},
    table=table_residual,
)
