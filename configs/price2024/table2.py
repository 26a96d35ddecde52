"""Price et al. 2024, Table 2, the deep MLP: which sparse activations train, and whether they stay sparse.

Claim: P1 to P6: shifted ReLU and soft threshold do not train; clipped, they train at up to 85% sparsity
and keep it; clips too large fail by further fixed points or by a map too near the identity.
Command: python -m launch.reproduce --study=price2024/table2 --workdir=runs/price2024
One run: python -m launch.train --config=configs/price2024/table2.py:crelu_0.85_0.7 --workdir=runs/one
(`paper/ROW` is the run at the paper's scale.)
Hardware: 2 CPU cores, under 60 minutes; at the paper's scale 165 runs of 90,000 steps on a GPU or TPU.
Expected: paper: ReLU 94%, ReLU_tau .7 and ST .5 10%, CReLU .85 at V' = .7 94% with 85% zeros.
assumed: (embedded) handwritten digits, depth 30, 2,500 steps, 14 rows, 5 seeds; batch 64; rate 1e-2, chosen once
on the ReLU row, seed 0: validation loss .363, .341, .385 at rates .003, .01, .03; at .1 it diverged.
assumed: (paper) batch 120, which the paper does not print and eight devices divide; 200 epochs of its 54,000
training images.
assumed: no momentum; inputs of zero mean and unit variance over all pixels; first layer's bias 0; a head on the
edge of chaos too; inputs of variance .8 for the unclipped rows with tau > 0.
"""

from ml_collections import ConfigDict

from sparsity import recipes

BASES = {"embedded": recipes.deep_mlp_digits, "paper": recipes.deep_mlp_mnist}
ROWS = {
    "embedded": (
        "relu",
        "relu_tau_0.6",
        "relu_tau_0.7",
        "st_0.5",
        *("crelu_0.6_0.7", "crelu_0.7_0.7", "crelu_0.85_0.5", "crelu_0.85_0.7", "crelu_0.85_0.9"),
        *("cst_0.7_0.9", "cst_0.8_0.9", "cst_0.85_0.5", "cst_0.85_0.7", "cst_0.85_0.9"),
    ),
    "paper": recipes.PRICE_ROWS,
}
SEEDS = 5


def get_config(arg: str = "relu") -> ConfigDict:
    """The first run of a row of the table, e.g. "crelu_0.85_0.7"; "paper/relu" at the paper's scale."""
    return recipes.price_run(BASES, arg)


def sweep(scale: str) -> list[ConfigDict]:
    """The runs of the table, by seed, so that a study that is stopped has whole tables."""
    return recipes.price_sweep(BASES[scale](), ROWS[scale], SEEDS)
