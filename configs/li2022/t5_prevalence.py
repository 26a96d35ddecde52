"""Li et al. 2022, Figs. 1, 2a (T5), 2b, 2e, 2f, 3: the activations of a trained T5 are sparse, layer by layer.

Claim: L1 (about half of the units nonzero at the start, fewer in every layer at the end; the same on held-out text;
first and last layers denser), L2 (no dead units; most fire rarely).
Command: python -m launch.reproduce --study=li2022/t5_prevalence --workdir=runs/li2022
One run: python -m launch.train --config=configs/li2022/t5_prevalence.py:base --workdir=runs/one
(`paper/base` at the paper's scale.)
Hardware: 2 CPU cores, 9 runs; 26 minutes beside other work. At the paper's scale 4 runs of 100,000 steps
on a TPU slice.
Expected: paper: 2.7% nonzero on average over the layers of T5-Base, from 1.1 to 12.0%. The embedded
runs read a thirteen-thousandth of those tokens.
assumed: nothing is printed about which 800 texts of C4 Fig. 3 counts on; here it is the held-out split, test (C4 has
validation alone).
assumed: (embedded) bytes, 64 inputs, batch 8, 2,000 steps, dropout 0, widths 32, 64 and 96 with 2, 4 and 6 layers.
assumed: (paper) T5X's recipe of C4 with dropout .1; Fig. 3's network is the published multi-task one, ours is Fig. 1's.
With one seed this scale draws figures and gives no verdicts.
"""

from ml_collections import ConfigDict

from sparsity import recipes

SIZES = {"embedded": ("small", "base", "large"), "paper": ("small", "base", "large", "3b")}
SEEDS = {"embedded": 3, "paper": 1}


def get_config(arg: str = "base") -> ConfigDict:
    """The first run of "[paper/]SIZE"."""
    scale, size = ("paper", arg.removeprefix("paper/")) if arg.startswith("paper/") else ("embedded", arg)
    if size not in SIZES[scale]:
        raise ValueError(f'unknown run "{arg}"; valid: {", ".join(SIZES["embedded"])}, each after paper/ or not')
    return _run(scale, size, 0)


def _run(scale: str, size: str, seed: int) -> ConfigDict:
    return recipes.t5_arm(recipes.t5_c4(size) if scale == "paper" else recipes.t5_text_of(size), seed=seed)


def sweep(scale: str) -> list[ConfigDict]:
    """Every size, by seed."""
    return [_run(scale, size, seed) for seed in range(SEEDS[scale]) for size in SIZES[scale]]
