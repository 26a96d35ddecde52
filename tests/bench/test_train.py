"""What the suite's arms compute and what its facts say; never their times."""

import jax
import numpy as np
import pytest

from sparsity import recipes
from sparsity.bench import train
from sparsity.ops.noise import Gaussian
from sparsity.run import run_config
from sparsity.train.losses import reconstruction
from sparsity.train.state import init_fn
from sparsity.train.step import Objective, gradients

INPUTS, UNITS, BATCH = 32 * 32 * 3, 64, 16


@pytest.fixture(scope="module")
def cases():
    return list(train.train_cases(smoke=True))


def test_the_step_is_that_of_a_run_and_does_five_products(cases):
    case = cases[0]
    assert case.facts["matrix products"] == train.PRODUCTS == 5
    assert case.facts["flops"] == 5 * 2 * BATCH * INPUTS * UNITS
    parameters = 2 * INPUTS * UNITS
    assert case.facts["flops as 6 N B"] == 6 * parameters * BATCH
    losses = [float(case.arms["step"]()[1].loss) for _ in range(4)]
    assert losses[3] < losses[0]
    assert int(case.arms["step"]()[0].step) == 5


def test_the_products_are_of_the_step_s_sizes(cases):
    sizes = [(BATCH, UNITS), (BATCH, INPUTS), (BATCH, UNITS), (UNITS, INPUTS), (INPUTS, UNITS)]
    for arm in ("products", "products as in the step"):
        found = cases[0].arms[arm]()
        assert [x.shape for x in found] == sizes
        assert {str(x.dtype) for x in found} == {"float32"}
    for a, b in zip(*(cases[0].arms[arm]() for arm in ("products", "products as in the step")), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)  # the same numbers, summed in another order


def test_sixty_percent_of_the_rate_is_a_time_of_five_thirds(cases):
    bars = cases[0].bars
    assert [(bar.arm, bar.base) for bar in bars] == [("step", "products"), ("step", "products as in the step")]
    for bar in bars:
        assert bar.holds(1 / 0.6)
        assert not bar.holds(1 / 0.59)


def test_grouped_or_not_every_sigma_takes_the_steps_of_its_own_run(cases):
    config = run_config(recipes.autoencoder_photos(32))
    data, model, (tx, _) = train.draw(config), config.model.build(None), config.optimizer.build(config.steps)
    start = jax.jit(init_fn(model, tx, 0, (data["image"][:1],)))()
    apart, (together, losses) = cases[1].arms["one by one"](), cases[1].arms["vmapped"]()
    for i, sigma in enumerate(train.SIGMAS):
        noise = Gaussian(sigma=sigma * recipes.noise_scale(recipes.autoencoder_photos()))
        compute = jax.jit(gradients(Objective(model, config.model, reconstruction, 0, noise), record=False))
        (sums, _), _, _, _ = compute(start, data)
        np.testing.assert_allclose([losses[i], apart[i][1]], sums.loss, rtol=1e-5)
        for a, b in zip(jax.tree.leaves(apart[i][0]), jax.tree.leaves(together), strict=True):
            np.testing.assert_allclose(a, b[i], rtol=1e-4, atol=2e-5)  # Adam turns rounding into parts of its rate
