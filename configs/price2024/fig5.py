"""Price et al. 2024, Fig. 5: gradient norms of each of 100 layers over the first 15 steps.

Claim: P8: CReLU .85 at V' = .9: gradients grow towards the input at the first step already and reach very
large values by the third; CST .85 at V' = .8: of order 1 at the first step, exploding within steps.
Command: python -m launch.reproduce --study=price2024/fig5 --workdir=runs/price2024
Hardware: 2 CPU cores, 5 minutes.
Expected: paper: up to some 10^5 by step 3 in the failed run that it shows; the exponents are lost in its text.
assumed: (embedded) handwritten digits, batch 64, the paper's rate 1e-4; 5 seeds, of which the paper shows one
that failed; ReLU and CReLU .85 at V' = .7, which train, for comparison.
assumed: (paper) batch 120; "gradient norm per layer" is the L2 norm of the gradient of the layer's weights.
"""

from ml_collections import ConfigDict

from sparsity import recipes


def _digits() -> ConfigDict:
    config = recipes.deep_mlp_digits(depth=100)
    config.optimizer.learning_rate = 1e-4
    return recipes.first_steps(config, 15)


BASES = {
    "embedded": _digits,
    "paper": lambda: recipes.first_steps(recipes.deep_mlp_mnist(), 15),
}
ROWS = ("relu", "crelu_0.85_0.7", "crelu_0.85_0.9", "cst_0.85_0.8")
SEEDS = 5


def get_config(arg: str = "crelu_0.85_0.9") -> ConfigDict:
    """The first run of a row of Table 2, 15 steps long; "paper/relu" on MNIST."""
    return recipes.price_run(BASES, arg)


def sweep(scale: str) -> list[ConfigDict]:
    """Fig. 5's two rows and two that train, by seed."""
    return recipes.price_sweep(BASES[scale](), ROWS, SEEDS)
