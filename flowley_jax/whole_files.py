"""Files that appear whole or not at all, and files that grow by lines."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from flowley_jax.errors import FlowleyError


@contextlib.contextmanager
def replacing(path: str | os.PathLike, *more: type[Exception]) -> Iterator[Path]:
    """A temporary name beside `path`, of the same ending, that takes its place when the block succeeds.

    A block that fails, or is interrupted, leaves what was there before.

    Args:
      more: exceptions besides OSError that mean that the disk refuses.

    Raises:
      FlowleyError: naming the file, if it cannot be written.
    """
    path = Path(path)
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        with naming(path, *more):
            yield partial
            os.replace(partial, path)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


@contextlib.contextmanager
def naming(path: str | os.PathLike, *more: type[Exception]) -> Iterator[None]:
    """Turns the errors of a disk, which do not always say so, into one that names the file."""
    try:
        yield
    except (OSError, *more) as error:
        reason = getattr(error, "strerror", None) or error
        raise FlowleyError(f"{path}: cannot be written ({reason})") from error


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes a text file in UTF-8, and makes its folder.

    Raises:
      FlowleyError: naming the file, if it cannot be written.
    """
    with replacing(path) as partial:
        partial.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8")


def append_line(path: str | os.PathLike, line: str) -> None:
    """Adds a line to a text file in UTF-8.

    Raises:
      FlowleyError: naming the file, if it cannot be written.
    """
    with naming(path), open(path, "a", encoding="utf-8") as file:
        file.write(line + "\n")
