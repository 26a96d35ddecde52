"""Evaluated checkpoints made by hand."""

import numpy as np

from sparsity.evals.result import ByExample, Measure, Result
from sparsity.run import Workdir
from sparsity.studies.evaluated import Evaluated, Evaluation


def checkpoint(run, by_example=None, step=4, examples="same", status="finished", units=None, **measures):
    """One of `run`, with its measures by example, and other ones, (value, se) each."""
    found = {name: x if isinstance(x, ByExample) else ByExample(np.array(x)) for name, x in (by_example or {}).items()}
    units = units or {}
    n = len(next(iter(found.values())).values) if found else 10
    numbers = {name: (float(np.mean(x.values)), 0.5) for name, x in found.items()} | measures
    result = Result(
        tuple(Measure(name, *of, n, f"what {name} is", units.get(name, "share")) for name, of in numbers.items()),
        by_example=found,
    )
    of = Evaluation(run, Workdir(f"runs/{run}"), None, (), {})
    return Evaluated(of, step, status, result, examples if found else "")
