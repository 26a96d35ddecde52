import pytest

from sparsity.studies.judge import judge
from sparsity.studies.price2024 import SMOOTH


def test_every_arm_has_a_row_and_three_seeds(sweep):
    made = sweep(SMOOTH.name, lambda _: 0.9)
    rows = SMOOTH.table(made)
    assert {row["n"] for row in rows} == {3}
    assert len({row["row"] for row in rows}) == len(rows) == len(SMOOTH.findings(made))


def test_a_claim_compares_the_two_arms_that_it_names(better):
    claims = {c.id: c for c in SMOOTH.claims}
    judged = judge(claims["smooth.cst"], better(SMOOTH.name, "cst_0.85_0.7_seed{}_smooth_0.25"))
    assert judged.measured.value == pytest.approx(0.011)
    assert judged.verdict == "reproduced"


def test_rows_keep_sparsity_and_their_theory_says_what_a_threshold_on_h_adds(sweep):
    rows = {row["row"]: row for row in SMOOTH.table(sweep(SMOOTH.name, lambda _: 0.9))}
    for row in ("crelu_0.85_0.7", "crelu_0.85_0.7_smooth_0.25", "cst_0.85_0.7_smooth_0.1"):
        assert rows[row]["expected zeros"] == pytest.approx(0.85, abs=1e-6)
    assert rows["crelu_0.85_0.7"]["nearly zero"] < rows["crelu_0.85_0.7_smooth_0.25"]["nearly zero"]
