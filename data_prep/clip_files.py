"""Find the files of a table's clips on this machine.

Every folder is listed once: on a network disk, checking 200,000 files one by one takes hours.
"""

import os
from collections.abc import Iterator
from pathlib import Path, PureWindowsPath

from data_prep.storage import is_remote
from flowley_jax.data.clip_table import NameForms, TableRow
from flowley_jax.media.formats import VIDEO_SUFFIXES

# The archive of MovieGen Audio Bench has its videos in such a folder.
_FOLDERS_BELOW_ROOT = ("", "video_with_audio")


class ClipFiles:
    """Finder of the files of a table's rows."""

    def __init__(self, folder: Path, root: Path | None = None):
        """Create the finder; no folder is listed yet.

        Args:
          folder: folder of the table.
          root: additional folder to search.
        """
        self._folder, self._root = folder, root
        self._listed: dict[Path, frozenset[str]] = {}
        self._forms = NameForms()

    def find(self, row: TableRow) -> str | None:
        """Return the file of a row, or None. A remote address (gs://…) is returned unchecked.

        A path is tried relative to the table's folder, as it is, and below `root`. It may have been written
        on a different machine, so its leading folders are then dropped one by one below `root`. Clips without
        a path are looked up by their ids, below `root` first.
        """
        if is_remote(row.path):
            return row.path
        candidates = list(self._candidates_by_path(row.path) if row.path else self._candidates_by_id(row.id))
        found = next((path for path in candidates if self._exists(path)), None)
        if found is None and not (row.path or row.id).isascii():
            found = next((other for path in candidates if (other := self._other_form(path))), None)
        return None if found is None else str(found)

    def is_at_written_path(self, row: TableRow, file: str) -> bool:
        """Return whether the programs that read the table find the same file."""
        if is_remote(row.path) or not row.path:
            return True
        written = self._folder / row.path
        return file == str(written) or (not row.path.isascii() and file == str(self._forms.find(written)))

    def _candidates_by_path(self, written: str) -> Iterator[Path]:
        yield self._folder / written
        yield Path(written)
        if self._root is not None:
            # PureWindowsPath splits at / and \ alike, so paths from every operating system work.
            path = PureWindowsPath(written)
            names = [name for name in path.parts if name not in (path.anchor, "..")]
            for first in range(len(names)):
                yield self._root.joinpath(*names[first:])

    def _candidates_by_id(self, clip_id: str) -> Iterator[Path]:
        roots = [] if self._root is None else [self._root / below for below in _FOLDERS_BELOW_ROOT]
        for folder in (*roots, self._folder):
            for suffix in VIDEO_SUFFIXES:
                yield folder / f"{clip_id}{suffix}"

    def _exists(self, path: Path) -> bool:
        if path.parent not in self._listed:
            self._listed[path.parent] = _list_names(path.parent)
        return path.name in self._listed[path.parent]

    def _other_form(self, path: Path) -> Path | None:
        other = self._forms.find(path)
        return other if other and self._exists(other) else None


def files_below(root: Path) -> list[Path]:
    """Return all files below a folder except hidden ones, sorted by path.

    Raises:
      OSError: the folder, or one below it, cannot be listed.
    """

    def refuse(error: OSError) -> None:
        raise error

    files = []
    for folder, subfolders, names in os.walk(root, onerror=refuse):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        files += [Path(folder) / name for name in names if not name.startswith(".")]
    return sorted(files)


def _list_names(folder: Path) -> frozenset[str]:
    try:
        with os.scandir(folder) as entries:
            return frozenset(entry.name for entry in entries if _is_file(entry))
    except OSError:
        return frozenset()


def _is_file(entry: os.DirEntry) -> bool:
    """Return whether an entry is neither a folder nor a link that leads nowhere or to itself."""
    try:
        return not entry.is_dir() and (not entry.is_symlink() or os.path.exists(entry.path))
    except OSError:
        return False
