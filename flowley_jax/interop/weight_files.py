"""Files of named arrays: safetensors and PyTorch checkpoints, as one file or as shards with an index."""

import itertools
import json
import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from flowley_jax.common.files import atomic_write
from flowley_jax.common.json_files import read_json_object
from flowley_jax.errors import FlowleyError
from flowley_jax.interop.torch_files import StoredTensor, open_torch_file, wrong_file_message

PICKLED = (".pth", ".pt", ".bin", ".ckpt")
SUFFIXES = (".safetensors", *PICKLED)
INDEX = ".index.json"
# Key of the note with the name of the checkpoint entry that held the weights.
ENTRY = "within"
# Key of the note that gives, for names without an array of their own, the name of the equal array.
_EQUAL = "flowley_jax.equal"
_ENTRIES = ("state_dict", "model", "module", "generator", "ema", "weights")

# Function from the names of all arrays of a file to those that are wanted.
Selection = Callable[[Collection[str]], Collection[str]]


def is_index(path: Path) -> bool:
    """Return whether a file lists the shards of a model, by its name."""
    return path.name.lower().endswith(INDEX)


def is_pickled(path: Path) -> bool:
    """Return whether a file is a PyTorch checkpoint, by its name."""
    return path.suffix.lower() in PICKLED


def read_arrays(
    path: Path, *, select: Selection | None = None
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Read arrays by name, in their stored types, and the file's notes.

    Args:
      path: .safetensors file; .pth, .pt, .bin or .ckpt file; or the `….index.json` of several shards.
      select: function from the names of all arrays to those that are read; None reads all.

    Returns:
      The arrays and the notes. If a .pth, .pt, .bin or .ckpt file has the weights below its top level, the
      note `ENTRY` names their entry.

    Raises:
      FlowleyError: the file does not exist, has an unsupported format, is damaged, or holds no named arrays.
    """
    if not path.is_file():
        raise FlowleyError(f"{path}: no such file")
    try:
        if is_index(path):
            return _read_shards(path, select), {}
        if is_pickled(path):
            with open_torch_file(path) as checkpoint:
                tensors, entry = _state_dict(checkpoint, path)
                arrays = {name: tensors[name].read() for name in _selected(tensors, select)}
            return arrays, {ENTRY: entry} if entry else {}
        if path.suffix.lower() == ".safetensors":
            return _read_safetensors(path, select)
    except OSError as error:
        raise FlowleyError(f"{path}: cannot be read ({error.strerror or error})") from error
    raise FlowleyError(f"{path}: must end in .safetensors, {', '.join(PICKLED)} or {INDEX}")


def read_notes(path: Path) -> dict[str, str]:
    """Read the notes of a .safetensors file, and none of its arrays.

    Raises:
      FlowleyError: the file is missing or damaged.
    """
    try:
        with safe_open(path, framework="numpy") as opened:
            return opened.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise FlowleyError(f"{path}: is missing, damaged or not a safetensors file ({error})") from error


def write_arrays(
    path: Path, arrays: Mapping[str, np.ndarray], notes: Mapping[str, str], *, compact: bool = False
) -> None:
    """Write a .safetensors file atomically.

    Args:
      path: the file.
      arrays: arrays by name.
      notes: the file's metadata.
      compact: whether equal arrays are stored once. Only `read_arrays` finds all names in such a file.

    Raises:
      FlowleyError: the suffix is unsupported, or the file cannot be written.
    """
    if path.suffix.lower() != ".safetensors":
        raise FlowleyError(f"{path}: must end in .safetensors")
    if compact:
        first: dict[tuple, str] = {}
        names = {
            name: first.setdefault((x.shape, x.dtype.str, x.tobytes()), name) for name, x in arrays.items()
        }
        equal = {name: other for name, other in names.items() if name != other}
        arrays = {name: x for name, x in arrays.items() if name not in equal}
        notes = {**notes, _EQUAL: json.dumps(equal)}
    with atomic_write(path, SafetensorError) as partial:
        save_file({name: np.asarray(x, order="C") for name, x in arrays.items()}, partial, dict(notes))
        # safetensors makes its files readable by their owner only.
        partial.chmod(path.stat().st_mode if path.exists() else 0o666 & ~_umask())


def shards_of(index: Path) -> list[Path]:
    """Return the files that an index lists, in its folder.

    Raises:
      FlowleyError: the file is not an index, or a shard is missing.
    """
    paths = [index.parent / name for name in sorted(set(_weight_map(index).values()))]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise FlowleyError(f"{index}: {len(missing)} of {len(paths)} files are missing: {', '.join(missing)}")
    return paths


def _weight_map(index: Path) -> dict[str, str]:
    """Return the name of the file that holds each weight."""
    names = read_json_object(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise FlowleyError(f"{index}: is not an index of weight files (it has no weight_map)")
    for weight, name in names.items():
        # A path would read files elsewhere, and an index could name itself.
        if (
            not isinstance(name, str)
            or "/" in name
            or "\0" in name
            or Path(name).suffix.lower() not in SUFFIXES
        ):
            raise FlowleyError(
                f"{index}: weight_map[{weight!r}]={name!r} must be the name of a weight file next to it"
            )
    return names


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _selected(names: Collection[str], select: Selection | None) -> Collection[str]:
    return names if select is None else select(names)


def _read_safetensors(path: Path, select: Selection | None) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    try:
        with safe_open(path, framework="numpy") as opened:
            notes = opened.metadata() or {}
            stored = {name: name for name in opened.keys()} | _equal_arrays(path, notes, opened.keys())  # noqa: SIM118
            names = _selected(stored, select)
            return {name: _tensor(opened, stored[name], path) for name in names}, notes
    except SafetensorError as error:
        reason = wrong_file_message(path) or f"{path}: is damaged or not a safetensors file ({error})"
        raise FlowleyError(reason) from error


def _equal_arrays(path: Path, notes: Mapping[str, str], stored: Collection[str]) -> dict[str, str]:
    """Return the names that a compact file leaves out, each with the stored name of its array."""
    try:
        equal = json.loads(notes.get(_EQUAL, "{}"))
        is_valid = isinstance(equal, dict) and all(other in stored for other in equal.values())
    except (ValueError, TypeError):
        is_valid = False
    if not is_valid:
        raise FlowleyError(f"{path}: is damaged: its note {_EQUAL} names arrays that it does not have")
    return equal


def _tensor(opened: Any, name: str, path: Path) -> np.ndarray:
    try:
        return opened.get_tensor(name)
    # NumPy lacks some types, and refuses shapes of no elements that are too large.
    except (AttributeError, TypeError, ValueError) as error:
        kind = opened.get_slice(name)
        raise FlowleyError(
            f"{path}: {name} has type {kind.get_dtype()} and shape {kind.get_shape()}, which is not supported"
        ) from error


def _read_shards(index: Path, select: Selection | None) -> dict[str, np.ndarray]:
    names = _weight_map(index)
    wanted = set(_selected(names, select))

    def among_wanted(found: Collection[str]) -> Collection[str]:
        return [weight for weight in found if weight in wanted]

    files = {path.name: read_arrays(path, select=among_wanted)[0] for path in shards_of(index)}
    kept = {weight: name for weight, name in names.items() if weight in wanted}
    missing = sorted(weight for weight, name in kept.items() if weight not in files[name])
    if missing:
        raise FlowleyError(f"{index}: {len(missing)} listed weights are missing, the first is {missing[0]}")
    return {weight: files[name][weight] for weight, name in kept.items()}


def _state_dict(checkpoint: Any, path: Path) -> tuple[dict[str, StoredTensor], str]:
    """Return the tensors by name in a checkpoint, and the entry that held them ("" for the top level)."""
    entry = ""
    if isinstance(checkpoint, Mapping) and not any(isinstance(x, StoredTensor) for x in checkpoint.values()):
        entry = next((name for name in _ENTRIES if isinstance(checkpoint.get(name), Mapping)), "")
        checkpoint = checkpoint[entry] if entry else checkpoint
    if not isinstance(checkpoint, Mapping):
        raise FlowleyError(f"{path}: holds {type(checkpoint).__name__} instead of named weights")
    tensors = {str(name): value for name, value in checkpoint.items() if isinstance(value, StoredTensor)}
    if not tensors:
        entries = ", ".join(repr(name) for name in itertools.islice(checkpoint, 8))[:200]
        raise FlowleyError(f"{path}: holds no named weights; its entries are {entries or 'none'}")
    return tensors, entry
