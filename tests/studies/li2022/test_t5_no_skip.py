import numpy as np
import pytest

from sparsity.studies.li2022.runs import Arm
from sparsity.studies.li2022.t5_no_skip import T5_NO_SKIP, changes, findings, table, with_and_without
from sparsity.studies.records import named

STUDY = "li2022/t5_no_skip"


def as_in_the_paper(arm, layer, t):
    """The layer without its connection stays at a half, the others end a twentieth higher."""
    usual = 0.5 - 0.3 * t
    return usual if arm.without is None else 0.5 if layer == arm.without else 1.05 * usual


def worse(arm, seed):
    return 0.5 + 0.001 * seed - (0.016 + 0.001 * seed if arm.without else 0)


def test_the_pair_is_found(ended):
    assert with_and_without(named(ended(STUDY, as_in_the_paper))) == (
        Arm(64, 8, 512),
        Arm(64, 8, 512, None, "encoder_2"),
    )
    assert with_and_without({}) is None


def test_networks_as_the_paper_says_reproduce_every_claim(ended, verdicts):
    assert set(verdicts(T5_NO_SKIP, ended(STUDY, as_in_the_paper, worse)).values()) == {"reproduced"}


def test_networks_of_the_opposite_kind_contradict_every_claim(ended, verdicts):
    """That layer keeps its course, others do not, and accuracy rises."""
    share = lambda arm, layer, t: (
        (0.5 - 0.3 * t) * (1 if arm.without in (None, layer) else 1.3) + (0.001 if layer == arm.without else 0)
    )
    better = lambda arm, seed: 1 - worse(arm, seed)
    assert set(verdicts(T5_NO_SKIP, ended(STUDY, share, better)).values()) == {"contradicted"}


def test_a_change_is_a_root_mean_square_of_decades_after_the_start(ended):
    records = ended(STUDY, as_in_the_paper)
    found = changes(records[0], records[1])
    assert found["encoder_0"] == pytest.approx(np.log10(1.05), rel=1e-3)
    t = np.linspace(0, 1, 20)[2:]
    assert found["encoder_2"] == pytest.approx(np.sqrt(np.mean(np.log10(0.5 / (0.5 - 0.3 * t)) ** 2)), rel=1e-3)


def test_the_table_has_a_row_for_each_layer_and_the_accuracies(ended):
    rows = {r["of"]: r for r in table(ended(STUDY, as_in_the_paper, worse))}
    assert list(rows)[:3] == ["encoder_0", "encoder_1", "encoder_2"]
    assert len(rows) == 18
    assert [name for name, row in rows.items() if row["removed"]] == ["encoder_2"]
    assert rows["encoder_2"]["without"] == pytest.approx(0.5001)
    assert rows["held-out accuracy"]["with"] - rows["held-out accuracy"]["without"] == pytest.approx(0.017)


def test_without_a_pair_nothing_can_be_judged(ended, verdicts):
    assert set(verdicts(T5_NO_SKIP, []).values()) == {"not testable"}
    alone = [r for r in ended(STUDY, as_in_the_paper) if "_no_" not in r.config.name]
    assert set(verdicts(T5_NO_SKIP, alone).values()) == {"not testable"}
    assert table(alone) == []
    assert findings(alone) == ["No pair of runs with and without a connection."]


def test_the_figure_has_an_axis_for_each_layer_the_changed_one_in_bold(ended, views):
    (figure,) = T5_NO_SKIP.figures.values()
    axes = figure(views(ended(STUDY, as_in_the_paper))).figure.axes
    assert [a.get_title() for a in axes][:2] == ["encoder_0", "encoder_1"]
    assert len(axes) == 16
    (bold,) = [a.get_title() for a in axes if a.title.get_fontweight() == "bold"]
    assert bold == "encoder_2"
    assert [line.get_label() for line in axes[2].lines] == ["with", "without"]


def test_a_layer_without_a_single_nonzero_is_no_evidence(ended, verdicts):
    """Its change has no logarithm, and is not passed over as the largest one."""
    share = lambda arm, layer, t: 0.0 if (layer == "decoder_5" and t > 0.5) else as_in_the_paper(arm, layer, t)
    assert verdicts(T5_NO_SKIP, ended(STUDY, share))["L15.most"] == "undecided"


def test_runs_that_diverged_leave_an_empty_figure(ended, views):
    gone = tuple(f"t5_text_d64_l8_f512_no_encoder_2_seed{seed}" for seed in range(3))
    (figure,) = T5_NO_SKIP.figures.values()
    (axis,) = figure(views(ended(STUDY, as_in_the_paper, broken=gone))).figure.axes
    assert not axis.lines


def test_findings_say_how_far_it_is_off(ended):
    first, second = findings(ended(STUDY, as_in_the_paper, worse))
    assert first.startswith("Without the connection around encoder_2 it ends with 50.0% nonzero instead of 20.0%")
    assert "48.4% instead of 50.1%" in second
