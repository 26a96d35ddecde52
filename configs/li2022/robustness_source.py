"""Beyond Li et al. 2022: whether sparsity makes Top-k ViTs robust, or goes with what does.

Claim: none of the paper's, which leaves it open: Top-k networks are sparser, and they are more robust and better
calibrated. Here the sparsity is held fixed, Top-k of 43 of 512 units at test, and what made the weights is varied:
training with Top-k, plain training, L1, noise; and Top-k is taken off the network that trained with it. A network of 43
units a layer keeps as few without choosing any: fewer yet of them are nonzero, and its MLPs have a twelfth of the
parameters.
Command: python -m launch.reproduce --study=li2022/robustness_source --workdir=runs/li2022
One run: python -m launch.train --config=configs/li2022/robustness_source.py:top_k --workdir=runs/one
(`dense`, `top_k`, `l1`, `noise`, `narrow`.)
Hardware: 2 CPU cores, 25 runs, none of them another study's, as their evaluation differs; about 25 minutes for all, two
at a time (--shard), by the steps timed, not measured yet.
Expected: no number: the paper did not try it. Top-k's gain over the dense network is its Table 1: 2.1 to 2.8 points
under corruption (ImageNet-C), .9 points less calibration error.
assumed: embedded scale alone: `table1`'s ViT on digits, five seeds; corruptions of ImageNet-C's strength.
assumed: 43 of 512 is the paper's 256 of 3,072, from which on its ViTs are as accurate as dense ones.
assumed: L1's weight is meant to leave about as many nonzeros as Top-k of 43, a guess from `penalties`' runs of 400
steps. Top-k at test only holds what is denser: where a network is sparser by a tenth in a layer, its claims are not
testable. Nor are those of networks whose clean accuracies are more than a point apart, or of no gain beyond chance.
assumed: noise is of deviation 1 on what each MLP reads, gone after three quarters of training, as in `front`.
"""

from ml_collections import ConfigDict

from sparsity import recipes

K, UNITS = 43, 512  # kept at test, and all of them: Top-k taken off
L1, SIGMA = 1.5e-4, 1.0
ARMS = {
    "dense": lambda config: config,
    "top_k": lambda config: config,
    "l1": lambda config: recipes.with_penalty(config, "l1", L1),
    "noise": lambda config: recipes.with_annealed_mlp_noise(config, SIGMA),
    "narrow": lambda config: recipes.with_d_ff(config, K),
}
SEEDS = 5


def get_config(arg: str = "top_k") -> ConfigDict:
    """The first run of an arm."""
    if arg not in ARMS:
        raise ValueError(f'unknown run "{arg}"; valid: {", ".join(ARMS)}')
    return _run(arg, 0)


def _run(arm: str, seed: int) -> ConfigDict:
    config = recipes.vit_arm(ARMS[arm](recipes.vit_digits()), K if arm == "top_k" else None, seed=seed)
    return recipes.with_imposed(config, (K, UNITS))


def sweep(scale: str) -> list[ConfigDict]:
    """Every arm, by seed."""
    if scale != "embedded":
        raise ValueError(f'configs/li2022/robustness_source.py has no scale "{scale}"; valid: embedded')
    return [_run(arm, seed) for seed in range(SEEDS) for arm in ARMS]
