"""The runs of Bricken et al. 2023, App. H.2, I.2 and J.2: every hyperparameter that paper or authors' code prints.

Nothing here trains. The numbers come from the paper's text and from the authors' public code, not from the configs.
"""

import itertools

import jax
import pytest

from launch.cli import load_study_config
from sparsity.run import cost
from tests.papers import paper_runs, setting

CODE = {  # of every run
    "optimizer.grad_clip": (1.0, "authors' code: global norm 1.0, every step"),
    "optimizer.schedule": ({"name": "constant", "warmup": 0}, "authors' code: no schedule"),
    "evals.split": ("test", "Sec. 3: CIFAR10's test images"),
}
LATENTS = {
    "data.of": ({"name": "cifar10", "held_out": 0.02}, "Sec. 3: latents of CIFAR10"),
    "data.hidden": (256, "Sec. 3: 256 dimensions"),
    "data.depth": (8, "authors' code: ConvMixer of 8 blocks"),
    "data.kernel": (5, "authors' code"),
    "data.patch": (2, "authors' code"),
}
AUTOENCODER = {
    "model.name": ("autoencoder", "Sec. 3, Eq. 2"),
    "model.mlp.sparsifier.name": ("relu", "Sec. 3"),
    "model.mlp.init": ("torch", "authors' code: torch's default"),
    "model.mlp.d_ff": (1000, "App. H.2 and Fig. 28: 1,000 neurons"),
}
ADAM = {"optimizer.rule": ({"name": "adamw", "b1": 0.9, "b2": 0.999, "eps": 1e-8, "weight_decay": 0.0}, "App. I.2")}
BATCH = {"batch": (1024, "authors' code: every released run")}
RATE = {"optimizer.learning_rate": (1e-4, "Fig. 27: always 0.0001")}
SGD = {"optimizer.rule": ({"name": "sgd", "momentum": 0.0}, "App. H.2")}
DEEP = {
    "model.name": ("mlp", "App. J.2"),
    "model.widths": ([200, 200, 200], "Sec. 3: 200 neurons per layer"),
    "model.sparsifier.name": ("relu", "Sec. 3"),
    "steps": (2000 * 49, "Sec. 3: 2,000 epochs, of 49 steps in the authors' code"),
}
SPARSE_ADAM = {"optimizer.rule": ({"name": "sparse_adam", "b1": 0.9, "b2": 0.999, "eps": 1e-8}, "App. I.1")}
ANNEALED = {
    "noise.schedule": (
        {"name": "linear_to_zero", "start": 500 * 49, "length": 500 * 49},
        "Sec. 3: annealing starts at epoch 500 and reaches 0 by epoch 1,000",
    )
}
# (study, part of a run's name) -> dotted key -> (value, where it is printed), of every run with that part.
PRINTED = {
    ("sgd", ""): CODE | AUTOENCODER | SGD,
    ("sgd", "latents"): LATENTS | {"data.count": (5000, "Fig. 25: 5,000 of the 50,000")},
    ("sgd", "sgd0.001_"): {"steps": (800_000, "Fig. 25")},
    ("sgd", "sgd0.01_"): {"steps": (600_000, "Fig. 25")},
    ("sgd", "latents_gaussian8_seed0_sgd0.1_"): {"steps": (400_000, "Fig. 25")},
    ("sgd", "sgd1_"): {"steps": (200_000, "Fig. 25")},
    ("sgd", "_bias5"): {
        "optimizer.multipliers": ([["bias", 5.0]], "authors' code: rate .1, biases .5"),
        "optimizer.learning_rate": (0.1, "authors' code"),
    },
    ("sgd", "10_gaussian"): {
        "data": ({"name": "cifar10", "held_out": 0.02, "pixels": "unit"}, "App. H.2: raw CIFAR10 pixels"),
        "batch": (49_000, "App. H.2: the full batch"),
    },
    ("dead", ""): CODE
    | AUTOENCODER
    | ADAM
    | {"noise.sigma": (3.0, "Fig. 28 to 30"), "evals.noise": (True, "authors' code")},
    ("dead", "latents"): LATENTS,
    ("dead", "dead_base"): BATCH | RATE,
    ("dead", "dead_few"): BATCH | RATE,
    ("dead", "latents_gaussian3_seed0_dead_few"): {"data.count": (5000, "App. I.2")},
    ("dead", "dead_slow"): BATCH,
    ("dead", "dead_small_batch"): RATE | {"batch": (2, "Fig. 30"), "data.count": (5000, "Fig. 30")},
    ("dead", "dead_large_batch"): RATE | {"batch": (5000, "Fig. 30"), "data.count": (5000, "Fig. 30")},
    ("deep_mlp", ""): CODE | LATENTS | DEEP | BATCH,
    ("deep_mlp", "0_adam"): ADAM | RATE | ANNEALED,
    ("deep_mlp", "0_sparse_adam"): SPARSE_ADAM | RATE | ANNEALED,
    ("deep_mlp", "0_sgd"): SGD | ANNEALED,
    ("deep_mlp", "before2"): ADAM | RATE | {"noise": (None, "Sec. 3"), "model.noisy_layers": ([1], "Sec. 3")},
    ("deep_mlp", "before3"): ADAM | RATE | {"noise": (None, "Sec. 3"), "model.noisy_layers": ([2], "Sec. 3")},
}
ASSUMED = {  # what the paper leaves open, by words that an `assumed:` line of the docstring must have
    "sgd": ("sigmas 0, .8 and 8", "batches 32, 128, 512 and 5,000", "five times", "clipped at norm 1", "rate .1"),
    "dead": ("sigma 3", "noise on in validation", "8,000 epochs", "5,000 images", "batches 2 and 5,000", "3e-5"),
    "deep_mlp": ("SGD at rate .1", "never annealed, at sigma 1.5", "batch 1024", "1e-4"),
}
# Arithmetic of the networks: (weights, biases).
SIZES = {
    "ae1000_cifar10_latents": (2 * 256 * 1000, 1000 + 256),
    "ae1000_cifar10": (2 * 3072 * 1000, 1000 + 3072),
    "mlp3x200_cifar10_latents": (256 * 200 + 2 * 200**2 + 200 * 10, 3 * 200 + 10),
}


def by_name(study):
    return {run.name: run for run in paper_runs(f"bricken2023/{study}")}


@pytest.mark.parametrize(("study", "part"), PRINTED)
def test_every_run_has_the_hyperparameters_that_paper_and_code_print(study, part):
    printed = {key: value for key, (value, _) in PRINTED[study, part].items()}
    runs = {name: run for name, run in by_name(study).items() if part in name}
    assert runs
    for name, run in runs.items():
        assert {key: setting(run, key, None) for key in printed} == printed, name


def test_the_grid_of_sgd_is_the_paper_s():
    found = {(r.noise.sigma, r.optimizer.learning_rate) for n, r in by_name("sgd").items() if "latents" in n}
    assert found == set(itertools.product((0.0, 0.8, 8.0), (0.001, 0.01, 0.1, 1.0)))


def test_the_deep_classifier_has_every_row_of_table_2_with_every_seed():
    runs = [r for n, r in by_name("deep_mlp").items() if "before" not in n]
    found = [(type(r.optimizer.rule).__name__, r.noise.sigma, r.seed) for r in runs]
    sigmas = (0.0, 0.1, 0.5, 1.5, 3.0, 5.0, 10.0)
    assert sorted(found) == sorted(itertools.product(("AdamW", "SGD", "SparseAdam"), sigmas, range(3)))


@pytest.mark.parametrize("study", ASSUMED)
def test_what_the_paper_leaves_open_is_said_to_be_assumed(study):
    text = " ".join(load_study_config(f"bricken2023/{study}").__doc__.partition("assumed:")[2].split())
    assert "(paper)" in text
    for words in ASSUMED[study]:
        assert words in text, words


@pytest.mark.parametrize("study", ASSUMED)
def test_every_network_can_be_planned_and_has_the_size_of_the_closed_form(study):
    networks = {name.partition("_gaussian")[0]: run for name, run in by_name(study).items()}
    for name, run in networks.items():
        weights, biases = SIZES[name]
        found = cost(run, jax.devices()[:1])
        assert found.parameters == weights + biases, name
        assert found.training_flops == pytest.approx(3 * 2 * weights * run.batch * run.steps), name
