import pytest

from launch.cli import load_study_config
from sparsity.evals.result import Measure
from sparsity.run import Outcome, Workdir, run_config
from sparsity.studies import price2024_variants as variants
from sparsity.studies.judge import judge
from sparsity.studies.runner import Record, expand
from sparsity.theory import edge_of_chaos

RUNS = {study.name: study for study in (variants.SMOOTH, variants.LARGE_Q, variants.RESIDUAL)}


def records(tmp_path, name, accuracy):
    """A record of every run of a study's sweep, of accuracy `accuracy(run name)`."""
    out = []
    for config in expand(load_study_config(name).sweep, "embedded"):
        files = Workdir(tmp_path / config.name)
        files.path.mkdir()
        files.metrics.write_text('{"kind": "sparsity", "step": 0, "layers": {"a": {"nonzero": 0.25}}}\n')
        values = {"accuracy": accuracy(config.name), "nonzero.mean": 0.15, "dead.mean": 0.0}
        measures = tuple(Measure(key, value, 0.01, 358, "") for key, value in values.items())
        out.append(Record(config, files, Outcome("finished", 9, measures)))
    return out


@pytest.mark.parametrize("name", RUNS)
def test_every_arm_has_a_row_and_three_seeds(tmp_path, name):
    made = records(tmp_path, name, lambda _: 0.9)
    rows = RUNS[name].table(made)
    assert {row["n"] for row in rows} == {3}
    assert len({row["row"] for row in rows}) == len(rows)
    assert len(RUNS[name].findings(made)) >= len(rows)


def test_smooth_rows_keep_sparsity_and_slope_and_their_theory_says_what_a_threshold_adds(tmp_path):
    rows = {row["row"]: row for row in variants.SMOOTH.table(records(tmp_path, "price2024/smooth", lambda _: 0.9))}
    for row in ("crelu_0.85_0.7", "crelu_0.85_0.7_smooth_0.25", "cst_0.85_0.7_smooth_0.1"):
        assert rows[row]["expected zeros"] == pytest.approx(0.85, abs=1e-6)
    assert rows["crelu_0.85_0.7"]["nearly zero"] < rows["crelu_0.85_0.7_smooth_0.25"]["nearly zero"]


def test_the_arms_of_a_larger_fixed_point_differ_in_what_they_say():
    config = load_study_config("price2024/large_q")
    arms = {arm: run_config(config.get_config(f"crelu_0.9_0.7/{arm}")).model for arm in config.ARMS}
    plain = run_config(config.get_config("crelu_0.9_0.7")).model
    unit = edge_of_chaos.solve(0.9, 0.7)
    assert pytest.approx((unit.tau, unit.m), rel=1e-8) == config.CLIP
    for model in arms.values():
        assert model.sparsifier.tau == pytest.approx(2 * plain.sparsifier.tau, rel=1e-8)
        assert model.edge.q == 4.0
    assert arms["q"].sparsifier.m == pytest.approx(2 * plain.sparsifier.m, rel=1e-8)
    assert arms["q_clip"].sparsifier.m == pytest.approx(plain.sparsifier.m, rel=1e-8)
    assert [arms[a].input_gain for a in config.ARMS] == [4.0, 4.0, 1.0, 4.0]
    assert [arms[a].logit_scale for a in config.ARMS] == [1.0, 0.5, 1.0, 1.0]
    # The rescaled edge: the same weights, biases of four times the variance.
    assert arms["q"].edge.sigma_w2 == pytest.approx(plain.edge.sigma_w2, rel=1e-6)
    assert arms["q"].edge.sigma_b2 == pytest.approx(4 * plain.edge.sigma_b2, rel=1e-6)


@pytest.mark.parametrize(
    ("name", "marked", "claim"),
    [
        ("price2024/smooth", "cst_0.85_0.7_seed{}_smooth_0.25", "smooth.cst"),
        ("price2024/large_q", "dnn30_digits_crelu_0.9_0.7_seed{}_q4", "large_q.helps"),
        ("price2024/residual", "vit_digits_cst_0.85_0.7_seed{}_edge_of_chaos", "residual.CST .85/.7"),
    ],
)
def test_a_claim_compares_the_two_arms_that_it_names(tmp_path, name, marked, claim):
    better = {seed: marked.format(seed) for seed in range(3)}

    def accuracy(run):
        return 0.9 + next((0.01 + 0.001 * seed for seed, text in better.items() if run.endswith(text)), 0.0)

    claims = {c.id: c for c in RUNS[name].claims}
    judged = judge(claims[claim], records(tmp_path, name, accuracy))
    assert judged.measured.value == pytest.approx(0.011)
    assert judged.verdict == "reproduced"
