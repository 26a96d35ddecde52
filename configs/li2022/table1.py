"""Li et al. 2022, Table 1, Figs. 8 to 10: Top-k ViTs are less harmed by label noise and corruption, better calibrated.

Claim: L8 (under 40 and 80% label noise Top-k is more accurate, as accurate without; at 80% the dense network's accuracy
peaks and falls), L9 (under Gaussian, impulse and shot noise, most at high severity), L10 (calibration; it becomes worse
late in training, and less so with a smaller k).
Command: python -m launch.reproduce --study=li2022/table1 --workdir=runs/li2022
One run: python -m launch.train --config=configs/li2022/table1.py:21/0.8 --workdir=runs/one
(K/SHARE; `dense/0` without either; `paper/128/0.8` is the run at the paper's scale. ImageNet is read as TFDS prepares
it, or from class folders: --config.data.path=DIR, under label noise --config.data.of.path=DIR. ImageNet-C as it is
published is read with --config.evals.imagenet_c=DIR.)
Hardware: 2 CPU cores, 40 runs, none of them another study's; 69 minutes for all, two at a time, beside other work. At
the paper's scale 24 runs of ViT-B/16, 55,000 steps of 4096 images each, about 2e19 FLOPs of training, on TPUs or GPUs;
nobody has run it here.
Expected: paper: Top-128 ViT of 3,072 units 74.83 against 74.85% without noise, 62.13 against 59.44 and 30.80 against
25.35% under label noise, 2.1 to 2.8 points more under corruption, ECE 7.48 against 8.42%.
assumed: (embedded) digits in place of ImageNet-1k, the quickstart's ViT of 512 units a layer; k of 11, 21 and 43, the
paper's 64, 128 and 256 of 3,072; corruptions of ImageNet-C's strength. Nobody can tell how much label noise digits need
to be overfitted as ImageNet is.
assumed: (paper) three seeds; the recipe is `recipes.vit_imagenet`; one hundredth of the training images validates, the
50,000 that ImageNet calls validation test. The study makes ImageNet-C's noise itself, without its JPEG files.
assumed: the paper prints no number of bins for ECE; 15 of equal width.
"""

from ml_collections import ConfigDict

from sparsity import recipes

BASES = {"embedded": recipes.vit_digits, "paper": recipes.vit_imagenet}
KS = {"embedded": (11, 21, 43), "paper": (64, 128, 256)}
NOISES = (0.0, 0.4, 0.8)
SEEDS = {"embedded": 5, "paper": 3}


def get_config(arg: str = "21/0.8") -> ConfigDict:
    """The first run of "[SCALE/]K/SHARE" or "[SCALE/]dense/SHARE"."""
    k, _, share = arg.removeprefix("paper/").partition("/")
    if not (k.isdigit() or k == "dense") or not share.replace(".", "", 1).isdigit():
        raise ValueError(f'unknown run "{arg}"; valid: K/SHARE, dense/SHARE, paper/K/SHARE, paper/dense/SHARE')
    scale = "paper" if arg.startswith("paper/") else "embedded"
    return _run(scale, None if k == "dense" else int(k), float(share), 0)


def _run(scale: str, k: int | None, noise: float, seed: int) -> ConfigDict:
    return recipes.vit_calibrated_arm(BASES[scale](), k, noise, seed)


def sweep(scale: str) -> list[ConfigDict]:
    """Without label noise dense and at every k; with it dense and at the paper's k; by seed."""
    ks = KS[scale]
    noisy = [(k, noise) for noise in NOISES[1:] for k in (None, ks[1])]
    arms = [(k, NOISES[0]) for k in (None, *ks)] + noisy
    return [_run(scale, k, noise, seed) for seed in range(SEEDS[scale]) for k, noise in arms]
