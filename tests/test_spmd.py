import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from sparsity import axes, recipes, spmd
from sparsity.config import ConfigError
from sparsity.run import Engine, run_config
from sparsity.train.state import state_specs

BLOCK = {
    "attention/query/kernel": P(None, "model"),
    "attention/query/bias": P("model"),
    "attention/key/kernel": P(None, "model"),
    "attention/key/bias": P("model"),
    "attention/value/kernel": P(None, "model"),
    "attention/value/bias": P("model"),
    "attention/out/kernel": P("model", None),
    "attention/out/bias": P(None),
    "mlp/wi/kernel": P(None, "model"),
    "mlp/wi/bias": P("model"),
    "mlp/wo/kernel": P("model", None),
    "mlp/wo/bias": P(None),
    "norm_attention/scale": P(None),
    "norm_attention/bias": P(None),
    "norm_mlp/scale": P(None),
    "norm_mlp/bias": P(None),
}
VIT = {
    "embed/kernel": P(None, None),
    "embed/bias": P(None),
    "position": P(None, None),
    "norm/scale": P(None),
    "norm/bias": P(None),
    "head/kernel": P(None, None),
    "head/bias": P(None),
    **{f"block_{i}/{k}": v for i in range(2) for k, v in BLOCK.items()},
}


def _by_path(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda s: isinstance(s, P))
    return {jax.tree_util.keystr(path, simple=True, separator="/"): spec for path, spec in leaves}


def _engine(config, data=4, model=2):
    config.mesh.data, config.mesh.model = data, model
    return Engine(run_config(config))


def test_every_parameter_of_the_vit_has_the_expected_partition_spec(tiny_config):
    engine = _engine(tiny_config)
    assert _by_path(state_specs(engine.model, engine.tx, engine.inputs).params) == VIT


def test_adam_moments_are_sharded_like_their_parameters(tiny_config):
    engine = _engine(tiny_config)
    specs = _by_path(state_specs(engine.model, engine.tx, engine.inputs).opt_state)
    moments = {k: v for k, v in specs.items() if "/mu/" in k or "/nu/" in k}
    assert len(moments) == 2 * len(VIT)
    for path, spec in moments.items():
        assert spec == VIT[path.split("/mu/")[-1].split("/nu/")[-1]], path
    assert all(spec == P() for k, spec in specs.items() if k not in moments)


def test_adafactor_factors_keep_the_axes_that_remain(tiny_config):
    tiny_config.optimizer.rule = {"name": "adafactor", "min_dim_to_factor": 16}
    engine = _engine(tiny_config)
    state, placed = engine.new_state()
    specs = _by_path(state_specs(engine.model, engine.tx, engine.inputs).opt_state)
    shapes = {k: v.shape for k, v in _by_path_arrays(state.opt_state).items()}
    # wi is [16, 32]: v_row keeps the 16 (embed), v_col the 32 (mlp).
    (row,) = [k for k in specs if "v_row" in k and k.endswith("block_0/mlp/wi/kernel")]
    (col,) = [k for k in specs if "v_col" in k and k.endswith("block_0/mlp/wi/kernel")]
    assert (shapes[row], shapes[col]) == ((16,), (32,))
    assert (specs[row], specs[col]) == (P(None), P("model"))
    batch = spmd.place_batch(
        engine.mesh, {"image": np.ones((32, 8, 8, 1), np.float32), "label": np.zeros(32, np.int32)}
    )
    with jax.set_mesh(engine.mesh):
        _, metrics, _ = engine.step(placed, record=False)(state, batch)
    assert bool(metrics.finite)


def test_a_parameter_too_small_to_be_factored_has_replicated_placeholders(tiny_config):
    """Such as a table of distances [buckets, heads], split over heads: its v_row and v_col are of one number."""
    tiny_config.optimizer.rule = {"name": "adafactor", "min_dim_to_factor": 128}
    engine = _engine(tiny_config)
    state, _ = engine.new_state()
    shapes = {k: v.shape for k, v in _by_path_arrays(state.opt_state).items()}
    placed = _by_path(state_specs(engine.model, engine.tx, engine.inputs).opt_state)
    factors = [k for k in placed if "v_row" in k or "v_col" in k]
    assert {shapes[k] for k in factors} == {(1,)}
    assert {placed[k] for k in factors} == {P()}


def _by_path_arrays(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def test_initial_parameters_do_not_depend_on_the_mesh(tiny_config):
    single = _by_path_arrays(_engine(tiny_config, 1, 1).new_state()[0].params)
    sharded = _by_path_arrays(_engine(tiny_config, 4, 2).new_state()[0].params)
    assert sharded["block_0/mlp/wi/kernel"].sharding.spec == P(None, "model")
    for path, value in single.items():
        np.testing.assert_array_equal(value, sharded[path], err_msg=path)


def test_a_parameter_without_axis_names_is_refused():
    class Bare(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3)(x)

    boxed = jax.eval_shape(lambda: Bare().init(jax.random.key(0), jnp.ones((1, 2))))
    with pytest.raises(axes.AxisError, match=r"Dense_0.*names no axes"):
        spmd.param_specs(boxed["params"])


def test_activation_constraints_stand_in_the_lowered_step(tiny_config):
    """Flax's own logical constraint is silently dropped without its context; ours must not be."""
    engine = _engine(tiny_config)
    state, placed = engine.new_state()
    batch = spmd.place_batch(
        engine.mesh, {"image": np.ones((32, 8, 8, 1), np.float32), "label": np.zeros(32, np.int32)}
    )
    with jax.set_mesh(engine.mesh):
        text = engine.step(placed, record=False).lower(state, batch).as_text()
    hidden = [line for line in text.splitlines() if "sharding_constraint" in line and "32x4x32xf32" in line]
    assert hidden
    assert all('[{"data", "fsdp"}, {"sequence"}, {"model"}]' in line for line in hidden)


def test_place_batch_splits_examples_over_data_and_fsdp():
    mesh = spmd.make_mesh(spmd.MeshConfig(data=2, fsdp=2, model=2))
    placed = spmd.place_batch(mesh, {"label": np.arange(8)})["label"]
    assert {shard.data.shape for shard in placed.addressable_shards} == {(2,)}
    assert spmd.batch_devices(mesh) == len({str(shard.index) for shard in placed.addressable_shards}) == 4
    np.testing.assert_array_equal(placed, np.arange(8))


def test_a_process_alone_holds_all_rows_and_fetches_what_is_split():
    mesh = spmd.make_mesh(spmd.MeshConfig(data=4, model=2))
    np.testing.assert_array_equal(spmd.rows_of_process(mesh, 8), np.arange(8))
    batch = {"image": np.arange(16.0).reshape(8, 2)}
    placed = spmd.place_whole(mesh, batch)
    assert placed["image"].sharding.spec == P(("data", "fsdp"))
    np.testing.assert_array_equal(spmd.fetch(placed)["image"], batch["image"])
    with jax.transfer_guard("disallow"):
        step, flags = spmd.place_everywhere(mesh, (np.int32(3), np.ones(2, bool)))
    assert step.sharding.is_fully_replicated
    assert (int(step), step.dtype, flags.tolist()) == (3, np.int32, [True, True])


def test_data_takes_the_devices_that_the_other_axes_leave():
    mesh = spmd.make_mesh(spmd.MeshConfig(model=2, sequence=2))
    assert mesh.shape == {"data": 2, "fsdp": 1, "sequence": 2, "model": 2}


@pytest.mark.parametrize("shape", [(16, 1), (-1, 3), (-1, 16), (2, 2, 2, 2), (-1, 2, 3)])
def test_a_mesh_that_does_not_fit_the_devices_is_refused(shape):
    with pytest.raises(ConfigError, match=r"does not fit 8 devices"):
        spmd.make_mesh(spmd.MeshConfig(*shape))


@pytest.mark.parametrize(("width", "refused"), [(64, None), (66, 66)])
def test_fsdp_splits_parameters_of_2_16_numbers_and_their_slots(tiny_config, width, refused):
    tiny_config.mesh = {"data": 1, "fsdp": 4, "model": 2}
    tiny_config.model.d_model, tiny_config.model.layers, tiny_config.model.mlp.d_ff = width, 1, 1024
    if refused:
        told = rf"^config\.mesh\.fsdp: 4 devices do not divide the {refused} units of block_0/mlp/wi/kernel$"
        with pytest.raises(ConfigError, match=told):
            Engine(run_config(tiny_config))
        return
    engine = Engine(run_config(tiny_config))
    arrays = _by_path_arrays(engine.abstract)
    of_wi = {path: leaf for path, leaf in arrays.items() if path.endswith("block_0/mlp/wi/kernel")}
    assert len(of_wi) == 3  # of Adam's moments too
    assert {leaf.sharding.shard_shape(leaf.shape) for leaf in of_wi.values()} == {(16, 512)}
    whole = {path for path, leaf in arrays.items() if "fsdp" not in str(leaf.sharding.spec)}
    assert arrays.keys() - whole == {path for path in arrays if path.endswith(("mlp/wi/kernel", "mlp/wo/kernel"))}


def test_units_that_two_axes_split_are_refused_by_both_names():
    mesh = spmd.make_mesh(spmd.MeshConfig(data=1, fsdp=2, model=2))
    with pytest.raises(ConfigError, match=r"^config\.mesh\.model x fsdp: 4 devices do not divide the 6 units of head$"):
        spmd.check_divisible({"head": jnp.ones((6, 3))}, {"head": axes.spec(("mlp", "classes"))}, mesh)


def test_a_batch_that_the_devices_do_not_divide_is_refused():
    config = recipes.vit_digits()
    config.batch = 6
    with pytest.raises(ConfigError, match=r"config.batch: 6 is not divisible by 8 data x fsdp devices"):
        Engine(run_config(config))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"evals": {"batch": 102}}, "config.evals.batch: 102 is not divisible by 4 data x fsdp devices"),
        (
            {"model": {"mlp": {"d_ff": 33}}},
            "config.mesh.model: 2 devices do not divide the 33 units of block_0/mlp/wi/bias",
        ),
    ],
)
def test_sizes_that_the_mesh_does_not_divide_are_refused_before_anything_runs(tiny_config, change, message):
    tiny_config.update(change)
    with pytest.raises(ConfigError) as error:
        _engine(tiny_config)
    assert str(error.value) == message


def test_unknown_optimizer_slots_are_replicated():
    params = {"w": jnp.ones((4, 4))}
    specs = spmd.optimizer_specs(optax.sgd(0.1, momentum=0.9).init(params), params, {"w": P(None, "model")})
    assert jax.tree.leaves(specs, is_leaf=lambda s: isinstance(s, P)) == [P(None, "model")]
    specs = spmd.optimizer_specs({"other": jnp.ones((4, 4))}, params, {"w": P(None, "model")})
    assert specs["other"] == P()
