"""What the suite's arms compute and what its facts say; never their times."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsity.bench import t5
from sparsity.bench.protocol import Bar, Case, measure


@pytest.fixture(scope="module")
def cases():
    return list(t5.t5_cases(smoke=True))


def test_a_program_s_products_are_counted_through_scans_and_calls():
    w = jnp.ones((3, 4, 4))

    def f(x, w):
        y, _ = jax.lax.scan(lambda x, w: (jax.jit(jnp.matmul)(x, w), None), x, w)
        return y @ jnp.ones((4, 5))

    found = t5.products_of(jax.make_jaxpr(f)(jnp.ones((2, 4)), w).jaxpr)
    assert {(p.left, p.right): n for p, n in found.items()} == {((2, 4), (4, 4)): 3, ((2, 4), (4, 5)): 1}
    assert sum(p.flops * n for p, n in found.items()) == 2 * 2 * 4 * 4 * 3 + 2 * 2 * 4 * 5


def test_the_step_s_products_are_three_times_those_of_the_forward_pass(cases):
    config, facts = t5.timed_run("small", smoke=True), cases[0].facts
    shape, classes = config.input_shape, config.data.classes
    forward = config.model.flops(shape, classes) * config.model.tokens(shape) * config.batch
    # Backward takes two products for each; not those of the distances' buckets and of gathered embeddings.
    assert facts["flops"] == pytest.approx(3 * forward, rel=0.01)


def test_the_step_trains_and_the_products_are_all_run(cases):
    case = cases[0]
    losses = [float(case.arms["step"]()[1].loss) for _ in range(6)]
    assert losses[-1] < losses[0]
    assert len(case.arms["products"]()) == case.facts["matrix products"]
    assert case.bars[0] == Bar("step", "products", 1 / 0.65, 1 / 0.8)


def test_the_profile_is_of_a_step_without_dropout_and_of_the_optimizer_alone(cases):
    case = cases[0]
    plain = [case.arms["step without dropout"]()[1].loss for _ in range(2)]
    assert plain[1] < plain[0]
    before, after = (jax.tree.map(np.array, case.arms["optimizer"]()[0]) for _ in range(2))
    assert all(np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (before, after)), strict=True))
    assert case.slopes == {"rest": ("step", "products"), "dropout": ("step", "step without dropout")}
    config = t5.timed_run("small", smoke=True)
    assert (config.model.dropout, config.model.mlp.dropout) == (0.1, 0.1)
    plain = t5._without_dropout(config).model
    assert (plain.dropout, plain.mlp.dropout) == (0, 0)


def test_the_longer_arm_says_more_tokens_and_the_time_of_one_is_their_difference(cases):
    case = cases[1]
    short, long = np.asarray(case.arms["ours, 2"]()), np.asarray(case.arms["ours, 4"]())
    assert (short.shape, long.shape) == ((1, 2), (1, 4))
    np.testing.assert_array_equal(long[:, :2], short)
    assert case.slopes["ours"] == ("ours, 4", "ours, 2")


def test_a_slope_is_the_difference_of_two_arms_of_the_same_round():
    arms = {"long": lambda: jnp.zeros(()), "short": lambda: jnp.zeros(())}
    record = measure(Case("c", "r", arms, (Bar("one", "short"),), {}, {"one": ("long", "short")}), 3, 1 << 20)
    seconds = record["seconds"]
    assert seconds["one"] == [a - b for a, b in zip(seconds["long"], seconds["short"], strict=True)]
    assert record["bars"][0]["arm"] == "one"


def test_a_slope_that_is_not_positive_keeps_no_promise():
    bar = Bar("ours", "torch", 0.5)
    assert [bar.holds(x) for x in (0.4, 0.0, -0.4, float("nan"), 0.6)] == [True, False, False, False, False]
