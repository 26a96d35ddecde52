"""What the zeros are worth in FLOPs (Li et al. 2022, Sec. 4.1), and the model's size."""

from __future__ import annotations

from sparsity.evals.result import Measure, Result, Subject
from sparsity.evals.sparsity import nonzero_fraction
from sparsity.models import shape_of

_COUNTED = "forward FLOPs per token, matrix products only, a multiply-add counts 2"
_READING = "matrices that read h (in an MLP, the second)"


def cost(subject: Subject) -> Result:
    """FLOPs per token of the matrices that read h and of the whole model, dense and with zeros skipped."""
    model, classes = subject.model, subject.source.classes
    shape = shape_of(model, subject.source)
    second = model.skippable_flops(shape, classes)
    found = {layer: nonzero_fraction(s) for layer, s in subject.clean.stats.items()}
    density = {layer: f[0] for layer, f in found.items()}
    n = next(iter(found.values()))[2] if found else 0
    dense = sum(second.values())
    measures = [
        Measure("flops.second_layer.dense", dense, None, n, f"{_COUNTED}: {_READING} of all layers", "FLOPs"),
        Measure("flops.model.dense", model.flops(shape, classes), None, n, f"{_COUNTED}: whole model", "FLOPs"),
        Measure("parameters", subject.parameters, None, 1, "number of parameters", ""),
    ]
    if density and all(0 <= d <= 1 for d in density.values()):  # NaN fails: a NaN activation saves nothing
        # Upper bound on the error, as for the mean nonzero fraction: layers share examples.
        errors = [found[name][1] for name in second]
        se = None if None in errors else sum(w * e for w, e in zip(second.values(), errors, strict=True))
        sparse = sum(second[name] * density[name] for name in second)
        text = "the zeros of h skipped in the matrix that reads it (saves 1 - nonzero fraction, output unchanged)"
        measures += [
            Measure("flops.second_layer.sparse", sparse, se, n, f"{_COUNTED}: {_READING}, {text}", "FLOPs"),
            Measure(
                "flops.model.sparse",
                model.flops(shape, classes, density),
                se,
                n,
                f"{_COUNTED}: whole model, {text}",
                "FLOPs",
            ),
        ]
    return Result(tuple(measures))
