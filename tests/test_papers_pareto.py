"""Bricken et al. 2023, Figs. 13 to 15 and 21 to 24: every hyperparameter of the runs at the paper's scale.

Nothing here trains. The numbers come from the paper and its authors' code, not from the configs.
"""

import itertools

import pytest

from launch.cli import load_study_config
from sparsity.ops.noise import Laplace, Poisson, SaltAndPepper
from tests.papers import paper_runs, setting

EPOCH = 49  # steps of 1,024 images, of 50,000
SIGMAS = {0.0, 0.05, 0.1, 0.3, 0.8, 1.5, 3.0, 10.0}  # Fig. 21
SEEDS = (0, 1, 2)
COMMON = {
    "data.name": ("cifar10", "App. D and H.1: CIFAR10 pixels"),
    "data.pixels": ("unit", "code: uint8 / 255, not normalised"),
    "batch": (1024, "code: every released run"),
    "optimizer.learning_rate": (1e-4, "code"),
    "optimizer.rule": ({"name": "adamw", "b1": 0.9, "b2": 0.999, "eps": 1e-8, "weight_decay": 0.0}, "Adam; code"),
    "optimizer.schedule": ({"name": "constant", "warmup": 0}, "code: none"),
    "optimizer.grad_clip": (1.0, "code: global norm, every step"),
    "evals.split": ("test", "App. D: validation loss, on CIFAR10's test set in the code"),
}
RECONSTRUCTION = {
    "model.name": ("autoencoder", "Eq. 2"),
    "model.mlp.init": ("torch", "code: nn.Linear's own"),
    "model.mlp.use_bias": (True, "Eq. 2"),
}
ALL_UNITS = {"model.mlp.d_ff": (10_000, "App. D: 10,000 neuron models")}
STUDIES = {
    "ablations": (COMMON, 3000),  # App. H.1: 3,000 epochs
    "activations": (COMMON | RECONSTRUCTION | ALL_UNITS, 3000),
    "pareto": (COMMON | RECONSTRUCTION | ALL_UNITS, 2000),  # App. D: 2,000 epochs
    "front": (COMMON | RECONSTRUCTION | ALL_UNITS, 2000),
}


@pytest.mark.parametrize("study", STUDIES)
class TestStudy:
    def test_every_run_has_the_hyperparameters_of_the_paper(self, study):
        expected = {key: value for key, (value, _) in STUDIES[study][0].items()}
        for config in paper_runs(f"bricken2023/{study}"):
            assert {key: setting(config, key) for key in expected} == expected, config.name

    def test_the_runs_are_as_long_as_the_paper_s(self, study):
        assert {config.steps for config in paper_runs(f"bricken2023/{study}")} == {EPOCH * STUDIES[study][1]}

    def test_no_run_is_there_twice(self, study):
        names = [config.name for config in paper_runs(f"bricken2023/{study}")]
        assert len(names) == len(set(names))

    def test_what_the_paper_leaves_open_is_said_to_be_assumed(self, study):
        assert "assumed: (paper)" in load_study_config(f"bricken2023/{study}").__doc__
        assert "assumed: (embedded)" in load_study_config(f"bricken2023/{study}").__doc__


def noise_of(config):
    """(sigma, start and length of its annealing or None)."""
    schedule = config.noise.schedule
    return config.noise.sigma, (schedule.start, schedule.length) if hasattr(schedule, "start") else None


ANNEALED = (1000 * EPOCH, 500 * EPOCH)  # App. D: "we anneal noise from epochs 1000 to 1500"


def test_noise_alone_is_annealed_between_a_half_and_three_quarters():
    alone = [
        c
        for c in paper_runs("bricken2023/pareto")
        if c.penalty is None and setting(c, "model.mlp.sparsifier.name") != "top_k"
    ]
    found = {(*noise_of(config), config.seed) for config in alone}
    assert found == {(s, ANNEALED, 0) for s in SIGMAS - {0.0}} | {(0.0, None, seed) for seed in SEEDS}


def test_l1_has_the_paper_s_weights_of_the_sum_over_units_with_unit_norms_and_without():
    weights = (1e-4, 1e-5, 1e-6, 1e-7, 1e-8)  # App. D, at 3,072 pixels: not scaled
    penalised = [c for c in paper_runs("bricken2023/pareto") if c.penalty is not None]
    found = {(c.penalty.weight, c.optimizer.unit_norm, c.seed) for c in penalised}
    both = (("hidden/wi/kernel", 0), ("hidden/wo/kernel", 1))  # every unit's incoming and outgoing weights
    one_seed = itertools.product(weights, [(), both], [0])
    repeated = itertools.product(weights[:2], [(), both], SEEDS)
    assert found == {*one_seed, *repeated}
    assert {noise_of(c) for c in penalised} == {(0.0, None)}


def test_top_k_falls_from_all_units_over_500_epochs():
    kept = [c for c in paper_runs("bricken2023/pareto") if setting(c, "model.mlp.sparsifier.name") == "top_k"]
    found = {(c.model.mlp.sparsifier.k, c.model.mlp.sparsifier.anneal, c.model.mlp.sparsifier.act) for c in kept}
    assert found == {(k, 500 * EPOCH, "relu") for k in (3, 10, 30, 100, 300, 1000, 3000)}
    assert {noise_of(c) for c in kept} == {(0.0, None)}


def test_combinations_have_one_noise_and_it_is_annealed():
    for config in paper_runs("bricken2023/front"):
        sigma, annealing = noise_of(config)
        alone = config.penalty is None and setting(config, "model.mlp.sparsifier.name") == "relu"
        assert annealing == (None if sigma == 0 else ANNEALED)
        assert sigma == 0.3 or alone


def test_combinations_are_scaled_by_the_paper_s_own_data():
    found = [config for config in paper_runs("bricken2023/front") if config.seed == 0]
    clipped = {(c.model.mlp.sparsifier.tau, c.model.mlp.sparsifier.m) for c in found if "clipped" in c.name}
    assert clipped == {(0.25, 0.5), (0.25, 1.0)}  # one, two and four std(data)
    assert {c.penalty.weight for c in found if c.penalty} == {1e-5, 3e-5}
    assert {c.model.mlp.sparsifier.k for c in found if "top_k" in c.name} == {300, 1000}


def test_every_activation_of_sec_3_is_run_at_every_sigma_with_every_seed():
    found = {
        (setting(c, "model.mlp.sparsifier.name"), noise_of(c), c.seed) for c in paper_runs("bricken2023/activations")
    }
    noises = [(sigma, None) for sigma in (0.0, 0.1, 0.3, 0.8, 3.0)]
    assert found == {*itertools.product(("relu", "gelu", "sigmoid", "elu", "tanh"), noises, SEEDS)}


class TestAblations:
    def runs(self, kind):
        chosen = {"laplace": Laplace, "poisson": Poisson, "salt_and_pepper": SaltAndPepper}
        return [c for c in paper_runs("bricken2023/ablations") if type(c.noise) is chosen[kind]]

    def test_four_numbers_of_units_under_gaussian_noise(self):
        gaussian = [c for c in paper_runs("bricken2023/ablations") if c.name.startswith("ae") and "gaussian" in c.name]
        found = {(c.model.mlp.d_ff, c.noise.sigma, c.seed) for c in gaussian}
        assert found == {*itertools.product((100, 1000, 10_000, 100_000), SIGMAS, SEEDS)}

    def test_laplace_noise_of_scale_sigma(self):
        found = {(c.model.mlp.d_ff, c.noise.sigma, c.seed) for c in self.runs("laplace")}
        assert found == {*itertools.product([10_000], SIGMAS - {0.0}, SEEDS)}

    def test_poisson_noise_is_there_for_completeness(self):
        found = {(c.model.mlp.d_ff, c.noise.sigma, c.seed) for c in self.runs("poisson")}
        assert found == {*itertools.product([10_000], SIGMAS - {0.0}, [0])}

    def test_salt_and_pepper_ends_the_range_of_pixels(self):
        found = {(c.noise.probability, c.noise.low, c.noise.high, c.seed) for c in self.runs("salt_and_pepper")}
        assert found == {*itertools.product((0.1, 0.3, 0.5, 0.7, 0.9), [0.0], [1.0], SEEDS)}

    def test_classification_has_the_same_hidden_layer(self):
        classifiers = [c for c in paper_runs("bricken2023/ablations") if setting(c, "model.name") == "mlp"]
        found = {(c.model.widths, c.model.init, c.noise.sigma, c.seed) for c in classifiers}
        assert found == {*itertools.product([(10_000,)], ["torch"], SIGMAS, SEEDS)}
        assert all(setting(c, "model.sparsifier.name") == "relu" for c in classifiers)
