"""Li et al. 2022, Figs. 1, 2a (ViT), 2c, 2d: the activations of a trained ViT are sparse, layer by layer.

Claim: L1 (about half of the units nonzero at the start, fewer in every layer at the end; the same on held-out images;
first and last layers denser; at every size; on more and on fewer examples).
Command: python -m launch.reproduce --study=li2022/vit_prevalence --workdir=runs/li2022
One run: python -m launch.train --config=configs/li2022/vit_prevalence.py:base --workdir=runs/one
(`small`, `large`, and `few` for base on a tenth of the examples.)
Hardware: 2 CPU cores, 12 runs, 3 of them `table1`'s; 26 minutes for the other 9, two at a time, beside other work, the
large ones taking three times as long as the base.
Expected: paper: 6.3% nonzero on average over the layers of ViT-B/16 on ImageNet-21k, 5.67% on ImageNet-1k.
assumed: (embedded) digits in place of ImageNet, 2,000 steps, 203 epochs, 2,032 of `few` (the paper: 180 on
ImageNet-1k); ViTs of 2, 4 and 6 layers, widths 32, 64 and 96, dropout 0, the mean over tokens in place of a class
token.
assumed: training digits are moved by up to a pixel, test digits are not: their shares are compared all the same.
assumed: a tenth of the digits is to all of them what ImageNet-1k is to ImageNet-21k in images; the classes stay ten,
where the paper's are 21 times as many. As many steps of either.
assumed: the paper's own scale is not here yet: there is no ImageNet.
"""

from ml_collections import ConfigDict

from sparsity import recipes

FEW = 126
ARMS = ("small", "base", "large", "few")
SEEDS = 3


def get_config(arg: str = "base") -> ConfigDict:
    """The first run of an arm."""
    if arg not in ARMS:
        raise ValueError(f'unknown run "{arg}"; valid: {", ".join(ARMS)}')
    return _run(arg, 0)


def _run(arm: str, seed: int) -> ConfigDict:
    config = recipes.vit_digits_of("base" if arm == "few" else arm)
    if arm == "few":
        config = recipes.with_few_examples(config, FEW, seed)
    return recipes.vit_calibrated_arm(config, seed=seed)


def sweep(scale: str) -> list[ConfigDict]:
    """Every arm, by seed."""
    if scale != "embedded":
        raise ValueError(f'configs/li2022/vit_prevalence.py has no scale "{scale}"; valid: embedded')
    return [_run(arm, seed) for seed in range(SEEDS) for arm in ARMS]
