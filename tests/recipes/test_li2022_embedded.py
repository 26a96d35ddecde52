import math

import jax
import pytest

from sparsity import recipes
from sparsity.config import differences, to_dict
from sparsity.data.randomised import ENDLESS
from sparsity.run import run_config


def test_a_small_bert_keeps_berts_masking_and_optimizer():
    """Devlin et al. 2019: 15% selected; AdamW .9, .999, eps 1e-6 (their code), decay .01, a straight line to 0."""
    config = run_config(recipes.bert_text(steps=400))
    assert (config.data.selected, config.data.masked, config.data.changed) == (0.15, 0.8, 0.1)
    rule = config.optimizer.rule
    assert (rule.b1, rule.b2, rule.eps, rule.weight_decay, config.optimizer.grad_clip) == (0.9, 0.999, 1e-6, 0.01, 1.0)
    _, rate = config.optimizer.build(config.steps)
    assert [float(rate(t)) for t in (0, 16, 208, 400)] == pytest.approx([0, 2e-3, 1e-3, 0], abs=1e-9)
    assert (config.model.mlp.sparsifier.__class__.__name__, config.model.mlp.init) == ("Relu", "gpt2")


def test_a_small_mixer_has_the_proportions_of_mixer_b_and_the_papers_settings():
    config, vit = run_config(recipes.mixer_digits()), run_config(recipes.vit_digits())
    assert config.model.mlp.d_ff / config.model.token_mlp.d_ff == 3072 / 384
    assert (config.model.layers, config.model.mlp.d_ff) == (vit.model.layers, vit.model.mlp.d_ff)
    optimizer = config.optimizer
    assert (optimizer.rule.weight_decay, optimizer.grad_clip, optimizer.learning_rate) == (0.03, 1.0, 3e-3)
    assert config.model.tokens(config.input_shape) == 16


@pytest.mark.parametrize(("block", "kinds"), [("basic", 2), ("bottleneck", 3)])
def test_small_resnets_measure_every_relu_of_six_blocks(block, kinds):
    config = run_config(recipes.resnet_digits(block, 16))
    assert len(config.model.layers()) == 1 + 6 * kinds
    assert [inside for inside, _ in config.model.stages()] == [16, 16, 32, 32, 64, 64]
    assert config.name == f"resnet_{block}_w16_digits"


def test_an_unknown_block_optimizer_or_kind_of_data_is_refused_with_the_valid_ones():
    with pytest.raises(ValueError, match='unknown block "dense"; valid: basic, bottleneck'):
        recipes.resnet_digits("dense")
    with pytest.raises(ValueError, match='unknown optimizer "adagrad"; valid: sgd, momentum, adam'):
        recipes.with_optimizer(recipes.mlp_digits(), "adagrad", 0.1)
    with pytest.raises(ValueError, match='unknown data "fake"; valid: real, random, infinite'):
        recipes.mlp_arm(recipes.mlp_digits(), "fake", "sgd", 0.1)


@pytest.mark.parametrize(("base", "examples"), [(recipes.mlp_digits, 1260), (recipes.mlp_mnist, 60_000 - 1000)])
def test_mlps_see_their_data_200_times(base, examples):
    config = run_config(base(32))
    assert config.steps * config.batch / examples == pytest.approx(200, rel=0.01)
    random = run_config(recipes.mlp_arm(base(32), "random", "adam", 1e-3, seed=2))
    assert (random.data.examples, random.data.seed, random.data.of) == (examples, 2, config.data)
    infinite = run_config(recipes.mlp_arm(base(32), "infinite", "adam", 1e-3))
    assert len(infinite.data.load("train")) == ENDLESS
    assert infinite.steps * infinite.batch < ENDLESS


def test_digits_are_as_many_as_the_random_images():
    config = run_config(recipes.mlp_digits())
    assert len(config.data.load("train")) == 1260
    assert run_config(recipes.mlp_mnist()).data.held_out == pytest.approx(1000 / 60_000)


def test_embedded_widths_have_as_many_parameters_an_example_as_the_papers():
    """inputs x width + width + width x 10 + 10, over 1,260 and 60,000."""

    def parameters(config):
        shapes = jax.eval_shape(config.model.build(10).init, jax.random.key(0), *_inputs(config))
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes["params"]))

    for ours, theirs in ((8, 32), (2048, 8192)):
        small, large = run_config(recipes.mlp_digits(ours)), run_config(recipes.mlp_mnist(theirs))
        assert parameters(small) == 64 * ours + ours + ours * 10 + 10
        assert parameters(large) == 784 * theirs + theirs + theirs * 10 + 10
        assert parameters(small) / 1260 == pytest.approx(parameters(large) / 60_000, rel=0.15)


def _inputs(config):
    from sparsity.layers.sparsify import Context

    return jax.ShapeDtypeStruct((1, *config.input_shape), "float32"), Context()


def test_an_arm_changes_the_name_the_seed_and_the_optimizer_and_nothing_else():
    plain = run_config(recipes.vit_digits())
    config = run_config(recipes.optimizer_arm(recipes.vit_digits(), "momentum", 0.1, seed=2))
    assert (config.name, config.seed) == ("vit_digits_momentum_rate0.1_seed2", 2)
    changed = {key for key in differences(to_dict(plain), to_dict(config)) if not key.startswith("optimizer.rule.")}
    assert changed == {"name", "seed", "optimizer.learning_rate"}
    assert (config.optimizer.rule.momentum, config.optimizer.schedule) == (0.9, plain.optimizer.schedule)


def test_a_seed_is_part_of_the_name():
    config = run_config(recipes.with_seed(recipes.bert_text(), 2))
    assert (config.name, config.seed) == ("bert_text_seed2", 2)


def test_random_data_differ_from_seed_to_seed():
    first, second = (run_config(recipes.mlp_arm(recipes.mlp_digits(), "random", "sgd", 0.1, s)).data for s in (0, 1))
    a, b = (data.load("train").take([0, 1]) for data in (first, second))
    assert abs(a["image"] - b["image"]).max() > 0.1


def test_noise_in_mlps_is_whole_for_half_of_the_steps_and_gone_after_three_quarters():
    for base in (recipes.vit_digits(), recipes.t5_text_of("small")):
        noise = run_config(recipes.with_annealed_mlp_noise(base, 3.0)).model.mlp.noise
        assert noise.sigma == 3.0
        assert [float(noise.schedule(step)) for step in (0, 1000, 1250, 1500, 2000)] == [1, 1, 0.5, 0, 0]


def test_clipped_mlps_start_on_the_edge_of_chaos_with_biases_and_keep_all_else():
    """85% of N(0, 1) is below 1.0364; V' = .7 there has m = 1.17 (Price et al. 2024, Table 2)."""
    for base in (recipes.vit_digits(), recipes.t5_text_of("small")):
        plain, mlp = run_config(base).model.mlp, run_config(recipes.with_clipped_mlp(base, 0.85)).model.mlp
        assert (mlp.sparsifier.tau, mlp.sparsifier.m) == pytest.approx((1.0364, 1.17), abs=1e-3)
        assert (mlp.init, mlp.use_bias, mlp.d_ff) == ("edge_of_chaos", True, plain.d_ff)
