"""Bricken et al. 2023, Fig. 20: noise drives pre-activations to where the activation is flat, whichever it is.

Claim: B12 (the share of pre-activations with |phi'| < .01 rises with sigma for ReLU, GELU, reflected ReLU and sat).
Command: python -m launch.reproduce --study=bricken2023/flat_regions --workdir=runs/bricken2023
One run: python -m launch.train --config=configs/bricken2023/flat_regions.py:sat/0.8 --workdir=runs/one
(`paper/sat/0.8` is the run at the paper's scale.)
Hardware: 2 CPU cores, 48 runs, 12 of them (ReLU) of the study `ablations`, 12 minutes; at the paper's
scale 48 runs of 147,000 steps on a GPU or TPU.
Expected: paper: histograms of pre-activations, which move into the flat regions as sigma grows; no number.
assumed: sigma in {0, .3, .8, 3}, 3 seeds; "near-zero gradient" is |phi'| < .01.
assumed: (embedded) network and data of `noise`, 12,000 steps, the activation alone changed.
assumed: (paper) CIFAR10's pixels, 10,000 units, 3,000 epochs: Fig. 20 names neither data nor network.
"""

from ml_collections import ConfigDict

from sparsity import recipes

ACTIVATIONS = ("relu", "gelu", "reflected_relu", "sat")
SIGMAS = (0.0, 0.3, 0.8, 3.0)
SEEDS = 3
BASES = {"embedded": recipes.autoencoder_photos, "paper": recipes.autoencoder_cifar10}


def get_config(arg: str = "sat/0.8") -> ConfigDict:
    """The first run of an activation at a sigma of the paper: "sat/0.8"; "paper/sat/0.8" at the paper's scale."""
    where, _, sigma = arg.rpartition("/")
    scale, _, activation = where.rpartition("/")
    scale = scale or "embedded"
    if scale not in BASES or activation not in ACTIVATIONS:
        raise ValueError(f'unknown run "{arg}"; valid: [paper/]ACTIVATION/SIGMA, {", ".join(ACTIVATIONS)}')
    return _run(scale, activation, recipes.bricken_sigma(sigma), 0)


def _run(scale: str, activation: str, sigma: float, seed: int) -> ConfigDict:
    base = BASES[scale]()
    if activation == "relu":
        return recipes.bricken_noise(base, sigma, seed)
    return recipes.with_activation(recipes.with_noise(base, sigma, seed), activation)


def sweep(scale: str) -> list[ConfigDict]:
    """Every activation at every sigma, by seed."""
    return [
        _run(scale, activation, sigma, seed) for seed in range(SEEDS) for activation in ACTIVATIONS for sigma in SIGMAS
    ]
