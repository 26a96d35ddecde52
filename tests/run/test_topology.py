import importlib.util

import jax
import pytest

from sparsity.config import ConfigError
from sparsity.run.topology import CHIPS, Machine


@pytest.mark.parametrize(
    "topology", ["v4", "v4:4x4", "v5e:4x4x4", "v7:2x2", "v5e:0x4", "v5e:4 x 4", "bogus", "", "v4:4x4x4x1"]
)
def test_an_unknown_topology_is_one_line_with_the_valid_forms(topology):
    with pytest.raises(ConfigError) as error:
        Machine.of(topology)
    assert str(error.value) == (
        f'--topology: unknown "{topology}"; valid: local, v4:XxYxZ, v5e:XxY, v5p:XxYxZ, v6e:XxY (chips along each axis)'
    )


def test_without_libtpu_chips_are_counted_and_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    machine = Machine.of("v5p:4x4x8")
    assert (machine.devices, machine.memory, machine.compiler) == (128, 95 << 30, None)
    assert "pip install -e '.[tpu]'" in machine.missing
    assert machine.name == "128 x TPU v5p (v5p:4x4x8)"


def test_the_devices_at_hand_are_not_compiled_for_unless_asked():
    plain, local = Machine.of(None), Machine.of("local")
    assert plain.devices == local.devices == jax.devices()
    assert plain.compiler is None
    assert "--topology=local" in plain.missing
    assert local.compiler.startswith("jaxlib 0.")


def test_chips_are_faster_than_their_memory_by_some_hundred_operations_a_byte():
    for chip in CHIPS.values():
        assert 150 < chip.flops / chip.bandwidth < 600


@pytest.mark.aot
@pytest.mark.parametrize(
    ("topology", "count"), [("v4:4x4x4", 64), ("v5e:8x8", 64), ("v5p:2x2x2", 8), ("v6e:4x4", 16), ("v5e:1x1", 1)]
)
def test_libtpu_describes_one_device_a_chip(tpu_slice, topology, count):
    machine = Machine.of(topology)
    assert len(machine.devices) == count
    assert machine.compiler.startswith("libtpu ")
    assert machine.chip.name.split()[1] in ("v4", "v5e", "v5p", "v6e")


@pytest.mark.aot
def test_a_slice_that_libtpu_does_not_know_is_one_line(tpu_slice):
    with pytest.raises(ConfigError, match=r"^--topology: libtpu knows no slice v4:3x5x7 \(.*\); valid: local, v4:"):
        Machine.of("v4:3x5x7")
