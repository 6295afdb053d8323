"""A reader of PyTorch's checkpoints that needs no PyTorch and runs no code from them.

Two formats exist. Since PyTorch 1.6 a checkpoint is a zip archive: `data.pkl` is a pickle whose tensors refer
to storages by key, and `data/<key>` holds the bytes of a storage. Before, it was a sequence of pickles (a
number, a version, facts of the machine, the object, the keys of the storages), after which each storage has
the count of its elements and their bytes.

The unpickler knows tensors, parameters, ordered dictionaries and storages by name. NumPy's objects become
`Inert`: nothing in them is used. Every other class or function is refused, so nothing in a file is ever
called. The bytes of a tensor are read on demand: an optimizer's state next to the weights costs nothing.
"""

import collections
import contextlib
import dataclasses
import io
import math
import pickle
import pickletools
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from flowley_jax.common.files import lfs_note
from flowley_jax.errors import FlowleyError

_STORAGES: Mapping[str, Any] = {
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
_INERT = {
    *(("numpy", name) for name in ("ndarray", "dtype")),
    *(
        (f"numpy.{core}.multiarray", name)
        for core in ("core", "_core")
        for name in ("_reconstruct", "scalar")
    ),
    ("_codecs", "encode"),
}
_OLD_MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
_OLD_VERSION = 1001
_TAR_OFFSET, _TAR_MAGIC = 257, b"ustar"
_COUNT = struct.Struct("<q")


class Inert:
    """A NumPy object of a checkpoint, of which nothing is kept."""

    def __init__(self, *_: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        del state


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class StoredTensor:
    """A tensor of an open checkpoint.

    Attributes:
      read: return its values, as a view of its storage.
    """

    read: Callable[[], np.ndarray]


@contextlib.contextmanager
def open_torch_file(path: Path) -> Iterator[Any]:
    """Open a file of `torch.save` and yield the saved object, with `StoredTensor` instead of tensors.

    What the file says of its sizes is checked against the size of the file before memory is taken. Errors of
    reading a tensor in the block are reported as those of opening.

    Raises:
      FlowleyError: the file is not a PyTorch checkpoint, is damaged, or holds something other than tensors in
        plain containers, which the message names.
    """
    try:
        with open(path, "rb") as file:
            if zipfile.is_zipfile(file):
                with zipfile.ZipFile(file) as archive:
                    yield _read_zip(archive, path)
            elif file.seek(0) == 0 and file.read(len(_OLD_MAGIC)) == _OLD_MAGIC:
                yield _read_old(file, path)
            else:
                raise FlowleyError(
                    wrong_file_message(path)
                    or f"{path}: is not a PyTorch checkpoint, or is truncated (the zip directory is missing)"
                )
    except _Refused as error:
        raise FlowleyError(
            f"{path}: holds {error}, which is not a tensor; the file was not loaded, because that can run "
            "arbitrary code. If you trust it, save only its weights with PyTorch: "
            "torch.save(torch.load(PATH, weights_only=False)['state_dict'], NEW_PATH)"
        ) from error
    except FlowleyError:
        raise
    # A damaged pickle can raise almost anything.
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise FlowleyError(f"{path}: is damaged ({type(error).__name__}: {reason})") from error


def wrong_file_message(path: Path) -> str | None:
    """Return an error message if the first bytes show that a file is not a weight file, or else None.

    The message says what the file is and how to get the right one.
    """
    with open(path, "rb") as file:
        start = file.read(512)
    if not start:
        return f"{path}: is empty"
    if start[_TAR_OFFSET:][:5] == _TAR_MAGIC:
        return (
            f"{path}: is a tar archive, perhaps of PyTorch before version 0.1.10; load and save it again "
            "with PyTorch: torch.save(torch.load(PATH, weights_only=True), NEW_PATH)"
        )
    if note := lfs_note(path):
        return f"{path}: is not a weight file; {note}"
    if start.lstrip()[:1] in (b"<", b"{"):
        shown = start.lstrip()[:20]
        return f"{path}: is text ({shown!r}), perhaps an error page; download the file again"
    return None


class _Refused(Exception):
    """Reference of a pickle to a class or function that is not allowed."""


def _read_zip(archive: zipfile.ZipFile, path: Path) -> Any:
    names = archive.namelist()
    pickles = [name for name in names if name.endswith("/data.pkl") or name == "data.pkl"]
    if len(pickles) != 1:
        raise FlowleyError(f"{path}: is a zip archive without a PyTorch checkpoint (data.pkl)")
    entries, folder = _Entries(archive, path.stat().st_size), pickles[0].removesuffix("data.pkl")
    order = f"{folder}byteorder"
    if order in names and entries.read(order) != b"little":
        raise FlowleyError(f"{path}: was written by a big-endian machine")
    storages = _Storages(lambda key: entries.read(f"{folder}data/{key}"), most_bytes=entries.size)
    return _Unpickler(entries.read(pickles[0]), storages).load()


def _read_old(file: BinaryIO, path: Path) -> Any:
    """Read a checkpoint of PyTorch before version 1.6."""
    size, places = path.stat().st_size, {}

    def data_of(key: str) -> bytes:
        start, length = places[key]
        file.seek(start)
        return file.read(length)

    storages = _Storages(data_of, most_bytes=size)
    version = _Unpickler(_next_pickle(file), storages).load()
    machine = _Unpickler(_next_pickle(file), storages).load()
    if version != _OLD_VERSION:
        raise ValueError(f"its format has version {version}, expected {_OLD_VERSION}")
    if not machine["little_endian"]:
        raise FlowleyError(f"{path}: was written by a big-endian machine")
    saved = _Unpickler(_next_pickle(file), storages).load()
    for key in _Unpickler(_next_pickle(file), storages).load():
        (count,) = _COUNT.unpack(file.read(_COUNT.size))
        places[key] = file.tell(), count * storages.dtypes[key].itemsize
        if count < 0 or sum(places[key]) > size:
            raise ValueError(f"storage {key} has {count} elements, more than the file of {size} bytes")
        file.seek(sum(places[key]))
    return saved


def _next_pickle(file: BinaryIO) -> bytes:
    """Return the bytes of the pickle at the position of a file, and move behind it."""
    start = file.tell()
    for _ in pickletools.genops(file):
        pass
    length = file.tell() - start
    file.seek(start)
    return file.read(length)


class _Entries:
    """Entries of a zip archive, which together may not be larger than the archive, as PyTorch writes them."""

    def __init__(self, archive: zipfile.ZipFile, size: int):
        self._archive, self._left = archive, size
        self.size = size

    def read(self, name: str) -> bytes:
        entry = self._archive.getinfo(name)
        if entry.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"entry {name} is compressed, which PyTorch never does")
        self._left -= entry.file_size
        if self._left < 0:
            raise ValueError(f"its entries have more bytes than the file, {self.size}")
        return self._archive.read(name)


class _Storages:
    """The storages of a checkpoint, each of which is read at most once."""

    def __init__(self, read: Callable[[str], bytes], *, most_bytes: int):
        self._read, self.most_bytes = read, most_bytes
        self._arrays: dict[str, np.ndarray] = {}
        self.dtypes: dict[str, np.dtype] = {}

    def array(self, key: str, count: int) -> np.ndarray:
        """Return the elements of a storage, (count,)."""
        if key not in self._arrays:
            data, dtype = self._read(key), self.dtypes[key]
            if count < 0 or len(data) < count * dtype.itemsize:
                raise ValueError(f"storage {key} has {len(data)} bytes, expected {count * dtype.itemsize}")
            self._arrays[key] = np.frombuffer(data, dtype, count)
        return self._arrays[key]


@dataclasses.dataclass(frozen=True)
class _Storage:
    """A storage, or a part of one, as a pickle refers to it."""

    storages: _Storages
    key: str
    count: int
    start: int
    length: int

    def array(self) -> np.ndarray:
        return self.storages.array(self.key, self.count)[self.start : self.start + self.length]


class _Unpickler(pickle.Unpickler):
    """Unpickler of plain containers, and of tensors that are read later."""

    def __init__(self, content: bytes, storages: _Storages):
        _check_memo(content)
        super().__init__(io.BytesIO(content), encoding="utf-8")
        self._storages = storages

    def find_class(self, module: str, name: str) -> Any:
        known = {
            ("collections", "OrderedDict"): collections.OrderedDict,
            ("torch._utils", "_rebuild_tensor"): self._tensor,
            ("torch._utils", "_rebuild_tensor_v2"): self._tensor,
            ("torch._utils", "_rebuild_parameter"): _parameter,
            ("torch", "Size"): tuple,
        }
        if (module, name) in known:
            return known[module, name]
        if (module, name) in _INERT:
            return Inert
        if module == "torch" and name in _STORAGES:
            return np.dtype(_STORAGES[name])
        raise _Refused(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _, count, *view = pid
        if kind != "storage" or not isinstance(dtype, np.dtype):
            raise _Refused(f"a storage of kind {kind!r}")
        if self._storages.dtypes.setdefault(key, dtype) != dtype:
            raise ValueError(f"storage {key} has two types")
        # Only the old format has views: the key of the view, its offset, and its number of elements.
        _, start, length = view[0] if view and view[0] else (key, 0, count)
        if min(start, length) < 0 or start + length > count:
            raise ValueError(f"view of {length} elements at {start} exceeds storage {key} of {count}")
        return _Storage(self._storages, key, count, start, length)

    def _tensor(
        self, storage: _Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any
    ) -> StoredTensor:
        most_bytes = self._storages.most_bytes
        return StoredTensor(read=lambda: _view(storage.array(), offset, size, stride, most_bytes=most_bytes))


def _check_memo(content: bytes) -> None:
    """Refuse a pickle that numbers its memo higher than it has bytes: Python would take memory for all."""
    for opcode, number, _ in pickletools.genops(content):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and (number or 0) > len(content):
            raise ValueError(f"object {number} of a pickle of {len(content)} bytes")


def _view(
    storage: np.ndarray, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *, most_bytes: int
) -> np.ndarray:
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    if min((offset, *size, *stride), default=0) < 0:
        raise ValueError(
            f"tensor at offset {offset} has invalid size {tuple(size)} or strides {tuple(stride)}"
        )
    if 0 in size:
        return np.zeros(size, storage.dtype)
    # Strides of 0 repeat a storage.
    if math.prod(size) * storage.itemsize > max(most_bytes, storage.nbytes):
        raise ValueError(f"tensor of size {tuple(size)} is larger than the file, {most_bytes} bytes")
    if last >= len(storage):
        raise ValueError(f"tensor of size {tuple(size)} exceeds its storage of {len(storage)}")
    steps = [step * storage.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(storage[offset:], size, steps, writeable=False)


def _parameter(data: StoredTensor, *_: Any) -> StoredTensor:
    return data
