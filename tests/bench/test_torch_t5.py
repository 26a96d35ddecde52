"""What torch's arms compute; never their times."""

import jax
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from sparsity import recipes
from sparsity.bench import torch_t5
from sparsity.layers.sparsify import Context
from sparsity.run import run_config

pytestmark = pytest.mark.peer


@pytest.fixture(scope="module")
def config():
    config = recipes.t5_c4("small")
    config.batch, config.mesh.data, config.model.dtype = 2, 1, "float32"
    config.data = {"name": "mock_spans", "length": 16, "classes": 96}
    config.model.update({"d_model": 32, "layers": 2, "decoder_layers": 2, "heads": 2, "head_dim": 8})
    config.model.mlp.d_ff = 64
    return run_config(config)


def test_the_step_trains(config):
    rows = config.data.load("train")
    step = torch_t5.train_step(config, {name: np.stack([rows[i][name] for i in range(2)]) for name in rows[0]})
    losses = [float(step()) for _ in range(6)]
    assert losses[-1] < losses[0]


def test_the_longer_arm_says_more_of_the_same_by_a_network_of_our_sizes(config):
    inputs = np.random.default_rng(0).integers(2, 96, (1, 16)).astype(np.int32)
    arms = torch_t5.greedy(config.model, 96, inputs, (2, 5))
    said = {name: np.asarray(run()) for name, run in arms.items()}
    assert {name: x.shape for name, x in said.items()} == {"torch, 2": (1, 3), "torch, 5": (1, 6)}  # from token 0
    np.testing.assert_array_equal(said["torch, 5"][:, :3], said["torch, 2"])
    ours = jax.eval_shape(lambda: config.model.build(96).init(jax.random.key(0), *(inputs,) * 4, Context())["params"])
    assert torch_t5.model_of(config.model, 96).num_parameters() == sum(x.size for x in jax.tree.leaves(ours))


def test_it_stands_beside_ours_where_ours_is_on_a_cpu_too(monkeypatch):
    assert torch_t5.available()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert not torch_t5.available()
