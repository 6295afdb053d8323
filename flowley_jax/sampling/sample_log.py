"""`samples.jsonl`: how each sound of a folder was made."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from flowley_jax.common.files import name_errors
from flowley_jax.common.jsonl import append_json, read_jsonl
from flowley_jax.common.trees import flatten_mapping

SAMPLE_LOG_FILE = "samples.jsonl"
Request = dict[str, Any]


class SampleLog:
    """The log of the sounds in one folder.

    A row with an id is a request: everything that the files of one clip depend on. It is appended once the
    files are complete. A row without an id claims files before they are written; after a crash, a later run
    may therefore replace them.
    """

    def __init__(self, folder: Path):
        """
        Args:
          folder: folder of the sounds; it is created if needed.

        Raises:
          FlowleyError: the folder cannot be created, or its log cannot be read.
        """
        self._folder = folder
        self._path = folder / SAMPLE_LOG_FILE
        with name_errors(self._path):
            folder.mkdir(parents=True, exist_ok=True)
        rows = read_jsonl(self._path)
        self._requests: dict[str, Request] = {row["id"]: row for row in rows if "id" in row}
        self._names = {name for row in rows for name in row.get("files", ())}

    def is_done(self, request: Request, paths: Sequence[Path]) -> bool:
        """Return whether the files exist and were made by an equal request."""
        is_same = _as_json(request) == self._requests.get(request["id"])
        return is_same and all(path.exists() for path in paths)

    def foreign(self, paths: Iterable[Path]) -> list[Path]:
        """Return the paths that exist although no run claimed them: this program did not write them."""
        return [path for path in paths if path.name not in self._names and path.exists()]

    def changes(self, request: Request) -> list[str]:
        """Return what was different in the clip's earlier request, such as "guidance 2.0"."""
        earlier = self._requests.get(request["id"])
        return [] if earlier is None else _changes(earlier, _as_json(request))

    def claim(self, paths: Iterable[Path]) -> None:
        """Record that files are about to be written.

        Raises:
          FlowleyError: the log cannot be written.
        """
        names = sorted({path.name for path in paths} - self._names)
        if names:
            append_json(self._path, {"files": names})
            self._names.update(names)

    def add(self, request: Request) -> None:
        """Record that the files of a request are written.

        Raises:
          FlowleyError: the log cannot be written.
        """
        append_json(self._path, request)
        self._requests[request["id"]] = _as_json(request)


def _changes(earlier: Request, now: Request) -> list[str]:
    changes = [
        f"{name} {value}"
        for name, value in flatten_mapping(earlier.get("settings", {}))
        if value != dict(flatten_mapping(now["settings"])).get(name)
    ]
    if earlier.get("seed") != now["seed"]:
        changes.append(f"seed {earlier.get('seed')}")
    if earlier.get("prompt") != now["prompt"]:
        changes.append("a different prompt")
    if earlier.get("weights") != now["weights"]:
        changes.append("different weights")
    if earlier.get("video") != now["video"]:
        changes.append("a different version of the video")
    return changes


def _as_json(request: Request) -> Request:
    """Return the request as it is read back, for example with lists instead of tuples."""
    return json.loads(json.dumps(request))
