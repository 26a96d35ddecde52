"""Networks compared example by example: the examples are the same, so what differs between them does not count."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from sparsity.evals.result import ByExample, Measure
from sparsity.studies.evaluated import Evaluated
from sparsity.studies.judge import Effect


@dataclasses.dataclass(frozen=True)
class Paired:
    """What a run has more than another of each measure.

    Attributes:
      run, against: names of both.
      effects: by measure; the unit of replication is an example.
      units: of the measures, as `Measure.unit`.
      refused: why they cannot be paired, in words; None if they are.
    """

    run: str
    against: str
    effects: Mapping[str, Effect] = dataclasses.field(default_factory=dict)
    units: Mapping[str, str] = dataclasses.field(default_factory=dict)
    refused: str | None = None

    def text(self, name: str) -> str:
        """The difference with its standard error, as `+1.20 ± 0.42 points`; "-" where there is none."""
        effect = self.effects.get(name)
        if effect is None:
            return "-"
        scale, unit = (100.0, "points") if self.units[name] == "share" else (1.0, self.units[name])
        error = None if effect.se is None else scale * effect.se
        text = str(Measure(name, scale * effect.value, error, effect.n, "", unit))
        return text if text.startswith(("-", "nan")) else f"+{text}"


def difference(of: ByExample, against: ByExample) -> Effect:
    """The difference of sum(values) / sum(counts) over the same n examples, with the standard error that pairs them.

    With a the values of `of`, b those of `against`, and c the counts, which are the same, D = sum(a - b) / sum(c), and
    se^2 = sum((a - b - D c)^2) / (n - 1) / n / mean(c)^2: that of the ratio of two means, and for counts of 1 the
    paired t-test's. NaN if a value is.

    Raises:
      ValueError: other numbers of examples, or other counts.
    """
    a, b = (np.asarray(x.values, np.float64) for x in (of, against))
    counts = [np.ones(len(a)) if x.counts is None else np.asarray(x.counts, np.float64) for x in (of, against)]
    if a.shape != b.shape or not np.array_equal(*counts):
        raise ValueError(f"paired: other examples, n = {len(a)} and {len(b)}, or other counts of them")
    n, c = len(a), counts[0]
    with np.errstate(invalid="ignore"):  # infinity less infinity is NaN
        value = float((a - b).sum() / c.sum())
        left = a - b - value * c
    se = None if n < 2 else float(math.sqrt((left**2).sum() / (n - 1) / n) / c.mean())
    return Effect(value, se, n)


def paired(one: Evaluated, against: Evaluated) -> Paired:
    """What `one` has more than `against`, of every measure that both have by example; or why that cannot be said."""
    names = (one.of.run, against.of.run)
    if not one.examples or not against.examples:
        return Paired(*names, refused="no measure of both is known example by example")
    if one.examples != against.examples:
        # A number of examples that is the same is no sign that they are.
        sizes = " and ".join(str(len(next(iter(x.result.by_example.values())).values)) for x in (one, against))
        return Paired(*names, refused=f"they were evaluated on other examples (n = {sizes})")
    theirs = against.result.by_example
    effects = {
        name: difference(ours, theirs[name])
        for name, ours in one.result.by_example.items()
        if name in theirs and len(ours.values) == len(theirs[name].values)
    }
    if not effects:
        return Paired(*names, refused="no measure of both is known example by example")
    return Paired(*names, effects, {m.name: m.unit for m in one.result.measures if m.name in effects})


def differences(found: Sequence[Evaluated]) -> list[Paired]:
    """What each has more than the first."""
    return [paired(one, found[0]) for one in found[1:]]
