"""Fingerprints of many files, cached so that no file is read twice."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_prep.lint.fingerprints import Fingerprints, fingerprints_of
from data_prep.progress import progress_bar
from data_prep.rejection import Rejection
from data_prep.storage import FileStamp
from data_prep.worker_pool import WorkerPool
from flowley_jax.common.files import name_errors
from flowley_jax.common.jsonl import append_json, read_jsonl
from flowley_jax.errors import FlowleyError

CACHE_FILE = "fingerprints.jsonl"
# Version of the fingerprints; those of a different version are made again.
_VERSION = 2

FingerprintResult = Fingerprints | Rejection
# Name, size and time of the last change of a file.
_FileKey = tuple[str, int, int]


def read_fingerprints(
    stamps: Mapping[str, FileStamp], out: Path | None, *, workers: int, time_limit: float
) -> dict[str, FingerprintResult]:
    """Return the fingerprints of each file, or the reason why there are none.

    Args:
      stamps: size and time of the last change by path; a cached file with the same name, size and time is not
        read again.
      out: folder of the cache; None for no cache.
      workers: processes that read files.
      time_limit: time limit for reading one file, in seconds.
    """
    cache = None if out is None else out / CACHE_FILE
    cached = {} if cache is None else _read_cache(cache)
    results = {path: cached[key] for path, stamp in stamps.items() if (key := _key(path, stamp)) in cached}
    missing = [path for path in stamps if path not in results]
    for path, result in _read_files(missing, workers, time_limit):
        results[path] = result
        if cache is not None:
            append_json(cache, _to_row(_key(path, stamps[path]), result))
    return results


def _read_files(
    paths: Sequence[str], workers: int, time_limit: float
) -> Iterator[tuple[str, FingerprintResult]]:
    if not paths:
        return
    pool = WorkerPool(fingerprints_of, count=min(workers, len(paths)), time_limit=time_limit)
    try:
        with progress_bar("reading clips", total=len(paths)) as bar:
            for path, result in zip(paths, pool.map((path,) for path in paths), strict=True):
                yield path, result
                bar.update()
    finally:
        pool.close()


def _read_cache(file: Path) -> dict[_FileKey, FingerprintResult]:
    with name_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
    rows = read_jsonl(file)
    try:
        return dict(_from_row(row) for row in rows if row["version"] == _VERSION)
    except (ValueError, KeyError, TypeError) as error:
        raise FlowleyError(f"{file}: is damaged ({error!r}); remove it and run again") from error


def _key(path: str, stamp: FileStamp) -> _FileKey:
    return Path(path).name, *stamp


def _to_row(key: _FileKey, result: FingerprintResult) -> dict[str, Any]:
    name, size, changed = key
    row = {"version": _VERSION, "file": name, "size": size, "mtime": changed}
    return {**row, **dataclasses.asdict(result)}


def _from_row(row: Mapping[str, Any]) -> tuple[_FileKey, FingerprintResult]:
    key = row["file"], row["size"], row["mtime"]
    if "reason" in row:
        return key, Rejection(row["reason"], row["detail"])
    return key, Fingerprints(row["picture"], row["sound"], row["lacks"])
