"""Price et al. 2024, Fig. 5: gradient norms of each layer over the first 15 steps."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np

from sparsity.studies import draw
from sparsity.studies.draw import Drawing, Runs
from sparsity.studies.judge import Claim, Effect
from sparsity.studies.price2024.runs import FLOAT32_END, by_row, log_norms, metrics_of, row_and_seed
from sparsity.studies.runner import Record, Row, Study


def table(records: Sequence[Record]) -> list[Row]:
    """One line a run: log10 of gradient norms (L2, of a layer's weights), and losses.

    At the first step: the second layer's less the last's (growth towards the input), and the largest layer's. The
    largest layer's at the third step, and over all 15. The loss before the first step and before the last. A norm
    that is not finite counts as 38.
    """
    rows = []
    for row, runs in by_row(records).items():
        for seed, record in runs.items():
            metrics = metrics_of(record)
            logs = log_norms(metrics)
            losses = [r["loss"] for r in metrics if r["kind"] == "train"]
            rows.append(
                {
                    "row": row,
                    "seed": seed,
                    "status": record.outcome.status,
                    "growth, step 1": float(logs[0, 0] - logs[0, -1]),
                    "largest, step 1": float(logs[0].max()),
                    "largest, step 3": float(logs[2].max()) if len(logs) > 2 else FLOAT32_END,
                    "largest, 15 steps": float(logs.max()),
                    "first loss": losses[0],
                    "last loss": losses[-1],
                }
            )
    return rows


def first_gradients(runs: Runs) -> Drawing:
    """Fig. 5: gradient norm (L2, of each layer's weights) against layer for the first 15 steps, dark to light.

    Of each row the seed whose norms come to be the largest: the paper shows a run that failed. Norms that are not
    finite leave the picture at its top.
    """
    rows = list(dict.fromkeys(row_and_seed(name)[0] for name in runs))
    figure, axes = draw.panels(1, len(rows), sharex=True, sharey=True)
    for axis, row in zip(axes, rows, strict=True):
        members = {name: log_norms(view.metrics) for name, view in runs.items() if row_and_seed(name)[0] == row}
        worst = max(members, key=lambda name: members[name].max())
        for step, logs in enumerate(members[worst]):
            axis.plot(np.arange(2, len(logs) + 2), logs, color=draw.color(step, 15), lw=0.8)
        axis.set(title=f"{row}, seed {row_and_seed(worst)[1]}", xlabel="layer", ylim=(-16, 20))
    axes[0].set_ylabel("log10 gradient norm")
    return draw.done(figure)


def findings(records: Sequence[Record]) -> list[str]:
    """How large gradients come to be in 15 steps."""
    rows = table(records)
    out = []
    for row in dict.fromkeys(r["row"] for r in rows):
        mine = [r for r in rows if r["row"] == row]
        largest = ", ".join(f"{r['largest, 15 steps']:.1f}" for r in mine)
        grown = ", ".join(f"{r['growth, step 1']:.1f}" for r in mine)
        out.append(
            f"{row}: log10 of the largest gradient norm of a layer in 15 steps, by seed: {largest}; "
            f"growth from the last layer to the second at step 1: {grown}."
        )
    return out


def _over_relu(records: Sequence[Record], row: str, value: Callable[[Row], float]) -> Effect:
    """Mean over seeds of `value` of the row's run less that of ReLU's run of the seed, which trains or should."""
    rows = table(records)
    of = lambda name: {r["seed"]: value(r) for r in rows if r["row"] == name}
    ours, relu = of(row), of("relu")
    return Effect.of([ours[seed] - relu[seed] for seed in ours.keys() & relu.keys()])


CLAIMS = (
    Claim(
        id="P8.a",
        where="Fig. 5a",
        statement="CReLU .85/.9: gradients grow towards the input at the first step already",
        effect="log10 of the gradient norm of layer 2 over that of layer 100, step 1, less ReLU's",
        unit="seed",
        side="above",
        threshold=0.0,
        measure=functools.partial(_over_relu, row="crelu_0.85_0.9", value=lambda r: r["growth, step 1"]),
    ),
    Claim(
        id="P8.a3",
        where="Fig. 5a",
        statement="and reach very large values by step 3",
        effect="log10 of the largest gradient norm of a layer at step 3, less ReLU's",
        unit="seed",
        side="above",
        threshold=2.0,
        measure=functools.partial(_over_relu, row="crelu_0.85_0.9", value=lambda r: r["largest, step 3"]),
    ),
    Claim(
        id="P8.b",
        where="Fig. 5b",
        statement="CST .85 at V' = .8: gradients are of order 1 at the first step",
        effect="log10 of the largest gradient norm of a layer at step 1",
        unit="seed",
        side="below",
        threshold=1.0,
        measure=lambda records: Effect.of([r["largest, step 1"] for r in table(records) if r["row"] == "cst_0.85_0.8"]),
    ),
    Claim(
        id="P8.b15",
        where="Fig. 5b",
        statement="and explode within 15 steps",
        effect="log10 of the largest gradient norm of 15 steps over that of step 1, less ReLU's",
        unit="seed",
        side="above",
        threshold=1.0,
        measure=functools.partial(
            _over_relu, row="cst_0.85_0.8", value=lambda r: r["largest, 15 steps"] - r["largest, step 1"]
        ),
    ),
)

FIG5 = Study(
    name="price2024/fig5",
    title="Price et al. 2024, Fig. 5: gradient norms over the first steps",
    introduction=(
        "Two activations of 85% sparsity whose clip is large, and two that train, in 100 layers over the first 15 "
        "steps of SGD. The paper shows one failed run of each of the first two; here are five seeds of each."
    ),
    findings=findings,
    figures={"Fig. 5": first_gradients},
    claims=CLAIMS,
    table=table,
    draws_diverged=True,
)
