import dataclasses
import json
import math

import numpy as np
import pytest

from sparsity import recipes
from sparsity.evals.result import Measure
from sparsity.run import Outcome, Workdir, run_config
from sparsity.studies import price2024_runs as runs
from sparsity.studies.draw import RunView
from sparsity.studies.judge import judge
from sparsity.studies.runner import Record
from sparsity.writer import read_metrics

pytestmark = pytest.mark.filterwarnings("ignore::sparsity.theory.edge_of_chaos.BifurcationWarning")
CLAIMS = {c.id: c for study in (runs.TABLE2, runs.TABLE2_CNN, runs.INITIAL, runs.FIG5) for c in study.claims}
LAYERS = 4


@pytest.fixture
def make(tmp_path):
    """make(row, seed, accuracy=..., zeros=..., q=..., norms=..., losses=...): a run that ended so; None diverged."""

    def record(
        row, seed, accuracy=0.9, zeros=0.5, q=(1.0,) * LAYERS, norms=((1.0,) * (LAYERS - 1),), losses=(1.0,) * 8
    ):
        base = recipes.deep_mlp_digits(depth=LAYERS)
        config = run_config(recipes.with_price_row(base, row, seed))
        files = Workdir(tmp_path / config.name)
        files.path.mkdir()
        lines = [{"kind": "train", "step": i, "loss": loss, "accuracy": 0.5} for i, loss in enumerate(losses)]
        lines += [
            {"kind": "validation", "step": 0, "accuracy": 0.1},
            {"kind": "validation", "step": 4, "accuracy": 0.7},
        ]
        names = ("first", *(f"layers_{i}" for i in range(LAYERS - 1)))
        layers = {name: {"nonzero": 1 - zeros, "q": value} for name, value in zip(names, q, strict=True)}
        for step, norm in enumerate(norms):
            lines.append({"kind": "sparsity", "step": step, "layers": layers})
            lines.append(
                {"kind": "gradients", "step": step, "norms": {"head": 1.0, "input": 1.0, "layers/dense": list(norm)}}
            )
        files.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
        if accuracy is None:
            return Record(config, files, Outcome("diverged", 3))
        measures = (Measure("accuracy", accuracy, 0.01, 358, ""), Measure("nonzero.mean", 1 - zeros, 0.0, 358, ""))
        return Record(config, files, Outcome("finished", 8, measures))

    return record


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("dnn30_digits_relu_seed0", ("relu", 0)),
        ("dnn30_digits_relu_tau_0.6_seed2", ("relu_tau_0.6", 2)),
        ("cnn20_digits_st_0.5_seed1", ("st_0.5", 1)),
        ("dnn100_digits_relu_seed0_rate1e-4", ("relu_rate1e-4", 0)),
        ("dnn100_digits_first15_crelu_0.85_0.9_seed4", ("crelu_0.85_0.9", 4)),
        ("dnn30_digits_cst_0.85_0.7_seed12_smooth_0.25", ("cst_0.85_0.7_smooth_0.25", 12)),
        ("vit_digits_crelu_0.85_0.7_seed0_edge_of_chaos", ("crelu_0.85_0.7_edge_of_chaos", 0)),
    ],
)
def test_rows_and_seeds_are_read_from_names(name, expected):
    assert runs.row_and_seed(name) == expected


def test_the_printed_table_has_all_rows_and_the_targets_of_its_rows():
    assert set(runs.printed()) == set(recipes.PRICE_ROWS)
    assert runs.printed()["crelu_0.85_0.5"]["dnn_acc_mean"] == 0.78
    assert [runs.target(row) for row in ("relu_rate1e-4", "relu_tau_0.6", "st_0.5", "cst_0.7_0.9")] == [
        0.5,
        0.6,
        0.5,
        0.7,
    ]


def test_a_diverged_run_counts_as_chance_and_has_no_sparsity(make):
    diverged = make("st_0.5", 0, None)
    assert runs.accuracy(diverged) == 0.1
    assert math.isnan(runs.sparsity(diverged))
    (row,) = [r for r in runs.table_2_dnn([diverged, make("st_0.5", 1, 0.3, zeros=0.4)]) if r["row"] == "st_0.5"]
    assert (row["n"], row["diverged"], row["accuracy"], row["zeros"]) == (2, 1, pytest.approx(0.2), pytest.approx(0.4))
    assert row["std"] == pytest.approx(0.2 / math.sqrt(2))
    assert row["se"] == pytest.approx(0.1)
    assert row["difference"] == pytest.approx(0.1)  # printed: .10


def test_rows_that_were_not_trained_say_so(make):
    table = runs.table_2_dnn([make("relu", 0)])
    assert [r["row"] for r in table] == list(recipes.PRICE_ROWS)
    assert {r["n"] for r in table if r["row"] != "relu"} == {"not run"}
    assert "32 of the 33 rows of Table 2 were not run here." in runs.table_findings([make("relu", 1)])


def table(make, accuracies):
    """Records of every row of P2 and of ReLU for three seeds."""
    return [
        make(row, seed, value + 0.001 * seed * (row != "relu"))
        for row, value in accuracies.items()
        for seed in range(3)
    ]


@pytest.mark.parametrize(("clipped", "verdict"), [(0.9, "reproduced"), (0.86, "contradicted"), (0.879, "undecided")])
def test_clipped_rows_are_judged_against_relu_of_the_same_seed(make, clipped, verdict):
    records = table(make, {"relu": 0.9} | dict.fromkeys(runs.TRAINED_AT_7, clipped))
    judged = judge(CLAIMS["P2"], records)
    assert judged.measured.n == 3
    assert judged.measured.value == pytest.approx(clipped + 0.001 - 0.9)
    assert judged.verdict == verdict


def test_a_claim_without_its_rows_is_not_testable(make):
    judged = judge(CLAIMS["P2"], [make("relu", seed) for seed in range(3)])
    assert judged.verdict == "not testable"
    assert judged.measured.failed.startswith("no run of crelu_0.6_0.7")


def test_drift_is_from_the_row_s_own_target_and_of_a_diverged_run_undecided(make):
    rows = {"relu": 0.5, "crelu_0.6_0.7": 0.6, "crelu_0.7_0.7": 0.7, "crelu_0.85_0.7": 0.86, "cst_0.85_0.7": 0.85}
    records = [make(row, seed, zeros=zero) for row, zero in rows.items() for seed in range(3)]
    judged = judge(CLAIMS["P2.sparsity"], records)
    assert judged.measured.value == pytest.approx(0.01)
    assert judged.verdict == "reproduced"
    records[-1] = dataclasses.replace(records[-1], outcome=Outcome("diverged", 1))
    assert judge(CLAIMS["P2.sparsity"], records).verdict == "undecided"


def test_failing_is_ten_points_below_relu(make):
    records = [make("relu", seed, 0.9) for seed in range(3)]
    records += [make("crelu_0.85_0.9", seed, 0.2) for seed in range(3)]
    records += [make("cst_0.7_0.9", seed, None if seed else 0.85) for seed in range(3)]
    judged = judge(CLAIMS["P4"], records)
    assert judged.measured.value == pytest.approx((0.5 + 1 + 1) / 3)


def test_late_spikes_are_of_the_second_half_of_training(make):
    calm, early, late = (0.1,) * 8, (9.0, 9.0, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1), (0.1,) * 7 + (10.0,)
    small = [make("crelu_0.85_0.5", 0, losses=late), make("crelu_0.85_0.5", 1, losses=calm)]
    other = [make("crelu_0.85_0.7", 0, losses=early), make("crelu_0.85_0.7", 1, losses=early)]
    judged = judge(CLAIMS["P5.spikes"], [make("relu", 0), make("relu", 1), *small, *other])
    assert judged.measured.value == pytest.approx(1.0)  # (2 + 0) / 2 decades


def test_leaving_the_fixed_point_is_judged_over_runs(make):
    inside, outside = (1.0, 1.9, 0.6, 1.0), (1.0, 1.0, 2.1, 1.0)
    records = [make(row, seed, q=inside) for row in ("crelu_0.6_0.5", "cst_0.7_0.7") for seed in range(3)]
    records += [make("cst_0.8_0.9", seed, q=outside) for seed in range(3)]
    assert judge(CLAIMS["P9"], records).verdict == "reproduced"
    assert judge(CLAIMS["P9.extra"], records).verdict == "reproduced"
    records += [make("crelu_0.7_0.5", seed, q=(1.0, math.nan, 1.0, 1.0)) for seed in range(3)]
    assert judge(CLAIMS["P9"], records).measured.value == pytest.approx(3 / 9)  # NaN does not stay


def test_growth_of_gradients():
    assert runs.growth(np.array([1.0, 4.0, 2.0])) == 4.0
    assert runs.growth(np.array([1.0, np.nan])) == math.inf
    assert runs.growth(np.array([1.0, 0.0])) == math.inf


def test_fig5_takes_norms_that_are_not_finite_for_the_end_of_float32(make):
    steps = ((100.0, 10.0, 1.0), (1e3, 10.0, 1.0), (1e5, math.inf, 1.0))
    (row,) = runs.table_fig5([make("crelu_0.85_0.9", 0, None, norms=steps)])
    assert row["growth, step 1"] == pytest.approx(2.0)
    assert row["largest, step 1"] == pytest.approx(2.0)
    assert row["largest, step 3"] == runs.FLOAT32_END
    assert row["status"] == "diverged"


def test_the_series_of_a_run_has_the_norm_of_every_layer_and_step(make):
    first, second = runs.series_depth100([make("relu", 0, norms=((1.0, 2.0, 3.0), (4.0, 5.0, 6.0)), zeros=0.25)])
    assert [first[f"g{i}"] for i in (2, 3, 4)] == [1.0, 2.0, 3.0]
    assert (second["step"], second["g4"], second["zeros"], second["loss"]) == (1, 6.0, 0.25, 1.0)


@pytest.mark.parametrize(
    "study", [runs.TABLE2, runs.TABLE2_CNN, runs.INITIAL, runs.FIG5, runs.DEPTH100], ids=lambda s: s.name
)
def test_every_figure_is_drawn_of_runs_that_finished_and_that_diverged(study, make):
    records = [make("relu", 0), make("relu_tau_0.7", 0, None, norms=((1.0, math.inf, 0.0),)), make("cst_0.85_0.9", 0)]
    views = {r.config.name: RunView(r.outcome, read_metrics(r.files.metrics), {}) for r in records}
    for figure in study.figures.values():
        assert figure(views).png()
