"""One mesh, shardings of states, and placing batches: SPMD with `jax.jit`.

What used to be `pjit` is `jax.jit` with shardings. Axes of the mesh are Auto on purpose: under
Explicit axes a logical constraint turns into an assertion and Top-k over a sharded axis fails.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.experimental.mesh_utils import create_device_mesh
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from sparsity import axes
from sparsity.config import ConfigError, later

# Numbers in a parameter from which on `fsdp` splits it. Smaller ones, biases and norms nearly all, are not worth the
# messages, and the channels of an image, which a first convolution reads, could not be split.
LARGE = 2**16


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis.

    Attributes:
      data: devices that split the batch; -1 takes all that the others leave.
      model: devices that split hidden units, heads and vocabulary.
      fsdp: devices that split the batch, beside `data`, and every parameter of `LARGE` numbers or more with its
        optimizer slots.
      sequence: devices that split the tokens of every example; attention gathers keys and values. It divides the
        length of all that the model reads.
    """

    data: int = -1
    model: int = 1
    fsdp: int = later(1)
    sequence: int = later(1)

    def __post_init__(self):
        for field in ("model", "fsdp", "sequence"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field}: must be at least 1, got {getattr(self, field)}")
        if self.data < 1 and self.data != -1:
            raise ValueError(f"data: must be at least 1, or -1 for all devices, got {self.data}")


def make_mesh(config: MeshConfig, devices: list | int | None = None) -> Mesh | AbstractMesh:
    """The mesh of `axes.MESH_AXES` over `devices` (all by default); the only mesh constructor.

    Where `devices` is only their number, the mesh is abstract: it gives shapes and shardings, and nothing runs on it.
    A mesh axis may take a part of an axis of a TPU slice: 8 x 8 of 4 x 4 x 4 chips, say.

    Raises:
      ConfigError: more devices asked for than there are, or a remainder left over.
    """
    devices = jax.devices() if devices is None else devices
    count = devices if isinstance(devices, int) else len(devices)
    sizes = {name: getattr(config, name) for name in axes.MESH_AXES}
    others = math.prod(size for name, size in sizes.items() if name != "data")
    sizes_given = sizes | {"data": count // others if config.data == -1 else config.data}
    shape = tuple(sizes_given.values())
    needed = math.prod(shape)
    if needed == 0 or needed > count or (config.data == -1 and needed != count):
        asked = " x ".join(f"{name} {size}" for name, size in sizes.items())
        raise ConfigError(f"config.mesh: {asked} does not fit {count} devices")
    kinds = (AxisType.Auto,) * len(shape)
    if isinstance(devices, int):
        return AbstractMesh(shape, axes.MESH_AXES, kinds)
    placed = create_device_mesh(shape, devices[:needed], allow_split_physical_axes=True)
    return Mesh(placed, axes.MESH_AXES, axis_types=kinds)


def batch_devices(mesh: Mesh | AbstractMesh) -> int:
    """Into how many parts a batch is split."""
    return axes.parts(mesh, axes.spec(("batch",))[0])


def param_specs(boxed: Any) -> Any:
    """PartitionSpecs of a parameter tree, from the axis names its initialisers attached; `fsdp` splits `LARGE` ones.

    Raises:
      AxisError: a name without a rule, or a parameter that names no axes.
    """

    def one(path, leaf):
        if not isinstance(leaf, nn.LogicallyPartitioned):
            raise axes.AxisError(f"parameter {jax.tree_util.keystr(path)} names no axes")
        return axes.spec(leaf.names, taken=() if math.prod(leaf.value.shape) >= LARGE else ("fsdp",))

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
        for size, entry in zip(leaf.shape, spec, strict=False):
            if size % (n := axes.parts(mesh, entry)):
                name = entry if isinstance(entry, str) else " x ".join(entry)
                where = jax.tree_util.keystr(path, simple=True, separator="/")
                raise ConfigError(f"config.mesh.{name}: {n} devices do not divide the {size} units of {where}")


def shardings(mesh: Mesh, specs: Any) -> Any:
    """A tree of PartitionSpecs as NamedShardings on `mesh`."""
    return jax.tree.map(lambda s: NamedSharding(mesh, s), specs, is_leaf=lambda s: isinstance(s, PartitionSpec))


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def place_batch(mesh: Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Global arrays split over `data` and `fsdp` along axis 0, from this process's part of a batch."""
    sharding = NamedSharding(mesh, axes.spec(("batch",)))
    with jax.transfer_guard_host_to_device("allow"):  # several processes' parts are copied, to JAX implicitly
        return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}


def rows_of_process(mesh: Mesh, batch: int) -> np.ndarray:
    """The places in a batch of the examples that this process's devices hold, in order: `place_batch` takes those.

    Processes whose devices hold the same examples, and of these the units of one `model` group, share places.
    """
    held = NamedSharding(mesh, axes.spec(("batch",))).addressable_devices_indices_map((batch,))
    return np.unique(np.concatenate([np.arange(batch)[index] for index in held.values()]))


def place_whole(mesh: Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """`place_batch` of a batch that every process has whole."""
    rows = rows_of_process(mesh, len(next(iter(batch.values()))))
    return place_batch(mesh, {k: x if len(rows) == len(x) else x[rows] for k, x in batch.items()})


def place_everywhere(mesh: Mesh, tree: Any) -> Any:
    """Arrays that every process has, whole on all devices."""
    everywhere = replicated(mesh)
    with jax.transfer_guard_host_to_device("allow"):
        return jax.tree.map(lambda x: jax.make_array_from_callback(np.shape(x), everywhere, lambda _: x), tree)


def fetch(tree: Any) -> Any:
    """Arrays of whatever sharding as NumPy's, whole in every process."""

    def one(x: Any) -> np.ndarray:
        whole = not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated
        return np.asarray(jax.device_get(x) if whole else multihost_utils.process_allgather(x, tiled=True))

    with jax.transfer_guard_device_to_host("allow"):
        return jax.tree.map(one, tree)
