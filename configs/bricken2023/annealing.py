"""Bricken et al. 2023, Figs. 8 and 31: noise that is annealed away after half of training leaves the network sparse.

Claim: B6 (sparsity stays, at no cost in loss; little noise, then none, classifies better; annealing kills units only
from sigma .8 on in reconstruction, from 3 on in classification).
Command: python -m launch.reproduce --study=bricken2023/annealing --workdir=runs/bricken2023
One run: python -m launch.train --config=configs/bricken2023/annealing.py:digits/0.3 --workdir=runs/one
(`photos/SIGMA` reconstructs, `digits/SIGMA` classifies; `paper/reconstruction/SIGMA`, `paper/classification/SIGMA`.)
Hardware: 2 CPU cores, 57 runs, 17 minutes with some other work beside; at the paper's scale 48 runs of 78,400 or
147,000 steps on a GPU or TPU.
Expected: paper, latents: classification 94.3% at sigma .1 and .3 against 93.4% without noise, with 55% and 45% of the
units active against 66%; no loss in reconstruction.
assumed: (embedded) reconstruction as in `noise`, in 12,000 steps; the same layer of 400 units classifies digits, batch
64; 8 seeds up to sigma .3, because .9 points are 3 of the 358 test digits, 3 seeds beyond.
assumed: validation is under the noise of the step, as in the authors' code, so that units which noise alone turns on
are not dead; (embedded) noise falls from a half to seven eighths of training, and the last validations are without.
assumed: (paper) CIFAR10's pixels, where the paper has 256 latents of a ConvMixer, so that a classifier of one hidden
layer ends far below 94%; 1,600 epochs of reconstruction, 3,000 of classification, noise falls from 800 to 1,600.
"""

from ml_collections import ConfigDict

from sparsity import recipes

EPOCH = 49  # steps of 1,024 images, at the paper's scale
SIGMAS = {"embedded": (0.0, 0.1, 0.3, 0.8, 1.5, 3.0, 10.0), "paper": recipes.BRICKEN_SIGMAS}
SEEDS = 3
SEEDS_SMALL = 8  # of the embedded classifier up to sigma .3


def _digits() -> ConfigDict:
    config = recipes.as_classifier(recipes.autoencoder_digits(units=400))
    config.batch = 64  # of 1,260 images
    return recipes.with_corruptions(config)  # for the study `robustness`, which shares these runs


BASES = {
    "photos": recipes.autoencoder_photos,
    "digits": _digits,
    "paper/reconstruction": lambda: recipes.autoencoder_cifar10(epochs=1600),
    "paper/classification": lambda: recipes.with_corruptions(
        recipes.as_classifier(recipes.autoencoder_cifar10(epochs=3000))
    ),
}


def get_config(arg: str = "photos/0.8") -> ConfigDict:
    """The first run of a task at a sigma of the paper: "photos/0.8", "digits/0.3", "paper/classification/0.3"."""
    task, _, sigma = arg.rpartition("/")
    if task not in BASES:
        raise ValueError(f'unknown task of "{arg}"; valid: {", ".join(f"{name}/SIGMA" for name in BASES)}')
    return _run(task, recipes.bricken_sigma(sigma), 0)


def _run(task: str, sigma: float, seed: int) -> ConfigDict:
    base = BASES[task]()
    if sigma == 0:  # nothing falls
        return recipes.bricken_noise(base, sigma, seed) if task == "photos" else recipes.with_noise(base, sigma, seed)
    config = recipes.with_noise(base, sigma, seed)
    config.evals.noise = True
    if task.startswith("paper/"):
        return recipes.annealed(config, start=800 * EPOCH, length=800 * EPOCH)
    config.every.eval = config.steps // 16  # one validation where noise begins to fall, two after it is gone
    return recipes.annealed(config, start=config.steps // 2, length=config.steps * 3 // 8)


def sweep(scale: str) -> list[ConfigDict]:
    """Both tasks at every sigma, by seed."""
    tasks = {"embedded": ("photos", "digits"), "paper": ("paper/reconstruction", "paper/classification")}
    return [
        _run(task, sigma, seed)
        for seed in range(SEEDS_SMALL)
        for task in tasks[scale]
        for sigma in SIGMAS[scale]
        if seed < SEEDS or (task == "digits" and sigma <= 0.3)
    ]
