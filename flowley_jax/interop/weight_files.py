"""Files of named arrays as published: safetensors and PyTorch's zip files, whole or in several parts."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from flowley_jax.errors import FlowleyError
from flowley_jax.interop.torch_files import other_file, read_torch_file
from flowley_jax.whole_files import replacing

PICKLED = (".pth", ".pt", ".bin", ".ckpt")
SUFFIXES = (".safetensors", *PICKLED)
INDEX = ".index.json"
# Note on the entry of a checkpoint that held the weights.
WITHIN = "within"
_NESTED = ("state_dict", "model", "module", "generator", "ema", "weights")


def read_arrays(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Arrays by name, of the types they are stored in, and the file's own notes.

    Args:
      path: .safetensors; .pth, .pt, .bin or .ckpt, whose note `WITHIN` is the entry that held the weights,
        if they were not at the top; or the `….index.json` of a file in several parts.

    Raises:
      FlowleyError: no such file, not a file of this kind, damaged, or it holds no arrays by name.
    """
    if not path.is_file():
        raise FlowleyError(f"{path}: no such file")
    if path.name.endswith(INDEX):
        return _read_parts(path), {}
    if path.suffix in PICKLED:
        arrays, within = _state_dict(read_torch_file(path), path)
        return arrays, {WITHIN: within} if within else {}
    if path.suffix != ".safetensors":
        raise FlowleyError(f"{path}: must be .safetensors, or one of {', '.join(PICKLED)}, or …{INDEX}")
    try:
        with safe_open(path, framework="numpy") as opened:
            names = opened.keys()
            return {name: opened.get_tensor(name) for name in names}, opened.metadata() or {}
    except SafetensorError as error:
        what = other_file(path) or f"{path}: is damaged or no safetensors file ({error})"
        raise FlowleyError(what) from error


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray], notes: Mapping[str, str]) -> None:
    """Writes a .safetensors file, whole or not at all.

    Raises:
      FlowleyError: another ending, or the disk refuses.
    """
    if path.suffix != ".safetensors":
        raise FlowleyError(f"{path}: must end in .safetensors")
    with replacing(path, SafetensorError) as partial:
        save_file({name: np.asarray(x, order="C") for name, x in arrays.items()}, partial, dict(notes))
        # safetensors lets nobody else read what it writes.
        partial.chmod(path.stat().st_mode if path.exists() else 0o666 & ~_umask())


def parts_of(index: Path) -> list[Path]:
    """The files that an index names, in its folder.

    Raises:
      FlowleyError: it is no index, or one of them is missing.
    """
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise FlowleyError(f"{index}: is no index of a model in parts ({error})") from error
    paths = [index.parent / name for name in names]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise FlowleyError(f"{index}: {len(missing)} of {len(paths)} parts are missing: {', '.join(missing)}")
    return paths


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _read_parts(index: Path) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    for path in parts_of(index):
        arrays.update(read_arrays(path)[0])
    missing = sorted(set(json.loads(index.read_text())["weight_map"]) - set(arrays))
    if missing:
        raise FlowleyError(f"{index}: its parts lack {len(missing)} weights, the first {missing[0]}")
    return arrays


def _state_dict(found: Any, path: Path) -> tuple[dict[str, np.ndarray], str]:
    """The arrays by name in what a checkpoint holds, and the entry that trainers wrap them in, or ""."""
    within = ""
    if isinstance(found, Mapping) and not any(isinstance(value, np.ndarray) for value in found.values()):
        within = next((name for name in _NESTED if isinstance(found.get(name), Mapping)), "")
        found = found[within] if within else found
    if not isinstance(found, Mapping):
        raise FlowleyError(f"{path}: holds no weights by name, but {type(found).__name__}")
    arrays = {str(name): value for name, value in found.items() if isinstance(value, np.ndarray)}
    if not arrays:
        entries = ", ".join(map(str, found))[:200]
        raise FlowleyError(f"{path}: holds no weights by name; its entries are {entries or 'none'}")
    return arrays, within
