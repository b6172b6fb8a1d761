"""Reads tensors from a file of `torch.save`, without PyTorch and without executing anything of it.

Since PyTorch 1.6 such a file is a zip: `NAME/data.pkl`, a pickle of the dictionary in which tensors are (storage,
offset, size, stride), and the storages' bytes, `NAME/data/0`, `NAME/data/1`, …

Before, five pickles stood one behind another: a number that marks the format, its version, the machine's sizes of
numbers, the dictionary, and the keys of the storages. The storages follow in the order of the keys: the count of their
numbers, in 8 bytes, and the numbers; all little-endian.

A pickle is a program that may call any function it names. Here it may name an ordered dictionary, the function that
makes a tensor of a storage, and the types of storages; none of the three is PyTorch's, and every other name is refused.
"""

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from data.dataset import MissingDataError

STORAGES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": jnp.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
MAGIC = 0x1950A86A20F9469CFC6C  # marks the format of before PyTorch 1.6
VERSION = 1001  # of it, the only one


class _Tensor:
    """Stands for `torch._utils._rebuild_tensor_v2`. Without attributes, so that no pickle can set one."""

    __slots__ = ()

    def __call__(self, storage: Any, offset: int, size: Any, stride: Any, *_: Any) -> np.ndarray:
        if not isinstance(storage, np.ndarray) or len(size) != len(stride) or min((offset, *size, *stride)) < 0:
            raise ValueError("a tensor is not what PyTorch writes")
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if 0 not in size and last >= len(storage):
            raise ValueError("a tensor is larger than its storage")
        # A view: a stride of 0 makes a tensor of any size from a few bytes.
        strides = tuple(step * storage.itemsize for step in stride)
        return np.lib.stride_tricks.as_strided(storage[offset:], tuple(size), strides, writeable=False)


class _RefusedError(Exception):
    """The pickle names what it may not."""


class _Reader(pickle.Unpickler):
    """`storage` finds a storage by its key, type of number and length. Without it, a pickle may hold none."""

    def __init__(self, file: Any, storage: Callable[[str, np.dtype, int], np.ndarray] | None = None) -> None:
        super().__init__(file)
        self.storage = storage

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _Tensor()
        if module == "torch" and name in STORAGES:
            return name
        raise _RefusedError(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> np.ndarray:
        kind, name, key, _, length, *part = pid
        if kind != "storage" or self.storage is None:
            raise _RefusedError(str(kind))
        found = self.storage(key, np.dtype(STORAGES[name]), length)
        if part and part[0] is not None:  # in old files a storage may be a part of another
            _, offset, length = part[0]
            found = found[offset : offset + length]
        return found


def _zipped(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        names = [name.removesuffix("/data.pkl") for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(names) != 1:
            raise ValueError("a zip archive without the one data.pkl of torch.save")
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise ValueError("its parts are compressed, which torch.save's are not: they may be of any size")
        order = f"{names[0]}/byteorder"
        big = order in archive.namelist() and archive.read(order) == b"big"

        def storage(key: str, dtype: np.dtype, length: int) -> np.ndarray:
            entry = archive.getinfo(f"{names[0]}/data/{key}")
            if entry.file_size != length * dtype.itemsize:
                raise ValueError(f"storage {key} has {entry.file_size} bytes, not {length * dtype.itemsize}")
            return np.frombuffer(archive.read(entry), dtype.newbyteorder(">" if big else "<"))

        with archive.open(f"{names[0]}/data.pkl") as file:
            return _Reader(file, storage).load()


def _legacy(path: Path) -> Any:
    """Of a file in the format of before PyTorch 1.6."""
    storages: dict[str, np.ndarray] = {}
    room = path.stat().st_size

    def storage(key: str, dtype: np.dtype, length: int) -> np.ndarray:
        """Zeros: that part of the file is read last, and into them."""
        nonlocal room
        if key not in storages:
            room -= length * dtype.itemsize
            if length < 0 or room < 0:
                raise ValueError(f"storage {key}, of {length} numbers, is larger than the file")
            storages[key] = np.zeros(length, dtype.newbyteorder("<"))
        found = storages[key]
        if (found.dtype, len(found)) != (dtype, length):
            raise ValueError(f"storage {key} is of two types or lengths")
        return found

    with path.open("rb") as file:
        _, version, _ = (_Reader(file).load() for _ in range(3))
        if version != VERSION:
            raise ValueError(f"it is of version {version} of the format, not {VERSION}")
        found = _Reader(file, storage).load()
        keys = _Reader(file).load()
        if sorted(keys) != sorted(storages):
            raise ValueError("its list of storages is not that of its tensors")
        for key in keys:
            numbers, count = storages[key], file.read(8)
            if len(count) == 8 and int.from_bytes(count, "little") != len(numbers):
                raise ValueError(f"storage {key} has {int.from_bytes(count, 'little')} numbers, not {len(numbers)}")
            content = file.read(numbers.nbytes)
            if len(count) < 8 or len(content) < numbers.nbytes:
                raise ValueError(f"it ends within storage {key}")
            numbers[:] = np.frombuffer(content, numbers.dtype)
            numbers.setflags(write=False)
    return found


def _begins_as_legacy(path: Path) -> bool:
    with path.open("rb") as file:
        try:
            return _Reader(file).load() == MAGIC
        except _RefusedError:
            raise
        except Exception:  # what bytes that are no pickle raise is promised by nobody
            return False


def _tensors(found: Any) -> dict[str, np.ndarray]:
    if not isinstance(found, dict):
        raise ValueError(f"it holds a {type(found).__name__}, not a dictionary of tensors")
    items = list(dict.items(found))  # a pickle can have given the dictionary `items` of its own
    other = [repr(name) for name, value in items if not isinstance(value, np.ndarray)]
    if other:
        raise ValueError(f"it is no dictionary of tensors: its {other[0]} is no tensor")
    return {str(name): value for name, value in items}


def read(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a saved dictionary by their names, as they lie in the file; read-only.

    Raises:
      MissingDataError: there is no such file.
      ValueError: it is no file of `torch.save`, holds anything but tensors, or is damaged.
    """
    if not path.is_file():
        raise MissingDataError(f"there is no file {path}")
    try:
        if zipfile.is_zipfile(path):
            return _tensors(_zipped(path))
        if _begins_as_legacy(path):
            return _tensors(_legacy(path))
    except _RefusedError as error:
        raise ValueError(f"{path} holds {error}, which is refused: only tensors in a dictionary are read") from error
    except Exception as error:  # what a damaged archive or pickle raises is promised by nobody
        raise ValueError(f"{path} cannot be read: {error or type(error).__name__}") from error
    raise ValueError(f"{path} is no file of torch.save: it is no zip archive, nor begins as those before PyTorch 1.6")
