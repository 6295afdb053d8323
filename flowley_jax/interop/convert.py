"""Conversion of published files to bundles and back."""

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from flowley_jax.common.files import atomic_write, check_new_file, is_partial, name_errors
from flowley_jax.common.locks import lock_folder
from flowley_jax.errors import FlowleyError
from flowley_jax.interop.bundles import OWN_NOTES, Bundle, SourceFile, write_bundle
from flowley_jax.interop.registry import FORMATS, check_format, describe, identify, needed_weights
from flowley_jax.interop.sources import check_tokenizer_files, find_weights, read_settings
from flowley_jax.interop.tokenizers import TOKENIZER_FILES
from flowley_jax.interop.trained_length import noted_length
from flowley_jax.interop.weight_files import SUFFIXES, is_pickled, read_arrays, write_arrays

log = logging.getLogger(__name__)
# Another conversion of the largest published model takes minutes.
_LOCK_SECONDS = 3600.0


def convert(
    source: str, out: Path, *, expect: str | None = None, log_mel_max: tuple[float, ...] | None = None
) -> Bundle:
    """Convert a published model to a bundle in a sub-folder of `out` that is named after its format.

    An existing bundle that was made from the same files is kept, and so is its `log_mel_max`. Other processes
    that write to `out` are waited for.

    Args:
      source: file, folder, or repository on the Hugging Face hub.
      out: folder of the bundles.
      expect: name of the format that the model must have.
      log_mel_max: `level_maxima` of a training set, for the bundle of an audio VAE; other
        models do not use it.

    Returns:
      The bundle.

    Raises:
      FlowleyError: the source cannot be read, has an unknown or unexpected format, or lacks weights or
        settings; `log_mel_max` has another number of bins; or the sub-folder holds a bundle of different
        weights.
    """
    weights = find_weights(source)
    arrays, notes = read_arrays(weights.path, select=needed_weights)
    if expect:
        check_format(arrays, FORMATS[expect], str(weights.path))
    model_format = identify(arrays)
    if model_format is None:
        known = ", ".join(entry.title for entry in FORMATS.values())
        raise FlowleyError(f"{weights.path}: is {describe(arrays)}; known: {known}")
    settings = weights.settings_file(model_format.name)
    tokenizer = weights.tokenizer_files(model_format.name)
    check_tokenizer_files(tokenizer)
    weight_sources = tuple(SourceFile.of(path) for path in weights.files)
    other_sources = tuple(SourceFile.of(path) for path in (settings, *tokenizer) if path)
    folder = out / model_format.name
    with lock_folder(out, wait=_LOCK_SECONDS):
        _remove_left_overs(out)
        existing = _existing_bundle(folder)
        if existing and existing.sources[: len(weight_sources)] != weight_sources:
            names = ", ".join(source.name for source in existing.sources)
            raise FlowleyError(
                f"{folder}: was made from other weights ({names}); remove it, or choose a different --out"
            )
        level = log_mel_max if model_format.name == "audio_vae" else None
        if level is None and existing and existing.log_mel_max is not None:
            log.info("%s: keeps the log_mel_max that an earlier --level-from gave it", folder)
            level = existing.log_mel_max
        is_current = existing is not None and (
            existing.sources == weight_sources + other_sources and existing.log_mel_max == level
        )
        if existing and is_current and _is_whole(existing):
            log.info("%s was already made from the same files", folder)
            return existing
        try:
            bundle = write_bundle(
                folder,
                model_format,
                arrays,
                read_settings(settings),
                weight_sources + other_sources,
                notes,
                tokenizer=tokenizer,
                log_mel_max=level,
            )
        except FlowleyError as error:
            raise FlowleyError(f"{weights.path}: {error}") from error
    _warn_of_gaps(weights.path, bundle, notes)
    log.info("%s: %s with %s parameters", folder, model_format.title, f"{bundle.parameters:,}")
    return bundle


def inspect(source: str, *, expect: str | None = None) -> str:
    """Return a one-line description of the contents of a source.

    Args:
      source: file, folder, or repository on the Hugging Face hub.
      expect: name of the format that the model must have.

    Raises:
      FlowleyError: the source cannot be read, or does not have the expected format.
    """
    weights = find_weights(source)
    arrays, _ = read_arrays(weights.path, select=needed_weights)
    if expect:
        check_format(arrays, FORMATS[expect], str(weights.path))
    parameters = sum(int(np.size(array)) for array in arrays.values())
    types = ", ".join(sorted({str(array.dtype) for array in arrays.values()}))
    return (
        f"{weights.path}: {describe(arrays)}; {len(arrays)} weights with {parameters:,} parameters, {types}"
    )


def write_back(folder: Path, path: Path, *, overwrite: bool = False) -> None:
    """Write a bundle's weights to one file, with their published names, shapes and types.

    Args:
      folder: folder of the bundle.
      path: .safetensors file; or .pth, .pt, .bin or .ckpt file, which needs PyTorch.
      overwrite: whether an existing file is replaced.

    Raises:
      FlowleyError: the folder holds no bundle or a damaged one, the suffix of the file is unsupported, the
        file exists, or PyTorch is needed and not installed.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise FlowleyError(f"{path}: must end in {', '.join(SUFFIXES)}")
    check_new_file(path, overwrite=overwrite, option="--to")
    bundle = Bundle.open(folder)
    arrays = bundle.arrays()
    with name_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    if is_pickled(path):
        _write_pickled(path, arrays, bundle.entry)
    else:
        write_arrays(path, arrays, bundle.notes())


def _warn_of_gaps(path: Path, bundle: Bundle, notes: Mapping[str, str]) -> None:
    """Warn if a bundle lacks a tokenizer, or if the file of a run does not name the length of its clips."""
    if bundle.lacks_tokenizer:
        needed = TOKENIZER_FILES[bundle.format].needed
        log.warning("%s: no tokenizer next to the weights; put %s there and run this again", path, needed)
    is_export = any(key.startswith(OWN_NOTES) for key in notes)
    if bundle.format == "flowley" and is_export and noted_length(notes) is None:
        log.warning(
            "%s: does not say how long the network's training clips were; %g s are assumed, as for the "
            "published weights (python -m flowley_jax.ema writes such files with their length)",
            *(path, bundle.seconds),
        )


def _existing_bundle(folder: Path) -> Bundle | None:
    """Return the bundle in a folder, whose files may be damaged; None if it has no valid manifest."""
    try:
        return Bundle.open(folder)
    except FlowleyError:
        return None


def _is_whole(bundle: Bundle) -> bool:
    if bundle.format == "flowley" and bundle.seconds is None:
        log.info("making it again: %s does not say how long the network's training clips were", bundle.folder)
        return False
    try:
        bundle.check()
        if bundle.tokenizer:
            bundle.check_tokenizer()
    except FlowleyError as error:
        log.warning("making it again: %s", error)
        return False
    return True


def _remove_left_overs(out: Path) -> None:
    """Remove the unfinished bundles of processes that were killed."""
    with name_errors(out):
        for path in out.iterdir():
            if is_partial(path.name) and path.is_dir():
                shutil.rmtree(path, ignore_errors=True)


def _write_pickled(path: Path, arrays: Mapping[str, np.ndarray], entry: str) -> None:
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise FlowleyError(
            f"{path}: PyTorch is needed to write this format and is not installed (pip install torch); "
            "a .safetensors file can be written without it"
        ) from error

    def tensor(array: np.ndarray):
        if array.dtype.name == "bfloat16":
            return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
        return torch.from_numpy(array.copy())

    try:
        tensors = {name: tensor(array) for name, array in arrays.items()}
    except TypeError as error:
        raise FlowleyError(f"{path}: PyTorch has no tensors of this type ({error})") from error
    # PyTorch raises a RuntimeError if the disk is full.
    with atomic_write(path, RuntimeError) as partial:
        torch.save({entry: tensors} if entry else tensors, partial)
