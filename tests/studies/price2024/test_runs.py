import math

import numpy as np
import pytest

from sparsity.studies.price2024 import runs


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("dnn30_digits_relu_seed0", ("relu", 0)),
        ("dnn30_digits_relu_tau_0.6_seed2", ("relu_tau_0.6", 2)),
        ("cnn20_digits_st_0.5_seed1", ("st_0.5", 1)),
        ("dnn100_digits_first15_crelu_0.85_0.9_seed4", ("crelu_0.85_0.9", 4)),
        ("dnn30_digits_cst_0.85_0.7_seed12_smooth_0.25", ("cst_0.85_0.7_smooth_0.25", 12)),
        ("vit_digits_crelu_0.85_0.7_seed0_edge_of_chaos", ("crelu_0.85_0.7_edge_of_chaos", 0)),
    ],
)
def test_rows_and_seeds_are_read_from_names(name, expected):
    assert runs.row_and_seed(name) == expected


def test_the_target_of_a_row_is_in_its_name():
    names = ("relu", "relu_tau_0.6", "st_0.5", "cst_0.7_0.9")
    assert [runs.target(row) for row in names] == [0.5, 0.6, 0.5, 0.7]


def test_a_diverged_run_counts_as_chance_and_has_no_sparsity(make):
    diverged = make("st_0.5", 0, None)
    assert runs.accuracy(diverged) == 0.1
    assert math.isnan(runs.sparsity(diverged))
    both = runs.summary([diverged, make("st_0.5", 1, 0.3, zeros=0.4)])
    assert both["accuracy"] == pytest.approx(0.2)
    assert (both["n"], both["diverged"], both["zeros"]) == (2, 1, pytest.approx(0.4))
    assert (both["std"], both["se"]) == (pytest.approx(0.2 / math.sqrt(2)), pytest.approx(0.1))


def test_growth_of_gradients():
    assert runs.growth(np.array([1.0, 4.0, 2.0])) == 4.0
    assert runs.growth(np.array([1.0, np.nan])) == math.inf
    assert runs.growth(np.array([1.0, 0.0])) == math.inf
