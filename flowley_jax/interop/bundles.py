"""Bundles: the weights and sizes of a published model in a folder of a fixed layout.

`weights.safetensors` holds every weight under its published name and in its published type, so that it can
be written back without loss. `manifest.json` holds the model's format and sizes, and the names and SHA-256
of the files that the bundle was made from. The network's also holds the length of the clips that it was
trained on, and the audio VAE's may hold the level that bounds its sounds. A tokenizer's files are copied as
they are, so that these SHA-256 are theirs too. All files are checked against the manifest before they are
used.
"""

import dataclasses
import functools
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from flax import nnx

from flowley_jax.common.files import name_errors, partial_name, sha256, write_text
from flowley_jax.common.json_files import read_json_object
from flowley_jax.common.ranges import SECONDS, Range
from flowley_jax.common.typed import typed_from
from flowley_jax.errors import FlowleyError, shown
from flowley_jax.interop.registry import FORMATS, ModelFormat
from flowley_jax.interop.tokenizers import TOKENIZER_FILES
from flowley_jax.interop.trained_length import trained_length
from flowley_jax.interop.weight_files import ENTRY, read_arrays, read_notes, write_arrays
from flowley_jax.model import ModelConfig

MANIFEST_FILE = "manifest.json"
WEIGHTS_FILE = "weights.safetensors"
# Beginning of the notes that this package writes.
OWN_NOTES = "flowley_jax."
_VERSION = 1
_Size = Annotated[int, Range(least=0, most=2**63)]
_SEARCH_VARIABLE = "FLOWLEY_BUNDLES"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceFile:
    """Name, size in bytes and SHA-256 of a file that a bundle was made from."""

    name: str
    size: _Size
    sha256: str

    @classmethod
    def of(cls, path: Path) -> "SourceFile":
        """Describe a file on disk."""
        return cls(name=path.name, size=path.stat().st_size, sha256=sha256(path))


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Manifest:
    """The keys of a manifest; the type of `config` depends on `kind`."""

    version: int
    folder: str
    kind: str
    config: Any
    sources: tuple[SourceFile, ...]
    within: str
    sha256: str
    parameters: _Size
    seconds: Annotated[float, SECONDS] | None = None
    log_mel_max: tuple[float, ...] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bundle:
    """A published model on disk.

    Attributes:
      folder: folder that the bundle was written to.
      format: name of its model format, a key of `interop.registry.FORMATS`.
      config: sizes of the model, the format's `config_type`.
      sources: files that the bundle was made from.
      entry: entry of the published checkpoint that held the weights; empty if they were at the top level.
      sha256: SHA-256 of `weights.safetensors`.
      parameters: number of scalar weights.
      seconds: length of the clips that Flowley's network was trained on; None for other models, and in
        bundles of earlier versions.
      log_mel_max: `level_maxima` of a training set, which bound the sounds of an audio VAE;
        None if it is not known.
    """

    folder: Path
    format: str
    config: Any
    sources: tuple[SourceFile, ...]
    entry: str
    sha256: str
    parameters: int
    seconds: float | None = None
    log_mel_max: tuple[float, ...] | None = None

    def __post_init__(self):
        if self.log_mel_max is not None and len(self.log_mel_max) != self.config.bins + 1:
            raise FlowleyError(
                f"log_mel_max has {len(self.log_mel_max)} values, and {FORMATS[self.format].title} with its "
                f"{self.config.bins} bins needs {self.config.bins + 1}"
            )

    @classmethod
    def open(cls, folder: str | Path) -> "Bundle":
        """Read the manifest of a folder; `load` reads the weights.

        Raises:
          FlowleyError: the folder holds no bundle, or its version differs.
        """
        folder = Path(folder)
        path = folder / MANIFEST_FILE
        if not path.is_file():
            raise FlowleyError(
                f"{folder}: holds no bundle ({MANIFEST_FILE}); make one with python -m flowley_jax.convert"
            )
        stored = read_json_object(path)
        try:
            return cls.from_json({**stored, "folder": str(folder)})
        except FlowleyError as error:
            raise FlowleyError(f"{path}: {error}") from error

    @classmethod
    def from_json(cls, stored: Any) -> "Bundle":
        """Return the bundle that `to_json` described; no file is read.

        Raises:
          FlowleyError: the manifest is damaged, or its version differs.
        """
        if not isinstance(stored, Mapping) or stored.get("version") != _VERSION:
            raise FlowleyError(f"is not a manifest of version {_VERSION}")
        try:
            manifest = typed_from(_Manifest, stored, "the manifest")
            model_format = FORMATS[manifest.kind]
            if not isinstance(manifest.config, Mapping):
                raise FlowleyError(f"config={shown(manifest.config)} must be a JSON object")
            return cls(
                folder=Path(manifest.folder),
                format=model_format.name,
                config=typed_from(model_format.config_type, manifest.config, "config"),
                sources=manifest.sources,
                entry=manifest.within,
                sha256=manifest.sha256,
                parameters=manifest.parameters,
                seconds=manifest.seconds,
                log_mel_max=manifest.log_mel_max,
            )
        except FlowleyError as error:
            raise FlowleyError(f"is damaged ({error})") from error
        # Sizes that do not exist together end in errors of arithmetic.
        except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
            raise FlowleyError(f"is damaged ({type(error).__name__}: {error})") from error

    def to_json(self) -> dict[str, Any]:
        """Return the manifest with the absolute folder, which `from_json` reads."""
        optional = {"seconds": self.seconds, "log_mel_max": self.log_mel_max}
        return {
            "version": _VERSION,
            "folder": str(self.folder.resolve()),
            "kind": self.format,
            "config": dataclasses.asdict(self.config),
            "sources": [dataclasses.asdict(source) for source in self.sources],
            "within": self.entry,
            "sha256": self.sha256,
            "parameters": self.parameters,
            **{key: value for key, value in optional.items() if value is not None},
        }

    def locate(self) -> Path:
        """Return the folder where the files are now.

        If FLOWLEY_BUNDLES names a folder, a bundle of the same name in it takes precedence.

        Raises:
          FlowleyError: no bundle is found, or its weights differ.
        """
        candidates = [self.folder]
        if _SEARCH_VARIABLE in os.environ:
            candidates.insert(0, Path(os.environ[_SEARCH_VARIABLE]) / self.folder.name)
        folder = next((folder for folder in candidates if (folder / MANIFEST_FILE).is_file()), None)
        if folder is None:
            raise FlowleyError(
                f"{self.folder}: not found; set {_SEARCH_VARIABLE} to the folder that contains "
                f"{self.folder.name}"
            )
        if Bundle.open(folder).sha256 != self.sha256:
            raise FlowleyError(
                f"{folder}: holds different weights from the expected bundle (the SHA-256 differs)"
            )
        return folder

    @property
    def tokenizer(self) -> tuple[SourceFile, ...]:
        """The files of the tokenizer in the folder; empty if the bundle was made without one."""
        files = TOKENIZER_FILES.get(self.format)
        return tuple(source for source in self.sources if files and source.name in files.names)

    @property
    def lacks_tokenizer(self) -> bool:
        """Whether the model needs a tokenizer, and the bundle was made without a whole one."""
        files = TOKENIZER_FILES.get(self.format)
        return files is not None and not files.are_whole([source.name for source in self.tokenizer])

    def check_format(self, *expected: str) -> None:
        """Raise a FlowleyError unless the bundle has one of the expected formats."""
        if self.format not in expected:
            wanted = " or ".join(FORMATS[name].title for name in expected)
            raise FlowleyError(f"{self.folder}: expected {wanted}, found {FORMATS[self.format].title}")

    def notes(self) -> dict[str, str]:
        """Return the notes of the file of weights."""
        return read_notes(self.locate() / WEIGHTS_FILE)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the weights under their published names.

        Raises:
          FlowleyError: the file is missing or damaged.
        """
        return read_arrays(self.check())[0]

    def load(self, *, dtype: str | None = None) -> Any:
        """Return the model with its weights.

        Args:
          dtype: compute type, instead of the configuration's.

        Raises:
          FlowleyError: the file is missing, damaged, or lacks weights.
        """
        config = self._config_with(dtype)
        arrays = self.arrays()
        try:
            return FORMATS[self.format].model_of(arrays, config)
        except FlowleyError as error:
            raise FlowleyError(f"{self.folder / WEIGHTS_FILE}: {error}") from error

    def abstract(self, *, dtype: str | None = None) -> Any:
        """Return the model with shapes instead of weights, without reading the file."""
        config = self._config_with(dtype)
        return nnx.eval_shape(lambda: FORMATS[self.format].module(config, rngs=nnx.Rngs(0)))

    def check(self) -> Path:
        """Return the path of the weights after comparing their SHA-256 with the manifest's.

        Raises:
          FlowleyError: the file is missing, damaged or was replaced.
        """
        path = self.locate() / WEIGHTS_FILE
        _check_sha256(path, self.sha256)
        return path

    def check_tokenizer(self) -> Path:
        """Return the folder of the tokenizer after comparing the SHA-256 of its files with the manifest's.

        Raises:
          FlowleyError: the bundle was made without one, or a file is missing, damaged or was replaced.
        """
        folder = self.locate()
        if self.lacks_tokenizer:
            needed = TOKENIZER_FILES[self.format].needed
            raise FlowleyError(
                f"{folder}: has no tokenizer; put {needed} next to the published weights and convert "
                "them again"
            )
        for source in self.tokenizer:
            _check_sha256(folder / source.name, source.sha256)
        return folder

    def _config_with(self, dtype: str | None) -> Any:
        return dataclasses.replace(self.config, dtype=dtype) if dtype else self.config


def write_bundle(
    folder: Path,
    model_format: ModelFormat,
    arrays: Mapping[str, np.ndarray],
    settings: Mapping[str, Any],
    sources: Sequence[SourceFile],
    notes: Mapping[str, str],
    *,
    tokenizer: Sequence[Path] = (),
    log_mel_max: tuple[float, ...] | None = None,
) -> Bundle:
    """Write a bundle. The caller must have locked the folder above it.

    The model is built once, so that missing weights and wrong shapes are reported now. The files are written
    elsewhere and then moved, so that an interruption leaves an earlier bundle as it was.

    Args:
      folder: folder of the bundle; it is created if it does not exist.
      model_format: format of the model.
      arrays: weights under their published names.
      settings: published configuration file; empty if there is none.
      sources: files that the bundle is made from.
      notes: notes of the published file. Those of this package are kept, such as the codec of the latents.
      tokenizer: files of the tokenizer, which are among the sources.
      log_mel_max: level of an audio VAE; see `Bundle`.

    Raises:
      FlowleyError: the weights do not fit together, a file cannot be written, or the folder has a file of
        this name that is not an earlier bundle's.
    """
    config = model_format.config_of(arrays, settings)
    model_format.model_of(arrays, config)
    seconds = None
    if isinstance(config, ModelConfig):
        seconds = trained_length(notes, settings, video_fps=config.video_fps)
    kept = {key: value for key, value in notes.items() if key.startswith(OWN_NOTES)}
    # Where a link to a folder on another disk leads, so that files can be moved.
    new = folder.resolve().with_name(partial_name())
    try:
        with name_errors(new):
            new.mkdir(parents=True)
        for path in tokenizer:
            with name_errors(folder / path.name):
                shutil.copyfile(path, new / path.name)
        write_arrays(new / WEIGHTS_FILE, arrays, kept)
        bundle = Bundle(
            folder=folder,
            format=model_format.name,
            config=config,
            sources=tuple(sources),
            entry=notes.get(ENTRY, ""),
            sha256=sha256(new / WEIGHTS_FILE),
            parameters=sum(int(np.size(array)) for array in arrays.values()),
            seconds=seconds,
            log_mel_max=log_mel_max,
        )
        stored = bundle.to_json()
        del stored["folder"]
        write_text(new / MANIFEST_FILE, json.dumps(stored, indent=2) + "\n")
        _move_files(new, folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return bundle


def _move_files(new: Path, folder: Path) -> None:
    """Move a whole bundle to its place, beside files of other names that are there."""
    with name_errors(folder):
        if not folder.exists():
            new.rename(folder)
            return
        own = _files_of_earlier(folder)
        names = sorted(path.name for path in new.iterdir())
        strange = [name for name in names if os.path.lexists(folder / name) and name not in own]
        if strange:
            raise FlowleyError(
                f"{folder}: holds {', '.join(strange)}, and no valid {MANIFEST_FILE} says that this program "
                "made it; remove it, or choose a different --out"
            )
        # The manifest first: if this is interrupted, it shows that the other files do not belong to it.
        for name in sorted(names, key=lambda name: name != MANIFEST_FILE):
            os.replace(new / name, folder / name)


def _files_of_earlier(folder: Path) -> set[str]:
    """Return the names of the files that the bundle in a folder has."""
    try:
        earlier = Bundle.open(folder)
    except FlowleyError:
        return set()
    return {MANIFEST_FILE, WEIGHTS_FILE, *(source.name for source in earlier.tokenizer)}


def _check_sha256(path: Path, expected: str) -> None:
    try:
        status = path.stat()
    except OSError as error:
        raise FlowleyError(
            f"{path}: cannot be read ({error.strerror or error}); convert the model again"
        ) from error
    if _cached_sha256(path, status.st_size, status.st_mtime_ns) != expected:
        raise FlowleyError(
            f"{path}: is damaged or was replaced (its SHA-256 differs from the manifest's); "
            "convert the model again"
        )


@functools.lru_cache(maxsize=64)
def _cached_sha256(path: Path, size: int, mtime_ns: int) -> str:
    """Return the SHA-256 of a file, cached by its size and time of change."""
    del size, mtime_ns
    return sha256(path)
