"""Li et al. 2022, Fig. 6 right: a Top-k ViT is as accurate as a dense one, from k = 256 of 3,072 on.

Claim: L6 (ViT's part: accuracy on training and on held-out images within a point of the dense network's at k = 256 of
3,072, and at larger k).
Command: python -m launch.reproduce --study=li2022/vit_top_k --workdir=runs/li2022
One run: python -m launch.train --config=configs/li2022/vit_top_k.py:43 --workdir=runs/one
(K, or `dense`.)
Hardware: 2 CPU cores, 35 runs, 20 of them `table1`'s; about 13 minutes for the other 15, two at a time, by the
steps timed, not measured yet.
Expected: paper: at k = 256 about .3% below the dense ViT on ImageNet-21k; no numbers but the figure's at other k.
assumed: (embedded) digits in place of ImageNet-21k, `table1`'s ViT of 512 units a layer; k of 5, 11, 21, 43, 85 and
171, as many as 32, 64, 128, 256, 512 and 1,024 of 3,072: the figure's own are not known.
assumed: the paper's own scale is not here yet: there is no ImageNet.
"""

from ml_collections import ConfigDict

from sparsity import recipes

KS = (5, 11, 21, 43, 85, 171)
SEEDS = 5


def get_config(arg: str = "43") -> ConfigDict:
    """The first run with k = `arg`, or of the "dense" network."""
    if not (arg.isdigit() or arg == "dense"):
        raise ValueError(f'unknown run "{arg}"; valid: K, dense')
    return _run(None if arg == "dense" else int(arg), 0)


def _run(k: int | None, seed: int) -> ConfigDict:
    return recipes.vit_calibrated_arm(recipes.vit_digits(), k, seed=seed)


def sweep(scale: str) -> list[ConfigDict]:
    """Dense and at every k, by seed."""
    if scale != "embedded":
        raise ValueError(f'configs/li2022/vit_top_k.py has no scale "{scale}"; valid: embedded')
    return [_run(k, seed) for seed in range(SEEDS) for k in (None, *KS)]
