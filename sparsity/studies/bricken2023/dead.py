"""Bricken et al. 2023, App. I.2, Figs. 27 to 30: when Adam kills units, and how many."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from sparsity.studies import draw
from sparsity.studies.bricken2023.runs import arm_sigma_seed, by_arm, mean_over_seeds
from sparsity.studies.draw import Drawing, Runs, RunView
from sparsity.studies.judge import Claim, Effect
from sparsity.studies.records import across, measured, records_of, standard_error
from sparsity.studies.runner import Record, Row, Study

SIGMA = 3.0
SILENT = "units.silent.hidden"
LOSS, SPARSE = 1.1, 0.02  # converged: a loss within 10% of the lowest, an active share within 2 points of the last
SOME = 0.1  # a share of dead units from which on one can ask when they died


def data_and_change(arm: str) -> tuple[str, str]:
    """("latents", "slow") of the arm "ae200_latents_dead_slow"; the change of "..._dead_base" is "base"."""
    network, _, change = arm.partition("_dead_")
    return ("latents" if "latents" in network else "pixels"), change


def by_change(records: Sequence[Record]) -> dict[tuple[str, str], dict[int, Record]]:
    """(data, change) -> seed -> record."""
    return {data_and_change(arm): of_sigma[SIGMA] for arm, of_sigma in by_arm(records).items()}


def validations(run: Record | RunView) -> list[dict[str, float]]:
    """The validations of a run: step, mse, nonzero.hidden, dead.mean."""
    return run.records("validation") if isinstance(run, RunView) else records_of(run, "validation")


def table(records: Sequence[Record]) -> list[Row]:
    """One line an arm at sigma 3, means over n seeds.

    dead: units whose activations sum to less than 1e-5 over an epoch of the training split, noise on (se: over seeds),
    at the end; the paper's is 92% on latents. converged: the first validation whose loss is within 10% of the lowest
    and whose active share is within 2 points of the last; then: units that no validation example activates, there;
    last: the same at the last validation. active: share of nonzero activations on that epoch; live: among units that
    ever are. test mse: noise on.
    """
    rows = []
    for (data, change), of_seed in by_change(records).items():
        runs = list(of_seed.values())
        config, dead = runs[0].config, [measured(r, SILENT) for r in runs]
        at = [converged(r) for r in runs]
        row = {"data": data, "arm": change, "batch": config.batch, "rate": config.optimizer.learning_rate}
        row |= {"steps": config.steps, "n": len(runs), "dead": float(np.mean(dead))}
        row["se"] = standard_error(dead)
        row["converged"] = float(np.mean([line["step"] for line in at]))
        row["then"] = float(np.mean([line["dead.mean"] for line in at]))
        row["last"] = float(np.mean([validations(r)[-1]["dead.mean"] for r in runs]))
        named = {"active": "units.density.hidden", "live": "units.live.hidden", "test mse": "mse"}
        row |= {name: mean_over_seeds(of_seed, key) for name, key in named.items()}
        rows.append(row)
    return rows


def converged(run: Record | RunView) -> dict[str, float]:
    """The first validation with a loss and an active share as at the end (see `LOSS`, `SPARSE`)."""
    lines = validations(run)
    lowest, last = min(line["mse"] for line in lines), lines[-1]["nonzero.hidden"]
    near = (v for v in lines if v["mse"] <= LOSS * lowest and abs(v["nonzero.hidden"] - last) <= SPARSE)
    return next(near, lines[-1])


def _views(runs: Runs) -> dict[tuple[str, str], RunView]:
    """(data, change) -> the run of the first seed."""
    out: dict[tuple[str, str], RunView] = {}
    for name, view in runs.items():
        out.setdefault(data_and_change(arm_sigma_seed(name)[0]), view)
    return out


def after_convergence(runs: Runs) -> Drawing:
    """Fig. 28: squared error, active and dead units on the validation split, noise on, against step (first seed).

    Dotted: where loss and active share have converged.
    """
    return _courses({data: view for (data, change), view in _views(runs).items() if change == "base"})


def by_rate(runs: Runs) -> Drawing:
    """As Fig. 28, latents, at the two learning rates (first seed)."""
    views = {change: view for (data, change), view in _views(runs).items() if data == "latents"}
    return _courses(
        {f"{views[c].config['optimizer']['learning_rate']:g}": views[c] for c in ("base", "slow") if c in views}
    )


def _courses(views: Mapping[str, RunView]) -> Drawing:
    figure, axes = draw.panels(1, 3)
    for i, (label, view) in enumerate(views.items()):
        lines = validations(view)
        for axis, key in zip(axes, ("mse", "nonzero.hidden", "dead.mean"), strict=True):
            axis.plot([line["step"] for line in lines], [line[key] for line in lines], color=f"C{i}", label=label)
            axis.axvline(converged(view)["step"], color=f"C{i}", ls=":", lw=0.8)
            axis.set(xlabel="step")
    axes[0].set(ylabel="squared error", yscale="log")
    axes[1].set(ylabel="share of active units", ylim=(0, None))
    axes[2].set(ylabel="share of dead units", ylim=(0, 1))
    axes[2].legend()
    return draw.done(figure)


def by_size(runs: Runs) -> Drawing:
    """Fig. 29: dead units of the validation split, noise on, against step, by size of the data (first seed).

    Of few pixels there are as much fewer validation examples, which activate fewer units.
    """
    views = _views(runs)
    figure, axes = draw.panels(1, 2, sharey=True)
    for axis, data in zip(axes, ("latents", "pixels"), strict=True):
        for change, label in (("base", "all"), ("few", "few")):
            if (data, change) in views:
                lines = validations(views[data, change])
                axis.plot([line["step"] for line in lines], [line["dead.mean"] for line in lines], label=label)
        axis.set(title=data, xlabel="step", ylim=(0, 1))
    axes[0].set_ylabel("share of dead units")
    axes[0].legend(title="examples")
    return draw.done(figure)


def by_batch(runs: Runs) -> Drawing:
    """Fig. 30: dead units, as Fig. 29, by batch, against examples seen (epochs times their number) and against step."""
    views = {change: view for (data, change), view in _views(runs).items() if data == "latents"}
    figure, axes = draw.panels(1, 2, sharey=True)
    for change in ("small_batch", "base", "large_batch"):
        # At the paper's scale other batches have other data.
        if change in views and views[change].config["data"] == views.get("small_batch", views[change]).config["data"]:
            batch, lines = views[change].config["batch"], validations(views[change])
            dead = [line["dead.mean"] for line in lines]
            axes[0].plot([batch * line["step"] for line in lines], dead, label=f"{batch}")
            axes[1].plot([line["step"] for line in lines], dead, label=f"{batch}")
    axes[0].set(xlabel="examples seen", ylabel="share of dead units", xscale="symlog", ylim=(0, 1))
    axes[1].set(xlabel="step")
    axes[1].legend(title="batch")
    return draw.done(figure)


def findings(records: Sequence[Record]) -> list[str]:
    """Dead units by arm, in sentences."""
    return [
        f"{row['data']}, {row['arm'].replace('_', ' ')} (batch {row['batch']}, rate {row['rate']:g}): "
        f"{100 * row['dead']:.0f}% dead after {row['steps']:,} steps; loss and sparsity had converged at step "
        f"{row['converged']:,.0f}, with {100 * row['then']:.0f}% dead."
        for row in table(records)
    ]


def _over(records: Sequence[Record], arms: Sequence[tuple[str, str]], value: Callable[..., float]) -> Effect:
    """One replicate a seed: `value` of its runs of the arms (data, change)."""
    there = by_change(records)
    return across({" ".join(arm): there.get(arm, {}) for arm in arms}, value)


def _already(records: Sequence[Record], data: str) -> Effect:
    """Share of the units dead at the end that were dead when loss and sparsity converged; not testable if few died."""
    runs = by_change(records).get((data, "base"), {})
    died = float(np.mean([_last_dead(r) for r in runs.values()])) if runs else SOME
    if died < SOME:
        return Effect.untestable(f"only {100 * died:.0f}% of the units died on {data}")

    def share(run: Record) -> float:
        last = _last_dead(run)
        return converged(run)["dead.mean"] / last if last else math.nan

    return _over(records, [(data, "base")], share)


def _last_dead(run: Record) -> float:
    return validations(run)[-1]["dead.mean"]


def _dead_after(run: Record, examples: float) -> float:
    """Share of dead units at the last validation that came before more than so many examples were seen."""
    return [line["dead.mean"] for line in validations(run) if line["step"] * run.config.batch <= examples][-1]


def _at_equal_epochs(small: Record, large: Record) -> float:
    """Dead share with the small batch less that with the large one, after as many examples of the same data."""
    examples = min(validations(run)[-1]["step"] * run.config.batch for run in (small, large))
    return _dead_after(small, examples) - _dead_after(large, examples)


def _at_equal_steps(small: Record, large: Record) -> float:
    return _last_dead(small) - _last_dead(large)


def _earliness(few: Record, base: Record) -> float:
    """Mean over training of the dead share, of less data less that of more."""
    return float(np.subtract(*(np.mean([line["dead.mean"] for line in validations(run)]) for run in (few, base))))


def _silent_gap(a: Record, b: Record) -> float:
    return measured(a, SILENT) - measured(b, SILENT)


def _claim(name: str, where: str, statement: str, effect: str, side, threshold: float, measure) -> Claim:
    return Claim(f"B15.{name}", where, statement, effect, "seed", side, threshold, measure)


def _only_after(data: str) -> Claim:
    return _claim(
        f"after.{data}",
        "Fig. 28",
        f"on {data} Adam kills units only after loss and sparsity have converged",
        "of the units dead at the end, the share that were dead when loss and active share had converged",
        "below",
        0.1,
        lambda records: _already(records, data),
    )


CLAIMS = (
    _only_after("latents"),
    _only_after("pixels"),
    _claim(
        "most",
        "Fig. 28, 29",
        "on latents most units die in the end (about 92%)",
        "share of silent units at the end of training on latents",
        "above",
        0.5,
        lambda records: _over(records, [("latents", "base")], lambda run: measured(run, SILENT)),
    ),
    _claim(
        "latents",
        "Fig. 29",
        "more die on latents than on pixels",
        "share of silent units at the end, latents less pixels",
        "above",
        0.0,
        lambda records: _over(records, [("latents", "base"), ("pixels", "base")], _silent_gap),
    ),
    _claim(
        "rate",
        "App. I.2",
        "fewer die at a smaller rate",
        "share of silent units after as many steps, smaller rate less larger",
        "below",
        0.0,
        lambda records: _over(records, [("latents", "slow"), ("latents", "base")], _silent_gap),
    ),
    _claim(
        "batch_by_epochs",
        "Fig. 27, 30",
        "fewer die with a larger batch, after as many epochs",
        "dead share, small batch less large, after as many examples",
        "above",
        0.0,
        lambda records: _over(records, [("latents", "small_batch"), ("latents", "large_batch")], _at_equal_epochs),
    ),
    _claim(
        "batch_by_steps",
        "Fig. 30",
        "the order of batches is the opposite after as many steps",
        "dead share, small batch less large, after as many steps",
        "below",
        0.0,
        lambda records: _over(records, [("latents", "small_batch"), ("latents", "large_batch")], _at_equal_steps),
    ),
    _claim(
        "size.latents",
        "Fig. 29",
        "smaller data sets kill sooner (latents)",
        "dead share, mean over equally many steps, with few examples less that with all",
        "above",
        0.0,
        lambda records: _over(records, [("latents", "few"), ("latents", "base")], _earliness),
    ),
    _claim(
        "size.pixels",
        "Fig. 29",
        "smaller data sets kill sooner (pixels; at the end, because their validation splits differ)",
        "share of silent units after as many steps, with few examples less that with all",
        "above",
        0.0,
        lambda records: _over(records, [("pixels", "few"), ("pixels", "base")], _silent_gap),
    ),
)

DEAD = Study(
    name="bricken2023/dead",
    title="Bricken et al. 2023: when Adam kills units",
    introduction=(
        "Denoising autoencoders are trained by Adam at sigma 3 for long after their loss has stopped falling. A unit "
        "that no example activates has no gradient any more and does not come back. The paper finds that on latents "
        "92% of the units die so, after loss and sparsity have converged."
    ),
    findings=findings,
    figures={
        "Dead units long after convergence": after_convergence,
        "By learning rate": by_rate,
        "By size of the data": by_size,
        "By batch": by_batch,
    },
    claims=CLAIMS,
    table=table,
)
