"""Which files of a folder this program made: they alone may be replaced."""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from flowley_jax.common.files import flush_to_disk, name_errors, partial_name, sha256
from flowley_jax.common.jsonl import JsonlTail, append_json
from flowley_jax.errors import FlowleyError


class MadeFiles:
    """The files of a folder that this program made, with the SHA-256 of their content, in a JSON Lines file.

    A row is appended just before a file gets its final name. A file that is not in the rows, or whose content
    differs from every row, belongs to someone else.
    """

    def __init__(self, path: Path, on_row: Callable[[Mapping[str, Any]], None] | None = None):
        """
        Args:
          path: the JSON Lines file, in the folder of the files.
          on_row: called with every row in order, those of other kinds included.

        Raises:
          FlowleyError: the file exists but cannot be read.
        """
        self._path, self._on_row = path, on_row
        self._tail = JsonlTail(path)
        # Owners by name and SHA-256.
        self._owners: dict[str, dict[str, set[str]]] = {}
        self.refresh()

    def refresh(self) -> None:
        """Read the rows that other processes have appended.

        Raises:
          FlowleyError: the file exists but cannot be read.
        """
        for row in self._tail.rows():
            if is_made_row(row):
                self._add(row["clip"], row["made"])
            if self._on_row:
                self._on_row(row)

    def fault(self, path: Path, owner: str) -> str | None:
        """Return why a path must not be written for `owner`, or None if it is free or made for that owner.

        Raises:
          FlowleyError: the file at the path cannot be read.
        """
        if not os.path.lexists(path):
            return None
        owners = self._owners.get(path.name, {})
        if not owners:
            return f"{path}: already exists and was not written by this program; remove it or change --out"
        # Anything but a file, such as a pipe, has no content to compare.
        digest = sha256(path) if path.is_file() else ""
        if digest not in owners:
            return f"{path}: was changed after this program wrote it; remove it or change --out"
        if owner not in owners[digest]:
            others = ", ".join(sorted(owners[digest]))
            return f"{path}: is the sound of another clip, {others}; rename a clip or change --out"
        return None

    def holds(self, path: Path) -> bool:
        """Return whether this program made a file, and nobody changed it since.

        Raises:
          FlowleyError: the file cannot be read.
        """
        owners = self._owners.get(path.name)
        return owners is not None and path.is_file() and sha256(path) in owners

    def claim(self, owner: str, made: Mapping[Path, str]) -> None:
        """Record files that are about to get their final names.

        Args:
          owner: what the files belong to, such as the id of a clip.
          made: SHA-256 by final path.

        Raises:
          FlowleyError: a path must not be written, or the row cannot be written.
        """
        for path in made:
            if fault := self.fault(path, owner):
                raise FlowleyError(fault)
        names = {path.name: digest for path, digest in made.items()}
        append_json(self._path, {"clip": owner, "made": names})
        self._add(owner, names)

    def _add(self, owner: str, made: Mapping[str, str]) -> None:
        for name, digest in made.items():
            self._owners.setdefault(name, {}).setdefault(digest, set()).add(owner)


@contextlib.contextmanager
def staged(
    paths: Sequence[Path], claim: Callable[[Mapping[Path, str]], None] | None = None
) -> Iterator[list[Path]]:
    """Yield temporary paths; when the block succeeds, all of them get their final names.

    Args:
      paths: files to write; the temporary ones have the same suffixes in lower case.
      claim: called with the SHA-256 of each file by its final path, before the files get their names.

    Raises:
      FlowleyError: a file cannot be written, or `claim` refuses.
    """
    partials = [path.with_name(partial_name(path.suffix.lower())) for path in paths]
    try:
        yield partials
        for path, partial in zip(paths, partials, strict=True):
            with name_errors(path):
                flush_to_disk(partial)
        if claim:
            claim(dict(zip(paths, map(sha256, partials), strict=True)))
        for path, partial in zip(paths, partials, strict=True):
            with name_errors(path):
                os.replace(partial, path)
    finally:
        for partial in partials:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)


def is_made_row(row: Mapping[str, Any]) -> bool:
    """Return whether a row of a JSON Lines file is one that `MadeFiles` appended."""
    made = row.get("made")
    is_of_text = isinstance(made, dict) and all(isinstance(digest, str) for digest in made.values())
    return is_of_text and isinstance(row.get("clip"), str)
