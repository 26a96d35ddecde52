import math

import pytest

from sparsity.studies.bricken2023 import annealing
from sparsity.studies.judge import judge

STUDY = annealing.ANNEALING
CLAIMS = {c.id: c for c in STUDY.claims}
LAYER = {"ae": "hidden", "mlp": "layer_0"}
FALLS = {"ae": 6000, "mlp": 2000}  # the step from which noise falls
# How a run ends unless a test says otherwise; before and after are active shares, dead those at the same times.
USUAL = {"before": 0.1, "after": 0.1, "dead": (0.0, 0.0), "explained": 0.9, "mse": 0.01, "accuracy": 0.9}
UNTOUCHED = {"before": 0.5, "after": 0.5}


@pytest.fixture
def ended(made):
    """ended(changes): the study's runs, changed by (variant, sigma) or variant; a thousandth more a seed."""

    def state(changes, variant, sigma):
        plain = UNTOUCHED if "annealed" not in variant else {}
        return USUAL | plain | changes.get(variant, {}) | changes.get((variant, sigma), {})

    def records(changes):
        def measures(variant, sigma, seed):
            one = state(changes, variant, sigma)
            if one.get("diverged"):
                return None
            wobble = 1 + 1e-3 * seed * (1 + sigma)
            return {"units.never.hidden": 0.0} | {k: one[k] * wobble for k in ("explained", "mse", "accuracy")}

        def lines(variant, sigma, seed):
            one, kind = state(changes, variant, sigma), variant.partition("_")[0]
            layer, wobble, falls = LAYER[kind], 1 + 1e-3 * seed, FALLS[kind]
            for step, share in ((0, 0.5), (falls, one["before"]), (falls + 1, 0.3), (2 * falls, one["after"] * wobble)):
                yield {"kind": "sparsity", "step": step, "layers": {layer: {"nonzero": share}}}
            before, after = one["dead"]
            for step, dead in ((0, 0.0), (falls, before), (falls + 1, 0.5), (2 * falls, after * wobble)):
                yield {"kind": "validation", "step": step, "dead.mean": dead}

        return made("bricken2023/annealing", measures, lines)

    return records


AE, MLP = "ae_annealed", "mlp_annealed"
VERDICTS = [
    ("B6.sparsity", {}, "reproduced"),
    ("B6.sparsity", {(AE, 1.5): {"after": 0.2}}, "contradicted"),  # one sigma is enough
    ("B6.sparsity", {(AE, 0.1): {"after": 0.2}}, "reproduced"),  # but not one that is hardly sparse
    ("B6.sparsity", {(AE, 1.5): {"after": 0.0}}, "undecided"),  # nothing active is not sparsity kept
    ("B6.sparsity", {(AE, 1.5): {"diverged": True}}, "undecided"),
    ("B6.sparsity.classification", {MLP: {"after": 0.05}}, "reproduced"),
    ("B6.sparsity.classification", {MLP: {"after": 0.3}}, "contradicted"),
    ("B6.sparse", {}, "reproduced"),
    ("B6.sparse", {(AE, 0.8): {"after": 0.4}}, "contradicted"),
    ("B6.loss", {}, "reproduced"),
    ("B6.loss", {(AE, 3.0): {"explained": 0.85}}, "contradicted"),
    ("B6.loss", {(AE, 10.0): {"explained": 0.5}}, "reproduced"),  # the highest noise is excepted
    ("B6.loss", {(AE, 3.0): {"diverged": True}}, "undecided"),
    ("B6.loss.relative", {}, "reproduced"),
    ("B6.loss.relative", {(AE, 3.0): {"mse": 0.02}}, "contradicted"),
    ("B6.accuracy", {(MLP, 0.1): {"accuracy": 0.95}}, "reproduced"),
    ("B6.accuracy", {MLP: {"accuracy": 0.85}}, "contradicted"),
    ("B6.accuracy.kept", {}, "reproduced"),
    ("B6.accuracy.kept", {(MLP, 3.0): {"accuracy": 0.8}}, "contradicted"),
    ("B6.dead.below", {}, "reproduced"),
    ("B6.dead.below", {(AE, 0.3): {"dead": (0.1, 0.2)}}, "contradicted"),
    ("B6.dead.below", {(AE, 0.3): {"dead": (0.2, 0.1)}}, "reproduced"),
    ("B6.dead.below", {(AE, 0.3): {"diverged": True}}, "undecided"),
    ("B6.dead.from", {AE: {"dead": (0.1, 0.2)}}, "reproduced"),
    ("B6.dead.from", {(AE, 3.0): {"dead": (0.1, 0.2)}}, "contradicted"),  # and not at .8
    ("B6.dead.classification.below", {(MLP, 3.0): {"dead": (0.0, 0.2)}}, "reproduced"),
    ("B6.dead.classification.below", {(MLP, 1.5): {"dead": (0.0, 0.2)}}, "contradicted"),
    ("B6.dead.classification.from", {MLP: {"dead": (0.0, 0.2)}}, "reproduced"),
    ("B6.dead.classification.from", {}, "contradicted"),
]


@pytest.mark.parametrize(("claim", "changes", "verdict"), VERDICTS)
def test_the_verdict_on_made_up_runs(ended, claim, changes, verdict):
    assert judge(CLAIMS[claim], ended(changes)).verdict == verdict


def test_every_claim_has_both_verdicts_here_and_without_its_runs_none(ended):
    for verdict in ("reproduced", "contradicted"):
        assert {claim for claim, _, found in VERDICTS if found == verdict} == set(CLAIMS)
    records = [r for r in ended({}) if "annealed" not in r.config.name]
    assert {judge(claim, records).verdict for claim in STUDY.claims} == {"not testable"}


def test_accuracy_with_little_noise_has_more_seeds(ended):
    records = ended({})
    assert [judge(CLAIMS[c], records).measured.n for c in ("B6.accuracy", "B6.accuracy.kept")] == [8, 3]


def test_the_table_has_what_was_before_and_after(ended):
    rows = {
        (r["task"], r["sigma"]): r for r in annealing.table(ended({(MLP, 0.3): {"before": 0.2, "dead": (0.1, 0.2)}}))
    }
    row = rows["classification", 0.3]
    assert (row["n"], row["active before"], row["dead before"]) == (8, pytest.approx(0.2), pytest.approx(0.1))
    assert (row["active after"], row["dead after"]) == (pytest.approx(0.1, rel=0.01), pytest.approx(0.2, rel=0.01))
    assert (row["score, paper"], row["active, paper"]) == (0.943, 0.45)
    assert row["test mse"] == pytest.approx(0.01, rel=0.02)
    untouched = rows["reconstruction", 0.0]
    assert (untouched["n"], untouched["active before"], untouched["score, paper"]) == (3, None, None)
    assert untouched["active after"] == pytest.approx(0.5, rel=0.01)


def test_noise_falls_where_the_config_says(ended):
    falls = {annealing.fall_of_noise(r) for r in ended({})}
    assert falls == {None, *((start, start + start * 3 // 4) for start in FALLS.values())}


def test_findings_are_one_a_line_of_the_table(ended):
    said = annealing.findings(ended({}))
    assert len(said) == 14
    assert "classification at sigma 0.3 (n = 8): test score 90." in said[9]


@pytest.mark.parametrize("heading", STUDY.figures)
def test_every_figure_is_drawn(heading, ended, views):
    drawing = STUDY.figures[heading](views(ended({})))
    heights = [y for axis in drawing.figure.axes for line in axis.lines for y in line.get_ydata()]
    assert any(math.isfinite(y) for y in heights)
