"""Price et al. 2024, Secs. 2 and 3 at initialisation: all 33 rows of Table 2 through 100 layers, untrained.

Claim: P9: the variance q_l stays near q* = 1 through 100 layers in every clipped row but CST .8/.9 and .85/.9,
and leaves it in the unclipped ones; the half of P5 that speaks of gradients at the first step.
Command: python -m launch.reproduce --study=price2024/initial --workdir=runs/price2024
Hardware: 2 CPU cores, about 25 minutes, most of it compilation.
Expected: q_100 near 1 and initial sparsity within .01 of s, but for the rows named.
assumed: (embedded) handwritten digits, 5 seeds a row; everything is measured on the training batch of step 0.
assumed: (paper) 5 seeds, on MNIST; one batch of 120.
"""

from ml_collections import ConfigDict

from sparsity import recipes

BASES = {
    "embedded": lambda: recipes.first_steps(recipes.deep_mlp_digits(depth=100), 1),
    "paper": lambda: recipes.first_steps(recipes.deep_mlp_mnist(), 1),
}
SEEDS = 5


def get_config(arg: str = "relu") -> ConfigDict:
    """The first run of a row of Table 2, one step long; "paper/relu" on MNIST."""
    return recipes.price_run(BASES, arg)


def sweep(scale: str) -> list[ConfigDict]:
    """All rows, by seed."""
    return recipes.price_sweep(BASES[scale](), recipes.PRICE_ROWS, SEEDS)
