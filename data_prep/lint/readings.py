"""Fingerprints of many files, kept so that what was read once is not read again."""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from data_prep.decoder import DecoderPool
from data_prep.files import Stamp
from data_prep.fingerprints import Fingerprints, fingerprints_of
from data_prep.progress import progress_bar
from data_prep.rejection import Rejection
from flowley_jax.errors import FlowleyError
from flowley_jax.whole_files import append_line, write_text

READINGS_FILE = "fingerprints.jsonl"
# Of the fingerprints: lines of another one are made anew.
_VERSION = 2

Reading = Fingerprints | Rejection
_Key = tuple[str, int, int]


def read_all(
    stamps: Mapping[str, Stamp], out: Path | None, *, workers: int, time_limit: float
) -> dict[str, Reading]:
    """Fingerprints of each file, or why there are none.

    Args:
      stamps: size and time of change by path; a file of the same name, size and time counts as read.
      out: folder that keeps what is read; None keeps nothing.
    """
    file = None if out is None else out / READINGS_FILE
    kept = {} if file is None else _kept(file)
    readings = {path: kept[key] for path, stamp in stamps.items() if (key := _key(path, stamp)) in kept}
    missing = [path for path in stamps if path not in readings]
    for path, reading in _read(missing, workers, time_limit):
        readings[path] = reading
        if file is not None:
            append_line(file, _line(_key(path, stamps[path]), reading))
    return readings


def _read(paths: list[str], workers: int, time_limit: float) -> Iterator[tuple[str, Reading]]:
    if not paths:
        return
    pool = DecoderPool(fingerprints_of, count=min(workers, len(paths)), time_limit=time_limit)
    try:
        with progress_bar("reading clips", total=len(paths)) as bar:
            for path, reading in zip(paths, pool.map((path,) for path in paths), strict=True):
                yield path, reading
                bar.update()
    finally:
        pool.close()


def _key(path: str, stamp: Stamp) -> _Key:
    return Path(path).name, *stamp


def _kept(file: Path) -> dict[_Key, Reading]:
    """What is there; the file is made, and half a line, which an interruption leaves, removed."""
    try:
        lines = file.read_text(encoding="utf-8").split("\n") if file.exists() else []
    except (OSError, UnicodeDecodeError) as error:
        raise FlowleyError(f"{file}: cannot be read ({error}); remove it and run again") from error
    whole = [line for line in lines if line.endswith("}")]
    if not file.exists() or (len(whole) < len(lines) - 1 or lines[-1]):
        write_text(file, "".join(line + "\n" for line in whole))
    try:
        return dict(_parsed(value) for line in whole if (value := json.loads(line))["version"] == _VERSION)
    except (ValueError, KeyError, TypeError) as error:
        raise FlowleyError(f"{file}: is damaged ({error!r}); remove it and run again") from error


def _line(key: _Key, reading: Reading) -> str:
    name, size, changed = key
    value = {"version": _VERSION, "file": name, "size": size, "mtime": changed}
    return json.dumps({**value, **dataclasses.asdict(reading)})


def _parsed(value: dict) -> tuple[_Key, Reading]:
    key = value["file"], value["size"], value["mtime"]
    if "reason" in value:
        return key, Rejection(value["reason"], value["detail"])
    return key, Fingerprints(value["picture"], value["sound"], value["lacks"])
