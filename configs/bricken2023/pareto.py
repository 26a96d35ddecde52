"""Bricken et al. 2023, App. D, Figs. 13 to 15: noise against L1 and Top-k, by loss, sparsity, dead units and fields.

Claim: B9 (one front of held-out loss against sparsity; Top-k's sparsity is mostly dead units, noise's and L1's is
not) and B10 (L1 with weights of unit norm gives Gabors and no centre-surround, without it no fields though it
sparsifies; Top-k without it a few greedy units of large norm, and units that memorise examples).
Command: python -m launch.reproduce --study=bricken2023/pareto --workdir=runs/bricken2023
One run: python -m launch.train --config=configs/bricken2023/pareto.py:l1_unit_norm/1e-05 --workdir=runs/one
(`noise/SIGMA`, `l1/WEIGHT`, `l1_unit_norm/WEIGHT`, `top_k/SHARE`; `paper/top_k/0.01` is at the paper's scale.)
Hardware: 2 CPU cores, 12 minutes (33 runs, the 3 without noise also of the study `ablations`); at the paper's
scale 35 runs of 98,000 steps on a GPU or TPU.
Expected: paper: the points of the three methods on one curve; Gabors at L1 1e-4 and 1e-5; no number is printed.
assumed: "unitary L2 norm on all weights" is kept after every update for each unit's incoming weights and for its
outgoing ones; the input is not normalised. Which of these made Fig. 14 is not recorded.
assumed: L1 weighs the sum over units of |h| against the mean over pixels of the squared error, as in the authors' code.
assumed: "annealed" is in straight lines: noise from a half to three quarters of training, k over the first quarter.
assumed: one seed; three for L1 of weight 1e-4 and 1e-5, the paper's with fields, and for training without either.
assumed: (embedded) network and data of `noise`, 12,000 steps. L1's weights, named as the paper's, are multiplied by
(3072 / 144) (std(data) / .25) = 27.2: with the mean over D pixels as the loss, L1 of weight w is soft thresholding at
w D / 2 of the coefficients of orthonormal atoms, and this threshold keeps its ratio to std(data).
assumed: (embedded) k/units as the paper's, where it is a unit or more: 3 and 10 of 10,000 have no counterpart in 400.
assumed: (paper) 2,000 epochs of 49 steps; the 1,000 images held out of training are not those of the test loss.
"""

from ml_collections import ConfigDict

from sparsity import recipes

BASES = {
    "embedded": recipes.autoencoder_photos,
    "paper": lambda: recipes.autoencoder_cifar10(epochs=2000),
}
WEIGHTS = (1e-4, 1e-5, 1e-6, 1e-7, 1e-8)
SHARES = {"embedded": (0.003, 0.01, 0.03, 0.1, 0.3), "paper": (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3)}
# The settings of every method, in the paper's units; Top-k's are k/units.
ARMS = {
    scale: {"noise": recipes.BRICKEN_SIGMAS, "l1": WEIGHTS, "l1_unit_norm": WEIGHTS, "top_k": SHARES[scale]}
    for scale in BASES
}
REPEATED = {"noise": (0.0,), "l1": WEIGHTS[:2], "l1_unit_norm": WEIGHTS[:2], "top_k": ()}  # with every seed
SEEDS = 3


def get_config(arg: str = "noise/0.8") -> ConfigDict:
    """The first run of a method at a setting of the paper: "[paper/]METHOD/SETTING"."""
    return _run(*recipes.bricken_arm(arg, ARMS), 0)


def _run(scale: str, method: str, value: float, seed: int) -> ConfigDict:
    base = BASES[scale]()
    if method == "noise":
        return recipes.on_the_front(base, value, seed)
    base = recipes.with_noise(base, 0.0, seed)
    if method == "top_k":
        return recipes.also_evaluated(recipes.with_kept_share(base, value), "receptive_fields", "exemplars")
    config = recipes.also_evaluated(recipes.with_l1(base, value), "receptive_fields")
    return recipes.with_unit_norms(config) if method == "l1_unit_norm" else config


def sweep(scale: str) -> list[ConfigDict]:
    """Every method at every setting, by seed."""
    return [
        _run(scale, method, value, seed)
        for seed in range(SEEDS)
        for method, values in ARMS[scale].items()
        for value in (values if seed == 0 else REPEATED[method])
    ]
