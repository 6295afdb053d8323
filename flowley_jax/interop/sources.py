"""Published weights on disk or on the Hugging Face hub: which file of a folder or repository to read."""

import dataclasses
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flowley_jax.common.files import lfs_note
from flowley_jax.common.json_files import read_json_object
from flowley_jax.errors import FlowleyError
from flowley_jax.interop.hub import download
from flowley_jax.interop.tokenizers import TOKENIZER_FILES
from flowley_jax.interop.weight_files import INDEX, SUFFIXES, is_index, shards_of

log = logging.getLogger(__name__)
_HUB_NAME = re.compile(r"^[\w.-]+/[\w.-]+$")
# In order of preference: if both exist, only open_clip's file states the activation. Only CLIP has that file.
_SETTINGS = ("open_clip_config.json", "config.json")
_OPEN_CLIP_FORMAT = "clip"
# Of LAION-CLAP, whose weights are not among `_WEIGHTS`, nothing is downloaded.
_HUB_TOKENIZER = TOKENIZER_FILES["t5"].names
_WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "bigvgan_generator.pt",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightSource:
    """Published weights, and what is next to them.

    Attributes:
      path: file of the weights, or the index of several files.
      files: all files of the weights.
    """

    path: Path
    files: tuple[Path, ...]

    def settings_file(self, model_format: str) -> Path | None:
        """Return the published configuration file next to the weights, or None if there is none.

        Args:
          model_format: name of the model's format.
        """
        names = _SETTINGS if model_format == _OPEN_CLIP_FORMAT else _SETTINGS[1:]
        paths = (self.path.parent / name for name in names)
        return next((path for path in paths if path.is_file()), None)

    def tokenizer_files(self, model_format: str) -> tuple[Path, ...]:
        """Return the files of a tokenizer next to the weights; empty if the model needs none.

        Args:
          model_format: name of the model's format.
        """
        if model_format not in TOKENIZER_FILES:
            return ()
        paths = (self.path.parent / name for name in TOKENIZER_FILES[model_format].names)
        return tuple(path for path in paths if path.is_file())


def find_weights(source: str) -> WeightSource:
    """Return the weights that a command-line argument names.

    Args:
      source: file, folder, or repository on the Hugging Face hub; a repository's files are downloaded, or
        taken from the hub's cache.

    Raises:
      FlowleyError: nothing has that name, a folder holds no weight file or several, or the hub cannot be
        reached.
    """
    if not source:
        raise FlowleyError("--source='' must name a file, a folder or a repository")
    path = Path(source)
    if not path.exists():
        is_path = path.suffix.lower() in SUFFIXES or path.parts[0] in (".", "..") or path.parent.is_dir()
        if is_path or not _HUB_NAME.match(source):
            raise FlowleyError(f"{source}: no such file or folder")
        path = _download(source)
    weights = _weights_in(path) if path.is_dir() else path
    files = tuple(shards_of(weights)) if is_index(weights) else (weights,)
    return WeightSource(path=weights, files=files)


def _weights_in(folder: Path) -> Path:
    # Hidden ones are left by file managers and by programs that were killed.
    candidates = sorted(
        path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    )
    for name in _WEIGHTS:
        if (folder / name).is_file():
            others = [path.name for path in candidates if path.name != name and "-of-" not in path.name]
            if others:
                log.info("%s: reading %s and ignoring %s", folder, name, ", ".join(others))
            return folder / name
    if len(candidates) != 1:
        names = ", ".join(path.name for path in candidates)
        raise FlowleyError(
            f"{folder}: holds {f'several weight files ({names})' if candidates else 'no weight file'}; "
            "give the path of the file"
        )
    return candidates[0]


def read_settings(path: Path | None) -> Mapping[str, Any]:
    """Return the contents of a published configuration file; empty if `path` is None.

    Raises:
      FlowleyError: the file is not a JSON object.
    """
    if path is None:
        return {}
    return read_json_object(path)


def check_tokenizer_files(paths: Sequence[Path]) -> None:
    """Check that the files of a tokenizer were fetched and are not cut.

    Raises:
      FlowleyError: one of them is empty, a pointer to its content, or not valid JSON.
    """
    for path in paths:
        if path.suffix == ".json":
            read_json_object(path)
        elif note := lfs_note(path):
            raise FlowleyError(f"{path}: is not a tokenizer; {note}")
        elif not path.stat().st_size:
            raise FlowleyError(f"{path}: is empty")


def _download(repository: str) -> Path:
    return download(
        repository,
        _files_to_fetch,
        needed=_WEIGHTS,
        missing="no such file or folder, and no such repository on the hub",
        advice="no such file or folder, and the hub cannot be reached ({reason}). "
        f"Download from https://huggingface.co/{repository}/tree/main the weights (one of "
        f"{', '.join(_WEIGHTS)}), the settings ({' or '.join(_SETTINGS)}) and, for a text encoder, "
        f"{', '.join(_HUB_TOKENIZER)}; put them into one folder and give its path as --source",
    )


def _files_to_fetch(available: Sequence[str]) -> list[str]:
    """Return the files of a repository to download: weights in the preferred form, settings and tokenizer."""
    weights = next((name for name in _WEIGHTS if name in available), None)
    if weights is None:
        raise FlowleyError(
            f"the repository has none of {', '.join(_WEIGHTS)}; download its weights and give their path"
        )
    shards = []
    if weights.endswith(INDEX):
        stem, suffix = weights.removesuffix(INDEX).split(".")
        shards = [name for name in available if re.fullmatch(rf"{stem}-\d+-of-\d+\.{suffix}", name)]
    return [weights, *shards, *(name for name in (*_SETTINGS, *_HUB_TOKENIZER) if name in available)]
