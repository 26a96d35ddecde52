"""The evaluators, by name. Each maps a `Subject` to a `Result`."""

from sparsity.evals.accuracy import accuracy
from sparsity.evals.calibration import calibration
from sparsity.evals.cost import cost
from sparsity.evals.exemplars import exemplars
from sparsity.evals.firing import firing
from sparsity.evals.generate import generate
from sparsity.evals.imposed import imposed
from sparsity.evals.inference import inference
from sparsity.evals.language import language
from sparsity.evals.neurons import neurons
from sparsity.evals.noise_effects import noise_covariance, noise_terms
from sparsity.evals.quantiles import quantiles
from sparsity.evals.receptive_fields import receptive_fields
from sparsity.evals.reconstruction import reconstruction
from sparsity.evals.result import Evaluator
from sparsity.evals.robustness import robustness
from sparsity.evals.sparsity import sparsity
from sparsity.evals.thresholds import thresholds
from sparsity.evals.units import units

EVALS: dict[str, Evaluator] = {
    "accuracy": accuracy,
    "reconstruction": reconstruction,
    "language": language,
    "calibration": calibration,
    "robustness": robustness,
    "imposed": imposed,
    "sparsity": sparsity,
    "neurons": neurons,
    "units": units,
    "firing": firing,
    "thresholds": thresholds,
    "quantiles": quantiles,
    "cost": cost,
    "receptive_fields": receptive_fields,
    "exemplars": exemplars,
    "noise_covariance": noise_covariance,
    "noise_terms": noise_terms,
    "generate": generate,
    "inference": inference,
}

# The task whose models an evaluator scores; those that are not here measure any model.
TASKS: dict[str, str] = {
    "accuracy": "classification",
    "calibration": "classification",
    "robustness": "classification",
    "imposed": "classification",
    "reconstruction": "reconstruction",
    "language": "language",
    "thresholds": "language",
    "generate": "language",
    "quantiles": "language",
    "inference": "language",
}
