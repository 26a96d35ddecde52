import pytest

from launch.cli import load_study_config
from sparsity.config import config_hash
from sparsity.studies import draw
from sparsity.studies.bricken2023 import runs
from sparsity.studies.records import measured
from sparsity.studies.runner import expand


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ae400_photos_gaussian0.8_seed2", ("ae", 0.8, 2)),
        ("ae10000_cifar10_gaussian10_seed0_annealed", ("ae_annealed", 10.0, 0)),
        ("mlp400_digits_gaussian0_seed11", ("mlp", 0.0, 11)),
        ("ae400_photos_jacobian0.1_seed1", ("ae_jacobian", 0.1, 1)),
        ("ae400_photos_gaussian3_seed1_scale0.1", ("ae_scale0.1", 3.0, 1)),
        ("ae400_photos_gaussian3_seed1_reflected_relu", ("ae_reflected_relu", 3.0, 1)),
    ],
)
def test_variant_sigma_and_seed_are_read_from_names_of_either_scale(name, expected):
    assert runs.variant_sigma_seed(name) == expected


def test_an_effect_over_variants_takes_the_seeds_that_all_have(made):
    records = made("bricken2023/annealing", lambda variant, sigma, seed: {"accuracy": 0.5 + 0.1 * sigma})
    difference = lambda pair: measured(pair[1], "accuracy") - measured(pair[0], "accuracy")
    more = runs.over_variants(records, (("mlp", 0.0), ("mlp_annealed", 0.3)), difference)
    assert (more.value, more.n) == (pytest.approx(0.03), 8)
    assert runs.over_variants(records, (("mlp", 0.0), ("mlp_annealed", 3.0)), difference).n == 3
    missing = runs.over_variants(records, (("mlp", 0.0), ("mlp_annealed", 0.4)), difference)
    assert missing.failed == "no run of mlp_annealed at 0.4"


SHARING = [(study, scale) for study in ("controls", "training_time", "flat_regions") for scale in ("embedded", "paper")]


@pytest.mark.parametrize(("study", "scale"), [*SHARING, ("annealing", "embedded")])
def test_runs_of_noise_alone_are_shared(study, scale):
    # Embedded runs of `noise` are longer; those of `ablations` are as long as all others.
    sharing = {"embedded": "ablations", "paper": "noise"}[scale]
    own, others = (expand(load_study_config(f"bricken2023/{name}").sweep, scale) for name in (study, sharing))
    alone = [c for c in own if runs.variant_sigma_seed(c.name)[0] == "ae"]
    assert alone
    assert {config_hash(c) for c in alone} == {config_hash(c) for c in own} & {config_hash(c) for c in others}


def test_the_ratio_to_the_data_s_deviation_stands_above_its_sigma():
    figure, (axis,) = draw.panels(1, 1)
    axis.plot([0, 10], [1, 2])
    runs.sigma_axis(axis)
    figure.canvas.draw()
    above = axis.child_axes[0]
    at = lambda axis, x: axis.transData.transform((x, 0))[0]
    for sigma in (0, 0.05, 0.3, 1.5, 10):
        assert at(above, sigma / 0.25) == pytest.approx(at(axis, sigma), abs=0.5)  # of a pixel
