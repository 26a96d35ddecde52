"""Li et al. 2022, Fig. 6 left: accuracy of Top-k T5s against k."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from sparsity.studies import draw
from sparsity.studies.draw import Drawing, Runs
from sparsity.studies.judge import Claim, Effect
from sparsity.studies.li2022.runs import Arm, by_arm, over_arms, train_accuracy
from sparsity.studies.records import measured, named, or_none, standard_error
from sparsity.studies.runner import Record, Row, Study

ENOUGH, OF = 64, 3072  # k from which on the paper finds T5s as accurate as without Top-k; d_ff of its smallest
SAME = 0.01  # of accuracy: "on par"


def enough(d_ff: int) -> float:
    """The paper's 64, whatever the width of its T5s; narrower networks keep the share of units that 64 is of T5-Base.

    >>> enough(16_384), enough(768)
    (64.0, 16.0)
    """
    return ENOUGH * min(1.0, d_ff / OF)


def held_out_accuracy(run) -> float:
    """Share of held-out target tokens predicted, padding left out."""
    return measured(run, "accuracy")


def dense_and_top_k(runs) -> dict[Arm, list[Arm]]:
    """Each dense arm with its Top-k arms, k rising."""
    arms = by_arm(runs)
    dense = [arm for arm in arms if arm.k is None]
    return {
        d: sorted((a for a in arms if a.k is not None and a._replace(k=None) == d), key=lambda a: a.k) for d in dense
    }


def table(records: Sequence[Record]) -> list[Row]:
    """Accuracy of every size and k, means over n seeds.

    k/d_ff: share of units kept; the paper's 64 of 3,072 are 2.1%. nonzero: share of nonzeros on held-out text, mean
    over layers (fewer than k where fewer are positive). accuracy: of target tokens, held out, and its difference from
    the dense network's of the same seed (se: of that, over seeds); train: on training batches, and its difference.
    """
    arms, rows = by_arm(named(records)), []
    for dense, top_k in dense_and_top_k(named(records)).items():
        for arm in (dense, *top_k):
            pairs = [(r, arms[dense][s]) for s, r in arms[arm].items() if s in arms[dense]]
            pairs = [p for p in pairs if all(r.outcome.status == "finished" for r in p)]
            row = {"d_model": arm.d_model, "k": arm.k, "k/d_ff": None if arm.k is None else arm.k / arm.d_ff}
            mean = lambda value, pairs=pairs: or_none(float(np.mean([value(*p) for p in pairs]))) if pairs else None
            row["n"], row["nonzero"] = len(pairs), mean(lambda r, d: measured(r, "nonzero.mean"))
            row["accuracy"] = mean(lambda r, d: held_out_accuracy(r))
            row["difference"] = None if arm is dense else mean(lambda r, d: held_out_accuracy(r) - held_out_accuracy(d))
            gaps = [held_out_accuracy(r) - held_out_accuracy(d) for r, d in pairs]
            row["se"] = None if arm is dense else standard_error(gaps)
            row["train"] = mean(lambda r, d: train_accuracy(r))
            row["train difference"] = None if arm is dense else mean(lambda r, d: train_accuracy(r) - train_accuracy(d))
            rows.append(row)
    return rows


def accuracy_by_k(runs: Runs) -> Drawing:
    """Fig. 6 left: accuracy on training batches and on held-out text against k, lines the dense network's, dots seeds.

    Dotted: the k from which on the paper's T5 is as accurate as the dense one (64; of narrower ones, 1 / 48 of d_ff).
    """
    figure, axes = draw.panels(1, 2, sharey=True)
    arms = by_arm(runs)
    for axis, (title, value) in zip(
        axes, {"training batches": train_accuracy, "held-out text": held_out_accuracy}.items(), strict=True
    ):
        pairs = dense_and_top_k(runs)
        for i, (dense, top_k) in enumerate(pairs.items()):
            color = draw.color(i, len(pairs))
            of = lambda arm, value=value: [100 * value(view) for view in arms[arm].values()]
            axis.axhline(np.mean(of(dense)), color=color, lw=1)
            for arm in top_k:
                axis.plot([arm.k] * len(of(arm)), of(arm), "o", color=color, ms=3, alpha=0.6)
            means = [np.mean(of(arm)) for arm in top_k]
            axis.plot([arm.k for arm in top_k], means, "-", color=color, label=f"d_model {dense.d_model}")
            axis.axvline(enough(dense.d_ff), color=color, ls=":", lw=0.8)
        axis.set(title=title, xlabel="k", xscale="log")
        axis.set_xticks(sorted({arm.k for top_k in pairs.values() for arm in top_k}), minor=False)
        axis.xaxis.set_major_formatter("{x:g}")
        axis.minorticks_off()
    axes[0].set_ylabel("target tokens predicted (%)")
    axes[1].legend()
    return draw.done(figure)


def findings(records: Sequence[Record]) -> list[str]:
    """Every k in a sentence."""
    return [
        f"d_model {row['d_model']}, k = {row['k']} ({100 * row['k/d_ff']:.1f}% of the units): held-out accuracy "
        f"{100 * row['difference']:+.2f} points from the dense network's, on training batches "
        f"{100 * row['train difference']:+.2f}."
        for row in table(records)
        if row["k"] is not None and row["difference"] is not None
    ]


def _gap(value: Callable[[Record], float]) -> Callable[..., Effect]:
    """The smallest over all sizes and every k that is `enough` of `value` less the dense network's, by seed."""

    def measure(records: Sequence[Record]) -> Effect:
        pairs = [(d, a) for d, top_k in dense_and_top_k(named(records)).items() for a in _enough(top_k)]
        if not pairs:
            return Effect.untestable("no k that is large enough was run")
        arms = [arm for pair in pairs for arm in pair]
        gaps = lambda *runs: [value(k) - value(d) for d, k in zip(runs[::2], runs[1::2], strict=True)]
        unique = list(dict.fromkeys(arms))
        return over_arms(records, unique, lambda *runs: float(np.min(gaps(*(runs[unique.index(a)] for a in arms)))))

    return measure


def _enough(top_k: list[Arm]) -> list[Arm]:
    return [arm for arm in top_k if arm.k >= enough(arm.d_ff)]


CLAIMS = (
    Claim(
        "L6.held_out",
        "Fig. 6 left",
        "from k = 64 on Top-k predicts held-out tokens as well as the dense network, to a point",
        "smallest held-out accuracy less the dense network's, over all k of at least 64 (if narrower, d_ff / 48)",
        "seed",
        "above",
        -SAME,
        _gap(held_out_accuracy),
        headline=True,
    ),
    Claim(
        "L6.train",
        "Fig. 6 left",
        "and training tokens",
        "smallest accuracy on training batches less the dense network's, over the same k",
        "seed",
        "above",
        -SAME,
        _gap(train_accuracy),
        headline=True,
    ),
)

T5_TOP_K = Study(
    name="li2022/t5_top_k",
    title="Li et al. 2022, Fig. 6: Top-k T5s are as accurate as dense ones",
    introduction=(
        "T5s keep only the k largest activations of every MLP, in training and after it; all else is that of the dense "
        "network. The paper finds the dense network's accuracy from k = 64 on, for T5-Base, Large and 3B alike."
    ),
    findings=findings,
    figures={"Accuracy by k": accuracy_by_k},
    claims=CLAIMS,
    table=table,
)
