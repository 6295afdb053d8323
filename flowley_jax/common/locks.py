"""Locks that keep two processes from writing to one folder."""

import contextlib
import fcntl
import logging
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from flowley_jax.common.files import name_errors
from flowley_jax.errors import FlowleyError

log = logging.getLogger(__name__)
LOCK_FILE = ".lock"
_POLL_SECONDS = 0.5


class FolderInUseError(FlowleyError):
    """Another process holds the lock of a folder."""


@contextlib.contextmanager
def lock_folder(folder: Path, *, wait: float = 0.0) -> Iterator[None]:
    """Create a folder and keep other processes from locking it inside the block.

    The lock ends with the process, however it ends. It holds on one host and on file systems whose locks
    reach other hosts, such as NFS.

    Args:
      folder: folder to lock.
      wait: seconds to wait for another process to release the lock.

    Raises:
      FolderInUseError: another process holds the lock; the message says which one.
      FlowleyError: the folder cannot be created or written to.
    """
    with name_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK_FILE
    with name_errors(path):
        # Unbuffered: closing the file must not write again what a full disk has refused.
        file = open(path, "a+b", buffering=0)  # noqa: SIM115
    with file:
        if _locked(file, folder, wait):
            _write_holder(file)
        yield


def _locked(file: IO[bytes], folder: Path, wait: float) -> bool:
    """Wait for the lock; return False if the file system has none."""
    deadline, announced = time.monotonic() + wait, False
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError as error:
            holder = _holder(file)
            if time.monotonic() >= deadline:
                raise FolderInUseError(f"{folder}: another process is writing to it ({holder})") from error
            if not announced:
                log.info("%s: waiting for another process that is writing to it (%s)", folder, holder)
                announced = True
        except OSError as error:
            log.warning(
                "%s: its file system has no locks (%s); run only one process on it at a time", folder, error
            )
            return False
        time.sleep(_POLL_SECONDS)


def _write_holder(file: IO[bytes]) -> None:
    # Only for the messages of others: a full disk must not stop the holder here.
    with contextlib.suppress(OSError):
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())


def _holder(file: IO[bytes]) -> str:
    try:
        file.seek(0)
        return file.read(200).decode().strip() or "unknown"
    except (OSError, UnicodeDecodeError):
        return "unknown"
