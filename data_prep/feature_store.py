"""A store of computed features: one file per clip or caption, named by a digest of all that it depends on.

An existing file is complete. A clip that cannot be used has a note instead of features. Nothing is removed,
so another table, or another caption of a clip, finds everything that has not changed.
"""

import contextlib
import hashlib
import io
import json
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np

from data_prep.rejection import Rejection, one_line
from data_prep.storage import join, list_names, read_bytes, remove, remove_old_partials, write_bytes
from flowley_jax.errors import FlowleyError

FeatureKind = Literal["media", "text"]
_FEATURES, _NOTE = ".npz", ".json"
# Hex digits of the key that name a sub-folder: some file systems are slow with many files in one folder.
_PREFIX_DIGITS = 2
# What follows the archive in a file of features: these bytes, and a checksum of the archive.
_SEAL, _CHECKSUM_BYTES = b"checksum", 16
# How a zip archive without a comment ends: a record of this length, which begins with these bytes.
_ZIP_END, _ZIP_END_BYTES = b"PK\x05\x06", 22
_KINDS: tuple[FeatureKind, ...] = ("media", "text")


class DamagedError(FlowleyError):
    """A stored file was damaged; it has been removed, so that the next run makes it again."""


class DamagedFiles:
    """Damaged features of a pass, which continues so that it finds all of them."""

    def __init__(self):
        self._errors: list[DamagedError] = []

    @contextlib.contextmanager
    def noted(self) -> Iterator[None]:
        """Note a damaged file in the block."""
        try:
            yield
        except DamagedError as error:
            self._errors.append(error)

    def check(self) -> None:
        """Raise the first noted error.

        Raises:
          DamagedError: a file was damaged.
        """
        if self._errors:
            raise self._errors[0]


class FeatureStore:
    """Features and notes below a folder, local or remote."""

    def __init__(self, folder: str):
        """Create the store; the folder is created with the first file."""
        self.folder = folder

    def keys(self, kind: FeatureKind) -> tuple[set[str], set[str]]:
        """Return the keys that have features, and those that have only a note of rejection."""
        stored: set[str] = set()
        rejected: set[str] = set()
        for folder in self._folders(kind):
            for name in list_names(folder):
                stem, dot, suffix = name.partition(".")
                # Other programs, such as file managers, put files of their own into folders.
                if dot + suffix in (_FEATURES, _NOTE):
                    (stored if dot + suffix == _FEATURES else rejected).add(stem)
        return stored, rejected - stored

    def remove_partials(self) -> None:
        """Remove temporary files of killed processes; the caller has locked the folder."""
        for kind in _KINDS:
            for folder in self._folders(kind):
                remove_old_partials(folder)

    def write(self, kind: FeatureKind, key: str, features: Mapping[str, np.ndarray]) -> None:
        """Store features.

        Raises:
          FlowleyError: the file cannot be written.
        """
        content = io.BytesIO()
        np.savez(content, **features)  # pyright: ignore[reportArgumentType]
        archive = content.getvalue()
        write_bytes(self._path(kind, key, _FEATURES), archive + _SEAL + _checksum(archive))

    def read(self, kind: FeatureKind, key: str) -> dict[str, np.ndarray]:
        """Return stored features.

        Raises:
          DamagedError: the file was damaged and has been removed.
          FlowleyError: the file is missing or cannot be read.
        """
        path = self._path(kind, key, _FEATURES)
        content = read_bytes(path)
        try:
            with np.load(io.BytesIO(_checked_archive(content))) as file:
                return dict(file)
        except MemoryError:
            raise
        except Exception as error:  # Damaged bytes raise errors of many types.
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
          DamagedError: the note was damaged and has been removed.
          FlowleyError: the note is missing or cannot be read.
        """
        path = self._path(kind, key, _NOTE)
        content = read_bytes(path)
        try:
            return Rejection.from_json(json.loads(content))
        except (ValueError, RecursionError) as error:
            raise _remove_damaged(path, error) from error

    def _folders(self, kind: FeatureKind) -> Iterator[str]:
        for prefix in range(16**_PREFIX_DIGITS):
            yield join(self.folder, kind, f"{prefix:0{_PREFIX_DIGITS}x}")

    def _path(self, kind: FeatureKind, key: str, suffix: str) -> str:
        return join(self.folder, kind, key[:_PREFIX_DIGITS], key + suffix)


def _checksum(archive: bytes) -> bytes:
    return hashlib.blake2b(archive, digest_size=_CHECKSUM_BYTES).digest()


def _checked_archive(content: bytes) -> bytes:
    """Return the archive in a file of features, after checking it: NumPy would believe any header.

    Raises:
      ValueError: the content is damaged.
    """
    end = max(len(content) - len(_SEAL) - _CHECKSUM_BYTES, 0)
    archive = content[:end]
    if content[end:-_CHECKSUM_BYTES] == _SEAL:
        if content[-_CHECKSUM_BYTES:] != _checksum(archive):
            raise ValueError("its checksum is wrong")
        return archive
    # Files of earlier versions have no seal, and end where their archive does.
    if not content[-_ZIP_END_BYTES:].startswith(_ZIP_END):
        raise ValueError("its end is missing or changed")
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        if damaged := file.testzip():
            raise ValueError(f"the checksum of {damaged} is wrong")
    return content


def _remove_damaged(path: str, error: Exception) -> DamagedError:
    remove(path)
    return DamagedError(
        f"{path}: was damaged ({one_line(error)}) and has been removed; run the same command again"
    )


def digest(value: Any) -> str:
    """Return a short digest of a JSON value."""
    return hashlib.blake2b(json.dumps(value).encode(), digest_size=12).hexdigest()
