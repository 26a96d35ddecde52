import numpy as np
import pytest

from sparsity.studies.judge import judge
from sparsity.studies.li2022.bert import BERT, findings, pre_activation_means, table

STUDY = "li2022/bert"


def as_in_the_paper(config):
    """From one half to 5%, 6% in the last layer; pre-activations from 0 to -1."""
    last = f"block_{config.model.layers - 1}"
    return {"share": lambda layer, t: 0.5 - (0.44 if layer == last else 0.45) * t, "z": lambda layer, t: -t}


def opposite(config):
    """Denser and higher with time, from a mean that is not 0 and above it."""
    return {"share": lambda layer, t: 0.3 + 0.3 * t, "z": lambda layer, t: 0.3 + 0.3 * t}


def test_networks_as_the_paper_says_reproduce_every_claim(ends, verdicts):
    assert set(verdicts(BERT, ends(STUDY, as_in_the_paper)).values()) == {"reproduced"}


def test_networks_of_the_opposite_kind_contradict_every_claim(ends, verdicts):
    assert set(verdicts(BERT, ends(STUDY, opposite)).values()) == {"contradicted"}


def test_a_small_fall_is_a_fall_but_not_to_ten_percent(ends, verdicts):
    slight = lambda config: {"share": lambda layer, t: 0.5 - 0.2 * t, "z": lambda layer, t: -0.1 * t}
    found = verdicts(BERT, ends(STUDY, slight))
    assert found.pop("L12.size") == "contradicted"
    assert set(found.values()) == {"reproduced"}


def test_one_layer_that_rises_contradicts_what_is_said_of_every_layer(ends, verdicts):
    rises = lambda layer, t, usual: 0.1 + 0.02 * t if layer == "block_2" else usual
    how = lambda config: {
        "share": lambda layer, t: rises(layer, t, 0.5 - 0.45 * t),
        "z": lambda layer, t: rises(layer, t, -t),
    }
    found = verdicts(BERT, ends(STUDY, how))
    assert {id for id, verdict in found.items() if verdict == "reproduced"} == {"L12.trend"}


def test_a_mean_that_falls_and_stays_above_zero_does_not_become_negative(ends, verdicts):
    above = lambda config: as_in_the_paper(config) | {"z": lambda layer, t: 0.04 - 0.03 * t}
    found = verdicts(BERT, ends(STUDY, above))
    assert found.pop("L12.shift") == "contradicted"
    assert set(found.values()) == {"reproduced"}


def test_networks_that_fill_in_spaces_are_not_judged(ends):
    """18% of the text are spaces: with a copy of the bytes that were left they are a quarter of what is asked for."""
    records = ends(STUDY, lambda config: as_in_the_paper(config) | {"accuracy": 0.26})
    found = [judge(claim, records) for claim in BERT.claims]
    assert {j.verdict for j in found} == {"not testable"}
    assert "predict only 0.26" in found[0].measured.failed


def test_without_runs_nothing_can_be_judged_and_a_diverged_one_is_no_evidence(ends, verdicts):
    assert set(verdicts(BERT, []).values()) == {"not testable"}
    records = ends(STUDY, as_in_the_paper, broken=("bert_text_seed1",))
    assert set(verdicts(BERT, records).values()) == {"undecided"}
    assert {row["n"] for row in table(records)} == {2}


def test_the_table_has_a_row_for_each_layer(ends):
    rows = table(ends(STUDY, as_in_the_paper))
    assert [row["layer"] for row in rows] == [0, 1, 2, 3]
    assert rows[3]["end"] == rows[3]["held-out"] == pytest.approx(0.06 + 1e-4)
    assert (rows[0]["z start"], rows[0]["z end"]) == pytest.approx((0, -1))
    assert rows[0]["se"] == pytest.approx(1e-4 / 3**0.5)


def test_means_are_by_record_and_layer_and_finer_than_the_histograms_bins(ends):
    record = ends(STUDY, lambda config: as_in_the_paper(config) | {"z": lambda layer, t: 0.01 * int(layer[-1]) + t})[0]
    expected = np.linspace(0, 1, 41)[:, None] + 0.01 * np.arange(4)
    np.testing.assert_allclose(pre_activation_means(record), expected)


def test_figures_show_every_layer_and_both_ends(ends, views):
    runs = views(ends(STUDY, as_in_the_paper))
    figures = {title: figure(runs).figure for title, figure in BERT.figures.items()}
    (axis,) = figures["Nonzeros by step"].axes
    assert [line.get_label() for line in axis.lines[:4]] == [f"block_{i}" for i in range(4)]
    np.testing.assert_allclose(axis.lines[0].get_ydata()[[0, -1]], [50, 5])
    (means,) = figures["Their mean by step"].axes
    np.testing.assert_allclose(means.lines[0].get_ydata()[[0, -1]], [0, -1], atol=1e-12)
    assert len(figures["Pre-activations"].axes) == 4


def test_findings_are_a_sentence_a_layer(ends):
    said = findings(ends(STUDY, as_in_the_paper))
    assert len(said) == 4
    assert "layer 3: nonzero 50.0% at the start, 6.0% at the end (the paper: below 10%)" in said[3]
    assert findings([]) == []
