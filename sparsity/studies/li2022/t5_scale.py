"""Li et al. 2022, Fig. 4: nonzeros of T5s of varying depth and of varying width."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sparsity.studies.draw import Drawing, Runs
from sparsity.studies.judge import Claim, Effect
from sparsity.studies.li2022.runs import STACKS, Arm, by_arm, layer_by_layer, over_arms, shares, train_accuracy
from sparsity.studies.records import decades, finished, mean_over, measured, named, percent, standard_error
from sparsity.studies.runner import Record, Row, Study


def depths(runs) -> list[Arm]:
    """The arms that differ in depth alone, shallow first: those of the width that most arms have."""
    return _varying(runs, "layers", "d_ff")


def widths(runs) -> list[Arm]:
    """The arms that differ in width alone, narrow first: those of the depth that most arms have."""
    return _varying(runs, "d_ff", "layers")


def _varying(runs, key: str, fixed: str) -> list[Arm]:
    arms = list(by_arm(runs))
    values = [getattr(arm, fixed) for arm in arms]
    if not values:
        return []
    usual = max(set(values), key=values.count)
    return sorted((arm for arm in arms if getattr(arm, fixed) == usual), key=lambda arm: getattr(arm, key))


def mean_share(run, stack: str) -> float:
    """Held-out share of nonzeros, mean over the layers of a stack."""
    return float(shares(run, stack).mean())


def table(records: Sequence[Record]) -> list[Row]:
    """Nonzeros of every depth and width on held-out text, means over n seeds.

    encoder, decoder: share of nonzeros, mean over layers (se: of the encoder's, over seeds). least, most: of a layer of
    the encoder. count: nonzeros per token of a layer of the encoder, mean over layers. accuracy: of target tokens, held
    out; train: on training batches.
    """
    rows = []
    for arm, of_seed in by_arm(named(records)).items():
        runs = finished(of_seed)
        mean = lambda value, runs=runs: mean_over(runs, value)
        row = {"layers": arm.layers, "d_ff": arm.d_ff, "n": len(runs)}
        row["encoder"] = mean(lambda r: mean_share(r, "encoder"))
        row["se"] = standard_error([mean_share(r, "encoder") for r in runs])
        row["decoder"] = mean(lambda r: mean_share(r, "decoder"))
        row["least"], row["most"] = (
            mean(lambda r: shares(r, "encoder").min()),
            mean(lambda r: shares(r, "encoder").max()),
        )
        row["count"] = None if row["encoder"] is None else arm.d_ff * row["encoder"]
        row["accuracy"], row["train"] = mean(lambda r: measured(r, "accuracy")), mean(train_accuracy)
        rows.append(row)
    return rows


def by_layers(runs: Runs) -> Drawing:
    """Fig. 4a: nonzero share of each layer on held-out text, by depth (log y); dots are seeds, lines their mean."""
    chosen = set(depths(runs))
    return layer_by_layer(_of(runs, chosen), lambda arm: f"{arm.layers} layers", "nonzero (%)", lambda arm: 100.0)


def by_width(runs: Runs) -> Drawing:
    """Fig. 4b: nonzero share of each layer on held-out text, by width (log y); dots are seeds, lines their mean."""
    return layer_by_layer(
        _of(runs, set(widths(runs))), lambda arm: f"d_ff {arm.d_ff}", "nonzero (%)", lambda arm: 100.0
    )


def count_by_width(runs: Runs) -> Drawing:
    """Fig. 4c: nonzeros per token and layer on held-out text, by width (log y); dots are seeds, lines their mean."""
    label = lambda arm: f"d_ff {arm.d_ff}"
    return layer_by_layer(_of(runs, set(widths(runs))), label, "nonzeros per token", lambda arm: float(arm.d_ff))


def _of(runs: Runs, arms: set[Arm]) -> Runs:
    chosen = [name for arm, of_seed in by_arm({n: n for n in runs}).items() if arm in arms for name in of_seed.values()]
    return {name: runs[name] for name in chosen}


def findings(records: Sequence[Record]) -> list[str]:
    """Every size in a sentence."""
    return [
        f"{row['layers']} layers of d_ff {row['d_ff']}: nonzero {percent(row['encoder'])} of the encoder's units and "
        f"{percent(row['decoder'])} of the decoder's"
        + ("." if row["count"] is None else f", {row['count']:.0f} units of an encoder layer per token.")
        for row in table(records)
    ]


def _ends(choose: Callable, value: Callable[[Record, Record, Arm, Arm], float]) -> Callable[..., Effect]:
    """`value` of the runs of the smallest and of the largest arm of `choose`, and of these arms, by seed."""

    def measure(records: Sequence[Record]) -> Effect:
        arms = choose(named(records))
        if len(arms) < 2:
            return Effect.untestable("fewer than two sizes were run")
        return over_arms(records, (arms[0], arms[-1]), lambda a, b: value(a, b, arms[0], arms[-1]))

    return measure


def _share_ratio(stack: str):
    return lambda a, b, small, large: decades(mean_share(b, stack), mean_share(a, stack))


def _sparsest_ratio(stack: str):
    return lambda a, b, small, large: decades(float(shares(b, stack).min()), float(shares(a, stack).min()))


def _count_ratio(stack: str):
    return lambda a, b, small, large: decades(large.d_ff * mean_share(b, stack), small.d_ff * mean_share(a, stack))


CLAIMS = tuple(
    Claim(f"{id}.{stack}", where, f"{statement} ({stack})", effect, "seed", side, 0.0, measure(stack), True)
    for stack in STACKS
    for id, where, statement, effect, side, measure in (
        (
            "L3.deeper",
            "Fig. 4a",
            "deeper networks have a lower percentage of nonzeros",
            "log10 of the held-out share of nonzeros, mean over layers, of the deepest network over the shallowest's",
            "below",
            lambda stack: _ends(depths, _share_ratio(stack)),
        ),
        (
            "L3.sparsest",
            "Fig. 4a",
            "and sparser middle layers: first and last ones are denser, and more of the layers of shallow networks",
            "log10 of the held-out share of nonzeros of the sparsest layer, the deepest network over the shallowest",
            "below",
            lambda stack: _ends(depths, _sparsest_ratio(stack)),
        ),
        (
            "L3.wider",
            "Fig. 4b",
            "wider networks have a lower percentage of nonzeros",
            "log10 of the held-out share of nonzeros, mean over layers, of the widest network over the narrowest's",
            "below",
            lambda stack: _ends(widths, _share_ratio(stack)),
        ),
        (
            "L3.count",
            "Fig. 4c",
            "and a higher count of them",
            "log10 of the nonzeros per token of a layer, mean over layers, of the widest network over the narrowest's",
            "above",
            lambda stack: _ends(widths, _count_ratio(stack)),
        ),
    )
)

T5_SCALE = Study(
    name="li2022/t5_scale",
    title="Li et al. 2022, Fig. 4: deeper and wider T5s are sparser",
    introduction=(
        "T5s that differ in the number of their layers alone, and in the width of their MLPs alone, are trained alike. "
        "The paper finds a lower percentage of nonzeros the deeper and the wider they are, and a higher count of them "
        "the wider they are; it shows the encoder and says that the decoder is the same."
    ),
    findings=findings,
    figures={
        "Nonzeros by layer and depth": by_layers,
        "Nonzeros by layer and width": by_width,
        "Number of nonzeros by layer and width": count_by_width,
    },
    claims=CLAIMS,
    table=table,
)
