"""What the suite's arms compute and promise; never their times."""

import pytest

from sparsity import recipes
from sparsity.bench import digests


@pytest.fixture(scope="module")
def cases():
    return list(digests.digests_cases(smoke=True))


def test_the_quickstart_and_t5_save_as_often_as_their_recipes_say(cases):
    between = [case.facts["steps between saves"] for case in cases]
    assert between == [recipes.vit_digits().every.checkpoint, recipes.t5_c4("small").every.checkpoint] == [250, 1000]
    for case, steps in zip(cases, between, strict=True):
        [bar] = case.bars
        assert (bar.arm, bar.base) == ("digests", "step")
        assert bar.holds(0.019 * steps)
        assert not bar.holds(0.021 * steps)


def test_digests_are_of_the_whole_state_that_is_trained(cases):
    for case in cases:
        found = case.arms["digests"]()
        state, metrics = case.arms["step"]()
        assert any("params" in name for name in found)
        assert any("opt_state" in name for name in found)
        assert int(state.step) == 1
        assert metrics.loss > 0
