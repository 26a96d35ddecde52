import numpy as np
import pytest

from sparsity.studies.judge import judge
from sparsity.studies.li2022.runs import Arm
from sparsity.studies.li2022.t5_scale import T5_SCALE, depths, findings, table, widths
from sparsity.studies.records import named

STUDY = "li2022/t5_scale"


def sparser_with_size(arm, layer, t):
    """Share as 1 / (depth sqrt(width)): a lower percentage, a higher count."""
    return 0.5 * (1 - t) + t * 2 / (arm.layers * arm.d_ff**0.5)


def test_sizes_are_told_apart_by_what_varies(ended):
    runs = named(ended(STUDY, sparser_with_size))
    assert depths(runs) == [Arm(64, layers, 512) for layers in (2, 4, 8)]
    assert widths(runs) == [Arm(64, 4, d_ff) for d_ff in (128, 512, 2048)]
    assert len(runs) == 15  # the base is run once


def test_networks_as_the_paper_says_reproduce_every_claim(ended, verdicts):
    assert set(verdicts(T5_SCALE, ended(STUDY, sparser_with_size)).values()) == {"reproduced"}


def test_networks_of_the_opposite_kind_contradict_every_claim(ended, verdicts):
    """Denser with depth and with width."""
    share = lambda arm, layer, t: 0.01 * arm.layers if arm.d_ff == 512 else {128: 0.1, 2048: 0.2}[arm.d_ff]
    found = verdicts(T5_SCALE, ended(STUDY, share))
    assert {found[f"L3.{c}.{s}"] for c in ("deeper", "sparsest", "wider") for s in ("encoder", "decoder")} == {
        "contradicted"
    }


def test_denser_ends_of_deep_networks_do_not_hide_that_their_sparsest_layer_is_as_dense(ended, verdicts):
    """10% everywhere in the shallowest; 30% in the first and last layers of the others, 10% in between."""
    ends = lambda arm, layer: int(layer.split("_")[1]) in (0, arm.layers - 1)
    found = verdicts(T5_SCALE, ended(STUDY, lambda arm, layer, t: 0.3 if ends(arm, layer) and arm.layers > 2 else 0.1))
    assert (found["L3.sparsest.encoder"], found["L3.deeper.encoder"]) == ("undecided", "contradicted")


def test_a_count_that_falls_contradicts_its_claim(ended, verdicts):
    found = verdicts(T5_SCALE, ended(STUDY, lambda arm, layer, t: 40 / arm.d_ff**1.2))
    assert {found["L3.count.encoder"], found["L3.count.decoder"]} == {"contradicted"}
    assert found["L3.wider.encoder"] == "reproduced"


def test_effects_are_ratios_of_the_extremes(ended):
    records = ended(STUDY, sparser_with_size)
    effects = {c.id: judge(c, records).measured.value for c in T5_SCALE.claims}
    assert effects["L3.deeper.encoder"] == pytest.approx(np.log10(1 / 4), abs=0.01)
    assert effects["L3.wider.decoder"] == pytest.approx(np.log10(1 / 4), abs=0.01)
    assert effects["L3.count.encoder"] == pytest.approx(np.log10(4), abs=0.01)


def test_the_table_counts_what_is_nonzero(ended):
    rows = {(r["layers"], r["d_ff"]): r for r in table(ended(STUDY, sparser_with_size))}
    assert list(rows) == [(2, 512), (4, 128), (4, 512), (4, 2048), (8, 512)]
    wide = rows[4, 2048]
    assert wide["encoder"] == pytest.approx(2 / (4 * 2048**0.5) + 1e-4)
    assert wide["count"] == pytest.approx(2048 * wide["encoder"])
    assert wide["n"] == 3


def test_without_two_sizes_nothing_can_be_judged(ended, verdicts):
    assert set(verdicts(T5_SCALE, []).values()) == {"not testable"}
    base = [r for r in ended(STUDY, sparser_with_size) if "_l4_f512_" in r.config.name]
    assert set(verdicts(T5_SCALE, base).values()) == {"not testable"}


def test_figures_draw_depths_and_widths_apart(ended, views):
    runs = views(ended(STUDY, sparser_with_size))
    figures = {title: figure(runs).figure for title, figure in T5_SCALE.figures.items()}
    means = lambda title: [line for line in figures[title].axes[0].lines if line.get_linestyle() == "-"]
    assert [len(line.get_xdata()) for line in means("Nonzeros by layer and depth")] == [2, 4, 8]
    shares = [line.get_ydata()[0] for line in means("Nonzeros by layer and width")]
    counts = [line.get_ydata()[0] for line in means("Number of nonzeros by layer and width")]
    np.testing.assert_allclose(counts, np.array(shares) / 100 * [128, 512, 2048])


def test_findings_are_a_sentence_a_size(ended):
    said = findings(ended(STUDY, sparser_with_size))
    assert len(said) == 5
    assert said[3].startswith(
        "4 layers of d_ff 2048: nonzero 1.1% of the encoder's units and 1.1% of the decoder's, 23 "
    )
