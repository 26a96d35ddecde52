"""Bricken et al. 2023, App. I.2, Figs. 27 to 30: Adam kills units, long after it has learnt.

Claim: B15: units die only after loss and sparsity have converged; fewer with larger batches or a smaller rate; more on
latents than on pixels; sooner with less data; small batches kill fastest by epochs and slowest by steps.
Command: python -m launch.reproduce --study=bricken2023/dead --workdir=runs/bricken2023
One run: python -m launch.train --config=configs/bricken2023/dead.py:latents --workdir=runs/one
(`paper/latents` is the run at the paper's scale.)
Hardware: 2 CPU cores, 7 minutes; at the paper's scale 21 runs of 392,000 steps on a GPU or TPU.
Expected: paper, latents: 0% dead at epoch 800, where loss and sparsity have converged, then 92%; fewer on pixels.
assumed: sigma 3 throughout, noise on in validation too (the authors' default): dead units are those that no noisy
example activates. By step they are counted on the validation split, at the end, as the paper does, on one epoch of
the training split.
assumed: (embedded) 200 units, Adam at 1e-3, batch 32 (39 steps an epoch; the paper has 49), 16,000 steps; latents of
the 1,260 digits, and as many patches of photographs; "few" is 420 of each.
assumed: (paper) 1,000 units, 8,000 epochs ("a much larger number" than 800); "few" is 5,000 images, the smallest D
that the text names (Fig. 29's others are illegible); batches 2 and 5,000 on these, as in Fig. 30, for as many steps;
the smaller rate is 3e-5. Latents are read from latents/cifar10.npz, which somebody has to make: see `Latents`.
"""

from ml_collections import ConfigDict

from sparsity import recipes

SIGMA = 3.0
SEEDS = 3
ARMS = {  # what each changes
    "embedded": {
        "latents": {},
        "latents_few": {"data.count": 420},
        "latents_slow": {"optimizer.learning_rate": 3e-4},
        "latents_small_batch": {"batch": 8},
        "latents_large_batch": {"batch": 128},
        "pixels": {},
        "pixels_few": {"data.count": 420},
    },
    "paper": {
        "latents": {},
        "latents_few": {"data.count": 5000},
        "latents_slow": {"optimizer.learning_rate": 3e-5},
        "latents_small_batch": {"data.count": 5000, "batch": 2, "mesh.data": 1},
        "latents_large_batch": {"data.count": 5000, "batch": 5000},
        "pixels": {},
        "pixels_few": {"data.held_out": 0.9},
    },
}


def get_config(arg: str = "latents") -> ConfigDict:
    """The first run of an arm; "paper/ARM" at the paper's scale."""
    scale, _, arm = arg.rpartition("/")
    scale = scale or "embedded"
    if scale not in ARMS or arm not in ARMS[scale]:
        raise ValueError(f'unknown run "{arg}"; valid: {", ".join(ARMS["embedded"])}, each after paper/ or not')
    return _run(scale, arm, 0)


def _run(scale: str, arm: str, seed: int) -> ConfigDict:
    data, _, change = arm.partition("_")
    config = recipes.with_noise(_base(scale, data), SIGMA, seed)
    config.name += f"_dead_{change or 'base'}"
    config.evals.noise = True
    with config.unlocked():
        config.update_from_flattened_dict(ARMS[scale][arm])
    return config


def _base(scale: str, data: str) -> ConfigDict:
    if scale == "paper":
        make = {"latents": recipes.autoencoder_cifar10_latents, "pixels": recipes.autoencoder_cifar10}[data]
        return make(1000, epochs=8000)
    config = recipes.autoencoder_latents() if data == "latents" else recipes.autoencoder_photos(200, steps=16_000)
    config.batch, config.every.eval = 32, config.steps // 40
    if data == "pixels":
        config.data.count = 1260
        config.optimizer.learning_rate, config.optimizer.schedule.warmup = 1e-3, 0
    return config


def sweep(scale: str) -> list[ConfigDict]:
    """Every arm, by seed."""
    return [_run(scale, arm, seed) for seed in range(SEEDS) for arm in ARMS[scale]]
