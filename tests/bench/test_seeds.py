import jax
import numpy as np

from sparsity.bench.seeds import SEEDS, seeds_cases


def test_both_arms_take_the_same_steps():
    (case,) = seeds_cases(smoke=True)
    for _ in range(2):
        apart, (together, losses) = case.arms["one by one"](), case.arms["vmapped"]()
        for i in range(SEEDS):
            np.testing.assert_allclose(losses[i], apart[i][1], rtol=1e-5)
            for a, b in zip(jax.tree.leaves(apart[i][0]), jax.tree.leaves(together), strict=True):
                np.testing.assert_allclose(a, b[i], rtol=1e-4, atol=1e-6)  # sums in another order, float32
