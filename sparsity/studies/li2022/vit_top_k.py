"""Li et al. 2022, Fig. 6 right: accuracy of Top-k ViTs against k."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from sparsity.studies import draw
from sparsity.studies.draw import Drawing, Runs
from sparsity.studies.judge import Claim, Effect
from sparsity.studies.li2022.runs import train_accuracy
from sparsity.studies.li2022.vits import Arm, by_arm, over_arms
from sparsity.studies.records import Run, mean_over, measured, standard_error
from sparsity.studies.runner import Record, Row, Study

ENOUGH, OF = 256, 3072  # k from which on the paper finds ViT as accurate as without Top-k; d_ff of ViT-B/16
PAPERS_DROP = 0.003  # of accuracy at that k
SAME = 0.01  # of accuracy: "on par"


def held_out_accuracy(run) -> float:
    """Accuracy on test images."""
    return measured(run, "accuracy")


def dense_arm(runs: Iterable[Run]) -> Arm | None:
    """The arm without Top-k."""
    return next((arm for arm in by_arm(runs) if arm.k is None), None)


def top_k_arms(runs: Iterable[Run]) -> list[Arm]:
    """The arms with Top-k, k rising."""
    return sorted((arm for arm in by_arm(runs) if arm.k is not None), key=lambda arm: arm.k)


def papers_share(arm: Arm) -> int:
    """The k of the paper's layers of 3,072 units that is the same share of them.

    >>> papers_share(Arm(64, 4, 512, k=43))
    258
    """
    return round(arm.k * OF / arm.d_ff)


def enough(runs: Iterable[Run]) -> list[Arm]:
    """The arms that keep at least the paper's 256 of 3,072, k rising, the nearest to it first.

    k is rounded to whole units: a k nearer to the paper's share than half a unit counts as it.
    """
    return [arm for arm in top_k_arms(runs) if arm.k + 0.5 >= ENOUGH * arm.d_ff / OF]


def table(records: Sequence[Record]) -> list[Row]:
    """Accuracy at every k, means over n seeds.

    k: empty is the dense network. k of 3,072: as large a share of the paper's layers. nonzero: share of nonzeros on
    test images, mean over layers (fewer than k where fewer are positive). accuracy: on test images, and its difference
    from the dense network's of the same seed (se: of that, over seeds); train: on training batches, and its difference.
    """
    arms, dense, rows = by_arm(records), dense_arm(records), []
    if dense is None:
        return []
    for arm in (dense, *top_k_arms(records)):
        pairs = [(r, arms[dense][s]) for s, r in arms[arm].items() if s in arms[dense]]
        pairs = [p for p in pairs if all(r.outcome.status == "finished" for r in p)]
        mean = lambda value, pairs=pairs: mean_over(pairs, lambda pair: value(*pair))
        row = {"k": arm.k, "k of 3,072": None if arm is dense else papers_share(arm), "n": len(pairs)}
        row["nonzero"] = mean(lambda r, d: measured(r, "nonzero.mean"))
        row["accuracy"] = mean(lambda r, d: held_out_accuracy(r))
        row["difference"] = None if arm is dense else mean(lambda r, d: held_out_accuracy(r) - held_out_accuracy(d))
        gaps = [held_out_accuracy(r) - held_out_accuracy(d) for r, d in pairs]
        row["se"] = None if arm is dense else standard_error(gaps)
        row["train"] = mean(lambda r, d: train_accuracy(r))
        row["train difference"] = None if arm is dense else mean(lambda r, d: train_accuracy(r) - train_accuracy(d))
        rows.append(row)
    return rows


def accuracy_by_k(runs: Runs) -> Drawing:
    """Fig. 6 right: accuracy on training batches and on test images against k; black: the dense network.

    Dots are seeds, lines their mean. Dotted: the share of units that the paper's 256 is of 3,072.
    """
    figure, axes = draw.panels(1, 2)
    arms, dense, top_k = by_arm(runs.values()), dense_arm(runs.values()), top_k_arms(runs.values())
    for axis, (title, value) in zip(
        axes, {"training batches": train_accuracy, "test images": held_out_accuracy}.items(), strict=True
    ):
        of = lambda arm, value=value: [100 * value(view) for view in arms[arm].values()]
        if dense is not None:
            axis.axhline(np.mean(of(dense)), color="k", lw=1, label="dense")
            axis.axvline(ENOUGH * dense.d_ff / OF, color="k", ls=":", lw=0.8)
        for arm in top_k:
            axis.plot([arm.k] * len(of(arm)), of(arm), "o", color="C3", ms=3, alpha=0.6)
        axis.plot([arm.k for arm in top_k], [np.mean(of(arm)) for arm in top_k], "-", color="C3", label="Top-k")
        axis.set(title=title, xlabel="k", xscale="log")
        axis.set_xticks([arm.k for arm in top_k], minor=False)
        axis.xaxis.set_major_formatter("{x:g}")
        axis.minorticks_off()
    axes[0].set_ylabel("accuracy (%)")
    axes[1].legend()
    return draw.done(figure)


def findings(records: Sequence[Record]) -> list[str]:
    """Every k in a sentence."""
    return [
        f"k = {row['k']} (as {row['k of 3,072']} of 3,072): test accuracy {100 * row['difference']:+.2f} points from "
        f"the dense network's, on training batches {100 * row['train difference']:+.2f}"
        + (f" (the paper about {-100 * PAPERS_DROP:+.1f})." if abs(row["k of 3,072"] / ENOUGH - 1) < 0.05 else ".")
        for row in table(records)
        if row["k"] is not None and row["difference"] is not None
    ]


def _gap(value: Callable[[Record], float], choose: Callable[[list[Arm]], list[Arm]]) -> Callable[..., Effect]:
    """`value` less the dense network's, the least over the arms that `choose` takes of those with enough, by seed."""

    def measure(records: Sequence[Record]) -> Effect:
        dense, arms = dense_arm(records), choose(enough(records))
        if dense is None or not arms:
            return Effect.untestable("no dense network was run, or no k that is large enough")
        return over_arms(records, [dense, *arms], lambda d, *runs: float(np.min([value(r) for r in runs]) - value(d)))

    return measure


def _claim(id: str, statement: str, effect: str, threshold: float, measure, headline: bool = True) -> Claim:
    return Claim(id, "Fig. 6 right", statement, effect, "seed", "above", threshold, measure, headline)


_first, _others = (lambda arms: arms[:1]), (lambda arms: arms[1:])
CLAIMS = (
    _claim(
        "L6.test",
        "with k = 256 of 3,072 a ViT is as accurate as the dense one on held-out images, to a point",
        "test accuracy less the dense network's, at the first k that is as large a share",
        -SAME,
        _gap(held_out_accuracy, _first),
    ),
    _claim(
        "L6.train",
        "and on training images",
        "accuracy on training batches less the dense network's, at the same k",
        -SAME,
        _gap(train_accuracy, _first),
    ),
    _claim(
        "L6.larger",
        "and with any larger k",
        "test accuracy less the dense network's, least over the larger k",
        -SAME,
        _gap(held_out_accuracy, _others),
        headline=False,
    ),
)

VIT_TOP_K = Study(
    name="li2022/vit_top_k",
    title="Li et al. 2022, Fig. 6: Top-k ViTs are as accurate as dense ones",
    introduction=(
        "ViTs keep only the k largest activations of every MLP, in training and after it; all else is that of the "
        "dense network. The paper finds the dense network's accuracy from k = 256 of 3,072 on, some .3% less there."
    ),
    findings=findings,
    figures={"Accuracy by k": accuracy_by_k},
    claims=CLAIMS,
    table=table,
)
