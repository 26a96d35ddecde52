import pytest

from launch.cli import load_study_config
from sparsity.run import run_config
from sparsity.studies.judge import judge
from sparsity.studies.price2024 import LARGE_Q
from sparsity.theory import edge_of_chaos


def test_every_arm_has_a_row_and_three_seeds(sweep):
    made = sweep(LARGE_Q.name, lambda _: 0.9)
    rows = LARGE_Q.table(made)
    assert {row["n"] for row in rows} == {3}
    assert len({row["row"] for row in rows}) == len(rows) == len(LARGE_Q.findings(made))


def test_a_claim_compares_the_two_arms_that_it_names(better):
    claims = {c.id: c for c in LARGE_Q.claims}
    judged = judge(claims["large_q.helps"], better(LARGE_Q.name, "dnn30_digits_crelu_0.9_0.7_seed{}_q4"))
    assert judged.measured.value == pytest.approx(0.011)
    assert judged.verdict == "reproduced"


def test_the_arms_differ_in_what_they_say():
    config = load_study_config("price2024/large_q")
    arms = {arm: run_config(config.get_config(f"crelu_0.9_0.7/{arm}")).model for arm in config.ARMS}
    plain = run_config(config.get_config("crelu_0.9_0.7")).model
    unit = edge_of_chaos.solve(0.9, 0.7)
    assert pytest.approx((unit.tau, unit.m), rel=1e-8) == config.CLIP
    for model in arms.values():
        assert model.sparsifier.tau == pytest.approx(2 * plain.sparsifier.tau, rel=1e-8)
        assert model.edge.q == 4.0
    assert arms["q"].sparsifier.m == pytest.approx(2 * plain.sparsifier.m, rel=1e-8)
    assert arms["q_clip"].sparsifier.m == pytest.approx(plain.sparsifier.m, rel=1e-8)
    assert [arms[a].input_gain for a in config.ARMS] == [4.0, 4.0, 1.0, 4.0]
    assert [arms[a].logit_scale for a in config.ARMS] == [1.0, 0.5, 1.0, 1.0]
    # The rescaled edge: the same weights, biases of four times the variance.
    assert arms["q"].edge.sigma_w2 == pytest.approx(plain.edge.sigma_w2, rel=1e-6)
    assert arms["q"].edge.sigma_b2 == pytest.approx(4 * plain.edge.sigma_b2, rel=1e-6)
