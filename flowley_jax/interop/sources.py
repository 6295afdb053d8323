"""Where published weights come from: a file, a folder with one, or a repository on the Hugging Face hub."""

import dataclasses
import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flowley_jax.errors import FlowleyError
from flowley_jax.interop.weight_files import INDEX, SUFFIXES, parts_of

log = logging.getLogger(__name__)
_HUB_NAME = re.compile(r"^[\w.-]+/[\w.-]+$")
# Settings by preference: open_clip's say the activation where both are there, and are no other model's.
_SETTINGS = ("open_clip_config.json", "config.json")
_OPEN_CLIP = "clip"
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "spiece.model")
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
class Source:
    """Weights with what lies beside them.

    Attributes:
      weights: a file, or the index of several.
      files: all files of the weights.
      tokenizer: its files.
    """

    weights: Path
    files: tuple[Path, ...]
    tokenizer: tuple[Path, ...]

    def settings_file(self, kind: str) -> Path | None:
        """The published configuration file of a kind of model, where it lies beside the weights."""
        names = _SETTINGS if kind == _OPEN_CLIP else _SETTINGS[1:]
        paths = (self.weights.parent / name for name in names)
        return next((path for path in paths if path.is_file()), None)


def find_source(source: str) -> Source:
    """The weights behind a command line's argument; a hub's files are downloaded or found in its cache.

    Raises:
      FlowleyError: there is nothing of that name, no weights or several in a folder, or the hub cannot be
        reached.
    """
    path = Path(source)
    if not path.exists():
        is_path = path.suffix in SUFFIXES or path.parts[0] in (".", "..") or path.parent.is_dir()
        if is_path or not _HUB_NAME.match(source):
            raise FlowleyError(f"{source}: no such file or folder")
        path = _download(source)
    weights = _weights_in(path) if path.is_dir() else path
    folder = weights.parent
    files = tuple(parts_of(weights)) if weights.name.endswith(INDEX) else (weights,)
    return Source(
        weights=weights,
        files=files,
        tokenizer=tuple(folder / name for name in _TOKENIZER if (folder / name).is_file()),
    )


def _weights_in(folder: Path) -> Path:
    found = sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES)
    for name in _WEIGHTS:
        if (folder / name).is_file():
            others = [path.name for path in found if path.name != name and "-of-" not in path.name]
            if others:
                log.info("%s: taking %s; there are also %s", folder, name, ", ".join(others))
            return folder / name
    if len(found) != 1:
        names = ", ".join(path.name for path in found)
        raise FlowleyError(
            f"{folder}: holds {'several files of weights: ' + names if found else 'no file of weights'}; "
            "name the file"
        )
    return found[0]


def read_settings(path: Path | None) -> Mapping[str, Any]:
    """What a published configuration file says; nothing where there is none.

    Raises:
      FlowleyError: it is no JSON object.
    """
    if path is None:
        return {}
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise FlowleyError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(found, Mapping):
        raise FlowleyError(f"{path}: must hold a JSON object")
    return found


def _download(repository: str) -> Path:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError
    from huggingface_hub.utils import logging as hub_logging

    # Its warnings of every attempt come again as the one error below.
    hub_logging.set_verbosity_error()
    log.info("asking the Hugging Face hub for %s", repository)
    try:
        present = HfApi().list_repo_files(repository)
        wanted = _files_to_fetch(present)
        log.info("downloading %s of %s", ", ".join(wanted), repository)
        return Path(snapshot_download(repository, allow_patterns=wanted))
    except RepositoryNotFoundError as error:
        raise FlowleyError(
            f"{repository}: no such file or folder, and no such repository on the hub"
        ) from error
    except FlowleyError as error:
        raise FlowleyError(f"{repository}: {error}") from error
    # What a failed connection raises depends on the version of the hub's client and what it is built on.
    except Exception as error:
        cached = _cached(repository)
        if cached is not None:
            log.info("the hub cannot be reached; using what was downloaded of %s before", repository)
            return cached
        raise FlowleyError(
            f"{repository}: no such file or folder, and the hub cannot be reached ({type(error).__name__}). "
            f"Where it can, fetch from https://huggingface.co/{repository}/tree/main the weights (one of "
            f"{', '.join(_WEIGHTS)}), {' or '.join(_SETTINGS)}, and for text {', '.join(_TOKENIZER)}; put "
            "them into one folder and give its path as --source"
        ) from error


def _cached(repository: str) -> Path | None:
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(repository, local_files_only=True))
    except (OSError, ValueError):
        return None
    return folder if any((folder / name).is_file() for name in _WEIGHTS) else None


def _files_to_fetch(present: Sequence[str]) -> list[str]:
    """The weights in the form liked best, all their parts, settings and tokenizer."""
    weights = next((name for name in _WEIGHTS if name in present), None)
    if weights is None:
        raise FlowleyError(
            f"the repository has none of {', '.join(_WEIGHTS)}; download its weights and name the file"
        )
    parts = []
    if weights.endswith(INDEX):
        stem, suffix = weights.removesuffix(INDEX).split(".")
        parts = [name for name in present if re.fullmatch(rf"{stem}-\d+-of-\d+\.{suffix}", name)]
    return [weights, *parts, *(name for name in (*_SETTINGS, *_TOKENIZER) if name in present)]
