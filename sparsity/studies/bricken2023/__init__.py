"""Bricken et al. 2023, "Emergence of Sparse Representations from Noise": a file for each study."""

from sparsity.studies.bricken2023.ablations import ABLATIONS
from sparsity.studies.bricken2023.activations import ACTIVATION_STUDY
from sparsity.studies.bricken2023.alexnet import ALEXNET
from sparsity.studies.bricken2023.annealing import ANNEALING
from sparsity.studies.bricken2023.controls import CONTROLS
from sparsity.studies.bricken2023.dead import DEAD
from sparsity.studies.bricken2023.deep_mlp import DEEP_MLP
from sparsity.studies.bricken2023.flat_regions import FLAT_REGIONS
from sparsity.studies.bricken2023.front import FRONT
from sparsity.studies.bricken2023.gentle_annealing import GENTLE_ANNEALING
from sparsity.studies.bricken2023.noise import NOISE
from sparsity.studies.bricken2023.pareto import PARETO
from sparsity.studies.bricken2023.robustness import ROBUSTNESS
from sparsity.studies.bricken2023.sgd import SGD
from sparsity.studies.bricken2023.theory import THEORY
from sparsity.studies.bricken2023.training_time import TRAINING_TIME
from sparsity.studies.bricken2023.transformer import TRANSFORMER

BRICKEN2023 = (
    THEORY,
    NOISE,
    ABLATIONS,
    ACTIVATION_STUDY,
    ANNEALING,
    CONTROLS,
    TRAINING_TIME,
    FLAT_REGIONS,
    PARETO,
    FRONT,
    ROBUSTNESS,
    GENTLE_ANNEALING,
    SGD,
    DEAD,
    DEEP_MLP,
    TRANSFORMER,
    ALEXNET,
)
