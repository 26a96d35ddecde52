import numpy as np
import pytest

from sparsity.config import to_dict
from sparsity.data.corruptions import CORRUPTIONS, SEVERITIES
from sparsity.studies.draw import RunView
from sparsity.studies.li2022.robustness_source import (
    ALL,
    KEPT,
    ROBUSTNESS_SOURCE,
    arm_of,
    by_arm,
    cells,
    findings,
    retained,
    series,
    table,
)
from sparsity.studies.runner import Record

STUDY = "li2022/robustness_source"
K = {KEPT: 43, ALL: 512}
FACTORS = ("test", "training", "more")


def how(gain, clean=lambda arm, test: 0.0, nonzero=lambda arm, layer: 0.084, drift=0.01):
    """`gain(arm, test)`: robustness and, an eighth of it, calibration, `drift` of it more from seed to seed.

    `clean(arm, test)`: loss of clean accuracy; `nonzero(arm, layer)`: share with Top-k at test.
    """

    def measures(config):
        arm, found = arm_of(Record(config, None, None)), {}
        for test, k in K.items():
            g = gain(arm, test) * (1 + drift * config.seed)
            values = {"accuracy": 0.9 - clean(arm, test) + 1e-4 * config.seed, "ece": 0.03 - g / 8}
            values |= {"robustness.mean": 0.6 - clean(arm, test) + g}
            for name in CORRUPTIONS:
                values[f"robustness.{name}"] = values["robustness.mean"]
                values |= {f"robustness.{name}.{s}": values["robustness.mean"] - 0.1 * (s - 3) for s in SEVERITIES}
            layers = [nonzero(arm, i) if test == KEPT else 0.2 for i in range(config.model.layers)]
            values |= {f"nonzero.block_{i}": share for i, share in enumerate(layers)}
            values["nonzero.mean"] = float(np.mean(layers))
            found |= {f"imposed.{k}.{name}": value for name, value in values.items()}
        return found

    return measures


def of_cause(arm, test):
    """Sparsity at test is the cause: whatever trained, Top-k at test gives it, but to the narrow network."""
    return 0.04 * (test == KEPT and arm != "narrow") + 0.005 * (arm == "top_k")


def of_training(arm, test):
    """What Top-k does to the weights is the cause."""
    return 0.06 * (arm == "top_k") + 0.005 * (test == KEPT)


def test_arms_are_read_from_the_configs(measured_only):
    arms = by_arm(measured_only(STUDY, how(of_cause)))
    assert {arm: list(of_seed) for arm, of_seed in arms.items()} == {
        arm: [0, 1, 2, 3, 4] for arm in ("dense", "top_k", "l1", "noise", "narrow")
    }
    names = {arm: of_seed[0].config.name for arm, of_seed in arms.items()}
    assert names["narrow"] == "vit_digits_f43_noise0_seed0"
    assert names["noise"] == "vit_digits_gaussian1_annealed_noise0_seed0"


def test_if_sparsity_at_test_is_the_cause_all_sources_are_alike_and_training_adds_less(measured_only, verdicts):
    found = verdicts(ROBUSTNESS_SOURCE, measured_only(STUDY, how(of_cause)))
    more = {f"source.more.{name}": "contradicted" for name in ("corrupted", "retained", "ece")}
    assert found == dict.fromkeys(found, "reproduced") | more
    assert len(found) == 3 * 3 + 2 * 4


def test_if_training_is_the_cause_other_sources_fall_behind_and_it_adds_more(measured_only, verdicts):
    found = verdicts(ROBUSTNESS_SOURCE, measured_only(STUDY, how(of_training)))
    behind = {
        f"source.{arm}.{name}": "contradicted" for arm in ("dense", "l1", "noise") for name in ("retained", "ece")
    }
    assert found == dict.fromkeys(found, "reproduced") | behind


def test_a_narrow_network_that_is_as_robust_contradicts_its_claims_alone(measured_only, verdicts):
    narrow = lambda arm, test: of_cause(arm, test) + 0.06 * (arm == "narrow")
    found, before = (verdicts(ROBUSTNESS_SOURCE, measured_only(STUDY, how(g))) for g in (narrow, of_cause))
    assert {id for id in found if found[id] != before[id]} == {"source.narrow.retained", "source.narrow.ece"}
    assert found["source.narrow.retained"] == found["source.narrow.ece"] == "contradicted"


@pytest.mark.parametrize(("sign", "drift"), [(-1, 0.01), (1, -0.45)])
def test_without_a_gain_beyond_chance_there_is_nothing_to_explain(measured_only, verdicts, sign, drift):
    """A loss, and a gain of a tenth in the mean of five seeds, from which it falls to a loss."""
    gain = lambda arm, test: sign * of_cause(arm, test)
    found = verdicts(ROBUSTNESS_SOURCE, measured_only(STUDY, how(gain, drift=drift)))
    assert set(found.values()) == {"not testable"}


def test_parts_add_up_to_the_gain(measured_only):
    records = measured_only(STUDY, how(of_cause))
    effects = {c.id: c.measure(records).value for c in ROBUSTNESS_SOURCE.claims}
    assert effects["source.test.corrupted"] == pytest.approx(0.04 * 1.02)
    assert effects["source.training.corrupted"] == pytest.approx(0.005 * 1.02)
    assert effects["source.more.corrupted"] == pytest.approx(-0.035 * 1.02)
    assert (
        "Of Top-k's +4.59 points of accuracy under corruption Top-k at test is +4.08, training with it +0.51; either "
        "is +0.00 more with the other, as much less without." in findings(records)
    )
    both = lambda arm, test: 0.04 * ((arm, test) == ("top_k", KEPT))
    assert (
        "Of Top-k's +4.08 points of accuracy under corruption Top-k at test is +2.04, training with it +2.04; either "
        "is +2.04 more with the other, as much less without." in findings(measured_only(STUDY, how(both)))
    )
    assert "a narrow network, Top-k at test: 8.4% nonzero (4 units)" in " ".join(findings(records))


def test_networks_of_unlike_clean_accuracies_are_not_compared(measured_only, verdicts):
    """Top-k put on the plain network costs 2 points: what is left may be more of less, and better calibrated."""
    loses = lambda arm, test: 0.02 * ((arm, test) == ("dense", KEPT))
    found = verdicts(ROBUSTNESS_SOURCE, measured_only(STUDY, how(of_cause, clean=loses)))
    untestable = {id for id, verdict in found.items() if verdict == "not testable"}
    factors = {f"source.{part}.{name}" for part in FACTORS for name in ("corrupted", "retained", "ece")}
    assert untestable == factors | {"source.dense.retained", "source.dense.ece"}


def test_a_source_that_is_sparser_than_top_k_in_a_layer_is_not_compared(measured_only, verdicts):
    sparser = lambda arm, layer: 0.03 if arm == "narrow" else 0.06 if (arm, layer) == ("l1", 3) else 0.084
    found = verdicts(ROBUSTNESS_SOURCE, measured_only(STUDY, how(of_cause, nonzero=sparser)))
    assert {id for id, v in found.items() if v == "not testable"} == {"source.l1.retained", "source.l1.ece"}


def test_networks_that_have_not_learnt_or_were_not_run_are_not_judged(measured_only, verdicts):
    assert set(verdicts(ROBUSTNESS_SOURCE, []).values()) == {"not testable"}
    dull = measured_only(STUDY, how(of_cause, clean=lambda arm, test: 0.5))
    assert set(verdicts(ROBUSTNESS_SOURCE, dull).values()) == {"not testable"}
    assert table([]) == findings([]) == series([]) == []


def test_a_seed_that_diverged_decides_nothing_where_it_is_used(measured_only, verdicts):
    records = measured_only(STUDY, how(of_cause), broken=("vit_digits_l1_0.00015_noise0_seed3",))
    found = verdicts(ROBUSTNESS_SOURCE, records)
    assert {id for id, v in found.items() if v == "undecided"} == {"source.l1.retained", "source.l1.ece"}
    assert {r["training"]: r["n"] for r in table(records)}["training with L1"] == 4


def test_the_table_and_the_series_have_every_training_both_ways(measured_only):
    records = measured_only(STUDY, how(of_cause))
    rows = {(r["training"], r["at test"]): r for r in table(records)}
    assert len(rows) == len(cells(records)) == 9
    kept, plain = rows["training with Top-k", "Top-k"], rows["plain training", "all units"]
    assert (kept["corrupted"], plain["corrupted"]) == pytest.approx((0.6 + 0.045 * 1.02, 0.6))
    assert (kept["ece"], kept["nonzero"], plain["nonzero"]) == pytest.approx((0.03 - 0.045 / 8 * 1.02, 0.084, 0.2))
    assert (kept["units"], plain["units"]) == pytest.approx((0.084 * 512, 0.2 * 512))
    assert plain["retained"] == plain["retained, shot"] == pytest.approx(0.6 / 0.9, rel=1e-3)
    assert plain["retained, severity 5"] == pytest.approx(0.4 / 0.9, rel=1e-3)
    assert len(series(records)) == 9 * len(CORRUPTIONS) * len(SEVERITIES)
    run = by_arm(records)["dense"][0]
    assert retained(run, ALL, "gaussian.1") == pytest.approx(0.8 / 0.9)


def test_figures_show_every_cell(measured_only):
    records = measured_only(STUDY, how(of_cause))
    runs = {r.config.name: RunView(r.outcome, [], to_dict(r.config)) for r in records}
    sources, severities = (figure(runs).figure for figure in ROBUSTNESS_SOURCE.figures.values())
    heights = [float(c.lines[0].get_ydata()[0]) for c in sources.axes[0].containers]
    assert len(heights) == 9
    assert heights[0] - heights[1] == pytest.approx(4 * 1.02)
    assert [line.get_label() for line in severities.axes[0].lines][::2] == list(
        dict.fromkeys(r["training"] for r in table(records))
    )
    assert (np.diff(severities.axes[1].lines[0].get_ydata()) < 0).all()
    for figure in ROBUSTNESS_SOURCE.figures.values():
        figure({})
