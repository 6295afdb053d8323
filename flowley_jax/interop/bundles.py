"""Bundles: the weights and sizes of a published model in a folder of a fixed layout.

`weights.safetensors` holds every weight under its published name and in its published type, so that it can
be written back without loss. `manifest.json` holds the model's format and sizes, and the names and SHA-256
of the files that the bundle was made from. A tokenizer's files lie next to them.
"""

import dataclasses
import functools
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from flowley_jax.common.files import sha256, write_text
from flowley_jax.common.typed import typed_from
from flowley_jax.errors import FlowleyError
from flowley_jax.interop.registry import FORMATS, ModelFormat
from flowley_jax.interop.weight_files import read_arrays, write_arrays

MANIFEST_FILE = "manifest.json"
WEIGHTS_FILE = "weights.safetensors"
_VERSION = 1
_SEARCH_VARIABLE = "FLOWLEY_BUNDLES"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceFile:
    """Name, size in bytes and SHA-256 of a file that a bundle was made from."""

    name: str
    size: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> "SourceFile":
        """Describe a file on disk."""
        return cls(name=path.name, size=path.stat().st_size, sha256=sha256(path))


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
    """

    folder: Path
    format: str
    config: Any
    sources: tuple[SourceFile, ...]
    entry: str
    sha256: str
    parameters: int

    @classmethod
    def open(cls, folder: str | Path) -> "Bundle":
        """Read the manifest of a folder; `load` reads the weights.

        Raises:
          FlowleyError: the folder holds no bundle, or its version differs.
        """
        folder = Path(folder)
        path = folder / MANIFEST_FILE
        try:
            stored = json.loads(path.read_text())
        except FileNotFoundError as error:
            raise FlowleyError(
                f"{folder}: holds no bundle ({MANIFEST_FILE}); make one with python -m flowley_jax.convert"
            ) from error
        except (OSError, ValueError) as error:
            raise FlowleyError(f"{path}: cannot be read as JSON ({error})") from error
        try:
            return cls.from_json({**stored, "folder": str(folder)})
        except (FlowleyError, TypeError) as error:
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
            model_format = FORMATS[stored["kind"]]
            return cls(
                folder=Path(stored["folder"]),
                format=model_format.name,
                config=typed_from(model_format.config_type, stored["config"], "config"),
                sources=tuple(SourceFile(**source) for source in stored["sources"]),
                entry=str(stored["within"]),
                sha256=str(stored["sha256"]),
                parameters=int(stored["parameters"]),
            )
        except FlowleyError:
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise FlowleyError(f"is damaged ({type(error).__name__}: {error})") from error

    def to_json(self) -> dict[str, Any]:
        """Return the manifest with the absolute folder, which `from_json` reads."""
        return {
            "version": _VERSION,
            "folder": str(self.folder.resolve()),
            "kind": self.format,
            "config": dataclasses.asdict(self.config),
            "sources": [dataclasses.asdict(source) for source in self.sources],
            "within": self.entry,
            "sha256": self.sha256,
            "parameters": self.parameters,
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

    def check_format(self, *expected: str) -> None:
        """Raise a FlowleyError unless the bundle has one of the expected formats."""
        if self.format not in expected:
            wanted = " or ".join(FORMATS[name].title for name in expected)
            raise FlowleyError(f"{self.folder}: expected {wanted}, found {FORMATS[self.format].title}")

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
            return FORMATS[self.format].build(arrays, config)
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
        try:
            status = path.stat()
        except OSError as error:
            raise FlowleyError(f"{path}: cannot be read ({error.strerror or error})") from error
        if _cached_sha256(path, status.st_size, status.st_mtime_ns) != self.sha256:
            raise FlowleyError(
                f"{path}: is damaged or was replaced (its SHA-256 differs from the manifest's); "
                "convert the model again"
            )
        return path

    def _config_with(self, dtype: str | None) -> Any:
        return dataclasses.replace(self.config, dtype=dtype) if dtype else self.config


def write_bundle(
    folder: Path,
    model_format: ModelFormat,
    arrays: Mapping[str, np.ndarray],
    settings: Mapping[str, Any],
    sources: Sequence[SourceFile],
    entry: str = "",
) -> Bundle:
    """Write a bundle. The manifest comes last, so that a folder with a manifest is complete.

    The model is built once, so that missing weights and wrong shapes are reported now.

    Args:
      folder: folder of the bundle; it is created if it does not exist.
      model_format: format of the model.
      arrays: weights under their published names.
      settings: published configuration file; empty if there is none.
      sources: files that the bundle is made from.
      entry: entry of the published checkpoint that held the weights.

    Raises:
      FlowleyError: the weights do not fit together, or a file cannot be written.
    """
    config = model_format.infer(arrays, settings)
    model_format.build(arrays, config)
    (folder / MANIFEST_FILE).unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    write_arrays(folder / WEIGHTS_FILE, arrays, {})
    bundle = Bundle(
        folder=folder,
        format=model_format.name,
        config=config,
        sources=tuple(sources),
        entry=entry,
        sha256=sha256(folder / WEIGHTS_FILE),
        parameters=sum(int(np.size(array)) for array in arrays.values()),
    )
    stored = bundle.to_json()
    del stored["folder"]
    write_text(folder / MANIFEST_FILE, json.dumps(stored, indent=2) + "\n")
    return bundle


@functools.lru_cache(maxsize=64)
def _cached_sha256(path: Path, size: int, mtime_ns: int) -> str:
    """Return the SHA-256 of a file, cached by its size and time of change."""
    del size, mtime_ns
    return sha256(path)
