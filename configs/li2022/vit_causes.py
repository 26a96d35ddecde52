"""Li et al. 2022, Fig. 5: a ViT becomes sparse on random labels, on random images and on infinite random data.

Claim: L4 (random labels: fewer nonzeros up to 70%; at 100% shallow layers sparser, deep ones denser; all below 10%), L5
(random images: the first third of layers sparser, the last few denser, all below 10%; infinite data: the first third
sparser, the middle third at 10 to 20%; all far below the 50% of the start).
Command: python -m launch.reproduce --study=li2022/vit_causes --workdir=runs/li2022
One run: python -m launch.train --config=configs/li2022/vit_causes.py:labels/0.7 --workdir=runs/one
(`plain`, `labels/SHARE`, `images`, `infinite`.)
Hardware: 2 CPU cores, 18 runs, 3 of them `table1`'s; about 13 minutes for the other 15, two at a time, by the steps
timed, not measured yet.
Expected: paper: below 10% nonzero in every layer but the middle ones on infinite data, 10 to 20%; read off a figure.
assumed: (embedded) digits in place of ImageNet-21k, `table1`'s ViT, 2,000 steps; a layer of its 4 stands for 3 of the
paper's 12, those around its own depth.
assumed: the paper's sentence on 100% of random labels compares with 70%; nonzeros are counted on training data, as in
its Fig. 2a.
assumed: random pixels are uniform with mean 0, as the paper's, and deviation 1 (the paper's [-1, 1]: .58), and images
are not moved by a pixel as those of the digits are.
assumed: the paper's own scale is not here yet: there is no ImageNet.
"""

from ml_collections import ConfigDict

from sparsity import recipes

SHARES = (0.5, 0.7, 1.0)
ARMS = ("plain", *(f"labels/{share:g}" for share in SHARES), "images", "infinite")
SEEDS = 3


def get_config(arg: str = "labels/1") -> ConfigDict:
    """The first run of an arm."""
    if arg not in ARMS:
        raise ValueError(f'unknown run "{arg}"; valid: {", ".join(ARMS)}')
    return _run(arg, 0)


def _run(arm: str, seed: int) -> ConfigDict:
    config, (kind, _, share) = recipes.vit_digits(), arm.partition("/")
    if kind == "images":
        config = recipes.with_random_images(config, seed)
    elif kind == "infinite":
        config = recipes.with_infinite_data(config, seed)
    return recipes.vit_calibrated_arm(config, noise=float(share or 0), seed=seed)


def sweep(scale: str) -> list[ConfigDict]:
    """Every arm, by seed."""
    if scale != "embedded":
        raise ValueError(f'configs/li2022/vit_causes.py has no scale "{scale}"; valid: embedded')
    return [_run(arm, seed) for seed in range(SEEDS) for arm in ARMS]
