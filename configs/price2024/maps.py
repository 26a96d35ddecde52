"""Price et al. 2024, Figs. 1 to 4 and 6 to 11, and the theory columns of Table 2: no training.

Claim: P10 (the maps themselves: closed forms, all printed tau, m, V', V'') and the map half of P4.
Command: python -m launch.reproduce --study=price2024/maps --workdir=runs/price2024
Hardware: one CPU core, under a minute; float64.
Expected: all 126 printed numbers of Table 2's theory columns, to the printed digit.
assumed: the grids of tau, m and s that the figures' captions leave out: tau in {.25, .5, 1}; off
the edge of chaos sigma_w^2 is .9 and 1.1 of the edge's.
"""

from ml_collections import ConfigDict


def sweep(scale: str) -> list[ConfigDict]:
    """No runs: theory is the same at every scale."""
    return []
