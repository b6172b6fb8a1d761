"""NumPy's files as they may come from a stranger: no objects, and no more memory than the file is large.

`np.load` allocates what a header claims before it reads a number, so that a hundred bytes can ask for a terabyte; and
an archive's compressed members can be a thousand times as large as the file. Here headers are compared first: with the
bytes that are there, and with what the reader expects.
"""

import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from data.dataset import Arrays

Like = Mapping[str, tuple[tuple[int | None, ...], np.dtype]]  # shapes and types by name; None is any length
READERS: Any = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def read_npz(path: Path, like: Like) -> Arrays:
    """The arrays of an archive that `np.savez` wrote. They may be fewer than those in `like`.

    Raises:
      FileNotFoundError: there is none.
      ValueError, OSError, zipfile's own: it is no such archive, or holds anything else; nothing has been allocated.
    """
    with zipfile.ZipFile(path) as archive:
        found: Arrays = {}
        for member in archive.infolist():
            name = member.filename.removesuffix(".npy")
            if name not in like:
                raise ValueError(f"it holds {name!r}, which is none of {', '.join(like)}")
            if member.file_size > path.stat().st_size:
                raise ValueError(f"{name} is larger than the file that it is in")
            with archive.open(member) as file:
                shape, dtype = _header(file, member.file_size)
            wanted, kind = like[name]
            if dtype != kind or len(shape) != len(wanted) or any(w not in (None, n) for n, w in zip(shape, wanted)):  # noqa: B905, of one length
                raise ValueError(f"{name} is {dtype}{list(shape)} in it, not {kind}{list(wanted)}")
            with archive.open(member) as file:
                found[name] = np.lib.format.read_array(file, allow_pickle=False)
        return found


def write_npz(path: Path, arrays: Mapping[str, Any]) -> None:
    """An archive of arrays, whole or not at all, whatever ends the process: one that is there stays until then."""
    path = path.resolve()  # where there is a link, it is followed and stays
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        np.savez(file, **arrays)
    part.replace(path)


def read_npy(path: Path) -> np.ndarray:
    """The one array of a .npy file, of whole or real numbers.

    Raises:
      FileNotFoundError: there is none.
      ValueError, OSError: it is no such file; nothing has been allocated.
    """
    with path.open("rb") as file:
        dtype = _header(file, path.stat().st_size)[1]
    if dtype.kind not in "biuf":
        raise ValueError(f"it holds {dtype}, and not numbers")
    return np.load(path, allow_pickle=False)


def _header(file: Any, size: int) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of the array in an open file of so many bytes, which has room for it and no more."""
    version = np.lib.format.read_magic(file)
    if version not in READERS:
        raise ValueError(f"it is of version {version} of the format")
    shape, _, dtype = READERS[version](file)
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which are never loaded")
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != size - file.tell():
        raise ValueError(f"its header claims {dtype}{list(shape)}, and {size - file.tell()} bytes follow")
    return shape, dtype
