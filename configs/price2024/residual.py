"""Beyond Price et al. 2024 (Sec. 5, open): clipped activations in the MLPs of a Transformer.

Claim: none of the paper's; asked: does the edge-of-chaos initialisation help in a residual block?
Command: python -m launch.reproduce --study=price2024/residual --workdir=runs/price2024
Hardware: 2 CPU cores, 10 minutes.
Expected: nothing is printed for these networks.
assumed: embedded scale only; the quickstart's ViT, 1,000 steps, 3 seeds. "xavier" as everywhere in the ViT;
"edge_of_chaos" draws W_i with variance 1 / fan_in and W_o, b_o on the edge (`MLPConfig.init`).
"""

from ml_collections import ConfigDict

from sparsity import recipes

ROWS = ("relu", "crelu_0.85_0.7", "cst_0.85_0.7")
INITS = ("xavier", "edge_of_chaos")
SEEDS = 3


def get_config(arg: str = "crelu_0.85_0.7/edge_of_chaos") -> ConfigDict:
    """The run of seed 0 of a ViT with a row's activation and an initialisation: "ROW/INIT"."""
    row, _, init = arg.partition("/")
    return _run(row, init or "xavier", 0)


def _run(row: str, init: str, seed: int) -> ConfigDict:
    if init not in INITS:
        raise ValueError(f'unknown initialisation "{init}"; valid: {", ".join(INITS)}')
    config = recipes.vit_digits()
    config.steps, config.keep = 1000, 1
    config.every.checkpoint = 1000
    config.evals.names = ("accuracy", "sparsity", "neurons")
    return recipes.with_price_mlp(config, row, init, seed)


def sweep(scale: str) -> list[ConfigDict]:
    """Every activation with both initialisations, by seed."""
    if scale != "embedded":
        raise ValueError(f'configs/price2024/residual.py has no scale "{scale}"; valid: embedded')
    return [_run(row, init, seed) for seed in range(SEEDS) for row in ROWS for init in INITS]
