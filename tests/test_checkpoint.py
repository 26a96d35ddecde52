import shutil
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsity import spmd
from sparsity.checkpoint import Checkpoints
from sparsity.run import Engine, run_config


def test_the_last_ones_are_kept_and_the_latest_is_restored(tmp_path):
    with Checkpoints(tmp_path / "c", keep=2) as checkpoints:
        assert checkpoints.latest() is None
        for step in (0, 1, 2):
            checkpoints.save(step, {"x": jnp.full(3, float(step))}, {"note": step})
    with Checkpoints(tmp_path / "c", keep=2) as checkpoints:
        assert checkpoints.latest() == 2
        target = {"x": jax.ShapeDtypeStruct((3,), jnp.float32)}
        np.testing.assert_array_equal(checkpoints.restore(target)["x"], [2, 2, 2])
        np.testing.assert_array_equal(checkpoints.restore(target, step=1)["x"], [1, 1, 1])
    assert {p.name for p in (tmp_path / "c").iterdir() if p.is_dir()} == {"1", "2"}


def test_a_step_is_saved_once(tmp_path):
    with Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(3, {"x": jnp.ones(2)}, {})
        checkpoints.save(3, {"x": jnp.zeros(2)}, {})
    with Checkpoints(tmp_path / "c") as checkpoints:
        np.testing.assert_array_equal(checkpoints.restore({"x": jax.ShapeDtypeStruct((2,), jnp.float32)})["x"], [1, 1])


def test_a_reader_leaves_a_save_under_way_alone(tmp_path):
    with Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(1, {"x": jnp.ones(2)}, {})
    half = tmp_path / "c" / "2.orbax-checkpoint-tmp"
    shutil.copytree(tmp_path / "c" / "1", half)
    with Checkpoints(tmp_path / "c", read_only=True) as checkpoints:
        assert checkpoints.latest() == 1
        checkpoints.restore({"x": jax.ShapeDtypeStruct((2,), jnp.float32)})
    assert half.exists()
    with Checkpoints(tmp_path / "c") as checkpoints:  # the run itself, after a kill
        assert checkpoints.latest() == 1
        deadline = time.monotonic() + 30
        while half.exists() and time.monotonic() < deadline:  # orbax cleans up in the background
            time.sleep(0.05)
    assert not half.exists()


def test_restoring_nothing_raises(tmp_path):
    with Checkpoints(tmp_path / "c") as checkpoints, pytest.raises(FileNotFoundError, match="no checkpoint in"):
        checkpoints.restore({})


def test_a_state_saved_on_8_devices_is_restored_exactly_on_one_and_on_another_mesh(tmp_path, tiny_config):
    tiny_config.mesh.data, tiny_config.mesh.model = 4, 2
    engine = Engine(run_config(tiny_config))
    state, placed = engine.new_state()
    batch = {"image": np.ones((32, 8, 8, 1), np.float32), "label": np.zeros(32, np.int32)}
    with jax.set_mesh(engine.mesh):  # one recorded step: what was sown must not end in the state
        state, _, _ = engine.step(placed, record=True)(state, spmd.place_batch(engine.mesh, batch))
    with Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(1, state, {})
    for data, model in ((1, 1), (1, 8), (2, 2)):
        tiny_config.mesh.data, tiny_config.mesh.model = data, model
        tiny_config.model.heads = 2
        with Checkpoints(tmp_path / "c") as checkpoints:
            restored = Engine(run_config(tiny_config)).restore(checkpoints)
        assert jax.tree.structure(restored) == jax.tree.structure(state)
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(restored), jax.device_get(state))
        assert len(restored.params["block_0"]["mlp"]["wi"]["kernel"].sharding.device_set) == data * model
