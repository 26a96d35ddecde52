import pytest

from sparsity.studies.bricken2023 import SGD
from sparsity.studies.bricken2023.sgd import Cell, cell_and_seed
from sparsity.studies.judge import judge

CLAIMS = {c.id: c for c in SGD.claims}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ae200_latents_gaussian8_seed2_sgd0.1_b256", (Cell("latents", 8.0, 0.1, 256, 1.0), 2)),
        ("ae200_latents_gaussian0.8_seed0_sgd0.3_b16_bias5", (Cell("latents", 0.8, 0.3, 16, 5.0), 0)),
        ("ae1000_cifar10_latents_gaussian0_seed0_sgd0.001_b32", (Cell("latents", 0.0, 0.001, 32, 1.0), 0)),
        ("ae1000_cifar10_gaussian0.8_seed1_sgd0.1_b49000", (Cell("pixels", 0.8, 0.1, 49_000, 1.0), 1)),
    ],
)
def test_cells_are_read_from_names(name, expected):
    assert cell_and_seed(name) == expected


def as_the_paper(cell):
    """Active share, change of the mean bias and training loss of a cell, as the paper has them."""
    if cell.data == "pixels":
        return 0.1, -1.0, 0.01
    if cell.sigma == 0 or cell.rate == 0.1 or cell.batch == 256:
        return 0.5, 0.0, 0.01
    return 0.2, -1.0, 0.01


@pytest.fixture
def made(ended):
    """made(changed): the records of the paper's findings, but where `changed` maps a cell to other numbers."""

    def records(changed=lambda cell: None, explained=0.9):
        def how(config):
            cell, seed = cell_and_seed(config.name)
            active, moved, loss = changed(cell) or as_the_paper(cell)
            active += 0.001 * seed  # so that effects by seed have an error
            measures = {"units.density.hidden": active, "units.z_std.hidden": 2.0, "units.silent.hidden": 0.0}
            lines = [{"kind": "train", "step": step, "loss": loss} for step in range(3)]
            for step, bias in enumerate((0.1, 0.1 + 2 * moved + 0.0001 * cell.rate)):
                lines.append({"kind": "weights", "step": step, "modules": {"hidden/wi": {"bias_mean": bias}}})
                lines.append({"kind": "sparsity", "step": step, "layers": {"hidden": {"nonzero": 0.5}}})
            return measures | {"explained": explained}, lines

        return ended(SGD.name, how)

    return records


@pytest.mark.parametrize("claim", CLAIMS)
def test_the_paper_s_findings_are_reproduced(made, claim):
    assert judge(CLAIMS[claim], made()).verdict == "reproduced"


SPARSE, DENSE = (0.2, -1.0, 0.01), (0.5, 0.0, 0.01)
# Where the numbers are others than the paper's, and what the claim is then.
OTHERWISE = [
    ("B14.rate", lambda c: SPARSE if c.rate == 0.1 else None, "contradicted"),
    ("B14.rate", lambda c: SPARSE if c.rate == 0.1 and c.batch == 16 else None, "undecided"),
    ("B14.batch", lambda c: SPARSE if c.batch == 256 else None, "contradicted"),
    ("B14.batch", lambda c: (0.9, 0.0, 0.01), "contradicted"),  # nearly all units is not half of them
    ("B14.batch", lambda c: SPARSE if c.rate == 0.1 else None, "reproduced"),  # judged at the other rates
    ("B14.sparse", lambda c: DENSE if c.rate == 1 else (0.45, 0.0, 0.01), "contradicted"),
    ("B14.sparse", lambda c: DENSE, "undecided"),
    ("B14.biases", lambda c: (0.5, -0.3, 0.01), "contradicted"),
    ("B14.biases", lambda c: (0.5, -0.3 if c.batch == 16 else 0.0, 0.01), "undecided"),
    ("B14.pixels", lambda c: DENSE, "contradicted"),
    ("B14.no_noise", lambda c: (0.5 if (c.rate, c.batch) == (0.3, 64) else 0.7, 0.0, 0.01), "contradicted"),
    ("B14.no_noise", lambda c: (0.5 if c.rate == 0.3 else 0.6, 0.0, 0.01), "undecided"),
    ("B14.bias_rate", lambda c: SPARSE if c.bias == 1 else DENSE, "contradicted"),
]


@pytest.mark.parametrize(("claim", "changed", "verdict"), OTHERWISE)
def test_other_findings_give_other_verdicts(made, claim, changed, verdict):
    assert judge(CLAIMS[claim], made(changed)).verdict == verdict


def test_a_small_rate_that_has_not_converged_is_no_evidence(made):
    judged = judge(CLAIMS["B14.rate"], made(lambda c: (0.5, 0.0, 0.02 if c.rate == 0.1 else 0.01)))
    assert judged.verdict == "not testable"
    assert judged.measured.failed == "the training loss at rate 0.1, batch 16, sigma 0.8 is 2.00 times the lowest there"


def test_an_autoencoder_of_pixels_that_did_not_learn_is_no_evidence(made):
    assert judge(CLAIMS["B14.pixels"], made(explained=0.1)).verdict == "not testable"


@pytest.mark.parametrize("claim", CLAIMS.values(), ids=CLAIMS)
def test_without_runs_nothing_is_testable_and_a_diverged_run_is_no_evidence(ended, claim):
    assert judge(claim, []).verdict == "not testable"
    lines = [
        {"kind": "sparsity", "step": 0, "layers": {"hidden": {"nonzero": 0.5}}},
        {"kind": "weights", "step": 0, "modules": {"hidden/wi": {"bias_mean": 0.0}}},
        {"kind": "train", "step": 0, "loss": 1.0},
    ]
    diverged = ended(SGD.name, lambda config: (None, lines))
    assert judge(claim, diverged).verdict in ("undecided", "not testable")


def test_the_table_has_a_line_for_every_cell(made):
    records = made()
    rows = SGD.table(records)
    assert sum(row["n"] for row in rows) == len(records)
    assert len(rows) == 27 + 2 + 1  # the grid, biases with their own rate at two sigmas, pixels
    (row,) = [r for r in rows if (r["sigma"], r["rate"], r["batch"], r["bias rate"]) == (8.0, 1.0, 16, 1.0)]
    assert (row["n"], row["active"]) == (3, pytest.approx(0.201))
    assert (row["bias moved"], row["loss"]) == (pytest.approx(-0.99995), pytest.approx(0.01))


def test_findings_and_figures(made, views):
    records = made()
    assert "Pixels, sigma 0.8: 10% active at rate 1, batch 1024." in SGD.findings(records)
    for figure in SGD.figures.values():
        assert figure(views(records)).png()
