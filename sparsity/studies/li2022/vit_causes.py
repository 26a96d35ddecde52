"""Li et al. 2022, Fig. 5: nonzeros of ViTs whose labels, images or both are random."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from sparsity.studies import draw
from sparsity.studies.draw import Drawing, Runs
from sparsity.studies.judge import Claim, Effect
from sparsity.studies.li2022.runs import train_accuracy
from sparsity.studies.li2022.vits import (
    DIGITS,
    IMAGES,
    INFINITE,
    Arm,
    between,
    by_arm,
    end,
    layer_axis,
    over_arms,
    plot_layers,
    start,
)
from sparsity.studies.records import Run, decades, finished, mean_over, measured, percent, standard_error
from sparsity.studies.runner import Record, Row, Study

FOUR, FIVE, EIGHT, NINE, OF = 4, 5, 8, 9, 12  # layers of the paper's ViT-B/16 where its sentences draw lines
TENTH = 0.1  # of the units: "less than 10% activated"
BAND = 0.1, 0.2  # "near 10% to 20%"


def cause(arm: Arm) -> str:
    """What is random in the data of an arm.

    >>> cause(Arm(64, 4, 512)), cause(Arm(64, 4, 512, noise=0.7)), cause(Arm(64, 4, 512, INFINITE))
    ('nothing', '70% of the labels', 'images and labels, without end')
    """
    if arm.data != DIGITS:
        return {IMAGES: "images", INFINITE: "images and labels, without end"}[arm.data]
    return f"{100 * arm.noise:g}% of the labels" if arm.noise else "nothing"


def plain(runs: Iterable[Run]) -> Arm | None:
    """The arm of which nothing is random."""
    return next((arm for arm in by_arm(runs) if cause(arm) == "nothing"), None)


def random_labels(runs: Iterable[Run]) -> list[Arm]:
    """The arms whose images are real, by their share of random labels, from none on."""
    return sorted((arm for arm in by_arm(runs) if arm.data == DIGITS), key=lambda arm: arm.noise)


def of_data(runs: Iterable[Run], data: str) -> Arm | None:
    """The arm that reads `data`."""
    return next((arm for arm in by_arm(runs) if arm.data == data), None)


def without_cause(runs: Iterable[Run]) -> list[Arm]:
    """The arms that each take one possible cause of sparsity away: all labels, the images, that data can be fitted."""
    labels = [arm for arm in random_labels(runs) if arm.noise == 1]
    return labels + [arm for arm in (of_data(runs, IMAGES), of_data(runs, INFINITE)) if arm is not None]


def table(records: Sequence[Record]) -> list[Row]:
    """Nonzeros on training data of every kind, means over n seeds.

    random: what of the data is. start, end: share of nonzeros on the training batch of the first and of the last step,
    mean over layers (se of the latter over seeds). block_0, ...: that of a layer at the end. ratio: the largest over
    layers of end over start. accuracy: on test data of the same kind, their labels as they are (chance is a tenth);
    train: on training batches, random labels included: whether they were fitted.
    """
    rows, deepest = [], max((arm.layers for arm in by_arm(records)), default=0)
    for arm, of_seed in by_arm(records).items():
        runs = finished(of_seed)
        mean = functools.partial(mean_over, runs)
        row = {"random": cause(arm), "n": len(runs), "start": mean(lambda r: start(r).mean())}
        row["end"], row["se"] = mean(lambda r: end(r).mean()), standard_error([end(r).mean() for r in runs])
        for i in range(deepest):
            row[f"block_{i}"] = mean(lambda r, i=i: end(r)[i]) if i < arm.layers else None
        row["ratio"] = mean(lambda r: (end(r) / start(r)).max())
        row["accuracy"], row["train"] = mean(lambda r: measured(r, "accuracy")), mean(train_accuracy)
        rows.append(row)
    return rows


def layers(runs: Runs) -> Drawing:
    """Fig. 5: nonzero share of each layer on the last training batch (log y): random labels, images, infinite data.

    Black: nothing random. Dots are seeds, lines their mean. Dashed: a tenth of the units.
    """
    figure, axes = draw.panels(1, 3, sharey=True)
    arms, usual = by_arm(runs.values()), plain(runs.values())
    labels = [arm for arm in random_labels(runs.values()) if arm != usual]
    panels = {"random labels": labels, "random images": [], "infinite data": []}
    for title, data in (("random images", IMAGES), ("infinite data", INFINITE)):
        panels[title] = [arm for arm in arms if arm.data == data]
    for axis, (title, shown) in zip(axes, panels.items(), strict=True):
        if usual is not None:
            plot_layers(axis, arms[usual].values(), end, "k", "nothing random")
        for i, arm in enumerate(shown):
            plot_layers(axis, arms[arm].values(), end, draw.color(i, max(len(shown), 2)), cause(arm))
        axis.axhline(100 * TENTH, color="k", ls="--", lw=0.8)
        layer_axis(axis, title)
        if axis.get_legend_handles_labels()[0]:
            axis.legend()
    axes[0].set_ylabel("nonzero (%)")
    return draw.done(figure)


def findings(records: Sequence[Record]) -> list[str]:
    """Every kind of data in a sentence."""
    return [
        f"Random: {row['random']}. Nonzero {percent(row['start'])} at the start, {percent(row['end'])} at the end; "
        f"{percent(row['train'])} of the training labels are predicted."
        for row in table(records)
    ]


def _against(choose: Callable, base: Callable, low: float, high: float) -> Callable[..., Effect]:
    """log10 of the mean share of layers at depths `low` to `high`, arm `choose` over arm `base`, by seed.

    Not testable where the network of which nothing is random has not learnt.
    """

    def measure(records: Sequence[Record]) -> Effect:
        arms = [plain(records), base(records), choose(records)]
        if None in arms:
            return Effect.untestable("not all kinds of data were run")
        share = lambda run: float(between(end(run), low, high).mean())
        unique = list(dict.fromkeys(arms))
        i, j = unique.index(arms[1]), unique.index(arms[2])
        return over_arms(records, unique, lambda *runs: decades(share(runs[j]), share(runs[i])))

    return measure


def _of_noise(noise: float) -> Callable[[Sequence[Record]], Arm | None]:
    return lambda records: next((arm for arm in random_labels(records) if arm.noise == noise), None)


def _up_to_70(records: Sequence[Record]) -> Effect:
    """The largest log10 of the mean share over that of the next smaller share of random labels, up to 70%, by seed."""
    arms = [arm for arm in random_labels(records) if arm.noise <= 0.7]
    if len(arms) < 2 or arms[0].noise:
        return Effect.untestable("no run without random labels and with some")
    steps = lambda runs: [decades(b.mean(), a.mean()) for a, b in itertools.pairwise(runs)]
    return over_arms(records, arms, lambda *runs: float(np.max(steps([end(r) for r in runs]))))


def _largest(choose: Callable, value: Callable[[Record], float]) -> Callable[..., Effect]:
    """The largest `value` over the arms of `choose`, by seed."""

    def measure(records: Sequence[Record]) -> Effect:
        arms, usual = choose(records), plain(records)
        if not arms or usual is None:
            return Effect.untestable("not all kinds of data were run")
        return over_arms(records, [usual, *arms], lambda first, *runs: float(np.max([value(r) for r in runs])))

    return measure


def _middle_size(records: Sequence[Record]) -> Effect:
    """|log10| of the share of the middle third over the geometric mean of `BAND`, trained on infinite data."""
    arms = [plain(records), of_data(records, INFINITE)]
    if None in arms:
        return Effect.untestable("not all kinds of data were run")
    middle = lambda run: float(between(end(run), FOUR / OF, EIGHT / OF).mean())
    return over_arms(records, arms, lambda first, run: abs(decades(middle(run), math.sqrt(BAND[0] * BAND[1]))))


def _densest(run: Record) -> float:
    return float(end(run).max())


def _claim(id: str, where: str, statement: str, effect: str, side, threshold: float, measure) -> Claim:
    return Claim(id, where, statement, effect, "seed", side, threshold, measure)


_images = lambda records: of_data(records, IMAGES)
_infinite = lambda records: of_data(records, INFINITE)
_noisy = lambda records: [arm for arm in random_labels(records) if arm.noise]
_RATIO = "log10 of the training data's share of nonzeros, mean over {}, {} over {}"
CLAIMS = (
    _claim(
        "L4.up_to_70",
        "Fig. 5a",
        "the more labels are random, up to 70%, the fewer nonzeros",
        "largest log10 of the training data's share of nonzeros, mean over layers, over that with the next smaller "
        "share of random labels, from 0 to 70%",
        "below",
        0.0,
        _up_to_70,
    ),
    _claim(
        "L4.shallow",
        "Fig. 5a",
        "with 100% the shallow layers (0 to 4 of 12) become sparser",
        _RATIO.format("the first five twelfths of layers", "100%", "70% of the labels random"),
        "below",
        0.0,
        _against(_of_noise(1.0), _of_noise(0.7), 0, FIVE / OF),
    ),
    _claim(
        "L4.deep",
        "Fig. 5a",
        "and the deep ones (5 to 11) denser",
        _RATIO.format("the last seven twelfths of layers", "100%", "70% of the labels random"),
        "above",
        0.0,
        _against(_of_noise(1.0), _of_noise(0.7), FIVE / OF, 1),
    ),
    _claim(
        "L4.tenth",
        "Fig. 5a",
        "with any share of random labels fewer than a tenth of the units of any layer are nonzero",
        "largest share of nonzeros of a layer on training data, over 50, 70 and 100% of the labels random",
        "below",
        TENTH,
        _largest(_noisy, _densest),
    ),
    _claim(
        "L5.images_first",
        "Fig. 5b",
        "random images make the first four layers of twelve sparser",
        _RATIO.format("the first third of layers", "random images", "natural ones"),
        "below",
        0.0,
        _against(_images, plain, 0, FOUR / OF),
    ),
    _claim(
        "L5.images_last",
        "Fig. 5b",
        "and the last few denser",
        _RATIO.format("the last quarter of layers", "random images", "natural ones"),
        "above",
        0.0,
        _against(_images, plain, NINE / OF, 1),
    ),
    _claim(
        "L5.images_tenth",
        "Fig. 5b",
        "and fewer than a tenth of the units of any layer nonzero",
        "largest share of nonzeros of a layer on random images",
        "below",
        TENTH,
        _largest(lambda records: [arm for arm in (_images(records),) if arm], _densest),
    ),
    _claim(
        "L5.infinite_first",
        "Fig. 5c",
        "infinite data make the first four layers of twelve sparser",
        _RATIO.format("the first third of layers", "infinite data", "natural ones"),
        "below",
        0.0,
        _against(_infinite, plain, 0, FOUR / OF),
    ),
    _claim(
        "L5.infinite_middle",
        "Fig. 5c",
        "and the middle ones (4 to 7) denser",
        _RATIO.format("the middle third of layers", "infinite data", "natural ones"),
        "above",
        0.0,
        _against(_infinite, plain, FOUR / OF, EIGHT / OF),
    ),
    _claim(
        "L5.infinite_size",
        "Fig. 5c",
        "which have near 10 to 20% nonzeros",
        "|log10 of the share of nonzeros, mean over the middle third of layers, infinite data, over .141|",
        "below",
        math.log10(BAND[1] / BAND[0]) / 2,
        _middle_size,
    ),
    _claim(
        "L5.falls",
        "Sec. 3.4",
        "neither labels, images nor data that can be fitted are needed: without each the share falls in every layer",
        "largest change over layers of the share of nonzeros on training data, end less start, over random labels "
        "(100%), random images and infinite data",
        "below",
        0.0,
        _largest(without_cause, lambda run: float((end(run) - start(run)).max())),
    ),
    _claim(
        "L5.far",
        "Sec. 3.4",
        "considerably, from the 50% of the start: by more than half",
        "largest share of nonzeros at the end over that at the start, over layers and the same data",
        "below",
        0.5,
        _largest(without_cause, lambda run: float((end(run) / start(run)).max())),
    ),
)

VIT_CAUSES = Study(
    name="li2022/vit_causes",
    title="Li et al. 2022, Fig. 5: ViTs become sparse on random labels, random images and infinite data",
    introduction=(
        "A ViT reads digits of which half, 70% or all training labels are random; or random pixels with the digits' "
        "labels; or ever new random pixels with random labels, which nobody can fit. The paper finds its activations "
        "sparse in all cases, if not in the same layers, and concludes that none of the three is the cause."
    ),
    findings=findings,
    figures={"Nonzeros by layer and data": layers},
    claims=CLAIMS,
    table=table,
)
