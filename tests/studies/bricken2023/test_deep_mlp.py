import pytest

from sparsity.studies.bricken2023 import DEEP_MLP
from sparsity.studies.bricken2023.deep_mlp import arm_of, printed
from sparsity.studies.judge import judge

CLAIMS = {c.id: c for c in DEEP_MLP.claims}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mlp3x200_latents_gaussian1.5_seed2_adam", ("adam", 1.5, 2)),
        ("mlp3x200_latents_gaussian0_seed0_sparse_adam", ("sparse_adam", 0.0, 0)),
        ("mlp3x200_cifar10_latents_gaussian10_seed1_sgd", ("sgd", 10.0, 1)),
        ("mlp3x200_latents_gaussian1.5_seed0_before3", ("before3", 1.5, 0)),
    ],
)
def test_arms_are_read_from_names(name, expected):
    assert arm_of(name) == expected


def test_the_printed_table_has_seven_sigmas_of_three_optimizers():
    assert len(printed()) == 21
    assert (printed()["adam", 0.0], printed()["sparse_adam", 0.5]) == (0.915, 0.927)


def as_the_paper(arm, sigma):
    """Numbers of a run as the paper has them; the norms are those of the weights into layers 1 and 2."""
    out = {
        "accuracy": 0.9 + (0.008 if sigma in (0.1, 0.5) else 0.0),
        "active": (0.5, 0.5 - 0.03 * sigma, 0.5 - 0.04 * sigma),
        "dead": (0.0, 0.0, 0.0) if sigma == 0 else {"adam": (0, 0.6, 0.7), "sgd": (0, 0, 0.3)}.get(arm, (0, 0.2, 0.4)),
        "before": 0.3 if arm == "adam" else 0.0,
        "norms": {"before2": (9.0, 1.0), "before3": (1.0, 9.0)}.get(arm, (1.0, 1.0)),
    }
    return out


@pytest.fixture
def made(ended):
    """made(changed): the records of the paper's findings, but where `changed` maps (arm, sigma) to other numbers."""

    def records(changed=lambda arm, sigma: {}):
        def how(config):
            arm, sigma, seed = arm_of(config.name)
            run = as_the_paper(arm, sigma) | changed(arm, sigma)
            shrunk = 1 - 0.01 * seed  # so that no effect is without error
            measures = {"accuracy": run["accuracy"] - 0.001 * seed * (sigma > 0)}
            early = {"dead.mean": run["before"] * shrunk, "accuracy": 0.5}
            modules = {f"dense_{i}": {"norm_mean": n + 0.01 * seed} for i, n in enumerate((*run["norms"], 1.0))}
            for i in range(3):
                measures[f"units.density.layer_{i}"] = run["active"][i] * (shrunk if sigma else 1)
                measures[f"units.silent.layer_{i}"] = run["dead"][i] * shrunk
                early |= {f"nonzero.layer_{i}": 0.4, f"dead.layer_{i}": run["before"]}
            lines = [{"kind": "train", "step": step, "loss": 0.1, "accuracy": 1.0} for step in range(2)]
            lines += [{"kind": "weights", "step": step, "modules": modules} for step in range(2)]
            lines += [{"kind": "validation", "step": config.steps * i // 8} | early for i in range(3)]
            # What is between the start of annealing and the end must not be read.
            last = sum(run["dead"]) / 3 * shrunk
            lines += [
                {"kind": "validation", "step": config.steps // 8 * i, "dead.mean": d} for i, d in ((4, 1), (7, last))
            ]
            return measures, lines

        return ended(DEEP_MLP.name, how)

    return records


@pytest.mark.parametrize("claim", CLAIMS)
def test_the_paper_s_findings_are_reproduced(made, claim):
    assert judge(CLAIMS[claim], made()).verdict == "reproduced"


def where(chosen, **numbers):
    """Other numbers where `chosen` says so of (arm, sigma)."""
    return lambda arm, sigma: numbers if chosen(arm, sigma) else {}


NOISY = lambda arm, sigma: sigma > 0
OTHERWISE = [
    ("B16.adam.sgd", where(lambda arm, _: arm == "sgd", dead=(0, 0.9, 0.9)), "contradicted"),
    ("B16.adam.sparse_adam", where(lambda arm, _: arm == "adam", dead=(0, 0, 0)), "contradicted"),
    ("B16.adam.sgd", where(NOISY, dead=(0, 0.5, 0.5)), "undecided"),  # no difference
    ("B16.sgd", where(lambda arm, _: arm == "sgd", dead=(0, 0.3, 0)), "contradicted"),
    ("B16.sparse_adam.before", where(lambda arm, _: arm == "sparse_adam", before=0.2), "contradicted"),
    ("B16.sparse_adam.after", where(lambda arm, _: arm == "sparse_adam", dead=(0, 0, 0)), "contradicted"),
    ("B16.layer1", where(NOISY, active=(0.3, 0.2, 0.1)), "contradicted"),
    ("B16.layer2", where(NOISY, active=(0.5, 0.6, 0.1)), "contradicted"),
    ("B16.layer3", where(NOISY, active=(0.5, 0.2, 0.6)), "contradicted"),
    ("B16.accuracy", where(lambda _, sigma: sigma == 10, accuracy=0.8), "contradicted"),  # one sigma is enough
    ("B16.small", where(NOISY, accuracy=0.88), "contradicted"),
    ("B16.most", where(lambda _, sigma: sigma == 0.5, accuracy=0.95), "contradicted"),
    ("B17.layer2", where(lambda arm, _: arm == "before2", norms=(0.5, 9.0)), "contradicted"),
    ("B17.layer3", where(lambda arm, _: arm == "before3", norms=(9.0, 0.5)), "contradicted"),
    *(
        (claim, where(lambda *_: True, accuracy=0.1), "not testable")  # the networks did not learn
        for claim in CLAIMS
        if claim.startswith("B16")
    ),
]


@pytest.mark.parametrize(("claim", "changed", "verdict"), OTHERWISE)
def test_other_findings_give_other_verdicts(made, claim, changed, verdict):
    assert judge(CLAIMS[claim], made(changed)).verdict == verdict


@pytest.mark.parametrize("claim", CLAIMS.values(), ids=CLAIMS)
def test_without_runs_nothing_is_testable_and_a_diverged_run_is_no_evidence(ended, claim):
    assert judge(claim, []).verdict == "not testable"
    modules = {f"dense_{i}": {"norm_mean": 1.0} for i in range(3)}
    lines = [{"kind": "validation", "step": 0, "dead.mean": 0.0}, {"kind": "weights", "step": 0, "modules": modules}]
    assert judge(claim, ended(DEEP_MLP.name, lambda config: (None, lines))).verdict == "undecided"


def test_the_table_has_the_paper_s_numbers_beside_ours(made):
    rows = {(row["arm"], row["sigma"]): row for row in DEEP_MLP.table(made())}
    assert len(rows) == 21 + 2
    row = rows["sparse_adam", 0.5]
    assert (row["accuracy, paper"], row["gain, paper"]) == (0.927, pytest.approx(0.012))
    assert (row["n"], row["accuracy"], row["gain"]) == (3, pytest.approx(0.907), pytest.approx(0.007))
    assert (row["dead 1"], row["dead 2"], row["dead before"]) == (0, pytest.approx(0.198), 0)
    assert (rows["before3", 1.5]["norm 2"], rows["before3", 1.5]["dead before"]) == (pytest.approx(9.01), None)
    assert rows["before3", 1.5]["accuracy, paper"] is None


def test_findings_name_the_optimizers(made):
    assert DEEP_MLP.findings(made())[1] == (
        "SGD: test accuracy after annealing -0.1 to +0.7 points from that without noise; dead units of layers 1, 2, 3: "
        "0%, 0%, 30%, mean over sigmas."
    )


@pytest.mark.parametrize("heading", DEEP_MLP.figures)
def test_every_figure_is_drawn(made, views, heading):
    assert DEEP_MLP.figures[heading](views(made())).png()
