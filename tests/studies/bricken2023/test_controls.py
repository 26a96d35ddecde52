import math

import pytest

from sparsity.studies.bricken2023 import controls
from sparsity.studies.judge import judge

STUDY = controls.CONTROLS
CLAIMS = {c.id: c for c in STUDY.claims}
# Noise of sigma .8 makes a network sparse, with fields; the penalty does not; the rest does as noise does.
USUAL = {
    "ae": {"active": 0.4, "gabor": 0.1},
    "ae_jacobian": {"active": 0.4, "gabor": 0.1},
    ("ae", 0.8): {"active": 0.1, "gabor": 0.6},
    "ae_shared_bias": {"active": 0.1, "gabor": 0.6},
    **{f"ae_scale{s:g}": {"time": 100 * (1 + s)} for s in controls.SCALES},
}


@pytest.fixture
def ended(made):
    """ended(changes): the study's runs, changed by (variant, sigma) or variant; a thousandth more a seed."""

    def state(changes, variant, sigma):
        one = {"active": 0.1, "gabor": 0.1, "loss": 0.01, "time": 100.0}
        for source in (USUAL, changes):
            one = one | source.get(variant, {}) | source.get((variant, sigma), {})
        return one

    def records(changes):
        def measures(variant, sigma, seed):
            one = state(changes, variant, sigma)
            if one.get("diverged"):
                return None
            values = {controls.DENSITY: one["active"], controls.GABOR: one["gabor"] + 0.01 * seed * sigma}
            return values | {controls.NEVER: 0.0, "mse": 0.01, "explained": 0.9}

        def lines(variant, sigma, seed):
            one, wobble = state(changes, variant, sigma), 1 + 1e-3 * seed
            for step in range(10):
                yield {"kind": "train", "step": step, "loss": one["loss"] * wobble if step == 9 else 7.0}
            for step in range(0, 1500, 100):  # from 50% on a line through 25% after `time`
                share = max(0.5 - 0.25 * step / (one["time"] * wobble), 0.05)
                yield {"kind": "sparsity", "step": step, "layers": {"hidden": {"nonzero": share}}}
                yield {"kind": "weights", "step": step, "modules": {"hidden/wi": {"bias_mean": -0.1, "norm_mean": 1.0}}}

        return made("bricken2023/controls", measures, lines)

    return records


VERDICTS = [
    ("B7.sparsity", {}, "reproduced"),
    ("B7.sparsity", {("ae_jacobian", 0.8): {"active": 0.1}}, "contradicted"),
    ("B7.noise", {}, "reproduced"),
    ("B7.noise", {("ae_jacobian", 0.8): {"active": 0.15}}, "contradicted"),
    ("B7.fields", {}, "reproduced"),
    ("B7.fields", {("ae_jacobian", 0.8): {"gabor": 0.8}}, "contradicted"),
    ("B7.fields", {("ae", 0.8): {"gabor": 0.0}}, "not testable"),  # noise made none
    ("B4.loss", {}, "reproduced"),
    ("B4.loss", {"ae_shared_bias": {"loss": 0.02}}, "contradicted"),
    ("B4.loss", {"ae_shared_bias": {"loss": 0.005}}, "contradicted"),  # better is not the same either
    ("B4.loss", {"ae_shared_bias": {"diverged": True}}, "undecided"),
    ("B4.sparsity", {}, "reproduced"),
    ("B4.sparsity", {"ae_shared_bias": {"active": 0.2}}, "contradicted"),
    ("B8", {}, "reproduced"),
    ("B8", {"ae_scale0.3": {"time": 90}}, "contradicted"),  # sooner than .1 is too soon
    ("B8", {"ae_scale1": {"time": 1e5}, "ae_scale3": {"time": 1e5}}, "undecided"),  # neither became sparse
    ("B8", {"ae_scale0.1": {"diverged": True}}, "undecided"),
    ("B8.small", {"ae_scale0.3": {"time": 90}}, "reproduced"),
    ("B8.small", {"ae_scale0.1": {"time": 300}}, "contradicted"),
]


@pytest.mark.parametrize(("claim", "changes", "verdict"), VERDICTS)
def test_the_verdict_on_made_up_runs(ended, claim, changes, verdict):
    assert judge(CLAIMS[claim], ended(changes)).verdict == verdict


def test_every_claim_has_both_verdicts_here_and_without_its_runs_none(ended):
    for verdict in ("reproduced", "contradicted"):
        assert {claim for claim, _, found in VERDICTS if found == verdict} == set(CLAIMS)
    records = [r for r in ended({}) if "photos_gaussian" in r.config.name and r.config.steps == 4000]
    records = [r for r in records if "shared_bias" not in r.config.name]
    assert {judge(claim, records).verdict for claim in STUDY.claims} == {"not testable"}


@pytest.mark.parametrize(("time", "found"), [(137.0, 137.0), (1300.0, 1300.0), (1e6, 1400.0)])
def test_steps_to_sparsity_are_read_between_records_and_are_all_if_it_never_comes(ended, time, found):
    records = ended({"ae_scale1": {"time": time}})
    (run,) = [r for r in records if r.config.name == "ae400_photos_gaussian3_seed0_scale1"]
    assert controls.steps_to_sparsity(run) == pytest.approx(found)


def test_the_table_has_a_line_an_arm_and_sigma(ended):
    rows = {(r["arm"], r["sigma"]): r for r in controls.table(ended({}))}
    assert len(rows) == 4 + 3 + 1 + 4
    penalty = rows["ae400_photos_jacobian", 0.8]
    assert (penalty["n"], penalty["active"], penalty["centre-surround"]) == (3, pytest.approx(0.4), None)
    assert penalty["noisy loss"] == pytest.approx(0.01, rel=0.01)
    assert rows["ae400_photos_scale0.1", 3.0]["steps to 25%"] == pytest.approx(110, rel=0.01)
    assert len(controls.findings(ended({"ae_scale0.1": {"diverged": True}}))) == len(rows)
    said = controls.findings(ended({}))
    assert [("steps to 25%" in line) for line in said] == [arm.count("_scale") == 1 for arm, _ in rows]


@pytest.mark.parametrize("heading", STUDY.figures)
def test_every_figure_is_drawn_and_has_a_caption(heading, ended, views):
    figure = STUDY.figures[heading]
    drawing = figure(views(ended({})))
    assert figure.__doc__
    for axis in drawing.figure.axes:
        assert axis.lines or axis.images
        assert all(math.isfinite(y) for line in axis.lines for y in line.get_ydata())
