import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsity.config import ConfigError, build
from sparsity.run import Engine, run_config
from sparsity.train.optimizers import RULES, SCHEDULES, OptimizerConfig, decayed_parameters

# (schedule, steps, {step: rate / peak}) by hand.
BY_HAND = [
    ({"name": "constant", "warmup": 0}, 100, {0: 1, 99: 1}),
    ({"name": "linear", "warmup": 0, "end": 1.0}, 100, {0: 1, 50: 0.75, 100: 0.5}),
    ({"name": "constant", "warmup": 4}, 100, {0: 0, 1: 0.25, 4: 1, 99: 1}),
    ({"name": "cosine", "warmup": 0}, 100, {0: 1, 25: (1 + np.cos(np.pi / 4)) / 2, 50: 0.5, 100: 0}),
    ({"name": "cosine", "warmup": 10}, 110, {0: 0, 5: 0.5, 10: 1, 60: 0.5, 110: 0}),
    ({"name": "linear", "warmup": 10, "end": 0.0}, 110, {0: 0, 10: 1, 60: 0.5, 110: 0}),
    ({"name": "inverse_square_root", "warmup": 100}, 1000, {0: 1, 100: 1, 400: 0.5, 10_000: 0.1}),
]


@pytest.mark.parametrize(("schedule", "steps", "expected"), BY_HAND)
def test_schedules_by_hand(schedule, steps, expected):
    config = build(OptimizerConfig, {"learning_rate": 2.0, "schedule": schedule})
    _, rate = config.build(steps)
    for step, share in expected.items():
        np.testing.assert_allclose(rate(step), 2.0 * share, rtol=1e-6, atol=1e-7)


def test_every_schedule_has_a_case():
    assert {s["name"] for s, _, _ in BY_HAND} == set(SCHEDULES)


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_descends_a_quadratic(rule):
    config = build(OptimizerConfig, {"learning_rate": 0.05, "rule": {"name": rule}, "grad_clip": None})
    tx, _ = config.build(200)
    params = {"kernel": jnp.array([[3.0, -2.0], [1.0, 4.0]])}
    state = tx.init(params)
    loss = lambda p: (p["kernel"] ** 2).sum()
    first = loss(params)
    for _ in range(200):
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        params = jax.tree.map(jnp.add, params, updates)
    assert loss(params) < 0.01 * first


def test_sgd_step_by_hand_with_clipping():
    config = build(OptimizerConfig, {"learning_rate": 0.1, "rule": {"name": "sgd"}, "grad_clip": 1.0})
    tx, _ = config.build(1)
    params = {"w": jnp.array([0.0, 0.0])}
    updates, _ = tx.update({"w": jnp.array([3.0, 4.0])}, tx.init(params), params)
    np.testing.assert_allclose(updates["w"], [-0.06, -0.08], rtol=1e-6)  # norm 5 clipped to 1


def test_weight_decay_touches_kernels_and_nothing_else(tiny_config):
    state, _ = Engine(run_config(tiny_config)).new_state()
    flags = jax.tree_util.tree_leaves_with_path(decayed_parameters(state.params))
    named = {jax.tree_util.keystr(path, simple=True, separator="/"): flag for path, flag in flags}
    assert {n.split("/")[-1] for n, flag in named.items() if flag} == {"kernel"}
    assert {n.split("/")[-1] for n, flag in named.items() if not flag} == {"bias", "scale", "position"}


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"learning_rate": -1.0}, "config.learning_rate: must be at least 0, got -1.0"),
        ({"learning_rate": 1.0, "grad_clip": 0.0}, "config.grad_clip: must be positive or None, got 0.0"),
        (
            {"learning_rate": 1.0, "rule": {"name": "adam"}},
            'config.rule.name: unknown name "adam"; did you mean "adamw"?',
        ),
        ({"learning_rate": 1.0, "schedule": {"name": "constant", "warmup": -1}}, "config.schedule.warmup: must be"),
        (
            {"learning_rate": 1.0, "schedule": {"name": "inverse_square_root", "warmup": 0}},
            "config.schedule.warmup: must be at least 1",
        ),
    ],
)
def test_bad_settings_are_refused_in_one_line(section, message):
    with pytest.raises(ConfigError) as error:
        build(OptimizerConfig, section)
    assert str(error.value).startswith(message)
