"""Write dictionaries of arrays as `torch.save` writes dictionaries of tensors, without PyTorch."""

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from flowley_jax.common.files import atomic_write
from flowley_jax.errors import FlowleyError

_STORAGES = {
    np.dtype(np.float64): "DoubleStorage",
    np.dtype(np.float32): "FloatStorage",
    np.dtype(np.float16): "HalfStorage",
    np.dtype(np.int64): "LongStorage",
    np.dtype(np.int32): "IntStorage",
}
# Versions of pickles and of the archive's layout, as PyTorch writes them.
_PROTOCOL, _VERSION = 2, b"3\n"
_ROOT = "archive"

Arrays = Mapping[str, "np.ndarray | Arrays"]


def write_torch_file(path: Path, arrays: Arrays) -> None:
    """Write arrays, in dictionaries that may be nested, as tensors on the CPU.

    Args:
      path: the file.
      arrays: arrays or dictionaries of arrays by name.

    Raises:
      FlowleyError: an array has a type that no tensor has, or the file cannot be written.
    """
    pieces, storages = [], []
    _add(arrays, pieces, storages)
    content = pickle.PROTO + bytes([_PROTOCOL]) + b"".join(pieces) + pickle.STOP
    with atomic_write(path) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(f"{_ROOT}/data.pkl", content)
        archive.writestr(f"{_ROOT}/byteorder", "little")
        for key, array in enumerate(storages):
            archive.writestr(f"{_ROOT}/data/{key}", array.astype(array.dtype.newbyteorder("<")).tobytes())
        archive.writestr(f"{_ROOT}/version", _VERSION)


def _add(value: "np.ndarray | Arrays", pieces: list[bytes], storages: list[np.ndarray]) -> None:
    """Append the opcodes of a value, and the arrays that it needs."""
    if not isinstance(value, Mapping):
        pieces.append(_tensor(value, key=len(storages)))
        storages.append(value)
        return
    pieces.append(pickle.EMPTY_DICT + pickle.MARK)
    for name, entry in value.items():
        pieces.append(_plain(str(name)))
        _add(entry, pieces, storages)
    pieces.append(pickle.SETITEMS)


def _tensor(array: np.ndarray, *, key: int) -> bytes:
    """Return the opcodes of torch._utils._rebuild_tensor_v2(storage, 0, size, strides, False, {})."""
    if array.dtype not in _STORAGES:
        raise FlowleyError(f"an array of {array.dtype} cannot be written as a tensor")
    strides = tuple(int(np.prod(array.shape[axis + 1 :])) for axis in range(array.ndim))
    storage = (
        pickle.MARK
        + _plain("storage")
        + _global("torch", _STORAGES[array.dtype])
        + _plain(str(key))
        + _plain("cpu")
        + _plain(array.size)
        + pickle.TUPLE
        + pickle.BINPERSID
    )
    hooks = _global("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE
    numbers = b"".join(map(_plain, (0, tuple(array.shape), strides, False)))
    arguments = pickle.MARK + storage + numbers + hooks + pickle.TUPLE
    return _global("torch._utils", "_rebuild_tensor_v2") + arguments + pickle.REDUCE


def _plain(value: object) -> bytes:
    """Return the opcodes of a plain value."""
    return pickle.dumps(value, _PROTOCOL)[2:-1]


def _global(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()
