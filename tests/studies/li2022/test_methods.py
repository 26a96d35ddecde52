import math

import pytest

from sparsity.evals.result import Measure
from sparsity.layers.mlp import MLPConfig, mlp_flops
from sparsity.ops.sparsifiers import Relu
from sparsity.run import Outcome, Workdir
from sparsity.studies.li2022.methods import Arm, by_arm, bytes_read, of_method, share, worst, worst_layer
from sparsity.studies.runner import Record

STUDY = "li2022/front"
A, B, RELU = Arm("vit", "noise", 1.0), Arm("vit", "noise", 3.0), Arm("vit", "relu")


def ended(value, status="finished"):
    return Record(None, Workdir("nowhere"), Outcome(status, 1, (Measure("accuracy", value, None, 1, ""),)))


def table(**by_seed):
    """Arm -> seed -> run; None diverged."""
    arms = {"a": A, "b": B, "relu": RELU}
    run = lambda value: ended(0.0, "diverged") if value is None else ended(value)
    return {arms[name]: {i: run(v) for i, v in enumerate(values)} for name, values in by_seed.items()}


gap = lambda a, b: a.outcome.measures[0].value - b.outcome.measures[0].value
PAIRS = [(A, RELU), (B, RELU)]


def test_arms_are_read_from_the_configs_in_the_order_of_the_methods(measured_only):
    arms = by_arm(measured_only(STUDY, lambda config: {}))
    vits = [(arm.method, arm.setting) for arm in arms if arm.model == "vit"]
    assert vits == [
        ("relu", 0.0),
        ("gelu", 0.0),
        *(("top_k", k) for k in (11.0, 21.0, 43.0)),
        ("statistical", 21.0),
        ("noise", 1.0),
        ("noise", 3.0),
        *(("l1", weight) for weight in (3e-6, 3e-5, 3e-4)),
        ("clipped", 0.7),
        ("clipped", 0.85),
    ]
    t5s = [arm for arm in arms if arm.model == "t5"]
    assert [arm.method for arm in t5s] == ["relu", "gelu", "top_k", "statistical", "noise", "l1", "clipped"]
    assert {(arm.model, tuple(of_seed)) for arm, of_seed in arms.items()} == {
        ("vit", (0, 1, 2, 3, 4)),
        ("t5", (0, 1, 2)),
    }
    assert of_method(arms, "vit", "noise") == [A, B]
    assert Arm("t5", "l1", 3e-4).text() == "T5, L1 0.0003"
    assert RELU.text() == "ViT, ReLU"


def test_arms_are_the_same_in_records_and_in_what_figures_are_drawn_of(measured_only):
    from sparsity.config import to_dict
    from sparsity.studies.draw import RunView

    records = measured_only(STUDY, lambda config: {})
    views = [RunView(r.outcome, [], to_dict(r.config)) for r in records]
    assert list(by_arm(records)) == list(by_arm(views))


@pytest.mark.parametrize("density", [0.0, 0.08, 0.5, 1.0])
def test_bytes_that_a_token_reads_are_as_its_flops(density):
    """One multiply-add a weight: with one token both are counts of weights."""
    flops = mlp_flops(MLPConfig(512, Relu()), 64, density)
    assert bytes_read(density) == pytest.approx((flops.first + flops.second_sparse) / (flops.first + flops.second))


def test_the_densest_layer_is_not_the_mean():
    measures = [
        Measure(f"nonzero.{name}", value, None, 1, "") for name, value in (("mean", 0.2), ("a", 0.1), ("b", 0.3))
    ]
    run = Record(None, Workdir("nowhere"), Outcome("finished", 1, tuple(measures)))
    assert (share(run), worst_layer(run)) == (0.2, 0.3)
    assert math.isnan(worst_layer(ended(0.0, "diverged")))


def test_the_worst_pair_of_a_seed_is_told_by_the_other_seeds():
    """Gaps of a: -1, 1, 1; of b: 1, 0, 0. The others' means: seed 0: b (0 < 1), seeds 1, 2: a (0 < .5)."""
    arms = table(a=(-1.0, 1.0, 1.0), b=(1.0, 0.0, 0.0), relu=(0.0, 0.0, 0.0))
    assert worst(arms, PAIRS, gap, "above").value == pytest.approx((1 + 1 + 1) / 3)
    assert worst(arms, PAIRS, gap, "below").value == pytest.approx((-1 + 0 + 0) / 3)
    assert worst(arms, PAIRS[:1], gap, "above").value == pytest.approx(1 / 3)


def test_a_pair_that_is_worst_in_every_seed_is_the_one():
    found = worst(table(a=(0.1, 0.2, 0.3), b=(-0.5, -0.4, -0.6), relu=(0.0,) * 3), PAIRS, gap, "above")
    assert (found.value, found.n) == (pytest.approx(-0.5), 3)


def test_a_seed_with_a_diverged_run_is_no_evidence():
    found = worst(table(a=(0.1, 0.2, 0.3), b=(0.5, None, 0.6), relu=(0.0,) * 3), PAIRS, gap, "above")
    assert math.isnan(found.value)
    assert worst(table(a=(0.1,), b=(0.5,), relu=(0.0,)), PAIRS, gap, "above").failed is not None
