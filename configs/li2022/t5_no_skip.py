"""Li et al. 2022, Figs. B.5, B.6: a T5 one of whose MLPs has no connection around it.

Claim: L15 (the trajectory of that layer's nonzero share changes most, other layers' little; accuracy falls by 1.6%).
Command: python -m launch.reproduce --study=li2022/t5_no_skip --workdir=runs/li2022
One run: python -m launch.train --config=configs/li2022/t5_no_skip.py:without --workdir=runs/one
(`with` has them all; `paper/without` at the paper's scale.)
Hardware: 2 CPU cores, 6 runs, 3 of them `t5_scale`'s: 26 minutes for all, two at a time, beside other work. At the
paper's scale 2 runs of 100,000 steps on a TPU slice.
Expected: paper: encoder layer 6 of 24 takes another course, the others change much less; 1.6% less accuracy.
assumed: (embedded) the network of `t5_prevalence` with 8 layers, without the connection around encoder layer 2.
assumed: (paper) T5-Large on C4, as in `t5_prevalence`, without that around encoder layer 6, counted from 0. With
one seed this scale draws figures and gives no verdicts.
"""

from ml_collections import ConfigDict

from sparsity import recipes

LAYER = {"embedded": "encoder_2", "paper": "encoder_6"}
SEEDS = {"embedded": 3, "paper": 1}


def get_config(arg: str = "without") -> ConfigDict:
    """The first run of "[paper/]with" or "[paper/]without"."""
    scale, arm = ("paper", arg.removeprefix("paper/")) if arg.startswith("paper/") else ("embedded", arg)
    if arm not in ("with", "without"):
        raise ValueError(f'unknown run "{arg}"; valid: with, without, each after paper/ or not')
    return _run(scale, arm == "without", 0)


def _run(scale: str, without: bool, seed: int) -> ConfigDict:
    layer = LAYER[scale] if without else None
    if scale == "paper":
        return recipes.t5_arm(recipes.t5_c4("large"), without_skip=layer, seed=seed)
    return recipes.t5_arm(recipes.t5_text_of("base"), layers=8, without_skip=layer, seed=seed)


def sweep(scale: str) -> list[ConfigDict]:
    """With and without, by seed."""
    return [_run(scale, without, seed) for seed in range(SEEDS[scale]) for without in (False, True)]
