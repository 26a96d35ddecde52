import math

import numpy as np
import pytest

from sparsity.studies.judge import judge
from sparsity.studies.price2024 import stable_clip
from sparsity.theory.finite_width import sample_growth, stable_field

CLAIMS = {c.id: c for c in stable_clip.STABLE_CLIP.claims}


def test_drawing_every_weight_grows_gradients_as_drawing_their_effect_does():
    field, networks = stable_field(0.7, 0.9), 300
    drawn = stable_clip.growth_with_weights(field, 100, 15, networks, np.random.default_rng(0))
    effect = sample_growth(field, 100, 15, networks, np.random.default_rng(1))
    # Means of 300 networks each: three standard errors of their difference.
    error = math.sqrt((drawn.var(ddof=1) + effect.var(ddof=1)) / networks)
    assert drawn.mean() == pytest.approx(effect.mean(), abs=3 * error)
    assert (drawn >= 0).all()


def test_a_share_of_none_has_the_error_of_half_a_network():
    assert stable_clip.Share.of(np.zeros(400, bool), False).se == pytest.approx(math.sqrt(0.5 / 400) / 20, rel=1e-2)
    assert stable_clip.Share.of(np.array([True, False] * 50), False).se == pytest.approx(0.05)


def test_the_order_of_table_2_s_rows_is_judged_by_pairs(monkeypatch):
    assert judge(CLAIMS["S2"], []).verdict == "reproduced"
    rows = [dict(row) for row in stable_clip.rows_of_table_2()]
    assert len(rows) == 33
    best = max(rows, key=lambda row: row["accuracy, paper"])
    best["failure"] = 1.0  # as if a row that trained exploded in every network
    monkeypatch.setattr(stable_clip, "rows_of_table_2", lambda: tuple(rows))
    assert stable_clip.disorder(False).value > 0
    assert judge(CLAIMS["S2"], []).verdict == "contradicted"
