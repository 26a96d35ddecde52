import pytest

from sparsity.studies.li2022.vit_top_k import VIT_TOP_K, enough, findings, papers_share, table
from sparsity.studies.li2022.vits import Arm

STUDY = "li2022/vit_top_k"
BASE = Arm(64, 4, 512)


def losing(**losses):
    """.95 for the dense network, with Top-k less by `losses["k43"]`, on training batches too."""

    def how(arm, seed):
        loss = losses.get(f"k{arm.k}", 0.0) * (1 + 0.01 * seed)
        return {"accuracy": 0.95 + 1e-3 * seed - loss, "train": 0.98 + 1e-3 * seed - loss}

    return how


def test_as_accurate_from_43_on_reproduces_whatever_smaller_ones_do(vits_ended, verdicts):
    records = vits_ended(STUDY, losing(k5=0.3, k11=0.2, k21=0.1, k43=0.003))
    assert verdicts(VIT_TOP_K, records) == dict.fromkeys(("L6.test", "L6.train", "L6.larger"), "reproduced")


def test_a_loss_at_43_contradicts_that_it_is_enough(vits_ended, verdicts):
    found = verdicts(VIT_TOP_K, vits_ended(STUDY, losing(k43=0.02)))
    assert found == {"L6.test": "contradicted", "L6.train": "contradicted", "L6.larger": "reproduced"}


def test_a_loss_at_larger_ones_contradicts_those(vits_ended, verdicts):
    found = verdicts(VIT_TOP_K, vits_ended(STUDY, losing(k85=0.02, k171=0.02)))
    assert found == {"L6.test": "reproduced", "L6.train": "reproduced", "L6.larger": "contradicted"}


def test_a_loss_at_one_of_the_larger_ones_contradicts_any_larger(vits_ended, verdicts):
    """.015 at k = 171 alone, less than a point on average."""
    assert verdicts(VIT_TOP_K, vits_ended(STUDY, losing(k171=0.015)))["L6.larger"] == "contradicted"


def test_a_network_that_has_not_learnt_or_has_no_dense_one_beside_it_is_not_judged(vits_ended, verdicts):
    assert set(verdicts(VIT_TOP_K, []).values()) == {"not testable"}
    assert set(verdicts(VIT_TOP_K, vits_ended(STUDY, lambda arm, seed: {"accuracy": 0.3})).values()) == {"not testable"}
    records = [r for r in vits_ended(STUDY, losing()) if "_k" in r.config.name]
    assert set(verdicts(VIT_TOP_K, records).values()) == {"not testable"}
    assert table(records) == findings([]) == []


def test_a_seed_that_diverged_is_left_out_of_the_table_and_leaves_no_verdict(vits_ended, verdicts):
    records = vits_ended(STUDY, losing(), broken=("vit_digits_k43_noise0_seed1",))
    assert {r["k"]: r["n"] for r in table(records)} == {None: 5, 5: 5, 11: 5, 21: 5, 43: 4, 85: 5, 171: 5}
    assert verdicts(VIT_TOP_K, records) == {"L6.test": "undecided", "L6.train": "undecided", "L6.larger": "reproduced"}


def test_the_first_k_that_is_enough_is_the_papers_256_to_half_a_unit(vits_ended):
    assert [arm.k for arm in enough(vits_ended(STUDY, losing()))] == [43, 85, 171]
    assert [papers_share(BASE._replace(k=k)) for k in (5, 11, 21, 43, 85, 171)] == [30, 66, 126, 258, 510, 1026]


def test_the_table_has_differences_by_seed(vits_ended):
    rows = {r["k"]: r for r in table(vits_ended(STUDY, losing(k43=0.02)))}
    assert list(rows) == [None, 5, 11, 21, 43, 85, 171]
    assert rows[None]["difference"] is rows[None]["se"] is rows[None]["k of 3,072"] is None
    assert rows[43]["difference"] == rows[43]["train difference"] == pytest.approx(-0.0204)
    assert rows[43]["se"] == pytest.approx(2e-4 * 2.5**0.5 / 5**0.5)
    assert rows[43]["accuracy"] == pytest.approx(0.952 - 0.0204)


def test_the_figure_has_the_dense_line_and_the_curve(vits_ended, views):
    (figure,) = VIT_TOP_K.figures.values()
    _, test = figure(views(vits_ended(STUDY, losing(k5=0.2)))).figure.axes
    curve, dense = ([line for line in test.lines if line.get_label() == label] for label in ("Top-k", "dense"))
    assert list(curve[0].get_xdata()) == [5, 11, 21, 43, 85, 171]
    assert curve[0].get_ydata()[[0, -1]] == pytest.approx((74.8, 95.2))
    assert dense[0].get_ydata()[0] == pytest.approx(95.2)
    figure({})


def test_findings_are_a_sentence_a_k_with_the_papers_drop_at_its_own(vits_ended):
    said = findings(vits_ended(STUDY, losing(k43=0.02)))
    assert len(said) == 6
    assert "k = 43 (as 258 of 3,072): test accuracy -2.04 points" in said[3]
    assert [i for i, line in enumerate(said) if "the paper about -0.3" in line] == [3]
