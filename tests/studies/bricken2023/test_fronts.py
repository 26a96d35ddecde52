import math

import pytest

from sparsity.evals.result import Measure
from sparsity.run import Outcome
from sparsity.studies.bricken2023.fronts import Front, method, point
from sparsity.studies.draw import RunView


def run(share, loss):
    measures = (Measure("nonzero.hidden", share, None, 1, ""), Measure("mse", loss, None, 1, ""))
    return RunView(Outcome("finished", 1, measures), [], {})


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ae400_photos_gaussian0_seed2", ("noise", 0.0, 2)),
        ("ae400_photos_gaussian0.05_seed0_annealed", ("noise", 0.05, 0)),
        ("ae400_photos_gaussian0_seed0_l1_0.0001", ("l1", 1e-4, 0)),
        ("ae10000_cifar10_gaussian0_seed0_l1_1e-08_unit_norm", ("l1_unit_norm", 1e-8, 0)),
        ("ae10000_cifar10_gaussian0_seed0_top_k_0.0003", ("top_k", 3e-4, 0)),
        ("ae400_photos_gaussian0.3_seed1_annealed_l1_3e-05", ("noise + l1", 3e-5, 1)),
        ("ae400_photos_gaussian0.3_seed1_annealed_clipped_2", ("noise + clipped", 2.0, 1)),
    ],
)
def test_methods_settings_and_seeds_are_read_from_names(name, expected):
    assert method(name) == expected


def test_the_front_is_what_no_run_beats_in_both():
    nan = math.nan
    front = Front([(0.5, 1e-3), (0.05, 1e-2), (0.1, 2e-2), (0.6, 2e-3), (0.0, 1e-9), (nan, 1.0), (0.4, nan)])
    assert front.points == [(0.05, 1e-2), (0.5, 1e-3)]


def test_between_its_points_the_front_is_a_straight_line_of_the_logarithms():
    front = Front([(0.01, 1e-2), (1.0, 1e-4)])
    assert front.log_loss(0.1) == pytest.approx(-3)
    assert front.excess(run(0.1, 2e-3)) == pytest.approx(math.log10(2))


def test_beyond_its_points_the_front_is_known_on_the_dense_side_only():
    front = Front([(0.01, 1e-2), (0.5, 1e-4)])
    assert front.log_loss(0.9) == pytest.approx(-4)
    for share in (0.009, 0.0, math.nan):
        assert math.isnan(front.log_loss(share))
    assert math.isnan(Front([]).log_loss(0.5))


def test_a_diverged_run_is_nowhere():
    diverged = RunView(Outcome("diverged", 3), [], {})
    assert all(map(math.isnan, point(diverged)))
    assert math.isnan(Front([(0.1, 1e-2)]).excess(diverged))
