import numpy as np
import pytest

from sparsity.studies.li2022.vit_prevalence import VIT_PREVALENCE, few_and_all, findings, sizes, table
from sparsity.studies.li2022.vits import Arm

STUDY = "li2022/vit_prevalence"
BASE = Arm(64, 4, 512)


def ending_at(middle, ends, **other):
    """From one half to the share `middle`, `ends` in the first and the last layer; .0001 more a seed."""

    def how(arm, seed):
        last = lambda i: (ends if i in (0, arm.layers - 1) else middle) + 1e-4 * seed
        return {"share": lambda i, t: 0.5 * (1 - t) + last(i) * t} | other

    return how


as_in_the_paper = ending_at(0.06, 0.07)


def test_every_claim_is_reproduced_by_networks_that_are_as_the_paper_says(vits_ended, verdicts):
    assert set(verdicts(VIT_PREVALENCE, vits_ended(STUDY, as_in_the_paper)).values()) == {"reproduced"}


def test_no_claim_is_reproduced_by_networks_of_the_opposite_kind(vits_ended, verdicts):
    """From 40% up to 60%, most in the middle, other on test images, and other of few examples."""

    def how(arm, seed):
        last = lambda i: 0.55 + 0.05 * (0 < i < arm.layers - 1) + 1e-4 * seed
        held_out = lambda i: last(i) * (0.8 if arm.examples is None else 0.5)
        return {"share": lambda i, t: 0.4 * (1 - t) + last(i) * t, "held_out": held_out}

    found = verdicts(VIT_PREVALENCE, vits_ended(STUDY, how))
    assert found == dict.fromkeys(found, "contradicted")
    assert set(found) == {f"L1.{name}" for name in ("half", "falls", "size", "held_out", "ends", "persists", "data")}


def test_one_layer_of_one_size_that_rises_contradicts_the_fall_alone(vits_ended, verdicts):
    def how(arm, seed):
        usual = as_in_the_paper(arm, seed)["share"]
        rises = lambda i: (arm.layers, i) == (6, 2)
        return {"share": lambda i, t: 0.5 + (0.01 + 1e-4 * seed) * t if rises(i) else usual(i, t)}

    found = verdicts(VIT_PREVALENCE, vits_ended(STUDY, how))
    assert found.pop("L1.falls") == "contradicted"
    assert "contradicted" not in {found[id] for id in ("L1.half", "L1.held_out", "L1.persists")}


def test_a_first_layer_that_is_as_sparse_as_the_middle_contradicts_that_both_ends_are_denser(vits_ended, verdicts):
    """The last layer alone, or one size alone, does not make up for it."""

    def how(arm, seed):
        usual = as_in_the_paper(arm, seed)["share"]
        last = lambda i: 0.2 if i == arm.layers - 1 else 0.059 - 1e-4 * seed if i == 0 else 0.06
        return {"share": (lambda i, t: 0.5 * (1 - t) + last(i) * t) if arm.layers == 6 else usual}

    found = verdicts(VIT_PREVALENCE, vits_ended(STUDY, how))
    assert found.pop("L1.ends") == "contradicted"
    assert set(found.values()) == {"reproduced"}


def test_networks_as_sparse_as_the_quickstart_s_have_fallen_and_are_not_that_small(vits_ended, verdicts):
    found = verdicts(VIT_PREVALENCE, vits_ended(STUDY, ending_at(0.2, 0.22)))
    assert (found["L1.falls"], found["L1.size"], found["L1.persists"]) == ("reproduced", "contradicted", "reproduced")


def test_the_table_has_a_row_for_each_size_and_for_few_examples(vits_ended):
    rows = table(vits_ended(STUDY, as_in_the_paper))
    assert [(r["d_model"], r["layers"], r["examples"]) for r in rows] == [
        (32, 2, None),
        (64, 4, None),
        (64, 4, 126),
        (96, 6, None),
    ]
    base = rows[1]
    assert (base["start"], base["end"], base["least"], base["most"]) == pytest.approx((0.5, 0.0651, 0.0601, 0.0701))
    assert base["held-out"] == pytest.approx(base["end"])
    assert base["se"] == pytest.approx(1e-4 / 3**0.5)
    assert (base["accuracy"], base["train"]) == pytest.approx((0.9, 0.99))


def test_a_size_that_diverged_has_an_empty_row_and_no_verdict_but_on_the_data(vits_ended, verdicts):
    gone = tuple(f"vit_digits_large_noise0_seed{seed}" for seed in range(3))
    records = vits_ended(STUDY, as_in_the_paper, broken=gone)
    row = table(records)[3]
    assert (row["n"], row["end"], row["accuracy"]) == (0, None, None)
    found = verdicts(VIT_PREVALENCE, records)
    assert found.pop("L1.data") == "reproduced"
    assert set(found.values()) == {"undecided"}


def test_networks_that_have_not_learnt_or_were_not_run_are_not_judged(vits_ended, verdicts):
    assert set(verdicts(VIT_PREVALENCE, []).values()) == {"not testable"}
    dull = vits_ended(STUDY, ending_at(0.06, 0.07, accuracy=0.3))
    assert set(verdicts(VIT_PREVALENCE, dull).values()) == {"not testable"}
    one = lambda arm, seed: as_in_the_paper(arm, seed) | {"accuracy": 0.1 if arm.layers == 6 else 0.9}
    found = verdicts(VIT_PREVALENCE, vits_ended(STUDY, one))
    assert found.pop("L1.data") == "reproduced"
    assert set(found.values()) == {"not testable"}
    assert table([]) == findings([]) == []
    assert few_and_all([]) is None


def test_sizes_are_those_of_all_examples_and_the_pair_is_of_one_size(vits_ended):
    records = vits_ended(STUDY, as_in_the_paper)
    assert list(sizes(records)) == [Arm(32, 2, 256), BASE, Arm(96, 6, 768)]
    assert few_and_all(records) == (BASE, BASE._replace(examples=126))


def test_figures_show_steps_sizes_and_data(vits_ended, views):
    runs = views(vits_ended(STUDY, as_in_the_paper))
    figures = {title: figure(runs).figure for title, figure in VIT_PREVALENCE.figures.items()}
    small, base, large = figures["Nonzeros by step"].axes
    assert [len(axis.lines) for axis in (small, base, large)] == [2 + 1, 4 + 1, 6 + 1]
    np.testing.assert_allclose(base.lines[1].get_ydata()[[0, -1]], [50, 6])
    means = lambda title: [a for a in figures[title].axes[0].lines if a.get_linestyle() == "-"]
    assert [len(line.get_xdata()) for line in means("Nonzeros by layer and size")] == [2, 4, 6]
    both = figures["Training and test images"]
    assert len(both.axes[0].lines) == 2 * 9
    named = {line.get_label(): line for line in both.axes[0].lines if not line.get_label().startswith("_")}
    sizes = [f"{layers} layers of d_ff {d_ff}" for layers, d_ff in ((2, 256), (4, 512), (6, 768))]
    assert list(named) == [text.get_text() for text in both.legends[0].texts] == sizes
    np.testing.assert_allclose(named[sizes[1]].get_ydata(), [7, 6, 6, 7])
    assert [line.get_label() for line in means("Nonzeros by layer and number of examples")] == [
        "all examples",
        "126 examples",
    ]
    for figure in VIT_PREVALENCE.figures.values():
        figure({})


def test_findings_name_the_papers_numbers(vits_ended):
    said = findings(vits_ended(STUDY, as_in_the_paper))
    assert len(said) == 4
    assert said[2].startswith("4 layers of d_ff 512, 126 examples: nonzero 50.0% at the start, 6.5% at the end")
    assert "6.3% on ImageNet-21k" in said[0]
