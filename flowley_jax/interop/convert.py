"""From published files to bundles and back."""

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from flowley_jax.errors import FlowleyError
from flowley_jax.interop.bundles import Bundle, SourceFile, write_bundle
from flowley_jax.interop.kinds import KINDS, check_kind, describe, identify
from flowley_jax.interop.sources import find_source, read_settings
from flowley_jax.interop.weight_files import PICKLED, SUFFIXES, WITHIN, read_arrays, write_arrays
from flowley_jax.whole_files import naming, replacing

log = logging.getLogger(__name__)


def convert(source: str, out: Path, *, expect: str | None = None) -> Bundle:
    """Makes the bundle of a source in a folder of `out` called as its kind, or finds it made.

    Args:
      source: a file, a folder, or a repository on the hub.
      expect: kind that it must be.

    Raises:
      FlowleyError: it cannot be read, is nothing that this project knows or not what is expected, lacks
        weights or settings, or the folder holds the bundle of other weights.
    """
    found = find_source(source)
    arrays, notes = read_arrays(found.weights)
    if expect:
        check_kind(arrays, KINDS[expect], str(found.weights))
    kind = identify(arrays)
    if kind is None:
        wanted = ", ".join(kind.title for kind in KINDS.values())
        raise FlowleyError(f"{found.weights}: is {describe(arrays)}; known are {wanted}")
    settings = found.settings_file(kind.name)
    tokenizer = found.tokenizer if kind.name == "t5" else ()
    weights = tuple(SourceFile.of(path) for path in found.files)
    beside = tuple(SourceFile.of(path) for path in (settings, *tokenizer) if path)
    folder = out / kind.name
    made = _made_before(folder)
    if made and made.sources == weights + beside:
        log.info("%s is made already of the same files", folder)
        return made
    if made and made.sources[: len(weights)] != weights:
        raise FlowleyError(
            f"{folder}: is made of {made.sources[0].name} with other weights; remove it, or choose "
            "another --out"
        )
    try:
        bundle = write_bundle(
            folder, kind, arrays, read_settings(settings), weights + beside, notes.get(WITHIN, "")
        )
    except FlowleyError as error:
        raise FlowleyError(f"{found.weights}: {error}") from error
    for path in tokenizer:
        with naming(folder / path.name):
            shutil.copyfile(path, folder / path.name)
    if kind.name == "t5" and not tokenizer:
        log.warning(
            "%s: no tokenizer beside the weights; put tokenizer.json and tokenizer_config.json there and run "
            "again",
            found.weights,
        )
    log.info("%s: %s, %s numbers", folder, kind.title, f"{bundle.parameters:,}")
    return bundle


def inspect(source: str, *, expect: str | None = None) -> str:
    """What a source is, in one line.

    Raises:
      FlowleyError: it cannot be read, or is not what is expected.
    """
    found = find_source(source)
    arrays, _ = read_arrays(found.weights)
    if expect:
        check_kind(arrays, KINDS[expect], str(found.weights))
    numbers = sum(int(np.size(array)) for array in arrays.values())
    types = ", ".join(sorted({str(array.dtype) for array in arrays.values()}))
    return f"{found.weights}: {describe(arrays)}; {len(arrays)} weights of {numbers:,} numbers, {types}"


def write_back(bundle: Path, path: Path) -> None:
    """Writes a bundle's weights as published: names, shapes and types.

    Args:
      path: .safetensors, or .pth, .pt, .bin, .ckpt, which need PyTorch.

    Raises:
      FlowleyError: no bundle, damaged, another ending, or PyTorch is needed and missing.
    """
    if path.suffix not in SUFFIXES:
        raise FlowleyError(f"{path}: must end in {', '.join(SUFFIXES)}")
    opened = Bundle.open(bundle)
    opened.check()
    arrays = opened.arrays()
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix in PICKLED:
        _write_pickled(path, arrays, opened.within)
    else:
        write_arrays(path, arrays, {})


def _made_before(folder: Path) -> Bundle | None:
    """The bundle there, unless it is damaged."""
    try:
        bundle = Bundle.open(folder)
        bundle.check()
    except FlowleyError:
        return None
    return bundle


def _write_pickled(path: Path, arrays: Mapping[str, np.ndarray], within: str) -> None:
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise FlowleyError(
            f"{path}: files of this kind are written by PyTorch, which is not installed (pip install torch); "
            ".safetensors needs nothing"
        ) from error

    def tensor(array: np.ndarray):
        if array.dtype.name == "bfloat16":
            return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
        return torch.from_numpy(array.copy())

    tensors = {name: tensor(array) for name, array in arrays.items()}
    with replacing(path) as partial:
        torch.save({within: tensors} if within else tensors, partial)
