import numpy as np
import pytest

from launch.cli import load_study_config
from sparsity.config import differences, to_dict
from sparsity.studies.draw import RunView
from sparsity.studies.li2022.front import FRONT, PANELS, findings, table
from sparsity.studies.li2022.methods import METHODS, Arm, arm_of
from sparsity.studies.runner import Record, expand, run_directory
from tests.studies.li2022.conftest import configs

STUDY = "li2022/front"
# Nonzeros, and what is lost of accuracy, by method and setting: as one would wish.
HOPED = {
    "relu": (0.2, 0.0),
    "gelu": (1.0, 0.0),
    "noise": (0.09, 0.0),
    "statistical": (21 / 512, 0.0),
    "clipped": (0.15, 0.0),
}


def arm(config):
    return arm_of(Record(config, None, None))


def shares(one):
    if one.method == "top_k":
        return one.setting / (512 if one.model == "vit" else 256)
    if one.method == "statistical" and one.model == "t5":
        return 21 / 256
    if one.method == "l1":
        return {3e-6: 0.15, 3e-5: 0.08, 3e-4: 0.03 if one.model == "vit" else 0.1}[one.setting]
    return HOPED[one.method][0]


def measures(one, seed, loss=0.0, dense=0.0, tilt=0.01):
    """`loss` of everything, less of a T5, and shares that are `dense` more; a little different from seed to seed.

    Layers are `tilt` sparser and denser than their mean.
    """
    wobble = 1e-4 * seed * (1 + len(one.method))
    nonzero = shares(one) + dense + wobble
    names = ("block_0", "block_1") if one.model == "vit" else ("encoder_0", "decoder_0")
    found = {f"nonzero.{name}": nonzero + d for name, d in zip(names, (-tilt, tilt), strict=True)}
    found["nonzero.mean"] = nonzero
    if one.model == "t5":
        return found | {"accuracy": 0.42 - 0.4 * loss + wobble}
    return found | {
        "accuracy": 0.95 - loss + wobble,
        "robustness.mean": 0.7 - loss + wobble,
        "ece": 0.02 + loss / 12 + wobble,
    }


@pytest.fixture
def ended(measured_only):
    """ended(loss, dense=..., tilt=..., broken=()): what `loss(arm)` and the others say is other than hoped."""

    def records(loss=lambda one: 0.0, dense=lambda one: 0.0, tilt=lambda one: 0.01, broken=()):
        def how(config):
            one = arm(config)
            return measures(one, config.seed, loss(one), dense(one), tilt(one))

        return measured_only(STUDY, how, broken)

    return records


def test_methods_that_cost_nothing_reproduce_every_claim(ended, verdicts):
    found = verdicts(FRONT, ended())
    assert found == dict.fromkeys(found, "reproduced")
    assert len(found) == 18


def test_methods_that_cost_much_contradict_every_claim(ended, verdicts):
    """All but ReLU are less accurate, GELU is more so and Top-k less than all; noise and clips leave more nonzeros."""
    losses = {"relu": 0.0, "gelu": -0.03, "top_k": 0.1, "statistical": 0.15, "l1": 0.05}
    denser = {"noise": 0.2, "clipped": 0.2, "statistical": 0.02}
    found = verdicts(FRONT, ended(lambda one: losses.get(one.method, 0.1), lambda one: denser.get(one.method, 0.0)))
    assert found == dict.fromkeys(found, "contradicted")


def test_one_setting_that_costs_much_contradicts_the_method(ended, verdicts):
    found = verdicts(FRONT, ended(lambda one: 0.1 * (one == Arm("vit", "noise", 3.0))))
    wrong = {id for id, verdict in found.items() if verdict == "contradicted"}
    # It has half of ReLU's nonzeros, too.
    assert wrong == {"front.vit.noise_accuracy"} | {f"front.vit.{name}" for name in ("corrupted", "ece")}


def test_top_k_is_compared_with_l1_that_is_as_sparse_or_denser_alone(ended, verdicts):
    """L1 leaves .03 at its largest weight, Top-k of 11 .021; of 21 .041 is worse, but L1's .08 has it beside it."""
    assert verdicts(FRONT, ended(lambda one: 0.1 * (one.setting == 11)))["front.vit.top_k_beside_l1"] == "contradicted"
    assert verdicts(FRONT, ended(lambda one: 0.1 * (one.setting == 21)))["front.vit.top_k_beside_l1"] == "contradicted"
    denser = ended(dense=lambda one: 0.5 * (one.method == "top_k"))
    found = {c.id: c.measure(denser).failed for c in FRONT.claims}
    assert found["front.t5.top_k_beside_l1"] == "no Top-k was run that is as sparse as L1 at any weight"


def test_networks_that_have_not_learnt_or_were_not_run_are_not_judged(ended, verdicts):
    assert set(verdicts(FRONT, []).values()) == {"not testable"}
    assert set(verdicts(FRONT, ended(lambda one: 0.6)).values()) == {"not testable"}
    alone = [r for r in ended() if arm(r.config).method == "relu"]
    assert set(verdicts(FRONT, alone).values()) == {"not testable"}


def test_sparsity_and_calibration_of_networks_that_have_not_learnt_are_not_judged_but_their_accuracy_is(
    ended, verdicts
):
    found = verdicts(FRONT, ended(lambda one: 0.6 * (one.method in ("noise", "clipped"))))
    claims = lambda *names: {f"front.{model}.{name}" for model in ("vit", "t5") for name in names}
    # Noise has half of ReLU's nonzeros, too.
    judged = claims("clipped", "noise_accuracy") | {"front.vit.corrupted"}
    assert {id for id, verdict in found.items() if verdict == "contradicted"} == judged
    untestable = claims("clipped_kept", "noise") | {"front.vit.ece"}
    assert {id for id, verdict in found.items() if verdict == "not testable"} == untestable


def test_layers_that_make_up_for_one_another_do_not_hide(ended, verdicts):
    tilts = {"statistical": 0.025, "clipped": 0.1}
    found = verdicts(FRONT, ended(tilt=lambda one: tilts.get(one.method, 0.01)))
    wrong = {f"front.{model}.{name}_kept" for model in ("vit", "t5") for name in tilts}
    assert {id for id, verdict in found.items() if verdict != "reproduced"} == wrong
    assert {found[id] for id in wrong} == {"contradicted"}


def test_an_arm_of_which_no_run_finished_drops_out_of_no_claim_unseen(ended):
    lost = tuple(c.name for c in configs(STUDY) if arm(c) == Arm("vit", "top_k", 11.0))
    assert len(lost) == 5
    records = ended(broken=lost)
    failed = {c.id: c.measure(records).failed for c in FRONT.claims}
    of_all = {f"front.vit.{name}" for name in ("top_k_beside_l1", "corrupted", "ece")}
    assert {id: why for id, why in failed.items() if why} == dict.fromkeys(of_all, "no run of ViT, Top-k 11 finished")
    assert "ViT, at most half of ReLU's nonzeros: no run of ViT, Top-k 11 finished." in findings(records)


def test_a_seed_that_diverged_decides_nothing_where_its_method_is_used(ended, verdicts):
    found = verdicts(FRONT, ended(broken=("vit_digits_gelu_noise0_seed1",)))
    assert [id for id, verdict in found.items() if verdict != "reproduced"] == ["front.vit.gelu"]
    assert found["front.vit.gelu"] == "undecided"
    rows = {(r["network"], r["method"]): r for r in table(ended(broken=("vit_digits_gelu_noise0_seed1",)))}
    assert (rows["ViT", "GELU"]["n"], rows["T5", "GELU"]["n"]) == (4, 3)


def test_the_table_has_what_is_measured_and_the_bytes_that_follow(ended):
    rows = {(r["network"], r["method"], r["setting"]): r for r in table(ended())}
    assert len(rows) == 13 + 7
    relu = rows["ViT", "ReLU", None]
    assert (relu["n"], relu["nonzero"], relu["worst layer"]) == (5, pytest.approx(0.201), pytest.approx(0.211))
    assert (relu["accuracy"], relu["corrupted"], relu["ece"]) == pytest.approx((0.951, 0.701, 0.021))
    assert relu["se of ece"] == pytest.approx(5e-4 * 2.5**0.5 / 5**0.5)
    assert (relu["bytes"], relu["bound"]) == pytest.approx((0.6005, 1 / 0.6005))
    text = rows["T5", "Top-k", 21.0]
    assert text["corrupted"] is text["ece"] is text["se of ece"] is None
    assert rows["ViT", "GELU", None]["bound"] == pytest.approx(1, abs=1e-3)


def test_findings_are_a_sentence_an_arm_and_then_what_is_judged(ended):
    said = findings(ended())
    assert len(said) == 20 + 3
    assert said[0].startswith("ViT, ReLU: 20.1% nonzero (densest layer 21.1%), accuracy 95.1%, under corruption 70.1%")
    assert said[19].startswith("T5, clipped, edge of chaos 0.85: 15.1% nonzero")
    assert "corruption" not in said[19]
    assert said[20:22] == [
        "ViT, Top-k beside L1: ViT, Top-k 43 beside ViT, L1 3e-06; ViT, Top-k 21 beside ViT, L1 3e-05; "
        "ViT, Top-k 11 beside ViT, L1 0.0003.",
        "ViT, at most half of ReLU's nonzeros: ViT, Top-k 11; ViT, Top-k 21; ViT, Top-k 43; ViT, statistical Top-k 21; "
        "ViT, noise 1; ViT, noise 3; ViT, L1 3e-05; ViT, L1 0.0003.",
    ]
    assert said[22] == "T5, Top-k beside L1: T5, Top-k 21 beside T5, L1 0.0003."
    assert findings([]) == []


def test_the_figure_has_a_panel_for_each_measure_and_a_line_for_each_method(ended):
    (figure,) = FRONT.figures.values()
    drawn = figure({r.config.name: RunView(r.outcome, [], to_dict(r.config)) for r in ended()}).figure
    assert len(drawn.axes) == len(PANELS) == 4
    for axis, (model, *_) in zip(drawn.axes, PANELS, strict=True):
        labels = [c.get_label() for c in axis.containers]
        assert labels == [label for label, *_ in METHODS.values()]
        points = {c.get_label(): np.asarray(c.lines[0].get_xdata(), float) for c in axis.containers}
        if model == "vit":
            np.testing.assert_allclose(points["Top-k"], 100 * (np.array([11, 21, 43]) / 512 + 0.0012))
            assert len(points["L1"]) == 3
    (legend,) = drawn.legends
    assert len(legend.get_texts()) == len(METHODS)
    figure({})


def test_all_runs_of_a_model_have_the_same_budget(ended):
    """But for the MLPs' activations, noise, initialisation and biases, and the penalty."""
    configs = [r.config for r in ended()]
    for model in ("vit", "t5"):
        first, *others = [c for c in configs if arm(c).model == model]
        for other in others:
            changed = differences(to_dict(first), to_dict(other))
            assert {k for k in changed if not k.startswith(("model.mlp.", "penalty"))} <= {"name", "seed"}
            assert other.model.mlp.d_ff == first.model.mlp.d_ff


def test_runs_that_other_studies_have_too_are_done_once(tmp_path):
    of = lambda study: {run_directory(tmp_path, c) for c in expand(load_study_config(study).sweep, "embedded")}
    front = of(STUDY)
    assert len(front) == 5 * 13 + 3 * 7
    table_1, penalties, text = (of(f"li2022/{name}") for name in ("table1", "penalties", "t5_prevalence"))
    assert [len(front & other) for other in (table_1, penalties - table_1, text)] == [20, 15, 3]
