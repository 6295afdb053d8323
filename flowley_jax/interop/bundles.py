"""Bundles: a published model's weights and sizes in a folder of this project's own, whatever file they were
in.

`weights.safetensors` has every weight under its published name and in its published type, so that nothing
is lost on the way back; `manifest.json` says what the model is, its sizes, and which files it was made
from. A tokenizer's files lie beside them.
"""

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from flowley_jax.config import typed_from
from flowley_jax.errors import FlowleyError
from flowley_jax.interop.kinds import KINDS, Kind
from flowley_jax.interop.weight_files import read_arrays, write_arrays
from flowley_jax.whole_files import write_text

MANIFEST_FILE = "manifest.json"
WEIGHTS_FILE = "weights.safetensors"
_VERSION = 1
_VARIABLE = "FLOWLEY_BUNDLES"
_CHUNK = 1 << 22


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceFile:
    """A file that a bundle was made from: its name, size in bytes, SHA-256."""

    name: str
    size: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> "SourceFile":
        """Reads the file once."""
        return cls(name=path.name, size=path.stat().st_size, sha256=digest(path))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bundle:
    """A published model on disk.

    Attributes:
      folder: where it is.
      kind: what it is, see `interop.kinds`.
      config: its sizes, a dataclass of the model's own.
      sources: what it was made from.
      within: the entry of the published checkpoint that held the weights; empty if they were at its top.
      sha256: of its weights.
      parameters: how many numbers the weights are.
    """

    folder: Path
    kind: str
    config: Any
    sources: tuple[SourceFile, ...]
    within: str
    sha256: str
    parameters: int

    @classmethod
    def open(cls, folder: str | Path) -> "Bundle":
        """Reads the manifest; the weights are read by `load`.

        Raises:
          FlowleyError: there is no bundle in the folder, or of another version.
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
        """The inverse of `to_json`; nothing is read.

        Raises:
          FlowleyError: it is of another version, or damaged.
        """
        if not isinstance(stored, Mapping) or stored.get("version") != _VERSION:
            raise FlowleyError(f"is no manifest of version {_VERSION}")
        try:
            kind = KINDS[stored["kind"]]
            return cls(
                folder=Path(stored["folder"]),
                kind=kind.name,
                config=typed_from(kind.config_type, stored["config"], "config"),
                sources=tuple(SourceFile(**source) for source in stored["sources"]),
                within=str(stored["within"]),
                sha256=str(stored["sha256"]),
                parameters=int(stored["parameters"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise FlowleyError(f"is damaged ({type(error).__name__}: {error})") from error

    def to_json(self) -> dict[str, Any]:
        """What `from_json` reads; the manifest and the absolute folder."""
        return {
            "version": _VERSION,
            "folder": str(self.folder.resolve()),
            "kind": self.kind,
            "config": dataclasses.asdict(self.config),
            "sources": [dataclasses.asdict(source) for source in self.sources],
            "within": self.within,
            "sha256": self.sha256,
            "parameters": self.parameters,
        }

    @property
    def place(self) -> Path:
        """Where the files are: the folder, or one of the same name in that of the variable FLOWLEY_BUNDLES.

        Raises:
          FlowleyError: there is no bundle, or another one.
        """
        places = [self.folder]
        if _VARIABLE in os.environ:
            places.insert(0, Path(os.environ[_VARIABLE]) / self.folder.name)
        found = next((place for place in places if (place / MANIFEST_FILE).is_file()), None)
        if found is None:
            raise FlowleyError(
                f"{self.folder}: is not there; set {_VARIABLE} to the folder that has {self.folder.name}"
            )
        if Bundle.open(found).sha256 != self.sha256:
            raise FlowleyError(
                f"{found}: is another model than the one this was made with (its SHA-256 differs)"
            )
        return found

    def check_kind(self, *expected: str) -> None:
        """Raises a FlowleyError that says what the bundle is where it is not what is needed."""
        if self.kind not in expected:
            wanted = " or ".join(KINDS[kind].title for kind in expected)
            raise FlowleyError(f"{self.folder}: expected {wanted}, found {KINDS[self.kind].title}")

    def arrays(self) -> dict[str, np.ndarray]:
        """The weights under their published names.

        Raises:
          FlowleyError: the file is missing or damaged.
        """
        self.check()
        return read_arrays(self.place / WEIGHTS_FILE)[0]

    def load(self, *, dtype: str | None = None) -> Any:
        """The model.

        Args:
          dtype: compute type, in place of that of its configuration.

        Raises:
          FlowleyError: the file is missing, damaged, or lacks weights.
        """
        config = dataclasses.replace(self.config, dtype=dtype) if dtype else self.config
        arrays = self.arrays()
        try:
            return KINDS[self.kind].build(arrays, config)
        except FlowleyError as error:
            raise FlowleyError(f"{self.folder / WEIGHTS_FILE}: {error}") from error

    def abstract(self, *, dtype: str | None = None) -> Any:
        """The model as shapes; the weights are not read."""
        config = dataclasses.replace(self.config, dtype=dtype) if dtype else self.config
        return nnx.eval_shape(lambda: KINDS[self.kind].module(config, rngs=nnx.Rngs(0)))

    def check(self) -> None:
        """Raises a FlowleyError where the weights are not those of the manifest."""
        path = self.place / WEIGHTS_FILE
        try:
            status = path.stat()
        except OSError as error:
            raise FlowleyError(f"{path}: cannot be read ({error.strerror or error})") from error
        if _known_digest(path, status.st_size, status.st_mtime_ns) != self.sha256:
            raise FlowleyError(
                f"{path}: is damaged or was replaced (its SHA-256 is not that of the manifest); "
                "convert it again"
            )


def write_bundle(
    folder: Path,
    kind: Kind,
    arrays: Mapping[str, np.ndarray],
    settings: Mapping[str, Any],
    sources: Sequence[SourceFile],
    within: str = "",
) -> Bundle:
    """Writes a bundle; the manifest comes last, so that a folder with one is whole.

    The model is built once, so that weights that are missing or of a wrong shape are found now.

    Args:
      arrays: under their published names.
      settings: of the published configuration file; empty if there is none.
      within: entry of the published checkpoint that held the weights.

    Raises:
      FlowleyError: the weights do not fit together, or the disk refuses.
    """
    config = kind.infer(arrays, settings)
    kind.build(arrays, config)
    (folder / MANIFEST_FILE).unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    write_arrays(folder / WEIGHTS_FILE, arrays, {})
    bundle = Bundle(
        folder=folder,
        kind=kind.name,
        config=config,
        sources=tuple(sources),
        within=within,
        sha256=digest(folder / WEIGHTS_FILE),
        parameters=sum(int(np.size(array)) for array in arrays.values()),
    )
    stored = bundle.to_json()
    del stored["folder"]
    write_text(folder / MANIFEST_FILE, json.dumps(stored, indent=2) + "\n")
    return bundle


@functools.lru_cache(maxsize=64)
def _known_digest(path: Path, size: int, changed: int) -> str:
    """That of a file in this state, read once in a process."""
    return digest(path)


def digest(path: Path) -> str:
    """SHA-256 of a file, read in pieces.

    Raises:
      FlowleyError: it cannot be read.
    """
    found = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while piece := file.read(_CHUNK):
                found.update(piece)
    except OSError as error:
        raise FlowleyError(f"{path}: cannot be read ({error.strerror or error})") from error
    return found.hexdigest()
