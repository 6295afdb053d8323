"""Files of named arrays: safetensors and PyTorch checkpoints, as one file or as shards with an index."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from flowley_jax.common.files import atomic_write
from flowley_jax.errors import FlowleyError
from flowley_jax.interop.torch_files import read_torch_file, wrong_file_message

PICKLED = (".pth", ".pt", ".bin", ".ckpt")
SUFFIXES = (".safetensors", *PICKLED)
INDEX = ".index.json"
# Key of the note with the name of the checkpoint entry that held the weights.
ENTRY = "within"
_ENTRIES = ("state_dict", "model", "module", "generator", "ema", "weights")


def read_arrays(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Read arrays by name, in their stored types, and the file's notes.

    Args:
      path: .safetensors file; .pth, .pt, .bin or .ckpt file; or the `….index.json` of several shards.

    Returns:
      The arrays and the notes. If a .pth, .pt, .bin or .ckpt file has the weights below its top level, the
      note `ENTRY` names their entry.

    Raises:
      FlowleyError: the file does not exist, has an unsupported format, is damaged, or holds no named arrays.
    """
    if not path.is_file():
        raise FlowleyError(f"{path}: no such file")
    if path.name.endswith(INDEX):
        return _read_shards(path), {}
    if path.suffix in PICKLED:
        arrays, entry = _state_dict(read_torch_file(path), path)
        return arrays, {ENTRY: entry} if entry else {}
    if path.suffix != ".safetensors":
        raise FlowleyError(f"{path}: must end in .safetensors, {', '.join(PICKLED)} or {INDEX}")
    try:
        with safe_open(path, framework="numpy") as opened:
            names = opened.keys()
            return {name: opened.get_tensor(name) for name in names}, opened.metadata() or {}
    except SafetensorError as error:
        reason = wrong_file_message(path) or f"{path}: is damaged or not a safetensors file ({error})"
        raise FlowleyError(reason) from error


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray], notes: Mapping[str, str]) -> None:
    """Write a .safetensors file atomically.

    Args:
      path: the file.
      arrays: arrays by name.
      notes: the file's metadata.

    Raises:
      FlowleyError: the suffix is unsupported, or the file cannot be written.
    """
    if path.suffix != ".safetensors":
        raise FlowleyError(f"{path}: must end in .safetensors")
    with atomic_write(path, SafetensorError) as partial:
        save_file({name: np.asarray(x, order="C") for name, x in arrays.items()}, partial, dict(notes))
        # safetensors makes its files readable by their owner only.
        partial.chmod(path.stat().st_mode if path.exists() else 0o666 & ~_umask())


def shards_of(index: Path) -> list[Path]:
    """Return the files that an index lists, in its folder.

    Raises:
      FlowleyError: the file is not an index, or a shard is missing.
    """
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise FlowleyError(f"{index}: is not an index of weight files ({error})") from error
    paths = [index.parent / name for name in names]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise FlowleyError(f"{index}: {len(missing)} of {len(paths)} files are missing: {', '.join(missing)}")
    return paths


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _read_shards(index: Path) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    for path in shards_of(index):
        arrays.update(read_arrays(path)[0])
    missing = sorted(set(json.loads(index.read_text())["weight_map"]) - set(arrays))
    if missing:
        raise FlowleyError(f"{index}: {len(missing)} listed weights are missing, the first is {missing[0]}")
    return arrays


def _state_dict(checkpoint: Any, path: Path) -> tuple[dict[str, np.ndarray], str]:
    """Return the arrays by name in a checkpoint, and the entry that held them ("" for the top level)."""
    entry = ""
    if isinstance(checkpoint, Mapping) and not any(isinstance(x, np.ndarray) for x in checkpoint.values()):
        entry = next((name for name in _ENTRIES if isinstance(checkpoint.get(name), Mapping)), "")
        checkpoint = checkpoint[entry] if entry else checkpoint
    if not isinstance(checkpoint, Mapping):
        raise FlowleyError(f"{path}: holds {type(checkpoint).__name__} instead of named weights")
    arrays = {str(name): value for name, value in checkpoint.items() if isinstance(value, np.ndarray)}
    if not arrays:
        entries = ", ".join(map(str, checkpoint))[:200]
        raise FlowleyError(f"{path}: holds no named weights; its entries are {entries or 'none'}")
    return arrays, entry
