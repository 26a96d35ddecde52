"""Beyond Li et al. 2022: a Llama of SiLU goes on with ReLU (Mirzadeh et al. 2023; Song et al. 2024), or is cut.

Every arm starts from the same parameters, those that a run called "pretrained" ended with (`RunConfig.start`), so that
what they cost is a difference of networks that were one. A step-dependent activation in one run would be simpler, but
two programs that differ behind a branch may round differently before it, and a thousand steps make much of that.

A share of nonzeros is that of what W_o reads: of the gate's branch, sparsifier(x W_g), whose zeros are those of the
product with x W_u; of dReLU, which has zeros on both branches, of the product itself. SiLU has none.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from sparsity.studies import draw
from sparsity.studies.draw import Drawing, Runs
from sparsity.studies.judge import Claim, Effect
from sparsity.studies.records import (
    Run,
    across,
    each_layer,
    finished,
    grid_by,
    mean_over,
    measured,
    named,
    percent,
    records_of,
    standard_error,
)
from sparsity.studies.runner import Record, Row, Study

PRETRAINED, SCRATCH = "pretrained", "scratch"
ARMS = (PRETRAINED, "silu", "relu", "shifted_relu", "drelu", SCRATCH)
TUNED = ARMS[1:-1]
LEARNS = 0.35  # of held-out bytes: the byte before predicts 28% of them
COSTS = 0.02  # of the loss that SiLU has: more is a cost of ReLU
SPARSE = 0.4  # of units nonzero in every layer: Song et al. 2024 have 33%, a network that has learnt nothing half
HALF = 0.5  # of the nonzeros of ReLU; with random weights drelu has .5 of them, shifted_relu .62
CUT = 0.55  # of activations kept on the test text, where the validation text says half
QUICK = 0.1  # of the steps from scratch; fine-tuning has a quarter of them
_NAME = re.compile(r"^llama_text(_relu)?_seed(\d+)(?:_then_(\w+))?$")


def arm_and_seed(name: str) -> tuple[str, int]:
    """The arm and the seed of a run.

    >>> arm_and_seed("llama_text_seed1"), arm_and_seed("llama_text_seed0_then_drelu")
    (('pretrained', 1), ('drelu', 0))
    >>> arm_and_seed("llama_text_relu_seed2")
    ('scratch', 2)
    """
    scratch, seed, tuned = _NAME.search(name).groups()
    return SCRATCH if scratch else tuned or PRETRAINED, int(seed)


def by_arm(runs: Mapping[str, Run]) -> dict[str, dict[int, Run]]:
    """Arm -> seed -> run, in the order of `ARMS`, of runs by name."""
    found = {arm: of_seed for (arm,), of_seed in grid_by(arm_and_seed, runs).items()}
    return {arm: found[arm] for arm in ARMS if arm in found}


def course(run: Run, name: str = "nll") -> tuple[np.ndarray, np.ndarray]:
    """The steps of validations, and a measure of each: by default nats a byte. One NaN if there are none."""
    lines = records_of(run, "validation")
    return np.array([line["step"] for line in lines] or [0]), np.array([line[name] for line in lines] or [math.nan])


def steps_to(run: Run, loss: float) -> float:
    """Steps until the validation loss is `loss`, between validations in a straight line; infinite if it never is.

    NaN if a loss is.
    """
    steps, nats = course(run)
    if math.isnan(loss) or np.isnan(nats).any():
        return math.nan
    reached = np.flatnonzero(nats <= loss)
    if not len(reached):
        return math.inf
    i = reached[0]
    if i == 0:
        return float(steps[0])
    share = (nats[i - 1] - loss) / (nats[i - 1] - nats[i])
    return float(steps[i - 1] + share * (steps[i] - steps[i - 1]))


def share_of_steps(tuned: Run, scratch: Run) -> float:
    """Steps until `tuned` validates as well as `scratch` last does, over those of `scratch`; 1 if it never does.

    More than 1 counts as 1; the steps before the switch do not count. Networks are validated before updates: the last
    steps of either are not seen.
    """
    steps, nats = course(scratch)
    reached = steps_to(tuned, float(nats[-1])) / float(steps[-1])
    return math.nan if math.isnan(reached) else min(reached, 1.0)


def table(records: Sequence[Record]) -> list[Row]:
    """Every arm, means over n seeds.

    at first: nats a byte of the validation text before the first step, right after the switch. loss: nats a byte of
    the test text in the end (se over seeds), perplexity: exp of it. against silu: loss over that of SiLU, gone on as
    long, less 1. nonzero: share of nonzeros, mean over layers, of the validation text at first and of the test text in
    the end; densest: of the test text in the layer that has most. accuracy: of the test bytes. cut: what cutting off
    the smaller half of the activations of every layer adds to the loss, as a share of it (CATS; SiLU alone).
    """
    found = by_arm(named(records))
    silu = finished(found.get("silu", {}))
    base = mean_over(silu, _loss)
    rows = []
    for arm, of_seed in found.items():
        runs = finished(of_seed)
        loss = mean_over(runs, _loss)
        row = {"arm": arm, "n": len(runs), "at first": mean_over(runs, lambda r: float(course(r)[1][0]))}
        row |= {"loss": loss, "se": standard_error([_loss(r) for r in runs])}
        row["perplexity"] = mean_over(runs, lambda r: math.exp(_loss(r)))
        row["against silu"] = None if loss is None or base is None else loss / base - 1
        row["nonzero at first"] = mean_over(runs, lambda r: float(course(r, "nonzero.mean")[1][0]))
        row["nonzero"] = mean_over(runs, lambda r: float(each_layer(r).mean()))
        row["densest"] = mean_over(runs, lambda r: float(each_layer(r).max()))
        row |= {"accuracy": mean_over(runs, lambda r: measured(r, "accuracy")), "cut": mean_over(runs, _cut)}
        rows.append(row)
    return rows


def _loss(run: Run) -> float:
    return measured(run, "nll")


def _cut(run: Run) -> float:
    """What the cut of the smaller half adds to the test loss, as a share of it; NaN where it was not measured."""
    return math.log1p(measured(run, "quantile_50.rise")) / _loss(run)


def loss_by_step(runs: Runs) -> Drawing:
    """Validation loss against step, first seed: until the switch, and of ReLU from scratch (left), and after it.

    Dashed: the last values on the left.
    """
    figure, axes = draw.panels(1, 2, sharey=True)
    views = _first(runs)
    for i, (arm, view) in enumerate(views.items()):
        axis = axes[int(arm in TUNED)]
        steps, nats = course(view)
        axis.plot(steps, nats, "o-", ms=3, color=f"C{i}", label=arm)
        if arm not in TUNED:
            axes[1].axhline(nats[-1], color=f"C{i}", ls="--", lw=0.8)
    for axis, title in zip(axes, ("before, and from scratch", "after the switch"), strict=True):
        axis.set(title=title, xlabel="step")
        if axis.lines:
            axis.legend()
    axes[0].set_ylabel("nats a byte of the validation text")
    return draw.done(figure)


def nonzero_by_layer(runs: Runs) -> Drawing:
    """Share of nonzeros on held-out text by layer; lines are means over seeds, dots seeds."""
    figure, axes = draw.panels(1, 1, height=3.2)
    arms = {arm: finished(of_seed) for arm, of_seed in by_arm(runs).items() if arm in (*TUNED[1:], SCRATCH)}
    for i, (arm, views) in enumerate(arms.items()):
        values = [100 * each_layer(view) for view in views]
        if values:
            axes[0].plot(np.mean(values, 0), "-", color=f"C{i}", label=arm)
        for v in values:
            axes[0].plot(v, "o", color=f"C{i}", ms=3, alpha=0.6)
    axes[0].set(xlabel="layer", ylabel="nonzero (%)", ylim=(0, None))
    if axes[0].lines:
        axes[0].legend()
    return draw.done(figure)


def _first(runs: Runs) -> Runs:
    """The first seed's run of every arm."""
    return {arm: next(iter(of_seed.values())) for arm, of_seed in by_arm(runs).items()}


def findings(records: Sequence[Record]) -> list[str]:
    """What each activation costs, right after the switch and in the end, in sentences."""
    rows = {row["arm"]: row for row in table(records)}
    silu, out = rows.get("silu"), []
    for arm in (*TUNED[1:], SCRATCH):
        row = rows.get(arm)
        if row is None or silu is None or None in (row["loss"], silu["loss"]):
            continue
        right_after = f" {row['at first']:.3f} nats a byte at first (SiLU {silu['at first']:.3f}),"
        end = f"{row['loss']:.3f} in the end, {100 * row['against silu']:+.1f}% against SiLU's {silu['loss']:.3f}"
        sparse = f"nonzero {percent(row['nonzero'])}, {percent(row['densest'])} in the densest layer"
        out.append(f"{arm} (n = {row['n']}):{'' if arm == SCRATCH else right_after} {end}; {sparse}.")
    if silu is not None and silu["cut"] is not None:
        out.append(f"SiLU without the smaller half of its activations: {100 * silu['cut']:+.1f}% of its loss.")
    return out


def _over_seeds(
    arms: Sequence[str], value: Callable[..., float], learnt: Sequence[str] | None = None
) -> Callable[[Sequence[Record]], Effect]:
    """`value` of a seed's runs of `arms`, in their order, by seed.

    Not testable where no checkpoint finished, or where it or an arm of `learnt` (None: all of `arms`) has not learnt.
    """

    def measure(records: Sequence[Record]) -> Effect:
        found = by_arm(named(records))
        if not finished(found.get(PRETRAINED, {})):
            return Effect.untestable("no run of the checkpoint finished")
        for arm in dict.fromkeys((PRETRAINED, *(arms if learnt is None else learnt))):
            accuracy = [measured(r, "accuracy") for r in finished(found.get(arm, {}))]
            if accuracy and not np.mean(accuracy) >= LEARNS:
                return Effect.untestable(f"{arm} predicts only {np.mean(accuracy):.2f} of the held-out bytes")
        return across({arm: found.get(arm, {}) for arm in arms}, value)

    return measure


def _of_the_cut(records: Sequence[Record]) -> Effect:
    """`_cut` of SiLU by seed. Not testable unless about half of each layer's activations were cut off: `CUT`."""
    runs = finished(by_arm(named(records)).get("silu", {}))
    kept = [m.value for run in runs for m in run.outcome.measures if m.name.startswith("quantile_50.block_")]
    if runs and not (kept and np.max(kept) <= CUT):
        most = f"{np.max(kept):.2f} of a layer's" if kept else "not known how many"
        return Effect.untestable(f"half was to be cut off: {most} activations were kept")
    return _over_seeds(("silu",), _cut)(records)


def _more(a: Record, b: Record) -> float:
    """Test loss of `a` over that of `b`, less 1."""
    return _loss(a) / _loss(b) - 1


def _claim(id: str, where: str, statement: str, effect: str, side: str, threshold: float, measure: Callable) -> Claim:
    return Claim(id, where, statement, effect, "seed", side, threshold, measure)


def _recovers(arm: str, id: str, where: str) -> Claim:
    return _claim(
        f"R.loss.{id}",
        where,
        f"fine-tuned, {arm} is as good as SiLU that goes on as long: within 2% of its loss",
        f"test loss of {arm} over that of SiLU, less 1",
        "below",
        COSTS,
        _over_seeds((arm, "silu"), _more, learnt=("silu",)),
    )


def _sparser(arm: str, where: str) -> Claim:
    return _claim(
        f"R.sparse.{arm}",
        where,
        f"{arm} has at most half of ReLU's nonzeros in every layer",
        f"share of nonzeros on held-out text, {arm} less {HALF:g} times that of relu, the largest over layers",
        "below",
        0.0,
        _over_seeds((arm, "relu"), lambda a, b: float(np.max(each_layer(a) - HALF * each_layer(b)))),
    )


_MIRZADEH, _SONG = "Mirzadeh et al. 2023", "Song et al. 2024"

CLAIMS = (
    _claim(
        "R.jump",
        _MIRZADEH,
        "ReLU in the place of SiLU is a loss, until it is fine-tuned: more than 5%",
        "validation loss of the checkpoint with ReLU over that with SiLU, less 1",
        "above",
        0.05,
        _over_seeds(("relu", "silu"), lambda a, b: float(course(a)[1][0] / course(b)[1][0]) - 1, learnt=()),
    ),
    _recovers("relu", "relu", _MIRZADEH),
    _recovers("shifted_relu", "shifted_relu", _MIRZADEH),
    _recovers("drelu", "drelu", _SONG),
    _claim(
        "R.sparse.relu",
        _MIRZADEH,
        "fine-tuned, it is sparse: at most two fifths of the units are nonzero in every layer",
        "share of nonzeros on held-out text, the largest over layers",
        "below",
        SPARSE,
        _over_seeds(("relu",), lambda a: float(np.max(each_layer(a)))),
    ),
    _sparser("shifted_relu", _MIRZADEH),
    _sparser("drelu", _SONG),
    _claim(
        "R.cut",
        "Lee et al. 2024",
        "SiLU itself can do without half of its activations, the smallest, untrained: within 2% of its loss",
        "test loss with the smaller half cut off over that without, less 1; thresholds are of the validation text",
        "below",
        COSTS,
        _of_the_cut,
    ),
    _claim(
        "R.quick",
        "none: of these runs",
        "from the checkpoint ReLU gets in a tenth of the steps to where it last is from scratch",
        "steps until the validation loss is the last one from scratch, over the steps of that; 1 if no validation of "
        "ReLU, the last of which is before fine-tuning ends, says so",
        "below",
        QUICK,
        _over_seeds(("relu", SCRATCH), share_of_steps, learnt=(SCRATCH,)),
    ),
    _claim(
        "R.scratch",
        "none: of these runs",
        "and ends as good as ReLU from scratch of as many steps in all: within 1% of its loss",
        "test loss of ReLU from the checkpoint over that from scratch, less 1",
        "below",
        0.01,
        _over_seeds(("relu", SCRATCH), _more, learnt=(SCRATCH,)),
    ),
)

RELUFIED = Study(
    name="li2022/relufied",
    title="Beyond Li et al. 2022: a Llama of SiLU goes on with ReLU",
    introduction=(
        "Today's language models have SiLU in gated MLPs, and hardly a zero. A small Llama is trained on bytes of "
        "text; the same checkpoint then goes on with SiLU, with ReLU in its place, with a ReLU that is shifted and "
        "with ReLU on both branches of its MLPs. What does the switch cost, right away and after fine-tuning, how "
        "sparse are the layers, is it quicker than to train with ReLU from scratch, and what would it have cost to cut "
        "off the smaller half of the activations instead?"
    ),
    findings=findings,
    figures={"Loss by step": loss_by_step, "Nonzeros by layer": nonzero_by_layer},
    claims=CLAIMS,
    table=table,
)
