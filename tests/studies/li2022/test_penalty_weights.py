import math

import pytest

from launch.cli import load_study_config
from sparsity.studies.li2022.penalty_weights import Point, grid, of_plain, plain_arm, point, printed, weight_at
from sparsity.studies.li2022.vits import Arm

STUDY = "li2022/penalties"
BASE = Arm(64, 4, 512)
WEIGHTS = load_study_config(STUDY).WEIGHTS


def test_the_papers_tables_give_the_densities_to_match():
    """Over the plain network's 5.67%: .80, .59, .28 and .92, .78, .54."""
    found = {key: round(row["of plain"], 2) for key, row in printed().items()}
    assert found == {
        ("", 0.0): 1.0,
        ("l1", 0.01): 0.8,
        ("l1", 0.1): 0.59,
        ("l1", 1.0): 0.28,
        ("l2", 0.01): 0.92,
        ("l2", 0.1): 0.78,
        ("l2", 1.0): 0.54,
    }
    assert printed()["l1", 0.01]["gaussian"] == pytest.approx(0.4278)
    assert printed()["", 0.0]["ece"] == pytest.approx(0.0842)


def test_a_weight_is_found_on_a_power_law_between_its_neighbours():
    ratios = {w: 0.4 * (1e-4 / w) ** 0.3 for w in (1e-5, 1e-4, 1e-3)}
    for target in (0.7, 0.4, 0.25):
        assert weight_at(ratios, target) == pytest.approx(1e-4 * (0.4 / target) ** (1 / 0.3), rel=1e-5)
    assert weight_at({1e-5: 0.8, 1e-3: 0.2}, 0.8) == 1e-5


@pytest.mark.parametrize(
    "ratios",
    [
        {},
        {1e-5: 0.5},
        {1e-5: 0.45, 1e-4: 0.2},  # not as dense
        {1e-5: 0.9, 1e-4: 0.6},  # not as sparse
        {1e-5: 0.9, 1e-4: 0.2, 1e-3: 0.4},  # not falling
        {1e-5: 0.9, 1e-4: math.nan},
        {1e-5: 0.9, 1e-4: 0.0},
    ],
)
def test_a_density_that_was_not_reached_has_no_weight(ratios):
    assert weight_at(ratios, 0.5) is None


def falling(arm, seed):
    """.4 of the units nonzero in the plain network; .9, .6 and .3 of that with a penalty."""
    ratio = 1.0 if arm.penalty is None else 0.9 - 0.3 * WEIGHTS[arm.penalty].index(arm.weight)
    return {"held_out": lambda i: 0.4 * ratio * (1 + 0.1 * (i - 1.5)) * (1 + 0.01 * (seed - 2))}


@pytest.fixture
def records(vits_ended):
    return vits_ended(STUDY, falling)


def test_arms_are_found_by_penalty_and_noise(records):
    assert plain_arm(records) == BASE
    assert plain_arm(records, 0.8) == BASE._replace(noise=0.8)
    assert plain_arm(records, 0.3) is None
    for penalty in ("l1", "l2"):
        arms = grid(records, penalty)
        assert list(arms) == sorted(arms)
        assert {arm._replace(weight=0.0) for arm in arms.values()} == {BASE._replace(penalty=penalty)}
    (noisy,) = grid(records, "l1", 0.4).values()
    assert noisy.noise == 0.4


def test_densities_are_of_the_plain_network_s(records):
    for penalty in ("l1", "l2"):
        assert list(of_plain(records, penalty).values()) == pytest.approx([0.9, 0.6, 0.3])


def test_a_density_has_its_two_neighbours(records):
    low, high = list(grid(records, "l1").values())[:2]
    found = point(records, "l1", math.sqrt(0.9 * 0.6))
    assert found == Point(low, high, pytest.approx(math.sqrt(low.weight * high.weight), rel=1e-5))
    assert found.between(1.0, 3.0) == pytest.approx(2.0, rel=1e-5)
    assert point(records, "l1", 0.2) is None


def test_without_a_plain_network_or_without_its_nonzeros_there_is_no_density(records, vits_ended):
    assert point([r for r in records if r.config.penalty], "l1", 0.5) is None
    dead = vits_ended(STUDY, lambda arm, seed: {"held_out": lambda i: 0.0})
    assert point(dead, "l1", 0.5) is None
    gone = vits_ended(STUDY, falling, broken=tuple(f"vit_digits_noise0_seed{seed}" for seed in range(5)))
    assert point(gone, "l1", 0.5) is None
