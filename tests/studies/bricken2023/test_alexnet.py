import pytest

from sparsity.studies.bricken2023 import ALEXNET
from sparsity.studies.bricken2023.alexnet import LAYERS, arm_of, printed
from sparsity.studies.judge import judge

CLAIMS = {c.id: c for c in ALEXNET.claims}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("alexnet_digits_gaussian1.5_seed2_adam", ("adam", 1.5, 2)),
        ("alexnet_digits_gaussian0_seed0_sparse_adam", ("sparse_adam", 0.0, 0)),
        ("alexnet_cifar10_gaussian10_seed1_sgd", ("sgd", 10.0, 1)),
        ("alexnet_cifar10_gaussian0.5_seed1_average", ("average", 0.5, 1)),
        ("alexnet_digits_gaussian1.5_seed0_convolutions", ("convolutions", 1.5, 0)),
    ],
)
def test_arms_are_read_from_names(name, expected):
    assert arm_of(name) == expected


def test_the_printed_numbers_are_those_of_the_table_and_of_the_text():
    assert len(printed()) == 18 + 2
    assert (printed()["adam", 0.0], printed()["sparse_adam", 0.5]) == (0.815, 0.618)
    assert (printed()["convolutions", 0.5], printed()["convolutions", 10.0]) == (0.76, 0.70)


def as_the_paper(arm, sigma):
    """Numbers of a run as the paper has them."""
    lost = {"sgd": 0.15, "convolutions": 0.08}.get(arm, 0.22)
    noisy = sigma > 0
    dead = {"adam": 0.4, "sgd": 0.0, "sparse_adam": 0.2}.get(arm, 0.3)
    more = (0.2,) * 5 if arm == "convolutions" else (0.2, -0.1, -0.1, -0.1, -0.1)
    return {
        "accuracy": (0.71 if arm == "sgd" else 0.82) - lost * noisy,
        "train": 1.0,
        "active": [0.4 + change * noisy for change in (*more, -0.1, -0.1)],
        "dead": [0.0, *[dead * noisy] * 6],
    }


@pytest.fixture
def made(ended):
    """made(changed): the records of the paper's findings, but where `changed` maps (arm, sigma) to other numbers."""

    def records(changed=lambda arm, sigma: {}):
        def how(config):
            arm, sigma, seed = arm_of(config.name)
            run = as_the_paper(arm, sigma) | changed(arm, sigma)
            shrunk = 1 - 0.01 * seed * (sigma > 0)  # so that no effect is without error
            measures = {"accuracy": run["accuracy"] * shrunk}
            for layer, active, dead in zip(LAYERS, run["active"], run["dead"], strict=True):
                measures |= {f"units.density.{layer}": active * shrunk, f"units.silent.{layer}": dead * shrunk}
            # Of forty steps the last two are the last twentieth.
            fits = [0.1] * 38 + [run["train"] - 0.001 * seed] * 2
            lines = [{"kind": "train", "step": i, "loss": 0.1, "accuracy": fit} for i, fit in enumerate(fits)]
            return measures, lines

        return ended(ALEXNET.name, how)

    return records


@pytest.mark.parametrize("claim", CLAIMS)
def test_the_paper_s_findings_are_reproduced(made, claim):
    assert judge(CLAIMS[claim], made()).verdict == "reproduced"


def where(arm, **numbers):
    """Other numbers of an arm's runs with noise."""
    return lambda name, sigma: numbers if name == arm and sigma > 0 else {}


def unharmed(arm):
    """Noise loses two points, which is less than claimed and more than nothing."""
    return where(arm, accuracy=0.69 if arm == "sgd" else 0.80)


SPARSER = [0.4] + [0.3] * 6
OTHERWISE = [
    ("B19.train", where("sgd", train=0.9), "contradicted"),  # one arm is enough
    *((f"B19.{arm}", unharmed(arm), "contradicted") for arm in ("adam", "sgd", "sparse_adam", "average")),
    ("B19.convolutions", where("convolutions", accuracy=0.83), "contradicted"),
    ("B19.convolutions.less", where("convolutions", accuracy=0.5), "contradicted"),
    ("B19.convolutions.less", where("convolutions", accuracy=0.6), "undecided"),  # no difference
    ("B19.convolutions.active", where("convolutions", active=[0.2] * 7), "contradicted"),
    ("B19.dead", where("adam", dead=[0.0] * 7), "contradicted"),
    ("B19.dead.sgd", where("sgd", dead=[0.0] * 5 + [0.5] * 2), "contradicted"),
    ("B19.dead.sparse_adam", where("sparse_adam", dead=[0.5] * 7), "contradicted"),
    ("B19.first", where("adam", active=[0.2, *SPARSER[1:]]), "contradicted"),
    ("B19.later", where("adam", active=[*SPARSER[:-1], 0.6]), "contradicted"),  # one layer is enough
    *((claim, lambda *_: {"accuracy": 0.1}, "not testable") for claim in CLAIMS),  # the networks did not learn
]


@pytest.mark.parametrize(("claim", "changed", "verdict"), OTHERWISE)
def test_other_findings_give_other_verdicts(made, claim, changed, verdict):
    assert judge(CLAIMS[claim], made(changed)).verdict == verdict


def test_sgd_is_compared_with_itself_and_average_pooling_with_adam(made):
    """SGD's network is worse without noise too: that is no loss by noise. Average pooling has no run of its own."""
    sgd = lambda arm, sigma: {"accuracy": 0.6} if arm == "sgd" else {}
    assert judge(CLAIMS["B19.sgd"], made(sgd)).verdict == "contradicted"
    average = where("average", accuracy=0.6)
    assert judge(CLAIMS["B19.average"], made(average)).measured.value == pytest.approx(0.82 - 0.6 * 0.99)


@pytest.mark.parametrize("claim", CLAIMS.values(), ids=CLAIMS)
def test_without_runs_nothing_is_testable_and_a_diverged_run_is_no_evidence(ended, claim):
    assert judge(claim, []).verdict == "not testable"
    assert judge(claim, ended(ALEXNET.name, lambda config: (None, []))).verdict == "undecided"


def test_the_table_has_the_paper_s_numbers_beside_ours(made):
    rows = {(row["arm"], row["sigma"]): row for row in ALEXNET.table(made())}
    assert len(rows) == 7
    row = rows["sgd", 1.5]
    assert (row["accuracy, paper"], row["lost, paper"]) == (0.559, pytest.approx(0.151))
    assert (row["n"], row["accuracy"], row["lost"]) == (3, pytest.approx(0.5544), pytest.approx(0.1556))
    assert (row["train"], row["active conv_0"]) == (pytest.approx(0.999), pytest.approx(0.594))
    assert (row["dead conv_0"], rows["adam", 1.5]["dead dense_1"]) == (0, pytest.approx(0.396))
    row = rows["average", 1.5]
    assert (row["accuracy, paper"], row["lost"]) == (None, pytest.approx(0.82 - 0.6 * 0.99))


def test_findings_name_the_arms(made):
    assert ALEXNET.findings(made())[1] == (
        "SGD: 15.6 points of test accuracy lost by noise at the start of training; 0.0% of the units dead, "
        "mean over layers and sigmas."
    )


@pytest.mark.parametrize("heading", ALEXNET.figures)
def test_every_figure_is_drawn(made, views, heading):
    assert ALEXNET.figures[heading](views(made())).png()
