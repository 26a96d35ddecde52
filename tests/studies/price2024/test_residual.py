import pytest

from sparsity.studies.judge import judge
from sparsity.studies.price2024 import RESIDUAL


def test_every_arm_has_a_row_and_three_seeds(sweep):
    made = sweep(RESIDUAL.name, lambda _: 0.9)
    rows = RESIDUAL.table(made)
    assert {row["n"] for row in rows} == {3}
    assert len({row["row"] for row in rows}) == len(rows) == len(RESIDUAL.findings(made))


def test_a_claim_compares_the_two_arms_that_it_names(better):
    claims = {c.id: c for c in RESIDUAL.claims}
    judged = judge(claims["residual.CST .85/.7"], better(RESIDUAL.name, "cst_0.85_0.7_seed{}_edge_of_chaos"))
    assert judged.measured.value == pytest.approx(0.011)
    assert judged.verdict == "reproduced"
