"""The processes that sample to one folder: they share its clips, and none is sampled twice.

All of them hold locks on ranges of one file. A lock ends with its process, however it ends, so the clips of a
killed process are free at once. The locks hold on one host and on file systems whose locks reach other hosts,
such as NFS.
"""

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

from flowley_jax.common.files import name_errors
from flowley_jax.common.locks import LOCK_FILE, FolderInUseError
from flowley_jax.errors import FlowleyError

log = logging.getLogger(__name__)
# Bytes of the file, which need not exist to be locked: whose turn it is, who takes part, and the clips.
_TURN, _MEMBERS, _FIRST_CLIP = 0, 1, 16
_CLIPS = 2**40
_POLL_SECONDS = 0.05
# A turn lasts milliseconds, unless its process was suspended.
_LONGEST_WAIT = 120.0
# struct flock of Linux: type, whence, start, length, process.
_FLOCK = "hhqqi"


class Team:
    """Membership of one process in the team of a folder; leave it with `close`.

    Args:
      folder: folder of the sounds; it exists.
      task: what the process does. All members have the same task.

    Attributes:
      is_first: whether no other process was in the team.

    Raises:
      FolderInUseError: other processes with another task are at work.
      FlowleyError: the folder cannot be written to.
    """

    def __init__(self, folder: Path, task: str):
        self._folder = folder
        path = folder / LOCK_FILE
        with name_errors(path):
            self._file = open(path, "a+b", buffering=0)  # noqa: SIM115
        self._has_locks = True
        try:
            with self.turn():
                self.is_first = not self._has_locks or self._is_free(_MEMBERS)
                if self.is_first:
                    self._describe(task)
                else:
                    self._check_task(task)
                self._lock(_MEMBERS, fcntl.F_RDLCK)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Leave the team and release all clips."""
        self._file.close()

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Keep the other members from reading or changing the folder's log inside the block.

        Raises:
          FlowleyError: another member has kept its turn for minutes.
        """
        deadline = time.monotonic() + _LONGEST_WAIT
        while not self._lock(_TURN, fcntl.F_WRLCK):
            if time.monotonic() > deadline:
                raise FlowleyError(
                    f"{self._folder}: another process has locked the folder's log for {_LONGEST_WAIT:.0f} s; "
                    "end that process if it hangs"
                )
            time.sleep(_POLL_SECONDS)
        try:
            yield
        finally:
            self._lock(_TURN, fcntl.F_UNLCK)

    def claim(self, clip_id: str) -> bool:
        """Reserve a clip for this process; return False if another one has it."""
        return self._lock(_position(clip_id), fcntl.F_WRLCK)

    def release(self, clip_id: str) -> None:
        """Give up a claim."""
        self._lock(_position(clip_id), fcntl.F_UNLCK)

    def _lock(self, position: int, kind: int) -> bool:
        """Set, change or release the lock of a byte; return False if another process is in the way."""
        if not self._has_locks:
            return True
        request = struct.pack(_FLOCK, kind, os.SEEK_SET, position, 1, 0)
        try:
            fcntl.fcntl(self._file, fcntl.F_OFD_SETLK, request)
        except (BlockingIOError, PermissionError):
            return False
        except OSError as error:
            log.warning(
                "%s: its file system has no locks (%s); run only one process in it at a time",
                self._folder,
                error,
            )
            self._has_locks = False
        return True

    def _is_free(self, position: int) -> bool:
        request = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, position, 1, 0)
        answer = fcntl.fcntl(self._file, fcntl.F_OFD_GETLK, request)
        return struct.unpack(_FLOCK, answer)[0] == fcntl.F_UNLCK

    def _describe(self, task: str) -> None:
        process = f"process {os.getpid()} on {socket.gethostname()}"
        with name_errors(self._folder / LOCK_FILE):
            self._file.truncate(0)
            self._file.write(json.dumps({"task": task, "process": process}).encode())

    def _check_task(self, task: str) -> None:
        self._file.seek(0)
        try:
            first = json.loads(self._file.read())
        except ValueError:
            first = {}
        if first.get("task") == task:
            log.info("%s: sharing the clips with %s", self._folder, first["process"])
            return
        raise FolderInUseError(
            f"{self._folder}: another process is writing to it with other clips or settings "
            f"({first.get('process', 'unknown')}); only identical commands can share a folder"
        )


def _position(clip_id: str) -> int:
    """Return the byte of a clip. Two clips with the same byte are sampled one after the other."""
    digest = hashlib.sha256(clip_id.encode(errors="surrogatepass")).digest()
    return _FIRST_CLIP + int.from_bytes(digest[:8], "big") % _CLIPS
