import pytest

from sparsity.studies.bricken2023 import ablations
from sparsity.studies.bricken2023.ablations import ABLATIONS
from sparsity.studies.bricken2023.runs import arm_sigma_seed, printed_active
from sparsity.studies.judge import judge

CLAIMS = {c.id: c for c in ABLATIONS.claims}
ARMS = {
    "units100": "ae100_photos",
    "units1000": "ae1000_photos",
    "laplace": "ae400_photos_laplace",
    "salt_and_pepper": "ae400_photos_salt_and_pepper",
    "classification": "mlp400_digits",
}


def made_up(arms):
    """Measures of a run: the active share `arms[arm](sigma)`, of other arms one that falls, a little more by seed."""

    def measures(name):
        arm, sigma, seed = arm_sigma_seed(name)
        share = arms.get(arm, lambda s: 0.5 / (1 + 3 * s))(sigma) + 1e-4 * seed
        layer = "layer_0" if arm.startswith("mlp") else "hidden"
        return {f"units.density.{layer}": share, f"units.never.{layer}": 0.1, "mse": 0.01}

    return measures


def rises(sigma):
    return 0.1 + 0.1 * sigma


def falls_little(sigma):
    return 0.5 - 0.05 * sigma


@pytest.fixture
def swept(ended):
    """swept(measures): a record of every embedded run, with the final `measures(its name)`."""
    return lambda measures: ended("bricken2023/ablations", lambda config: (measures(config.name), ()))


@pytest.fixture
def records(swept):
    return lambda arms: swept(made_up(arms))


@pytest.mark.parametrize("name", ARMS)
def test_a_share_that_falls_is_judged_so(records, name):
    made = records({})
    assert judge(CLAIMS[f"B1.{name}"], made).verdict == "reproduced"
    assert judge(CLAIMS[f"B1.{name}.size"], made).verdict == "reproduced"


@pytest.mark.parametrize("name", ARMS)
def test_each_arm_is_judged_by_its_own_runs(records, name):
    made = records({ARMS[name]: rises})
    contradicted = {id for id, claim in CLAIMS.items() if judge(claim, made).verdict == "contradicted"}
    # Without noise the other noises have the runs of Gaussian noise, of .5: the rise is from the next one on.
    assert contradicted >= {f"B1.{name}"}
    assert contradicted <= {f"B1.{name}", f"B1.{name}.size"}


def test_a_fall_may_be_too_small(records):
    made = records({ARMS["units100"]: falls_little})
    assert judge(CLAIMS["B1.units100"], made).verdict == "reproduced"
    assert judge(CLAIMS["B1.units100.size"], made).verdict == "contradicted"


def test_seeds_that_disagree_leave_it_undecided(swept):
    def measures(name):
        _, sigma, seed = arm_sigma_seed(name)
        return {"units.density.hidden": (0.1 + 0.1 * sigma if seed == 1 else 0.5 / (1 + sigma))}

    made = swept(measures)
    assert judge(CLAIMS["B1.units1000"], made).verdict == "undecided"


def test_claims_go_by_sigmas_up_to_3_and_take_three_seeds(records):
    made = records({ARMS["laplace"]: lambda s: 1.0 if s == 10 else 0.5 / (1 + 3 * s)})  # delayed, as in the paper
    judged = judge(CLAIMS["B1.laplace"], made)
    assert (judged.verdict, judged.measured.n) == ("reproduced", 3)
    few = [r for r in made if r.config.seed < 2]
    assert judge(CLAIMS["B1.laplace"], few).verdict == "not testable"


def test_the_largest_width_is_not_testable_here(records):
    judged = judge(CLAIMS["B1.units100000"], records({}))
    assert judged.verdict == "not testable"
    assert judged.measured.failed == "neurons, 100000: no run with or without noise"


def test_without_noise_every_noise_is_the_gaussian_of_sigma_0(records):
    table = ablations.by_ablation(records({}))
    silent = table["dataset", "raw_cifar10"][0.0]
    for noise in ablations.NOISES:
        assert table["noise_dist", noise][0.0] is silent
        assert list(table["noise_dist", noise]) == sorted(table["noise_dist", noise])


def test_the_paper_s_numbers_stand_beside(records):
    rows = {(row["ablation"], row["sigma"]): row for row in ABLATIONS.table(records({}))}
    assert rows["neurons, 100", 0.8]["active, paper"] == 0.56
    assert rows["noise_dist, laplace", 0.0]["active, paper"] == 0.77
    assert rows["task, classification", 3.0]["active, paper"] == 0.108
    assert rows["dataset, raw_cifar10", 0.8]["difference"] == pytest.approx(0.5 / 3.4 + 1e-4 - 0.04)
    assert rows["noise_dist, poisson", 3.0]["active, paper"] == 0.011
    assert rows["noise_dist, salt_and_pepper", 0.5]["active, paper"] is None
    assert len(ABLATIONS.findings(records({}))) == len({ablation for ablation, _ in rows})


def test_the_paper_s_own_numbers_rise_at_the_smallest_and_the_largest_width():
    printed = printed_active()
    for units, monotone in (("100", False), ("1000", True), ("10000", True), ("100000", False)):
        shares = [share for sigma, share in printed["neurons", units].items() if sigma <= 3]
        assert (shares == sorted(shares, reverse=True)) == monotone


def test_a_part_of_the_study_has_a_table(records):
    made = [r for r in records({}) if "laplace" in r.config.name and r.config.seed == 1]
    assert {row["n"] for row in ABLATIONS.table(made)} == {1}


def test_figures_are_drawn(records, views):
    for figure in ABLATIONS.figures.values():
        assert figure(views(records({}))).png()
