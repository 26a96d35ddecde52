import numpy as np
import pytest

from sparsity.studies.judge import judge
from sparsity.studies.li2022.resnets import (
    RESNETS,
    Arm,
    arm_and_seed,
    by_arm,
    findings,
    inner,
    nearer_the_output,
    output,
    relus,
    table,
    widths,
)
from sparsity.studies.records import named

STUDY = "li2022/resnets"


def place(layer):
    """(block, whether it is the block's output) of "block_3/inner_0"; the stem is no block."""
    block, _, kind = layer.removeprefix("block_").partition("/")
    return (int(block), kind == "output") if kind else (0, False)


def network(end):
    """From one half to `end(width, block, whether it is an output)`; wider is 8, 16, 32."""
    return lambda config: {
        "share": lambda layer, t: 0.5 + t * (end(config.model.width, *place(layer)) - 0.5),
    }


def as_in_the_paper(width, block, out):
    """30% falling by two points a block, 6 more at outputs, a tenth less for each doubling but at the very end."""
    usual = 0.3 - 0.02 * block + 0.06 * out
    return usual * (1.05 if (block, out) == (5, True) else 0.9) ** np.log2(width / 8)


def opposite(width, block, out):
    """Below 10% at the start, denser later and inside, denser with width but for the very last."""
    usual = 0.05 + 0.02 * block - 0.01 * out
    return usual * (0.9 if (block, out) == (5, True) else 1.1) ** np.log2(width / 8)


def test_networks_as_the_paper_says_reproduce_every_claim(ends, verdicts):
    records = ends(STUDY, network(as_in_the_paper))
    assert len(records) == 12
    assert set(verdicts(RESNETS, records).values()) == {"reproduced"}


def test_networks_of_the_opposite_kind_contradict_every_claim(ends, verdicts):
    assert set(verdicts(RESNETS, ends(STUDY, network(opposite))).values()) == {"contradicted"}


def test_one_sparse_relu_and_one_dense_inside_contradict_what_is_said_of_every_one(ends, verdicts):
    """Block 3 is below 10% at its output, so denser inside than there; on average nothing changes sides."""
    end = lambda width, block, out: 0.09 if (block, out) == (3, True) else as_in_the_paper(width, block, out)
    found = verdicts(RESNETS, ends(STUDY, network(end)))
    for block in ("basic", "bottleneck"):
        assert found[f"L14.dense.{block}"] == found[f"L14.every.{block}"] == "contradicted"
        assert found[f"L14.inner.{block}"] == found[f"L14.output.{block}"] == "reproduced"
    assert found["L3.resnet.every"] == "undecided"  # that one is as sparse at every width


def test_a_wide_network_below_a_tenth_contradicts_that_all_are_dense(ends, verdicts):
    end = lambda width, block, out: as_in_the_paper(width, block, out) * (0.5 if width == 32 else 1)
    found = verdicts(RESNETS, ends(STUDY, network(end)))
    assert (found["L14.dense.basic"], found["L14.dense.bottleneck"]) == ("contradicted", "reproduced")


def test_a_relu_that_never_fires_is_no_evidence_of_width(ends, verdicts):
    end = lambda width, block, out: -0.5 if (width, block, out) == (32, 2, True) else as_in_the_paper(width, block, out)
    found = verdicts(RESNETS, ends(STUDY, network(end)))
    assert found["L3.resnet.every"] == found["L3.resnet.output"] == "undecided"
    assert found["L3.resnet.inner"] == "reproduced"


def test_width_is_judged_by_the_extremes_of_basic_blocks(ends):
    records = ends(STUDY, network(as_in_the_paper))
    effects = {claim.id: judge(claim, records).measured.value for claim in RESNETS.claims}
    assert effects["L3.resnet.inner"] == pytest.approx(2 * np.log10(0.9), abs=1e-3)
    assert effects["L14.last"] == pytest.approx(2 * np.log10(1.05), abs=1e-3)


def test_networks_that_have_not_learnt_or_were_not_run_are_not_judged(ends, verdicts):
    dull = ends(STUDY, lambda config: network(as_in_the_paper)(config) | {"accuracy": 0.3})
    assert set(verdicts(RESNETS, dull).values()) == {"not testable"}
    assert set(verdicts(RESNETS, []).values()) == {"not testable"}
    assert "test accuracy of only 0.30" in judge(RESNETS.claims[0], dull).measured.failed


def test_a_diverged_run_is_no_evidence_for_the_claims_on_it_alone(ends, verdicts):
    broken = "resnet_basic_w32_digits_momentum_rate0.05_seed0"
    records = ends(STUDY, network(as_in_the_paper), broken=(broken,))
    found = verdicts(RESNETS, records)
    assert found["L3.resnet.inner"] == "undecided"
    assert found["L14.dense.basic"] == "undecided"
    assert found["L14.output.basic"] == found["L14.dense.bottleneck"] == "reproduced"
    assert [row["n"] for row in table(records)] == [3, 3, 2, 3]
    assert np.isnan(relus(named(records)[broken])).all()


def test_relus_are_inside_a_block_but_the_last(ends):
    runs = named(ends(STUDY, network(as_in_the_paper)))
    bottleneck = by_arm(runs)[Arm("bottleneck", 8, "momentum", 0.05)][0]
    assert relus(bottleneck).shape == (6, 3)
    np.testing.assert_allclose(inner(bottleneck), 0.3 - 0.02 * np.arange(6))
    np.testing.assert_allclose(output(bottleneck), 0.36 - 0.02 * np.arange(6))
    assert [arm.width for arm in widths(runs, "basic")] == [8, 16, 32]


def test_arms_are_read_from_names_of_either_optimizer():
    assert arm_and_seed("resnet_bottleneck_w64_imagenet_adam_rate1e-05_seed1") == (
        Arm("bottleneck", 64, "adam", 1e-5),
        1,
    )


def test_the_halves_of_an_odd_number_of_blocks_leave_out_the_middle():
    assert nearer_the_output(np.array([[0.4, 0.2], [0.9, 0.9], [0.1, 0.1]])) == pytest.approx(-0.2)
    assert np.isnan(nearer_the_output(np.array([0.4])))


def test_the_table_has_a_row_for_each_network(ends):
    rows = {(row["block"], row["width"]): row for row in table(ends(STUDY, network(as_in_the_paper)))}
    assert list(rows) == [("basic", 8), ("basic", 16), ("basic", 32), ("bottleneck", 8)]
    one = rows["basic", 8]
    assert (one["inner"], one["output"], one["least"]) == pytest.approx((0.25 + 1e-4, 0.31 + 1e-4, 0.2 + 1e-4))
    assert one["first"] - one["last"] == pytest.approx(0.1)
    assert one["start"] == pytest.approx(0.5 + 1e-4)


def test_figures_draw_every_kind_of_relu_and_every_width(ends, views):
    runs = views(ends(STUDY, network(as_in_the_paper)))
    figures = {title: figure(runs).figure for title, figure in RESNETS.figures.items()}
    basic, bottleneck = figures["Nonzeros by block"].axes
    labels = lambda axis: [text.get_text() for text in axis.get_legend().texts]
    assert (labels(basic), labels(bottleneck)) == (["inner 0", "output"], ["inner 0", "inner 1", "output"])
    inside, _ = figures["Nonzeros by width"].axes
    np.testing.assert_allclose([line.get_ydata()[0] for line in inside.lines], [30.01, 27.01, 24.31])


def test_findings_are_a_sentence_a_network(ends):
    said = findings(ends(STUDY, network(as_in_the_paper)))
    assert len(said) == 4
    assert said[0].startswith("basic blocks, width 8: nonzero 50.0% at the start; at the end 25.0% inside the blocks")
