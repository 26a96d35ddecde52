"""One mesh, shardings of states, and placing batches: SPMD with `jax.jit`.

What used to be `pjit` is `jax.jit` with shardings. Axes of the mesh are Auto on purpose: under
Explicit axes a logical constraint turns into an assertion and Top-k over a sharded axis fails.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.experimental.mesh_utils import create_device_mesh
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from sparsity import axes
from sparsity.config import ConfigError


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis.

    Attributes:
      data: devices that split the batch; -1 takes all that `model` leaves.
      model: devices that split hidden units, heads and vocabulary.
    """

    data: int = -1
    model: int = 1

    def __post_init__(self):
        if self.model < 1:
            raise ValueError(f"model: must be at least 1, got {self.model}")
        if self.data < 1 and self.data != -1:
            raise ValueError(f"data: must be at least 1, or -1 for all devices, got {self.data}")


def make_mesh(config: MeshConfig, devices: list | int | None = None) -> Mesh | AbstractMesh:
    """The mesh (data, model) over `devices` (all by default); the only mesh constructor.

    Where `devices` is only their number, the mesh is abstract: it gives shapes and shardings, and nothing runs on it.
    A mesh axis may take a part of an axis of a TPU slice: 8 x 8 of 4 x 4 x 4 chips, say.

    Raises:
      ConfigError: more devices asked for than there are, or a remainder left over.
    """
    devices = jax.devices() if devices is None else devices
    count = devices if isinstance(devices, int) else len(devices)
    data = count // config.model if config.data == -1 else config.data
    needed = data * config.model
    if needed == 0 or needed > count or (config.data == -1 and needed != count):
        raise ConfigError(f"config.mesh: data {config.data} x model {config.model} does not fit {count} devices")
    shape = (data, config.model)
    if isinstance(devices, int):
        return AbstractMesh(shape, axes.MESH_AXES, (AxisType.Auto,) * 2)
    placed = create_device_mesh(shape, devices[:needed], allow_split_physical_axes=True)
    return Mesh(placed, axes.MESH_AXES, axis_types=(AxisType.Auto,) * 2)


def param_specs(boxed: Any) -> Any:
    """PartitionSpecs of a parameter tree, from the axis names its initialisers attached.

    Raises:
      AxisError: a name without a rule, or a parameter that names no axes.
    """

    def one(path, leaf):
        if not isinstance(leaf, nn.LogicallyPartitioned):
            raise axes.AxisError(f"parameter {jax.tree_util.keystr(path)} names no axes")
        return axes.spec(leaf.names)

    return jax.tree_util.tree_map_with_path(one, boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))


def optimizer_specs(opt_state: Any, params: Any, specs: Any) -> Any:
    """PartitionSpecs of an optax state, slot by slot.

    A slot whose path ends in a parameter's path and has its shape is sharded like it; a
    factored slot (`v_row`, `v_col` of Adafactor: the parameter's shape less its last or its
    second largest axis) keeps the entries of the axes that remain; anything else is replicated.
    """
    of_param = {
        jax.tree_util.keystr(path): (leaf.shape, spec)
        for (path, leaf), spec in zip(
            jax.tree_util.tree_leaves_with_path(params),
            jax.tree.leaves(specs, is_leaf=lambda s: isinstance(s, PartitionSpec)),
            strict=True,
        )
    }

    def one(path, leaf):
        name = jax.tree_util.keystr(path)
        for param, (shape, spec) in of_param.items():
            if not name.endswith(param):
                continue
            entries = [*spec, *(None,) * (len(shape) - len(spec))]
            if leaf.shape == shape:
                return spec
            if "v_row" in name or "v_col" in name:
                return _factored_spec(leaf.shape, shape, entries, row="v_row" in name)
        return PartitionSpec()

    return jax.tree_util.tree_map_with_path(one, opt_state)


def _factored_spec(slot: tuple, shape: tuple, entries: list, row: bool) -> PartitionSpec:
    """Adafactor's v_row drops the parameter's largest axis, v_col its second largest (optax)."""
    if len(shape) < 2:
        return PartitionSpec()
    order = np.argsort(shape)
    dropped = int(order[-1] if row else order[-2])
    if slot != (*shape[:dropped], *shape[dropped + 1 :]):
        return PartitionSpec()  # the (1,) placeholder of a parameter that is too small to be factored
    return PartitionSpec(*(e for i, e in enumerate(entries) if i != dropped))


def check_divisible(shapes: Any, specs: Any, mesh: Mesh) -> None:
    """Raises ConfigError naming the first array whose sharded axis the mesh does not divide."""
    leaves = jax.tree_util.tree_leaves_with_path(shapes)
    partitions = jax.tree.leaves(specs, is_leaf=lambda s: isinstance(s, PartitionSpec))
    for (path, leaf), spec in zip(leaves, partitions, strict=True):
        for size, name in zip(leaf.shape, spec, strict=False):
            if name is not None and size % mesh.shape[name]:
                where = jax.tree_util.keystr(path, simple=True, separator="/")
                n = mesh.shape[name]
                raise ConfigError(f"config.mesh.{name}: {n} devices do not divide the {size} units of {where}")


def shardings(mesh: Mesh, specs: Any) -> Any:
    """A tree of PartitionSpecs as NamedShardings on `mesh`."""
    return jax.tree.map(lambda s: NamedSharding(mesh, s), specs, is_leaf=lambda s: isinstance(s, PartitionSpec))


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def place_batch(mesh: Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Global arrays split over `data` along axis 0, from this process's part of a batch."""
    sharding = NamedSharding(mesh, axes.spec(("batch",)))
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}
