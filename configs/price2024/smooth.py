"""Beyond Price et al. 2024 (Sec. 5, open): once differentiable clipped activations.

Claim: none of the paper's; asked: do CReLU and CST with rounded kinks train as well and stay as sparse?
Command: python -m launch.reproduce --study=price2024/smooth --workdir=runs/price2024
Hardware: 2 CPU cores, 10 minutes beside table2, whose runs of the sharp activations it shares.
Expected: accuracy and sparsity of the sharp ones; a kink of half-width w moves tau and m so that the exact zeros
and V' stay.
assumed: embedded scale only; everything as in table2; half-widths w of .1 and .25 (in units of z; from .3 on
no m gives CST 85% exact zeros and V' = .7).
"""

from ml_collections import ConfigDict

from sparsity import recipes

BASES = {"embedded": recipes.deep_mlp_digits}
WIDTHS = (0.1, 0.25)
SEEDS = 3


def get_config(arg: str = "crelu_0.85_0.7") -> ConfigDict:
    """The first run of a row: a row of Table 2, its kinks rounded if "_smooth_WIDTH" follows."""
    row, _, width = arg.partition("_smooth_")
    config = recipes.price_run(BASES, row)
    return recipes.with_smooth_kinks(config, float(width)) if width else config


def sweep(scale: str) -> list[ConfigDict]:
    """CReLU and CST at 85% sparsity and V' = .7, sharp and smooth, and ReLU."""
    if scale not in BASES:
        raise ValueError(f'configs/price2024/smooth.py has no scale "{scale}"; valid: embedded')
    runs = []
    for sharp in recipes.price_sweep(BASES[scale](), ("relu", "crelu_0.85_0.7", "cst_0.85_0.7"), SEEDS):
        rounded = () if "relu_seed" in sharp.name and "crelu" not in sharp.name else WIDTHS
        runs += [sharp, *(recipes.with_smooth_kinks(sharp, width) for width in rounded)]
    return runs
