"""Reading and writing of files: atomic, with errors that name the file."""

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from flowley_jax.errors import FlowleyError

_CHUNK = 4 * 2**20


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike, *write_errors: type[Exception]) -> Iterator[Path]:
    """Yield a temporary path in the same folder, which replaces `path` when the block succeeds.

    A block that fails, or is interrupted, leaves an older file as it was.

    Args:
      path: file to write; the temporary path has the same suffix.
      write_errors: exceptions besides OSError that mean that the file cannot be written.

    Raises:
      FlowleyError: the file cannot be written.
    """
    path = Path(path)
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        with name_errors(path, *write_errors):
            yield partial
            os.replace(partial, path)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


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
    """Write a text file in UTF-8, and create its folder.

    Raises:
      FlowleyError: the file cannot be written.
    """
    with atomic_write(path) as partial:
        partial.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8")


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
