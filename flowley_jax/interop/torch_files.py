"""PyTorch's zip checkpoints, read without PyTorch and without running what is in them.

Such a file is a zip archive of `data.pkl`, a pickle whose tensors refer to storages by key, and of the
storages' bytes as `data/<key>`. The unpickler here knows tensors, parameters, ordered dictionaries and
storages by name, and refuses every other one, so that nothing in a file is ever called.
"""

import collections
import io
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

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
    """What `torch.save` wrote, with NumPy arrays in place of tensors.

    Raises:
      FlowleyError: not such a file, older than the zip format (PyTorch 1.6), damaged, or it holds something
        other than tensors in plain containers, which is named and not run.
    """
    if not zipfile.is_zipfile(path):
        raise FlowleyError(
            other_file(path)
            or f"{path}: is no PyTorch checkpoint, or is truncated (its zip directory is missing)"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            pickles = [name for name in names if name.endswith("/data.pkl") or name == "data.pkl"]
            if len(pickles) != 1:
                raise FlowleyError(f"{path}: is a zip archive, but holds no PyTorch checkpoint (data.pkl)")
            folder = pickles[0].removesuffix("data.pkl")
            order = f"{folder}byteorder"
            if order in names and archive.read(order) != b"little":
                raise FlowleyError(f"{path}: was written by a big-endian machine")
            return _Unpickler(archive, folder).load()
    except _Refused as error:
        raise FlowleyError(
            f"{path}: holds {error}, which is no tensor; it was not loaded, as loading may run programs. If "
            "you trust it, save its weights alone where PyTorch is: "
            "torch.save(torch.load(PATH, weights_only=False)['state_dict'], NEW_PATH)"
        ) from error
    except FlowleyError:
        raise
    # A damaged pickle can raise almost anything.
    except Exception as error:
        raise FlowleyError(f"{path}: is damaged ({type(error).__name__}: {str(error)[:200]})") from error


class _Refused(Exception):
    """Names what a pickle wanted to call."""


class _Unpickler(pickle.Unpickler):
    """Tensors as views of the archive's storages, which are read once each."""

    def __init__(self, archive: zipfile.ZipFile, folder: str):
        super().__init__(io.BytesIO(archive.read(f"{folder}data.pkl")), encoding="utf-8")
        self._archive, self._folder = archive, folder
        self._read: dict[str, np.ndarray] = {}

    def find_class(self, module: str, name: str) -> Any:
        known = {
            ("collections", "OrderedDict"): collections.OrderedDict,
            ("torch._utils", "_rebuild_tensor"): _tensor,
            ("torch._utils", "_rebuild_tensor_v2"): _tensor,
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
        if key not in self._read:
            data = self._archive.read(f"{self._folder}data/{key}")
            if len(data) < count * dtype.itemsize:
                raise ValueError(f"storage {key} has {len(data)} bytes, expected {count * dtype.itemsize}")
            self._read[key] = np.frombuffer(data, dtype, count)
        return self._read[key]


def _tensor(storage: np.ndarray, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any):
    reach = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    if min((offset, *size, *stride), default=0) < 0:
        raise ValueError(f"tensor of size {tuple(size)}, strides {tuple(stride)} at {offset}")
    if 0 in size:
        return np.zeros(size, storage.dtype)
    if reach >= len(storage):
        raise ValueError(f"tensor of size {tuple(size)} reaches beyond its storage of {len(storage)}")
    steps = [step * storage.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(storage[offset:], size, steps, writeable=False)


def _parameter(data: np.ndarray, *_: Any) -> np.ndarray:
    return data


def other_file(path: Path) -> str | None:
    """What a file is, and how to get the one that was meant, where its first bytes tell that it is none of
    weights."""
    with open(path, "rb") as file:
        start = file.read(512)
    if not start:
        return f"{path}: is empty"
    if _LEGACY_MAGIC in start[:32] or start[_TAR_OFFSET:][:5] == _TAR_MAGIC:
        return (
            f"{path}: was written in PyTorch's format before version 1.6; load it there and save it again, "
            "with torch.save(torch.load(PATH, weights_only=True), NEW_PATH)"
        )
    if start.startswith(b"version https://git-lfs"):
        return f"{path}: is a Git LFS pointer, not the file itself; run `git lfs pull`"
    if start.lstrip()[:1] in (b"<", b"{"):
        shown = start.lstrip()[:20]
        return f"{path}: is text ({shown!r}), perhaps the page of an error; download the file again"
    return None
