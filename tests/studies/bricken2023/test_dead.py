import pytest

from sparsity.studies.bricken2023 import DEAD
from sparsity.studies.bricken2023.dead import converged, data_and_change
from sparsity.studies.bricken2023.runs import arm_sigma_seed
from sparsity.studies.judge import judge

CLAIMS = {c.id: c for c in DEAD.claims}


@pytest.mark.parametrize(
    ("arm", "expected"),
    [
        ("ae200_latents_dead_base", ("latents", "base")),
        ("ae1000_cifar10_latents_dead_small_batch", ("latents", "small_batch")),
        ("ae200_photos_dead_few", ("pixels", "few")),
    ],
)
def test_data_and_change_are_read_from_names(arm, expected):
    assert data_and_change(arm) == expected


# Share of dead units at ten validations, as the paper has them: none until loss and sparsity have converged, at the
# fourth, then more and more. With a batch of 8 the last validation is as many examples as the first with 128.
LATE = (0.0, 0.0, 0.0, 0.0, 0.1, 0.3, 0.5, 0.7, 0.8, 0.9)
PAPER = {
    ("latents", "base"): LATE,
    ("latents", "few"): (0.0, 0.0, 0.0, 0.0, 0.5, 0.7, 0.8, 0.9, 0.9, 0.9),
    ("latents", "slow"): (0.0,) * 8 + (0.1, 0.2),
    ("latents", "small_batch"): (0.0,) * 8 + (0.1, 0.3),
    ("latents", "large_batch"): LATE,
    ("pixels", "base"): (0.0,) * 7 + (0.1, 0.2, 0.3),
    ("pixels", "few"): (0.0,) * 5 + (0.1, 0.2, 0.3, 0.4, 0.5),
}


@pytest.fixture
def made(ended):
    """made(changed): the records of `PAPER`, but for the arms that `changed` gives other shares of dead units."""

    def records(changed=()):
        courses = PAPER | dict(changed)

        def how(config):
            arm, _, seed = arm_sigma_seed(config.name)
            course = courses[data_and_change(arm)]
            lines = []
            for i, dead in enumerate(course):
                dead = dead * (1 - 0.01 * seed)  # so that no effect is without error
                numbers = {"mse": 0.01 if i > 2 else 0.1, "nonzero.hidden": 0.1 if i > 2 else 0.5, "dead.mean": dead}
                lines.append({"kind": "validation", "step": i * config.steps // 10} | numbers)
            last = lines[-1]["dead.mean"]
            measures = {"units.silent.hidden": last, "units.density.hidden": 0.1, "units.live.hidden": 0.5, "mse": 0.01}
            return measures, lines

        return ended(DEAD.name, how)

    return records


@pytest.mark.parametrize("claim", CLAIMS)
def test_the_paper_s_findings_are_reproduced(made, claim):
    assert judge(CLAIMS[claim], made()).verdict == "reproduced"


FLAT = (0.0,) * 3 + (0.3,) * 7
OTHERWISE = [
    ("B15.after.latents", {("latents", "base"): (0.0,) * 3 + (0.8,) * 7}, "contradicted"),
    ("B15.after.pixels", {("pixels", "base"): (0.0,) * 9 + (0.05,)}, "not testable"),  # hardly any died
    ("B15.most", {("latents", "base"): FLAT}, "contradicted"),
    ("B15.latents", {("pixels", "base"): (0.95,) * 10}, "contradicted"),
    ("B15.rate", {("latents", "slow"): (0.95,) * 10}, "contradicted"),
    ("B15.rate", {("latents", "slow"): LATE}, "undecided"),  # no difference
    ("B15.batch_by_epochs", {("latents", "large_batch"): (0.5,) * 10}, "contradicted"),
    ("B15.batch_by_steps", {("latents", "small_batch"): (0.95,) * 10}, "contradicted"),
    ("B15.size.latents", {("latents", "few"): (0.0,) * 9 + (0.9,)}, "contradicted"),
    ("B15.size.pixels", {("pixels", "few"): (0.0,) * 9 + (0.2,)}, "contradicted"),
]


@pytest.mark.parametrize(("claim", "changed", "verdict"), OTHERWISE)
def test_other_findings_give_other_verdicts(made, claim, changed, verdict):
    assert judge(CLAIMS[claim], made(changed)).verdict == verdict


@pytest.mark.parametrize("claim", CLAIMS.values(), ids=CLAIMS)
def test_without_runs_nothing_is_testable_and_a_diverged_run_is_no_evidence(ended, claim):
    assert judge(claim, []).verdict == "not testable"
    first = {"kind": "validation", "step": 0, "mse": 0.1, "nonzero.hidden": 0.5, "dead.mean": 0.0}
    diverged = ended(DEAD.name, lambda config: (None, [first]))
    assert judge(claim, diverged).verdict in ("undecided", "not testable")


def test_convergence_needs_both_loss_and_sparsity(made):
    records = made()
    assert converged(records[0])["step"] == 3 * records[0].config.steps // 10


def test_the_table_has_a_line_for_every_arm_and_findings_say_when_units_died(made):
    rows = DEAD.table(made())
    assert [(row["data"], row["arm"]) for row in rows] == list(PAPER)
    assert {row["n"] for row in rows} == {3}
    (first, *_) = DEAD.findings(made())
    assert first == (
        "latents, base (batch 32, rate 0.001): 89% dead after 16,000 steps; loss and sparsity had converged at step "
        "4,800, with 0% dead."
    )


@pytest.mark.parametrize("heading", DEAD.figures)
def test_every_figure_is_drawn(made, views, heading):
    assert DEAD.figures[heading](views(made())).png()
