"""Machines to plan for: the devices at hand, or TPU slices that are described and not there."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import math
import os
import re
from collections.abc import Mapping
from typing import Any

import jax

from sparsity.config import ConfigError

LOCAL = "local"
DESCRIBED = {  # so that libtpu asks no metadata server which TPU this is, and another process may use it too
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


@dataclasses.dataclass(frozen=True)
class Chip:
    """One TPU chip.

    Attributes:
      name: what it is called.
      memory: bytes of its high-bandwidth memory; programs have some hundred megabytes less of it.
      flops: bfloat16 operations a second at most, a multiply-add is 2.
      bandwidth: bytes a second between it and its memory at most.
      axes: of a slice's grid of chips.
      options: what libtpu must be told of it.
    """

    name: str
    memory: int
    flops: float
    bandwidth: float
    axes: int
    options: Mapping[str, str] = dataclasses.field(default_factory=dict)


# Google Cloud's documentation of each generation (docs.cloud.google.com/tpu/docs/v4, v5e, v5p, v6e), as of 2026.
CHIPS = {
    "v4": Chip("TPU v4", 32 << 30, 275e12, 1200e9, 3, {"chip_config_name": "megacore"}),
    "v5e": Chip("TPU v5e", 16 << 30, 197e12, 819e9, 2),
    "v5p": Chip("TPU v5p", 95 << 30, 459e12, 2765e9, 3, {"chip_config_name": "megacore"}),
    "v6e": Chip("TPU v6e", 32 << 30, 918e12, 1638e9, 2),
}
FORMS = ", ".join([LOCAL, *(f"{name}:{'x'.join('XYZ'[: chip.axes])}" for name, chip in CHIPS.items())])


@dataclasses.dataclass(frozen=True)
class Machine:
    """Devices to plan for.

    Attributes:
      name: of all of them.
      devices: what an `Engine` takes; a number where they can only be counted.
      memory: bytes of one device; None where nothing says.
      chip: what they are; None where it is not in `CHIPS`.
      compiler: what compiles for them, and its version; None if that is not to be asked, or not there.
      missing: why there is no compiler; empty if there is one.
    """

    name: str
    devices: list[Any] | int
    memory: int | None
    chip: Chip | None
    compiler: str | None
    missing: str = ""

    @classmethod
    def of(cls, topology: str | None) -> Machine:
        """The machine of the flag --topology; without it the devices at hand, and nothing is to be compiled.

        Raises:
          ConfigError: no such machine.
        """
        if topology is None or topology == LOCAL:
            devices = jax.devices()
            stats = devices[0].memory_stats() or {}
            name = f"{len(devices)} x {devices[0].device_kind}"
            if topology == LOCAL:
                return cls(
                    name, devices, stats.get("bytes_limit"), None, f"jaxlib {importlib.metadata.version('jaxlib')}"
                )
            missing = "--topology=local compiles for these devices, and --topology=v4:4x4x4 or the like for a TPU slice"
            return cls(name, devices, stats.get("bytes_limit"), None, None, missing)
        kind, shape = _parsed(topology)
        chip, count = CHIPS[kind], math.prod(shape)
        name = f"{count} x {chip.name} ({topology})"
        if importlib.util.find_spec("libtpu") is None:
            missing = "libtpu is not installed, the compiler for TPUs: pip install -e '.[tpu]'"
            return cls(name, count, chip.memory, chip, None, missing)
        version = f"libtpu {importlib.metadata.version('libtpu')}"
        return cls(name, _described(topology, shape, chip), chip.memory, chip, version)


def _parsed(topology: str) -> tuple[str, tuple[int, ...]]:
    """The kind of chip and the grid of "v4:4x4x4". Raises ConfigError."""
    found = re.fullmatch(r"(\w+):([1-9]\d*(?:x[1-9]\d*)*)", topology)
    shape = tuple(map(int, found[2].split("x"))) if found else ()
    if not found or found[1] not in CHIPS or len(shape) != CHIPS[found[1]].axes:
        raise ConfigError(f'--topology: unknown "{topology}"; valid: {FORMS} (chips along each axis)')
    return found[1], shape


def _described(topology: str, shape: tuple[int, ...], chip: Chip) -> list[Any]:
    """The chips of a slice, as libtpu describes them. Raises ConfigError if it knows no such slice."""
    from jax.experimental import topologies

    for key, value in DESCRIBED.items():
        os.environ.setdefault(key, value)
    options: dict[str, Any] = dict(chip.options)
    if math.prod(shape) < 4:  # a part of a host
        options["chips_per_host_bounds"] = (*shape, 1)[:3]
    try:
        devices = topologies.get_topology_desc(platform="tpu", topology_name=topology, **options).devices
    except Exception as error:  # libtpu raises nothing narrower
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"--topology: libtpu knows no slice {topology} ({reason}); valid: {FORMS}") from error
    if len(devices) != math.prod(shape):
        raise ConfigError(f"--topology: libtpu describes {len(devices)} devices as {topology}")
    return list(devices)
