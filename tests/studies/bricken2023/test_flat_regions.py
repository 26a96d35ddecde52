import numpy as np
import pytest

from sparsity.layers.sparsify import HISTOGRAM_EDGES
from sparsity.studies.bricken2023 import flat_regions
from sparsity.studies.judge import judge

STUDY = flat_regions.FLAT_REGIONS
CLAIMS = {c.id: c for c in STUDY.claims}
RISING = dict(zip(flat_regions.SIGMAS, (0.5, 0.6, 0.9, 0.95), strict=True))


@pytest.fixture
def ended(made):
    """ended(flat): the study's runs, their flat shares by variant and sigma; a thousandth more a seed and sigma."""

    def records(flat):
        def measures(variant, sigma, seed):
            values = {flat_regions.FLAT_SHARE: flat.get(variant, RISING)[sigma] + 1e-3 * seed * sigma}
            return values | {flat_regions.DENSITY: 0.1, "explained": 0.9}

        def lines(variant, sigma, seed):
            yield {"kind": "sparsity", "step": 0, "layers": {"hidden": {"histogram": [1.0] * 66}}}

        return made("bricken2023/flat_regions", measures, lines)

    return records


FALLING = dict(zip(flat_regions.SIGMAS, (0.9, 0.6, 0.5, 0.4), strict=True))
DIPPING = RISING | {3.0: 0.7}
VERDICTS = [("", RISING, "reproduced"), ("", FALLING, "contradicted"), ("", DIPPING, "reproduced")]
VERDICTS += [(".monotone", RISING, "reproduced"), (".monotone", DIPPING, "contradicted")]


@pytest.mark.parametrize("activation", flat_regions.VARIANTS)
@pytest.mark.parametrize(("suffix", "flat", "verdict"), VERDICTS)
def test_the_verdict_on_made_up_runs_of_one_activation(ended, activation, suffix, flat, verdict):
    variants = flat_regions.VARIANTS
    others = {v: FALLING if verdict == "reproduced" else RISING for a, v in variants.items() if a != activation}
    records = ended(others | {variants[activation]: flat})
    assert judge(CLAIMS[f"B12.{activation}{suffix}"], records).verdict == verdict


def test_without_its_runs_a_claim_is_not_testable(ended):
    records = [r for r in ended({}) if not r.config.name.endswith("_sat")]
    verdicts = {id: judge(claim, records).verdict for id, claim in CLAIMS.items()}
    assert {id for id, verdict in verdicts.items() if verdict == "not testable"} == {"B12.sat", "B12.sat.monotone"}


def test_the_table_has_a_line_an_activation_and_sigma(ended):
    rows = flat_regions.table(ended({}))
    assert len(rows) == 4 * 4
    (row,) = [r for r in rows if (r["activation"], r["sigma"]) == ("gelu", 0.8)]
    assert (row["n"], row["flat"], row["z mean"]) == (3, pytest.approx(0.9, abs=2e-3), None)
    assert "sat: flat pre-activations by sigma: 50.0% at 0" in flat_regions.findings(ended({}))[3]


def test_what_is_flat_is_shaded(ended, views):
    drawing = flat_regions.histograms(views(ended({})))
    for axis in drawing.figure.axes:
        (shade,) = axis.collections
        x = np.concatenate([path.vertices[:, 0] for path in shade.get_paths()])
        low, high = HISTOGRAM_EDGES[0], HISTOGRAM_EDGES[-1]
        left = {"relu": 0.0, "gelu": -2.0, "reflected_relu": None, "sat": -0.5}[axis.get_title()]
        right = {"relu": None, "gelu": None, "reflected_relu": 0.0, "sat": 0.5}[axis.get_title()]
        assert (low in x, high in x) == (left is not None, right is not None)
        if axis.get_title() != "gelu":  # its slope is small about its minimum too
            edges = [x[x < 0.1].max()] if left is not None and right is None else []
            edges += [x[x > -0.1].min()] if right is not None and left is None else []
            edges += [x[x < 0].max(), x[x > 0].min()] if left is not None and right is not None else []
            assert edges == pytest.approx([e for e in (left, right) if e is not None], abs=0.02)


def test_shares_by_sigma_are_drawn(ended, views):
    drawing = flat_regions.flat_by_sigma(views(ended({})))
    assert len(drawing.figure.axes[0].lines) == 4 * (4 + 1)
