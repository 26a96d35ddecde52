"""Beyond Price et al. 2024: clipped activations on the edge of chaos in a Transformer, an open question (Sec. 5).

No paper claims an answer; the "claim" judged is the hopeful one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sparsity.studies.judge import Claim
from sparsity.studies.price2024.runs import (
    by_row,
    gain,
    loss_by_row,
    measured,
    sentences,
    summary,
    zeros_at_start,
)
from sparsity.studies.runner import Record, Row, Study


def table(records: Sequence[Record]) -> list[Row]:
    """A ViT's activation and the initialisation of its MLPs, against test accuracy and zeros over n seeds.

    zeros, start: share of zeros on the first training batch, mean over layers and seeds; zeros: on the test split after
    training; dead: units that are nonzero on no test token.
    """
    rows = []
    for row, runs in by_row(records).items():
        members = list(runs.values())
        start = float(np.mean([zeros_at_start(r) for r in members]))
        dead = float(np.mean([measured(r, "dead.mean") for r in members]))
        rows.append({"row": row, "zeros, start": start} | summary(members) | {"dead": dead})
    return rows


def findings(records: Sequence[Record]) -> list[str]:
    """The rows, in sentences."""
    return sentences(table(records))


RESIDUAL = Study(
    name="price2024/residual",
    title="Beyond Price et al. 2024: the edge of chaos in a Transformer",
    introduction=(
        "The quickstart's ViT with ReLU, CReLU and CST (85% zeros, V' = .7) in its MLPs. With Xavier's initialisation "
        "pre-activations start with a variance well below 1, so that thresholds made for 1 leave few units on; with "
        "the edge-of-chaos initialisation the target sparsity holds from the first step."
    ),
    findings=findings,
    claims=tuple(
        Claim(
            id=f"residual.{kind}",
            where="Sec. 5 (open question)",
            statement=f"edge-of-chaos initialisation raises the accuracy of a ViT with {kind}",
            effect="test accuracy with edge-of-chaos initialisation less that with Xavier's",
            unit="seed",
            side="above",
            threshold=0.0,
            measure=gain(f"{row}_edge_of_chaos", over=f"{row}_xavier", yardstick="relu_xavier"),
        )
        for kind, row in (("CReLU .85/.7", "crelu_0.85_0.7"), ("CST .85/.7", "cst_0.85_0.7"))
    ),
    figures={"Training loss": loss_by_row},
    table=table,
)
