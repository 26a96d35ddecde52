"""A trained classifier with Top-k put on, or taken off, at evaluation alone."""

from __future__ import annotations

import dataclasses
from typing import Any

from sparsity.config import ConfigError
from sparsity.evals.accuracy import accuracy
from sparsity.evals.calibration import calibration
from sparsity.evals.result import Measure, Result, Subject
from sparsity.evals.robustness import robustness
from sparsity.evals.sparsity import sparsity
from sparsity.ops.sparsifiers import Relu, TopK

_EVALUATORS = (accuracy, calibration, robustness, sparsity)


def imposed(subject: Subject) -> Result:
    """Accuracy, calibration, robustness and nonzeros with h = Top_k(max(z, 0)) in every MLP, for each of `imposed_k`.

    The weights stay as they were trained, with ReLU or with Top-k of any k: that of the config takes its place. Where k
    is the number of units, or more, nothing is dropped and h is ReLU's. Measures are called "imposed.K.accuracy" and
    so on, K the k.

    Raises:
      ConfigError: there is no k.
      ValueError: the model cannot be imposed on, see `check_imposable`.
    """
    check_imposable(subject.model)
    if not subject.config.imposed_k:
        raise ConfigError("evals.imposed_k: the evaluator imposed needs numbers of units, such as (43,)")
    measures: list[Measure] = []
    for k in subject.config.imposed_k:
        other = with_top_k(subject, k)
        rule = f"with the {k} largest of every MLP's positive units kept, whatever training kept"
        for evaluator in _EVALUATORS:
            measures += [
                dataclasses.replace(m, name=f"imposed.{k}.{m.name}", definition=f"{rule}: {m.definition}")
                for m in evaluator(other).measures
            ]
    return Result(tuple(measures))


def check_imposable(model: Any) -> None:
    """Raises ValueError unless every MLP of `model` has the same settings, with ReLU or with Top-k of ReLU."""
    phi = getattr(getattr(model, "mlp", None), "sparsifier", None)
    if not (isinstance(phi, Relu) or (isinstance(phi, TopK) and phi.act == "relu")):
        has = "no MLPs of one setting" if phi is None else type(phi).__name__
        raise ValueError(f"evals.names: imposed puts Top-k in the place of ReLU or of Top-k of it; the model has {has}")


def with_top_k(subject: Subject, k: int) -> Subject:
    """`subject` with the k largest positive units of every MLP kept, all of them if there are no more than k."""
    mlp = subject.model.mlp
    phi = TopK(k) if k < mlp.d_ff else Relu()
    # The weights are there. What ReLU or Top-k has not, an edge of chaos or a predictor, would be refused.
    mlp = dataclasses.replace(mlp, sparsifier=phi, init="xavier", predictor=0)
    model = dataclasses.replace(subject.model, mlp=mlp)
    return dataclasses.replace(subject, model=model, predict=subject.predict_as(model))
