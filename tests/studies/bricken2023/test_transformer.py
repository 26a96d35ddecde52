import numpy as np
import pytest

from sparsity.data.text import Text
from sparsity.studies.bricken2023 import TRANSFORMER
from sparsity.studies.bricken2023.transformer import LEARNS, place_of, printed, removed
from sparsity.studies.judge import judge

CLAIMS = {c.id: c for c in TRANSFORMER.claims}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gpt2_text_gaussian3_seed2", ("after", 3.0, 2)),
        ("gpt2_wikitext_gaussian0.05_seed0", ("after", 0.05, 0)),
        ("gpt2_text_gaussian3_seed1_before_norm", ("before", 3.0, 1)),
    ],
)
def test_places_are_read_from_names(name, expected):
    assert place_of(name) == expected


def test_the_printed_table_has_eight_sigmas():
    assert len(printed()) == 8
    assert (printed()[3.0]["layer2_active"], printed()[8.0]["val_loss"]) == (0.022, 3.134)


def test_a_network_has_learnt_that_predicts_better_than_the_byte_before_does():
    windows = Text(length=64, stride=64).load("train").arrays()
    counts = np.zeros((256, 256))
    np.add.at(counts, (windows["tokens"].ravel(), windows["targets"].ravel()), 1)
    given = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    entropy = -(counts * np.log(np.where(given > 0, given, 1))).sum() / counts.sum()
    assert pytest.approx(entropy, abs=0.05) == LEARNS  # the text is that of the running Python


def as_the_paper(place, sigma):
    """Numbers of a run as the paper has them, its loss in the units of a byte; before the LayerNorm the same."""
    row = printed()[sigma]
    return {
        "active": [row[f"layer{layer}_active"] for layer in (1, 2, 3)],
        "noisy": 0.0 if sigma == 0 else float(np.mean([row[f"layer{layer}_active"] for layer in (1, 2, 3)])),
        "dead": (0.0, 0.0, 0.0),
        "loss": row["val_loss"] / 2,
    }


@pytest.fixture
def made(ended):
    """made(changed): the records of the paper's findings, but where `changed` maps (place, sigma) to other numbers."""

    def records(changed=lambda place, sigma: {}):
        def how(config):
            place, sigma, seed = place_of(config.name)
            run = as_the_paper(place, sigma) | changed(place, sigma)
            shrunk = 1 - 0.001 * seed * (sigma > 0)  # so that no effect is without error
            measures = {"nll": run["loss"] * shrunk, "accuracy": 0.44}
            for i in range(3):
                measures[f"nonzero.block_{i}"] = run["active"][i] * shrunk
                measures[f"units.silent.block_{i}"] = run["dead"][i] + 0.001 * seed
            early = {f"nonzero.block_{i}": 0.3 for i in range(3)}
            at = removed_of(config)
            lines = [{"kind": "train", "step": step, "loss": 1.4} for step in range(2)]
            # The validation at the very step has no noise any more, and must not be read; nor the earlier ones.
            means = ((0, 0.9), (at // 2, 0.9), (at - 1, run["noisy"]), (at, 0.001), (at * 3 // 2, 0.9))
            lines += [{"kind": "validation", "step": step, "nonzero.mean": mean} | early for step, mean in means]
            return measures, lines

        return ended(TRANSFORMER.name, how)

    return records


def removed_of(config):
    return config.model.mlp.noise.schedule.step


@pytest.mark.parametrize("claim", CLAIMS)
def test_the_paper_s_findings_are_reproduced(made, claim):
    assert judge(CLAIMS[claim], made()).verdict == "reproduced"


def where(chosen, **numbers):
    """Other numbers where `chosen` says so of (place, sigma)."""
    return lambda place, sigma: numbers if chosen(place, sigma) else {}


NOISY = lambda place, sigma: sigma > 0
OTHERWISE = [
    ("B18.falls", where(lambda _, sigma: sigma == 8, active=(0.2, 0.2, 0.2)), "contradicted"),  # one rise is enough
    ("B18.layer1", where(NOISY, active=(0.17, 0.02, 0.1)), "contradicted"),
    ("B18.layer2", where(NOISY, active=(0.05, 0.17, 0.1)), "contradicted"),
    ("B18.layer3", where(NOISY, active=(0.05, 0.02, 0.2)), "contradicted"),
    ("B18.stays", where(NOISY, noisy=0.03), "contradicted"),
    ("B18.dead", where(lambda _, sigma: sigma == 8, dead=(0.0, 0.5, 0.0)), "contradicted"),  # one layer, one sigma
    ("B18.loss", where(lambda _, sigma: sigma == 0.3, loss=1.7), "contradicted"),
    ("B18.loss.8", where(lambda _, sigma: sigma == 8, loss=1.5), "contradicted"),
    ("B18.loss.8", where(lambda _, sigma: sigma == 8, loss=1.54), "undecided"),
    ("B18.before", where(lambda place, _: place == "before", active=(0.2, 0.2, 0.2)), "contradicted"),
    ("B18.before.loss", where(lambda place, _: place == "before", loss=1.7), "contradicted"),
    *((claim, where(lambda *_: True, loss=3.0), "not testable") for claim in CLAIMS),  # the networks did not learn
]


@pytest.mark.parametrize(("claim", "changed", "verdict"), OTHERWISE)
def test_other_findings_give_other_verdicts(made, claim, changed, verdict):
    assert judge(CLAIMS[claim], made(changed)).verdict == verdict


@pytest.mark.parametrize("claim", CLAIMS.values(), ids=CLAIMS)
def test_without_runs_nothing_is_testable_and_a_diverged_run_is_no_evidence(ended, claim):
    assert judge(claim, []).verdict == "not testable"
    assert judge(claim, ended(TRANSFORMER.name, lambda config: (None, []))).verdict == "undecided"


def test_the_table_has_the_paper_s_numbers_beside_ours(made):
    rows = {(row["noise"], row["sigma"]): row for row in TRANSFORMER.table(made())}
    assert len(rows) == 4 + 1
    row = rows["after", 3.0]
    assert (row["active 2, paper"], row["active 2"]) == (0.022, pytest.approx(0.022, rel=0.01))
    assert (row["n"], row["cost, paper"]) == (3, pytest.approx(3.011 / 3.048 - 1))
    assert (row["cost"], row["active, under noise"]) == (pytest.approx(-0.013, abs=0.001), pytest.approx(0.217 / 3))
    assert rows["after", 0.0]["cost"] == 0
    assert rows["before", 3.0]["dead"] == pytest.approx(0.001)


def test_a_table_has_empty_cells_where_runs_diverged(ended):
    row = TRANSFORMER.table(ended(TRANSFORMER.name, lambda config: (None, [])))[0]
    assert [row[key] for key in ("active 1", "active, under noise", "dead", "loss", "cost", "train")] == [None] * 6


def test_the_step_without_noise_is_read_from_records_and_views(made, views):
    records = made()
    assert {removed(r) for r in records} == {removed(view) for view in views(records).values()} == {4000}


def test_findings_say_what_sigma_3_and_8_did(made):
    found = TRANSFORMER.findings(made())
    assert len(found) == 3
    assert found[0] == (
        "Sigma 3 after the LayerNorm: active units, without noise to with it, layer 1 17.1% to 5.8%; layer 2 18.4% to "
        "2.2%; layer 3 29.6% to 13.7%; validation loss -1.3%; dead units of the worst layer 0.1%."
    )


@pytest.mark.parametrize("heading", TRANSFORMER.figures)
def test_every_figure_is_drawn(made, views, heading):
    assert TRANSFORMER.figures[heading](views(made())).png()
