"""Bricken et al. 2023, Figs. 21 and 24, App. H.1: noise sparsifies, whatever the width, the noise and the task.

Claim: the rest of B1: 100, 1,000 and 100,000 units, Laplace noise, salt and pepper, classification, each judged
alone. (The paper's own numbers rise in places at 100 and at 100,000 units.)
Command: python -m launch.reproduce --study=bricken2023/ablations --workdir=runs/bricken2023
One run: python -m launch.train --config=configs/bricken2023/ablations.py:laplace/0.8 --workdir=runs/one
(`units100/SIGMA`, `units1000/SIGMA`, `laplace/SIGMA`, `poisson/SIGMA`, `classification/SIGMA`,
`salt_and_pepper/PROBABILITY`; `paper/laplace/0.8` is the run at the paper's scale.)
Hardware: 2 CPU cores, 19 minutes (79 runs, 18 of which other studies had done); at the paper's scale 163 runs of
147,000 steps on a GPU or TPU.
Expected: paper, latents, active without noise, at sigma .8 and at 3: 100 units 99.9, 56, 47%; 1,000 units 99, 29,
11%; 100,000 units 18, .6, 1%; Laplace 77, 6.9, 2.3%; classification 70, 19.5, 10.8%.
assumed: salt and pepper on each number alone, to 0 or 1; the paper omits the probabilities, .1, .3, .5, .7, .9.
assumed: Laplace noise of scale sigma, so of deviation sqrt(2) sigma, as in the authors' code; Poisson noise of
variance sigma^2 |x|, one seed, embedded at sigma 3 alone, for completeness: it is in their code and in no figure.
assumed: (embedded) but for 400 units under Gaussian noise, sigmas 0, .1, .8 and 3, every second one of the paper's, and
probabilities .1, .5 and .9: the claims' rises are from one of these to the next. Else as `noise`, in 12,000 steps,
half as many; 100 and 1,000 units are .7 and 6.9 a pixel, 400 are the paper's 10,000; none plays the 100,000.
Classification of the digits by one hidden layer of 400 units.
assumed: (paper) CIFAR10's pixels, 3,000 epochs; the paper's numbers are of 256 latents but for 10,000 units under
Gaussian noise, where it prints pixels too.
"""

from ml_collections import ConfigDict

from sparsity import recipes

BASES = {"embedded": recipes.autoencoder_photos, "paper": recipes.autoencoder_cifar10}
LABELLED = {"embedded": lambda: recipes.autoencoder_digits(units=400), "paper": recipes.autoencoder_cifar10}
UNITS = {"embedded": (100, 1000), "paper": (100, 1000, 100_000)}
PROBABILITIES = {"embedded": (0.1, 0.5, 0.9), "paper": (0.1, 0.3, 0.5, 0.7, 0.9)}
SIGMAS = {"embedded": (0.0, 0.1, 0.8, 3.0), "paper": recipes.BRICKEN_SIGMAS}
POISSON = {"embedded": (3.0,), "paper": SIGMAS["paper"][1:]}  # on a CPU it takes minutes to draw
# The sigmas of every arm, or its probabilities; without noise all noises are Gaussian noise of sigma 0.
ARMS = {
    scale: {
        "gaussian": recipes.BRICKEN_SIGMAS,
        **{f"units{units}": SIGMAS[scale] for units in UNITS[scale]},
        "laplace": SIGMAS[scale][1:],
        "salt_and_pepper": PROBABILITIES[scale],
        "poisson": POISSON[scale],
        "classification": SIGMAS[scale],
    }
    for scale in BASES
}
SEEDS = 3


def get_config(arg: str = "laplace/0.8") -> ConfigDict:
    """The first run of an arm at a sigma of the paper: "[paper/]ARM/SIGMA"."""
    return _run(*recipes.bricken_arm(arg, ARMS), 0)


def _run(scale: str, arm: str, value: float, seed: int) -> ConfigDict:
    base = BASES[scale]
    if arm == "gaussian":
        return recipes.bricken_noise(base(), value, seed)
    if arm.startswith("units"):
        return recipes.with_noise(base(int(arm.removeprefix("units"))), value, seed)
    if arm == "classification":
        return recipes.with_noise(recipes.as_classifier(LABELLED[scale]()), value, seed)
    if arm == "salt_and_pepper":
        return recipes.with_salt_and_pepper(base(), value, seed)
    return recipes.with_noise(base(), value, seed, arm)


def sweep(scale: str) -> list[ConfigDict]:
    """Every arm at every sigma, by seed; Poisson noise with one seed."""
    return [
        _run(scale, arm, value, seed)
        for seed in range(SEEDS)
        for arm, values in ARMS[scale].items()
        for value in values
        if seed == 0 or arm != "poisson"
    ]
