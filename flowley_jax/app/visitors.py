"""Requests and files of the page's visitors."""

import re
import shutil
import tempfile
import threading
from collections import defaultdict
from pathlib import Path

_SHA256 = re.compile(r"[0-9a-f]{64}")


class Visitors:
    """Keeps apart what belongs to each visitor: the newest request, and the files until the visitor leaves.

    Methods take the name of a visitor's session.

    Args:
      files: folder in which Gradio keeps its files, so that it serves new ones in it without a copy.
    """

    def __init__(self, files: Path):
        self._files, self._lock = files.resolve(), threading.Lock()
        self._tickets: dict[str, int] = defaultdict(int)
        self._folders: dict[str, set[Path]] = defaultdict(set)
        self._uploads: dict[str, set[Path]] = defaultdict(set)
        self._kept: set[Path] = set()

    def keep_present_files(self) -> None:
        """Note the files that are there before any visitor comes: those of the examples are never removed."""
        self._kept = {path.resolve() for path in self._files.rglob("*")}

    def new_ticket(self, session: str) -> int:
        """Return the ticket of a new request; earlier ones are cancelled."""
        with self._lock:
            self._tickets[session] += 1
            return self._tickets[session]

    def cancel(self, session: str) -> None:
        """Cancel the request of a visitor."""
        self.new_ticket(session)

    def is_cancelled(self, session: str, ticket: int) -> bool:
        """Return whether the visitor has a newer ticket."""
        return self._tickets[session] != ticket

    def new_folder(self, session: str, video: Path) -> Path:
        """Return a new folder for sounds, and note the upload if it is one."""
        folder = Path(tempfile.mkdtemp(dir=self._files))
        with self._lock:
            self._folders[session].add(folder)
            if self._is_upload(video):
                self._uploads[session].add(video.resolve())
        return folder

    def remove(self, session: str) -> None:
        """Cancel the request of a visitor and remove their files."""
        self.cancel(session)
        with self._lock:
            folders = self._folders.pop(session, set())
            # Visitors who upload the same file share it.
            uploads = self._uploads.pop(session, set()) - set().union(*self._uploads.values())
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
        for upload in uploads:
            upload.unlink(missing_ok=True)

    def _is_upload(self, video: Path) -> bool:
        """Return whether a path, which a visitor may have made up, is a file that Gradio stored for visitors.

        Gradio stores an upload as {files}/{SHA-256}/{name}.
        """
        path = video.resolve()
        is_inside = path.parent.parent == self._files and bool(_SHA256.fullmatch(path.parent.name))
        return is_inside and path.is_file() and path not in self._kept
