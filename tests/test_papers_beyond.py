"""What goes beyond Bricken et al. 2023: hyperparameters of the runs at the paper's scale, which are the paper's own.

Nothing here trains. The numbers come from the paper and its authors' code, not from the configs; what is ours is said
in an `assumed:` line.
"""

import itertools

import pytest

from launch.cli import load_study_config
from sparsity.ops.noise import Constant, Geometric, LinearToZero
from tests.papers import paper_runs, setting

EPOCH = 49  # steps of 1,024 images, of 50,000
SEEDS = (0, 1, 2)
COMMON = {
    "data.name": ("cifar10", "Sec. 3"),
    "data.pixels": ("unit", "code: uint8 / 255, not normalised"),
    "batch": (1024, "code: every released run"),
    "optimizer.learning_rate": (1e-4, "App. I.2"),
    "optimizer.rule": ({"name": "adamw", "b1": 0.9, "b2": 0.999, "eps": 1e-8, "weight_decay": 0.0}, "Adam; code"),
    "optimizer.schedule": ({"name": "constant", "warmup": 0}, "App. I.2: always 0.0001"),
    "optimizer.grad_clip": (1.0, "code: global norm, every step"),
    "evals.split": ("test", "code"),
    "noise.name": ("gaussian", "Eq. 2"),
}
STUDIES = {
    "robustness": COMMON
    | {
        "model.name": ("mlp", "Fig. 8"),
        "model.widths": ([10_000], "Fig. 5, which Fig. 8 trains as"),
        "model.init": ("torch", "code: nn.Linear's own"),
        "evals.corruptions": ("auto", "Li et al., Fig. 10: the benchmark made for the images' size"),
    },
    "gentle_annealing": COMMON
    | {
        "model.name": ("autoencoder", "Eq. 2"),
        "model.mlp.d_ff": (10_000, "Fig. 5"),
        "model.mlp.init": ("torch", "code: nn.Linear's own"),
        "model.mlp.sparsifier.name": ("relu", "Eq. 2"),
    },
}
FALL = LinearToZero(start=800 * EPOCH, length=800 * EPOCH)  # Fig. 8: from epoch 800 to 1,600


@pytest.mark.parametrize("study", STUDIES)
class TestStudy:
    def test_every_run_has_the_hyperparameters_of_the_paper(self, study):
        expected = {key: value for key, (value, _) in STUDIES[study].items()}
        for config in paper_runs(f"bricken2023/{study}"):
            assert {key: setting(config, key) for key in expected} == expected, config.name

    def test_no_run_is_there_twice(self, study):
        names = [config.name for config in paper_runs(f"bricken2023/{study}")]
        assert len(names) == len(set(names))

    def test_what_is_ours_is_said_to_be_assumed(self, study):
        assert "assumed: (paper)" in load_study_config(f"bricken2023/{study}").__doc__
        assert "assumed: (embedded)" in load_study_config(f"bricken2023/{study}").__doc__


def noise_of(config):
    return config.noise.sigma, config.noise.schedule, config.seed


class TestRobustness:
    def test_plain_constant_and_annealed_noise_with_every_seed(self):
        found = {
            noise_of(c) for c in paper_runs("bricken2023/robustness") if setting(c, "model.sparsifier.name") == "relu"
        }
        constant = itertools.product((0.0, 0.1, 0.3, 0.8, 1.5), [Constant()], SEEDS)
        annealed = itertools.product((0.1, 0.3, 0.8, 1.5, 3.0), [FALL], SEEDS)
        assert found == {*constant, *annealed}

    def test_top_k_of_10_and_3_percent_falls_over_a_quarter_of_training_and_has_no_noise(self):
        kept = [c for c in paper_runs("bricken2023/robustness") if setting(c, "model.sparsifier.name") == "top_k"]
        found = {(c.model.sparsifier.k, c.model.sparsifier.anneal, c.noise.sigma, c.seed) for c in kept}
        assert found == {*itertools.product((1000, 300), [750 * EPOCH], [0.0], SEEDS)}

    def test_the_runs_are_as_long_as_the_classifiers_of_fig_8(self):
        assert {config.steps for config in paper_runs("bricken2023/robustness")} == {3000 * EPOCH}

    def test_all_are_measured_as_li_et_al_measure_and_without_noise(self):
        for config in paper_runs("bricken2023/robustness"):
            assert {"accuracy", "calibration", "robustness", "sparsity"} <= set(config.evals.names)
            left = config.noise.sigma * float(config.noise.schedule(config.steps)) if config.evals.noise else 0
            assert left == 0, config.name


class TestGentleAnnealing:
    def test_every_schedule_is_run_at_both_sigmas_with_every_seed(self):
        time = {"start": 800 * EPOCH, "length": 800 * EPOCH}
        schedules = [
            (FALL, 1600),
            (LinearToZero(800 * EPOCH, 1600 * EPOCH), 2400),
            (LinearToZero(1600 * EPOCH, 800 * EPOCH), 2400),
            (Geometric(**time, end=0.01), 1600),
            (Geometric(**time, end=0.05, kept=True), 1600),
            (Constant(), 1600),
        ]
        found = [(*noise_of(c), c.steps) for c in paper_runs("bricken2023/gentle_annealing")]
        expected = itertools.product((1.5, 3.0), schedules, SEEDS)
        assert set(found) == {(sigma, s, seed, epochs * EPOCH) for sigma, (s, epochs), seed in expected}

    def test_the_last_evaluation_is_without_noise(self):
        for config in paper_runs("bricken2023/gentle_annealing"):
            left = float(config.noise.schedule(config.steps)) if config.evals.noise else 0
            assert left == 0, config.name
