import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from sparsity import axes


@pytest.fixture
def mesh():
    devices = jax.devices()[:1]
    return jax.make_mesh((1, 1), axes.MESH_AXES, (AxisType.Auto,) * 2, devices=devices)


def test_every_rule_leads_to_a_mesh_axis_or_to_none():
    assert axes.RULES
    assert set(axes.RULES.values()) == {None, *axes.MESH_AXES}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ((), PartitionSpec()),
        (("batch", "length", "embed"), PartitionSpec("data", None, None)),
        (("batch", "length", "mlp"), PartitionSpec("data", None, "model")),
        (("batch", "length", "heads", "head_dim"), PartitionSpec("data", None, "model", None)),
        (("embed", "mlp"), PartitionSpec(None, "model")),
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


def test_constrain_under_a_mesh_pins_the_sharding_and_keeps_the_values(mesh):
    x = jnp.arange(6.0).reshape(2, 3)
    with jax.set_mesh(mesh):
        constrained = jax.jit(lambda a: axes.constrain(a, ("batch", "mlp")))
        y = constrained(x)
        lowered = constrained.lower(x).as_text()
    np.testing.assert_array_equal(y, x)
    # The text of the program is where a constraint shows on a mesh of any size.
    assert 'sharding_constraint %arg0 <@mesh, [{"data"}, {"model"}]>' in lowered


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
