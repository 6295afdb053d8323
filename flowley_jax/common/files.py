"""Reading and writing of files: atomic, with errors that name the file."""

import contextlib
import hashlib
import os
import re
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

from flowley_jax.errors import FlowleyError

_CHUNK = 4 * 2**20
_PARTIAL = ".partial-"
_PARTIAL_NAME = re.compile(r"\.partial-[0-9a-f]{16}(\..*)?", re.DOTALL)
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike, *write_errors: type[Exception]) -> Iterator[Path]:
    """Yield a temporary path in the same folder, which replaces `path` when the block succeeds.

    A block that fails, or is interrupted, leaves an older file as it was. Two processes that write the same
    file, on one host or on several, do not disturb each other: the last one to finish wins.

    Args:
      path: file to write; the temporary path has the same suffix.
      write_errors: exceptions besides OSError that mean that the file cannot be written.

    Raises:
      FlowleyError: the file cannot be written.
    """
    path = Path(path)
    partial = path.with_name(partial_name(path.suffix))
    try:
        with name_errors(path, *write_errors):
            yield partial
            flush_to_disk(partial)
            os.replace(partial, path)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def partial_name(suffix: str = "") -> str:
    """Return a name for a temporary file that no other process on any host uses."""
    return f"{_PARTIAL}{secrets.token_hex(8)}{suffix}"


def is_partial(name: str) -> bool:
    """Return whether `partial_name` made a name."""
    return _PARTIAL_NAME.fullmatch(name) is not None


def remove_partials(folder: Path, *, unchanged_seconds: float = 0.0) -> None:
    """Remove temporary files that killed processes left in a folder.

    Args:
      folder: the caller must have locked it, or else leave files in use alone by their age.
      unchanged_seconds: age of the last change from which a file is removed.
    """
    with contextlib.suppress(OSError):
        for entry in folder.iterdir():
            if not is_partial(entry.name) or entry.is_dir():
                continue
            if not unchanged_seconds or time.time() - entry.lstat().st_mtime > unchanged_seconds:
                entry.unlink(missing_ok=True)


def flush_to_disk(path: Path) -> None:
    """Write a file to the disk before it gets its final name.

    Otherwise, after a power failure, some file systems show the new name without its content.
    """
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def check_new_file(path: Path, *, overwrite: bool, option: str = "--out") -> None:
    """Check that a command does not replace a file by accident.

    Args:
      path: file that the command will write.
      overwrite: whether the user allows an existing file to be replaced.
      option: the option that gave the path, for the message.

    Raises:
      FlowleyError: the file exists, and `overwrite` is false; or the path is a folder.
    """
    if path.is_dir():
        raise FlowleyError(f"{option} {path}: is a folder, expected a file")
    if os.path.lexists(path) and not overwrite:
        raise FlowleyError(
            f"{option} {path}: already exists; choose another name, or add --overwrite to replace it"
        )


def lfs_note(path: str | os.PathLike) -> str | None:
    """Return a remark for a message if a file is a Git LFS pointer instead of its content, or else None."""
    try:
        with open(path, "rb") as file:
            is_pointer = file.read(len(_LFS_POINTER)) == _LFS_POINTER
    except OSError:
        return None
    return "it is a Git LFS pointer: fetch its content with `git lfs pull`" if is_pointer else None


@contextlib.contextmanager
def name_errors(path: str | os.PathLike, *write_errors: type[Exception]) -> Iterator[None]:
    """Turn errors of the disk, which do not always name the file, into one that does.

    Args:
      path: file that the block writes.
      write_errors: exceptions besides OSError that mean that the file cannot be written.

    Raises:
      FlowleyError: the file cannot be written.
    """
    try:
        yield
    except FlowleyError:
        raise
    except (OSError, *write_errors) as error:
        reason = getattr(error, "strerror", None) or error
        raise FlowleyError(f"{path}: cannot be written ({reason})") from error


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a text file in UTF-8, and create its folder. Names of files in it keep bytes that are no text.

    Raises:
      FlowleyError: the file cannot be written.
    """
    with atomic_write(path) as partial:
        partial.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8", errors="surrogateescape")


def append_line(path: str | os.PathLike, line: str) -> None:
    """Append a line to a text file in UTF-8.

    Raises:
      FlowleyError: the file cannot be written.
    """
    with name_errors(path), open(path, "a", encoding="utf-8") as file:
        file.write(line + "\n")


def sha256(*paths: str | os.PathLike) -> str:
    """Return the SHA-256 of a file, or of several files' contents one after the other, in hexadecimal.

    Raises:
      FlowleyError: a file cannot be read.
    """
    digest = hashlib.sha256()
    for path in paths:
        try:
            with open(path, "rb") as file:
                while chunk := file.read(_CHUNK):
                    digest.update(chunk)
        except OSError as error:
            raise FlowleyError(f"{path}: cannot be read ({error.strerror or error})") from error
    return digest.hexdigest()
