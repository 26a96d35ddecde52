"""The evaluators, by name. Each maps a `Subject` to a `Result`."""

from sparsity.evals.accuracy import accuracy
from sparsity.evals.calibration import calibration
from sparsity.evals.cost import cost
from sparsity.evals.neurons import neurons
from sparsity.evals.result import Evaluator
from sparsity.evals.robustness import robustness
from sparsity.evals.sparsity import sparsity

EVALS: dict[str, Evaluator] = {
    "accuracy": accuracy,
    "calibration": calibration,
    "robustness": robustness,
    "sparsity": sparsity,
    "neurons": neurons,
    "cost": cost,
}
