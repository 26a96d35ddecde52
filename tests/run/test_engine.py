import jax
import numpy as np

from sparsity.run import Engine, run_config


def test_the_devices_of_an_engine_can_be_given(tiny_config):
    tiny_config.mesh.data = -1
    engine = Engine(run_config(tiny_config), jax.devices()[:2])
    assert engine.mesh.devices.ravel().tolist() == jax.devices()[:2]
    assert {s.mesh for s in jax.tree.leaves(engine.placed)} == {engine.mesh}


def test_what_is_evaluated_knows_the_step_of_its_state(tiny_config):
    engine = Engine(run_config(tiny_config))
    assert engine.subject(engine.abstract.replace(step=np.int32(7)), "test").step == 7
