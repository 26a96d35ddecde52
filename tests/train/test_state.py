import types

import flax.linen as nn
import jax
import numpy as np
import optax

from sparsity import spmd
from sparsity.layers.dense import dense, named
from sparsity.train.losses import classification
from sparsity.train.state import init_state
from sparsity.train.step import Objective, gradients, make_train_step


class Normalised(nn.Module):
    """A linear classifier behind a BatchNorm: the least model with running statistics."""

    @nn.compact
    def __call__(self, x, ctx):
        norm = nn.BatchNorm(
            use_running_average=not ctx.train,
            momentum=0.9,
            scale_init=named(nn.initializers.ones, "embed"),
            bias_init=named(nn.initializers.zeros, "embed"),
        )
        return dense(3, ("embed", "classes"))(norm(x))


def test_running_statistics_are_part_of_the_state_and_move_with_each_step():
    mesh = spmd.make_mesh(spmd.MeshConfig(data=4, model=2))
    model, tx = Normalised(), optax.sgd(0.1)
    state, placed = init_state(model, tx, mesh, 0, (np.zeros((1, 4), np.float32),))
    assert set(state.model_state) == {"batch_stats"}
    reads_images = types.SimpleNamespace(inputs=("image",))
    compute = gradients(Objective(model, reads_images, classification, seed=0), record=False)
    step = make_train_step(compute, tx, lambda _: 0.1, mesh, placed)
    rng = np.random.default_rng(0)
    x = rng.normal(2.0, 3.0, (16, 4)).astype(np.float32)
    with jax.set_mesh(mesh):
        batch = spmd.place_batch(mesh, {"image": x, "label": np.zeros(16, np.int32)})
        state, _, _ = step(state, batch)
    stats = state.model_state["batch_stats"]["BatchNorm_0"]
    # One step from mean 0, variance 1 with momentum 0.9, over the whole sharded batch.
    np.testing.assert_allclose(stats["mean"], 0.1 * x.mean(0), rtol=1e-5)
    np.testing.assert_allclose(stats["var"], 0.9 + 0.1 * x.var(0), rtol=1e-5)
