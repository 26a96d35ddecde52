import numpy as np
import pytest

from sparsity.studies.judge import judge
from sparsity.studies.li2022 import runs
from sparsity.studies.li2022.runs import Arm


@pytest.mark.parametrize(
    ("name", "arm", "seed"),
    [
        ("t5_text_d64_l4_f512_seed0", Arm(64, 4, 512), 0),
        ("t5_base_c4_d768_l12_f3072_k64_seed2", Arm(768, 12, 3072, 64), 2),
        ("t5_large_c4_d1024_l24_f4096_no_encoder_6_seed1", Arm(1024, 24, 4096, None, "encoder_6"), 1),
    ],
)
def test_arm_and_seed_are_read_from_names_of_either_scale(name, arm, seed):
    assert runs.arm_and_seed(name) == (arm, seed)


def test_arms_stand_in_the_order_of_their_sizes():
    names = [f"t5_text_d64_l4_f{f}{k}_seed{s}" for s in (0, 1) for f in (2048, 512) for k in ("_k8", "", "_k16")]
    order = list(runs.by_arm({name: name for name in names}))
    assert order == [Arm(64, 4, f, k) for f in (512, 2048) for k in (None, 8, 16)]


def test_shares_are_those_held_out_and_the_last_ones_of_training(ended):
    record = ended("li2022/t5_no_skip", lambda arm, layer, t: 0.5 - 0.04 * int(layer[-1]) - 0.1 * t)[0]
    np.testing.assert_allclose(runs.shares(record, "encoder"), 0.4 - 0.04 * np.arange(8))
    # The mean of the last five of twenty records: t of 15/19 to 1.
    np.testing.assert_allclose(runs.trained_shares(record, "decoder"), 0.5 - 0.04 * np.arange(8) - 0.1 * 17 / 19)
    assert runs.train_accuracy(record) == pytest.approx(0.51)


@pytest.fixture
def accuracy_claim():
    return lambda arms: runs.seed_claim(
        arms,
        lambda a, b: runs.shares(b, "encoder").mean() - runs.shares(a, "encoder").mean(),
        id="x",
        where="",
        statement="",
        effect="",
        side="above",
        threshold=0.0,
    )


def test_networks_that_learnt_nothing_are_not_judged(ended, accuracy_claim):
    arms = (Arm(64, 8, 512), Arm(64, 8, 512, None, "encoder_2"))
    share = lambda arm, layer, t: 0.5 if arm.without is None else 0.6
    assert judge(accuracy_claim(arms), ended("li2022/t5_no_skip", share)).verdict == "reproduced"


def test_that_is_said(ended, accuracy_claim):
    arms = (Arm(64, 8, 512), Arm(64, 8, 512, None, "encoder_2"))
    dull = ended("li2022/t5_no_skip", lambda *_: 0.5, accuracy=lambda arm, seed: 0.1)
    found = judge(accuracy_claim(arms), dull)
    assert found.verdict == "not testable"
    assert "predicts only 0.10" in found.measured.failed


def test_an_arm_that_was_not_run_is_named(ended, accuracy_claim):
    records = ended("li2022/t5_no_skip", lambda *_: 0.5)
    found = judge(accuracy_claim((Arm(64, 8, 512), Arm(64, 9, 512))), records)
    assert found.measured.failed == "no run of d_model 64, 9 layers, d_ff 512"


def test_a_diverged_run_is_no_evidence(ended, accuracy_claim):
    broken = "t5_text_d64_l8_f512_no_encoder_2_seed1"
    records = ended("li2022/t5_no_skip", lambda *_: 0.5, broken=(broken,))
    (gone,) = [r for r in records if r.config.name == broken]
    assert np.isnan(runs.shares(gone, "encoder")).all()
    arms = (Arm(64, 8, 512), Arm(64, 8, 512, None, "encoder_2"))
    assert judge(accuracy_claim(arms), records).verdict == "undecided"
