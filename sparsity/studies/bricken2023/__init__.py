"""Bricken et al. 2023, "Emergence of Sparse Representations from Noise": a file for each study."""

from sparsity.studies.bricken2023.noise import NOISE

BRICKEN2023 = (NOISE,)
