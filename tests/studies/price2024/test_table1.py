import numpy as np
import pytest

from sparsity.studies.price2024 import table1
from sparsity.studies.price2024.maps import quiet_solve

TABLE1 = table1.TABLE1


def test_the_printed_formulas_are_those_of_the_maps_to_the_accuracy_of_the_differences():
    effect = table1.disagreement([])
    assert effect.n == len(table1.table([])) * 5 == 120
    # Central differences with steps of q / 1000: truncation 1e-6 of V'''' and rounding 1e-16 / 1e-6.
    assert 0 < effect.value < 1e-5


def test_a_wrong_formula_is_noticed(monkeypatch):
    table1.table_1.cache_clear()
    monkeypatch.setattr(table1, "printed_curvature", lambda *args: 0.1)
    assert table1.disagreement([]).value > 1e-2
    table1.table_1.cache_clear()


def test_a_linear_network_has_the_spectrum_of_a_product_of_gaussian_matrices(monkeypatch):
    # tau = 0, two-sided: the identity. L Gaussian layers: variance L (Fuss-Catalan numbers), less order L / N.
    monkeypatch.setattr(table1, "WIDTH", 300)
    edge = quiet_solve(0.0, two_sided=True)
    found = np.mean([table1.simulated_jacobian(edge, True, seed) for seed in range(3)], axis=0)
    np.testing.assert_allclose(found, [1.0, table1.DEPTH], rtol=0.1)


def test_relu_networks_spread_as_predicted(monkeypatch):
    monkeypatch.setattr(table1, "WIDTH", 400)
    edge = quiet_solve(0.5, two_sided=False)
    variance = np.mean([table1.simulated_jacobian(edge, False, seed)[1] for seed in range(4)])
    assert variance == pytest.approx(table1.jacobian_variance(edge.sigma_w2, table1.DEPTH), rel=0.15)


def test_every_figure_is_drawn(monkeypatch):
    monkeypatch.setattr(table1, "WIDTH", 40)
    table1.jacobians.cache_clear()
    for figure in TABLE1.figures.values():
        assert figure({}).png()
    assert len(TABLE1.findings([])) == 2
    table1.jacobians.cache_clear()
