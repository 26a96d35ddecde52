"""Bricken et al. 2023's own runs: every hyperparameter that the paper prints or its authors' code has.

Nothing here trains. The numbers come from the paper and the code, not from the configs. EPOCH is 49 steps of 1,024.
"""

import dataclasses
from collections import Counter
from pathlib import Path

import jax
import pytest

from launch.cli import load_study_config
from sparsity.config import flatten, to_dict
from sparsity.run import cost
from sparsity.studies.bricken2023.runs import variant_sigma_seed
from tests.papers import paper_runs

OTHERS = (  # in tests/test_papers_dead.py, _pareto.py, _beyond.py and _networks.py
    *("sgd", "dead", "deep_mlp"),
    *("ablations", "activations", "pareto", "front"),
    *("robustness", "gentle_annealing"),
    *("transformer", "alexnet"),
)
CONFIGS = Path(__file__).parents[1] / "configs"
EPOCH = 49
SIGMAS = (0.0, 0.05, 0.1, 0.3, 0.8, 1.5, 3.0, 10.0)  # Fig. 5
SEEDS = 3  # Fig. 5

# Dotted key -> (value, where it is said), of every run.
COMMON = {
    "batch": (1024, "code; the paper has none"),
    "optimizer.learning_rate": (1e-4, "App. I.2"),
    "optimizer.rule.name": ("adamw", "App. D: Adam"),
    "optimizer.rule.weight_decay": (0.0, "code"),
    "optimizer.rule.b1": (0.9, "code"),
    "optimizer.rule.b2": (0.999, "code"),
    "optimizer.schedule.name": ("constant", "App. I.2: the learning rate is always 0.0001"),
    "optimizer.schedule.warmup": (0, "code"),
    "optimizer.grad_clip": (1.0, "code"),
    "data.name": ("cifar10", "Sec. 3"),
    "data.pixels": ("unit", "code: in [0, 1], as they are"),
    "evals.split": ("test", "Fig. 3"),
}
AUTOENCODER = {
    "model.name": ("autoencoder", "Eq. 2"),
    "model.mlp.d_ff": (10_000, "Fig. 5"),
    "model.mlp.init": ("torch", "code"),
}
CLASSIFIER = {
    "model.name": ("mlp", "Fig. 8"),
    "model.widths": ([10_000], "Fig. 5, which Fig. 8 trains as"),
    "model.init": ("torch", "code"),
}
RELU = {"model.mlp.sparsifier.name": ("relu", "Eq. 2")}
FALLS = {
    "noise.schedule.name": ("linear_to_zero", "Fig. 8"),
    "noise.schedule.start": (800 * EPOCH, "Fig. 8: epoch 800"),
    "noise.schedule.length": (800 * EPOCH, "Fig. 8: to epoch 1,600"),
    "evals.noise": (True, "code: validation is under noise"),
}
STAYS = {"noise.schedule.name": ("constant", "Sec. 3")}


@dataclasses.dataclass(frozen=True)
class Arm:
    """What is said of the runs of one variant: their length, sigmas and settings beside `COMMON`."""

    epochs: int
    sigmas: tuple[float, ...]
    settings: dict


def plain(epochs, sigmas, **more):
    return Arm(epochs, sigmas, AUTOENCODER | RELU | STAYS | more)


def activation(name):
    return Arm(3000, (0.0, 0.3, 0.8, 3.0), AUTOENCODER | STAYS | {"model.mlp.sparsifier.name": (name, "Fig. 20")})


def scale(s):
    # 1 is the default, which a config leaves out.
    return plain(3000, (3.0,), **({"model.mlp.scale": (s, "Fig. 9; the scales are illegible")} if s != 1 else {}))


# Config file -> its arms by variant, and what the paper leaves open, by words of an `assumed:` line.
PAPERS = {
    "bricken2023/noise": ({"ae": plain(3000, SIGMAS)}, ("(paper) pixels in [0, 1]", "3,000 epochs", "biases")),
    "bricken2023/annealing": (
        {
            "ae": plain(1600, (0.0,)),
            "ae_annealed": Arm(1600, SIGMAS[1:], AUTOENCODER | RELU | FALLS),
            "mlp": Arm(3000, (0.0,), CLASSIFIER | STAYS),
            "mlp_annealed": Arm(3000, SIGMAS[1:], CLASSIFIER | FALLS),
        },
        ("(paper) CIFAR10's pixels", "1,600 epochs of reconstruction, 3,000 of classification"),
    ),
    "bricken2023/controls": (
        {
            "ae": plain(3000, (0.0, 0.1, 0.3, 0.8)),
            "ae_jacobian": Arm(3000, (0.1, 0.3, 0.8), AUTOENCODER | RELU | {"penalty.name": ("jacobian", "Sec. 1")}),
            "ae_shared_bias": plain(3000, (0.8,), **{"model.mlp.shared_bias": (True, "Sec. 3")}),
            **{f"ae_scale{s:g}": scale(s) for s in (0.1, 0.3, 1.0, 3.0)},
        },
        ("illegible", "sigmas are .1, .3 and .8", "(paper) networks, data and training of `noise`"),
    ),
    "bricken2023/training_time": (
        {
            "ae": plain(3000, (0.3,)),
            "ae_441000steps": plain(9000, (0.3,)),
            "ae_931000steps": plain(19_000, (0.3,)),
        },
        ("(paper) 3,000, 9,000 and 19,000 epochs, as Fig. 12 prints",),
    ),
    "bricken2023/flat_regions": (
        {"ae": activation("relu")} | {f"ae_{name}": activation(name) for name in ("gelu", "reflected_relu", "sat")},
        ("(paper) CIFAR10's pixels, 10,000 units", "|phi'| < .01"),
    ),
}


def test_every_config_with_runs_at_the_papers_scale_is_in_the_table():
    files = [str(path.relative_to(CONFIGS).with_suffix("")) for path in CONFIGS.glob("bricken2023/*.py")]
    elsewhere = {f"bricken2023/{study}" for study in OTHERS}
    assert {name for name in files if paper_runs(name)} == set(PAPERS) | elsewhere


@pytest.mark.parametrize("name", PAPERS)
class TestPaper:
    def test_every_variant_is_run_at_every_sigma_with_every_seed_once(self, name):
        arms, _ = PAPERS[name]
        found = Counter(variant_sigma_seed(config.name) for config in paper_runs(name))
        expected = {(v, sigma, seed) for v, arm in arms.items() for sigma in arm.sigmas for seed in range(SEEDS)}
        assert set(found) == expected
        assert set(found.values()) == {1}

    def test_every_run_has_the_hyperparameters_and_the_length(self, name):
        for config in paper_runs(name):
            variant, sigma, seed = variant_sigma_seed(config.name)
            arm = PAPERS[name][0][variant]
            settings, expected = flatten(to_dict(config)), COMMON | arm.settings
            assert {key: settings[key] for key in expected} == {k: v for k, (v, _) in expected.items()}, config.name
            assert (config.steps, config.seed) == (arm.epochs * EPOCH, seed)
            of_noise, of_penalty = settings.get("noise.sigma"), settings.get("penalty.sigma")
            assert (of_noise, of_penalty) == ((None, sigma) if "jacobian" in variant else (sigma, None)), config.name
            assert settings.get("noise.name", "gaussian") == "gaussian"

    def test_what_the_paper_leaves_open_is_said_to_be_assumed(self, name):
        flat = " ".join(load_study_config(name).__doc__.partition("assumed:")[2].split())
        for words in PAPERS[name][1]:
            assert words in flat, words

    def test_the_networks_have_the_size_of_the_closed_form(self, name):
        for config in {variant_sigma_seed(c.name)[0]: c for c in paper_runs(name)}.values():
            inputs, units = 3072, 10_000
            outputs = 10 if "mlp" in config.name else inputs
            biases = outputs + (1 if "shared_bias" in config.name else units)
            assert cost(config, jax.devices()[:1]).parameters == (inputs + outputs) * units + biases, config.name
