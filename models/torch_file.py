"""Reads tensors from a file of `torch.save`, without PyTorch and without executing anything of it.

Since PyTorch 1.6 such a file is a zip: `NAME/data.pkl`, a pickle of the dictionary in which tensors are (storage,
offset, size, stride), and the storages' bytes, `NAME/data/0`, `NAME/data/1`, …

A pickle is a program that may call any function it names. Here it may name an ordered dictionary, the function that
makes a tensor of a storage, and the types of storages; none of the three is PyTorch's, and every other name is refused.
"""

import pickle
import zipfile
from collections import OrderedDict
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
LEGACY = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."  # the pickled number that older files begin with


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
    def __init__(self, archive: zipfile.ZipFile, name: str) -> None:
        super().__init__(archive.open(f"{name}/data.pkl"))
        self.archive, self.name = archive, name
        order = f"{name}/byteorder"
        self.big = order in archive.namelist() and archive.read(order) == b"big"

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _Tensor()
        if module == "torch" and name in STORAGES:
            return name
        raise _RefusedError(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> np.ndarray:
        kind, storage, key, _, length = pid
        if kind != "storage":
            raise _RefusedError(str(kind))
        dtype = np.dtype(STORAGES[storage])
        entry = self.archive.getinfo(f"{self.name}/data/{key}")
        if entry.file_size != length * dtype.itemsize:
            raise ValueError(f"storage {key} has {entry.file_size} bytes, not {length * dtype.itemsize}")
        return np.frombuffer(self.archive.read(entry), dtype.newbyteorder(">" if self.big else "<"))


def read(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a saved dictionary by their names, as they lie in the file; read-only.

    Raises:
      MissingDataError: there is no such file.
      ValueError: it is in the format of before PyTorch 1.6, holds anything but tensors, or is damaged.
    """
    if not path.is_file():
        raise MissingDataError(f"there is no file {path}")
    with path.open("rb") as file:
        begin = file.read(len(LEGACY))
    if begin == LEGACY:
        raise ValueError(
            f"{path} is a PyTorch file of the format before version 1.6, which is not read here; where PyTorch is "
            f"installed, convert it: torch.save(torch.load({str(path)!r}, map_location='cpu'), 'converted.pth')"
        )
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is no file of torch.save: it is no zip archive")
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.removesuffix("/data.pkl") for name in archive.namelist() if name.endswith("/data.pkl")]
            if len(names) != 1:
                raise ValueError("a zip archive without the one data.pkl of torch.save")
            found = _Reader(archive, names[0]).load()
    except _RefusedError as error:
        raise ValueError(f"{path} holds {error}, which is refused: only tensors in a dictionary are read") from error
    except Exception as error:  # what a damaged archive or pickle raises is promised by nobody
        raise ValueError(f"{path} cannot be read: {error or type(error).__name__}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds a {type(found).__name__}, not a dictionary of tensors")
    other = [repr(name) for name, value in found.items() if not isinstance(value, np.ndarray)]
    if other:
        raise ValueError(f"{path} is no dictionary of tensors: its {other[0]} is no tensor")
    return {str(name): value for name, value in found.items()}
