import math

import pytest

from launch.cli import load_study_config
from sparsity.config import config_hash
from sparsity.data.corruptions import CORRUPTIONS, SEVERITIES
from sparsity.studies.bricken2023 import robustness
from sparsity.studies.judge import judge
from sparsity.studies.runner import expand

STUDY = robustness.ROBUSTNESS
CLAIMS = {c.id: c for c in STUDY.claims}
# How a run ends unless a test says otherwise: accuracy, accuracy at severity 1 and 5 (straight between them), ece.
USUAL = {"accuracy": 0.95, "mild": 0.9, "severe": 0.5, "ece": 0.05, "active": 0.5}
CONSTANT, ANNEALED = [("mlp", s) for s in (0.1, 0.3, 0.8, 1.5)], "mlp_annealed"
TOP_K = ("mlp_top_k_0.1", "mlp_top_k_0.03")


@pytest.fixture
def ended(made):
    """ended(changes): the study's runs, changed by variant or (variant, sigma); a thousandth less a seed."""

    def records(changes):
        def measures(variant, sigma, seed):
            one = USUAL | changes.get(variant, {}) | changes.get((variant, sigma), {})
            if one.get("diverged"):
                return None
            wobble = 1 - 1e-3 * seed * (1 + sigma)
            at = [(s, one["mild"] + (one["severe"] - one["mild"]) * (s - 1) / 4) for s in SEVERITIES]
            found = {"accuracy": one["accuracy"] * wobble, "ece": one["ece"] * wobble, "nonzero.layer_0": one["active"]}
            found |= {f"robustness.{c}.{s}": a * wobble for c in CORRUPTIONS for s, a in at}
            mean = wobble * (one["mild"] + one["severe"]) / 2
            return found | {f"robustness.{c}": mean for c in CORRUPTIONS} | {"robustness.mean": mean}

        return made("bricken2023/robustness", measures)

    return records


def of(arms, change):
    return dict.fromkeys(arms, change)


VERDICTS = [
    *(
        case
        for name, arms in (("constant", CONSTANT), ("annealed", [ANNEALED]), ("top_k", TOP_K))
        for case in (
            (f"robustness.{name}", of(arms, {"severe": 0.7}), "reproduced"),
            (f"robustness.{name}", of(arms, {"severe": 0.3}), "contradicted"),
            (f"robustness.{name}", of(arms, {"diverged": True}), "undecided"),
            (f"robustness.{name}.severe", of(arms, {"severe": 0.7}), "reproduced"),
            (f"robustness.{name}.severe", of(arms, {"mild": 0.95, "severe": 0.4}), "contradicted"),
            (f"robustness.{name}.calibration", of(arms, {"ece": 0.02}), "reproduced"),
            (f"robustness.{name}.calibration", of(arms, {"ece": 0.1}), "contradicted"),
            (f"robustness.{name}.accuracy", {}, "reproduced"),
            (f"robustness.{name}.accuracy", of(arms, {"accuracy": 0.9}), "contradicted"),
        )
    ),
    (
        "robustness.constant",
        of([("mlp", 0.1), ("mlp", 1.5)], {"severe": 0.1}) | of(CONSTANT[1:3], {"severe": 0.7}),
        "reproduced",
    ),
    ("robustness.kept", of(CONSTANT, {"severe": 0.8}) | {ANNEALED: {"severe": 0.75}}, "reproduced"),
    ("robustness.kept", of(CONSTANT, {"severe": 0.8}) | {ANNEALED: {"severe": 0.55}}, "contradicted"),
    ("robustness.kept", of(CONSTANT, {"severe": 0.3}) | {ANNEALED: {"severe": 0.9}}, "undecided"),  # no gain to keep
    ("robustness.beside_top_k", {ANNEALED: {"severe": 0.7}}, "reproduced"),
    ("robustness.beside_top_k", of(TOP_K, {"severe": 0.7}), "contradicted"),
]


@pytest.mark.parametrize(("claim", "changes", "verdict"), VERDICTS)
def test_the_verdict_on_made_up_runs(ended, claim, changes, verdict):
    assert judge(CLAIMS[claim], ended(changes)).verdict == verdict


def test_every_claim_has_both_verdicts_here_and_without_its_runs_none(ended):
    for verdict in ("reproduced", "contradicted"):
        assert {claim for claim, _, found in VERDICTS if found == verdict} == set(CLAIMS)
    records = [r for r in ended({}) if r.config.name.startswith("mlp400_digits_gaussian0_")]
    assert {judge(claim, records).verdict for claim in STUDY.claims} == {"not testable"}


def test_one_of_the_two_settings_that_diverged_leaves_it_undecided(ended):
    assert judge(CLAIMS["robustness.annealed"], ended({(ANNEALED, 0.8): {"diverged": True}})).verdict == "undecided"


@pytest.mark.parametrize("scale", ["embedded", "paper"])
def test_plain_and_annealed_runs_are_those_of_the_study_of_annealing(scale):
    hashes = lambda study: {config_hash(c) for c in expand(load_study_config(study).sweep, scale)}
    ours, theirs = hashes("bricken2023/robustness"), hashes("bricken2023/annealing")
    assert len(ours - theirs) == 18
    assert len(ours & theirs) == {"embedded": 33, "paper": 18}[scale]


def test_the_table_has_every_training_at_every_setting(ended):
    rows = {(r["training"], r["setting"]): r for r in robustness.table(ended({ANNEALED: {"severe": 0.7}}))}
    assert [key[0] for key in rows] == ["plain", *["constant"] * 4, *["annealed"] * 5, *["top_k"] * 2]
    some = (("plain", 0.0), ("annealed", 0.3), ("annealed", 0.8), ("top_k", 0.03))
    assert [rows[key]["n"] for key in some] == [8, 8, 3, 3]
    row = rows["annealed", 0.8]
    for column, expected in (("accuracy", 0.95), ("corrupted", 0.8), ("severity 1", 0.9), ("severity 5", 0.7)):
        assert row[column] == pytest.approx(expected, rel=0.01)
    assert row["se of corrupted"] == pytest.approx(0.8 * 1.8e-3 / math.sqrt(3))


def test_findings_are_one_a_line_of_the_table(ended):
    said = robustness.findings(ended({}))
    assert len(said) == 12
    assert "top-k at 0.03 (n = 3): 50.0% active, accuracy 94.9%, under corruption 69.9%" in said[-1]


@pytest.mark.parametrize("heading", STUDY.figures)
def test_every_figure_is_drawn(heading, ended, views):
    drawing = STUDY.figures[heading](views(ended({})))
    heights = [y for axis in drawing.figure.axes for line in axis.lines for y in line.get_ydata()]
    assert any(math.isfinite(y) for y in heights)
