"""Bricken et al. 2023, "Emergence of Sparse Representations from Noise": a file for each study."""

from sparsity.studies.bricken2023.dead import DEAD
from sparsity.studies.bricken2023.deep_mlp import DEEP_MLP
from sparsity.studies.bricken2023.noise import NOISE
from sparsity.studies.bricken2023.sgd import SGD

BRICKEN2023 = (NOISE, SGD, DEAD, DEEP_MLP)
