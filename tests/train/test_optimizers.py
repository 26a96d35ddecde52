import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sparsity.config import ConfigError, build, config_hash, to_dict
from sparsity.run import Engine, run_config
from sparsity.train.optimizers import RULES, SCHEDULES, OptimizerConfig, decayed_parameters, keep_unit_norm

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

    @jax.jit
    def step(params, state):
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return jax.tree.map(jnp.add, params, updates), state

    for _ in range(200):
        params, state = step(params, state)
    assert loss(params) < 0.01 * first


def test_sgd_step_by_hand_with_clipping():
    config = build(OptimizerConfig, {"learning_rate": 0.1, "rule": {"name": "sgd"}, "grad_clip": 1.0})
    tx, _ = config.build(1)
    params = {"w": jnp.array([0.0, 0.0])}
    updates, _ = tx.update({"w": jnp.array([3.0, 4.0])}, tx.init(params), params)
    np.testing.assert_allclose(updates["w"], [-0.06, -0.08], rtol=1e-6)  # norm 5 clipped to 1


def rule(learning_rate=1.0, clip=None, **rule):
    config = build(OptimizerConfig, {"learning_rate": learning_rate, "rule": rule, "grad_clip": clip})
    return config.build(100)[0]


def updates_of(tx, grads):
    """The updates of a single parameter, w, over the steps."""
    params, out = {"w": jnp.zeros(())}, []
    state = tx.init(params)
    for g in grads:
        update, state = tx.update({"w": jnp.float32(g)}, state, params)
        out.append(float(update["w"]))
    return out


def test_adam_is_adamw_without_weight_decay():
    grads = [0.3, 0.0, -2.0, 0.1]
    got, expected = updates_of(rule(0.1, name="adamw"), grads), updates_of(optax.adam(0.1), grads)
    assert got == expected


def test_sparse_adam_by_hand():
    # b1 = 1/2, b2 = 3/4, eps = 0. Step 1, g = 2: m = 1, v = 1, correction sqrt(1/4) / (1/2) = 1.
    # Step 2, g = 0: nothing. Step 3, g = 1: m = (1 + 1)/2 = 1, v = (3 + 1)/4 = 1, correction sqrt(37/64) / (7/8),
    # by the step of the run; by the number of gradients it would be sqrt(7/16) / (3/4) = 0.882.
    got = updates_of(rule(name="sparse_adam", b1=0.5, b2=0.75, eps=0.0), [2, 0, 1])
    np.testing.assert_allclose(got, [-1, 0, -np.sqrt(37 / 64) / (7 / 8)], rtol=1e-6)
    # Adam moves at step 2: m = 1/2, v = 3/4, correction sqrt(7/16) / (3/4).
    adam = updates_of(rule(name="adamw", b1=0.5, b2=0.75, eps=0.0), [2, 0])
    np.testing.assert_allclose(adam[1], -np.sqrt(7 / 16) / (3 / 4) * 0.5 / np.sqrt(3 / 4), rtol=1e-6)


def test_sparse_adam_adds_eps_to_the_uncorrected_deviation_as_torch_does():
    # m = 1, v = 1: 1 / (1 + 1). Adam: 2 / (sqrt(4) + 1).
    settings = {"b1": 0.5, "b2": 0.75, "eps": 1.0}
    assert updates_of(rule(name="sparse_adam", **settings), [2]) == pytest.approx([-1 / 2], rel=1e-6)
    assert updates_of(rule(name="adamw", **settings), [2]) == pytest.approx([-2 / 3], rel=1e-6)


def test_sparse_adam_without_zeros_is_adam():
    grads = [0.3, -1.0, 2.0, -0.1, 0.7]
    settings = {"learning_rate": 0.1, "b1": 0.8, "b2": 0.9, "eps": 1e-12}
    # Equal in exact arithmetic but for eps.
    expected = updates_of(rule(name="adamw", **settings), grads)
    np.testing.assert_allclose(updates_of(rule(name="sparse_adam", **settings), grads), expected, rtol=1e-5)


def test_a_gradient_that_is_not_a_number_is_not_taken_for_a_zero():
    assert np.isnan(updates_of(rule(name="sparse_adam"), [np.nan])).all()


@pytest.mark.parametrize("clip", [None, 0.1])
@pytest.mark.parametrize("name", ["sparse_adam", "adamw"])
def test_a_dead_unit_stays_where_it_is_under_sparse_adam_and_drifts_under_adam(name, clip):
    rng = np.random.default_rng(0)
    x, y = jnp.asarray(rng.normal(size=(64, 5))), jnp.asarray(rng.normal(size=(64, 3)))
    params = {
        "wi": {"kernel": jnp.asarray(rng.normal(size=(5, 8)) / 2), "bias": jnp.zeros(8)},
        "wo": {"kernel": jnp.asarray(rng.normal(size=(8, 3)) / 2), "bias": jnp.zeros(3)},
    }
    hidden = lambda p: jax.nn.relu(x @ p["wi"]["kernel"] + p["wi"]["bias"])
    loss = lambda p: ((hidden(p) @ p["wo"]["kernel"] + p["wo"]["bias"] - y) ** 2).mean()
    tx = rule(0.01, clip, name=name)
    state = tx.init(params)

    @jax.jit
    def step(params, state):
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    def steps(params, state, n):
        for _ in range(n):
            params, state = step(params, state)
        return params, state

    params, state = steps(params, state, 3)
    assert (hidden(params) > 0).any(0).all()  # all live: their moments are not zero
    params["wi"]["bias"] = params["wi"]["bias"].at[2].set(-100.0)
    before = params
    params, state = steps(params, state, 5)
    assert not (hidden(params)[:, 2] > 0).any()
    moved = jax.tree.map(lambda a, b: np.asarray(a != b), before, params)
    of_dead = [moved["wi"]["kernel"][:, 2], moved["wi"]["bias"][2], moved["wo"]["kernel"][2]]
    if name == "sparse_adam":
        assert not any(m.any() for m in of_dead)
    else:
        # The bias too: float32 resolves steps of .01 at -100.
        assert all(m.all() for m in of_dead)
    live = np.arange(8) != 2
    assert moved["wi"]["kernel"][:, live].all()
    assert moved["wo"]["kernel"][live].all()
    assert moved["wi"]["bias"][live].all()


TREE = {
    "encoder": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)},
    "decoder": {"kernel": jnp.ones(3), "bias": jnp.ones(2)},
}


@pytest.mark.parametrize(
    ("multipliers", "factors"),
    [
        ((("bias", 5.0),), {"encoder/bias": 5, "decoder/bias": 5}),
        ((("encoder/bias", 5.0), ("decoder/.*", 0.0)), {"encoder/bias": 5, "decoder/bias": 0, "decoder/kernel": 0}),
        (((".*", 0.5),), {"encoder/bias": 0.5, "encoder/kernel": 0.5, "decoder/bias": 0.5, "decoder/kernel": 0.5}),
        ((("(en|de)coder/kernel", 2.0),), {"encoder/kernel": 2, "decoder/kernel": 2}),
    ],
)
@pytest.mark.parametrize("clip", [None, 1.0])
def test_multipliers_scale_the_updates_of_the_parameters_they_match(multipliers, factors, clip):
    section = {"learning_rate": 0.1, "rule": {"name": "sgd"}, "grad_clip": clip, "multipliers": multipliers}
    tx = build(OptimizerConfig, section).build(10)[0]
    updates, _ = jax.jit(tx.update)(TREE, tx.init(TREE), TREE)
    rate = 0.1 if clip is None else 0.1 / np.sqrt(14)  # 14 ones, clipped before they are multiplied
    for path, update in jax.tree_util.tree_leaves_with_path(updates):
        factor = factors.get(jax.tree_util.keystr(path, simple=True, separator="/"), 1)
        np.testing.assert_allclose(update, -rate * factor, rtol=1e-6)


@pytest.mark.parametrize(
    ("multipliers", "message"),
    [
        ((("biass", 5.0),), '"biass" matches no parameter; did you mean "bias"?'),
        ((("ias", 5.0),), '"ias" matches no parameter; did you mean "bias"?'),
        ((("encodr/bias", 5.0),), '"encodr/bias" matches no parameter; did you mean "encoder/bias"?'),
        ((("zz", 5.0),), '"zz" matches no parameter; valid: bias, kernel'),
        ((("bias", 5.0), ("encoder/.*", 2.0)), '"bias" and "encoder/.*" match encoder/bias'),
    ],
)
def test_multipliers_that_do_not_fit_the_parameters_are_refused(multipliers, message):
    tx = build(OptimizerConfig, {"learning_rate": 0.1, "multipliers": multipliers}).build(10)[0]
    with pytest.raises(ConfigError) as error:
        tx.init(TREE)
    assert str(error.value) == f"config.optimizer.multipliers: {message}"


def test_a_run_with_a_mistyped_multiplier_is_refused_before_anything_is_computed(tiny_config):
    tiny_config.optimizer.multipliers = (("biases", 5.0),)
    with pytest.raises(ConfigError) as error:
        Engine(run_config(tiny_config))
    # Its string, which a launcher prints: a note of JAX's on tracebacks is no part of it.
    assert str(error.value) == 'config.optimizer.multipliers: "biases" matches no parameter; did you mean "bias"?'


def test_without_multipliers_configs_and_states_are_what_they_were():
    plain = build(OptimizerConfig, {"learning_rate": 0.1})
    assert "multipliers" not in to_dict(plain)
    assert config_hash(plain) == "9d5b30204c"
    biased = build(OptimizerConfig, {"learning_rate": 0.1, "multipliers": [["bias", 5]]})
    assert build(OptimizerConfig, to_dict(biased)) == biased
    assert config_hash(biased) != config_hash(plain)
    assert len(plain.build(1)[0].init(TREE)) == 2  # clip and rule


def test_the_moments_of_sparse_adam_lie_where_their_parameters_lie(tiny_config):
    tiny_config.mesh.data, tiny_config.mesh.model = 4, 2
    tiny_config.optimizer.rule = {"name": "sparse_adam"}
    placed = Engine(run_config(tiny_config)).placed
    moments = placed.opt_state[1][0]  # after the clip
    assert any("model" in str(p.spec) for p in jax.tree.leaves(placed.params))
    for slot in (moments.mu, moments.nu):
        assert jax.tree.leaves(slot) == jax.tree.leaves(placed.params)


@pytest.mark.parametrize("axis", [0, 1])
def test_chosen_matrices_keep_unit_norms_along_their_axis_after_every_update(axis):
    rng = np.random.default_rng(0)
    params = {
        "wi": {"kernel": jnp.asarray(rng.normal(size=(3, 4)), jnp.float32), "bias": jnp.ones(4)},
        "wo": {"kernel": jnp.asarray(rng.normal(size=(4, 3)), jnp.float32)},
    }
    config = OptimizerConfig(0.1, RULES["sgd"](), grad_clip=None, unit_norm=(("wi/kernel", axis),))
    tx, _ = config.build(1)
    grads = jax.tree.map(jnp.ones_like, params)
    updates, _ = tx.update(grads, tx.init(params), params)
    moved = optax.apply_updates(params, updates)
    by_hand = np.asarray(params["wi"]["kernel"]) - 0.1
    by_hand /= np.linalg.norm(by_hand, axis=axis, keepdims=True)
    np.testing.assert_allclose(moved["wi"]["kernel"], by_hand, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(moved["wo"]["kernel"], np.asarray(params["wo"]["kernel"]) - 0.1, rtol=1e-6)


def test_a_vector_of_zeros_has_no_norm_to_keep():
    tx = keep_unit_norm((("w", 0),))
    params = {"w": jnp.zeros((2, 3)).at[:, 0].set(1.0)}
    updates, _ = tx.update({"w": jnp.zeros((2, 3))}, tx.init(params), params)
    np.testing.assert_allclose(params["w"] + updates["w"], [[0.5**0.5, 0, 0]] * 2, rtol=1e-6)


def test_a_unit_norm_that_fits_no_matrix_is_refused():
    with pytest.raises(ConfigError, match=r'^config\.optimizer\.unit_norm: "wi/kernal" matches no parameter; did you'):
        keep_unit_norm((("wi/kernal", 0),)).init({"wi": {"kernel": jnp.ones((2, 2))}})
    with pytest.raises(ConfigError, match=r"^config\.optimizer\.unit_norm: wi/bias of shape \(2,\) is no matrix$"):
        keep_unit_norm((("bias", 0),)).init({"wi": {"bias": jnp.ones(2)}})


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
        (
            {"learning_rate": 1.0, "rule": {"name": "sparse_adam", "weight_decay": 0.1}},
            "config.rule.weight_decay: unknown key",
        ),
        (
            {"learning_rate": 1.0, "multipliers": (("bias", -1.0),)},
            'config.multipliers: must be at least 0, got -1.0 for "bias"',
        ),
        ({"learning_rate": 1.0, "multipliers": (("(", 1.0),)}, 'config.multipliers: "(" is no regular expression'),
        ({"learning_rate": 1.0, "unit_norm": (("wi", 2),)}, "config.unit_norm: the axis of a matrix is 0 or 1, got 2"),
        ({"learning_rate": 1.0, "multipliers": (("bias",),)}, "config.multipliers[0]: expected 2 values, got 1"),
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


def test_weight_decay_of_sgd_by_hand():
    """Step 1: v = g + w p. Step 2: v <- momentum v + g + w p. Of kernels alone."""
    tx = rule(0.1, name="sgd", momentum=0.5, weight_decay=0.2)
    params = {"kernel": jnp.array([[3.0]]), "bias": jnp.array([3.0])}
    grads = {"kernel": jnp.array([[1.0]]), "bias": jnp.array([1.0])}
    state = tx.init(params)
    for kernel, bias in ((-0.1 * 1.6, -0.1), (-0.1 * (0.8 + 1 + 0.2 * 2.84), -0.15)):
        updates, state = tx.update(grads, state, params)
        np.testing.assert_allclose(updates["kernel"], [[kernel]], rtol=1e-6)
        np.testing.assert_allclose(updates["bias"], [bias], rtol=1e-6)
        params = jax.tree.map(jnp.add, params, updates)


def test_sgd_without_weight_decay_keeps_its_state_and_its_hash():
    plain = build(OptimizerConfig, {"learning_rate": 0.1, "rule": {"name": "sgd", "momentum": 0.9}, "grad_clip": None})
    assert to_dict(plain)["rule"] == {"name": "sgd", "momentum": 0.9}
    params, expected = {"kernel": jnp.ones((1, 1))}, optax.sgd(lambda step: 0.1, 0.9)
    assert jax.tree.structure(plain.build(1)[0].init(params)) == jax.tree.structure(expected.init(params))
