"""Checkpoints that are known to be what was saved: orbax's CheckpointManager, and a digest of every array beside them.

Orbax stores no checksum of its arrays: a flipped bit is restored without a word. A digest of each array is computed
where it lies when it is saved, and again when it is restored. A checkpoint that is not what was saved is named and set
aside, and the one before it is used; renamed back to its number it would be looked at again.

Several processes save and restore together, each the parts of its devices, in a directory that all of them see: they
make the same calls. What one of them cannot read is damaged for all, and the first one renames and speaks.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import itertools
import json
import math
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from sparsity import distributed
from sparsity.config import ConfigError, no_room

T = TypeVar("T")

ASIDE = "damaged-"  # before the step, in the name of a checkpoint that was set aside
_STATE, _META = "state", "meta"  # orbax's items
_DIGESTS, _SEAL = "digests", "seal"  # keys of the second, beside the caller's
_MASK = (1 << 32) - 1
# What a sound checkpoint may raise on a bad day: it is not for that set aside.
_PASSING = ("RESOURCE_EXHAUSTED", "PERMISSION_DENIED", "UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED", "ABORTED")
_LASTING = (None, errno.ENOENT, errno.ENOTDIR, errno.EISDIR)


class CheckpointError(ConfigError):
    """A checkpoint that cannot be used: the message is one line, fit to be printed alone."""


class DamagedError(CheckpointError):
    """It is damaged, and there is no other that will do."""


def to_stderr(line: str) -> None:
    """Says a line to the user."""
    print(line, file=sys.stderr, flush=True)


class Checkpoints:
    """The checkpoints of one run: saved in the background, the last `keep` kept.

    Use as a context manager: leaving waits for the save under way. `read_only` changes nothing on
    disk, not even the half-written checkpoint of a run that is still training; without it, what a
    kill left half-written is removed.

    Args:
      say: told, in a line, of each checkpoint that is damaged.
    """

    def __init__(
        self,
        directory: Path,
        keep: int = 2,
        *,
        read_only: bool = False,
        say: Callable[[str], None] = to_stderr,
    ):
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, cleanup_tmp_directories=not read_only, read_only=read_only
        )
        self._directory, self._read_only, self._say = Path(directory).absolute(), read_only, say
        self._manager = self._reader = ocp.CheckpointManager(self._directory, options=options)
        if distributed.several():
            self._reader = ocp.CheckpointManager(self._directory, options=_alone())

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: object) -> None:
        with self._saving():
            try:
                self._manager.wait_until_finished()
            finally:
                self._manager.close()
                if self._reader is not self._manager:
                    self._reader.close()

    def save(self, step: int, state: Any, meta: dict[str, Any]) -> None:
        """Starts saving `state` (a pytree of arrays) with `meta` (JSON) beside it; a step is saved once.

        Raises:
          CheckpointError: there is no room for it, say, or was none for the one before it; now, or at the next save,
            or on leaving. Those that were saved whole stay.
        """
        if step in self._manager.all_steps():
            return
        args = {
            _STATE: ocp.args.StandardSave(state),
            _META: ocp.args.JsonSave(_sealed(meta | {_DIGESTS: digests(state)})),
        }
        with self._saving():
            self._manager.save(step, args=ocp.args.Composite(**args))

    @contextlib.contextmanager
    def _saving(self) -> Iterator[None]:
        """Says in a line that the disk does not take a checkpoint: of which step, only orbax knows."""
        try:
            yield
        except Exception as error:  # orbax hands on what tensorstore or the system raised
            if not (why := no_room(error)):
                raise
            said = f"{why}: {_in_a_line(error)}"
            raise CheckpointError(
                f"checkpoints {self._directory}: one cannot be written ({said}); those before it stay"
            ) from error

    def latest(self) -> int | None:
        """The last step saved whole, damaged or not, or None."""
        return distributed.agreed(self._manager.latest_step)

    def steps(self) -> list[int]:
        """The steps saved whole, damaged or not, in order."""
        return sorted(self._manager.all_steps())

    def restore(self, abstract_state: Any, step: int | None = None) -> Any:
        """The state saved at `step`, by default at the latest whose arrays are what was saved, onto its shardings.

        Damaged ones that are found on the way are set aside, called "damaged-STEP", unless they are only read. Those
        of before there were digests are taken as they are.

        Args:
          abstract_state: a pytree of `jax.ShapeDtypeStruct` with shardings; any mesh will do.

        Raises:
          FileNotFoundError: there is no checkpoint, or not the one that was asked for.
          DamagedError: all of them are damaged, or the one that was asked for is.
          CheckpointError: they hold another state.
        """
        self._manager.wait_until_finished()  # one that is being saved is listed before it is there
        there = distributed.agreed(lambda: sorted(self._manager.all_steps(), reverse=True))
        steps = there if step is None else [step]
        if not there or step not in (None, *there):
            which = "no checkpoint" if step is None else f"no checkpoint {step}"
            raise FileNotFoundError(f"{which} in {self._directory}")
        damaged = {}
        for one in steps:
            try:
                state = self._restored(one, abstract_state)
            except _Damaged as error:
                damaged[one] = str(error)
            if one in damaged:
                gc.collect()  # what was read of it, before as much is read again
                continue
            self._set_aside(damaged, one)
            return state
        why = "; ".join(f"{one}: {reason}" for one, reason in damaged.items())
        which = "all of them are" if step is None else "the one asked for is"
        raise DamagedError(f"checkpoints {self._directory}: {which} damaged ({why})")

    def _set_aside(self, damaged: Mapping[int, str], used: int) -> None:
        """Says which checkpoints are damaged, and renames them, so that nothing takes them for whole again."""

        def rename() -> None:
            for one, reason in damaged.items():
                self._say(f"checkpoints {self._directory}: {one} is damaged ({reason}); {used} is used")
                if not self._read_only:
                    self._rename(one)

        distributed.agreed(rename)
        if damaged and not self._read_only:
            self._manager.reload()

    def _rename(self, step: int) -> None:
        """Takes a checkpoint's number from it. Raises CheckpointError if that cannot be done."""
        place = self._directory / f"{ASIDE}{step}"
        number = next(n for n in itertools.count() if not _numbered(place, n).exists())
        try:
            (self._directory / str(step)).rename(_numbered(place, number))
        except OSError as error:
            raise CheckpointError(
                f"checkpoints {self._directory}: {step} is damaged, and cannot be set aside ({error.strerror})"
            ) from error

    def _restored(self, step: int, abstract_state: Any) -> Any:
        """The state of one checkpoint. Raises _Damaged if it is not what was saved."""
        saved = _alike(lambda: self._saved_digests(step))
        if saved is not None:
            self._refuse_other(step, saved, abstract_state)
        state = _alike(lambda: self._read(step, _STATE, ocp.args.StandardRestore(abstract_state)))
        if saved is None:
            return state
        found = digests(state)
        wrong = [name for name in saved if found.get(name) != saved[name]]
        if wrong:
            raise _Damaged(f"not as it was saved: {wrong[0]}{f' and {len(wrong) - 1} more' if len(wrong) > 1 else ''}")
        return state

    def _saved_digests(self, step: int) -> dict[str, str] | None:
        """The digests that stand beside a state; None of a checkpoint of before there were any."""
        with _damaged_if_it_fails():
            meta = self._read(step, _META, ocp.args.JsonRestore())
            if _DIGESTS not in meta and _SEAL not in meta:
                return None
            seal = meta.pop(_SEAL, None)
            if _sealed(meta)[_SEAL] != seal:
                raise _Damaged("not as they were saved: config and digests")
            if not all(isinstance(entry, str) for entry in meta[_DIGESTS].values()):
                raise _Damaged("its digests are none")
            return meta[_DIGESTS]

    def _read(self, step: int, item: str, args: Any) -> Any:
        """One item of a checkpoint. Raises _Damaged if it cannot be read."""
        with _damaged_if_it_fails():
            return self._reader.restore(step, args=ocp.args.Composite(**{item: args}))[item]

    def _refuse_other(self, step: int, saved: Mapping[str, str], abstract_state: Any) -> None:
        """Raises CheckpointError if the arrays that were saved are not those that are asked for."""
        asked = {name: _kind(leaf) for name, leaf in _named(abstract_state)}
        stored = {name: entry.partition(" ")[0] for name, entry in saved.items()}
        differing = sorted(name for name in asked.keys() | stored.keys() if asked.get(name) != stored.get(name))
        if differing:
            name = differing[0]
            there, here = (of.get(name, "none") for of in (stored, asked))
            raise CheckpointError(
                f"checkpoints {self._directory}: {step} is of another model, {name}: {there} there, {here} asked for"
            )


class _Damaged(Exception):
    """A checkpoint is not what was saved; the message says what of it."""


@contextlib.contextmanager
def _damaged_if_it_fails() -> Iterator[None]:
    """Whatever orbax raises of a checkpoint says that it is damaged, but for what may pass."""
    try:
        yield
    except (_Damaged, MemoryError):
        raise
    except Exception as error:  # damaged files make orbax and tensorstore raise anything
        lasting = not isinstance(error, OSError) or error.errno in _LASTING
        if not lasting or any(status in str(error) for status in _PASSING):
            raise
        raise _Damaged(f"it cannot be read: {type(error).__name__}: {_in_a_line(error)}") from error


def _in_a_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) < 200 else f"{text[:80]} ... {text[-100:]}"  # the cause stands there mostly


def _alone() -> ocp.CheckpointManagerOptions:
    """Of a manager that reads for this process alone: it waits for no other, which might fail where it does not."""
    me = jax.process_index()
    among = ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process {me}"
    )
    return ocp.CheckpointManagerOptions(read_only=True, create=False, multiprocessing_options=among)


def _alike(read: Callable[[], T]) -> T:
    """What `read` gives in each process. Raises _Damaged in all of them if it does in one."""
    value, reason = None, None
    try:
        value = read()
    except _Damaged as error:
        reason = str(error)
    for one in distributed.gathered(reason):
        if one is not None:
            raise _Damaged(one)
    return value


def _numbered(place: Path, number: int) -> Path:
    return place if not number else place.with_name(f"{place.name}-{number}")


def digests(state: Any) -> dict[str, str]:
    """Of each array of a pytree, by its path: "float32[8,3] 0123456789abcdef", its dtype, shape and digest.

    A digest is two sums, mod 2^32, over all 32-bit words of an array, of a word and its place, mixed (MurmurHash3's
    finaliser, Appleby 2011). It is the same however the array is sharded, and on any backend. One changed word changes
    both sums for certain, since mixing is one to one; of many, one array in 2^64 keeps them. Places count mod 2^32.
    """
    named = _named(state)
    sums = jax.device_get([distributed.settled(_sums_of(leaf)) for _, leaf in named])
    return {name: f"{_kind(leaf)} {a:08x}{b:08x}" for (name, leaf), (a, b) in zip(named, sums, strict=True)}


def _named(state: Any) -> list[tuple[str, Any]]:
    return [
        (jax.tree_util.keystr(path, simple=True, separator="/"), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    ]


def _kind(leaf: Any) -> str:
    return f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"


def _sums_of(leaf: Any) -> tuple[Any, Any]:
    """Both sums of an array, where it lies; on a CPU by NumPy, for which nothing has to be compiled."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    if isinstance(leaf, jax.Array) and leaf.is_fully_addressable and jax.default_backend() == "cpu":
        leaf = jax.device_get(leaf)
    return _compiled_sums(leaf) if isinstance(leaf, jax.Array) else _sums(np.asarray(leaf), np)


@jax.jit  # one program a shape: one of all arrays would take minutes to compile
def _compiled_sums(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return _sums(x, jnp)


def _sums(x: Any, xp: ModuleType) -> tuple[Any, Any]:
    word = _words(x, xp)
    word = word.reshape(word.shape or (1,))
    place = xp.zeros((1,) * word.ndim, xp.uint32)
    for axis, size in enumerate(word.shape):
        along = xp.arange(size, dtype=xp.uint32) * xp.uint32(math.prod(word.shape[axis + 1 :]) & _MASK)
        place = place + along.reshape((size, *(1,) * (word.ndim - axis - 1)))
    mixed = (_mixed(word * xp.uint32(_ODD) + place * xp.uint32(step) + xp.uint32(step), xp) for step in _STEPS)
    first, second = (xp.sum(m, dtype=xp.uint32) for m in mixed)
    return first, second


_ODD, _STEPS = 0x9E3779B1, (0x85EBCA77, 0xC2B2AE3D)


def _words(x: Any, xp: ModuleType) -> Any:
    """The bits of an array, each number as one uint32, or along a last axis two.

    Raises:
      TypeError: numbers of less than a byte, or complex ones.
    """
    if x.dtype == bool:
        return x.astype(xp.uint32)
    if jnp.issubdtype(x.dtype, jnp.complexfloating) or _bits(x.dtype) < 8:
        raise TypeError(f"checkpoints: there is no digest of {x.dtype} arrays")
    size = x.dtype.itemsize
    unsigned = {1: xp.uint8, 2: xp.uint16}.get(size, xp.uint32)
    if xp is jnp:
        return jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)
    words = np.ascontiguousarray(x).view(unsigned).astype(np.uint32, copy=False)
    return words.reshape(*x.shape, 2) if size == 8 else words.reshape(x.shape)


def _bits(dtype: Any) -> int:
    return (jnp.finfo if jnp.issubdtype(dtype, jnp.floating) else jnp.iinfo)(dtype).bits


def _mixed(word: Any, xp: ModuleType) -> Any:
    word = (word ^ (word >> 16)) * xp.uint32(0x85EBCA6B)
    word = (word ^ (word >> 13)) * xp.uint32(0xC2B2AE35)
    return word ^ (word >> 16)


def _sealed(meta: Mapping[str, Any]) -> dict[str, Any]:
    """What stands beside a state, and a checksum of it."""
    return {**meta, _SEAL: zlib.crc32(json.dumps(meta, sort_keys=True).encode())}
