import pytest

from sparsity.studies.bricken2023 import activations
from sparsity.studies.bricken2023.activations import ACTIVATION_STUDY
from sparsity.studies.bricken2023.runs import arm_sigma_seed
from sparsity.studies.judge import judge

CLAIMS = {c.id: c for c in ACTIVATION_STUDY.claims}
# The world as the main text has it: active share without noise, at sigma .3 and at .8, and Gabor-like fields at .8.
MAIN_TEXT = {
    "relu": (0.5, 0.1, 0.05, 0.4),
    "gelu": (0.6, 0.4, 0.2, 0.4),
    "sigmoid": (1.0, 1.0, 1.0, 0.01),
    "elu": (0.9, 0.6, 0.5, 0.2),
    "tanh": (1.0, 1.0, 1.0, 0.01),
}


def made_up(world):
    def measures(name):
        arm, sigma, seed = arm_sigma_seed(name)
        without, little, much, fields = world[activations.activation(arm)]
        share = without if sigma < 0.3 else little if sigma < 0.8 else much
        share = min(share + 1e-4 * seed, 1.0)
        return {
            activations.ACTIVE: share,
            activations.STRICT: 0.9 * share,
            activations.GABOR: fields if sigma == 0.8 else 0.01,
            "mse": 0.01,
        }

    return measures


@pytest.fixture
def swept(ended):
    """swept(measures): a record of every embedded run, with the final `measures(its name)`."""
    return lambda measures: ended("bricken2023/activations", lambda config: (measures(config.name), ()))


@pytest.fixture
def verdict(swept):
    def of(claim, **changed):
        return judge(CLAIMS[claim], swept(made_up(MAIN_TEXT | changed))).verdict

    return of


VERDICTS = [
    *((claim, {}, "reproduced") for claim in CLAIMS if not claim.startswith("B13.sigmoid.h1")),
    ("B13.relu", {"gelu": (0.6, 0.4, 0.04, 0.4)}, "contradicted"),
    ("B13.relu", {"elu": (0.9, 0.6, 0.0499, 0.2)}, "contradicted"),
    ("B13.gelu", {"gelu": (0.6, 0.4, 0.59, 0.4)}, "contradicted"),
    ("B13.gelu.from", {"gelu": (0.6, 0.9, 0.2, 0.4)}, "contradicted"),  # as in the authors' own numbers
    ("B13.gelu.fields", {"gelu": (0.6, 0.4, 0.2, 0.01)}, "contradicted"),
    ("B13.sigmoid", {"sigmoid": (1.0, 1.0, 0.1, 0.01)}, "contradicted"),  # denser than ReLU is not enough
    ("B13.sigmoid.fields", {"sigmoid": (1.0, 1.0, 1.0, 0.4)}, "contradicted"),
    ("B13.elu", {"elu": (0.9, 0.9, 0.9, 0.2)}, "contradicted"),
    ("B13.tanh", {"tanh": (1.0, 1.0, 0.5, 0.2)}, "contradicted"),
    # On sigmoid the paper says both: one of the two must go.
    ("B13.sigmoid.h1", {}, "contradicted"),
    ("B13.sigmoid.h1.strict", {}, "contradicted"),
    ("B13.sigmoid.h1", {"sigmoid": (1.0, 0.9, 0.6, 0.01)}, "reproduced"),
    ("B13.sigmoid.h1.strict", {"sigmoid": (1.0, 0.9, 0.6, 0.01)}, "reproduced"),
    ("B13.sigmoid.main", {"sigmoid": (1.0, 0.9, 0.6, 0.01)}, "contradicted"),
]


@pytest.mark.parametrize(("claim", "world", "expected"), VERDICTS)
def test_the_verdict_on_made_up_networks(verdict, claim, world, expected):
    assert verdict(claim, **world) == expected


def test_seeds_that_disagree_leave_it_undecided(swept):
    def measures(name):
        arm, _, seed = arm_sigma_seed(name)
        return {activations.ACTIVE: 0.5 if activations.activation(arm) == "relu" else (0.1, 0.6, 0.6)[seed]}

    made = swept(measures)
    assert judge(CLAIMS["B13.relu"], made).verdict == "undecided"


def test_an_activation_that_was_not_run_is_not_testable(swept):
    made = swept(made_up(MAIN_TEXT))
    judged = judge(CLAIMS["B13.tanh"], [r for r in made if not r.config.name.endswith("tanh")])
    assert judged.verdict == "not testable"
    assert judged.measured.failed == "no run of tanh at 0, tanh at 0.8"


def test_every_claim_has_three_seeds(swept):
    made = swept(made_up(MAIN_TEXT))
    assert {judge(claim, made).measured.n for claim in ACTIVATION_STUDY.claims} == {3}


def test_the_paper_s_numbers_stand_beside(swept):
    rows = ACTIVATION_STUDY.table(swept(made_up(MAIN_TEXT)))
    by_run = {(row["activation"], row["sigma"]): row for row in rows}
    assert len(by_run) == len(rows) == 25
    assert by_run["relu", 0.8]["|h| > 1e-4, paper"] == 0.036
    assert by_run["gelu", 0.3]["|h| > 1e-4, paper"] == 0.873
    assert by_run["tanh", 0.3]["|h| > 1e-4, paper"] is None


def test_the_findings_say_that_the_paper_disagrees_with_itself(swept):
    said = ACTIVATION_STUDY.findings(swept(made_up(MAIN_TEXT)))
    assert any("contradicts itself on sigmoid" in line for line in said)


def test_figures_are_drawn(swept, views):
    made = views(swept(made_up(MAIN_TEXT)))
    for figure in ACTIVATION_STUDY.figures.values():
        assert figure.__doc__
        assert figure(made).png()
