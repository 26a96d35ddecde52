"""Several processes that run one program together: how they find one another, agree and end.

They are those of `jax.distributed`, and arrays are shared by collectives of its devices. What else they have to agree
on goes through its key-value store, which needs no device and waits as long as it takes. Every process makes the same
calls in the same order. A process alone needs none of it: nothing is started, and it agrees with itself.
"""

from __future__ import annotations

import ctypes
import dataclasses
import itertools
import json
import os
import re
import signal
import sys
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax._src.distributed import global_state  # its key-value store has no public name
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sparsity.config import ConfigError

T = TypeVar("T")

PEER_DIED = int(signal.SIGABRT)  # exit code where another process died: see `join`

_SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
_OPEN_MPI = ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK")
_PATIENCE = 60_000  # milliseconds that one question to the store waits; it is asked again
_numbers = itertools.count()  # of the questions: the same in every process


class PeerDied(Exception):
    """Another process of the run died or failed, so that this one cannot go on; the message is one line."""


@dataclasses.dataclass(frozen=True)
class Job:
    """Where the processes of a run find one another: as they were told, or (None) as JAX finds out.

    Attributes:
      coordinator: HOST:PORT at which the first process listens.
      processes: how many there are.
      process: which one this is, from 0.
    """

    coordinator: str | None = None
    processes: int | None = None
    process: int | None = None


def find(coordinator: str | None, processes: int | None, process: int | None, environ: Mapping[str, str]) -> Job | None:
    """The job that this process is one of: as given, or on a TPU slice, under SLURM or Open MPI; None if it is alone.

    Raises:
      ConfigError: only some of the three are given, or what cannot be; or Open MPI does not say where it runs.
    """
    given = {"--coordinator": coordinator, "--processes": processes, "--process": process}
    missing = [flag for flag, value in given.items() if value is None]
    if len(missing) < len(given):
        if missing:
            raise ConfigError(f"{missing[0]}: missing; {', '.join(given)} are given together or not at all")
        if not re.fullmatch(r".+:\d+", coordinator):
            raise ConfigError(f'--coordinator: HOST:PORT is needed, got "{coordinator}"')
        if processes < 1:
            raise ConfigError(f"--processes: must be at least 1, got {processes}")
        if not 0 <= process < processes:
            raise ConfigError(f"--process: must be in 0..{processes - 1}, got {process}")
        return Job(coordinator, processes, process) if processes > 1 else None
    if all(name in environ for name in _SLURM):
        return Job() if int(environ["SLURM_NTASKS"]) > 1 else None
    if all(name in environ for name in _OPEN_MPI):
        size = int(environ["OMPI_COMM_WORLD_SIZE"])
        if size > 1 and "OMPI_MCA_orte_hnp_uri" not in environ:  # Open MPI 5 has none
            flags = f"--coordinator=HOST:PORT --processes={size} --process=$OMPI_COMM_WORLD_RANK"
            raise ConfigError(f"Open MPI does not say on which host it began; give {flags}")
        return Job() if size > 1 else None
    return Job() if _on_tpu_slice(environ) else None


def _on_tpu_slice(environ: Mapping[str, str]) -> bool:
    """Whether TPUs of other hosts belong to this one's. On a host with TPUs importing JAX has set a variable."""
    if "tpu" not in environ.get("JAX_PLATFORMS", "tpu"):
        return False
    hosts, slices = environ.get("TPU_WORKER_HOSTNAMES", ""), environ.get("MEGASCALE_NUM_SLICES", "1")
    if not hosts and environ.get("TPU_ML_PLATFORM") == "JAX" and "TPU_SKIP_MDS_QUERY" not in environ:
        hosts = _metadata("worker-network-endpoints", environ)
        found = re.search(r"MEGASCALE_NUM_SLICES: '(\d+)'", _metadata("tpu-env", environ))
        slices = found[1] if found else slices
    return "," in hosts or int(slices) > 1


def _metadata(name: str, environ: Mapping[str, str]) -> str:
    """What Google's metadata server has under `name`; nothing if there is none."""
    host = environ.get("GCE_METADATA_IP", "metadata.google.internal")
    url = f"http://{host}/computeMetadata/v1/instance/attributes/{name}"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers={"Metadata-Flavor": "Google"}), None, 5) as it:
            return it.read().decode()
    except OSError:
        return ""


def join(job: Job, heartbeat: int) -> None:
    """Waits for the other processes of `job`. Call it before anything that needs a device.

    When a process has been silent for `heartbeat` seconds, the runtime ends the others by abort(); they exit with
    `PEER_DIED`. A handler of Python's would never run there: libc's own `_exit` is the handler, and takes the number of
    the signal for its code.

    Raises:
      ConfigError: they were not found.
    """
    # The runtime's handler of SIGTERM would take the place of `train.guard.StopSignals`, and has no Ctrl-C.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(job.coordinator, job.processes, job.process, heartbeat_timeout_seconds=heartbeat)
    except (RuntimeError, ValueError, KeyError) as error:
        raise ConfigError(f"the other processes were not found: {' '.join(str(error).split())}") from error
    libc = ctypes.CDLL(None)
    libc.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
    libc.signal(signal.SIGABRT, ctypes.cast(libc._exit, ctypes.c_void_p))


def several() -> bool:
    """Whether this is one of several processes."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def first() -> bool:
    """Whether this is the process that writes files and speaks: the first of several, or the only one."""
    return not several() or jax.process_index() == 0


def agreed(make: Callable[[], T]) -> T:
    """What `make` gives in the first process (JSON), in every process; only there it is called.

    Raises:
      ConfigError: it raised one; the message is the same everywhere.
      PeerDied: elsewhere, where it raised something else.
    """
    if not several():
        return make()
    key = f"sparsity/agreed/{next(_numbers)}"
    if first():
        try:
            value = make()
        except Exception as error:
            kind = "mistake" if isinstance(error, ConfigError) else "failure"
            global_state.client.key_value_set(key, json.dumps({kind: str(error)}))
            raise
        global_state.client.key_value_set(key, json.dumps({"value": value}))
        return value
    answer = json.loads(_asked(key))
    if "mistake" in answer:
        raise ConfigError(answer["mistake"])
    if "failure" in answer:
        raise PeerDied(f"process 0 failed: {answer['failure']}")
    return answer["value"]


def settled(x: T) -> T:
    """`x`, arrays, on CPUs of several processes when they are computed; for programs that do not wait for each other.

    There an exchange waits in a thread that computes. Of two programs at a time each may hold what the other waits for.
    """
    return jax.block_until_ready(x) if several() and jax.default_backend() == "cpu" else x


def gathered(value: Any) -> list[Any]:
    """The values (JSON) of all processes, in their order."""
    if not several():
        return [value]
    key = f"sparsity/gathered/{next(_numbers)}"
    global_state.client.key_value_set(f"{key}/{jax.process_index()}", json.dumps(value))
    return [json.loads(_asked(f"{key}/{i}")) for i in range(jax.process_count())]


def _asked(key: str) -> str:
    """What stands in the store under `key`, once it does. A process that is waited for in vain ends this one too."""
    while True:
        try:
            return global_state.client.blocking_key_value_get(key, _PATIENCE)
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise PeerDied(f"the first process does not answer: {' '.join(str(error).split())}") from error


def lost(error: Exception) -> bool:
    """Whether a collective failed for want of another process, or of the way to it."""
    signs = ("UNAVAILABLE", "ABORTED", "CANCELLED", "DEADLINE_EXCEEDED", "Gloo", "NCCL", "heartbeat")
    return isinstance(error, jax.errors.JaxRuntimeError) and any(sign in str(error) for sign in signs)


class Anywhere:
    """Whether a flag is set in any process: an all-reduce of one bit a device of `mesh`.

    Asked before a step is dispatched, it is answered before that step has ended: devices work in order.
    """

    def __init__(self, mesh: Mesh):
        self._split = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._any = jax.jit(jnp.any, out_shardings=NamedSharding(mesh, PartitionSpec()))
        self._size = mesh.size

    def ask(self, flag: bool) -> jax.Array:
        """Begins to ask; `jax.device_get` of the result waits for the answer."""
        here = lambda _: np.full(1, flag)
        with jax.transfer_guard_host_to_device("allow"):
            return settled(self._any(jax.make_array_from_callback((self._size,), self._split, here)))


def said_by_first(message: str, seconds: float = 5.0) -> bool:
    """Whether the first process says the same `message` within `seconds`: then the others need not."""
    key = "sparsity/said"
    if first():
        if several():
            global_state.client.key_value_set(key, message, allow_overwrite=True)
        return False
    try:
        return global_state.client.blocking_key_value_get(key, int(1000 * seconds)) == message
    except jax.errors.JaxRuntimeError:
        return False


def leave(code: int, seconds: float) -> None:
    """Waits until all processes leave, `seconds` at most; then it ends this one at once, with exit code `code`.

    A process that leaves alone would wait in vain for the others, and they for it: without it they end by themselves.
    """
    if not several():
        return
    try:
        global_state.client.wait_at_barrier("sparsity/leave", int(1000 * seconds))
    except jax.errors.JaxRuntimeError:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
