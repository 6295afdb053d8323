"""Fingerprints of many files, cached so that no file is read twice."""

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_prep.lint.fingerprints import Fingerprints, fingerprints_of
from data_prep.rejection import Rejection
from data_prep.storage import FileStamp, content_samples, path_below
from data_prep.worker_pool import WorkerPool
from flowley_jax.common.files import name_errors
from flowley_jax.common.jsonl import append_json, read_jsonl
from flowley_jax.common.progress import progress_bar
from flowley_jax.errors import FlowleyError

CACHE_FILE = "fingerprints.jsonl"
# Version of the fingerprints; those of a different version are made again.
_VERSION = 3
_DIGITS = re.compile("[0-9a-f]{64}")

FingerprintResult = Fingerprints | Rejection
# Path below the table's folder, size, time of the last change, and digest of some bytes of a file.
_FileKey = tuple[str, int, int, str]


def read_fingerprints(
    stamps: Mapping[str, FileStamp], folder: Path, out: Path | None, *, workers: int, time_limit: float
) -> dict[str, FingerprintResult]:
    """Return the fingerprints of each file, or the reason why there are none.

    Args:
      stamps: size and time of the last change by path; a cached file that has not changed is not read again.
      folder: folder of the table; files keep their fingerprints when they move together with it.
      out: folder of the cache; None for no cache.
      workers: processes that read files.
      time_limit: time limit for reading one file, in seconds.
    """
    cache = None if out is None else out / CACHE_FILE
    cached = {} if cache is None else _read_cache(cache)
    samples = content_samples(stamps)
    keys = {path: (path_below(path, folder), *stamp, samples[path]) for path, stamp in stamps.items()}
    results = {path: cached[key] for path, key in keys.items() if key in cached}
    missing = [path for path in stamps if path not in results]
    for path, result in _read_files(missing, workers, time_limit):
        results[path] = result
        if cache is not None:
            append_json(cache, _to_row(keys[path], result))
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
        return dict(_from_row(row) for row in rows if _checked_version(row) == _VERSION)
    except (ValueError, KeyError, TypeError) as error:
        raise FlowleyError(f"{file}: is damaged ({error!r}); remove it and run again") from error


def _checked_version(row: Mapping[str, Any]) -> int:
    if not isinstance(row["version"], int):
        raise ValueError(f"version {row['version']!r} is unknown")
    return row["version"]


def _to_row(key: _FileKey, result: FingerprintResult) -> dict[str, Any]:
    name, size, changed, sample = key
    row = {"version": _VERSION, "file": name, "size": size, "mtime": changed, "sample": sample}
    return {**row, **dataclasses.asdict(result)}


def _from_row(row: Mapping[str, Any]) -> tuple[_FileKey, FingerprintResult]:
    key = row["file"], row["size"], row["mtime"], row["sample"]
    # Only values that can be keys: a list could not be hashed.
    if not all(isinstance(value, str | int) for value in key):
        raise ValueError(f"file {key!r} is unknown")
    if "reason" in row:
        return key, Rejection.from_json({"reason": row["reason"], "detail": row["detail"]})
    return key, _checked_fingerprints(row)


def _checked_fingerprints(row: Mapping[str, Any]) -> Fingerprints:
    prints = Fingerprints(**{field.name: row[field.name] for field in dataclasses.fields(Fingerprints)})
    for digits in (prints.picture, prints.sound):
        if digits is not None and not _DIGITS.fullmatch(digits):
            raise ValueError(f"fingerprint {digits!r} must be 64 hexadecimal digits")
    if prints.lacks not in ("", "picture", "sound"):
        raise ValueError(f"lacks={prints.lacks!r} is unknown")
    for seconds in (prints.offset, prints.overlap, prints.hole):
        if seconds is not None and (isinstance(seconds, bool) or not isinstance(seconds, int | float)):
            raise ValueError(f"{seconds!r} must be a number of seconds")
    return prints
