"""Files of named arrays: safetensors, and PyTorch's own where PyTorch is installed."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from flowley_jax.errors import FlowleyError
from flowley_jax.whole_files import replacing

PICKLED = (".pth", ".pt", ".bin", ".ckpt")


def read_arrays(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Arrays by name and the file's own notes; half-precision arrays come as float32.

    Raises:
      FlowleyError: no such file, not a file of this kind, damaged, or PyTorch is needed and missing.
    """
    if not path.is_file():
        raise FlowleyError(f"{path}: no such file")
    if path.suffix in PICKLED:
        return _read_pickled(path), {}
    if path.suffix != ".safetensors":
        raise FlowleyError(f"{path}: must be .safetensors, or one of {', '.join(PICKLED)}")
    try:
        with safe_open(path, framework="numpy") as opened:
            names = opened.keys()
            return {name: _float(opened.get_tensor(name)) for name in names}, opened.metadata() or {}
    except SafetensorError as error:
        raise FlowleyError(f"{path}: is damaged or no safetensors file ({error})") from error


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray], notes: Mapping[str, str]) -> None:
    """Writes a .safetensors file, whole or not at all.

    Raises:
      FlowleyError: another ending, or the disk refuses.
    """
    if path.suffix != ".safetensors":
        raise FlowleyError(f"{path}: must end in .safetensors")
    with replacing(path) as partial:
        save_file({name: np.asarray(x, order="C") for name, x in arrays.items()}, partial, dict(notes))


def _read_pickled(path: Path) -> dict[str, np.ndarray]:
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise FlowleyError(
            f"{path}: files of this kind need PyTorch to read (pip install 'flowley-jax[convert]'), or the "
            "same weights as .safetensors"
        ) from error
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of pickle, zip and PyTorch, of many kinds
        raise FlowleyError(f"{path}: damaged, or no file of weights ({str(error)[:200]})") from error
    for name in ("state_dict", "model", "module"):
        if isinstance(found, dict) and isinstance(found.get(name), dict):
            found = found[name]
    if not isinstance(found, dict) or not all(isinstance(x, torch.Tensor) for x in found.values()):
        raise FlowleyError(f"{path}: holds no state dict, but {type(found).__name__}")
    return {
        name: _float(x.float().numpy() if x.is_floating_point() else x.numpy()) for name, x in found.items()
    }


def _float(array) -> np.ndarray:
    array = np.asarray(array)
    return array.astype(np.float32) if array.dtype.itemsize == 2 else array
