"""JSON Lines files that grow by one row at a time and survive a crash in the middle of a line."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flowley_jax.common.files import name_errors
from flowley_jax.errors import FlowleyError


def append_json(path: str | os.PathLike, row: Mapping[str, Any]) -> None:
    """Append one row to a JSON Lines file, in UTF-8; create the file if needed.

    A last line that a crash cut short is removed first.

    Raises:
      FlowleyError: the file cannot be written.
    """
    line = json.dumps(row, ensure_ascii=False) + "\n"
    with name_errors(path), open(path, "ab+") as file:
        _end_last_line(file)
        # A half of a surrogate pair, as in a broken answer or file name, becomes its JSON escape.
        file.write(line.encode(errors="backslashreplace"))


def read_jsonl(path: str | os.PathLike) -> list[dict[str, Any]]:
    """Return the rows of a JSON Lines file in order; a missing file has none.

    Lines that are not JSON objects are dropped: a crash can cut a line short.

    Raises:
      FlowleyError: the file exists but cannot be read.
    """
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise FlowleyError(f"{path}: cannot be read ({error.strerror or error})") from error
    return _rows(content)


class JsonlTail:
    """Reader of a JSON Lines file that grows; each call of `rows` returns what is new."""

    def __init__(self, path: str | os.PathLike):
        self._path = path
        self._position = 0

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows that were completed since the last call, in order; a missing file has none.

        Lines that are not JSON objects are dropped. A last line without a newline waits for the next call.

        Raises:
          FlowleyError: the file exists but cannot be read.
        """
        try:
            with open(self._path, "rb") as file:
                file.seek(self._position)
                content = file.read()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise FlowleyError(f"{self._path}: cannot be read ({error.strerror or error})") from error
        complete = content[: content.rfind(b"\n") + 1]
        self._position += len(complete)
        return _rows(complete)


def _rows(content: bytes) -> list[dict[str, Any]]:
    # Not str.splitlines: it also splits at line separators within a JSON string.
    rows = (_parse(line) for line in content.split(b"\n"))
    return [row for row in rows if isinstance(row, dict)]


def _parse(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _end_last_line(file: Any) -> None:
    """Make the file end with a newline, without its last line if that one is incomplete."""
    if not file.seek(0, os.SEEK_END):
        return
    file.seek(-1, os.SEEK_END)
    if file.read(1) == b"\n":
        return
    file.seek(0)
    content = file.read()
    start = content.rfind(b"\n") + 1
    if _parse(content[start:]) is None:
        file.truncate(start)
    else:
        file.write(b"\n")
