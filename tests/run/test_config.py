import dataclasses
import functools
import re
import types

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from sparsity import recipes, spmd
from sparsity.config import ConfigError, config_hash, differences, to_dict
from sparsity.evals import EVALS, TASKS
from sparsity.ops.noise import Gaussian
from sparsity.ops.sparsifiers import Relu
from sparsity.run import VALIDATION, Engine, run_config, smoke, with_evals
from tests.run.runs import autoencoder

SPARSIFIER = "model.mlp.sparsifier"


def test_choosing_another_sparsifier_by_name_drops_the_settings_of_the_former(tiny_config):
    config = recipes.with_top_k(tiny_config, 4)
    config.model.mlp.sparsifier.name = "relu"
    with pytest.raises(ConfigError, match=r"sparsifier\.\w+: unknown key; there are none"):
        run_config(config)
    chosen = [f"{SPARSIFIER}.name"]
    assert run_config(config, chosen).model.mlp.sparsifier == Relu()
    with pytest.raises(ConfigError, match=r"sparsifier\.k: unknown key"):  # but not one the user set too
        run_config(config, [*chosen, f"{SPARSIFIER}.k"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({SPARSIFIER: {"name": "top_k", "k": 33}}, f"config.{SPARSIFIER}.k: 33 is more than the d_ff 32"),
        ({SPARSIFIER: {"name": "shifted_relu", "tau": -1.0}}, f"config.{SPARSIFIER}.tau: must be at least 0"),
        ({f"{SPARSIFIER}.name": "rel"}, f'config.{SPARSIFIER}.name: unknown name "rel"; did you mean "relu"?'),
        ({"model.heads": 3}, "config.model.heads: 3 does not divide d_model 16"),
        ({"model.patch": 3}, "config.model.patch: 3 does not divide the image's 8x8 pixels"),
        ({"model.pool": "max"}, 'config.model.pool: unknown choice "max"; '),
        ({"evals.names": ("acuracy",)}, 'config.evals.names: unknown evaluator "acuracy"; did you mean "accuracy"?'),
        ({"evals.during": ("calibratio",)}, 'config.evals.during: unknown evaluator "calibratio"; did you mean'),
        ({"evals.during": ("language",)}, "config.evals.during: language scores language, and the model's task is"),
        ({"model.mlp.inference": {"name": "dense"}}, "config.model.mlp.inference: it is of decoding alone, see"),
        ({"mesh": {"sequence": 3}}, "config.mesh.sequence: 3 devices do not divide the length 4 of the model's input"),
        ({"mesh": {"fdsp": 2}}, 'config.mesh.fdsp: unknown key; did you mean "fsdp"?'),
        ({"mesh": {"fsdp": 0}}, "config.mesh.fsdp: must be at least 1, got 0"),
        ({"accumulate": 5}, "config.accumulate: 5 does not divide the batch 32"),
        ({"steps": 0}, "config.steps: must be at least 1"),
        ({"guard": {"skips": -1}}, "config.guard.skips: must be at least 0, got -1"),
        ({"guard": {"spikes": {"window": 1}}}, "config.guard.spikes.window: must be at least 2, got 1"),
        ({"guard": {"spikes": {"deviations": 0.0}}}, "config.guard.spikes.deviations: must be above 0, got 0.0"),
        ({"guard": {"skip": 1}}, 'config.guard.skip: unknown key; did you mean "skips"?'),
        ({"name": "a/b"}, "config.name: letters, digits"),
        ({"data.name": "digit"}, 'config.data.name: unknown name "digit"; did you mean "digits"?'),
        ({"noise": {"name": "gausian", "sigma": 1.0}},
         'config.noise.name: unknown name "gausian"; did you mean "gaussian"?'),
        ({"noise": {"name": "gaussian", "sgma": 1.0}}, 'config.noise.sgma: unknown key; did you mean "sigma"?'),
        ({"noise": {"sigma": 1.0}}, "config.noise: expected a section with a name; valid: gaussian, laplace, "),
        ({"noise": {"name": "gaussian", "sigma": 1.0, "schedule": {"name": "linear_to_zer"}}},
         'config.noise.schedule.name: unknown name "linear_to_zer"; did you mean "linear_to_zero"?'),
        ({"model.mlp.noise": {"name": "poison", "sigma": 1.0}},
         'config.model.mlp.noise.name: unknown name "poison"; did you mean "poisson"?'),
        ({"penalty": {"name": "l_1", "weight": 1.0}}, 'config.penalty.name: unknown name "l_1"; did you mean "l1"?'),
        ({"penalty": {"name": "jacobian", "sigma": 1.0}}, "config.penalty: jacobian is that of an autoencoder"),
        ({"z_loss": 1e-4}, "config.z_loss: must be at least 0, and 0 but for language models, got 0.0001"),
        ({"data": {"name": "photos"}}, "config.data: Photos has no labels, and the model is a classifier"),
        ({"evals.names": ("reconstruction",)},
         "config.evals.names: reconstruction scores reconstruction, and the model's task is classification"),
    ],
)  # fmt: skip
def test_impossible_configs_are_refused_before_anything_is_built(tiny_config, change, message):
    section = tiny_config.to_dict()
    for dotted, value in change.items():
        *parents, key = dotted.split(".")
        node = section
        for parent in parents:
            node = node[parent]
        node[key] = value
    with pytest.raises(ConfigError) as error:
        run_config(section)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_every_top_level_key_mistyped_is_refused_with_the_nearest(tiny_config):
    for key in to_dict(run_config(tiny_config)):
        section = tiny_config.to_dict()
        section[key + "x"] = section.pop(key)
        with pytest.raises(ConfigError, match=rf'config.{key}x: unknown key; did you mean "{key}"\?'):
            run_config(section)


def test_noise_on_numbers_of_tokens_is_refused(tiny_config):
    config = run_config(tiny_config)
    tokens = {"tokens": jax.ShapeDtypeStruct((5,), np.int32)}
    reads_tokens = types.SimpleNamespace(inputs=("tokens",), task="language", check_input=lambda shape: None)
    changes = {
        "model": reads_tokens,
        "data": types.SimpleNamespace(inputs=tokens, classes=7),
        "evals": dataclasses.replace(config.evals, names=("language",)),
    }
    assert dataclasses.replace(config, **changes).input_shape == (5,)
    with pytest.raises(ValueError, match=r"^noise: the model reads tokens, which takes none; see the MLP's own noise$"):
        dataclasses.replace(config, **changes, noise=Gaussian(0.1))


def test_data_without_what_the_model_reads_is_refused(tiny_config):
    reads_tokens = types.SimpleNamespace(inputs=("tokens",), task="language")
    tiny_config.evals.names = ()
    config = run_config(tiny_config)
    with pytest.raises(ValueError, match=r"^data: Digits has no tokens for the model to read, only image$"):
        dataclasses.replace(config, model=reads_tokens)


@pytest.mark.parametrize("name", ["accuracy", "calibration", "robustness", "language"])
def test_evaluators_that_score_another_task_are_refused_before_anything_is_trained(name):
    config = autoencoder()
    config.evals.names = ("sparsity", name)
    with pytest.raises(ConfigError, match=rf"^config\.evals\.names: {name} scores .* task is reconstruction$"):
        run_config(config)


def test_every_task_has_an_evaluator_that_scores_it_in_training():
    assert {TASKS[name]: name for name in VALIDATION.values()} == VALIDATION
    assert TASKS.keys() <= EVALS.keys()


def test_configs_of_before_there_was_noise_keep_their_hash():
    """Their workdirs are named after it. The hashes are those of revision cad51f3."""
    config = recipes.vit_digits()
    assert config_hash(run_config(config)) == "3a309afb3b"
    assert config_hash(run_config(recipes.with_top_k(config, 64))) == "fd263a9cc8"
    for fsdp in (1, 2):
        config.mesh.fsdp = fsdp
        assert (config_hash(run_config(config)) == "3a309afb3b") is (fsdp == 1)
    noisy = recipes.vit_digits()
    noisy.noise = ConfigDict({"name": "gaussian", "sigma": 0.1})
    assert config_hash(run_config(noisy)) != "3a309afb3b"


def test_settings_of_the_evaluation_are_given_as_text(tiny_config):
    config = run_config(tiny_config)
    changed = with_evals(config, {"split": "validation", "rises": "(0.01, 0.05)", "dead_size": "1e-3"})
    assert (changed.evals.split, changed.evals.rises, changed.evals.dead_size) == ("validation", (0.01, 0.05), 1e-3)
    assert dataclasses.replace(changed, evals=config.evals) == config


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("spilt", "test", 'config.evals.spilt: unknown key; did you mean "split"?'),
        ("batch", "0", "config.evals.batch: must be at least 1, got 0"),
        ("names", "('acuracy',)", 'unknown evaluator "acuracy"; did you mean "accuracy"?'),
    ],
)
def test_a_setting_of_the_evaluation_that_cannot_be_is_refused(tiny_config, key, value, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        with_evals(run_config(tiny_config), {key: value})


def test_a_smoke_run_differs_from_the_real_one_in_size_and_data_alone():
    real = recipes.with_top_k(recipes.vit_digits(), 64)
    real.steps, real.accumulate, real.optimizer.schedule.name, real.mesh.data = 10**6, 4, "linear", 2
    real = run_config(real)
    small = smoke(real)
    changed = {key: new for key, (_, new) in differences(to_dict(real), to_dict(small)).items()}
    assert changed == {
        "name": "vit_digits_top_64_smoke",
        "steps": 2,
        "batch": 32,  # 8 in each of 4 microbatches
        "data.name": "mock",
        "data.shift": None,
        "data.image_shape": [8, 8, 1],
        "data.classes": 10,
        "evals.batch": 8,
        "model.d_model": 16,
        "model.heads": 2,
        "model.layers": 2,
        "model.mlp.d_ff": 32,
        "model.mlp.sparsifier.k": 4,
        **{f"every.{key}": 1 for key in ("record", "eval", "checkpoint", "speed")},
    }
    assert run_config(to_dict(small)) == small


def test_a_smoke_run_imposes_top_k_where_the_real_one_does():
    """On the narrow network, of which it is all units, it does not."""
    for d_ff, units, ks in ((512, 32, (2, 32)), (43, 32, (32, 381))):
        real = run_config(recipes.with_imposed(recipes.with_d_ff(recipes.vit_digits(), d_ff), (43, 512)))
        small = smoke(real)
        assert (small.model.mlp.d_ff, small.evals.imposed_k) == (units, ks)
    few = dataclasses.replace(real, evals=dataclasses.replace(real.evals, imposed_k=(1, 2)))
    assert smoke(few).evals.imposed_k == (1,)


@pytest.mark.parametrize(("data", "model", "fsdp"), [(-1, 1, 1), (3, 1, 1), (1, 3, 1), (-1, 4, 1), (1, 2, 3)])
def test_a_smoke_run_fits_the_mesh_of_the_real_one(data, model, fsdp, tiny_config, monkeypatch):
    monkeypatch.setattr(spmd, "LARGE", 1)  # so that fsdp has to divide all
    tiny_config.mesh = {"data": data, "model": model, "fsdp": fsdp}
    tiny_config.model.mlp.d_ff, tiny_config.model.heads, tiny_config.model.d_model = 3072, 12, 768
    small = smoke(run_config(tiny_config))
    engine = Engine(small)  # refuses what the devices do not divide
    ways = engine.mesh.shape["data"] * fsdp
    assert small.batch % ways == small.evals.batch % ways == 0
    assert (engine.mesh.shape["model"], engine.mesh.shape["fsdp"]) == (model, fsdp)


def test_a_smoke_run_on_more_devices_than_there_are_is_refused(tiny_config):
    tiny_config.mesh.data = 64
    with pytest.raises(
        ConfigError, match=r"^config\.mesh: data 64 x fsdp 1 x sequence 1 x model 1 does not fit 8 devices$"
    ):
        smoke(run_config(tiny_config))


def test_a_smoke_run_that_no_narrow_model_fits_is_refused():
    config = recipes.llama_text()
    config.mesh.data, config.mesh.model = 1, 3
    with pytest.raises(ConfigError, match=r"^config\.mesh: 3 devices do not fit a narrow model: kv_heads: 2 does"):
        smoke(run_config(config))


RULE = "optimizer.rule"
REFUSED_BY_FUZZING = [  # each was a traceback, went on for ever, or was taken
    ({"steps": 10**30}, "config.steps: expected an integer of 64 bits, got one of 100"),
    ({"steps": 2**31}, "config.steps: no more than 2147483647 are counted, got 2147483648"),
    ({"optimizer.learning_rate": 10**400}, "config.optimizer.learning_rate: expected an integer of 64 bits, got one"),
    ({RULE: {"name": "adamw", "b1": 1.0}}, f"config.{RULE}.b1: must be in [0, 1), got 1.0"),
    ({RULE: {"name": "sgd", "momentum": -0.1}}, f"config.{RULE}.momentum: must be in [0, 1), got -0.1"),
    ({RULE: {"name": "sgd", "weight_decay": -1.0}}, f"config.{RULE}.weight_decay: must be at least 0"),
    ({RULE: {"name": "adafactor", "min_dim_to_factor": 0}}, f"config.{RULE}.min_dim_to_factor: must"),
    ({"optimizer.schedule.warmup": 2**31}, "config.optimizer.schedule.warmup: must be below 2^31"),
    ({"noise": {"name": "gaussian", "sigma": 0.1, "schedule": {"name": "removed_at", "step": 2**31}}},
     "config.noise.schedule.step: must be below 2^31, got 2147483648"),
    ({"penalty": {"name": "l1", "weight": -1.0}}, "config.penalty.weight: must be at least 0, got -1.0"),
    ({SPARSIFIER: {"name": "top_k", "k": 4, "anneal": 2**31}}, f"config.{SPARSIFIER}.anneal: must be below 2^31"),
    ({"evals.dead_rate": 1.5}, "config.evals.dead_rate: must be in [0, 1], got 1.5"),
    ({"data": {"name": "mock", "image_shape": (2**20, 2**20, 3), "classes": 10}}, "config.data: image of shape "),
    ({"model.name": ["vit"]}, "config.model.name: expected str, got ['vit']"),
    ({"model.pool": "a\nb"}, 'config.model.pool: unknown choice "a\\nb"; '),
    ({"name": "a" * 300}, "config.name: no more than 200 bytes name a directory, got 300"),
    ({"model": {"name": "deep_mlp", "width": 8, "depth": 2, "sparsifier": {"name": "relu"}, "q": 1e300}},
     "config.model.q: must be in (1e-60, 1e60), got 1e+300"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), REFUSED_BY_FUZZING, ids=[message for _, message in REFUSED_BY_FUZZING])
def test_what_the_fuzzer_found_is_refused(tiny_config, change, message):
    section = tiny_config.to_dict()
    for dotted, value in change.items():
        *parents, key = dotted.split(".")
        functools.reduce(lambda of, one: of[one], parents, section)[key] = value
    with pytest.raises(ConfigError) as error:
        run_config(section)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize("section", [None, 3, "word", [("name", "x")]])
def test_what_is_no_section_is_no_config(section):
    with pytest.raises(ConfigError, match=r"^config: expected a section, got "):
        run_config(section)


def test_runs_that_start_from_one_another_without_end_are_refused(tiny_config):
    section = tiny_config.to_dict()
    section["start"] = section
    with pytest.raises(ConfigError, match=r"^config\.start: runs start from one another without end, or nearly$"):
        run_config(section)
