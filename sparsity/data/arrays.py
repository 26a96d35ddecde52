"""The arrays of an .npz file that anybody may have made: none is unpickled, and none is larger than it says.

NumPy's own reader decompresses whatever a file holds before it looks at it, and raises anything of a damaged one.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import jax.numpy as jnp
import numpy as np

from sparsity.config import ConfigError

T = TypeVar("T")
EXPANSION = 32  # times the bytes on disk that arrays may take in memory: weights are random, and hardly compressed
_SMALL = 1 << 26  # bytes that may be had of a file of any size
_ENDING = ".npy"


class Archive:
    """An .npz file, opened; only headers have been read.

    Args:
      path: of the file.
      where: what of the user's names it, for messages: "--path".

    Attributes:
      headers: (shape, dtype) of every array, by name.

    Raises:
      ConfigError: there is no such file, or it is none; two arrays have one name; or they would be many times as large
        as the file, see `check_expansion`.
    """

    def __init__(self, path: str | Path, where: str):
        self.path, self._where = Path(path), where
        if not self.path.is_file():
            raise ConfigError(f"{where}: there is no file {self.path}")
        self.headers: Mapping[str, tuple[tuple[int, ...], np.dtype]] = self._guarded(None, self._open)

    def read(self, name: str) -> np.ndarray:
        """The array `name`. Raises ConfigError if it is damaged."""
        return self._guarded(name, lambda: self._read(name))

    def _open(self) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        self._file = zipfile.ZipFile(self.path)
        members = self._file.infolist()
        check_expansion(sum(member.file_size for member in members), self.path.stat().st_size, self._where, self.path)
        headers = {}
        for member in members:
            name = member.filename.removesuffix(_ENDING)
            if name in headers:
                raise ConfigError(f"{self._where}: {name} is in {self.path} twice")
            headers[name] = self._header(member)
        return headers

    def _header(self, member: zipfile.ZipInfo) -> tuple[tuple[int, ...], np.dtype]:
        """(shape, dtype) of an array. Raises ValueError if it is none, or its shape is not that of its bytes."""
        with self._file.open(member) as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(file)
            size = member.file_size - file.tell()
        if dtype.hasobject:  # pickled, in any number of bytes
            return shape, dtype
        if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != size:
            raise ValueError(f"{member.filename} has {size} bytes, and shape {shape} of {dtype} another number")
        return shape, known(dtype)

    def _read(self, name: str) -> np.ndarray:
        # The member's name is that of its header: no more of it is read than that has shown.
        ending = _ENDING if f"{name}{_ENDING}" in self._file.NameToInfo else ""
        with self._file.open(f"{name}{ending}") as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
        return array.view(known(array.dtype))

    def _guarded(self, name: str | None, read: Callable[[], T]) -> T:
        """What `read` gives. Whatever it raises says that the file is damaged, or none."""
        try:
            return read()
        except (ConfigError, MemoryError):
            raise
        except Exception as error:  # zipfile, zlib and NumPy's parser of headers raise anything
            what = f"{self.path} is no .npz file" if name is None else f"{name} of {self.path} cannot be read"
            raise ConfigError(f"{self._where}: {what} ({error})") from error


def known(dtype: np.dtype) -> np.dtype:
    """The type of numbers that numpy has no name for, and writes as two bytes each: bfloat16."""
    return np.dtype(jnp.bfloat16) if dtype == np.dtype("V2") else dtype


def check_expansion(size: int, stored: int, where: str, path: Path) -> None:
    """That `size` bytes of arrays are not many times those that are `stored` of them: nothing is made of a bomb.

    Raises:
      ConfigError: they are more than 64 MiB, and more than 32 times as many.
    """
    if size > max(_SMALL, EXPANSION * stored):
        raise ConfigError(f"{where}: {path} has {stored} bytes, and its arrays would have {size}: weights have not")
