"""Bricken et al. 2023, Figs. 1, 4, 17 and 18, and the equations of Apps. E, F and H.2: no training.

Claim: the equations as printed, each against a Monte Carlo sample; E[eta] >= 0; a unit costs more on than off.
Command: python -m launch.reproduce --study=bricken2023/theory --workdir=runs/bricken2023
Hardware: one CPU core, under a minute; float64.
Expected: Eqs. 16, 20, 21, 22 and 26 hold; Eq. 17 (no square of W_d), 23 (argument of the CDF), 25 (ten times too
large), 27 (no cross terms) and three formulas in the text do not. Their conclusions hold all the same.
assumed: Eq. 4's N() takes a deviation, as its second argument says, though Eq. 20's takes a variance.
assumed: examples, which the paper has none of: pre-activations on and off, near the threshold and far, cosines of
either sign. Figs. 1 and 16 are drawings: what noise costs where a unit may stand is drawn for the first.
"""

from ml_collections import ConfigDict


def sweep(scale: str) -> list[ConfigDict]:
    """No runs: theory is the same at every scale."""
    return []
