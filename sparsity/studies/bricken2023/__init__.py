"""Bricken et al. 2023, "Emergence of Sparse Representations from sparsity.studies.bricken2023.noise import NOISE
from sparsity.studies.bricken2023.sgd import SGD

BRICKEN2023 = (NOISE, SGD, DEAD)
