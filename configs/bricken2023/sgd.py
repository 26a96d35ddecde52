"""Bricken et al. 2023, App. H.2, Fig. 25: plain SGD by learning rate, batch and sigma, on latents and on pixels.

Claim: B14: a large batch or a small rate keeps about half of the units active and the biases where they started, on
latents; on pixels even the full batch sparsifies; without noise batch and rate have no effect; another rate for the
biases has none.
Command: python -m launch.reproduce --study=bricken2023/sgd --workdir=runs/bricken2023
One run: python -m launch.train --config=configs/bricken2023/sgd.py:0.1/256/8 --workdir=runs/one
(RATE/BATCH/SIGMA on latents; `pixels/1/1024/0.8` on pixels; `paper/...` at the paper's scale.)
Hardware: 2 CPU cores, 8 minutes; at the paper's scale 69 runs of 200,000 to 800,000 steps on a GPU or TPU.
Expected: paper, latents: about 50% active where the batch is large or the rate is small, less elsewhere.
assumed: (embedded) latents of digits, 200 units; rates .1, .3 and 1, batches 16, 64 and 256. At sigma 8 and the start
the largest stable rate, 2 over the curvature, is about .12. Rates times steps are 800 to 3,000 (the paper's are 800 to
200,000); by a linear estimate the signal is learnt at about 500. A small rate is judged only where its training loss is
within 10% of the lowest.
assumed: (embedded) pixels: 1,024 patches of 12x12, all of them in each batch, 3,000 steps at rate 1.
assumed: (paper) batches 32, 128, 512 and 5,000, all of the 5,000 latents drawn from latents/cifar10.npz; pixels: all
49,000 images in a batch, 1,000 units, rate .1, 200,000 steps, three seeds.
assumed: sigmas 0, .8 and 8: the paper has three, one of them 8. Gradients are clipped at norm 1, as in the authors'
code. The biases' own rate is five times that of the weights, one of the two ratios in the authors' code.
"""

from ml_collections import ConfigDict

from sparsity import recipes

SIGMAS = (0.0, 0.8, 8.0)
PIXELS_SIGMA = 0.8
STEPS = {  # by rate
    "embedded": {0.1: 8000, 0.3: 5000, 1.0: 3000},
    "paper": {0.001: 800_000, 0.01: 600_000, 0.1: 400_000, 1.0: 200_000},
}
BATCHES = {"embedded": (16, 64, 256), "paper": (32, 128, 512, 5000)}
PIXELS = {"embedded": (1.0, 1024, 3000), "paper": (0.1, 49_000, 200_000)}  # rate, batch, steps
COUNT = {("embedded", False): None, ("embedded", True): 1024, ("paper", False): 5000, ("paper", True): None}
BIAS_RATE = {"embedded": (0.3, 16), "paper": (0.1, 128)}  # rate and batch of the runs with other rates for the biases
BIAS_FACTOR = 5.0
SEEDS = 3


def get_config(arg: str = "0.1/256/8") -> ConfigDict:
    """The first run of "[paper/][pixels/]RATE/BATCH/SIGMA", one of the grid or not."""
    scale, rest = ("paper", arg.removeprefix("paper/")) if arg.startswith("paper/") else ("embedded", arg)
    pixels = rest.startswith("pixels/")
    try:
        rate, batch, sigma = (float(x) for x in rest.removeprefix("pixels/").split("/"))
    except ValueError as error:
        raise ValueError(f'unknown run "{arg}"; valid: [paper/][pixels/]RATE/BATCH/SIGMA, e.g. 0.1/256/8') from error
    return _run(scale, rate, int(batch), sigma, pixels=pixels)


def _run(
    scale: str, rate: float, batch: int, sigma: float, seed: int = 0, pixels: bool = False, bias: float = 1.0
) -> ConfigDict:
    steps = PIXELS[scale][2] if pixels else STEPS[scale].get(rate, max(STEPS[scale].values()))
    config = recipes.with_rule(recipes.with_noise(_base(scale, pixels), sigma, seed), "sgd", rate)
    config.name += f"_sgd{rate:g}_b{batch}"
    if bias != 1:
        config.name += f"_bias{bias:g}"
        config.optimizer.multipliers = (("bias", bias),)
    config.steps, config.batch = steps, batch
    saved = steps if scale == "embedded" else 10_000
    config.every = ConfigDict({"record": steps // 20, "eval": steps // 10, "checkpoint": saved, "speed": 100})
    return config


def _base(scale: str, pixels: bool) -> ConfigDict:
    if scale == "paper":
        config = recipes.autoencoder_cifar10(1000) if pixels else recipes.autoencoder_cifar10_latents()
    else:
        config = recipes.autoencoder_photos(200) if pixels else recipes.autoencoder_latents()
    if COUNT[scale, pixels]:
        config.data.count = COUNT[scale, pixels]
    return config


def sweep(scale: str) -> list[ConfigDict]:
    """The grid with the first seed; its smallest batch and the other rate of the biases with three; pixels."""
    rates, batches = tuple(STEPS[scale]), BATCHES[scale]
    runs = [_run(scale, rate, batch, sigma) for sigma in SIGMAS for rate in rates for batch in batches]
    rate, batch = BIAS_RATE[scale]
    repeated = {(rates[0], batches[0]), (rates[-1], batches[0]), (rate, batch)}
    for seed in range(SEEDS):
        for sigma in SIGMAS[1:]:
            runs += [_run(scale, *cell, sigma, seed) for cell in sorted(repeated) if seed]
            runs += [_run(scale, rate, batch, sigma, seed, bias=BIAS_FACTOR)]
        runs += [_run(scale, *PIXELS[scale][:2], PIXELS_SIGMA, seed, pixels=True)]
    return runs
