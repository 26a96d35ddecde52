import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from sparsity import axes


@pytest.fixture
def mesh():
    return jax.make_mesh((1, 2, 2, 2), axes.MESH_AXES, (AxisType.Auto,) * 4)


def test_every_rule_leads_to_axes_of_the_mesh():
    assert {name for leads_to in axes.RULES.values() for name in leads_to} == set(axes.MESH_AXES)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ((), PartitionSpec()),
        (("batch", "length", "embed"), PartitionSpec(("data", "fsdp"), "sequence", None)),
        (("batch", "length", "mlp"), PartitionSpec(("data", "fsdp"), "sequence", "model")),
        (("batch", "length", "heads", "head_dim"), PartitionSpec(("data", "fsdp"), "sequence", "model", None)),
        (("batch", "length", "length", "mlp"), PartitionSpec(("data", "fsdp"), "sequence", None, "model")),
        (("embed", "mlp"), PartitionSpec("fsdp", "model")),
        (("mlp", "embed"), PartitionSpec("model", "fsdp")),
        (("mlp", "classes"), PartitionSpec(("model", "fsdp"), None)),
        ((None, "vocab"), PartitionSpec(None, "model")),
    ],
)
def test_spec_maps_logical_axes_to_mesh_axes(names, expected):
    assert axes.spec(names) == expected


def test_a_misspelt_axis_raises_and_names_the_nearest():
    with pytest.raises(axes.AxisError, match='unknown axis "lenght"; did you mean "length"'):
        axes.spec(("batch", "lenght"))


def test_constrain_without_a_mesh_returns_the_very_same_array():
    x = jnp.ones((2, 3))
    assert axes.constrain(x, ("batch", "embed")) is x


def test_constrain_without_a_mesh_still_refuses_an_unknown_name():
    with pytest.raises(axes.AxisError, match='unknown axis "embd"'):
        axes.constrain(jnp.ones((2, 3)), ("batch", "embd"))


@pytest.mark.parametrize("names", [("batch",), ("batch", "length", "embed")])
def test_constrain_refuses_a_wrong_number_of_names(names):
    with pytest.raises(axes.AxisError, match=rf"{len(names)} axes .* shape \(2, 3\)"):
        axes.constrain(jnp.ones((2, 3)), names)


@pytest.mark.parametrize(
    ("shape", "pinned"),
    [
        ((2, 4, 6), '[{"data", "fsdp"}, {"sequence"}, {"model"}]'),
        ((3, 1, 6), '[{}, {}, {"model"}]'),  # what the devices do not divide stays whole
    ],
)
def test_constrain_under_a_mesh_pins_the_sharding_and_keeps_the_values(mesh, shape, pinned):
    x = jnp.arange(float(np.prod(shape))).reshape(shape)
    with jax.set_mesh(mesh):
        constrained = jax.jit(lambda a: axes.constrain(a, ("batch", "length", "mlp")))
        y = constrained(x)
        lowered = constrained.lower(x).as_text()
    np.testing.assert_array_equal(y, x)
    assert f"sharding_constraint %arg0 <@mesh, {pinned}>" in lowered


def test_axes_that_a_mesh_lacks_split_nothing():
    mesh = jax.make_mesh((4, 2), ("data", "model"), (AxisType.Auto,) * 2)
    assert axes.fitted(mesh, ("batch", "length", "mlp"), (4, 2, 6)) == PartitionSpec("data", None, "model")
    assert axes.fitted(mesh, ("embed", "mlp"), (8, 7)) == PartitionSpec(None, None)


def test_constrain_under_a_mesh_refuses_an_unknown_name(mesh):
    with jax.set_mesh(mesh), pytest.raises(axes.AxisError, match='unknown axis "bacth"'):
        axes.constrain(jnp.ones((2, 3)), ("bacth", "mlp"))


@pytest.mark.parametrize("parts", [1, 2, 3, 8])
@pytest.mark.parametrize("size", [24, 48, 3072])
def test_a_narrowed_axis_is_small_and_still_divided(size, parts):
    narrow = axes.narrowed(size, parts, 16)
    assert narrow % parts == 0
    assert 16 <= narrow < 16 + parts


def test_a_narrow_axis_stays_as_it_is():
    assert [axes.narrowed(size, 2, 16) for size in (2, 12, 16)] == [2, 12, 16]
