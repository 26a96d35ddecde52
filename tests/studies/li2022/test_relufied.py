import json
import math

import numpy as np
import pytest

from sparsity.evals.result import Measure
from sparsity.run import Outcome, Workdir
from sparsity.studies.judge import judge
from sparsity.studies.li2022.relufied import ARMS, RELUFIED, arm_and_seed, findings, share_of_steps, steps_to, table
from sparsity.studies.runner import Record
from tests.studies.li2022.conftest import configs

STUDY = "li2022/relufied"
# Test loss in the end, and shares of nonzeros by layer.
AS_SAID = {
    "pretrained": (1.52, (1, 1, 1)),
    "silu": (1.50, (1, 1, 1)),
    "relu": (1.51, (0.35, 0.25, 0.3)),
    "shifted_relu": (1.51, (0.15, 0.1, 0.12)),
    "drelu": (1.515, (0.15, 0.1, 0.12)),
    "scratch": (1.512, (0.4, 0.3, 0.3)),
}
# Right after the switch, and where the validation loss begins.
AT_FIRST = {"pretrained": 5.5, "silu": 1.52, "relu": 2.0, "shifted_relu": 2.5, "drelu": 2.2, "scratch": 5.5}


@pytest.fixture
def tuned(tmp_path):
    """tuned(ends, at_first, accuracy, cut, kept, fall, broken): a record of every run, as it might have ended.

    The validation loss falls to the end in a straight line, `fall` times in the steps that are validated. `accuracy` is
    by arm, .5 of others; `kept` is the share of SiLU's activations that are left in the layer that has most.
    """

    def records(ends=AS_SAID, at_first=AT_FIRST, accuracy=None, cut=0.01, kept=0.5, fall=4, broken=()):
        out = []
        for config in configs(STUDY):
            arm, seed = arm_and_seed(config.name)
            (loss, layers), wobble = ends[arm], 1e-4 * seed
            steps = np.arange(0, config.steps, config.every.eval)
            slope = np.clip(fall * steps / steps[-1], 0, 1)
            nats = at_first[arm] + (loss - at_first[arm]) * slope + wobble
            lines = [
                {"kind": "validation", "step": int(s), "nll": x, "nonzero.mean": 0.5}
                for s, x in zip(steps, nats.tolist(), strict=True)
            ]
            files = Workdir(tmp_path / f"{len(list(tmp_path.iterdir()))}-{config.name}")
            files.path.mkdir()
            files.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
            if config.name in broken:
                out.append(Record(config, files, Outcome("diverged", 0)))
                continue
            values = {"nll": loss + wobble, "accuracy": (accuracy or {}).get(arm, 0.5)}
            if arm == "silu":
                values["quantile_50.rise"] = math.expm1(cut * (loss + wobble) + wobble)
                values |= {f"quantile_50.block_{i}": x for i, x in enumerate((0.5, 0.5, kept))}
            values |= {f"nonzero.block_{i}": x + wobble * (arm == "relu") for i, x in enumerate(layers)}
            measures = tuple(Measure(name, value, 0.001, 100, "") for name, value in values.items())
            out.append(Record(config, files, Outcome("finished", config.steps, measures)))
        return out

    return records


def test_every_arm_of_a_seed_starts_from_one_run_and_the_sweep_has_it():
    runs = {arm_and_seed(config.name): config for config in configs(STUDY)}
    assert list(runs) == [(arm, seed) for seed in range(3) for arm in ARMS]
    for (arm, seed), config in runs.items():
        assert config.start == (None if arm in ("pretrained", "scratch") else runs["pretrained", seed])
    relu, drelu = (runs[arm, 0].model.mlp for arm in ("relu", "drelu"))
    assert (relu.gate, drelu.gate) == (None, drelu.sparsifier)
    assert relu.sparsifier == drelu.sparsifier
    assert runs["scratch", 0].steps == runs["pretrained", 0].steps + runs["relu", 0].steps
    assert runs["scratch", 0].model == runs["relu", 0].model


def test_runs_as_it_is_said_reproduce_every_claim(tuned, verdicts):
    assert set(verdicts(RELUFIED, tuned()).values()) == {"reproduced"}


def test_runs_of_the_opposite_kind_contradict_every_claim(tuned, verdicts):
    """ReLU loses nothing at first, never gets where SiLU is, and is dense; the others are denser."""
    ends = {"pretrained": (1.52, (1, 1, 1)), "silu": (1.4, (1, 1, 1)), "scratch": (1.4, (0.4, 0.4, 0.4))}
    ends |= dict.fromkeys(("shifted_relu", "drelu"), (1.5, (0.9, 0.9, 0.9))) | {"relu": (1.5, (0.6, 0.6, 0.6))}
    at_first = AT_FIRST | {"relu": 1.53}
    assert set(verdicts(RELUFIED, tuned(ends, at_first, cut=0.1)).values()) == {"contradicted"}


def test_one_layer_that_is_denser_contradicts_what_is_said_of_every_layer(tuned, verdicts):
    found = verdicts(RELUFIED, tuned(AS_SAID | {"drelu": (1.515, (0.15, 0.1, 0.2))}))
    assert {id for id, verdict in found.items() if verdict != "reproduced"} == {"R.sparse.drelu"}
    assert found["R.sparse.drelu"] == "contradicted"


def test_steps_are_interpolated_between_validations_and_infinite_if_never_reached(tuned):
    runs = {arm_and_seed(r.config.name): r for r in tuned()}
    relu = runs["relu", 0]  # steps 0, 50, ..., 250: from 2 to 1.51 at 62.5
    assert steps_to(relu, 2.5) == 0
    # 2 at step 0, 1.608 at 50.
    assert steps_to(relu, 1.706) == pytest.approx(37.5)
    assert steps_to(relu, 1.4) == math.inf
    assert math.isnan(steps_to(relu, math.nan))
    # 1.51 at step 100; from scratch it is 1.512 in step 1200, the last to be validated.
    assert share_of_steps(relu, runs["scratch", 0]) == pytest.approx((50 + 50 * 0.096 / 0.098) / 1200)
    assert share_of_steps(runs["drelu", 0], runs["scratch", 0]) == 1


def test_a_checkpoint_that_has_learnt_nothing_is_not_judged(tuned):
    found = [judge(claim, tuned(accuracy=dict.fromkeys(ARMS, 0.28))) for claim in RELUFIED.claims]
    assert {j.verdict for j in found} == {"not testable"}
    assert "predicts only 0.28" in found[0].measured.failed


def test_an_arm_that_has_learnt_nothing_is_judged_by_its_loss_alone_and_is_nothing_to_compare_with(tuned, verdicts):
    found = verdicts(RELUFIED, tuned(accuracy={"drelu": 0.28, "scratch": 0.28}))
    untestable = {"R.sparse.drelu", "R.quick", "R.scratch"}
    assert {id: verdict for id, verdict in found.items() if verdict != "reproduced"} == dict.fromkeys(
        untestable, "not testable"
    )


def test_without_a_checkpoint_that_finished_nothing_is_judged(tuned):
    records = tuned(broken=[f"llama_text_seed{seed}" for seed in range(3)])
    assert {c.measure(records).failed for c in RELUFIED.claims} == {"no run of the checkpoint finished"}


def test_what_is_reached_at_the_last_validation_alone_is_not_quick(tuned, verdicts):
    found = verdicts(RELUFIED, tuned(fall=1))
    assert {id: verdict for id, verdict in found.items() if verdict != "reproduced"} == {"R.quick": "contradicted"}


def test_a_cut_that_keeps_more_than_about_half_of_a_layer_is_not_judged(tuned):
    records = tuned(kept=0.6)
    failed = {c.id: c.measure(records).failed for c in RELUFIED.claims}
    why = "half was to be cut off: 0.60 of a layer's activations were kept"
    assert {id: said for id, said in failed.items() if said} == {"R.cut": why}


def test_without_runs_nothing_can_be_judged_and_a_diverged_one_is_no_evidence(tuned, verdicts):
    assert set(verdicts(RELUFIED, []).values()) == {"not testable"}
    records = tuned(broken=("llama_text_seed1_then_relu",))
    found = verdicts(RELUFIED, records)
    without = {"R.loss.shifted_relu", "R.loss.drelu", "R.cut"}
    assert {id for id, verdict in found.items() if verdict == "reproduced"} == without
    assert {found[id] for id in found.keys() - without} == {"undecided"}
    assert {row["arm"]: row["n"] for row in table(records)}["relu"] == 2


def test_the_table_has_a_row_for_each_arm(tuned):
    rows = {row["arm"]: row for row in table(tuned())}
    assert tuple(rows) == ARMS
    relu = rows["relu"]
    assert (relu["at first"], relu["loss"]) == pytest.approx((2.0 + 1e-4, 1.51 + 1e-4))
    assert relu["against silu"] == pytest.approx(1.5101 / 1.5001 - 1)
    assert (relu["nonzero"], relu["densest"]) == pytest.approx((0.3 + 1e-4, 0.35 + 1e-4))
    assert relu["se"] == pytest.approx(1e-4 / 3**0.5)
    assert rows["silu"]["against silu"] == 0
    assert rows["silu"]["cut"] == pytest.approx(0.01 + 1e-4 / 1.5, rel=1e-3)
    assert relu["cut"] is None


def test_figures_have_every_arm_and_findings_a_sentence_of_each(tuned, views):
    records = tuned()
    figures = {title: figure(views(records)).figure for title, figure in RELUFIED.figures.items()}
    before, after = figures["Loss by step"].axes
    assert [line.get_label() for line in before.lines] == ["pretrained", "scratch"]
    assert len(after.lines) == 4 + 2
    (axis,) = figures["Nonzeros by layer"].axes
    np.testing.assert_allclose(axis.lines[0].get_ydata(), 100 * np.array([0.35, 0.25, 0.3]) + 0.01)
    said = findings(records)
    assert len(said) == 5
    assert (
        "relu (n = 3): 2.000 nats a byte at first (SiLU 1.520), 1.510 in the end, +0.7% against SiLU's 1.500" in said[0]
    )
    assert said[-1] == "SiLU without the smaller half of its activations: +1.0% of its loss."
    assert findings([]) == []
