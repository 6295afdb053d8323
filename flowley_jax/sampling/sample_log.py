"""`samples.jsonl`: how each sound of a folder was made, and why clips failed."""

import contextlib
import dataclasses
import json
import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from flowley_jax.common.jsonl import append_json
from flowley_jax.common.trees import flatten_mapping
from flowley_jax.config import SampleConfig
from flowley_jax.media.mix import ONLY_NEW
from flowley_jax.sampling.made_files import MadeFiles, is_made_row

log = logging.getLogger(__name__)
SAMPLE_LOG_FILE = "samples.jsonl"
Request = dict[str, Any]
# A clip's id and the names of its files.
_Files = tuple[str, tuple[str, ...]]
Turn = Callable[[], contextlib.AbstractContextManager[None]]
# What rows of earlier versions, which lack these keys, were made with.
_CHOICES = {"candidates": 0, **dataclasses.asdict(ONLY_NEW)}
_DEFAULTS = {"negative_prompt": "", "start": 0.0, "end": None, **_CHOICES}
# A result, so not part of the request.
_SCORES = "scores"


class SampleLog:
    """The log of the sounds in one folder.

    A row with an id is a request: everything that the files of one clip depend on. It is appended once the
    files are complete. The other rows are those of `MadeFiles`, each appended just before the files of a clip
    get their names; until the request follows, the files of that clip are incomplete. Rows with `failed`
    hold the error message of a clip that failed.
    """

    def __init__(self, folder: Path, turn: Turn = contextlib.nullcontext):
        """
        Args:
          folder: folder of the sounds.
          turn: keeps other processes from the log inside a block; by default, no other process is assumed.

        Raises:
          FlowleyError: the log exists but cannot be read.
        """
        self._path, self._turn = folder / SAMPLE_LOG_FILE, turn
        # The last request of each clip and set of files, and those whose files are complete.
        self._requests: dict[_Files, Request] = {}
        self._complete: dict[str, set[_Files]] = defaultdict(set)
        # The messages of clips that failed since the log was opened.
        self.failures: dict[str, str] = {}
        self._ignored = 0
        self.made_files = MadeFiles(self._path, self._take)
        if self._ignored:
            log.info("%s: %d rows are not of this program and are ignored", self._path, self._ignored)
        # Clips that failed in earlier runs are tried again.
        self.failures.clear()

    def refresh(self) -> None:
        """Read what other processes have appended.

        Raises:
          FlowleyError: the log cannot be read.
        """
        self.made_files.refresh()

    def _take(self, row: Mapping[str, Any]) -> None:
        if _is_request(row):
            self._requests[_files(row)] = _completed(dict(row))
            self._complete[row["id"]].add(_files(row))
        elif is_made_row(row):
            self._discard(row["clip"], row["made"])
        elif _is_failure(row):
            self.failures[row["failed"]] = row["error"]
        else:
            self._ignored += 1

    def is_done(self, request: Request, paths: Sequence[Path]) -> bool:
        """Return whether the files exist and were made by an equal request."""
        files = _files(request)
        is_same = files in self._complete[request["id"]] and _as_json(request) == self._requests[files]
        return is_same and all(path.exists() for path in paths)

    def changes(self, request: Request) -> list[str]:
        """Return what was different in the clip's earlier request, such as "guidance 2.0"."""
        earlier = self._requests.get(_files(request))
        return [] if earlier is None else _changes(earlier, _as_json(request))

    def claim(self, clip_id: str, made: Mapping[Path, str]) -> None:
        """Record that files of a clip are about to get their names; see `MadeFiles.claim`."""
        with self._turn():
            self.made_files.refresh()
            self.made_files.claim(clip_id, made)
        self._discard(clip_id, {path.name: digest for path, digest in made.items()})

    def add(self, request: Request, scores: Sequence[float] = ()) -> None:
        """Record that the files of a request are complete.

        Args:
          request: what the files depend on.
          scores: the scores of all candidates, best first, if they were ranked.

        Raises:
          FlowleyError: the log cannot be written.
        """
        row = {**request, _SCORES: [round(score, 4) for score in scores]} if scores else request
        with self._turn():
            append_json(self._path, row)
        self._requests[_files(request)] = _as_json(request)
        self._complete[request["id"]].add(_files(request))

    def _discard(self, clip_id: str, names: Collection[str]) -> None:
        """Note that files are about to be replaced: every request that made one of them is out of date."""
        self._complete[clip_id] = {key for key in self._complete[clip_id] if set(names).isdisjoint(key[1])}

    def add_failure(self, clip_id: str, error: str) -> None:
        """Record that a clip failed, so that no other process of this run tries it.

        Raises:
          FlowleyError: the log cannot be written.
        """
        with self._turn():
            append_json(self._path, {"failed": clip_id, "error": error})


def _files(request: Mapping[str, Any]) -> _Files:
    files = request.get("files")
    return request["id"], tuple(map(str, files)) if isinstance(files, list) else ()


def _is_request(row: Mapping[str, Any]) -> bool:
    return isinstance(row.get("id"), str) and isinstance(row.get("settings"), dict)


def _is_failure(row: Mapping[str, Any]) -> bool:
    return isinstance(row.get("failed"), str) and isinstance(row.get("error"), str)


def _completed(request: Request) -> Request:
    """Return a request with the keys that earlier versions did not have."""
    defaults = _as_json(dataclasses.asdict(SampleConfig()))
    del defaults["negative_prompt"]
    settings = request["settings"]
    solver = {**defaults["solver"], **settings.get("solver", {})}
    asked = {key: value for key, value in request.items() if key != _SCORES}
    return {**_as_json(_DEFAULTS), **asked, "settings": {**defaults, **settings, "solver": solver}}


def _changes(earlier: Request, now: Request) -> list[str]:
    changes = [
        f"{name} {value}"
        for name, value in flatten_mapping(earlier["settings"])
        if value != dict(flatten_mapping(now["settings"])).get(name)
    ]
    if earlier.get("seed") != now["seed"]:
        changes.append(f"seed {earlier.get('seed')}")
    if earlier.get("prompt") != now["prompt"]:
        changes.append("a different prompt")
    if earlier["negative_prompt"] != now["negative_prompt"]:
        changes.append("a different negative prompt")
    if (earlier["start"], earlier["end"]) != (now["start"], now["end"]):
        changes.append("another start or end")
    for name in _CHOICES:
        if earlier[name] != now[name]:
            changes.append(f"{name} {earlier[name]}")
    if earlier.get("weights") != now["weights"]:
        changes.append("different weights")
    if earlier.get("video") != now["video"]:
        changes.append("a different version of the video")
    return changes


def _as_json(request: Request) -> Request:
    """Return the request as it is read back, for example with lists instead of tuples."""
    return json.loads(json.dumps(request))
