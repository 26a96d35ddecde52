"""Beyond Li et al. 2022: every way to sparse activations on one front, of a ViT and of a T5."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import FixedLocator

from sparsity.studies import draw
from sparsity.studies.draw import Drawing, Runs, RunView
from sparsity.studies.judge import Claim, Effect
from sparsity.studies.li2022 import runs as t5s
from sparsity.studies.li2022 import vits
from sparsity.studies.li2022.methods import (
    METHODS,
    MODELS,
    T5,
    VIT,
    Arm,
    Pairs,
    Table,
    arm_of,
    by_arm,
    bytes_read,
    of_method,
    share,
    worst,
    worst_layer,
)
from sparsity.studies.records import Run, each_layer, finished, mean_over, measured, percent, standard_error
from sparsity.studies.runner import Record, Row, Study

LEARNS = {VIT: vits.LEARNS, T5: t5s.LEARNS}
SAME = 0.01  # of accuracy
CALIBRATED = 1.25  # times the calibration error of ReLU, which is about two points: with less, as well calibrated
KEPT = 0.1  # of k: about as many as statistical Top-k is to keep
DRIFT = 0.05  # of nonzeros, above those that a clipped ReLU is started with, in the densest layer
FEWER = 0.02  # of nonzeros: what noise is to save
SPARSE = 0.5  # of the ReLU network's nonzeros


accuracy, corrupted, ece = (functools.partial(measured, name=name) for name in ("accuracy", "robustness.mean", "ece"))


def table(records: Sequence[Record]) -> list[Row]:
    """Every method at every setting, means over n seeds (se: of the column before, over seeds).

    setting: k of Top-k, deviation of the noise, weight of L1, zeros that a clipped ReLU is started with. nonzero: share
    on held-out data, mean over layers; worst layer: that of the densest. accuracy: on clean test images, or of held-out
    target tokens. corrupted: accuracy under three noises, mean over five severities; ece: calibration error in 15
    equal bins; neither is measured of a T5. bytes: of an MLP's weights that one token must read in unbatched decoding
    if rows of W_o that meet zeros are left out, (1 + nonzero) / 2 of all of them, and bound: how much faster than dense
    that can make the MLP at most. That is counted, not timed.
    """
    rows = []
    for arm, of_seed in by_arm(records).items():
        runs = finished(of_seed)
        row: dict[str, Any] = {"network": MODELS[arm.model], "method": METHODS[arm.method][0]}
        row |= {"setting": arm.setting or None, "n": len(runs)}
        row["nonzero"], row["worst layer"] = mean_over(runs, share), mean_over(runs, worst_layer)
        for name, value in {"accuracy": accuracy, "corrupted": corrupted, "ece": ece}.items():
            row[name] = mean_over(runs, value)
            row[f"se of {name}"] = None if row[name] is None else standard_error([value(r) for r in runs])
        row["bytes"] = None if row["nonzero"] is None else bytes_read(row["nonzero"])
        row["bound"] = None if row["bytes"] is None else 1 / row["bytes"]
        rows.append(row)
    return rows


PANELS = (
    (VIT, accuracy, "ViT on digits", "test accuracy (%)"),
    (T5, accuracy, "T5 on text", "held-out tokens predicted (%)"),
    (VIT, corrupted, "ViT, corrupted images", "accuracy (%)"),
    (VIT, ece, "ViT, calibration", "expected calibration error (%)"),
)


def front(runs: Runs) -> Drawing:
    """Accuracy against the share of nonzeros (log x), of every method; below, under corruption and in calibration.

    Left is cheaper: one token reads (1 + share) / 2 of an MLP's weights. Points are means over seeds, five of a ViT and
    three of a T5, bars their standard errors; lines join the settings of a method. All networks of a panel had the same
    training but for the method. Embedded scale: minutes on two cores, networks of four layers.
    """
    figure, axes = draw.panels(2, 2, height=3.1)
    arms = by_arm(runs.values())
    for axis, (model, value, title, what) in zip(axes.flat, PANELS, strict=True):
        for method, (label, color, marker) in METHODS.items():
            points = [
                _point(finished(arms[arm]), value) for arm in of_method(arms, model, method) if finished(arms[arm])
            ]
            if not points:
                continue
            x, x_error, y, y_error = 100 * np.array(sorted(points)).T
            axis.errorbar(x, y, y_error, x_error, fmt=f"{marker}-", color=color, ms=6, lw=1, label=label)
        axis.set(title=title, xlabel="nonzero activations (%)", ylabel=what, xscale="log")
        axis.xaxis.set_major_locator(FixedLocator([1, 2, 5, 10, 20, 50, 100]))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.minorticks_off()
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return draw.done(figure)


def _point(views: Sequence[RunView], value: Callable[[RunView], float]) -> tuple[float, float, float, float]:
    """Mean share and its error, mean value and its error."""
    found = [[of(view) for view in views] for of in (share, value)]
    return tuple(number for values in found for number in (float(np.mean(values)), standard_error(values) or 0.0))


def findings(records: Sequence[Record]) -> list[str]:
    """Every arm in a sentence, then which of them claims that choose by nonzeros are judged by."""
    out = []
    for row in table(records):
        setting = "" if row["setting"] is None else f" {row['setting']:g}"
        line = f"{row['network']}, {row['method']}{setting}: {percent(row['nonzero'])} nonzero"
        line += f" (densest layer {percent(row['worst layer'])}), accuracy {percent(row['accuracy'])}"
        if row["corrupted"] is not None:
            line += f", under corruption {percent(row['corrupted'])}, calibration error {percent(row['ece'])}"
        read = "" if row["bytes"] is None else f"; a token must read {percent(row['bytes'])} of an MLP's weights"
        out.append(f"{line}{read}.")
    return out + _judged(records)


def _judged(records: Sequence[Record]) -> list[str]:
    """Which networks claims that choose theirs by nonzeros are judged by, or why there are none."""
    arms, out = by_arm(records), []
    said = lambda pairs, words: pairs if isinstance(pairs, str) else "; ".join(words(a, b) for a, b in pairs)
    for model in (model for model in MODELS if Arm(model, "relu") in arms):
        beside = said(_beside_l1(model)(arms), lambda a, b: f"{a.text()} beside {b.text()}")
        out.append(f"{MODELS[model]}, Top-k beside L1: {beside}.")
        if model == VIT:
            out.append(
                f"{MODELS[VIT]}, at most half of ReLU's nonzeros: {said(_sparse(VIT)(arms), lambda a, _: a.text())}."
            )
    return out


def _effect(
    model: str, choose: Callable[[Table], Pairs | str], value: Callable[[Record, Record], float], side: str, both: bool
) -> Callable[..., Effect]:
    """`worst` of the pairs that `choose` takes, or says why there are none.

    Not testable where the ReLU network was not run, or has not learnt, or the second network of a pair has not; nor, of
    a `value` in which one that has not may do well (`both`), the first.
    """

    def measure(records: Sequence[Record]) -> Effect:
        arms = by_arm(records)
        dense = finished(arms.get(Arm(model, "relu"), {}))
        if not dense or not _learnt(model, dense):
            return Effect.untestable(f"the {MODELS[model]} with ReLU was not run, or has not learnt")
        pairs = choose(arms)
        if isinstance(pairs, str):
            return Effect.untestable(pairs)
        for arm in dict.fromkeys(arm for pair in pairs for arm in (pair if both else pair[1:])):
            if finished(arms[arm]) and not _learnt(model, finished(arms[arm])):
                return Effect.untestable(f"{arm.text()}: has not learnt, its accuracy is below {LEARNS[model]:g}")
        return worst(arms, pairs, value, side)

    return measure


def _learnt(model: str, runs: Sequence[Run]) -> bool:
    return bool(np.mean([accuracy(run) for run in runs]) >= LEARNS[model])


def _against(model: str, method: str, other: str = "relu", last: bool = False) -> Callable[[Table], Pairs | str]:
    """Every setting of a method, or the last, with the other method: at the same setting, or without one."""

    def choose(arms: Table) -> Pairs | str:
        found = of_method(arms, model, method)
        found = found[-1:] if last else found
        pairs = [(arm, Arm(model, other, 0.0 if other in ("relu", "gelu") else arm.setting)) for arm in found]
        missing = [b.text() for _, b in pairs if b not in arms]
        return f"no run of {', '.join(missing) or METHODS[method][0]}" if missing or not pairs else pairs

    return choose


def _mean_share(of_seed: Mapping[int, Run]) -> float:
    return float(np.mean([share(run) for run in finished(of_seed)] or [np.nan]))


def _lost(arms: Table, model: str, methods: Sequence[str] = tuple(METHODS)) -> str | None:
    """What is said if an arm has no run that finished, so that none is left out unseen; None if each has one."""
    of_model = {arm: of_seed for arm, of_seed in arms.items() if arm.model == model and arm.method in methods}
    lost = [arm.text() for arm, of_seed in of_model.items() if not finished(of_seed)]
    return f"no run of {', '.join(lost)} finished" if lost else None


def _beside_l1(model: str) -> Callable[[Table], Pairs | str]:
    """With every weight of L1 the densest Top-k that is no denser; weights than which none is sparser are left out."""

    def choose(arms: Table) -> Pairs | str:
        if (why := _lost(arms, model, ("l1", "top_k"))) is not None:
            return why
        shares = {arm: _mean_share(of_seed) for arm, of_seed in arms.items()}
        pairs = []
        for arm in of_method(arms, model, "l1"):
            sparser = [k for k in of_method(arms, model, "top_k") if shares[k] <= shares[arm]]
            pairs += [(k, arm) for k in sorted(sparser, key=shares.get)[-1:]]
        return pairs or "no Top-k was run that is as sparse as L1 at any weight"

    return choose


def _sparse(model: str) -> Callable[[Table], Pairs | str]:
    """Every arm with at most half of the ReLU network's nonzeros, with that network."""

    def choose(arms: Table) -> Pairs | str:
        if (why := _lost(arms, model)) is not None:
            return why
        relu = Arm(model, "relu")
        most = SPARSE * _mean_share(arms[relu])
        found = [arm for arm, of_seed in arms.items() if arm.model == model and _mean_share(of_seed) <= most]
        return [(arm, relu) for arm in found] or f"no network with at most {SPARSE:g} of ReLU's nonzeros"

    return choose


def _unlike(a: Record, b: Record) -> float:
    """By how much the share of nonzeros is another than that of `b`, over that; the largest over layers."""
    with np.errstate(divide="ignore", invalid="ignore"):  # a layer without any: no evidence
        return float(np.max(np.abs(each_layer(a) / each_layer(b) - 1)))


def _gap(value: Callable[[Record], float]) -> Callable[[Record, Record], float]:
    return lambda a, b: value(a) - value(b)


def _claim(
    model: str, id: str, statement: str, effect: str, side, threshold: float, choose, value, both: bool = False
) -> Claim:
    name = f"front.{model}.{id}"
    measure = _effect(model, choose, value, side, both)
    return Claim(name, "beyond the paper", f"{MODELS[model]}: {statement}", effect, "seed", side, threshold, measure)


def _claims(model: str) -> tuple[Claim, ...]:
    claim, gap = functools.partial(_claim, model), _gap(accuracy)
    return (
        claim(
            "top_k_beside_l1",
            "Top-k with no more nonzeros than L1 leaves is as accurate as L1, to a point",
            "accuracy of the densest Top-k that is no denser less L1's, at the weight that is worst in the other seeds",
            "above",
            -SAME,
            _beside_l1(model),
            gap,
        ),
        claim(
            "statistical",
            "statistical Top-k is as accurate as exact Top-k, to a point",
            "accuracy with statistical less that with exact Top-k",
            "above",
            -SAME,
            _against(model, "statistical", "top_k"),
            gap,
        ),
        claim(
            "statistical_kept",
            "and leaves as many nonzeros in every layer, to a tenth",
            "|nonzeros with statistical over those with exact Top-k, less 1|, the largest over layers",
            "below",
            KEPT,
            _against(model, "statistical", "top_k"),
            _unlike,
            both=True,
        ),
        claim(
            "clipped",
            "started on the edge of chaos with 85% zeros, clipped ReLU is as accurate as ReLU, to a point",
            "accuracy less ReLU's, at the most zeros that were run",
            "above",
            -SAME,
            _against(model, "clipped", last=True),
            gap,
        ),
        claim(
            "clipped_kept",
            "and keeps its zeros through training in every layer, to 5 points",
            "share of nonzeros of the densest layer at the end less that started with, at the most zeros that were run",
            "below",
            DRIFT,
            _against(model, "clipped", last=True),
            lambda a, _: worst_layer(a) - (1 - arm_of(a).setting),
            both=True,
        ),
        claim(
            "noise",
            "noise in training, gone at its end, leaves fewer nonzeros than ReLU alone, by 2 points",
            "share of nonzeros less ReLU's, at the deviation that is worst in the other seeds",
            "below",
            -FEWER,
            _against(model, "noise"),
            _gap(share),
            both=True,
        ),
        claim(
            "noise_accuracy",
            "and is as accurate, to a point",
            "accuracy less ReLU's, at the deviation that is worst in the other seeds",
            "above",
            -SAME,
            _against(model, "noise"),
            gap,
        ),
        claim(
            "gelu",
            "ReLU, which has zeros, is as accurate as GELU, which has none, to a point",
            "accuracy with ReLU less that with GELU",
            "above",
            -SAME,
            _against(model, "relu", "gelu"),
            gap,
        ),
    )


_AT_THE_WORST = "of networks with at most half of its nonzeros the one that is worst in the other seeds"
CLAIMS = (
    *_claims(VIT),
    _claim(
        VIT,
        "corrupted",
        "networks with half of ReLU's nonzeros or fewer, by any method, are as accurate under corruption, to a point",
        f"accuracy under corruption less ReLU's, {_AT_THE_WORST}",
        "above",
        -SAME,
        _sparse(VIT),
        _gap(corrupted),
    ),
    _claim(
        VIT,
        "ece",
        "and as well calibrated, to a quarter of its error",
        f"expected calibration error over ReLU's, {_AT_THE_WORST}",
        "below",
        CALIBRATED,
        _sparse(VIT),
        lambda a, b: ece(a) / ece(b) if ece(b) > 0 else float("nan"),
        both=True,
    ),
    *_claims(T5),
)

FRONT = Study(
    name="li2022/front",
    title="One front for everything: ways to sparse activations, on a ViT and on a T5",
    introduction=(
        "The same ViT and the same T5 are trained with ReLU, GELU, Top-k, statistical Top-k, noise in front of their "
        "MLPs, an L1 penalty, and clipped ReLU started on the edge of chaos; data, steps, batches and rate are the "
        "same. What does each method's sparsity cost, and what does it buy? Embedded scale alone: networks of four "
        "layers, trained for minutes. Speed is the bytes that unbatched decoding must read, counted and not timed."
    ),
    findings=findings,
    figures={"Accuracy against sparsity": front},
    claims=CLAIMS,
    table=table,
)
