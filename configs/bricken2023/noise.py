"""Bricken et al. 2023, Figs. 2, 3, 5 to 7, 10, 11 and 19: a denoising autoencoder becomes sparse with the noise.

Claim: B1 (the active fraction falls with sigma; at 10 it is delayed), B2 (negative biases, biases and encoder norms
synchronise, the number of active units varies less, none dies), B3 (pre-activations), B5 (receptive fields) and B11
(noise covariance of units).
Command: python -m launch.reproduce --study=bricken2023/noise --workdir=runs/bricken2023
One run: python -m launch.train --config=configs/bricken2023/noise.py:0.8 --workdir=runs/one
(`digits/0.8` is the run on digits, `latents/0.8` that on latents, `paper/0.8` the run at the paper's scale.)
Hardware: 2 CPU cores, 44 minutes, with some other work beside; at the paper's scale 24 runs of 147,000 steps on a GPU
or TPU.
Expected: paper, CIFAR10 pixels: 38% active without noise, 4% at sigma .8, .6% at 3, 3% at 10.
assumed: (embedded) grey 12x12 patches of two photographs, 400 units (2.8 a pixel; the paper has 3.3), and digits of
8x8 pixels, 200 units; sigma in the paper's ratio to the data's deviation; latents of digits, 256 numbers of the
paper's size, 400 units (the paper: latents of CIFAR10, 10,000 units); batch 64, Adam at 3e-3 after a warm-up of 500,
24,000 steps on photos, 12,000 on digits, 8,000 on latents. Chosen on photos, seed 0: after 4,000 steps at 3e-3 every
network with sigma .3 or more was still becoming sparser, sigma 3 the slowest (16% active at step 4,000, 2% at 12,000,
.5% at 24,000, in batches of 256); at 3e-3 without a warm-up 59% of the units without noise died in the first steps.
assumed: (paper) pixels in [0, 1] as they are, 49,000 training images (1,000 are held out), 3,000 epochs of 49 steps.
assumed: biases start from U(+-1/sqrt(fan_in)), as in the authors' code; the paper's text says 0.
"""

from ml_collections import ConfigDict

from sparsity import recipes

BASES = {
    "photos": lambda: recipes.autoencoder_photos(steps=24_000),
    "digits": lambda: recipes.autoencoder_digits(steps=12_000),
    "latents": lambda: recipes.hastened(recipes.autoencoder_latents(units=400, steps=8000)),
    "paper": recipes.autoencoder_cifar10,
}
DATA = {"embedded": ("photos", "digits", "latents"), "paper": ("paper",)}
SEEDS = 3


def get_config(arg: str = "0.8") -> ConfigDict:
    """The first run at a sigma of the paper: "[photos/|digits/|latents/|paper/]SIGMA"."""
    data, _, sigma = arg.rpartition("/")
    data = data or "photos"
    if data not in BASES:
        raise ValueError(f'unknown data "{data}" of "{arg}"; valid: {", ".join(BASES)}')
    return recipes.bricken_noise(BASES[data](), recipes.bricken_sigma(sigma))


def sweep(scale: str) -> list[ConfigDict]:
    """Every data set at every sigma, by seed."""
    return [
        recipes.bricken_noise(BASES[data](), sigma, seed)
        for seed in range(SEEDS)
        for data in DATA[scale]
        for sigma in recipes.BRICKEN_SIGMAS
    ]
