"""Li et al. 2022, Tables C.1, C.2: ViTs with an L1 or L2 penalty on their activations are more robust, calibrated.

Claim: L11 (L1 and L2 help against corruption and in calibration, L2 less than L1 at the same density; the largest L1
weight costs clean accuracy). Beyond: L1 under label noise, which the paper tries with Top-k alone.
Command: python -m launch.reproduce --study=li2022/penalties --workdir=runs/li2022
One run: python -m launch.train --config=configs/li2022/penalties.py:l1/1e-05 --workdir=runs/one
(`plain`, `PENALTY/WEIGHT`, `PENALTY/WEIGHT/NOISE`, `plain/NOISE`.)
Hardware: 2 CPU cores, 55 runs, 15 of them `table1`'s; about 35 minutes for the other 40, two at a time (--shard), by
the steps timed, not measured yet.
Expected: paper: clean accuracy 74.85% plain, 74.98, 74.55 and 73.21% with L1 at .80, .59 and .28 of the nonzeros; under
Gaussian noise 39.54 against 42.78, 41.90 and 40.26%; ECE 8.42 against 6.86, 6.28 and 6.34%; L2 in `penalties.csv`.
assumed: the paper's weights are .01, .1 and 1 of a reduction that it does not print. Here a weight is of the sum over
units and layers, mean over tokens. The three of each penalty are meant to stand around the paper's densities, relative
to the plain network's, between which results are interpolated; they were guessed from runs of 400 steps (of the plain
network's nonzeros L1 left .90, .53 and .11 at 1e-5, 1e-4 and 1e-3, L2 .63 and .24 at 1e-4 and 1e-3). Where they do not,
claims are not testable: run `--only=seed=0` first, and move the weights by its densities alone.
assumed: L2 is the squared norm; the text says norm.
assumed: (embedded) digits in place of ImageNet-1k, `table1`'s ViT, corruptions and bins of ECE.
assumed: the paper's own scale is not here yet: there is no ImageNet.
"""

from ml_collections import ConfigDict

from sparsity import recipes

WEIGHTS = {"l1": (3e-6, 3e-5, 3e-4), "l2": (1e-6, 1.5e-5, 2e-4)}
NOISES = (0.4, 0.8)
SEEDS = 5


def get_config(arg: str = "l1/3e-05") -> ConfigDict:
    """The first run of "plain[/NOISE]" or "PENALTY/WEIGHT[/NOISE]"."""
    kind, *numbers = arg.split("/")
    if kind not in ("plain", *WEIGHTS) or len(numbers) not in ((0, 1) if kind == "plain" else (1, 2)):
        raise ValueError(f'unknown run "{arg}"; valid: plain[/NOISE], l1/WEIGHT[/NOISE], l2/WEIGHT[/NOISE]')
    try:
        values = [float(number) for number in numbers]
    except ValueError:
        raise ValueError(f'unknown run "{arg}": WEIGHT and NOISE are numbers; valid: l1/3e-05, l1/3e-05/0.4') from None
    weight, noise = (0.0, *values, 0.0)[:2] if kind == "plain" else (*values, 0.0)[:2]
    return _run(None if kind == "plain" else kind, weight, noise, 0)


def _run(penalty: str | None, weight: float, noise: float, seed: int) -> ConfigDict:
    config = recipes.vit_digits()
    if penalty is not None:
        config = recipes.with_penalty(config, penalty, weight)
    return recipes.vit_calibrated_arm(config, noise=noise, seed=seed)


def sweep(scale: str) -> list[ConfigDict]:
    """Plain and with every penalty; with label noise plain and with L1's middle weight; by seed."""
    if scale != "embedded":
        raise ValueError(f'configs/li2022/penalties.py has no scale "{scale}"; valid: embedded')
    arms = [(None, 0.0, 0.0), *((penalty, weight, 0.0) for penalty in WEIGHTS for weight in WEIGHTS[penalty])]
    arms += [arm for noise in NOISES for arm in ((None, 0.0, noise), ("l1", WEIGHTS["l1"][1], noise))]
    return [_run(*arm, seed) for seed in range(SEEDS) for arm in arms]
