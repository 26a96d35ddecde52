"""Beyond Price et al. 2024: clipped activations with smooth kinks, an open question of theirs (Sec. 5).

No paper claims an answer; the "claim" judged is the hopeful one.
"""

from __future__ import annotations

from collections.abc import Sequence

from sparsity.studies.judge import Claim
from sparsity.studies.price2024.runs import by_row, gain, loss_by_row, sentences, summary
from sparsity.studies.price2024.table2 import accuracy_by_row
from sparsity.studies.runner import Record, Row, Study
from sparsity.theory.maps import MeanField

NEARLY = 0.01  # |h| up to this counts as zero in the column "nearly zero"


def table(records: Sequence[Record]) -> list[Row]:
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
        rows.append({"row": row} | theory | summary(list(runs.values())))
    return rows


def findings(records: Sequence[Record]) -> list[str]:
    """The rows, in sentences."""
    return sentences(table(records))


SMOOTH = Study(
    name="price2024/smooth",
    title="Beyond Price et al. 2024: clipped activations with smooth kinks",
    introduction=(
        "CReLU and CST at 85% sparsity and V' = .7, with every kink replaced by a parabola over w to either side. The "
        "zeros stay exact; threshold and clip move so that sparsity and V' are those of the sharp activation."
    ),
    findings=findings,
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
            measure=gain(f"{kind}_0.85_0.7_smooth_0.25", over=f"{kind}_0.85_0.7"),
        )
        for kind in ("crelu", "cst")
    ),
    table=table,
    draws_diverged=True,
)
