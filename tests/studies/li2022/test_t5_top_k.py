import pytest

from sparsity.studies.li2022.runs import Arm
from sparsity.studies.li2022.t5_top_k import T5_TOP_K, dense_and_top_k, enough, findings, table
from sparsity.studies.records import named

STUDY = "li2022/t5_top_k"
DENSE = Arm(64, 4, 512)
share = lambda arm, layer, t: 0.3 if arm.k is None else arm.k / arm.d_ff


def accuracy(**gaps):
    """.5 for the dense network, with Top-k less by `gaps[k]`."""
    return lambda arm, seed: 0.5 + 1e-4 * seed - gaps.get(f"k{arm.k}", 0.0) * (1 + 0.01 * seed)


def test_dense_networks_stand_with_their_k_in_order(ended):
    found = dense_and_top_k(named(ended(STUDY, share)))
    assert found == {DENSE: [DENSE._replace(k=k) for k in (8, 16, 32, 128)]}


def test_as_accurate_from_16_on_reproduces_whatever_8_does(ended, verdicts):
    """512 / 48 is 10.7."""
    found = verdicts(T5_TOP_K, ended(STUDY, share, accuracy(k8=0.2, k16=0.005)))
    assert found == dict.fromkeys(("L6.held_out", "L6.train"), "reproduced")


def test_a_loss_of_two_points_contradicts(ended, verdicts):
    assert set(verdicts(T5_TOP_K, ended(STUDY, share, accuracy(k16=0.02))).values()) == {"contradicted"}


def test_a_loss_at_one_large_k_contradicts(ended, verdicts):
    assert set(verdicts(T5_TOP_K, ended(STUDY, share, accuracy(k128=0.02))).values()) == {"contradicted"}


@pytest.mark.parametrize(("d_ff", "k"), [(512, 10 + 2 / 3), (3072, 64), (4096, 64), (16_384, 64)])
def test_enough_is_the_papers_64_for_its_own_networks(d_ff, k):
    assert enough(d_ff) == pytest.approx(k)


def test_the_table_has_differences_by_seed(ended):
    rows = {r["k"]: r for r in table(ended(STUDY, share, accuracy(k16=0.02)))}
    assert list(rows) == [None, 8, 16, 32, 128]
    assert rows[None]["difference"] is None
    assert rows[16]["difference"] == rows[16]["train difference"] == pytest.approx(-0.0202)
    assert rows[16]["se"] == pytest.approx(0.0002 / 3**0.5)
    assert rows[16]["k/d_ff"] == pytest.approx(1 / 32)
    assert rows[16]["nonzero"] == pytest.approx(1 / 32 + 1e-4)


def test_a_seed_that_diverged_is_left_out_of_the_table_and_leaves_no_verdict(ended, verdicts):
    records = ended(STUDY, share, broken=("t5_text_d64_l4_f512_k32_seed1",))
    assert {r["k"]: r["n"] for r in table(records)} == {None: 3, 8: 3, 16: 3, 32: 2, 128: 3}
    assert verdicts(T5_TOP_K, records)["L6.held_out"] == "undecided"


def test_without_runs_nothing_can_be_judged(verdicts):
    assert set(verdicts(T5_TOP_K, []).values()) == {"not testable"}


def test_the_figure_has_the_dense_line_and_the_curve(ended, views):
    (figure,) = T5_TOP_K.figures.values()
    _, held_out = figure(views(ended(STUDY, share, accuracy(k8=0.2)))).figure.axes
    (curve,) = [line for line in held_out.lines if line.get_label() == "d_model 64"]
    assert list(curve.get_xdata()) == [8, 16, 32, 128]
    assert curve.get_ydata()[0] == pytest.approx(30, abs=0.5)
    assert held_out.lines[0].get_ydata()[0] == pytest.approx(50, abs=0.1)


def test_findings_are_a_sentence_a_k(ended):
    said = findings(ended(STUDY, share, accuracy(k16=0.02)))
    assert len(said) == 4
    assert "k = 16 (3.1% of the units): held-out accuracy -2.02 points" in said[1]
