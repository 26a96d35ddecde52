"""Bricken et al. 2023, Figs. 22 and 23, Sec. 3, App. H.1: which activations noise makes sparse.

Claim: B13 (ReLU becomes the sparsest; GELU sparsifies from sigma .3 on and forms receptive fields; sigmoid sparsifies
less than both and forms none; ELU sparsifies, tanh does not). On sigmoid the paper says two things, both judged here:
Sec. 3 that "symmetric sigmoid and Tanh do not" produce sparsity, App. H.1 that "sigmoid sparsifies in proportion to
noise".
Command: python -m launch.reproduce --study=bricken2023/activations --workdir=runs/bricken2023
One run: python -m launch.train --config=configs/bricken2023/activations.py:gelu/0.8 --workdir=runs/one
(`paper/gelu/0.8` is the run at the paper's scale.)
Hardware: 2 CPU cores, 11 minutes (38 runs) beside the study `ablations`, with which it shares the 15 runs of
ReLU; at the paper's scale 75 runs of 147,000 steps on a GPU or TPU.
Expected: paper, CIFAR10 pixels, |h| > 1e-4, at sigma 0, .1, .3, .8, 3: ReLU 38.6, 26.8, 9.4, 3.6, .6%; GELU 62.5,
96.4, 87.3, 27, 1.2%.
assumed: a unit is active if |h| exceeds 1e-4, as in App. H.1, or 1e-2, beside it. By both, sigmoid (h = 0 only at
minus infinity), ELU (which ends at -1) and tanh (at -1 and 1) cannot be off where they are flat: the share of units
with |phi'| < .01 stands beside.
assumed: GELU is z Phi(z), exact.
assumed: (embedded) network and data of `noise`, 12,000 steps, the activation alone changed; every sigma with one seed,
those that the claims go by with three.
assumed: (paper) 10,000 units, 3,000 epochs of 49 steps.
"""

from ml_collections import ConfigDict

from sparsity import recipes

BASES = {"embedded": recipes.autoencoder_photos, "paper": recipes.autoencoder_cifar10}
ACTIVATIONS = ("relu", "gelu", "sigmoid", "elu", "tanh")
SIGMAS = (0.0, 0.1, 0.3, 0.8, 3.0)
JUDGED = {"relu": SIGMAS, "gelu": (0.0, 0.3, 0.8), "sigmoid": (0.0, 0.8), "elu": (0.0, 0.8), "tanh": (0.0, 0.8)}
ARMS = {scale: dict.fromkeys(ACTIVATIONS, SIGMAS) for scale in BASES}
FIELDS = (("gelu", 0.0), ("gelu", 0.8), ("sigmoid", 0.0), ("sigmoid", 0.8))  # ReLU's are evaluated everywhere
SEEDS = 3


def get_config(arg: str = "gelu/0.8") -> ConfigDict:
    """The first run of an activation at a sigma of the paper: "[paper/]ACTIVATION/SIGMA"."""
    return _run(*recipes.bricken_arm(arg, ARMS), 0)


def _run(scale: str, activation: str, sigma: float, seed: int) -> ConfigDict:
    if activation == "relu":
        return recipes.bricken_noise(BASES[scale](), sigma, seed)
    config = recipes.with_activation(recipes.with_noise(BASES[scale](), sigma, seed), activation)
    return recipes.also_evaluated(config, "receptive_fields") if (activation, sigma) in FIELDS else config


def sweep(scale: str) -> list[ConfigDict]:
    """Every activation at every sigma, by seed; embedded, seeds after the first only where a claim needs them."""
    return [
        _run(scale, activation, sigma, seed)
        for seed in range(SEEDS)
        for activation, sigmas in ARMS[scale].items()
        for sigma in sigmas
        if seed == 0 or scale == "paper" or sigma in JUDGED[activation]
    ]
