"""A store of computed features: one file per clip or caption, named by a digest of all that it depends on.

An existing file is complete. A clip that cannot be used has a note instead of features. Nothing is removed,
so another table, or another caption of a clip, finds everything that has not changed.
"""

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from data_prep.rejection import Rejection
from data_prep.storage import join, list_names, read_bytes, remove, write_bytes
from flowley_jax.errors import FlowleyError

FeatureKind = Literal["media", "text"]
_FEATURES, _NOTE = ".npz", ".json"
# Hex digits of the key that name a sub-folder: some file systems are slow with many files in one folder.
_PREFIX_DIGITS = 2


class FeatureStore:
    """Features and notes below a folder, local or remote."""

    def __init__(self, folder: str):
        """Create the store; the folder is created with the first file."""
        self.folder = folder

    def keys(self, kind: FeatureKind) -> tuple[set[str], set[str]]:
        """Return the keys that have features, and those that have only a note of rejection."""
        stored: set[str] = set()
        rejected: set[str] = set()
        for prefix in range(16**_PREFIX_DIGITS):
            for name in list_names(join(self.folder, kind, f"{prefix:0{_PREFIX_DIGITS}x}")):
                stem, dot, suffix = name.partition(".")
                (stored if dot + suffix == _FEATURES else rejected).add(stem)
        return stored, rejected - stored

    def write(self, kind: FeatureKind, key: str, features: Mapping[str, np.ndarray]) -> None:
        """Store features.

        Raises:
          FlowleyError: the file cannot be written.
        """
        content = io.BytesIO()
        np.savez(content, **features)  # pyright: ignore[reportArgumentType]
        write_bytes(self._path(kind, key, _FEATURES), content.getvalue())

    def read(self, kind: FeatureKind, key: str) -> dict[str, np.ndarray]:
        """Return stored features.

        Raises:
          FlowleyError: the file is missing, or it was damaged and has been removed.
        """
        path = self._path(kind, key, _FEATURES)
        content = read_bytes(path)
        try:
            with np.load(io.BytesIO(content)) as file:
                return dict(file)
        except (ValueError, EOFError, zipfile.BadZipFile) as error:
            raise _remove_damaged(path, error) from error

    def reject(self, kind: FeatureKind, key: str, rejection: Rejection) -> None:
        """Store the reason why there are no features.

        Raises:
          FlowleyError: the file cannot be written.
        """
        note = {"reason": rejection.reason, "detail": rejection.detail}
        write_bytes(self._path(kind, key, _NOTE), json.dumps(note).encode())

    def forget_rejection(self, kind: FeatureKind, key: str) -> None:
        """Remove the note of a rejection, so that the next run tries again."""
        remove(self._path(kind, key, _NOTE))

    def rejection(self, kind: FeatureKind, key: str) -> Rejection:
        """Return the stored reason why there are no features.

        Raises:
          FlowleyError: the note is missing, or it was damaged and has been removed.
        """
        path = self._path(kind, key, _NOTE)
        content = read_bytes(path)
        try:
            return Rejection(**json.loads(content))
        except (ValueError, TypeError) as error:
            raise _remove_damaged(path, error) from error

    def _path(self, kind: FeatureKind, key: str, suffix: str) -> str:
        return join(self.folder, kind, key[:_PREFIX_DIGITS], key + suffix)


def _remove_damaged(path: str, error: Exception) -> FlowleyError:
    """Remove a damaged file, so that the next run makes it again, and return the error to raise."""
    remove(path)
    return FlowleyError(f"{path}: was damaged ({error}) and has been removed; run the same command again")


def digest(value: Any) -> str:
    """Return a short digest of a JSON value."""
    return hashlib.blake2b(json.dumps(value).encode(), digest_size=12).hexdigest()
