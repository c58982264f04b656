"""Reads and writes files of `torch.save` without PyTorch, and without running anything that a file says.

Both containers are pickles around raw bytes: since PyTorch 1.6 in a zip archive, before in one stream. Formats:
https://pytorch.org/docs/stable/notes/serialization.html and `torch/serialization.py`.
"""

from __future__ import annotations

import io
import math
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001

_STORAGE_DTYPES: dict[str, Any] = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
# What training frameworks keep beside the weights. It is read as an object without content; none of its code is called.
_IGNORED_PACKAGES = (
    "argparse", "lightning", "lightning_fabric", "lightning_utilities", "minestudio", "numpy", "omegaconf", "pathlib",
    "pytorch_lightning", "torch", "typing",
)  # fmt: skip


class UnsafeFileError(ValueError):
    """A file asks for something to be called that weight files have no use for."""


class _Ignored:
    """Stands for an object that is not looked at."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass

    def append(self, _: Any) -> None:
        pass

    def extend(self, _: Any) -> None:
        pass

    def __setitem__(self, _: Any, __: Any) -> None:
        pass


class _PlainUnpickler(pickle.Unpickler):
    """Builds containers, numbers and strings, and nothing else."""

    def __init__(self, file: Any, path: Path, known: Mapping[tuple[str, str], Any]) -> None:
        super().__init__(file, encoding="latin-1")
        self._path, self._known = path, known

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in self._known:
            return self._known[module, name]
        raise UnsafeFileError(
            f"{self._path} refers to {module}.{name}, which a file of weights or sizes has no use for: it was not "
            "opened any further, and nothing of it was run"
        )


class _TensorUnpickler(_PlainUnpickler):
    """Also builds tensors, as NumPy arrays, from storages that `find_storage` knows."""

    def __init__(self, file: Any, path: Path, find_storage: Callable[[Any], Any]) -> None:
        super().__init__(file, path, _TENSOR_CLASSES)
        self._find_storage = find_storage

    def find_class(self, module: str, name: str) -> Any:
        known = self._known.get((module, name))
        if known is not None:
            return known
        if module == "torch" and name in _STORAGE_DTYPES:
            return np.dtype(_STORAGE_DTYPES[name])
        if module.split(".")[0] in _IGNORED_PACKAGES:
            return _Ignored
        return super().find_class(module, name)

    def persistent_load(self, pid: Any) -> Any:
        return self._find_storage(pid)


class _LazyTensor:
    """A tensor whose storage follows later in the file."""

    def __init__(self, storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> None:
        self.storage, self.offset, self.size, self.stride = storage, offset, size, stride

    def array(self, data: np.ndarray) -> np.ndarray:
        steps = [s * data.itemsize for s in self.stride]
        last = self.offset + sum((n - 1) * s for n, s in zip(self.size, self.stride, strict=True))
        if math.prod(self.size) and not (self.offset >= 0 and min(self.stride, default=0) >= 0 and last < data.size):
            raise ValueError(f"a tensor of shape {list(self.size)} reaches beyond its storage of {data.size} numbers")
        view = np.lib.stride_tricks.as_strided(data[self.offset :], self.size, steps, writeable=False)
        return np.ascontiguousarray(view).reshape(self.size)


def _rebuild_tensor(storage: Any, offset: int, size: Any, stride: Any, *_: Any) -> _LazyTensor:
    return _LazyTensor(storage, offset, tuple(size), tuple(stride))


def _rebuild_parameter(data: Any, *_: Any) -> Any:
    return data


_TENSOR_CLASSES: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch", "Size"): tuple,
    ("builtins", "set"): set,
    ("collections", "defaultdict"): _Ignored,
    ("collections", "Counter"): _Ignored,
}


def read_plain_pickle(path: Path) -> Any:
    """A pickle of nothing but containers, numbers and strings.

    Raises:
      UnsafeFileError: it holds anything else.
      ValueError: it is not a pickle.
    """
    with open(path, "rb") as file:
        try:
            return _PlainUnpickler(file, path, {("collections", "OrderedDict"): OrderedDict}).load()
        except UnsafeFileError:
            raise
        except Exception as error:  # whatever a pickle's bytes may lead to
            raise ValueError(f"{path} is not a readable pickle: {_in_one_line(error)}") from error


def read_torch_file(path: Path) -> Any:
    """What was saved, with NumPy arrays for tensors; other objects than containers, numbers and strings are empty.

    Raises:
      UnsafeFileError: the file refers to code that weights have no use for.
      ValueError: it is no such file, or damaged.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                return _read_archive(archive, path)
        with open(path, "rb") as file:
            return _read_stream(file, path)
    except UnsafeFileError:
        raise
    except (OSError, MemoryError):
        raise
    except Exception as error:  # whatever a damaged file may lead to
        raise ValueError(f"{path} is not a readable file of torch.save: {_in_one_line(error)}") from error


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _read_archive(archive: zipfile.ZipFile, path: Path) -> Any:
    pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise ValueError(f"it holds {len(pickles)} data.pkl instead of one")
    prefix = pickles[0].removesuffix("data.pkl")
    order = "little"
    if prefix + "byteorder" in archive.namelist():
        order = archive.read(prefix + "byteorder").decode().strip()
    storages: dict[str, np.ndarray] = {}

    def find_storage(pid: Any) -> np.ndarray:
        kind, dtype, key, _, numel = pid
        if kind != "storage":
            raise ValueError(f"unknown reference {kind!r}")
        if key not in storages:
            storages[key] = _numbers(archive.read(f"{prefix}data/{key}"), dtype, order)
        if storages[key].size < numel:
            raise ValueError(f"storage {key} holds {storages[key].size} numbers instead of {numel}")
        return storages[key]

    saved = _TensorUnpickler(io.BytesIO(archive.read(pickles[0])), path, find_storage).load()
    return _with_arrays(saved, lambda storage: storage)


def _read_stream(file: BinaryIO, path: Path) -> Any:
    if _plain(file, path) != _LEGACY_MAGIC or _plain(file, path) != _LEGACY_PROTOCOL:
        raise ValueError("it has neither container of torch.save")
    order = "little" if _plain(file, path).get("little_endian", True) else "big"
    dtypes: dict[str, Any] = {}

    def find_storage(pid: Any) -> str:
        kind, dtype, key, _, _, view = pid
        if kind != "storage" or view is not None:
            raise ValueError(f"unknown reference {kind!r}")
        dtypes[key] = dtype
        return str(key)

    saved = _TensorUnpickler(file, path, find_storage).load()
    storages = {}
    for key in _plain(file, path):
        (count,) = struct.unpack("<q" if order == "little" else ">q", file.read(8))
        storages[key] = _numbers(file.read(count * dtypes[key].itemsize), dtypes[key], order)
        if storages[key].size != count:
            raise ValueError(f"storage {key} ends after {storages[key].size} of {count} numbers")
    return _with_arrays(saved, storages.__getitem__)


def _plain(file: BinaryIO, path: Path) -> Any:
    return _PlainUnpickler(file, path, {}).load()


def _numbers(data: bytes, dtype: np.dtype, order: str) -> np.ndarray:
    numbers = np.frombuffer(data[: len(data) // dtype.itemsize * dtype.itemsize], dtype)
    return numbers if order == "little" else numbers.byteswap()


def _with_arrays(saved: Any, storage_of: Callable[[Any], np.ndarray]) -> Any:
    """Containers rebuilt with arrays in the tensors' places."""
    if isinstance(saved, _LazyTensor):
        return saved.array(storage_of(saved.storage))
    if isinstance(saved, Mapping):
        return {key: _with_arrays(value, storage_of) for key, value in saved.items()}
    if isinstance(saved, (list, tuple)):
        return [_with_arrays(value, storage_of) for value in saved]
    return saved


def write_torch_file(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """A state dict as `torch.save` writes it since 1.6: float32 tensors under their names, in this order."""
    program = io.BytesIO()
    program.write(pickle.PROTO + b"\x02")
    _empty_ordered_dict(program)
    program.write(pickle.MARK)
    arrays = [np.ascontiguousarray(tensor, np.dtype("<f4")).reshape(np.shape(tensor)) for tensor in tensors.values()]
    for key, (name, array) in enumerate(zip(tensors, arrays, strict=True)):
        _text(program, name)
        _global(program, "torch._utils", "_rebuild_tensor_v2")
        program.write(pickle.MARK + pickle.MARK)
        _text(program, "storage")
        _global(program, "torch", "FloatStorage")
        _text(program, str(key))
        _text(program, "cpu")
        _integers(program, array.size)
        program.write(pickle.TUPLE + pickle.BINPERSID)
        _integers(program, 0)
        for numbers in (array.shape, [s // array.itemsize for s in array.strides]):
            program.write(pickle.MARK)
            _integers(program, *numbers)
            program.write(pickle.TUPLE)
        program.write(pickle.NEWFALSE)
        _empty_ordered_dict(program)  # of the backward hooks
        program.write(pickle.TUPLE + pickle.REDUCE)
    program.write(pickle.SETITEMS + pickle.STOP)
    part = path.with_name(path.name + ".part")
    with zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", program.getvalue())
        archive.writestr("archive/byteorder", "little")
        for key, array in enumerate(arrays):
            archive.writestr(f"archive/data/{key}", array.tobytes())
        archive.writestr("archive/version", "3\n")
    part.replace(path)


def _empty_ordered_dict(program: BinaryIO) -> None:
    _global(program, "collections", "OrderedDict")
    program.write(pickle.EMPTY_TUPLE + pickle.REDUCE)


def _global(program: BinaryIO, module: str, name: str) -> None:
    program.write(pickle.GLOBAL + f"{module}\n{name}\n".encode())


def _text(program: BinaryIO, text: str) -> None:
    program.write(pickle.BINUNICODE + struct.pack("<I", len(text.encode())) + text.encode())


def _integers(program: BinaryIO, *numbers: int) -> None:
    for number in numbers:
        program.write(pickle.BININT + struct.pack("<i", number))
