import math
import re

import numpy as np
import pytest

from sparsity.studies.li2022.runs import Arm, by_arm
from sparsity.studies.li2022.t5_prevalence import T5_PREVALENCE, ends_over_middle, findings, firing_rates, table
from sparsity.studies.records import named

STUDY = "li2022/t5_prevalence"
# Firing rates of 1,000 units as the paper has them: 93.5% under a tenth, 99% over a hundredth, a few at one half.
RATES = [0.005] * 9 + [0.05] * 926 + [0.2] * 60 + [0.5] * 5


def as_in_the_paper(arm, layer, t):
    """From one half to 3%, 4% in the first and the last layer."""
    at_an_end = int(layer.split("_")[1]) in (0, arm.layers - 1)
    return 0.5 * (1 - t) + (0.04 if at_an_end else 0.03) * t


def test_every_claim_is_reproduced_by_networks_that_are_as_the_paper_says(ended, verdicts):
    found = verdicts(T5_PREVALENCE, ended(STUDY, as_in_the_paper, rates=lambda arm: RATES))
    assert set(found.values()) == {"reproduced"}


def test_shares_that_have_settled_are_not_falling(ended, verdicts):
    settled = lambda arm, layer, t: as_in_the_paper(arm, layer, min(2 * t, 1))
    found = verdicts(T5_PREVALENCE, ended(STUDY, settled, rates=lambda arm: RATES))
    assert found.pop("L1.trend") == "undecided"
    assert set(found.values()) == {"reproduced"}


def test_held_out_text_that_is_denser_contradicts(ended, verdicts):
    """Twice as dense, in one layer of one size."""
    records = ended(STUDY, as_in_the_paper)
    for record in records:
        lines = record.files.metrics.read_text()
        if "_l6_" in record.config.name:
            last = re.findall(r'"encoder_3": {"nonzero": ([\d.]+)}', lines)[-1]
            record.files.metrics.write_text(lines.replace(last, str(float(last) / 2)))
    assert verdicts(T5_PREVALENCE, records)["L1.held_out"] == "contradicted"


def test_no_claim_is_reproduced_by_networks_of_the_opposite_kind(ended, verdicts):
    """From 40% up to 60%, most in the middle; units dead, or firing on half of the tokens."""
    middle = lambda arm, layer: int(layer.split("_")[1]) not in (0, arm.layers - 1)
    share = lambda arm, layer, t: 0.4 + 0.2 * t + (0.1 if middle(arm, layer) else 0)
    found = verdicts(T5_PREVALENCE, ended(STUDY, share, rates=lambda arm: [0.0] * 40 + [0.5] * 60))
    assert found.pop("L1.held_out") == "reproduced"  # they agree, at least
    assert found == dict.fromkeys(found, "contradicted")


def test_one_layer_of_one_size_that_rises_contradicts_the_fall(ended, verdicts):
    rises = lambda arm, layer: (arm.layers, layer) == (4, "decoder_1")
    share = lambda arm, layer, t: 0.5 + 0.1 * t if rises(arm, layer) else as_in_the_paper(arm, layer, t)
    assert verdicts(T5_PREVALENCE, ended(STUDY, share))["L1.falls"] == "contradicted"


def test_the_table_has_a_row_for_each_size_from_start_to_end(ended):
    rows = table(ended(STUDY, as_in_the_paper, rates=lambda arm: RATES))
    assert [(r["d_model"], r["layers"], r["d_ff"], r["n"]) for r in rows] == [
        (32, 2, 256, 3),
        (64, 4, 512, 3),
        (96, 6, 768, 3),
    ]
    base = rows[1]
    assert base["start"] == pytest.approx(0.5001)
    assert base["end"] == base["held-out"] == pytest.approx(0.035 + 1e-4)
    assert (base["rare"], base["dead"]) == (0.935, 0)
    assert base["train"] == pytest.approx(base["accuracy"] + 0.01)
    assert base["se"] == pytest.approx(1e-4 / 3**0.5)


def test_a_size_that_diverged_has_an_empty_row_and_no_verdict(ended, verdicts):
    gone = tuple(f"t5_text_d96_l6_f768_seed{seed}" for seed in range(3))
    records = ended(STUDY, as_in_the_paper, rates=lambda arm: RATES, broken=gone)
    row = table(records)[2]
    assert (row["n"], row["end"], row["accuracy"]) == (0, None, None)
    assert set(verdicts(T5_PREVALENCE, records).values()) == {"undecided"}


def test_ends_are_quarters_and_need_four_layers():
    assert ends_over_middle(np.array([1, 1, 0, 0, 0, 0, 2, 2.0])) == pytest.approx(1.5)
    assert math.isnan(ends_over_middle(np.ones(3)))


def test_without_a_run_nothing_can_be_judged(verdicts):
    assert set(verdicts(T5_PREVALENCE, []).values()) == {"not testable"}


def test_figures_show_layers_sizes_and_sorted_units(ended, views):
    runs = views(ended(STUDY, as_in_the_paper, rates=lambda arm: RATES))
    figures = {title: figure(runs).figure for title, figure in T5_PREVALENCE.figures.items()}
    encoder, _ = figures["Nonzeros by step"].axes
    assert encoder.get_ylim()[0] < 1.1  # the paper's sparsest layer
    assert [line.get_label() for line in encoder.lines[:4]] == [f"encoder_{i}" for i in range(4)]
    np.testing.assert_allclose(encoder.lines[1].get_ydata()[[0, -1]], [50, 3])
    sizes = figures["Nonzeros by layer and size"].axes[0]
    assert [len(line.get_xdata()) for line in sizes.lines if line.get_linestyle() == "-"] == [2, 4, 6]
    units = figures["Firing rates of units"].axes[0].lines[0].get_ydata()
    assert (np.diff(units) <= 0).all()
    held_out = figures["Training and held-out text"].axes[0]
    assert len(held_out.lines) == 2 * 9


def test_findings_name_the_papers_numbers(ended):
    said = findings(ended(STUDY, as_in_the_paper, rates=lambda arm: RATES))
    assert len(said) == 3
    assert "4 layers of d_ff 512: nonzero 50.0% at the start" in said[1]
    assert "93.5% (93.5%)" in said[1]


def test_rates_of_a_run_without_them_are_no_number(ended):
    run = next(iter(by_arm(named(ended(STUDY, as_in_the_paper, rates=lambda arm: RATES)))[Arm(64, 4, 512)].values()))
    assert len(firing_rates(run)) == 1000
    run.outcome.arrays.clear()
    assert np.isnan(firing_rates(run)).all()
