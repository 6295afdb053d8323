"""Features that are made, one file each, named by all that they depend on.

A file that is there is finished. What cannot be used has a note in place of its features. Nothing is removed:
another table, or another caption of a clip, finds what has not changed.
"""

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from data_prep.files import join, names_in, read_bytes, remove, write_bytes
from data_prep.rejection import Rejection
from flowley_jax.errors import FlowleyError

Kind = Literal["media", "text"]
_FEATURES, _NOTE = ".npz", ".json"
# Of a key that name a folder: some file systems are slow with many files in one.
_PREFIX = 2


class FeatureStore:
    """The features below a folder."""

    def __init__(self, folder: str):
        self.folder = folder

    def keys(self, kind: Kind) -> tuple[set[str], set[str]]:
        """Keys of the features that are there, and of what cannot be used."""
        made: set[str] = set()
        refused: set[str] = set()
        for prefix in range(16**_PREFIX):
            for name in names_in(join(self.folder, kind, f"{prefix:0{_PREFIX}x}")):
                stem, dot, ending = name.partition(".")
                (made if dot + ending == _FEATURES else refused).add(stem)
        return made, refused - made

    def write(self, kind: Kind, key: str, features: Mapping[str, np.ndarray]) -> None:
        """Keeps features."""
        content = io.BytesIO()
        np.savez(content, **features)  # pyright: ignore[reportArgumentType]
        write_bytes(self._path(kind, key, _FEATURES), content.getvalue())

    def read(self, kind: Kind, key: str) -> dict[str, np.ndarray]:
        """Features that were kept.

        Raises:
          FlowleyError: naming the file, if it is missing, or damaged and therefore removed.
        """
        path = self._path(kind, key, _FEATURES)
        try:
            with np.load(io.BytesIO(read_bytes(path))) as file:
                return dict(file)
        except (ValueError, EOFError, zipfile.BadZipFile) as error:
            raise _removed(path, error) from error

    def refuse(self, kind: Kind, key: str, rejection: Rejection) -> None:
        """Keeps the reason why there are no features."""
        note = {"reason": rejection.reason, "detail": rejection.detail}
        write_bytes(self._path(kind, key, _NOTE), json.dumps(note).encode())

    def forget(self, kind: Kind, key: str) -> None:
        """Removes such a reason, so that the next run tries again."""
        remove(self._path(kind, key, _NOTE))

    def rejection(self, kind: Kind, key: str) -> Rejection:
        """The reason that was kept.

        Raises:
          FlowleyError: naming the file, if it is missing, or damaged and therefore removed.
        """
        path = self._path(kind, key, _NOTE)
        try:
            return Rejection(**json.loads(read_bytes(path)))
        except (ValueError, TypeError) as error:
            raise _removed(path, error) from error

    def _path(self, kind: Kind, key: str, ending: str) -> str:
        return join(self.folder, kind, key[:_PREFIX], key + ending)


def _removed(path: str, error: Exception) -> FlowleyError:
    """A damaged file is gone afterwards, so that another run makes it anew."""
    remove(path)
    return FlowleyError(f"{path}: was damaged ({error}) and is removed; run again to make it anew")


def digest_of(value: Any) -> str:
    """Short digest of anything that JSON can hold."""
    return hashlib.blake2b(json.dumps(value).encode(), digest_size=12).hexdigest()
