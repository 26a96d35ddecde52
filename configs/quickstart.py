"""Quickstart: the same small ViT with ReLU and with Top-k MLPs, on real handwritten digits.

Claim: activations become sparse by training alone (Li et al. 2022, Fig. 1), and Top-k holds
them at k of d_ff units from the first step at no loss of accuracy (Fig. 6).
Command: python -m launch.reproduce --study=quickstart --workdir=runs/quickstart
One run: python -m launch.train --config=configs/quickstart.py:top_k --workdir=runs/one
Hardware: 2 CPU cores, under 3 minutes for both runs.
Expected: test accuracy at least 95% for both; the ReLU run's mean nonzero share falls from
about 50% by at least 10 points.
assumed: everything but the architecture's shape; the paper has no digits experiment.
"""

from ml_collections import ConfigDict

from sparsity import recipes

RUNS = {"relu": recipes.vit_digits, "top_k": lambda: recipes.with_top_k(recipes.vit_digits(), k=64)}


def get_config(arg: str = "relu") -> ConfigDict:
    """The run called `arg`: "relu" or "top_k"."""
    if arg not in RUNS:
        raise ValueError(f'unknown run "{arg}" of configs/quickstart.py; valid: {", ".join(RUNS)}')
    return RUNS[arg]()


def sweep(scale: str) -> list[ConfigDict]:
    """The runs of the study; there is only the embedded scale."""
    if scale != "embedded":
        raise ValueError(f'configs/quickstart.py has no scale "{scale}"; valid: embedded')
    return [get_config(arg) for arg in RUNS]
