"""A reader of PyTorch's zip checkpoints that needs no PyTorch and runs no code from them.

Such a checkpoint is a zip archive. `data.pkl` is a pickle whose tensors refer to storages by key, and
`data/<key>` holds the bytes of a storage. The unpickler here knows tensors, parameters, ordered dictionaries
and storages by name and refuses every other class or function, so nothing in a file is ever called.
"""

import collections
import io
import math
import pickle
import pickletools
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
_LEGACY_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"
_TAR_OFFSET, _TAR_MAGIC = 257, b"ustar"


def read_torch_file(path: Path) -> Any:
    """Return the object that `torch.save` wrote, with NumPy arrays instead of tensors.

    What the file says of its sizes is checked against the size of the file before memory is taken.

    Raises:
      FlowleyError: the file is not a PyTorch checkpoint, is older than the zip format (PyTorch 1.6), is
        damaged, or holds something other than tensors in plain containers, which the message names.
    """
    try:
        if not zipfile.is_zipfile(path):
            raise FlowleyError(
                wrong_file_message(path)
                or f"{path}: is not a PyTorch checkpoint, or is truncated (the zip directory is missing)"
            )
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            pickles = [name for name in names if name.endswith("/data.pkl") or name == "data.pkl"]
            if len(pickles) != 1:
                raise FlowleyError(f"{path}: is a zip archive without a PyTorch checkpoint (data.pkl)")
            folder = pickles[0].removesuffix("data.pkl")
            order = f"{folder}byteorder"
            entries = _Entries(archive, path.stat().st_size)
            if order in names and entries.read(order) != b"little":
                raise FlowleyError(f"{path}: was written by a big-endian machine")
            return _Unpickler(entries, folder).load()
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


class _Refused(Exception):
    """Reference of a pickle to a class or function that is not allowed."""


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


class _Unpickler(pickle.Unpickler):
    """Unpickler of tensors as views of the archive's storages, each of which is read once."""

    def __init__(self, entries: _Entries, folder: str):
        content = entries.read(f"{folder}data.pkl")
        _check_memo(content)
        super().__init__(io.BytesIO(content), encoding="utf-8")
        self._entries, self._folder = entries, folder
        self._storages: dict[str, np.ndarray] = {}

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
        if module == "torch" and name in _STORAGES:
            return np.dtype(_STORAGES[name])
        raise _Refused(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> np.ndarray:
        kind, dtype, key, _, count = pid
        if kind != "storage" or not isinstance(dtype, np.dtype):
            raise _Refused(f"a storage of kind {kind!r}")
        if key not in self._storages:
            data = self._entries.read(f"{self._folder}data/{key}")
            if len(data) < count * dtype.itemsize:
                raise ValueError(f"storage {key} has {len(data)} bytes, expected {count * dtype.itemsize}")
            self._storages[key] = np.frombuffer(data, dtype, count)
        return self._storages[key]

    def _tensor(
        self, storage: np.ndarray, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any
    ) -> np.ndarray:
        return _view(storage, offset, size, stride, most_bytes=self._entries.size)


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


def _parameter(data: np.ndarray, *_: Any) -> np.ndarray:
    return data


def wrong_file_message(path: Path) -> str | None:
    """Return an error message if the first bytes show that a file is not a weight file, or else None.

    The message says what the file is and how to get the right one.
    """
    with open(path, "rb") as file:
        start = file.read(512)
    if not start:
        return f"{path}: is empty"
    if _LEGACY_MAGIC in start[:32] or start[_TAR_OFFSET:][:5] == _TAR_MAGIC:
        return (
            f"{path}: was written by PyTorch before version 1.6; load and save it again with PyTorch: "
            "torch.save(torch.load(PATH, weights_only=True), NEW_PATH)"
        )
    if note := lfs_note(path):
        return f"{path}: is not a weight file; {note}"
    if start.lstrip()[:1] in (b"<", b"{"):
        shown = start.lstrip()[:20]
        return f"{path}: is text ({shown!r}), perhaps an error page; download the file again"
    return None
