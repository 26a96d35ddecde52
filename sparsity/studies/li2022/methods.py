"""What the front of Li et al. 2022's networks is made of: methods to make activations sparse, at their settings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from sparsity.studies.draw import RunView
from sparsity.studies.judge import Effect
from sparsity.studies.li2022.vits import config_of
from sparsity.studies.records import Run, each_layer, measured
from sparsity.studies.runner import Record

VIT, T5 = "vit", "t5"
MODELS = {VIT: "ViT", T5: "T5"}
METHODS = {  # what it is called, and how it is drawn
    "relu": ("ReLU", "k", "o"),
    "gelu": ("GELU", "C7", "X"),
    "top_k": ("Top-k", "C3", "s"),
    "statistical": ("statistical Top-k", "C1", "D"),
    "noise": ("noise", "C0", "^"),
    "l1": ("L1", "C2", "v"),
    "clipped": ("clipped, edge of chaos", "C4", "P"),
}


class Arm(NamedTuple):
    """A network, how its activations are made sparse, and the method's setting (k, sigma, weight or zeros; 0: none)."""

    model: str
    method: str
    setting: float = 0.0

    def text(self) -> str:
        """An arm in words, e.g. "ViT, Top-k 43"."""
        return f"{MODELS[self.model]}, {METHODS[self.method][0]}" + f" {self.setting:g}" * bool(self.setting)


def arm_of(run: Record | RunView) -> Arm:
    """The arm of a run, read from its config."""
    config = config_of(run)
    mlp, penalty = config["model"]["mlp"], config.get("penalty")
    phi, noise = mlp["sparsifier"], mlp.get("noise")
    method, setting = phi["name"], 0.0
    if penalty:
        method, setting = penalty["name"], penalty["weight"]
    elif noise:
        method, setting = "noise", noise["sigma"]
    elif method == "top_k":
        method, setting = ("top_k" if phi["method"] == "exact" else phi["method"]), phi["k"]
    elif method == "clipped_relu":
        method, setting = "clipped", phi["sparsity"]
    return Arm(config["model"]["name"], method, float(setting))


def by_arm(runs: Iterable[Run]) -> dict[Arm, dict[int, Run]]:
    """Arm -> seed -> run: ViTs first, methods as in `METHODS`, settings rising."""
    out: dict[Arm, dict[int, Run]] = {}
    for run in runs:
        out.setdefault(arm_of(run), {})[config_of(run)["seed"]] = run
    models, methods = list(MODELS), list(METHODS)
    return dict(
        sorted(out.items(), key=lambda item: (models.index(item[0].model), methods.index(item[0].method), item[0]))
    )


def of_method(arms: Iterable[Arm], model: str, method: str) -> list[Arm]:
    """The arms of a method, settings rising."""
    return sorted(arm for arm in arms if (arm.model, arm.method) == (model, method))


def share(run: Record | RunView) -> float:
    """Share of nonzeros on held-out data, mean over layers."""
    return measured(run, "nonzero.mean")


def worst_layer(run: Record | RunView) -> float:
    """The same of the densest layer; NaN for a run that diverged."""
    return float(np.max(each_layer(run)))


def bytes_read(density: float) -> float:
    """Bytes of an MLP's two matrices that one token must read, over all of theirs: (1 + density) / 2.

    Unbatched decoding is bound by reading weights: all of W_i [D, F], of W_o [F, D] the rows of nonzero units (Li et
    al. 2022, Sec. 4.1). It is a bound that memory sets at any size, not a time: networks this small are bound by other
    things.

    >>> bytes_read(1.0), bytes_read(0.1)
    (1.0, 0.55)
    """
    return (1 + density) / 2


Pairs = Sequence[tuple[Arm, Arm]]
Table = Mapping[Arm, Mapping[int, Record]]


def worst(table: Table, pairs: Pairs, value: Callable[[Record, Record], float], side: str) -> Effect:
    """`value` of two runs of a seed, one replicate a seed, of the pair that does worst for a claim of `side`.

    Which pair that is, the means over the other seeds say: the worst of a seed's own would be bad by its noise. A seed
    in which one of the pairs' runs diverged is no evidence.
    """
    seeds = sorted(set.intersection(*(set(table[arm]) for pair in pairs for arm in pair)))
    if len(pairs) > 1 and len(seeds) < 2:
        return Effect.untestable("which arm does worst is told by other seeds, and there is one seed only")
    sign = 1.0 if side == "above" else -1.0
    ended = lambda run: run.outcome.status == "finished"
    of = lambda a, b: value(a, b) if ended(a) and ended(b) else float("nan")
    gaps = np.array([[of(table[a][seed], table[b][seed]) for seed in seeds] for a, b in pairs])
    replicates = []
    for i, here in enumerate(gaps.T):
        others = np.delete(gaps, i, axis=1)
        others = others[:, np.isfinite(others).all(0)]
        known = np.isfinite(here).all() and (len(pairs) == 1 or others.size)
        chosen = int(np.argmin(sign * others.mean(1))) if len(pairs) > 1 and known else 0
        replicates.append(here[chosen] if known else float("nan"))
    return Effect.of(replicates)
