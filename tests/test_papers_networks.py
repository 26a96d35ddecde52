"""The runs of Bricken et al. 2023, App. J.1 and J.3: every hyperparameter that the paper or its authors' code prints.

Nothing here trains. The numbers come from the paper's text and from the authors' public code, not from the configs.
Neither network is in that code: what it says of the others' training is assumed of these.
"""

import itertools
from collections import Counter

import jax
import pytest

from launch.cli import load_study_config
from sparsity.run import cost
from sparsity.studies.bricken2023.alexnet import arm_of
from sparsity.studies.bricken2023.transformer import place_of
from tests.papers import paper_runs, setting

EPOCH = 49  # steps of 1,024 images, of 50,000
CODE = {
    "optimizer.grad_clip": (1.0, "authors' code: global norm 1.0, every step"),
    "optimizer.schedule": ({"name": "constant", "warmup": 0}, "authors' code: no schedule"),
    "evals.noise": (True, "authors' code: validation is under noise"),
}
ADAM = {
    "optimizer.rule": ({"name": "adamw", "b1": 0.9, "b2": 0.999, "eps": 1e-8, "weight_decay": 0.0}, "App. I.2"),
    "optimizer.learning_rate": (1e-4, "Fig. 27: always 0.0001"),
}
GPT2 = CODE | {
    "model.name": ("gpt2", "Sec. 3"),
    "model.layers": (3, "Sec. 3: three blocks"),
    "model.d_model": (768, "Hugging Face's GPT-2"),
    "model.heads": (12, "Hugging Face's GPT-2"),
    "model.positions": (1024, "Hugging Face's GPT-2"),
    "model.dropout": (0.1, "Hugging Face's GPT-2"),
    "model.mlp.d_ff": (4 * 768, "Hugging Face's GPT-2"),
    "model.mlp.init": ("gpt2", "Hugging Face's GPT-2"),
    "model.mlp.sparsifier.name": ("relu", "Table 1: 17% active without noise is no GELU"),
    "model.mlp.noise.name": ("gaussian", "Sec. 3"),
    "model.mlp.noise.schedule": ({"name": "removed_at", "step": 200_000}, "Sec. 3: removed at step 200k"),
    "noise": (None, "Sec. 3: in front of each MLP"),
    "data.name": ("wikitext", "Sec. 3: WikiText-103"),
    "data.length": (1024, "Hugging Face's GPT-2"),
    "steps": (1_700_000, "Table 1: 1.7 million training steps"),
    "evals.split": ("validation", "Table 1: Val. Loss"),
}
ALEXNET = CODE | {
    "model.name": ("alexnet", "Sec. 3"),
    "model.sparsifier.name": ("relu", "Sec. 3"),
    "model.init": ("torch", "authors' code: torch's default"),
    "data": ({"name": "cifar10", "held_out": 0.02, "pixels": "unit"}, "Sec. 3: raw CIFAR10; code: in [0, 1]"),
    "batch": (1024, "authors' code: every released run"),
    "steps": (3500 * EPOCH, "Sec. 3: 3.5k epochs"),
    "evals.split": ("test", "authors' code: CIFAR10's test images validate"),
}
FALLS = ({"name": "linear_to_zero", "start": 1000 * EPOCH, "length": 500 * EPOCH}, "Sec. 3: 1,000 epochs, then 500")
PIXELS = {"noise.schedule": FALLS, "model.noise": (None, "Sec. 3: only to the input pixels")}
MAX = {"model.pooling": ("max", "App. J.3")}
RULES = {
    "sgd": {"optimizer.rule": ({"name": "sgd", "momentum": 0.0}, "App. J.3")},
    "sparse_adam": {
        "optimizer.rule": ({"name": "sparse_adam", "b1": 0.9, "b2": 0.999, "eps": 1e-8}, "App. I.1"),
        "optimizer.learning_rate": ADAM["optimizer.learning_rate"],
    },
}
# (study, arm) -> dotted key -> (value, where it is printed), of every run of the arm.
PRINTED = {
    ("transformer", "after"): GPT2 | ADAM | {"model.noise_before_norm": (False, "the MLP reads the LayerNorm")},
    ("transformer", "before"): GPT2 | ADAM | {"model.noise_before_norm": (True, "the other reading")},
    ("alexnet", "adam"): ALEXNET | ADAM | PIXELS | MAX,
    ("alexnet", "sgd"): ALEXNET | RULES["sgd"] | PIXELS | MAX,
    ("alexnet", "sparse_adam"): ALEXNET | RULES["sparse_adam"] | PIXELS | MAX,
    ("alexnet", "average"): ALEXNET | ADAM | PIXELS | {"model.pooling": ("average", "App. J.3")},
    ("alexnet", "convolutions"): ALEXNET
    | ADAM
    | MAX
    | {"noise": (None, "App. J.3: just before the MLP layers"), "model.noise.schedule": FALLS},
}
ARM_OF = {"transformer": place_of, "alexnet": arm_of}
SIGMAS = {
    "transformer": (0.0, 0.05, 0.1, 0.3, 0.8, 1.5, 3.0, 8.0),  # Table 1
    "alexnet": (0.0, 0.5, 1.5, 3.0, 5.0, 10.0),  # Table 3
}
NO_BASE = ("before", "convolutions")  # without noise these are the runs of another arm
ASSUMED = {  # what the paper leaves open, by words that an `assumed:` line of the docstring must have
    "transformer": ("a token is a byte", "768", "12 heads", "dropout .1", "ReLU", "batch 32", "1e-4", "before it"),
    "alexnet": ("SGD at rate .1", "no dropout", "variant", "batch 1024", "1e-4", "units of what", "three seeds"),
}


@pytest.mark.parametrize(("study", "arm"), PRINTED)
def test_every_run_has_the_hyperparameters_that_paper_and_code_print(study, arm):
    printed = {key: value for key, (value, _) in PRINTED[study, arm].items()}
    runs = [run for run in paper_runs(f"bricken2023/{study}") if ARM_OF[study](run.name)[0] == arm]
    assert runs
    for run in runs:
        assert {key: setting(run, key, None) for key in printed} == printed, run.name


@pytest.mark.parametrize("study", SIGMAS)
def test_every_arm_is_run_at_every_sigma_with_every_seed_once(study):
    arms = [arm for name, arm in PRINTED if name == study]
    grid = itertools.product(arms, SIGMAS[study], range(3))
    expected = {(arm, sigma, seed) for arm, sigma, seed in grid if sigma or arm not in NO_BASE}
    found = Counter(ARM_OF[study](run.name) for run in paper_runs(f"bricken2023/{study}"))
    assert set(found) == expected
    assert set(found.values()) == {1}


@pytest.mark.parametrize("study", SIGMAS)
def test_names_say_sigma_and_seed_and_sigma_is_the_paper_s(study):
    for run in paper_runs(f"bricken2023/{study}"):
        arm, sigma, seed = ARM_OF[study](run.name)
        inside = run.model.mlp.noise if study == "transformer" else run.model.noise
        noise = inside if study == "transformer" or arm == "convolutions" else run.noise
        assert (noise.sigma, run.seed) == (sigma, seed), run.name


@pytest.mark.parametrize("study", ASSUMED)
def test_what_the_paper_leaves_open_is_said_to_be_assumed(study):
    text = " ".join(load_study_config(f"bricken2023/{study}").__doc__.partition("assumed:")[2].split())
    assert "(paper)" in text
    assert "(embedded)" in text
    for words in ASSUMED[study]:
        assert words in text, words


def test_the_transformer_can_be_planned_and_has_the_size_of_the_closed_form():
    run, d, length, bytes_ = paper_runs("bricken2023/transformer")[0], 768, 1024, 256
    found = cost(run, jax.devices()[:1])
    block = 12 * d**2 + 13 * d  # four matrices of attention and two of the MLP with biases, two LayerNorms
    assert found.parameters == (bytes_ + length) * d + 3 * block + 2 * d
    forward = 2 * bytes_ * d + 3 * (2 * 12 * d**2 + 4 * length * d)
    assert found.training_flops == pytest.approx(3 * forward * length * 32 * 1_700_000)


def test_the_alexnet_can_be_planned_and_has_the_size_of_the_closed_form():
    run = next(run for run in paper_runs("bricken2023/alexnet") if arm_of(run.name) == ("adam", 1.5, 0))
    channels, sides = (3, 64, 192, 384, 256, 256), (16, 8, 4, 4, 4)
    convolutions = [9 * a * b for a, b in itertools.pairwise(channels)]
    matrices = [2 * 2 * 256 * 4096, 4096**2, 4096 * 10]
    found = cost(run, jax.devices()[:1])
    assert found.parameters == sum(convolutions) + sum(matrices) + sum(channels[1:]) + 2 * 4096 + 10
    forward = 2 * (sum(side**2 * c for side, c in zip(sides, convolutions, strict=True)) + sum(matrices))
    assert found.training_flops == pytest.approx(3 * forward * 1024 * 3500 * EPOCH)
