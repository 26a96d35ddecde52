"""Beyond Price et al. 2024: the largest stable clip m as a function of width and depth. No training.

Claim: what the paper leaves open. S1 to S4: the clip is predicted from the random walk of q_l at finite width, the
prediction agrees with simulated networks, and orders the rows of Table 2.
Command: python -m launch.reproduce --study=price2024/stable_clip --workdir=runs/price2024
Hardware: one CPU core, two to three minutes; float64.
Expected: at width 300, depth 100 and s = .85 V'(q*) up to about .85 (CReLU) and .75 (CST); the same at every scale.
assumed: "stable" is at most a fifth of random networks with a squared gradient that grows 1,000 times between layers.
"""

from ml_collections import ConfigDict


def sweep(scale: str) -> list[ConfigDict]:
    """No runs: theory is the same at every scale."""
    return []
