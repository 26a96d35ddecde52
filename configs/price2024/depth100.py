"""Price et al. 2024, Table 2 at the paper's depth of 100, trained: the key rows, once.

Claim: P1 to P5 at depth 100, on other data and for fewer steps than the paper's.
Command: python -m launch.reproduce --study=price2024/depth100 --workdir=runs/price2024
Hardware: 2 CPU cores, about 35 minutes.
Expected: paper: ReLU 94%, CReLU .85 at V' = .7 94%; ReLU_tau .7 and ST .5 10%; CReLU .85/.9 and CST .7/.9 fail in
most seeds.
assumed: (embedded) handwritten digits, batch 64, 2,500 steps, the paper's rate 1e-4. On the ReLU row, seed 0, test
accuracy after 2,500 steps was .82 at 1e-4 and .64 at 1e-3; at table2's 1e-2 it learned nothing in 600 steps.
assumed: (paper) as table2.
"""

from ml_collections import ConfigDict

from sparsity import recipes


def _digits() -> ConfigDict:
    config = recipes.deep_mlp_digits(depth=100)
    config.optimizer.learning_rate = 1e-4
    return config


BASES = {"embedded": _digits, "paper": recipes.deep_mlp_mnist}
ROWS = (
    *("relu", "relu_tau_0.6", "relu_tau_0.7", "st_0.5", "crelu_0.85_0.5", "crelu_0.85_0.7", "crelu_0.85_0.9"),
    *("cst_0.7_0.9", "cst_0.8_0.9", "cst_0.85_0.7", "cst_0.85_0.8"),
)


def get_config(arg: str = "relu") -> ConfigDict:
    """The run of a row of Table 2; "paper/relu" at the paper's scale."""
    return recipes.price_run(BASES, arg)


def sweep(scale: str) -> list[ConfigDict]:
    """The key rows."""
    return recipes.price_sweep(BASES[scale](), ROWS, seeds=1)
