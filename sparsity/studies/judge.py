"""Verdicts on a paper's claims: computed from results by one rule, never written by hand.

A claim declares its effect, unit of replication and threshold in code before the results exist.
It is *reproduced* if the 95% interval of the effect lies wholly on the claimed side of the
threshold, *contradicted* if wholly on the other, *undecided* otherwise, and *not testable* if the
precondition that it states is computed to fail, or fewer than three replicates are there.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from scipy.stats import beta
from scipy.stats import t as student

Verdict = Literal["reproduced", "contradicted", "undecided", "not testable"]
MINIMUM = 3  # replicates


@dataclasses.dataclass(frozen=True)
class Effect:
    """A measured effect.

    Attributes:
      value: the effect, in the claim's units; None where the precondition fails.
      se: its standard error; 0 for a computed quantity that has none.
      n: units of replication behind it.
      exact: the value is a computation without sampling error; n counts what was checked.
      bounds: a 95% interval of its own, where Student's does not fit (shares); None for Student's.
      failed: the precondition that failed, in words; None if all hold.
    """

    value: float | None
    se: float | None
    n: int
    exact: bool = False
    bounds: tuple[float, float] | None = None
    failed: str | None = None

    @classmethod
    def of(cls, replicates: Sequence[float]) -> Effect:
        """Mean and standard error of one effect per unit of replication (a seed, say)."""
        values = np.asarray(replicates, np.float64)
        n = len(values)
        if not n:
            return cls.untestable("no replicate finished")
        with np.errstate(invalid="ignore"):  # an infinite replicate has no error: NaN
            se = float(values.std(ddof=1) / math.sqrt(n)) if n > 1 else None
        return cls(float(values.mean()), se, n)

    @classmethod
    def of_share(cls, outcomes: Sequence[bool]) -> Effect:
        """The share of units in which something happened, with the exact interval of Clopper and Pearson (1934).

        Student's would have no width where all units agree.
        """
        n, k = len(outcomes), sum(bool(x) for x in outcomes)
        if not n:
            return cls.untestable("no replicate finished")
        low = float(beta.ppf(0.025, k, n - k + 1)) if k else 0.0
        high = float(beta.ppf(0.975, k + 1, n - k)) if k < n else 1.0
        return cls(k / n, math.sqrt(k * (n - k) / n) / n, n, bounds=(low, high))

    @classmethod
    def untestable(cls, why: str) -> Effect:
        """The precondition `why` failed."""
        return cls(None, None, 0, failed=why)

    def interval(self) -> tuple[float, float] | None:
        """The 95% interval, Student's t with n - 1 degrees of freedom unless it has `bounds`; None without an error."""
        if self.value is None:
            return None
        if self.bounds is not None:
            return self.bounds
        if self.exact:
            return self.value, self.value
        if self.se is None or self.n < 2:
            return None
        half = float(student.ppf(0.975, self.n - 1)) * self.se
        return self.value - half, self.value + half


@dataclasses.dataclass(frozen=True)
class Claim:
    """One claim of a paper.

    Attributes:
      id: as in the list of claims, e.g. "P2".
      where: table, figure or section of the paper.
      statement: the claim in words.
      effect: what is measured, with units, e.g. "accuracy of CReLU less that of ReLU, points".
      unit: what is replicated: "seed", "table row", ...
      side: the claimed side of `threshold`.
      threshold: fixed before the results.
      measure: from the study's records to the effect.
      headline: may not end as not testable.
    """

    id: str
    where: str
    statement: str
    effect: str
    unit: str
    side: Literal["above", "below"]
    threshold: float
    measure: Callable[[Any], Effect]
    headline: bool = False


@dataclasses.dataclass(frozen=True)
class Judgement:
    """A claim with its measured effect and verdict."""

    claim: Claim
    measured: Effect
    verdict: Verdict

    def record(self) -> dict[str, Any]:
        """Plain values for claims.json."""
        claim = {f.name: getattr(self.claim, f.name) for f in dataclasses.fields(Claim) if f.name != "measure"}
        effect = dataclasses.asdict(self.measured)
        del effect["bounds"]
        found = claim | effect | {"interval": self.measured.interval(), "verdict": self.verdict}
        numbers = (self.measured.value, self.measured.se, *(self.measured.interval() or ()))
        if any(x is not None and not math.isfinite(x) for x in numbers):
            # Strict JSON has neither NaN nor infinity.
            found |= {"value": None, "se": None, "interval": None, "failed": f"the effect is {self.measured.value}"}
        return found


def judge(claim: Claim, records: Any) -> Judgement:
    """The verdict on `claim` from the study's records.

    A NaN effect is no evidence: its verdict is undecided.
    """
    measured = claim.measure(records)
    return Judgement(claim, measured, _verdict(claim, measured))


def _verdict(claim: Claim, measured: Effect) -> Verdict:
    interval = measured.interval()
    if measured.failed is not None or measured.value is None or measured.n < MINIMUM:
        return "not testable"
    if interval is None or any(math.isnan(end) for end in interval):
        return "undecided"
    low, high = interval
    claimed, other = low > claim.threshold, high < claim.threshold
    if claim.side == "below":
        claimed, other = other, claimed
    return "reproduced" if claimed else "contradicted" if other else "undecided"
