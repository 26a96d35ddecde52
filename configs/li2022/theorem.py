"""Li et al. 2022, Theorem 3.1: descent makes activations less active, at initialisation; measured on a network.

Claim: L17 (squared error: the mean gradient is p_i E||v_i||^2; cross-entropy: it is positive, for small weights
p_i E||v_i||^2 (1 - 1/K) / K; its sign over the first steps of training).
Command: python -m launch.reproduce --study=li2022/theorem --workdir=runs/li2022
Hardware: one CPU core, 2 minutes; float64, no training but that of a small network for 200 steps.
Expected: paper: the sign alone, and that it is not proved after the first step.
assumed: the network is one ReLU layer of 512 units on digits with its last layer drawn anew; the paper measures none.
"""

from ml_collections import ConfigDict


def sweep(scale: str) -> list[ConfigDict]:
    """No runs of the engine: the same at every scale."""
    return []
