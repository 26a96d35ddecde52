import math

import numpy as np
import pytest

from sparsity.studies.li2022.vit_causes import VIT_CAUSES, cause, findings, plain, random_labels, table, without_cause
from sparsity.studies.li2022.vits import IMAGES, INFINITE, Arm

STUDY = "li2022/vit_causes"
BASE = Arm(64, 4, 512)


def ending_at(ends, begin=0.5, wobble=1e-4, **other):
    """How layers end by cause: `ends` has four shares for each; from `begin`."""

    def how(arm, seed):
        last = np.array(ends[cause(arm)]) * (1 + wobble * seed)
        return {"share": lambda i, t: begin * (1 - t) + float(last[i]) * t} | other

    return how


PAPERS = {
    "nothing": (0.08, 0.06, 0.05, 0.07),
    "50% of the labels": (0.07, 0.05, 0.045, 0.06),
    "70% of the labels": (0.06, 0.04, 0.04, 0.05),
    "100% of the labels": (0.05, 0.03, 0.06, 0.09),
    "images": (0.04, 0.06, 0.06, 0.09),
    "images and labels, without end": (0.03, 0.14, 0.15, 0.1),
}
as_in_the_paper = ending_at(PAPERS)


def test_every_claim_is_reproduced_by_networks_that_are_as_the_paper_says(vits_ended, verdicts):
    assert set(verdicts(VIT_CAUSES, vits_ended(STUDY, as_in_the_paper)).values()) == {"reproduced"}


OPPOSITE = {
    "nothing": (0.2, 0.7, 0.75, 0.7),
    "50% of the labels": (0.3, 0.72, 0.8, 0.8),
    "70% of the labels": (0.4, 0.75, 0.85, 0.9),
    "100% of the labels": (0.5, 0.8, 0.8, 0.8),
    "images": (0.6, 0.6, 0.6, 0.6),
    "images and labels, without end": (0.6, 0.6, 0.6, 0.6),
}


def test_no_claim_is_reproduced_by_networks_of_the_opposite_kind(vits_ended, verdicts):
    found = verdicts(VIT_CAUSES, vits_ended(STUDY, ending_at(OPPOSITE, wobble=-1e-4)))
    assert found == dict.fromkeys(found, "contradicted")
    assert {id.partition(".")[0] for id in found} == {"L4", "L5"}


def test_a_rise_from_50_to_70_alone_contradicts_the_fall(vits_ended, verdicts):
    ends = PAPERS | {"70% of the labels": (0.07, 0.06, 0.05, 0.06)}
    assert verdicts(VIT_CAUSES, vits_ended(STUDY, ending_at(ends)))["L4.up_to_70"] == "contradicted"


def test_middle_layers_sparser_than_the_band_contradict_its_size(vits_ended, verdicts):
    for middle in (0.09, 0.22):
        ends = PAPERS | {"images and labels, without end": (0.03, middle, middle, 0.1)}
        found = verdicts(VIT_CAUSES, vits_ended(STUDY, ending_at(ends)))
        assert (found["L5.infinite_size"], found["L5.infinite_middle"]) == ("contradicted", "reproduced")


def test_a_single_layer_that_keeps_its_nonzeros_contradicts_that_no_cause_is_needed(vits_ended, verdicts):
    ends = PAPERS | {"images and labels, without end": (0.03, 0.14, 0.15, 0.6)}
    found = verdicts(VIT_CAUSES, vits_ended(STUDY, ending_at(ends)))
    assert (found["L5.falls"], found["L5.far"]) == ("contradicted", "contradicted")


def test_a_network_that_has_not_learnt_real_digits_leaves_nothing_to_judge(vits_ended, verdicts):
    """That random ones cannot be learnt is no matter."""
    how = lambda usual: lambda arm, seed: as_in_the_paper(arm, seed) | {"accuracy": usual if arm == BASE else 0.1}
    assert set(verdicts(VIT_CAUSES, vits_ended(STUDY, how(0.9))).values()) == {"reproduced"}
    assert set(verdicts(VIT_CAUSES, vits_ended(STUDY, how(0.3))).values()) == {"not testable"}


def test_without_runs_or_without_real_digits_nothing_can_be_judged(vits_ended, verdicts):
    assert set(verdicts(VIT_CAUSES, []).values()) == {"not testable"}
    records = vits_ended(STUDY, as_in_the_paper)
    random = [r for r in records if not r.config.name.startswith("vit_digits_noise0_")]
    assert set(verdicts(VIT_CAUSES, random).values()) == {"not testable"}
    real = [r for r in records if r.config.name.startswith("vit_digits_noise0_")]
    assert set(verdicts(VIT_CAUSES, real).values()) == {"not testable"}
    assert table([]) == findings([]) == []


def test_a_diverged_run_decides_nothing_of_its_arm(vits_ended, verdicts):
    records = vits_ended(STUDY, as_in_the_paper, broken=("vit_digits_random_images_noise0_seed1",))
    found = verdicts(VIT_CAUSES, records)
    undecided = {id for id, verdict in found.items() if verdict == "undecided"}
    assert undecided == {"L5.images_first", "L5.images_last", "L5.images_tenth", "L5.falls", "L5.far"}
    assert {r["random"]: r["n"] for r in table(records)}["images"] == 2


def test_arms_by_what_is_random(vits_ended):
    records = vits_ended(STUDY, as_in_the_paper)
    assert plain(records) == BASE
    assert [arm.noise for arm in random_labels(records)] == [0, 0.5, 0.7, 1]
    assert without_cause(records) == [
        BASE._replace(noise=1.0),
        BASE._replace(data=IMAGES),
        BASE._replace(data=INFINITE),
    ]


def test_the_table_has_every_layer_of_every_kind_of_data(vits_ended):
    rows = {r["random"]: r for r in table(vits_ended(STUDY, as_in_the_paper))}
    assert set(rows) == set(PAPERS)
    row = rows["images and labels, without end"]
    assert [row[f"block_{i}"] for i in range(4)] == pytest.approx(np.array((0.03, 0.14, 0.15, 0.1)) * 1.0001)
    assert (row["start"], row["end"]) == pytest.approx((0.5, 0.105 * 1.0001))
    assert row["ratio"] == pytest.approx(0.3 * 1.0001)
    assert row["se"] == pytest.approx(0.105 * 1e-4 / math.sqrt(3))


def test_the_figure_has_each_kind_beside_real_digits(vits_ended, views):
    (figure,) = VIT_CAUSES.figures.values()
    axes = figure(views(vits_ended(STUDY, as_in_the_paper))).figure.axes
    labels = [[line.get_label() for line in a.lines if not line.get_label().startswith("_")] for a in axes]
    assert labels[0] == ["nothing random", *(f"{p}% of the labels" for p in (50, 70, 100))]
    assert labels[1:] == [["nothing random", "images"], ["nothing random", "images and labels, without end"]]
    (line,) = [a for a in axes[1].lines if a.get_label() == "images"]
    np.testing.assert_allclose(line.get_ydata(), 100 * np.array(PAPERS["images"]) * 1.0001)
    figure({})


def test_findings_are_a_sentence_a_kind_of_data(vits_ended):
    said = findings(vits_ended(STUDY, as_in_the_paper))
    assert len(said) == 6
    assert "Random: images. Nonzero 50.0% at the start, 6.3% at the end; 99.0% of the training labels" in " ".join(said)
