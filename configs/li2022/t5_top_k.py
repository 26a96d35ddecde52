"""Li et al. 2022, Fig. 6 left: a Top-k T5 predicts as well as a dense one, from a small k on.

Claim: L6 (T5's part: accuracy on training and on held-out text within a point of the dense network's from k = 64 on;
of networks narrower than T5-Base from d_ff / 48 on).
Command: python -m launch.reproduce --study=li2022/t5_top_k --workdir=runs/li2022
One run: python -m launch.train --config=configs/li2022/t5_top_k.py:base/16 --workdir=runs/one
(`base/dense` without Top-k, `paper/large/64` at the paper's scale, `paper/11b/128` for a run that is not in the study.)
Hardware: 2 CPU cores, 15 runs, 3 of them `t5_prevalence`'s; 25 minutes for the others, beside other work. At the
paper's scale 21 runs of 100,000 steps on a TPU slice.
Expected: paper: from k = 64 on T5's accuracy is that of the dense network; T5-3B loses .3% at 128.
assumed: accuracy is that of the next target token, padding left out; the paper's values are read off a figure.
assumed: (embedded) the base of `t5_prevalence`, k of 8, 16, 32 and 128 of 512; 16 is the first above 512 / 48.
assumed: (paper) k of 16 to 512 in powers of 2. With one seed this scale draws figures and gives no verdicts.
"""

from ml_collections import ConfigDict

from sparsity import recipes

SIZES = {"embedded": ("base",), "paper": ("base", "large", "3b")}
KS = {"embedded": (8, 16, 32, 128), "paper": (16, 32, 64, 128, 256, 512)}
OTHERS = {"embedded": (), "paper": ("small", "11b")}  # no run of the study, only one by itself
SEEDS = {"embedded": 3, "paper": 1}


def get_config(arg: str = "base/16") -> ConfigDict:
    """The first run of "[paper/]SIZE/K", or of "[paper/]SIZE/dense"."""
    scale, rest = ("paper", arg.removeprefix("paper/")) if arg.startswith("paper/") else ("embedded", arg)
    size, _, k = rest.partition("/")
    if size not in (*SIZES[scale], *OTHERS[scale]) or not (k.isdigit() or k == "dense"):
        raise ValueError(f'unknown run "{arg}"; valid: SIZE/K, SIZE/dense, each after paper/ or not')
    return _run(scale, size, None if k == "dense" else int(k), 0)


def _run(scale: str, size: str, k: int | None, seed: int) -> ConfigDict:
    return recipes.t5_arm(recipes.t5_c4(size) if scale == "paper" else recipes.t5_text_of(size), k=k, seed=seed)


def sweep(scale: str) -> list[ConfigDict]:
    """Every size, dense and at every k, by seed."""
    return [
        _run(scale, size, k, seed) for seed in range(SEEDS[scale]) for size in SIZES[scale] for k in (None, *KS[scale])
    ]
