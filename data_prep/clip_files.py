"""Where the files of a table are on this machine.

Every folder is listed once: asking a network disk about each of 200,000 files takes hours.
"""

import os
from pathlib import Path, PureWindowsPath

from data_prep.files import is_remote
from data_prep.tables import TableRow

ENDINGS = (".mp4", ".mkv", ".webm")
# As the archive of MovieGen Audio Bench has it.
_BELOW_ROOT = ("", "video_with_audio")


class ClipFiles:
    """Finds files by what a table says."""

    def __init__(self, folder: Path, root: Path | None = None):
        """
        Args:
          folder: of the table.
          root: another folder to look in.
        """
        self._folder, self._root = folder, root
        self._listed: dict[Path, frozenset[str]] = {}

    def find(self, row: TableRow) -> str | None:
        """The file of a row, or None; an address (gs://…) is taken as it is.

        A path is tried against the table's folder, as it is, below root, and then, as one of another machine
        may be, without more and more of its first folders below root. Clips without a path are looked for by
        their ids, below root first.
        """
        if is_remote(row.path):
            return row.path
        candidates = self._of_path(row.path) if row.path else self._of_id(row.id)
        return next((str(path) for path in candidates if self._is_there(path)), None)

    def is_as_written(self, row: TableRow, found: str) -> bool:
        """Whether the programs that read the table find the same file."""
        return is_remote(row.path) or not row.path or found == str(self._folder / row.path)

    def _of_path(self, written: str):
        yield self._folder / written
        yield Path(written)
        if self._root is not None:
            # Knows the separators of all systems.
            whole = PureWindowsPath(written)
            parts = [part for part in whole.parts if part not in (whole.anchor, "..")]
            for first in range(len(parts)):
                yield self._root.joinpath(*parts[first:])

    def _of_id(self, clip_id: str):
        roots = [] if self._root is None else [self._root / below for below in _BELOW_ROOT]
        for folder in (*roots, self._folder):
            for ending in ENDINGS:
                yield folder / f"{clip_id}{ending}"

    def _is_there(self, path: Path) -> bool:
        if path.parent not in self._listed:
            self._listed[path.parent] = _names_in(path.parent)
        return path.name in self._listed[path.parent]


def files_below(root: Path) -> list[Path]:
    """All files below a folder but hidden ones, in the order of their paths.

    Raises:
      OSError: the folder, or one below it, cannot be listed.
    """

    def refuse(error: OSError):
        raise error

    found = []
    for folder, below, names in os.walk(root, onerror=refuse):
        below[:] = [name for name in below if not name.startswith(".")]
        found += [Path(folder) / name for name in names if not name.startswith(".")]
    return sorted(found)


def _names_in(folder: Path) -> frozenset[str]:
    try:
        # Links that lead nowhere are no files.
        with os.scandir(folder) as entries:
            return frozenset(
                entry.name for entry in entries if not entry.is_symlink() or os.path.exists(entry.path)
            )
    except OSError:
        return frozenset()
