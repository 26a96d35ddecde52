"""Beyond Bricken et al. 2023: whether classifiers that trained under noise are more robust and better calibrated.

Claim: none of the paper's. Li et al. 2022 (Table 1, Figs. 9 and 10) find it of Top-k: 2.1 to 2.8 points more accuracy
under Gaussian, shot and impulse noise, most at high severity, and a calibration error of 7.5% instead of 8.4%. Here
the same is asked of networks that noise made sparse, with the noise still on at the end of training and annealed away.
Command: python -m launch.reproduce --study=bricken2023/robustness --workdir=runs/bricken2023
One run: python -m launch.train --config=configs/bricken2023/robustness.py:constant/0.3 --workdir=runs/one
(`annealed/SIGMA`, `constant/SIGMA`, `top_k/SHARE`, `plain/0`; `paper/constant/0.3` is the run at the paper's scale.)
Hardware: 2 CPU cores, 6 minutes for all 51 runs, of which the study `annealing` has the 24 plain and
annealed runs up to sigma .3 and the 9 annealed ones beyond; at the paper's scale 36 runs of 147,000 steps on a GPU or
TPU, 18 of them shared.
Expected: no number: neither paper tried it. Training under noise is known to help against noise of the same kind;
whether the sparsity that outlasts it helps is open.
assumed: all evaluations are without training's noise, under the three corruptions at five severities, as Li et al.'s.
assumed: claims are judged at sigma .3 and .8, where networks become sparse and classify well; the table has the others.
assumed: Top-k of 10% and 3% of the units, reached over the first quarter of training, as in `pareto`.
assumed: (embedded) the digits' classifiers of `annealing`: one layer of 400 units, batch 64, 4,000
steps; three seeds (eight, shared, where `annealing` has them). ImageNet-C's constants: CIFAR-C's are too mild here.
assumed: (paper) CIFAR10's pixels, 10,000 units, 3,000 epochs as in `annealing`, CIFAR-C's constants; three seeds.
"""

from ml_collections import ConfigDict

from sparsity import recipes

EPOCH = 49  # steps of 1,024 images, at the paper's scale
NOISY = (0.1, 0.3, 0.8, 1.5)
ARMS = {
    scale: {"plain": (0.0,), "annealed": (*NOISY, 3.0), "constant": NOISY, "top_k": (0.1, 0.03)}
    for scale in ("embedded", "paper")
}
SEEDS = 3
SEEDS_SHARED = 8  # of the embedded runs of `annealing` up to sigma .3


def get_config(arg: str = "constant/0.3") -> ConfigDict:
    """The first run of an arm at a sigma, or at a share of units that are kept: "[paper/]ARM/VALUE"."""
    return _run(*recipes.bricken_arm(arg, ARMS), 0)


def _base(scale: str, share: float | None) -> ConfigDict:
    of = recipes.autoencoder_cifar10() if scale == "paper" else recipes.autoencoder_digits(units=400)
    config = recipes.as_classifier(of) if share is None else recipes.as_top_k_classifier(of, share)
    if scale == "embedded":
        config.batch = 64  # of 1,260 images, as in `annealing`
    return recipes.with_corruptions(config)


def _run(scale: str, arm: str, value: float, seed: int) -> ConfigDict:
    if arm == "top_k":
        return recipes.with_noise(_base(scale, value), 0.0, seed)
    config = recipes.with_noise(_base(scale, None), value, seed)
    if arm != "annealed":
        return config
    config.evals.noise = True  # as in `annealing`; there is none left
    if scale == "paper":
        return recipes.annealed(config, start=800 * EPOCH, length=800 * EPOCH)
    config.every.eval = config.steps // 16
    return recipes.annealed(config, start=config.steps // 2, length=config.steps * 3 // 8)


def sweep(scale: str) -> list[ConfigDict]:
    """Every arm at its values, by seed."""
    return [
        _run(scale, arm, value, seed)
        for seed in range(SEEDS_SHARED if scale == "embedded" else SEEDS)
        for arm, values in ARMS[scale].items()
        for value in values
        if seed < SEEDS or (arm in ("plain", "annealed") and value <= 0.3)
    ]
