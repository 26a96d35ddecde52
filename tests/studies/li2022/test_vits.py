import numpy as np
import pytest

from launch.cli import load_study_config
from sparsity.studies.li2022 import vits
from sparsity.studies.li2022.vits import IMAGES, INFINITE, Arm, between, by_arm, end, held_out, over_arms, start
from sparsity.studies.runner import expand, run_directory

BASE = Arm(64, 4, 512)
STUDIES = ("li2022/vit_prevalence", "li2022/vit_causes", "li2022/vit_top_k", "li2022/penalties")
as_it_is = lambda arm, seed: {}


@pytest.mark.parametrize(
    ("study", "arms", "seeds"),
    [
        ("li2022/vit_prevalence", {Arm(32, 2, 256), BASE, BASE._replace(examples=126), Arm(96, 6, 768)}, 3),
        (
            "li2022/vit_causes",
            {BASE, BASE._replace(data=IMAGES), BASE._replace(data=INFINITE)}
            | {BASE._replace(noise=p) for p in (0.5, 0.7, 1.0)},
            3,
        ),
        ("li2022/vit_top_k", {BASE} | {BASE._replace(k=k) for k in (5, 11, 21, 43, 85, 171)}, 5),
    ],
)
def test_arms_are_read_from_the_configs(vits_ended, study, arms, seeds):
    found = by_arm(vits_ended(study, as_it_is))
    assert set(found) == arms
    assert {tuple(of_seed) for of_seed in found.values()} == {tuple(range(seeds))}


def test_arms_are_the_same_in_records_and_in_what_figures_are_drawn_of(vits_ended, views):
    records = vits_ended("li2022/penalties", as_it_is)
    assert list(by_arm(records)) == list(by_arm(views(records).values()))


def test_runs_that_table_1_has_too_are_done_once(tmp_path):
    """The same directory: the same name and the same config."""
    of = lambda study: {
        run_directory(tmp_path, c).name.rsplit("-", 1)[0]: run_directory(tmp_path, c)
        for c in expand(load_study_config(study).sweep, "embedded")
    }
    table_1 = of("li2022/table1")
    shared = {study: {name for name, at in of(study).items() if table_1.get(name) == at} for study in STUDIES}
    plain = {f"vit_digits_noise0_seed{seed}" for seed in range(5)}
    assert shared["li2022/vit_prevalence"] == shared["li2022/vit_causes"] == set(sorted(plain)[:3])
    assert shared["li2022/vit_top_k"] == plain | {
        f"vit_digits_k{k}_noise0_seed{s}" for k in (11, 21, 43) for s in range(5)
    }
    noisy = {f"vit_digits_noise{noise}_seed{seed}" for noise in (0.4, 0.8) for seed in range(5)}
    assert shared["li2022/penalties"] == plain | noisy


def test_layers_stand_for_those_of_the_paper_around_their_depth():
    twelve = np.arange(12)
    assert list(between(twelve, 0, 4 / 12)) == [0, 1, 2, 3]
    assert list(between(twelve, 5 / 12, 1)) == [5, 6, 7, 8, 9, 10, 11]
    four = np.arange(4)
    assert [list(between(four, *ends)) for ends in ((0, 5 / 12), (5 / 12, 1), (0.75, 1))] == [[0, 1], [2, 3], [3]]


def test_shares_are_those_of_the_first_and_last_step_and_held_out(vits_ended):
    how = lambda arm, seed: {"share": lambda i, t: 0.5 - 0.1 * i * t, "held_out": lambda i: 0.3 + 0.01 * i}
    record = vits_ended("li2022/vit_causes", how)[0]
    np.testing.assert_allclose(start(record), 0.5)
    np.testing.assert_allclose(end(record), [0.5, 0.4, 0.3, 0.2])
    np.testing.assert_allclose(held_out(record), [0.3, 0.31, 0.32, 0.33])


gap = lambda a, b: end(b).mean() - end(a).mean()


def test_an_effect_has_a_replicate_a_seed_and_a_diverged_run_is_no_evidence(vits_ended):
    how = lambda arm, seed: {"share": lambda i, t: 0.5 + (0.1 + 0.01 * seed) * t * bool(arm.noise)}
    arms = (BASE, BASE._replace(noise=0.7))
    found = over_arms(vits_ended("li2022/vit_causes", how), arms, gap)
    assert (found.value, found.n) == (pytest.approx(0.11), 3)
    broken = vits_ended("li2022/vit_causes", how, broken=("vit_digits_noise0.7_seed1",))
    assert np.isnan(over_arms(broken, arms, gap).value)


def test_networks_that_learnt_nothing_or_were_not_run_are_not_judged(vits_ended):
    dull = vits_ended("li2022/vit_causes", lambda arm, seed: {"accuracy": 0.4})
    assert "has not learnt" in over_arms(dull, (BASE, BASE._replace(noise=0.7)), gap).failed
    arms = (BASE, BASE._replace(noise=0.7))
    second = vits_ended("li2022/vit_causes", lambda arm, seed: {"accuracy": 0.4 if arm.noise else 0.9})
    assert over_arms(second, arms, gap).failed is None
    assert over_arms(second, arms, gap, learnt=arms).failed == (
        "d_model 64, 4 layers, d_ff 512, 70% of the labels random: has not learnt, its test accuracy is below 0.5"
    )
    found = over_arms(vits_ended("li2022/vit_causes", as_it_is), (BASE, BASE._replace(noise=0.3)), gap)
    assert found.failed == "no run of d_model 64, 4 layers, d_ff 512, 30% of the labels random"


def test_arms_are_described_by_what_is_unusual():
    assert vits.describe(BASE._replace(data=INFINITE)).endswith("d_ff 512, infinite data")
    arm = BASE._replace(examples=126, k=21, penalty="l1", weight=1e-5)
    assert vits.describe(arm) == "d_model 64, 4 layers, d_ff 512, 126 examples, k 21, L1 of weight 1e-05"
