"""Li et al. 2022, Figs. B.7, B.8: nonzeros of ResNets by optimizer; and whether SGD trains Transformers."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from sparsity.studies import draw
from sparsity.studies.draw import Drawing, Runs, RunView
from sparsity.studies.judge import Claim, Effect
from sparsity.studies.li2022.resnets import BLOCKS, KINDS, Arm, by_arm, inner, nearer_the_output, output, over_arms
from sparsity.studies.li2022.runs import train_accuracy
from sparsity.studies.records import (
    Run,
    diverged,
    finished,
    grid_by,
    mean_over,
    measured,
    named,
    or_none,
    percent,
    records_of,
    standard_error,
)
from sparsity.studies.runner import Record, Row, Study

SAME = 0.03  # of a share of nonzeros
SHORT = 0.1  # of accuracy
# Accuracy on training batches from which on a Transformer has learnt: a tenth and .30 are known without learning.
LEARNS = {"vit": 0.5, "t5": 0.35}
_TRANSFORMER = re.compile(r"^(vit|t5)_.*?(?:_momentum_rate([\d.e-]+))?_seed(\d+)$")


def transformer_and_seed(name: str) -> tuple[str, float | None, int]:
    """(network, SGD's rate, seed) of a Transformer's run; the rate is None with the optimizer it is usually trained by.

    >>> transformer_and_seed("vit_digits_momentum_rate0.1_seed1"), transformer_and_seed("t5_text_d32_l2_f256_seed0")
    (('vit', 0.1, 1), ('t5', None, 0))
    """
    network, rate, seed = _TRANSFORMER.search(name).groups()
    return network, None if rate is None else float(rate), int(seed)


def transformers(runs: Mapping[str, Run]) -> dict[tuple[str, float | None], dict[int, Run]]:
    """(network, SGD's rate or None) -> seed -> run, of the Transformers among runs by name."""
    return grid_by(transformer_and_seed, {name: runs[name] for name in filter(_TRANSFORMER.search, runs)})


def train_loss(run: Run) -> float:
    """Loss on training batches, over the last twentieth of training."""
    values = [line["loss"] for line in records_of(run, "train")]
    return float(np.mean(values[-max(len(values) // 20, 1) :]))


def pair(runs: Mapping[str, Run], block: str) -> tuple[Arm, Arm] | None:
    """SGD's arm, and Adam's with the highest training accuracy over rates, if equal the lowest training loss.

    A rate that diverged for some seed is not chosen. None if there is no arm of one of the two.
    """
    found = {arm: of_seed for arm, of_seed in by_arm(runs).items() if arm.block == block}
    sgd = [arm for arm in found if arm.optimizer == "momentum"]
    score = {
        arm: (
            np.mean([train_accuracy(r) for r in of_seed.values()]),
            -np.mean([train_loss(r) for r in of_seed.values()]),
        )
        for arm, of_seed in found.items()
        if arm.optimizer == "adam" and not any(map(diverged, of_seed.values()))
    }
    return (sgd[0], max(score, key=score.get)) if sgd and score else None


def accuracy_at(run: Run, steps: int) -> float:
    """Accuracy on training batches over the last tenth of the first `steps` steps; NaN of a run that diverged."""
    if diverged(run):
        return math.nan
    values = [line["accuracy"] for line in records_of(run, "train") if 0.9 * steps <= line["step"] < steps]
    return float(np.mean(values)) if values else math.nan


def sgd_accuracy_at(run: Run, steps: int) -> float:
    """`accuracy_at`, but 0 of a run that diverged: whether SGD trains is the question, and there it did not."""
    return 0.0 if diverged(run) else accuracy_at(run, steps)


def _steps(run: Run) -> int:
    return run.config["steps"] if isinstance(run, RunView) else run.config.steps


def common_steps(runs: Mapping[str, Run], network: str) -> int:
    """The steps of the shortest of a Transformer's runs: up to there all are compared."""
    return min(_steps(r) for (name, _), s in transformers(runs).items() if name == network for r in s.values())


def best_rate(runs: Mapping[str, Run], network: str) -> float | None:
    """SGD's rate with the highest mean of `sgd_accuracy_at`; None if SGD was not run."""
    found = {rate: s for (name, rate), s in transformers(runs).items() if name == network and rate is not None}
    if not found:
        return None
    steps = common_steps(runs, network)
    return max(found, key=lambda rate: np.mean([sgd_accuracy_at(r, steps) for r in found[rate].values()]))


def table(records: Sequence[Record]) -> list[Row]:
    """Every network by optimizer and rate, means over the n seeds that did not diverge.

    sgd is with momentum of .9; usual: Adam for the ViT, Adafactor for T5. inner, output: a ResNet's held-out share of
    nonzeros inside its blocks and at their outputs (se over seeds). accuracy: held out; train: on training batches at
    the step where the shortest of the network's runs ends.
    """
    runs, rows = named(records), []
    arms = {(f"resnet, {a.block}", a.optimizer.replace("momentum", "sgd"), a.rate): s for a, s in by_arm(runs).items()}
    arms |= {
        (network, "usual" if rate is None else "sgd", rate): s for (network, rate), s in transformers(runs).items()
    }
    for (network, optimizer, rate), of_seed in arms.items():
        done = finished(of_seed)
        mean = lambda value, done=done: mean_over(done, value)
        row = {"network": network, "optimizer": optimizer, "rate": rate, "n": len(done)}
        row["diverged"] = sum(map(diverged, of_seed.values()))
        convolutional = network.startswith("resnet")
        for kind, of in KINDS.items():
            row[kind] = mean(lambda r, of=of: of(r).mean()) if convolutional else None
            row[f"{kind}, se"] = standard_error([float(of(r).mean()) for r in done]) if convolutional else None
        row["accuracy"] = mean(lambda r: measured(r, "accuracy"))
        steps = None if convolutional else common_steps(runs, network)
        row["train"] = mean(train_accuracy if steps is None else lambda r, steps=steps: accuracy_at(r, steps))
        rows.append(row)
    return rows


def by_block(runs: Runs) -> Drawing:
    """Figs. B.7, B.8: held-out share of nonzeros by block, inside blocks (left) and at their outputs (right).

    Basic blocks above, bottlenecks below; SGD, and Adam at the rate with the highest training accuracy. Dots are seeds
    that did not diverge.
    """
    figure, axes = draw.panels(len(BLOCKS), len(KINDS), sharey=True)
    for row, block in zip(axes, BLOCKS, strict=True):
        for axis, (kind, of) in zip(row, KINDS.items(), strict=True):
            for arm, color, label in zip(pair(runs, block) or (), ("C0", "C3"), ("SGD", "Adam"), strict=False):
                values = [100 * of(view) for view in by_arm(runs)[arm].values() if not diverged(view)]
                if not values:
                    continue
                axis.plot(np.mean(values, 0), "-", color=color, label=f"{label}, {arm.rate:g}")
                for v in values:
                    axis.plot(v, "o", color=color, ms=3, alpha=0.6)
            axis.set(title=f"{block} blocks, {kind}", xlabel="block")
        row[0].set_ylabel("nonzero (%)")
        if row[0].lines:
            row[0].legend()
    return draw.done(figure)


def training(runs: Runs) -> Drawing:
    """Accuracy on training batches by step of a ViT and of a T5, by SGD at every rate and as usual, first seed.

    A cross ends the curve of a run that diverged.
    """
    figure, axes = draw.panels(1, len(LEARNS))
    found = transformers(runs)
    for axis, network in zip(axes, LEARNS, strict=True):
        arms = [rate for name, rate in found if name == network]
        steps = common_steps(runs, network) if arms else 0
        for i, rate in enumerate(sorted(r for r in arms if r is not None)):
            _curve(axis, found[network, rate], steps, draw.color(i, len(arms)), f"SGD, {rate:g}")
        if None in arms:
            _curve(axis, found[network, None], steps, "k", "usual")
        axis.set(title={"vit": "ViT", "t5": "T5"}[network], xlabel="step")
        if axis.lines:
            axis.legend()
    axes[0].set_ylabel("accuracy (%)")
    return draw.done(figure)


def _curve(axis, of_seed: Mapping[int, RunView], steps: int, color, label: str) -> None:
    view = next(iter(of_seed.values()))
    lines = [line for line in view.records("train") if line["step"] < steps]
    x, y = draw.smoothed([line["step"] for line in lines], [line["accuracy"] for line in lines], 25)
    axis.plot(x, 100 * y, color=color, label=label)
    if diverged(view) and view.outcome.step < steps:
        axis.plot(x[-1:], 100 * y[-1:], "x", color=color)


def findings(records: Sequence[Record]) -> list[str]:
    """Adam against SGD on ResNets, and what SGD makes of the Transformers, in sentences."""
    runs, out = named(records), []
    rows = {(row["network"], row["optimizer"], row["rate"]): row for row in table(records)}
    for block in BLOCKS:
        if (arms := pair(runs, block)) is None:
            continue
        sgd, adam = (rows[f"resnet, {block}", name, arm.rate] for name, arm in zip(("sgd", "adam"), arms, strict=True))
        out.append(
            f"{block} blocks: Adam (at {arms[1].rate:g}) leaves {percent(adam['inner'])} nonzero inside the blocks and "
            f"{percent(adam['output'])} at their outputs, SGD {percent(sgd['inner'])} and {percent(sgd['output'])}."
        )
    for network in LEARNS:
        rate = best_rate(runs, network)
        if rate is not None and (network, None) in transformers(runs):
            steps = common_steps(runs, network)
            sgd, usual = (
                percent(or_none(float(np.mean([at(r, steps) for r in transformers(runs)[network, arm].values()]))))
                for at, arm in ((sgd_accuracy_at, rate), (accuracy_at, None))
            )
            out.append(
                f"{network}: SGD at its best rate, {rate:g}, has {sgd} of the training batches right at step {steps:,} "
                f"(0 where it diverged), the usual optimizer {usual}."
            )
    return out


def _adam_less_sgd(block: str, value: Callable[[np.ndarray], float], of: Callable) -> Callable[..., Effect]:
    """`value` of Adam's shares less SGD's [blocks], by seed."""

    def measure(records: Sequence[Record]) -> Effect:
        arms = pair(named(records), block)
        if arms is None:
            return Effect.untestable(f"no pair of SGD and Adam with {block} blocks")
        return over_arms(records, arms, lambda sgd, adam: value(of(adam) - of(sgd)))

    return measure


def _falls_short(network: str) -> Callable[..., Effect]:
    """Training accuracy of SGD at its best rate less the usual optimizer's at that step, by seed.

    Not testable where the usual optimizer has not learnt, over the seeds where it did not diverge; NaN where it did.
    """

    def measure(records: Sequence[Record]) -> Effect:
        runs = named(records)
        rate, usual = best_rate(runs, network), transformers(runs).get((network, None))
        if rate is None or not usual:
            return Effect.untestable(f"the {network} was not trained by both")
        steps = common_steps(runs, network)
        done = [accuracy_at(r, steps) for r in usual.values() if not diverged(r)]
        if not done:
            return Effect.untestable(f"the usual optimizer of the {network} diverged")
        if (learnt := float(np.mean(done))) < LEARNS[network]:
            return Effect.untestable(
                f"by step {steps} the usual optimizer has {learnt:.2f} of the training batches right"
            )
        sgd = transformers(runs)[network, rate]
        seeds = sorted({*sgd} & {*usual})
        return Effect.of([sgd_accuracy_at(sgd[s], steps) - accuracy_at(usual[s], steps) for s in seeds])

    return measure


def _claim(id: str, where: str, statement: str, effect: str, threshold: float, measure: Callable) -> Claim:
    return Claim(id, where, statement, effect, "seed", "below", threshold, measure)


_LESS = "held-out share of nonzeros with Adam less that with SGD"
CLAIMS = (
    *(
        claim
        for block, figure in zip(BLOCKS, ("Fig. B.7", "Fig. B.8"), strict=True)
        for claim in (
            _claim(
                f"L16.inner.{block}",
                figure,
                f"Adam makes {block} blocks sparser inside than SGD does",
                f"{_LESS}, inside the blocks, mean over blocks",
                0.0,
                _adam_less_sgd(block, lambda gap: float(gap.mean()), inner),
            ),
            _claim(
                f"L16.output.{block}",
                figure,
                f"at their outputs they are equal, to three points ({block})",
                f"|{_LESS}| at the outputs, mean over blocks",
                SAME,
                _adam_less_sgd(block, lambda gap: float(np.abs(gap).mean()), output),
            ),
        )
    ),
    _claim(
        "L16.late",
        "Fig. B.7",
        "most of all towards the network's output",
        f"{_LESS}, inside basic blocks: the last half of the blocks less the first",
        0.0,
        _adam_less_sgd("basic", nearer_the_output, inner),
    ),
    *(
        _claim(
            f"L16.{network}",
            "App. B.2",
            f"SGD cannot effectively train a {name}: it falls short by more than a tenth",
            f"training accuracy of SGD (momentum .9; diverged: 0) at its best rate less that of {usual} at that step",
            -SHORT,
            _falls_short(network),
        )
        for network, name, usual in (("vit", "ViT", "AdamW"), ("t5", "T5", "Adafactor"))
    ),
)

OPTIMIZERS = Study(
    name="li2022/optimizers",
    title="Li et al. 2022, Figs. B.7, B.8: Adam makes ResNets sparser than SGD does",
    introduction=(
        "ResNets are trained by SGD with momentum and by Adam, whose rate is the one with the highest training "
        "accuracy. The paper finds fewer nonzeros with Adam inside the blocks and as many at their outputs. It says "
        "that SGD cannot effectively train T5 and ViT; a small grid of its rates is tried on both."
    ),
    findings=findings,
    figures={"Nonzeros by block": by_block, "Transformers trained by SGD": training},
    claims=CLAIMS,
    table=table,
    draws_diverged=True,
)
