"""Price et al. 2024, Table 1 and App. F: thresholds, slopes of the maps, spectrum of the Jacobian. No training.

Claim: P10, Table 1's half; App. F: the spread of the Jacobian's singular values grows with depth and sparsity.
Command: python -m launch.reproduce --study=price2024/table1 --workdir=runs/price2024
Hardware: one CPU core, a minute; float64.
Expected: every formula of Table 1 to rounding; variance L / (1 - s), clipped L sigma_w^2.
assumed: simulated Jacobians of width 1,200 and depth 6, five networks each; the paper simulates none.
"""

from ml_collections import ConfigDict


def sweep(scale: str) -> list[ConfigDict]:
    """No runs: theory is the same at every scale."""
    return []
