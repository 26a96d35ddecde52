"""Bricken et al. 2023, Fig. 12: the longer an autoencoder trains under noise, the more its fields look like V1's.

Claim: B5 (longer training raises the share of Gabor-like fields).
Command: python -m launch.reproduce --study=bricken2023/training_time --workdir=runs/bricken2023
One run: python -m launch.train --config=configs/bricken2023/training_time.py:24000 --workdir=runs/one
(`paper/441000` is a run at the paper's scale: 9,000 epochs.)
Hardware: 2 CPU cores, 9 runs, 3 of them (12,000 steps) of the study `ablations`, 4 minutes; at the paper's scale
9 runs of up to 931,000 steps on a GPU or TPU.
Expected: paper: pictures of the fields at sigma .3, "more biologically similar" with time; no score.
assumed: (embedded) the network of `noise` at sigma .3 for 4,000, 12,000 and 24,000 steps, in the paper's ratio of 1 to
3 to 6.3; each length is a run of its own at the same constant rate.
assumed: (paper) 3,000, 9,000 and 19,000 epochs, as Fig. 12 prints; the authors' code has 3,000, 6,000 and 12,000.
"""

from ml_collections import ConfigDict

from sparsity import recipes

SIGMA = 0.3
SEEDS = 3
BASES = {"embedded": recipes.autoencoder_photos, "paper": recipes.autoencoder_cifar10}
STEPS = {"embedded": (4000, 12_000, 24_000), "paper": tuple(49 * epochs for epochs in (3000, 9000, 19_000))}


def get_config(arg: str = "12000") -> ConfigDict:
    """The first run of a number of steps: "12000"; "paper/441000" at the paper's scale."""
    scale, _, steps = arg.rpartition("/")
    scale = scale or "embedded"
    if scale not in BASES or steps not in map(str, STEPS[scale]):
        valid = ", ".join([*map(str, STEPS["embedded"]), *(f"paper/{n}" for n in STEPS["paper"])])
        raise ValueError(f'unknown length "{arg}"; valid: {valid}')
    return _run(scale, int(steps), 0)


def _run(scale: str, steps: int, seed: int) -> ConfigDict:
    return recipes.with_steps(recipes.bricken_noise(BASES[scale](), SIGMA, seed), steps)


def sweep(scale: str) -> list[ConfigDict]:
    """Every length, by seed."""
    return [_run(scale, steps, seed) for seed in range(SEEDS) for steps in STEPS[scale]]
