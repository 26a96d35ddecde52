"""Beyond Price et al. 2024: a larger fixed point q*.

No paper claims an answer for these networks; the "claim" judged is the hopeful one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sparsity.studies.judge import Claim, Effect
from sparsity.studies.price2024.runs import gain, loss_by_row, row_and_seed, sentences, summary
from sparsity.studies.runner import Record, Row, Study


def table(records: Sequence[Record]) -> list[Row]:
    """Test accuracy (mean, standard deviation and error over n seeds; a diverged run counts as chance) and zeros.

    A row is a network (kind and depth), an activation, and the arm: none is q* = 1; q4, q_logits4, q_input4 and
    q_clip4 are those of the config's docstring.
    """
    out: dict[str, list[Record]] = {}
    for record in records:
        network = record.config.name.split("_")[0]
        row, _ = row_and_seed(record.config.name)
        out.setdefault(f"{network} {row}", []).append(record)
    return [{"row": row} | summary(runs) for row, runs in out.items()]


def findings(records: Sequence[Record]) -> list[str]:
    """The rows, in sentences."""
    return sentences(table(records))


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
    findings=findings,
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
            measure=_dnn(gain("crelu_0.9_0.7_q4", over="crelu_0.9_0.7")),
        ),
        Claim(
            id="large_q.logits",
            where="this repository",
            statement="and its larger logits have a part in it: it trains worse with these divided by sqrt(q*)",
            effect="test accuracy with q* = 4 less that with q* = 4 and logits divided by 2",
            unit="seed",
            side="above",
            threshold=0.0,
            measure=_dnn(gain("crelu_0.9_0.7_q4", over="crelu_0.9_0.7_q_logits4")),
        ),
    ),
    table=table,
    draws_diverged=True,
)
