import numpy as np
import pytest

from sparsity.studies.judge import judge
from sparsity.studies.li2022.mixer import MIXER_STUDY, by_network, early, findings, shares, table
from sparsity.studies.records import named

STUDY = "li2022/mixer"
VIT = (0.05, 0.06, 0.06, 0.08)
CHANNEL = (0.055, 0.09, 0.1, 0.08)


def network(token, channel, vit, **other):
    """Shares of the layers at the end, from one half, by kind."""

    def how(config):
        at = lambda layer: int(layer.split("/")[0].removeprefix("block_"))
        end = lambda layer: (token if "token" in layer else channel if "channel" in layer else vit)[at(layer)]
        return {"share": lambda layer, t: 0.5 + t * (end(layer) - 0.5)} | other

    return how


AS_IN_THE_PAPER = network((0.55, 0.6, 0.6, 0.7), CHANNEL, VIT)


def test_networks_as_the_paper_says_reproduce_every_claim(ends, verdicts):
    records = ends(STUDY, AS_IN_THE_PAPER)
    assert len(records) == 6
    assert set(verdicts(MIXER_STUDY, records).values()) == {"reproduced"}


def test_networks_of_the_opposite_kind_contradict_every_claim(ends, verdicts):
    """Sparse token MLPs; channel MLPs that become denser, the first far from the ViT's, the later sparser than its."""
    how = network((0.1, 0.1, 0.1, 0.1), (0.6, 0.51, 0.51, 0.51), (0.3, 0.7, 0.7, 0.7))
    assert set(verdicts(MIXER_STUDY, ends(STUDY, how)).values()) == {"contradicted"}


def test_token_mlps_between_channel_mlps_and_a_half_are_denser_but_not_dense(ends, verdicts):
    found = verdicts(MIXER_STUDY, ends(STUDY, network((0.3, 0.3, 0.3, 0.3), CHANNEL, VIT)))
    assert (found["L13.token"], found["L13.apart"]) == ("contradicted", "reproduced")


def test_one_sparse_token_mlp_contradicts_that_they_are_dense_whatever_their_mean(ends, verdicts):
    found = verdicts(MIXER_STUDY, ends(STUDY, network((0.45, 0.9, 0.9, 0.9), CHANNEL, VIT)))
    assert (found.pop("L13.token"), set(found.values())) == ("contradicted", {"reproduced"})


def test_one_channel_mlp_that_rises_contradicts_the_fall(ends, verdicts):
    found = verdicts(MIXER_STUDY, ends(STUDY, network((0.6,) * 4, (0.05, 0.06, 0.52, 0.05), VIT)))
    assert found["L13.falls"] == "contradicted"


def test_a_mixer_that_has_not_learnt_is_not_judged_nor_without_a_vit_compared(ends, verdicts):
    dull = ends(STUDY, network((0.6,) * 4, CHANNEL, VIT, accuracy=0.2))
    found = [judge(claim, dull) for claim in MIXER_STUDY.claims]
    assert {j.verdict for j in found} == {"not testable"}
    assert "only 0.20" in found[0].measured.failed
    alone = [r for r in dull if r.config.name.startswith("mixer")]
    assert judge(MIXER_STUDY.claims[-1], []).verdict == judge(MIXER_STUDY.claims[-1], alone).verdict == "not testable"


def test_a_diverged_mixer_is_no_evidence_and_no_row(ends, verdicts):
    gone = tuple(f"mixer_digits_seed{seed}" for seed in range(3))
    records = ends(STUDY, AS_IN_THE_PAPER, broken=gone)
    assert set(verdicts(MIXER_STUDY, records).values()) == {"undecided"}
    assert table(records) == []
    assert findings(records) == ["No Mixer has finished."]
    (mixer,) = [r for r in records if r.config.name == gone[0]]
    assert np.isnan(shares(mixer)).all()


def test_the_table_has_both_kinds_and_the_vit_side_by_side(ends):
    rows = table(ends(STUDY, AS_IN_THE_PAPER))
    assert [row["layer"] for row in rows] == [0, 1, 2, 3]
    one = rows[1]
    assert (one["token"], one["channel"], one["vit"]) == pytest.approx((0.6001, 0.0901, 0.0601))
    assert one["token, start"] == pytest.approx(0.5001)
    assert (one["n"], one["accuracy"]) == (3, pytest.approx(0.9001))


def test_four_of_the_papers_twelve_layers_are_the_first():
    assert [early(n) for n in (12, 4, 1)] == [4, 1, 1]


def test_figures_draw_three_curves(ends, views):
    runs = views(ends(STUDY, AS_IN_THE_PAPER))
    assert list(by_network(runs)) == ["mixer", "vit"]
    figures = {title: figure(runs).figure for title, figure in MIXER_STUDY.figures.items()}
    (axis,) = figures["Nonzeros by layer"].axes
    means = {line.get_label(): line.get_ydata() for line in axis.lines if line.get_linestyle() == "-"}
    assert list(means) == ["token MLPs", "channel MLPs", "ViT"]
    np.testing.assert_allclose(means["channel MLPs"], 100 * (np.array(CHANNEL) + 1e-4))
    token, channel = figures["Nonzeros by step"].axes
    assert len(token.lines) == len(channel.lines) == 4
    np.testing.assert_allclose(channel.lines[0].get_ydata()[[0, -1]], [50, 5.5])


def test_findings_name_both_kinds(ends):
    (said,) = findings(ends(STUDY, AS_IN_THE_PAPER))
    assert "Token MLPs: nonzero 50.0% at the start, 61.3% on held-out images" in said


def test_runs_are_told_apart_by_their_networks(ends):
    assert {name: len(s) for name, s in by_network(named(ends(STUDY, AS_IN_THE_PAPER))).items()} == {
        "mixer": 3,
        "vit": 3,
    }
