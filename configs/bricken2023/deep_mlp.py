"""Bricken et al. 2023, App. J.2, Table 2, Figs. 26, 27 and 33: noise at the input of a 3-layer classifier.

Claim: B16 (Adam has most dead units, SGD and SparseAdam fewer; layers 2 and 3 sparsify, layer 1 does not; after
annealing every sigma is at or above the baseline) and B17 (noise in front of layer 2 or 3 alone: the weights before
it grow).
Command: python -m launch.reproduce --study=bricken2023/deep_mlp --workdir=runs/bricken2023
One run: python -m launch.train --config=configs/bricken2023/deep_mlp.py:adam/1.5 --workdir=runs/one
(OPTIMIZER/SIGMA, or `before2/1.5` and `before3/1.5` for noise in front of layer 2 or 3; `paper/...` at the paper's
scale.)
Hardware: 2 CPU cores, 25 minutes beside other work; at the paper's scale 69 runs of 98,000 steps on a GPU or TPU.
Expected: paper: validation accuracy 91.5% (Adam), 92.0% (SGD) and 91.5% (SparseAdam) without noise, 92.3 to 92.7% at
sigma .1 and .5, 91.5 to 92.3% at 10.
assumed: noise of full size for the first quarter of training, annealed in the second, as in the paper; noise in front
of layer 2 or 3 is never annealed, at sigma 1.5, by Adam. Noise at its size of the step is on in validation.
assumed: SGD at rate .1 (the paper prints none), without momentum; gradients clipped at norm 1.
assumed: (embedded) latents of the 1,260 digits, batch 64, Adam and SparseAdam at 1e-3, 4,000 steps.
assumed: (paper) batch 1024, Adam and SparseAdam at 1e-4, as in the authors' other runs; three seeds.
"""

from ml_collections import ConfigDict

from sparsity import recipes

BASES = {"embedded": recipes.mlp_latents, "paper": recipes.mlp_cifar10_latents}
SIGMAS = (0.0, 0.1, 0.5, 1.5, 3.0, 5.0, 10.0)
BEFORE = {"before2": 1, "before3": 2}  # the layer, counted from 0, that noise stands in front of
BEFORE_SIGMA = 1.5
RULES = {"adam": "adamw", "sgd": "sgd", "sparse_adam": "sparse_adam"}
SGD_RATE = 0.1
SEEDS = 3


def get_config(arg: str = "adam/1.5") -> ConfigDict:
    """The first run of "[paper/]OPTIMIZER/SIGMA", or of noise in front of a later layer, "[paper/]before2/SIGMA"."""
    scale, rest = ("paper", arg.removeprefix("paper/")) if arg.startswith("paper/") else ("embedded", arg)
    arm, _, sigma = rest.partition("/")
    if arm not in (*RULES, *BEFORE) or not sigma:
        valid = ", ".join(f"{name}/SIGMA" for name in (*RULES, *BEFORE))
        raise ValueError(f'unknown run "{arg}"; valid: {valid}, each after paper/ or not')
    return _run(scale, arm, float(sigma), 0)


def _run(scale: str, arm: str, sigma: float, seed: int) -> ConfigDict:
    config = recipes.with_noise(BASES[scale](), sigma, seed)
    config.name += f"_{arm}"
    if arm in BEFORE:
        config.model.noise, config.model.noisy_layers = config.noise, (BEFORE[arm],)
        config.noise = None
        return config
    quarter = config.steps // 4
    config.noise.schedule = ConfigDict({"name": "linear_to_zero", "start": quarter, "length": quarter})
    config.evals.noise = True
    return recipes.with_rule(config, RULES[arm], SGD_RATE if arm == "sgd" else config.optimizer.learning_rate)


def sweep(scale: str) -> list[ConfigDict]:
    """Every optimizer at every sigma, and noise in front of layers 2 and 3, by seed."""
    runs = [(arm, sigma) for sigma in SIGMAS for arm in RULES] + [(arm, BEFORE_SIGMA) for arm in BEFORE]
    return [_run(scale, arm, sigma, seed) for seed in range(SEEDS) for arm, sigma in runs]
