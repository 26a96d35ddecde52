import math

import pytest

from sparsity.studies.bricken2023 import pareto
from sparsity.studies.bricken2023.fronts import method
from sparsity.studies.bricken2023.pareto import PARETO
from sparsity.studies.judge import judge

CLAIMS = {c.id: c for c in PARETO.claims}
# Active shares by setting. A network's loss is `scale` times 1e-3 / share, the front of noise.
SHARES = {
    "noise": {0: 0.5, 0.05: 0.4, 0.1: 0.3, 0.3: 0.15, 0.8: 0.08, 1.5: 0.04, 3: 0.01, 10: 0.02},
    "l1": {1e-4: 0.02, 1e-5: 0.05, 1e-6: 0.2, 1e-7: 0.4, 1e-8: 0.5},
    "l1_unit_norm": {1e-4: 0.02, 1e-5: 0.05, 1e-6: 0.2, 1e-7: 0.4, 1e-8: 0.5},
    "top_k": {0.003: 0.01, 0.01: 0.015, 0.03: 0.03, 0.1: 0.09, 0.3: 0.3},
}
# The paper's world by method: what its loss is over the front's, the share of zeros of dead units, Gabor-like and
# centre-surround fields, the largest norm over the median, units like an example, and how much more than held out.
PAPER = {
    "noise": {"scale": 1.0, "dead": 0.1, "gabor": 0.0, "surround": 0.3, "norm": 1.5, "like": 0.1},
    "l1": {"scale": 1.1, "dead": 0.2, "gabor": 0.01, "surround": 0.0},
    "l1_unit_norm": {"scale": 1.1, "dead": 0.2, "gabor": 0.4, "surround": 0.01},
    "top_k": {"scale": 0.9, "dead": 0.8, "gabor": 0.0, "surround": 0.0, "norm": 9.0, "like": 0.3, "memory": 0.1},
}


def made_up(world):
    def measures(name):
        label, value, seed = method(name)
        one, share = world[label], SHARES[label][value]
        wobble = 1 + 0.01 * seed + 0.01 * math.sin(1e3 * share)  # no effect is without error
        found = {
            "nonzero.hidden": share,
            "mse": one["scale"] * wobble * 1e-3 / share,
            pareto.DENSITY: share,
            pareto.NEVER: one["dead"] * wobble * (1 - share),
            pareto.GABOR: one["gabor"] * wobble,
            pareto.SURROUND: one["surround"] * wobble,
        }
        keys = {"norm": pareto.NORMS, "like": pareto.LIKE, "memory": pareto.MEMORY}
        return found | {key: one[name] * wobble for name, key in keys.items() if name in one}

    return measures


@pytest.fixture
def swept(ended):
    """swept(measures): a record of every embedded run, with the final `measures(its name)`."""
    return lambda measures: ended("bricken2023/pareto", lambda config: (measures(config.name), ()))


@pytest.fixture
def verdict(swept):
    def of(claim, label, **changed):
        world = PAPER | {label: PAPER[label] | changed}
        return judge(CLAIMS[claim], swept(made_up(world))).verdict

    return of


@pytest.mark.parametrize("claim", CLAIMS)
def test_the_paper_s_world_reproduces_every_claim(verdict, claim):
    assert verdict(claim, "noise") == "reproduced"


@pytest.mark.parametrize(
    ("claim", "label", "changed", "expected"),
    [
        ("B9.l1", "l1", {"scale": 3.0}, "contradicted"),
        ("B9.l1", "l1", {"scale": 0.3}, "contradicted"),  # better is not the same front either
        ("B9.l1", "l1_unit_norm", {"scale": 3.0}, "reproduced"),  # not of the networks of Fig. 13
        ("B9.top_k", "top_k", {"scale": 3.0}, "contradicted"),
        ("B9.top_k", "top_k", {"scale": 1.5}, "undecided"),
        ("B9.dead.top_k", "top_k", {"dead": 0.2}, "contradicted"),
        ("B9.dead.noise", "noise", {"dead": 0.9}, "contradicted"),
        ("B9.dead.l1", "l1", {"dead": 0.9}, "contradicted"),
        ("B9.dead.l1", "l1", {"dead": 0.495}, "undecided"),
        ("B10.gabor", "l1_unit_norm", {"gabor": 0.02}, "contradicted"),
        ("B10.gabor", "noise", {"gabor": 0.39}, "contradicted"),  # nor are fields that are there without it
        ("B10.surround", "l1_unit_norm", {"surround": 0.3}, "contradicted"),
        ("B10.without", "l1", {"gabor": 0.3}, "contradicted"),
        ("B10.greedy", "top_k", {"norm": 2.0}, "contradicted"),
        ("B10.greedy", "noise", {"norm": 9.0}, "contradicted"),
        ("B10.examples", "top_k", {"like": 0.01}, "contradicted"),
        ("B10.examples", "noise", {"like": 0.3}, "contradicted"),  # no more than noise's
        ("B10.memory", "top_k", {"memory": -0.1}, "contradicted"),
    ],
)
def test_the_verdict_on_other_worlds(verdict, claim, label, changed, expected):
    assert verdict(claim, label, **changed) == expected


def test_without_a_sparser_network_l1_does_not_sparsify(swept, monkeypatch):
    monkeypatch.setitem(SHARES, "l1", dict.fromkeys(SHARES["l1"], 0.5))
    made = swept(made_up(PAPER))
    assert judge(CLAIMS["B10.sparsifies"], made).verdict == "contradicted"
    assert judge(CLAIMS["B9.dead.l1"], made).verdict == "not testable"  # there is no sparse one


def test_networks_of_dead_units_alone_are_on_no_front_and_count_as_no_sparsity(swept):
    def measures(name):
        found, (label, value, _) = made_up(PAPER)(name), method(name)
        dead = label == "l1" and value in pareto.LARGEST
        return found | ({"nonzero.hidden": 0.0, pareto.DENSITY: 0.0} if dead else {})

    made = swept(measures)
    assert judge(CLAIMS["B9.l1"], made).measured.n == 3
    assert judge(CLAIMS["B9.dead.l1"], made).verdict == "not testable"
    assert judge(CLAIMS["B10.sparsifies"], made).verdict == "undecided"


def test_units_of_replication(swept):
    made = swept(made_up(PAPER))
    n = {id: judge(claim, made).measured.n for id, claim in CLAIMS.items()}
    assert (n["B9.l1"], n["B9.top_k"]) == (5, 5)
    assert (n["B9.dead.top_k"], n["B9.dead.noise"], n["B9.dead.l1"]) == (4, 4, 6)
    assert {n[f"B10.{id}"] for id in ("gabor", "surround", "without", "sparsifies")} == {3}
    assert (n["B10.greedy"], n["B10.examples"], n["B10.memory"]) == (4, 5, 5)


def test_l1_without_its_runs_is_not_testable(swept):
    made = [r for r in swept(made_up(PAPER)) if "1e-05" not in r.config.name]
    judged = judge(CLAIMS["B10.gabor"], made)
    assert judged.verdict == "not testable"
    assert judged.measured.failed == "l1_unit_norm: no run of weight 1e-05"


def test_every_setting_has_a_row(swept):
    rows = PARETO.table(swept(made_up(PAPER)))
    by_run = {(row["method"], row["setting"]): row for row in rows}
    assert len(by_run) == len(rows) == 8 + 5 + 5 + 5
    assert by_run["noise", 0.8]["excess"] == pytest.approx(0)
    assert by_run["l1", 1e-6]["excess"] == pytest.approx(math.log10(1.1), abs=0.02)
    assert by_run["top_k", 0.03]["of dead"] == pytest.approx(0.8, rel=0.02)
    assert by_run["l1", 1e-6]["largest norm"] is None
    assert len(PARETO.findings(swept(made_up(PAPER)))) == 4


def test_figures_are_drawn(swept, views):
    made = views(swept(made_up(PAPER)))
    for figure in PARETO.figures.values():
        assert figure.__doc__
        assert figure(made).png()
