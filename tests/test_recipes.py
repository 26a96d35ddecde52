import dataclasses
import functools
import importlib.util
import io
import math
import re
from pathlib import Path

import jax
import pytest
from ml_collections import ConfigDict

from sparsity import recipes
from sparsity.config import build, config_hash, differences, flatten, to_dict
from sparsity.ops.sparsifiers import TopK
from sparsity.run import Engine, RunConfig, Workdir, run, run_config, smoke
from sparsity.spmd import MeshConfig
from sparsity.studies import report
from sparsity.studies.runner import expand
from sparsity.writer import Progress

# Table 2 of Price et al. has two rows above the bifurcation: they warn, and proceed.
pytestmark = pytest.mark.filterwarnings("ignore::sparsity.theory.edge_of_chaos.BifurcationWarning")

CONFIGS = Path(__file__).parents[1] / "configs"
FILES = sorted(CONFIGS.glob("**/*.py"), key=lambda path: (len(path.parts), path))  # the quickstart first
SCALES = ("embedded", "paper")


def load(path):
    spec = importlib.util.spec_from_file_location("config_under_test", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def sweeps(path):
    """The typed runs of every scale the file has; a scale it lacks must be refused by name."""
    module, found = load(path), {}
    for scale in SCALES:
        try:
            found[scale] = [
                c for c in expand(module.sweep, scale) if isinstance(c, RunConfig)
            ]  # others are measurements
        except ValueError as error:
            if f'no scale "{scale}"; valid: ' not in str(error):
                raise
    return found


def test_vit_digits_builds_into_a_run():
    config = run_config(recipes.vit_digits())
    assert config.name == "vit_digits"
    assert config.model.mlps().keys() == {f"block_{i}" for i in range(config.model.layers)}


def test_vit_digits_states_every_setting_of_the_run():
    written = recipes.vit_digits().to_dict()
    assert differences(written, to_dict(run_config(recipes.vit_digits()))) == {}


def test_a_recipe_returns_a_fresh_config_each_time():
    changed = recipes.vit_digits()
    changed.model.mlp.d_ff = 1
    assert recipes.vit_digits().model.mlp.d_ff != 1


def test_with_top_k_changes_the_name_and_the_sparsifier_and_nothing_else():
    plain = recipes.vit_digits()
    before = plain.to_dict()
    top_k = recipes.with_top_k(plain, 8)
    assert plain.to_dict() == before
    changed = differences(before, top_k.to_dict())
    assert {key for key in changed if not key.startswith("model.mlp.sparsifier.")} == {"name"}
    assert top_k.name == "vit_digits_top_8"
    assert run_config(top_k).model.mlp.sparsifier == TopK(k=8, act="relu")


def test_with_top_k_of_more_units_than_there_are_is_refused_when_built():
    config = recipes.vit_digits()
    k = config.model.mlp.d_ff + 1
    with pytest.raises(ValueError, match=rf"^config\.model\.mlp\.sparsifier\.k: {k} is more than the d_ff {k - 1}"):
        run_config(recipes.with_top_k(config, k))


VITS = {  # what a recipe makes of a ViT on digits: the end of its name, and the sections that change beside it
    "with_few_examples": (recipes.with_few_examples(recipes.vit_digits(), 126), "_126_examples", {"data"}),
    "with_random_images": (recipes.with_random_images(recipes.vit_digits()), "_random_images", {"data"}),
    "with_infinite_data": (recipes.with_infinite_data(recipes.vit_digits()), "_infinite_data", {"data"}),
    "with_penalty": (recipes.with_penalty(recipes.vit_digits(), "l2", 1e-5), "_l2_1e-05", {"penalty"}),
    "vit_digits_of": (recipes.vit_digits_of("large"), "_large", {"model"}),
    "with_gelu": (recipes.with_gelu(recipes.vit_digits()), "_gelu", {"model"}),
    "with_statistical_top_k": (recipes.with_statistical_top_k(recipes.vit_digits(), 21), "_statistical_21", {"model"}),
    "with_annealed_mlp_noise": (
        recipes.with_annealed_mlp_noise(recipes.vit_digits(), 3.0),
        "_gaussian3_annealed",
        {"model"},
    ),
    "with_clipped_mlp": (recipes.with_clipped_mlp(recipes.vit_digits(), 0.85), "_crelu_0.85_0.7", {"model"}),
    "with_d_ff": (recipes.with_d_ff(recipes.vit_digits(), 43), "_f43", {"model"}),
    "with_imposed": (recipes.with_imposed(recipes.vit_digits(), (43,)), "", {"evals"}),
    "vit_calibrated_arm": (recipes.vit_calibrated_arm(recipes.vit_digits()), "_noise0_seed0", {"evals"}),
}


@pytest.mark.parametrize("recipe", VITS)
def test_a_variant_of_a_vit_s_run_changes_its_name_and_one_section(recipe):
    config, ending, sections = VITS[recipe]
    changed = differences(to_dict(run_config(recipes.vit_digits())), to_dict(run_config(config)))
    assert {key.partition(".")[0] for key in changed} - {"name"} == sections
    assert config.name == "vit_digits" + ending


def test_vits_on_digits_have_heads_of_16_and_base_is_vit_digits():
    assert recipes.vit_digits_of("base").to_dict() == recipes.vit_digits().to_dict()
    for size in recipes.VIT_DIGITS_SIZES:
        model = recipes.vit_digits_of(size).model
        assert model.d_model == 16 * model.heads
    for mistake in (
        lambda: recipes.vit_digits_of("huge"),
        lambda: recipes.with_penalty(recipes.vit_digits(), "jacobian", 1.0),
    ):
        with pytest.raises(ValueError, match=r"^unknown .*; valid: "):
            mistake()


def test_t5_on_c4_is_described_and_smoked_without_its_files():
    """T5X's base_c4_pretrain: 100,000 steps of 256 x (512 inputs, 114 targets), rsqrt from 0.01."""
    config = run_config(recipes.t5_c4())
    assert (config.name, config.steps, config.batch, config.z_loss) == ("t5_base_c4", 100_000, 256, 1e-4)
    assert config.input_shape == (512, 114, 512, 114)
    assert (config.data.text_length, config.data.classes) == (568, 32_128)
    assert (config.model.dropout, config.model.mlp.dropout, config.model.tied) == (0.1, 0.1, True)
    _, rate = config.optimizer.build(config.steps)
    assert [float(rate(t)) for t in (0, 10_000, 40_000)] == pytest.approx([0.01, 0.01, 0.005])
    assert build(RunConfig, to_dict(config)) == config
    small = smoke(dataclasses.replace(config, mesh=MeshConfig(1, 1)))
    assert small.data == config.data.mock()
    assert len(small.data.load("train")) == 16
    for size in ("small", "large"):
        assert run_config(recipes.t5_c4(size)).model.d_model == recipes.T5_SIZES[size][0]


AT_THE_PAPERS_SCALE = {  # steps, batch, schedule's rates by step, weight decay, dropout; by hand from App. A.2, B, C
    # 180 epochs of 1,268,355 images.
    "vit_imagenet": (recipes.vit_imagenet, 55_738, 4096, {5000: 1.5e-3, 10_000: 3e-3, 32_869: 1.5e-3}, 0.3, 0.1),
    # 90 epochs of 13,913,179.
    "vit_imagenet21k": (
        recipes.vit_imagenet21k,
        305_709,
        4096,
        {10_000: 1e-3, 157_854: 5.05e-4, 305_709: 1e-5},
        0.03,
        0.1,
    ),
    "mixer_imagenet21k": (recipes.mixer_imagenet21k, 1_019_031, 4096, {10_000: 3e-3, 1_019_031: 0.0}, 0.03, 0.0),
    "resnet_imagenet": (recipes.resnet_imagenet, 111_476, 1024, {6193: 0.4, 111_476: 0.0}, 1e-4, None),
    "bert_pretraining": (
        recipes.bert_pretraining,
        450_000,
        1024,
        {10_000: 1e-4, 230_000: 5e-5, 450_000: 0.0},
        0.01,
        0.0,
    ),
}


@pytest.mark.parametrize("name", AT_THE_PAPERS_SCALE)
def test_a_recipe_at_the_papers_scale_is_described_and_smoked_without_its_files(name):
    recipe, steps, batch, rates, decay, dropout = AT_THE_PAPERS_SCALE[name]
    config = run_config(recipe())
    assert (config.steps, config.batch, config.optimizer.rule.weight_decay) == (steps, batch, decay)
    _, rate = config.optimizer.build(config.steps)
    assert [float(rate(t)) for t in rates] == pytest.approx(list(rates.values()), rel=1e-3, abs=1e-8)
    if dropout is not None:
        assert config.model.mlp.dropout == dropout
    assert build(RunConfig, to_dict(config)) == config
    small = smoke(dataclasses.replace(config, mesh=MeshConfig(1, 1)))
    assert small.data == config.data.mock()
    assert run_config(to_dict(small)) == small
    engine = Engine(small, jax.devices()[:1])  # shapes alone
    assert sum(leaf.size for leaf in jax.tree.leaves(engine.abstract.params)) > 0


def test_recipes_of_images_have_the_papers_details():
    vit, large = run_config(recipes.vit_imagenet()), run_config(recipes.vit_imagenet21k("L/16"))
    assert (vit.model.d_model, vit.model.patch, vit.model.mlp.d_ff, vit.optimizer.grad_clip) == (768, 16, 3072, 1.0)
    assert (vit.model.representation, large.model.representation, large.model.head_bias) == (None, 1024, -10)
    assert (vit.name, large.name) == ("vit_b16_imagenet", "vit_l16_imagenet21k")
    mixer = run_config(recipes.mixer_imagenet21k())
    assert (mixer.data.rand_augment.layers, mixer.data.rand_augment.magnitude) == (2, 10)
    assert (mixer.model.token_mlp.d_ff, mixer.model.mlp.d_ff) == (384, 3072)
    adam = run_config(recipes.resnet_imagenet(50, 128, "adam"))
    assert (adam.optimizer.learning_rate, adam.optimizer.rule.b2, adam.name) == (
        3e-3,
        0.999,
        "resnet50_w128_adam_imagenet",
    )
    assert (adam.model.block, adam.model.width, adam.optimizer.grad_clip) == ("bottleneck", 128, None)
    bert = run_config(recipes.bert_pretraining("large"))
    assert (bert.model.layers, bert.optimizer.rule.eps, bert.optimizer.rule.b2) == (24, 1e-6, 0.999)
    with pytest.raises(ValueError, match='unknown optimizer of ResNets "adagrad"; valid: sgd, adam'):
        recipes.resnet_imagenet(optimizer="adagrad")


def test_imagenet_c_is_looked_for_before_training_and_not_at_all_by_a_smoke_run(tmp_path):
    config = recipes.vit_imagenet()
    config.evals.imagenet_c = str(tmp_path)
    config = dataclasses.replace(run_config(config), mesh=MeshConfig(1, 1))
    with pytest.raises(ValueError, match=r"^evals.imagenet_c: .*gaussian_noise/1 is not there"):
        Engine(config, jax.devices()[:1])
    assert smoke(config).evals.imagenet_c is None
    bert = recipes.bert_pretraining()
    bert.evals.imagenet_c = str(tmp_path)
    with pytest.raises(ValueError, match=r"^config\.evals.imagenet_c: the model's task is language"):
        run_config(bert)


PLAIN = recipes.with_noise(recipes.autoencoder_photos(), 0.0)
VARIANTS = {  # what a recipe makes of PLAIN: the end of the name, and the keys that change beside it
    "noise_then_none": (recipes.noise_then_none(recipes.autoencoder_photos(), 0.8), None, {"noise"}),
    "with_l1": (recipes.with_l1(PLAIN, 1e-5), "_l1_1e-05", {"penalty"}),
    "with_unit_norms": (recipes.with_unit_norms(PLAIN), "_unit_norm", {"optimizer"}),
    "with_kept_share": (recipes.with_kept_share(PLAIN, 0.03), "_top_k_0.03", {"model"}),
    "with_clip": (recipes.with_clip(PLAIN, 1.0, 2.0), "_clipped_2", {"model"}),
    "also_evaluated": (recipes.also_evaluated(PLAIN, "exemplars"), "", {"evals"}),
}


@pytest.mark.parametrize("recipe", VARIANTS)
def test_a_variant_of_an_autoencoder_s_run_changes_its_name_and_one_section(recipe):
    config, ending, sections = VARIANTS[recipe]
    changed = differences(to_dict(run_config(PLAIN)), to_dict(run_config(config)))
    assert {key.partition(".")[0] for key in changed} - {"name"} == sections
    assert config.name == (PLAIN.name + ending if ending is not None else "ae400_photos_gaussian0.8_seed0_annealed")


def test_the_penalty_s_soft_threshold_keeps_its_ratio_to_the_data():
    """w D / 2 over std(data): 1e-5 x 3072 / 2 / .25 at the paper's scale."""
    for base, pixels, std in (
        (recipes.autoencoder_photos(), 12 * 12, recipes.EMBEDDED_STD["photos"]),
        (recipes.autoencoder_digits(), 8 * 8, recipes.EMBEDDED_STD["digits"]),
        (recipes.autoencoder_cifar10(), 32 * 32 * 3, recipes.BRICKEN_STD["pixels"]),
    ):
        config = run_config(recipes.with_l1(base, 1e-5))
        assert math.prod(config.input_shape) == pixels
        assert config.penalty.weight * pixels / 2 / std == pytest.approx(1e-5 * 3072 / 2 / 0.25, rel=1e-3)


def test_top_k_keeps_a_share_of_the_units_after_a_quarter_of_training():
    sparsifier = run_config(recipes.with_kept_share(PLAIN, 0.03)).model.mlp.sparsifier
    assert (sparsifier.k, sparsifier.anneal) == (12, PLAIN.steps // 4)


def test_salt_and_pepper_stands_in_the_place_of_gaussian_noise():
    config = run_config(recipes.with_salt_and_pepper(recipes.autoencoder_photos(), 0.3, seed=2))
    assert (config.name, config.seed) == ("ae400_photos_salt_and_pepper0.3_seed2", 2)
    assert (config.noise.probability, config.noise.low, config.noise.high) == (0.3, 0.0, 1.0)


def test_a_run_is_named_by_scale_arm_and_value():
    arms = {"embedded": {"a": (0.1, 1e-5)}, "paper": {"a": (2.0,)}}
    assert recipes.bricken_arm("a/1e-05", arms) == ("embedded", "a", 1e-5)
    assert recipes.bricken_arm("paper/a/2", arms) == ("paper", "a", 2.0)
    for unknown in ("a/2", "b/0.1", "huge/a/0.1", "a", ""):
        with pytest.raises(ValueError, match=rf'^unknown run "{unknown}"; valid: a/0.1\|1e-05; paper/'):
            recipes.bricken_arm(unknown, arms)


def test_there_are_config_files():
    assert CONFIGS / "quickstart.py" in FILES


def choices(config):
    """What a run's program is made of: the shape of what it reads and the settings of its parts that are not numbers.

    A list counts by its entries; targets of a sparsifier that are None do not count, being settled when it is built.
    """
    parts = {part: to_dict(getattr(config, part)) for part in ("model", "optimizer", "evals")}
    parts |= {part: to_dict(config).get(part) for part in ("noise", "penalty")}
    found = {(type(config.model).__name__, "input_shape", config.input_shape)}
    for key, value in flatten(parts).items():
        for one in value if isinstance(value, list) else [value]:
            one = tuple(one) if isinstance(one, list) else one  # a pattern of parameters and its setting
            number = isinstance(one, (int, float)) and not isinstance(one, bool) and key != "model.dims"
            if not number and not (one is None and "sparsifier." in key):
                found.add((type(config.model).__name__, key, one))
    return found


SMOKED = set()  # the choices that a smoke run was made of, over all files
EVALUATED = {  # a measure of each evaluator
    "accuracy": "accuracy",
    "reconstruction": "mse",
    "language": "perplexity",
    "calibration": "ece",
    "robustness": "robustness",
    "imposed": "imposed",
    "sparsity": "nonzero",
    "neurons": "dead",
    "units": "units",
    "quantiles": "quantile_50",
    "cost": "flops",
    "receptive_fields": "fields",
    "exemplars": "exemplars",
    "noise_covariance": "covariance",
    "noise_terms": "terms",
    "inference": "inference",
}


WITH_RUNS = [path for path in FILES if hasattr(load(path), "get_config")]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(CONFIGS)))
class TestConfigFile:
    def test_the_docstring_has_the_claim_the_command_the_hardware_and_the_expected_number(self, path):
        text = load(path).__doc__ or ""
        for heading in ("Claim:", "Command:", "Hardware:", "Expected:", "assumed:"):
            assert re.search(rf"^{heading} \S", text, re.MULTILINE), heading

    def test_a_file_without_get_config_is_a_study_of_theory_and_has_no_runs(self, path):
        module = load(path)
        if not hasattr(module, "get_config"):
            assert [module.sweep(scale) for scale in ("embedded", "paper")] == [[], []]


@pytest.mark.parametrize("path", WITH_RUNS, ids=lambda p: str(p.relative_to(CONFIGS)))
class TestConfigFileWithRuns:
    def test_get_config_has_a_default_that_builds(self, path):
        config = load(path).get_config()
        assert isinstance(config, ConfigDict)
        assert isinstance(run_config(config), RunConfig)

    def test_get_config_refuses_an_unknown_argument_with_the_valid_ones(self, path):
        with pytest.raises(ValueError, match=r'"no_such_run".*; valid: '):
            load(path).get_config("no_such_run")

    def test_every_run_of_every_scale_builds_and_has_a_directory_of_its_own(self, path):
        found = sweeps(path)
        assert found
        for runs in found.values():
            assert len({f"{run.name}-{config_hash(run)}" for run in runs}) == len(runs) > 0

    def test_every_run_reads_back_from_its_json(self, path):
        for runs in sweeps(path).values():
            for built in runs:
                assert build(RunConfig, to_dict(built)) == built

    def test_every_run_is_ready_to_smoke(self, path):
        for runs in sweeps(path).values():
            for built in runs:
                small = smoke(built)
                assert run_config(to_dict(small)) == small

    @pytest.mark.slow
    def test_every_choice_is_smoked(self, path, tmp_path):
        """`launch.train --smoke`: one run at least for every choice that a kind of model is given anywhere."""
        for runs in sweeps(path).values():
            for built in runs:
                small = smoke(dataclasses.replace(built, mesh=MeshConfig(1, 1)))
                if choices(small) <= SMOKED:
                    continue
                files = Workdir(tmp_path / small.name)
                outcome = run(small, files.path, Progress(io.StringIO()))
                assert (outcome.status, outcome.step) == ("finished", 2), small.name
                measured = {m.name.partition(".")[0] for m in outcome.measures}
                assert measured >= {EVALUATED[name] for name in small.evals.names}, small.name
                report.write_run_report(files)
                assert small.name in files.report.read_text()
                SMOKED.update(choices(small))


NOISY = recipes.with_noise(recipes.autoencoder_photos(), 0.8, seed=1)
CHANGES = {
    "annealed": (recipes.annealed(NOISY, 10, 5), "_annealed", "noise.schedule."),
    "geometrically_annealed": (recipes.geometrically_annealed(NOISY, 10, 5, 0.1), "_geometric", "noise.schedule."),
    "geometrically_annealed, kept": (
        recipes.geometrically_annealed(NOISY, 10, 5, 0.1, kept=True),
        "_geometric_kept",
        "noise.schedule.",
    ),
    "with_shared_bias": (recipes.with_shared_bias(NOISY), "_shared_bias", "model.mlp.shared_bias"),
    "with_encoder_scale": (recipes.with_encoder_scale(NOISY, 0.3), "_scale0.3", "model.mlp.scale"),
    "with_steps": (recipes.with_steps(NOISY, 12), "_12steps", "steps"),
    "with_steps, as many": (recipes.with_steps(NOISY, NOISY.steps), "", "none"),
    "with_activation": (recipes.with_activation(NOISY, "sat"), "_sat", "model.mlp.sparsifier.name"),
    "with_activation, its own": (recipes.with_activation(NOISY, "relu"), "", "none"),
}


@pytest.mark.parametrize("recipe", CHANGES)
def test_a_recipe_changes_the_name_and_what_it_says_and_nothing_else(recipe):
    config, ending, key = CHANGES[recipe]
    assert config.name == NOISY.name + ending
    changed = differences(to_dict(run_config(NOISY)), to_dict(run_config(config)))
    assert {k for k in changed if not k.startswith(key)} == ({"name"} if ending else set())
    assert any(k.startswith(key) for k in changed) == (key != "none")


GPT2 = recipes.with_mlp_noise(recipes.gpt2_text(), 3.0, removed=800, seed=1)
ALEXNET = recipes.with_noise(recipes.alexnet_digits(), 1.5, seed=1)


def test_noise_of_a_gpt2_stands_in_its_mlps_unscaled_until_it_is_removed():
    plain, config = run_config(recipes.gpt2_text()), run_config(GPT2)
    assert (config.name, config.seed, config.noise) == ("gpt2_text_gaussian3_seed1", 1, None)
    noise = config.model.mlp.noise
    assert (noise.sigma, noise.schedule.step, config.evals.noise) == (3.0, 800, True)
    changed = differences(to_dict(plain), to_dict(config))
    assert {k for k in changed if not k.startswith("model.mlp.noise")} == {"name", "seed", "evals.noise"}


def test_noise_before_the_norm_changes_the_name_and_its_place_and_nothing_else():
    config = recipes.before_norm(GPT2)
    assert config.name == f"{GPT2.name}_before_norm"
    changed = differences(to_dict(run_config(GPT2)), to_dict(run_config(config)))
    assert set(changed) == {"name", "model.noise_before_norm"}


def test_noise_after_the_convolutions_is_not_scaled_and_leaves_the_pixels_alone():
    pixels, config = run_config(ALEXNET), run_config(recipes.after_convolutions(ALEXNET, 1.5))
    assert pixels.noise.sigma == pytest.approx(1.5 * recipes.EMBEDDED_STD["digits"] / 0.25, rel=1e-3)
    assert (config.noise, config.model.noise.sigma) == (None, 1.5)
    changed = differences(to_dict(pixels), to_dict(config))
    assert {key for key in changed if not key.startswith(("noise", "model.noise"))} == set()


def test_the_penalty_has_the_sigma_of_the_noise_and_stands_in_its_place():
    config = run_config(recipes.with_jacobian_penalty(recipes.autoencoder_photos(), 0.8, seed=1))
    assert config.penalty.sigma == run_config(NOISY).noise.sigma
    assert (config.noise, config.seed, config.name) == (None, 1, "ae400_photos_jacobian0.8_seed1")


def test_a_classifier_has_the_hidden_layer_and_the_training_of_the_autoencoder():
    plain = run_config(recipes.autoencoder_digits(units=400))
    config = run_config(recipes.as_classifier(recipes.autoencoder_digits(units=400)))
    assert (config.name, config.model.widths) == ("mlp400_digits", (plain.model.mlp.d_ff,))
    assert (config.model.sparsifier, config.model.init) == (plain.model.mlp.sparsifier, plain.model.mlp.init)
    changed = differences(to_dict(plain), to_dict(config))
    assert {key.partition(".")[0] for key in changed} == {"name", "model", "evals"}


def test_a_classifier_with_top_k_keeps_a_share_of_its_units():
    plain = run_config(recipes.as_classifier(recipes.autoencoder_digits(units=400)))
    config = run_config(recipes.as_top_k_classifier(recipes.autoencoder_digits(units=400), 0.03))
    assert config.name == f"{plain.name}_top_k_0.03"
    assert (config.model.sparsifier.k, config.model.sparsifier.anneal) == (12, 1000)
    changed = differences(to_dict(plain), to_dict(config))
    assert {key for key in changed if not key.startswith("model.sparsifier.")} == {"name"}


def test_corruptions_are_those_that_the_images_notice():
    for base, level in ((recipes.autoencoder_digits(), "imagenet_c"), (recipes.autoencoder_cifar10(), "auto")):
        plain, config = (run_config(f(recipes.as_classifier(base))) for f in (lambda c: c, recipes.with_corruptions))
        assert config.evals.names == (*plain.evals.names, "calibration", "robustness")
        assert config.evals.corruptions == level
        changed = differences(to_dict(plain), to_dict(config))
        assert {key.partition(".")[0] for key in changed} == {"evals"}


def test_a_sigma_that_is_none_of_the_paper_s_is_refused():
    assert recipes.bricken_sigma("0.05") == 0.05
    with pytest.raises(ValueError, match=r'^unknown sigma "0.2"; valid: 0, 0.05, '):
        recipes.bricken_sigma("0.2")
