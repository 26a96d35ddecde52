import numpy as np
import pytest

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
    np.testing.assert_allclose(runs.trained_shares(record, "decoder"), 0.4 - 0.04 * np.arange(8))
    assert runs.train_accuracy(record) == pytest.approx(0.51)


PAIR = (Arm(64, 8, 512), Arm(64, 8, 512, None, "encoder_2"))
gap = lambda a, b: runs.shares(b, "encoder").mean() - runs.shares(a, "encoder").mean()


def test_an_effect_over_arms_has_a_replicate_a_seed(ended):
    effect = runs.over_arms(ended("li2022/t5_no_skip", lambda arm, *_: 0.6 if arm.without else 0.5), PAIR, gap)
    assert (effect.value, effect.n) == (pytest.approx(0.1), 3)


def test_networks_that_learnt_no_more_than_where_a_target_stands_are_not_judged(ended):
    """Knowing its place alone predicts 30% of the embedded text's targets."""
    dull = ended("li2022/t5_no_skip", lambda *_: 0.5, accuracy=lambda arm, seed: 0.3)
    assert "predicts only 0.30" in runs.over_arms(dull, PAIR, gap).failed


def test_an_arm_that_was_not_run_is_named(ended):
    effect = runs.over_arms(ended("li2022/t5_no_skip", lambda *_: 0.5), (PAIR[0], Arm(64, 9, 512)), gap)
    assert effect.failed == "no run of d_model 64, 9 layers, d_ff 512"


def test_a_diverged_run_is_no_evidence(ended):
    broken = "t5_text_d64_l8_f512_no_encoder_2_seed1"
    records = ended("li2022/t5_no_skip", lambda *_: 0.5, broken=(broken,))
    (gone,) = [r for r in records if r.config.name == broken]
    assert np.isnan(runs.shares(gone, "encoder")).all()
    assert np.isnan(runs.over_arms(records, PAIR, gap).value)
