"""Beyond Bricken et al. 2023: schedules that anneal the noise away and leave fewer dead units."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from sparsity.studies import draw
from sparsity.studies.bricken2023.runs import by_variant, over_variants
from sparsity.studies.draw import Drawing, Runs
from sparsity.studies.judge import Claim, Effect
from sparsity.studies.records import Run, decades, measured, named, or_none, percent, records_of, standard_error
from sparsity.studies.runner import Record, Row, Study

SIGMAS = (1.5, 3.0)
# Schedule -> the variant of its runs.
VARIANTS = {
    "linear": "ae_annealed",
    "longer": "ae_annealed_longer",
    "later": "ae_annealed_later",
    "geometric": "ae_geometric",
    "kept": "ae_geometric_kept",
    "constant": "ae",
}
GENTLE = {  # those that are to beat "linear", in words
    "longer": "annealing linearly over twice the time",
    "geometric": "annealing by equal factors",
    "kept": "annealing by equal factors to a little noise that stays",
}
DEAD, ACTIVE, NEVER = "dead.mean", "nonzero.hidden", "units.never.hidden"
FEWER = -0.01  # of the units: that many fewer dead ones are a gain
LOSS, DENSER = math.log10(1.05), math.log10(1.25)  # what a gain may cost, as in the study `annealing`
SOME = 0.05  # dead units of "linear" below which there is nothing to mend


def by_schedule(runs: Mapping[str, Run]) -> dict[str, dict[float, dict[int, Run]]]:
    """Schedule -> sigma -> seed -> run, of runs by name."""
    found = by_variant(runs)
    return {schedule: found[variant] for schedule, variant in VARIANTS.items() if variant in found}


def table(records: Sequence[Record]) -> list[Row]:
    """One line a schedule and sigma (the paper's), means over n seeds; all at the end and, but for one, without noise.

    dead: share of units that no test image turns on (se: over seeds); never active: that no image of the training split
    turns on, under the noise that the schedule leaves; active: share of nonzero activations on the test split; test
    mse, explained: there too, explained as a share of the images' variance.
    """
    rows = []
    for schedule, sigmas in by_schedule(named(records)).items():
        for sigma, of_seed in sigmas.items():
            mean = lambda name, some=of_seed: or_none(float(np.mean([measured(r, name) for r in some.values()])))
            dead = [measured(run, DEAD) for run in of_seed.values()]
            rows.append(
                {
                    "schedule": schedule,
                    "sigma": sigma,
                    "n": len(of_seed),
                    "steps": next(iter(of_seed.values())).config.steps,
                    "dead": mean(DEAD),
                    "se": standard_error(dead),
                    "never active": mean(NEVER),
                    "active": mean(ACTIVE),
                    "test mse": mean("mse"),
                    "explained": mean("explained"),
                }
            )
    return rows


def dead_and_loss(runs: Runs) -> Drawing:
    """Test mse (above) and active share (below) against dead units, without noise, at both sigmas; a dot a run."""
    schedules = by_schedule(runs)
    figure, axes = draw.panels(2, len(SIGMAS), height=2.9, sharex="col")
    for (above, below), sigma in zip(np.transpose(axes), SIGMAS, strict=True):
        for i, (schedule, sigmas) in enumerate(schedules.items()):
            views = sigmas.get(sigma, {}).values()
            for axis, name in ((above, "mse"), (below, ACTIVE)):
                points = [(measured(view, DEAD), measured(view, name)) for view in views]
                axis.plot(*zip(*points, strict=True), "o", ms=5, alpha=0.7, color=f"C{i}", label=schedule)
        above.set(title=f"sigma {sigma:g}", yscale="log")
        below.set(xlabel="share of dead units, test split", yscale="log")
    axes[0][0].set_ylabel("test mse")
    axes[1][0].set_ylabel("share of active units")
    axes[0][-1].legend(fontsize=7)
    return draw.done(figure)


def dead_by_step(runs: Runs) -> Drawing:
    """Share of units that no validation image turns on against step (first seed).

    Under the noise of the step, which turns on units that no image does; of "constant" and "kept" without noise.
    """
    schedules = by_schedule(runs)
    figure, axes = draw.panels(1, len(SIGMAS), height=3.2, sharey=True)
    for axis, sigma in zip(axes, SIGMAS, strict=True):
        for i, (schedule, sigmas) in enumerate(schedules.items()):
            for view in list(sigmas.get(sigma, {}).values())[:1]:
                lines = records_of(view, "validation")
                steps, dead = [line["step"] for line in lines], [line["dead.mean"] for line in lines]
                style = "-" if view.config["evals"].get("noise") else ":"
                axis.plot(steps, dead, style, color=f"C{i}", label=schedule)
        axis.set(title=f"sigma {sigma:g}", xlabel="step", ylim=(0, None))
    axes[0].set_ylabel("share of dead units")
    axes[-1].legend(fontsize=7)
    return draw.done(figure)


def findings(records: Sequence[Record]) -> list[str]:
    """Dead units, active units and loss of every schedule, in sentences."""
    return [
        f"{row['schedule']} at sigma {row['sigma']:g} (n = {row['n']}): {percent(row['dead'])} dead, "
        f"{percent(row['active'])} active, {percent(row['explained'])} of the variance explained, without noise."
        for row in table(records)
    ]


def _wanted(*schedules: str) -> list[tuple[str, float]]:
    return [(VARIANTS[schedule], sigma) for schedule in schedules for sigma in SIGMAS]


def _compared(records: Sequence[Record], schedules: Sequence[str], value: Callable[..., float]) -> Effect:
    """One replicate a seed: mean over sigmas of `value` of the schedules' runs at that sigma."""
    n = len(SIGMAS)
    return over_variants(
        records,
        _wanted(*schedules),
        lambda runs: float(np.mean([value(*runs[i::n]) for i in range(n)])),
    )


def _if_linear_kills(records: Sequence[Record], measure: Callable[[Sequence[Record]], Effect]) -> Effect:
    """`measure`; not testable if annealing linearly leaves hardly any dead units."""
    linear = over_variants(records, _wanted("linear"), lambda runs: float(np.mean([measured(r, DEAD) for r in runs])))
    if linear.value is not None and linear.value < SOME:
        return Effect.untestable(f"only {100 * linear.value:.1f}% of the units are dead after linear annealing")
    return measure(records)


def _fewer(gentle: Run, other: Run) -> float:
    return measured(gentle, DEAD) - measured(other, DEAD)


def _ratio(name: str) -> Callable[[Run, Run], float]:
    return lambda gentle, other: decades(measured(gentle, name), measured(other, name))


def _best(records: Sequence[Record]) -> Effect:
    """One replicate a seed: dead share, less half of linear's, of the schedule with the fewest dead in other seeds."""
    found = by_schedule(named(records))
    missing = [name for name in ("linear", *GENTLE) if any(not found.get(name, {}).get(s) for s in SIGMAS)]
    if missing:
        return Effect.untestable(f"no run of {', '.join(missing)}")
    seeds = sorted(set.intersection(*(set(found[n][s]) for n in ("linear", *GENTLE) for s in SIGMAS)))
    if len(seeds) < 2:
        return Effect.untestable("a schedule is chosen by other seeds, and there is one seed only")
    dead = {
        name: {seed: float(np.mean([measured(found[name][s][seed], DEAD) for s in SIGMAS])) for seed in seeds}
        for name in ("linear", *GENTLE)
    }
    out = []
    for seed in seeds:
        elsewhere = {name: float(np.mean([dead[name][s] for s in seeds if s != seed])) for name in GENTLE}
        # A schedule of which a run diverged is not chosen.
        chosen = min(GENTLE, key=lambda name, of=elsewhere: math.inf if math.isnan(of[name]) else of[name])
        out.append(dead[chosen][seed] - dead["linear"][seed] / 2)
    return Effect.of(out)


def _claim(id: str, statement: str, effect: str, threshold: float, measure: Callable[..., Effect]) -> Claim:
    where = "Fig. 31, beyond the paper"
    return Claim(f"gentle.{id}", where, statement, effect, "seed", "below", threshold, measure)


def _claims_of(name: str) -> tuple[Claim, ...]:
    words, arms = GENTLE[name], (name, "linear")
    return (
        _claim(
            name,
            f"{words} leaves fewer dead units than annealing linearly",
            "dead share at the end less that after linear annealing, mean over sigma 1.5 and 3",
            FEWER,
            lambda records: _if_linear_kills(records, lambda r: _compared(r, arms, _fewer)),
        ),
        _claim(
            f"{name}.loss",
            f"{words} costs less than 5% of the loss without noise",
            "log10 of the test mse over that after linear annealing, mean over sigma 1.5 and 3",
            LOSS,
            lambda records: _compared(records, arms, _ratio("mse")),
        ),
        _claim(
            f"{name}.sparsity",
            f"after {words} the network is as sparse as after linear annealing",
            "log10 of the active share over that after linear annealing, mean over sigma 1.5 and 3",
            DENSER,
            lambda records: _compared(records, arms, _ratio(ACTIVE)),
        ),
    )


CLAIMS = (
    *(claim for name in GENTLE for claim in _claims_of(name)),
    _claim(
        "longer.control",
        "slow annealing leaves fewer dead units than fast annealing at the end of as long a training",
        'dead share at the end, "longer" less "later", mean over sigma 1.5 and 3',
        FEWER,
        lambda records: _if_linear_kills(records, lambda r: _compared(r, ("longer", "later"), _fewer)),
    ),
    _claim(
        "any",
        "some schedule leaves less than half of the dead units of linear annealing",
        "dead share less half of linear's, mean over sigmas, of one schedule: the best of them in the other seeds",
        0.0,
        lambda records: _if_linear_kills(records, _best),
    ),
)

GENTLE_ANNEALING = Study(
    name="bricken2023/gentle_annealing",
    title="Beyond Bricken et al. 2023: annealing that leaves fewer dead units",
    introduction=(
        "Much noise makes autoencoders very sparse, and annealing it away linearly kills some of their units, which "
        "then never come back. Here autoencoders of photographs at the two sigmas where that happens most anneal for "
        "twice as long, or by equal factors, or keep a little noise to the end. What counts is how many units no test "
        "image turns on, and what sparsity and loss are then, all without noise."
    ),
    findings=findings,
    figures={"Dead units, loss and sparsity": dead_and_loss, "Dead units in training": dead_by_step},
    claims=CLAIMS,
    table=table,
)
